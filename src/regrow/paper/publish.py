"""What a reproduction leaves in its folder.

``report.md``: the table as the paper lays it out, ours in each cell, and the limits of it.
``cells.csv``: our means under the paper's labels, for ``regrow claims``. ``details/NAME``: the
ordinary report of each study.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from regrow.errors import ConfigError
from regrow.paper.layout import Sheet, markdown, terminal
from regrow.paper.reproduce import Found, Plan, rows, sheet
from regrow.report import write as write_report
from regrow.report.words import listed


@dataclass(frozen=True, kw_only=True)
class Published:
    """A table as it was written: ours, the sheet for the terminal, and whether it is complete."""

    plan: Plan
    ours: pd.DataFrame
    sheet: Sheet
    notes: tuple[str, ...]
    num_failed: int
    complete: bool
    folder: Path

    @property
    def text(self) -> str:
        """The table for the terminal, with its notes."""
        notes = "".join(f"- {note}\n" for note in self.notes)
        return f"{terminal(self.sheet)}\nNotes\n{notes}"

    @property
    def summary(self) -> str:
        """How much there is, in one line."""
        done = [cell.agreement for cell in self.sheet.cells if cell.agreement]
        within = sum(agreement.within is True for agreement in done)
        beyond = sum(agreement.within is False for agreement in done)
        line = f"{len(done)} of {len(self.sheet.cells)} cells, {within} within, {beyond} beyond"
        return line + (f", {self.num_failed} failures" if self.num_failed else "")


def publish(
    plan: Plan,
    found: Sequence[Found],
    folder: Path,
    *,
    made: Mapping[str, str],
) -> Published:
    """Write a table's folder. ``made`` says with which command, when and on what machine."""
    ours = rows(found)
    placed = sheet(plan, ours)
    notes = _notes(plan, found)
    lines = [f"# {plan.entry.name.replace('-', ' ').capitalize()}, reproduced", ""]
    lines += [markdown(placed)]
    lines += ["## What to know of these numbers", "", *(f"- {note}" for note in notes), ""]
    lines += ["## Details", ""]
    for one in found:
        name = one.part.name
        write_report(
            one.runs,
            folder / "details" / name,
            title=one.part.study.title,
            command=made["command"],
            machine=made["machine"],
            date=made["date"],
            margin=one.part.study.margin,
            failures=one.failures,
            notes=plan.notes,
        )
        lines.append(f"- [{one.part.study.title}](details/{name}/report.md)")
    lines += ["", f"Made by `{made['command']}` on {made['date']} ({made['machine']}).", ""]
    _write(folder / "report.md", "\n".join(lines))
    _write(folder / "cells.csv", ours.to_csv(index=False, lineterminator="\n"))
    return Published(
        plan=plan,
        ours=ours,
        sheet=placed,
        notes=notes,
        num_failed=sum(len(one.failures) for one in found),
        complete=all(one.complete for one in found),
        folder=folder,
    )


def publish_all(
    tables: Sequence[Published],
    problems: Mapping[str, str],
    folder: Path,
    *,
    made: Mapping[str, str],
) -> Path:
    """Write the page over all tables, with what could not be run and why; return its path."""
    lines = ["# The paper, reproduced", "", "| | | |", "|---|---|---|"]
    for one in tables:
        name = one.plan.entry.name
        lines.append(f"| [{name}]({name}/report.md) | {one.sheet.caption} | {one.summary} |")
    lines += [f"| {name} | not run | {why} |" for name, why in problems.items()]
    lines += ["", f"Made by `{made['command']}` on {made['date']} ({made['machine']}).", ""]
    shown: set[int] = set()
    for one in tables:
        if one.sheet.table not in shown:  # a figure repeats the cells of its table
            shown.add(one.sheet.table)
            lines.append(markdown(one.sheet))
    _write(folder / "report.md", "\n".join(lines))
    frames = [one.ours for one in tables if not one.ours.empty]
    if frames:
        pooled = pd.concat(frames, ignore_index=True).drop_duplicates()
        _write(folder / "cells.csv", pooled.to_csv(index=False, lineterminator="\n"))
    return folder / "report.md"


def _notes(plan: Plan, found: Sequence[Found]) -> tuple[str, ...]:
    skipped = [f"Not run, {name}: {why}" for name, why in plan.skipped.items()]
    failures = {failure.label: failure.message for one in found for failure in one.failures}
    failed = [f"Failed, {label}: {message}" for label, message in failures.items()]
    short = [one.part.name for one in found if not one.complete]
    missing = [f"Some runs of {listed(short)} have no result."] if short else []
    return (*plan.notes, *skipped, *missing, *failed)


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise ConfigError(
            f"Cannot write '{path}': {error.strerror or error}. Name a folder that you may write "
            "to with --out."
        ) from error
