"""A paper's tables in the paper's layout, each cell with the printed number and ours.

A table is a caption and a shape: the labels of sections, rows and columns. The order is that of the
printed cells. ``lay_out`` puts cells in place; ``terminal``, ``markdown`` and ``latex`` format
them. Cells that we have not run are marked.
"""

import itertools
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from regrow.errors import ConfigError
from regrow.report.latex import TEX_BETWEEN, TEX_NEEDS, tex, tex_row, tex_section, tex_table
from regrow.report.statistics import Sample
from regrow.report.words import PLUS_MINUS
from regrow.reproduce.paper import RESULT, UNPRUNED, Paper, Shape
from regrow.reproduce.printed import (
    FIGURES,
    Agreement,
    PrintedCell,
    as_cells,
    cells,
    compare,
    printed,
    records,
    sample,
)

BETWEEN_REASONS = "; "  # between reasons why a printed number is no reference; none contains it
COLUMNS = 100
NOT_RUN = "not run"
PREFIXES = {"part": "part ", "learning_rate": "learning rate ", "stage": "stage "}


@dataclass(frozen=True, kw_only=True)
class TableCell:
    """One printed cell under its labels, and ours if there is one.

    ``departs`` is the reason why the printed number is no reference for ours; empty if it is one.
    """

    labels: Mapping[str, Any]
    printed: PrintedCell
    measured: Sample | None
    shape: Shape
    departs: str = ""

    @property
    def agreement(self) -> Agreement | None:
        """The comparison of ours with the paper's; None if ours is missing or not comparable."""
        return compare(self.measured, self.printed) if self.measured and not self.departs else None

    @property
    def paper(self) -> str:
        """The paper's figures, as printed."""
        return self._figures(self.printed.mean, self.printed.std)

    @property
    def measured_text(self) -> str:
        """Our figures, or that there are none."""
        return self._figures(self.measured.mean, self.measured.std) if self.measured else NOT_RUN

    @property
    def difference(self) -> str:
        """Ours minus the paper's, and whether it lies within the two spreads."""
        if (agreement := self.agreement) is None:
            return ""
        text = f"{round(agreement.difference, self.digits) + 0.0:+.{self.digits}f}"
        word = {True: "within", False: "beyond", None: "no std"}[agreement.within]
        return f"{text} {word}" if self.shape.spread else text

    @property
    def digits(self) -> int:
        """Decimals as printed; unpruned widths are whole numbers."""
        return 0 if self.labels.get("quantity") == "width" else self.shape.digits

    def _figures(self, mean: float, std: float | None) -> str:
        sign = "+" if self.labels.get("metric") == "top1-drop" else ""
        text = f"{mean:{sign}.{self.digits}f}"
        bare = std is None or not self.shape.spread
        return text if bare else f"{text} {PLUS_MINUS} {std:.{self.digits}f}"


Row = tuple[str, tuple[TableCell | None, ...]]


