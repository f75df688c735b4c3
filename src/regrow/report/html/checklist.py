"""The items of the NeurIPS paper checklist, answered as far as records can answer them.

The sixteen items are those of 2025 (neurips.cc/public/guides/PaperChecklist), in their order but
in other words. Items that no record can answer are marked as left to the authors.
"""

from collections.abc import Sequence

from regrow.report import Report
from regrow.report.html.document import PageCell, PageSection, PageTable, Tone
from regrow.report.html.evidence import StudyEvidence
from regrow.report.rows import Run

FOR_AUTHORS = "for the authors"
_THEORY = "Theory, assumptions and proofs"
_LATER = (  # items 9 to 16
    "Code of ethics",
    "Broader impacts",
    "Safeguards",
    "Licences of assets that were used",
    "New assets",
    "Crowdsourcing and research with people",
    "Approval by an institutional review board",
    "Use of large language models in the method",
)
Item = tuple[str, str, Tone, str]


def checklist(report: Report, runs: Sequence[Run], evidence: StudyEvidence) -> PageSection:
    """Answer each item from the study's records."""
    items = [
        _claims(report),
        _limitations(report),
        _unrecorded(_THEORY),
        _reproducible(report, evidence),
        _open(report),
        _settings(report),
        _significance(report, runs),
        _resources(report, evidence),
        *map(_unrecorded, _LATER),
    ]
    table = PageTable(
        title="What the records answer",
        columns=("item", "answer", "by what"),
        rows=tuple(
            (
                PageCell(text=f"{number}. {name}", value=float(number)),
                PageCell(text=answer, tone=tone),
                PageCell(text=why),
            )
            for number, (name, answer, tone, why) in enumerate(items, start=1)
        ),
        words=("answer", "by what"),
        about="'Yes' refers to what this study's records contain. Whether the paper reports it "
        "too, and what no record can show, is for its authors.",
    )
    return PageSection(name="checklist", title="NeurIPS checklist", blocks=(table,))


def _unrecorded(name: str) -> Item:
    return name, FOR_AUTHORS, "", "Not covered by any record."


def _claims(report: Report) -> Item:
    outcomes = [verdict.outcome for verdict in report.verdicts]
    settled = sum(outcome in ("better", "equivalent", "worse") for outcome in outcomes)
    why = (
        f"{settled} of {len(outcomes)} comparisons are settled; claim no more than the answer says."
        if outcomes
        else "The study compares no two arms."
    )
    return "Claims", "partly" if settled else "no", "flat" if settled else "bad", why


def _limitations(report: Report) -> Item:
    num = len(report.page.limits)
    why = f"This page states {num} limits and what qualifies each answer; quote them."
    return "Limitations", "partly", "flat", why


def _reproducible(report: Report, evidence: StudyEvidence) -> Item:
    done = sum(behind.done for behind in evidence.runs)
    command = report.provenance.get("command", "").strip("`")
    why = (
        f"{done} of {len(evidence.runs)} runs have a record with the whole request, under a digest "
        f"of it and of the data's content. Command: {command}."
    )
    complete = done == len(evidence.runs)
    return "Reproducibility", "yes" if complete else "partly", "good" if complete else "flat", why


def _open(report: Report) -> Item:
    why = (
        "The study file and the command are on this page; whether code and data are public is "
        "not recorded."
    )
    return "Open access to data and code", "partly", "flat", why


def _settings(report: Report) -> Item:
    why = (
        "Recipe, splits, seeds and schedules are in the study file and in each record; see "
        "Settings and versions."
    )
    return "Settings of the experiments", "yes", "good", why


def _significance(report: Report, runs: Sequence[Run]) -> Item:
    seeds = {verdict.n for verdict in report.verdicts if verdict.n}
    if not seeds:
        return "Statistical significance", "no", "bad", "No comparison has a result."
    low, high = min(seeds), max(seeds)
    span = str(low) if low == high else f"{low} to {high}"
    if high == 1:
        return "Statistical significance", "no", "bad", "One seed: nothing can be tested."
    why = (
        f"{span} seeds a comparison, paired; tests, equivalence tests and intervals as described "
        "under Cell by cell, corrected over cells."
    )
    return "Statistical significance", "yes", "good", why


def _resources(report: Report, evidence: StudyEvidence) -> Item:
    why = (
        f"{evidence.cost.words} The report was written on "
        f"{report.provenance.get('machine', 'a machine that is not known')}. Trials that are not "
        "part of this study are not counted."
    )
    return "Compute resources", "partly", "flat", why
