"""The sections of a study's page: verdicts, results, their costs, and their records."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from os.path import relpath
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from regrow.core.durations import in_words
from regrow.report import words
from regrow.report.answer import sentence
from regrow.report.html.chart import Strip
from regrow.report.html.document import Block, PageCell, PageSection, PageTable, Texts, Tone
from regrow.report.html.evidence import RunEvidence, StudyEvidence
from regrow.report.ledger import joules, ledger_frame
from regrow.report.questions import Question
from regrow.report.render import Page
from regrow.report.rows import Run
from regrow.report.verdict import Outcome, Verdict, families

TONES: Mapping[Outcome, Tone] = {
    "better": "good",
    "equivalent": "flat",
    "worse": "bad",
    "undecided": "open",
    "no conclusion": "open",
    "not run": "open",
}
Place = tuple[str, str]  # a cell's group, and an arm


@dataclass(frozen=True, kw_only=True)
class RowLinks:
    """The runs of each row of the tables with their evidence, and the link targets of rows."""

    runs: Mapping[Place, Sequence[tuple[Run, RunEvidence]]]
    anchors: Mapping[Place, str]
    names: Mapping[str, str]

    @classmethod
    def of(cls, runs: Sequence[Run], evidence: StudyEvidence) -> "RowLinks":
        """Gather runs by row, in order of appearance."""
        rows: dict[Place, list[tuple[Run, RunEvidence]]] = {}
        for run, behind in zip(runs, evidence.runs, strict=True):
            rows.setdefault((run.group, run.arm), []).append((run, behind))
        firsts = [listed[0][0] for listed in rows.values()]
        several = len({run.panel for run in firsts}) > 1
        names = {
            run.group: " / ".join((*(run.panel if several else ()), run.cut or "not pruned"))
            for run in firsts
        }
        anchors = {place: f"r{i}" for i, place in enumerate(rows)}
        return cls(runs=rows, anchors=anchors, names=names)

    def name(self, group: str) -> str:
        """Return a cell's name, with data and network if there are several; empty if unknown."""
        return self.names.get(group, "")

    def href(self, group: str, arm: str) -> str:
        """Return the link to the records of a row; empty if there is none."""
        anchor = self.anchors.get((group, arm))
        return f"#{anchor}" if anchor else ""


def verdict_sections(page: Page, rows: RowLinks, tests: str) -> Iterator[PageSection]:
    """Show every comparison with its interval, a table for each question."""
    if not page.verdicts:
        return
    questions: dict[Question, list[Verdict]] = {}
    for family in families(page.verdicts):  # several budgets share one table
        questions.setdefault(replace(family[0].question, at="", main=True), []).extend(family)
    blocks: list[Block] = [
        _verdict_table(question.text, family, rows) for question, family in questions.items()
    ]
    sentences = tuple(map(sentence, page.verdicts))
    yield PageSection(
        name="verdicts",
        title="Cell by cell",
        lead="Each comparison with its interval. The grey band is the margin within which two arms "
        "count as equivalent; the dashed line is no difference.",
        blocks=(
            *blocks,
            Texts(title="Each comparison in words", items=sentences, listed=True, folded=True),
            Texts(title="How verdicts are computed", items=(tests,), folded=True),
        ),
    )


def _verdict_table(title: str, family: Sequence[Verdict], rows: RowLinks) -> PageTable:
    bounds = [
        abs(bound)
        for verdict in family
        if (test := verdict.comparison) is not None
        for bound in (test.low, test.high, test.difference)
        if bound is not None
    ]
    margin = family[0].margin
    # Most bounds, not all: the widest intervals, of few seeds, would squeeze the others.
    middle = sorted(bounds)[int(0.9 * (len(bounds) - 1))] if bounds else margin
    most = max((abs(v.comparison.difference) for v in family if v.comparison), default=0.0)
    reach = max(1.5 * margin, 1.05 * middle, 1.05 * most)
    unit = family[0].metric.difference_unit
    scale = f"{-reach:.2g} to {reach:+.2g} {unit}"
    return PageTable(
        title=title,
        columns=(
            *("cell", "outcome", "difference", scale),
            *("p (difference)", "p (equivalence)", "seeds", "arm", "against"),
        ),
        rows=tuple(_verdict_row(verdict, rows, reach) for verdict in family),
        words=("arm", "against", "outcome", scale),
    )


def _verdict_row(verdict: Verdict, rows: RowLinks, reach: float) -> tuple[PageCell, ...]:
    test, metric = verdict.comparison, verdict.metric
    strip, difference = None, ""
    if test is not None:
        difference = words.signed(test.difference, digits=metric.digits)
        interval = ""
        if test.low is not None and test.high is not None:
            low, high = (words.signed(b, digits=metric.digits) for b in (test.low, test.high))
            interval = f", {100 * (1 - verdict.alpha):.0f}% interval {low} to {high}"
        strip = Strip(
            value=test.difference,
            low=test.low,
            high=test.high,
            margin=verdict.margin,
            reach=reach,
            text=f"{difference}{interval}",
        )
    value = None if test is None else test.difference
    return (
        PageCell(text=rows.name(verdict.group) or verdict.where),
        PageCell(text=verdict.outcome, tone=TONES[verdict.outcome]),
        PageCell(text=difference, value=value, href=rows.href(verdict.group, verdict.arm)),
        PageCell(text="", strip=strip, value=value),
        _p_cell(verdict.p),
        _p_cell(verdict.p_equivalence),
        PageCell(text=words.seeds(verdict.n, verdict.n_expected)),
        PageCell(text=verdict.arm, href=rows.href(verdict.group, verdict.arm)),
        PageCell(text=verdict.against, href=rows.href(verdict.group, verdict.against)),
    )