@dataclass(frozen=True, kw_only=True)
class Section:
    """Rows under one heading; a row is its label and one cell (or None) for each column."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """A table with every cell in its place; ``num_unplaced`` rows of ours fit no printed cell."""

    table: int
    caption: str
    sections: tuple[Section, ...]
    num_unplaced: int

    @property
    def cells(self) -> list[TableCell]:
        """All cells, row by row."""
        rows = (row for section in self.sections for _, row in section.rows)
        return [cell for row in rows for cell in row if cell]

    @property
    def num_run(self) -> int:
        """Count the cells that we have run."""
        return sum(cell.measured is not None for cell in self.cells)

    @property
    def caution(self) -> str:
        """The reasons why cells are not compared with the printed ones; empty if all are."""
        departed = [cell.departs for cell in self.cells if cell.departs]
        reasons = dict.fromkeys(
            reason for departure in departed for reason in departure.split(BETWEEN_REASONS)
        )
        if not reasons:
            return ""
        num = len(departed)
        of = "" if num == self.num_run else f" for {num} of the {self.num_run} cells that were run"
        return (
            f"The printed numbers do not apply, so no difference to them is shown{of}: "
            f"{BETWEEN_REASONS.join(reasons)}."
        )

    @property
    def note(self) -> str:
        """The number of cells that have been run, and a key to the words beside differences."""
        agreements = [cell.agreement for cell in self.cells if cell.agreement]
        counts = [
            sum(agreement.within is word for agreement in agreements) for word in (True, False)
        ]
        text = f"{self.num_run} of {len(self.cells)} cells have been run."
        if any(counts):
            text += (
                f" {counts[0]} lie within the two spreads (at most both standard deviations "
                f"together), {counts[1]} beyond."
            )
        if bare := len(agreements) - sum(counts):
            text += f" For {bare} the paper prints no standard deviation: no test."
        if self.num_unplaced:
            text += f" Measured rows without a cell in this table: {self.num_unplaced}."
        return text


def lay_out(paper: Paper, table: int, measured: pd.DataFrame | None = None) -> Sheet:
    """Put the printed cells of a table in place, with ours beside them.

    ``measured`` has the label columns of the table (``Paper.labels``) with mean, std and n, and may
    have ``departs``: why the printed number is no reference for a row. Rows of other tables are
    ignored, rows with n = 0 count as not run. Two rows for one cell are a ``ConfigError``.
    """
    frame = cells(paper, table)
    entry = paper.table(table)
    caption, shape = entry.about, entry.layout
    by_key = _measured_rows(paper, table, measured)
    grid: dict[str, dict[str, dict[str, TableCell]]] = {}
    for row in records(frame):
        place = _home(row, frame, shape) if row.get("arm") == UNPRUNED else row
        title = _label(row, shape.sections, between=", ")
        column = "/".join(row[name] for name in shape.columns) or UNPRUNED
        slots = grid.setdefault(title, {}).setdefault(_label(place, shape.rows, between="/"), {})
        assert column not in slots, f"two printed cells in one place: {row}"
        measured_row = by_key.pop(_key(row, paper.labels(table)), None)
        slots[column] = TableCell(
            labels=row,
            printed=printed(row),
            measured=sample(measured_row) if measured_row else None,
            shape=shape,
            departs=str(measured_row.get("departs") or "") if measured_row else "",
        )
    sections = tuple(_section(title, rows) for title, rows in grid.items())
    return Sheet(table=table, caption=caption, sections=sections, num_unplaced=len(by_key))


def terminal(sheet: Sheet) -> str:
    """Return a table as text of 100 columns, with ours below each row of the paper's."""
    lines = textwrap.wrap(f"Table {sheet.table}. {sheet.caption}", COLUMNS)
    lines += ["", *textwrap.wrap(sheet.caution, COLUMNS)] if sheet.caution else []
    columns: tuple[str, ...] = ()
    label = max(len(name) for section in sheet.sections for name, _ in section.rows)
    widths = _widths(sheet)
    for section in sheet.sections:
        if section.columns != columns:
            columns = section.columns
            head = " " * (label + (11 if section.title else 9)) + "  ".join(
                map(str.rjust, columns, widths)
            )
            lines += ["", head.rstrip(), "-" * len(head)]
        lines += [section.title] if section.title else []
        indent = "  " if section.title else ""
        for name, row in section.rows:
            for i, (voice, texts) in enumerate(voices(row)):
                start = f"{indent}{'' if i else name:{label}}  {voice:5}  "
                lines.append((start + "  ".join(map(str.rjust, texts, widths))).rstrip())
    return "\n".join([*lines, "", *textwrap.wrap(sheet.note, COLUMNS)]) + "\n"


def markdown(sheet: Sheet) -> str:
    """Return a table as Markdown; sections with the same columns share one table."""
    lines = [f"### Table {sheet.table}. {sheet.caption}"]
    lines += ["", sheet.caution] if sheet.caution else []
    columns: tuple[str, ...] = ()
    for section in sheet.sections:
        if section.columns != columns:
            columns = section.columns
            lines += ["", f"| | | {' | '.join(columns)} |", "|---|---|" + "---:|" * len(columns)]
        for i, (name, row) in enumerate(section.rows):
            texts = [_markdown_cell(cell) if cell else "" for cell in row]
            lines.append(f"| {'' if i else section.title} | {name} | {' | '.join(texts)} |")
    return "\n".join([*lines, "", sheet.note, ""])


