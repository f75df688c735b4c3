"""Write a reproduction's tables, figures and pages into its folder.

``report.md``: the table in the paper's layout, with ours in each cell, or the figure with its
numbers, and notes on both; ``table.tex``: the table for LaTeX. ``cells.csv`` (accuracies),
``widths.csv`` or ``sparsity.csv``: our means under the paper's labels, for ``regrow claims``.
``elsewhere.csv``: other sources' numbers for the unpruned networks.
``figure-N.png``, ``.svg`` and ``.csv``: a figure, and the numbers that it plots. ``details/NAME``:
the ordinary report of each study that trains.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from regrow.core.disk import why, write_whole
from regrow.core.texts import code_span, listed
from regrow.errors import ConfigError
from regrow.jobs.base import notices
from regrow.report import Report
from regrow.report import write as write_report
from regrow.report.rows import frame_to_csv
from regrow.reproduce import elsewhere, figure_data, layout
from regrow.reproduce.elsewhere import Elsewhere
from regrow.reproduce.figure_data import FigureData
from regrow.reproduce.figures import draw
from regrow.reproduce.layout import Sheet
from regrow.reproduce.plan import Plan
from regrow.reproduce.read_results import FILES
from regrow.reproduce.results import StudyResults, cells_file, rows, sheet


@dataclass(frozen=True, kw_only=True)
class Published:
    """A table or figure that was written: our numbers, their layout, and whether all are there."""

    plan: Plan
    cells: pd.DataFrame
    sheet: Sheet | None
    figure: FigureData | None
    notes: tuple[str, ...]
    num_failed: int
    complete: bool
    folder: Path

    @property
    def text(self) -> str:
        """The numbers for the terminal, with their notes."""
        parts = [figure_data.plain(self.figure)] if self.figure else []
        parts += [layout.terminal(self.sheet)] if self.sheet else []
        parts += [elsewhere.plain(self.elsewhere)] if self.elsewhere else []
        notes = "".join(f"- {note}\n" for note in self.notes)
        return "\n".join([*parts, f"Notes\n{notes}"])

    @property
    def elsewhere(self) -> tuple[Elsewhere, ...]:
        """Other sources' numbers for the unpruned networks of a table."""
        return elsewhere.elsewhere(self.plan.entry.paper, self.sheet) if self.sheet else ()

    @property
    def caption(self) -> str:
        """The caption of the figure or table, one line."""
        if self.figure:
            return self.figure.caption
        assert self.sheet is not None, "an entry is a figure or a table"
        return self.sheet.caption

    @property
    def summary(self) -> str:
        """The number of cells or rows with results, one line."""
        if self.sheet:
            agreements = [cell.agreement for cell in self.sheet.cells if cell.agreement]
            within = sum(agreement.within is True for agreement in agreements)
            beyond = sum(agreement.within is False for agreement in agreements)
            line = f"{self.sheet.num_run} of {len(self.sheet.cells)} cells"
            line += f", {within} within, {beyond} beyond" if within + beyond else ""
        else:
            line = self.figure.summary if self.figure else ""
        return line + (f", {self.num_failed} failures" if self.num_failed else "")

    def markdown(self, *, folder: str = "", table: bool = True) -> str:
        """Return it as Markdown: the figure, which is in ``folder``, and if wanted the table."""
        lines = []
        if self.figure:
            lines += [f"### {figure_data.title(self.figure)}", ""]
            lines += [f"![{self.caption}]({folder}{self.figure.name}.png)", ""]
            lines += [figure_data.markdown(self.figure)]
        if self.sheet and table:
            lines += [layout.markdown(self.sheet)]
            lines += [elsewhere.markdown(self.elsewhere)] if self.elsewhere else []
        return "\n".join(lines)


