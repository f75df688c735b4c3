"""Writes the report of a study, with its ledger and its HTML page, for commands and Python.

``how.json`` lists the report's files with their digests. The files that the earlier report in the
folder lists, and the new one does not have, are removed unless they have been changed.
"""

import gc
import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import date
from pathlib import Path

from regrow.core.digests import parsed, read_file
from regrow.core.disk import why
from regrow.core.machine import machine
from regrow.errors import ConfigError
from regrow.report import HOW_FILE, Report, write, writing
from regrow.report.collect import Results, results_of
from regrow.report.frames import epochs_of
from regrow.report.ledger import costs, ledger_csv, ledger_frame
from regrow.report.rows import frame_to_csv
from regrow.store import Store
from regrow.studies.study import Study

LEDGER_FILE, EPOCHS_FILE = "ledger.csv", "epochs.csv"
FILES = "files"  # of how.json: the digest of each file, by name
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
    epochs: bool = False,
    refresh: int | None = None,
) -> tuple[Report, Results]:
    """Write the report of a study from a store; return the report and the results behind it.

    ``html`` writes the HTML page too, which shows the texts of ``settings`` by title; ``epochs``
    writes a row for each epoch. ``refresh`` leaves out figures and distributions of weights, and
    has browsers reload the page after so many seconds.
    """
    earlier = _listed(folder)
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
    tables = {LEDGER_FILE: ledger_csv(ledger_frame(results.runs, each))}
    if epochs:
        tables[EPOCHS_FILE] = frame_to_csv(epochs_of(study, store))
    with writing(folder) as fresh:
        for name, text in tables.items():
            (fresh / name).write_text(text, encoding="utf-8", newline="\n")
    written = replace(written, paths=(*written.paths, *(folder / name for name in tables)))
    if html:
        page = _write_page(
            written, results, folder, settings or {}, checklist=checklist, refresh=refresh
        )
        written = replace(written, paths=(*written.paths, page))
    _replace(earlier, written, folder)
    return written, results


def _write_page(
    report: Report,
    results: Results,
    folder: Path,
    settings: Mapping[str, str],
    *,
    checklist: bool,
    refresh: int | None,
) -> Path:
    """Write the HTML page of a report, and return its path."""
    from regrow.report.html import document_of, gather, write_document

    groups = [run.group for run in results.runs]
    evidence = gather(results.cells, groups, results.reader, weights=refresh is None)
    document = document_of(
        report,
        results.runs,
        evidence,
        folder,
        settings=settings,
        with_checklist=checklist,
        refresh=refresh,
    )
    return write_document(document, folder)


def check_writable(folder: Path) -> None:
    """Refuse a report's folder that cannot be written, before any training."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(
            f"Cannot write the report to '{folder}': {why(error, folder)}. Name a folder that "
            "you may write to with 'out' (--out)."
        ) from error


def _listed(folder: Path) -> dict[str, str]:
    """Return the digests of a report's files by name, as it lists them; empty without a list."""
    try:
        files = parsed(read_file(folder / HOW_FILE)).get(FILES)
    except (OSError, ValueError):
        return {}
    named = files.items() if isinstance(files, dict) else ()
    return {name: str(digest) for name, digest in named if Path(name).name == name}


def _replace(earlier: Mapping[str, str], report: Report, folder: Path) -> None:
    """List a report's files, and remove those of an earlier one that it does not have.

    A file that was changed since then is kept, as it is the user's own.
    """
    names = [path.name for path in report.paths if path.name != HOW_FILE]
    with writing(folder) as fresh:
        files = {name: _digest(folder / name) for name in names}
        how = {**parsed(read_file(folder / HOW_FILE)), FILES: files}
        (fresh / HOW_FILE).write_text(json.dumps(how, indent=1) + "\n", encoding="utf-8")
        for name in earlier.keys() - files.keys():
            old = folder / name
            if old.is_file() and _digest(old) == earlier[name]:
                old.unlink()


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