def latex(sheet: Sheet) -> str:
    """Return a table as LaTeX, with ours below each row of the paper's."""
    caption = tex(" ".join(filter(None, (f"{sheet.caption}.", sheet.caution))))
    lines = [TEX_NEEDS]
    for columns, sections in itertools.groupby(sheet.sections, key=lambda section: section.columns):
        body: list[str] = []
        for section in sections:
            body += [TEX_BETWEEN] if body else []
            for number, (name, row) in enumerate(section.rows):
                rows = [
                    tex_row(["" if i else name, voice, *texts])
                    for i, (voice, texts) in enumerate(voices(row))
                ]
                title = "" if number else section.title
                body += tex_section(title, rows, columns=len(columns) + 2)
        first = caption if len(lines) == 1 else None
        label = f"table {sheet.table}"
        lines += tex_table(["", "", *columns], body, words_first=2, caption=first, label=label)
    return "\n".join([*lines, ""])


def voices(row: Sequence[TableCell | None]) -> Iterator[tuple[str, list[str]]]:
    """Yield a row's lines: the paper's, ours, and where ours exist the differences and seeds."""
    yield "paper", [cell.paper if cell else "" for cell in row]
    yield "ours", [cell.measured_text if cell else "" for cell in row]
    if any(cell and cell.measured for cell in row):
        if any(cell and cell.difference for cell in row):
            yield "diff", [cell.difference if cell else "" for cell in row]
        yield "n", [str(cell.measured.n) if cell and cell.measured else "" for cell in row]


def _widths(sheet: Sheet) -> list[int]:
    """Return the width of each column over all sections, so that columns align."""
    widths: dict[int, int] = {}
    for section in sheet.sections:
        rows = [texts for _, row in section.rows for _, texts in voices(row)]
        for texts in [list(section.columns), *rows]:
            for i, text in enumerate(texts):
                widths[i] = max(widths.get(i, 0), len(text))
    return [widths[i] for i in sorted(widths)]


def _markdown_cell(cell: TableCell) -> str:
    if cell.measured is None:
        return f"{cell.paper}<br>{NOT_RUN}"
    lines = (cell.paper, f"ours {cell.measured_text} (n = {cell.measured.n})", cell.difference)
    return "<br>".join(filter(None, lines))


def _section(title: str, rows: Mapping[str, Mapping[str, TableCell]]) -> Section:
    columns = tuple(dict.fromkeys(column for slots in rows.values() for column in slots))
    cells = tuple((name, tuple(map(slots.get, columns))) for name, slots in rows.items())
    return Section(title=title, columns=columns, rows=cells)


def _home(row: Mapping[str, Any], frame: pd.DataFrame, shape: Shape) -> Mapping[str, Any]:
    """Find the row that shows an unpruned cell: the first of its section and reference."""
    alike = frame["arm"] != UNPRUNED
    for name in (*shape.sections, "reference"):
        alike &= frame[name] == row[name]
    return records(frame[alike])[0]


def _label(row: Mapping[str, Any], fields: Sequence[str], *, between: str) -> str:
    return between.join(f"{PREFIXES.get(name, '')}{row[name]}" for name in fields)


def _measured_rows(
    paper: Paper, table: int, measured: pd.DataFrame | None
) -> dict[tuple[str, ...], dict[str, Any]]:
    """Return our rows of a table by the labels of their cells."""
    if measured is None or measured.empty:
        return {}
    frame = (
        as_cells(paper, measured)
        if paper.labels(table) == RESULT
        else _with_results(paper, measured, table)
    )
    by_key: dict[tuple[str, ...], dict[str, Any]] = {}
    for row in records(frame[frame["table"] == table]):
        key = _key(row, paper.labels(table))
        if key in by_key:
            cell = ", ".join(filter(None, key))
            raise ConfigError(
                f"Two measured rows are for one cell of the paper ({cell}). Give one row per cell, "
                "with the mean over its seeds."
            )
        by_key[key] = row
    return by_key


def _with_results(paper: Paper, measured: pd.DataFrame, table: int) -> pd.DataFrame:
    needed = (*paper.labels(table), *FIGURES)
    missing = [name for name in needed if name not in measured.columns]
    if missing:
        raise ConfigError(
            f"Rows beside Table {table} need the columns {', '.join(needed)}. "
            f"Missing: {', '.join(missing)}."
        )
    return measured[measured["n"] > 0]


def _key(row: Mapping[str, Any], names: Sequence[str]) -> tuple[str, ...]:
    return tuple(str(row[name]) for name in names)