def publish(
    plan: Plan,
    results: Sequence[StudyResults],
    folder: Path,
    *,
    provenance: Mapping[str, str],
) -> Published:
    """Write a table's or figure's folder; ``provenance`` has command, date and machine."""
    cells = rows(plan, results)
    published = Published(
        plan=plan,
        cells=cells,
        sheet=sheet(plan, cells),
        figure=figure_data.gather(plan, results),
        notes=_notes(plan, results),
        num_failed=sum(len(study.failures) for study in results),
        complete=all(study.complete for study in results),
        folder=folder,
    )
    lines = [f"# {plan.entry.name.replace('-', ' ').capitalize()}, reproduced", ""]
    lines += [published.markdown()]
    lines += ["## Notes on these numbers", "", *(f"- {note}" for note in published.notes)]
    lines += ["", *_details(plan, results, folder, provenance=provenance)]
    lines += [
        _made_by(provenance),
        "",
    ]
    _write(folder / "report.md", "\n".join(lines))
    if published.sheet:
        _write(folder / cells_file(plan), frame_to_csv(cells))
        _write(folder / "table.tex", layout.latex(published.sheet))
    if published.elsewhere:
        _write(folder / "elsewhere.csv", elsewhere.as_csv(published.elsewhere))
    if published.figure:
        _write(folder / f"{plan.entry.name}.csv", frame_to_csv(published.figure.frame))
        draw(published.figure, folder)
    return published


def write_details(
    plan: Plan, results: Sequence[StudyResults], folder: Path, provenance: Mapping[str, str]
) -> Iterator[tuple[StudyResults, Report]]:
    """Write the ordinary report of each part that has trainings of its own."""
    for study in results:
        if study.runs:
            yield (
                study,
                write_report(
                    study.runs,
                    folder / "details" / study.part.name,
                    title=study.part.study.title,
                    command=provenance["command"],
                    machine=provenance["machine"],
                    date=provenance["date"],
                    margin=study.part.study.margin,
                    failures=study.failures,
                    notes=plan.notes,
                    extras=study.extras,
                ),
            )


def _made_by(provenance: Mapping[str, str]) -> str:
    command, date, machine = (provenance[name] for name in ("command", "date", "machine"))
    return f"Made by {code_span(command)} on {date} ({machine})."


def _details(
    plan: Plan, results: Sequence[StudyResults], folder: Path, *, provenance: Mapping[str, str]
) -> Iterator[str]:
    """Write the reports of the parts, and yield the lines that list them."""
    written = [study for study, _ in write_details(plan, results, folder, provenance)]
    if written:
        yield from ("## Details", "")
    for study in written:
        yield f"- [{study.part.study.title}](details/{study.part.name}/report.md)"
    yield from [""] * bool(written)


def publish_all(
    tables: Sequence[Published],
    problems: Mapping[str, str],
    folder: Path,
    *,
    provenance: Mapping[str, str],
) -> Path:
    """Write the page over all tables, with what could not be run and why; return its path."""
    lines = ["# The paper, reproduced", "", "| | | |", "|---|---|---|"]
    for table in tables:
        name = table.plan.entry.name
        lines.append(f"| [{name}]({name}/report.md) | {table.caption} | {table.summary} |")
    lines += [f"| {name} | not run | {reason} |" for name, reason in problems.items()]
    lines += [
        "",
        _made_by(provenance),
        "",
    ]
    for table in tables:  # a figure may repeat the cells of a table
        lines.append(table.markdown(folder=f"{table.plan.entry.name}/", table=table.figure is None))
    _write(folder / "report.md", "\n".join(lines))
    for file in FILES.values():
        frames = [table.cells for table in tables if table.sheet and cells_file(table.plan) == file]
        if frames := [frame for frame in frames if len(frame)]:
            _write(
                folder / file, frame_to_csv(pd.concat(frames, ignore_index=True).drop_duplicates())
            )
    return folder / "report.md"


def _notes(plan: Plan, results: Sequence[StudyResults]) -> tuple[str, ...]:
    skipped = [f"Not run, {name}: {reason}" for name, reason in plan.skipped.items()]
    failures = dict.fromkeys(failure for study in results for failure in study.failures)
    failed = [f"Failed, {failure.label}: {failure.message}" for failure in failures]
    short = [study.part.name for study in results if not study.complete]
    missing = [f"Some runs of {listed(short)} have no result."] if short else []
    return (*plan.notes, *notices(plan.jobs), *skipped, *missing, *failed)


def _write(path: Path, text: str) -> None:
    try:
        write_whole(path, text)
    except OSError as error:
        raise ConfigError(
            f"Cannot write '{path}': {why(error)}. Name a folder that you may write to with --out."
        ) from error