def _p_cell(p: float | None) -> PageCell:
    text = "" if p is None else words.p_value(p).removeprefix("p = ").removeprefix("p ")
    return PageCell(text=text, value=p)


def result_section(page: Page, frame: pd.DataFrame, rows: RowLinks, method: str) -> PageSection:
    """Show the tables of the report, each number with a link to its records."""
    groups = {
        (data, model): [*part["group"]]
        for (data, model), part in frame.groupby(["data", "model"], sort=False)
    }
    blocks: list[Block] = []
    for block, row_groups in zip(page.tables, groups.values(), strict=True):
        listed = [(cut, row) for cut, section in block.sections for row in section]
        wordy, sized = ("arm", block.columns[-1]), block.columns.index("parameters")
        blocks.append(
            PageTable(
                title=block.title,
                columns=("pruned by", *block.columns),
                rows=tuple(
                    (
                        PageCell(text=cut or "not pruned"),
                        *_linked(
                            row,
                            block.columns,
                            wordy,
                            rows.href(group, row[0]) if row[sized] else "",
                        ),
                    )
                    for (cut, row), group in zip(listed, row_groups, strict=True)
                ),
                named=2,
                words=wordy,
            )
        )
    for extra in page.extras:
        blocks.append(
            PageTable.of(extra.title, extra.columns, extra.rows, extra.about, named=extra.names)
        )
    about = (method,) if page.tables else ("Not run: the study has no rows.",)
    return PageSection(name="results", title="Results", blocks=(*blocks, Texts(items=about)))


def _linked(
    row: Sequence[str], columns: Sequence[str], wordy: Sequence[str], href: str
) -> Iterator[PageCell]:
    for text, column in zip(row, columns, strict=True):
        yield PageCell(text=text, href="" if column in wordy or not text else href)


def ledger_section(rows: RowLinks, evidence: StudyEvidence) -> PageSection:
    """Show the cost of each row: of its own training, and of all that it depends on."""
    pairs = [(run, behind.cost) for listed in rows.runs.values() for run, behind in listed]
    frame = ledger_frame([run for run, _ in pairs], [cost for _, cost in pairs])
    measured = bool(evidence.cost.num_measured)
    columns = (
        *("pruned by", "arm", "epochs", "own FLOPs", "FLOPs with dependencies", "examples shown"),
        *("own time", "time with dependencies"),
        *(("own energy", "energy with dependencies") if measured else ()),
        *("jobs", "fairness"),
    )
    table = PageTable(
        title="What each row cost, on average over its seeds",
        columns=columns,
        rows=tuple(_ledger_row(row, rows, measured) for row in frame.to_dict("records")),
        named=2,
        words=("arm", "fairness"),
        about="A multiply-add counts as 2 FLOPs and a training step as three forward passes. "
        "Times are those of the machines and the load where each job ran, so they compare only "
        "where these were alike. 'Dependencies' are the unpruned network's training, prunings and "
        "rounds; rows share them. The same in ledger.csv.",
    )
    return PageSection(name="ledger", title="Ledger", lead=evidence.cost.words, blocks=(table,))


def _ledger_row(row: Mapping[Any, Any], rows: RowLinks, measured: bool) -> tuple[PageCell, ...]:
    href = rows.href(row["group"], row["arm"])

    def cell(name: str, write: Callable[[float], str]) -> PageCell:
        value = row[name]
        if pd.isna(value):
            return PageCell(text="")
        return PageCell(text=write(value), value=float(value), href=href)

    counts = ("own_training_flops", "training_flops", "samples")
    tuned = f", a trial of {row['trial_of']}" if row["trial_of"] else ""
    return (
        PageCell(text=rows.name(row["group"])),
        PageCell(text=row["arm"]),
        PageCell(text=words.quantity(row["epochs"])),
        *(cell(name, words.quantity) for name in counts),
        *(cell(name, in_words) for name in ("own_seconds", "seconds")),
        *(cell(name, joules) for name in ("own_joules", "joules") if measured),
        PageCell(text=str(row["jobs"])),
        PageCell(text=f"{row['fairness']}{tuned}"),
    )


def record_section(rows: RowLinks, folder: Path) -> PageSection:
    """List the record of every run, with a link to its file."""
    listed, anchors = [], []
    for (group, arm), runs in rows.runs.items():
        anchors.append(rows.anchors[group, arm])
        links = tuple(
            (
                f"{run.seed}: {run.score:.{run.metric.digits}f}",
                address(behind.file, folder),
            )
            for run, behind in runs
            if run.done and run.score is not None
        )
        missing = [str(run.seed) for run, _ in runs if not run.done]
        statuses = ", ".join(dict.fromkeys(run.status for run, _ in runs))
        keys = [behind.key[:12] for run, behind in runs if run.done]
        listed.append(
            (
                PageCell(text=rows.name(group)),
                PageCell(text=arm),
                PageCell(text="" if links else "none", links=links),
                PageCell(text=f"{statuses}{': seeds ' + ', '.join(missing) if missing else ''}"),
                PageCell(text=" ".join(keys)),
            )
        )
    columns = ("pruned by", "arm", "seed: score (its record)", "status", "keys begin with")
    table = PageTable(
        title="Records behind the numbers",
        columns=columns,
        rows=tuple(listed),
        anchors=tuple(anchors),
        named=2,
        words=columns[2:],
        about="A record is a JSON file with the whole request, the history of the training and "
        "the keys of the jobs it depends on. The links lead into the store from where this page "
        "was written.",
    )
    return PageSection(name="records", title="Records", blocks=(table,))


def address(file: Path, folder: Path) -> str:
    """Return the link from a page's folder to a file; absolute if none is relative."""
    try:
        return quote(Path(relpath(file, folder)).as_posix())
    except ValueError:  # on another drive
        return file.absolute().as_uri()
