"""Writes the report of a study, with its ledger and its HTML page, for commands and Python."""

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import date
from pathlib import Path

from regrow.core.machine import machine
from regrow.report import Report, write, writing
from regrow.report.collect import Results, results_of
from regrow.report.ledger import costs, ledger_csv, ledger_frame
from regrow.store import Store
from regrow.studies.study import Study

LEDGER_FILE = "ledger.csv"
# New objects before a garbage collection; at Python's default of 700, collections took an eighth of
# the time of a report on 10,000 jobs.
OBJECTS = 20_000


@contextmanager
def _collecting_seldom() -> Iterator[None]:
    before = gc.get_threshold()
    gc.set_threshold(OBJECTS, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


@_collecting_seldom()
def write_study(
    study: Study,
    store: Store,
    folder: Path,
    *,
    command: str,
    precision: str | None = None,
    html: bool = False,
    settings: Mapping[str, str] | None = None,
    checklist: bool = False,
    refresh: int | None = None,
) -> tuple[Report, Results]:
    """Write the report of a study from a store; return the report and the results behind it.

    ``html`` writes the HTML page too, which shows the texts of ``settings`` by title. ``refresh``
    leaves out figures and distributions of weights, and has browsers reload the page after so many
    seconds.
    """
    results = results_of(study, store)
    each, together = costs(results.cells, results.reader)
    written = write(
        results.runs,
        folder,
        title=study.title,
        command=command,
        machine=machine(),
        date=date.today().isoformat(),
        margin=study.margin,
        reference=study.reference,
        failures=results.failures,
        extras=results.extras,
        notes=results.notes,
        precision=precision,
        cost=together.words,
        draw=refresh is None,
        advise=bool(study.own),
    )
    ledger = folder / LEDGER_FILE
    text = ledger_csv(ledger_frame(results.runs, each))
    with writing(folder) as fresh:
        (fresh / LEDGER_FILE).write_text(text, encoding="utf-8", newline="\n")
    written = replace(written, paths=(*written.paths, ledger))
    if html:
        from regrow.report.html import document_of, gather, write_document

        groups = [run.group for run in results.runs]
        evidence = gather(results.cells, groups, results.reader, weights=refresh is None)
        document = document_of(
            written,
            results.runs,
            evidence,
            folder,
            settings=settings or {},
            with_checklist=checklist,
            refresh=refresh,
        )
        page = write_document(document, folder)
        written = replace(written, paths=(*written.paths, page))
    return written, results
