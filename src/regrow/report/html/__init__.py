"""A report as one HTML page: the answer first, and below it the evidence.

``document_of`` makes a ``Document`` of a written report and its evidence (``gather``);
``write_document`` writes any ``Document``. The page is one self-contained file, readable without
scripts, in print, on a phone, by keyboard and by a screen reader.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path

from regrow.report import Report, writing
from regrow.report.answer import answers, cautions, no_answer
from regrow.report.budget_gains import at_largest, rows_of
from regrow.report.crossing import winner_changes, winner_line
from regrow.report.html.budgets import budget_headlines, budget_section
from regrow.report.html.checklist import checklist
from regrow.report.html.curves import (
    cost_section,
    layer_section,
    looks,
    training_section,
    weight_section,
)
from regrow.report.html.document import (
    Block,
    Document,
    Facts,
    FileText,
    Headline,
    PageSection,
    Texts,
    Tone,
)
from regrow.report.html.evidence import StudyEvidence, gather
from regrow.report.html.methods import method_cautions, method_headlines, method_section
from regrow.report.html.render import render
from regrow.report.html.sections import (
    RowLinks,
    ledger_section,
    record_section,
    result_section,
    verdict_sections,
)
from regrow.report.render import failure_lines, has_setups, method, tests
from regrow.report.rows import Run
from regrow.report.setups import ABOUT as SETUPS

__all__ = ["Document", "StudyEvidence", "document_of", "gather", "render", "write_document"]

PAGE = "report.html"


def write_document(document: Document, folder: Path) -> Path:
    """Write a page into a folder, completely or not at all."""
    text = render(document)
    with writing(folder) as fresh:
        (fresh / PAGE).write_text(text, encoding="utf-8", newline="\n")
    return folder / PAGE


def document_of(
    report: Report,
    runs: Sequence[Run],
    evidence: StudyEvidence,
    folder: Path,
    *,
    settings: Mapping[str, str],
    with_checklist: bool = False,
    refresh: int | None = None,
) -> Document:
    """Return the page of a report; links are relative to its folder.

    ``settings`` are the files that the study was read from, by title. ``refresh`` is the number of
    seconds after which a browser reloads the page, while a run goes on.
    """
    page, rows = report.page, RowLinks.of(runs, evidence)
    done = sum(run.done for run in runs)
    by_arm = looks(report.frame)
    sections = [
        *budget_section(page.curves, page.budgets, rows, by_arm),
        *method_section(page.contests, page.methods, rows),
        *cost_section(rows_of(report.frame, at_largest(runs)), page.metrics, rows),
        *verdict_sections(page, rows, tests(page) if page.verdicts else ""),
        result_section(page, report.frame, rows, method(page)),
        *training_section(report.frame, rows),
        *layer_section(evidence, rows),
        *weight_section(report.frame, evidence, rows),
        ledger_section(rows, evidence),
        record_section(rows, folder),
        *_setups(report),
        *([checklist(report, runs, evidence)] if with_checklist else []),
        *_trouble(report),
        _how(report, settings),
    ]
    return Document(
        title=page.title,
        kicker=f"regrow report, {report.provenance.get('date', date.today().isoformat())}: "
        f"{done} of {len(runs)} runs done",
        headlines=tuple(_headlines(report)),
        cautions=(*cautions(page.verdicts), *method_cautions(page.contests), *page.limits),
        sections=tuple(sections),
        seconds=refresh,
    )


def _headlines(report: Report) -> Iterator[Headline]:
    verdicts, contests = report.verdicts, report.contests
    for found in report.page.advised:
        yield Headline(question=found.question, short=found.short, text=found.text)
    asked = any(contest.reference is not None for contest in contests)
    if asked:
        yield from method_headlines(contests)
    yield from budget_headlines(report.page.curves)
    nothing = no_answer(verdicts)
    if nothing and not contests:
        question = "Would training from scratch have done as well?"
        yield Headline(question=question, short="No answer", text=nothing)
    for found in () if nothing else answers(verdicts):
        yield Headline(
            question=found.question,
            short=found.short,
            text=_sentence(found.text),
            tone=_tone(found.short),
        )
    for line in winner_line(verdicts):
        yield Headline(
            question="Does the winner depend on the retraining?",
            short="Yes" if winner_changes(verdicts) else "No",
            text=line,
            tone="open" if winner_changes(verdicts) else "flat",
        )
    if not asked:
        yield from method_headlines(contests)


def _sentence(text: str) -> str:
    """Capitalise the first letter, unless the text begins with the name of a cell."""
    return text if " / " in text.partition(": ")[0] else text[:1].upper() + text[1:]


def _tone(short: str) -> Tone:
    """Return the tone of an answer: yes, no, or open."""
    known: dict[str, Tone] = {"Yes": "good", "No": "bad", "On average yes": "good"}
    return known.get(short.partition(",")[0], "open")


def _trouble(report: Report) -> Iterator[PageSection]:
    failures = report.page.failures
    if failures:
        items = tuple(failure_lines(failures))
        yield PageSection(
            name="failures", title="Failures", blocks=(Texts(items=items, listed=True),)
        )


def _setups(report: Report) -> Iterator[PageSection]:
    if has_setups(report.page):
        yield PageSection(name="setups", title="Setups", blocks=(Texts(items=(SETUPS,)),))


def _how(report: Report, settings: Mapping[str, str]) -> PageSection:
    facts = {name: text.strip("`") for name, text in report.provenance.items()}
    files = [path.name for path in report.paths]
    facts |= {"files beside this page": ", ".join(files)} if files else {}
    blocks: list[Block] = [Facts(pairs=tuple(facts.items()))]
    blocks += [FileText(title=title, text=text) for title, text in settings.items()]
    return PageSection(name="how", title="Settings and versions", blocks=tuple(blocks))
