"""Published numbers for the unpruned networks of a table, from other papers and repositories.

Those of repositories are in ``papers/elsewhere.csv``: data set and network as the tables name them,
the number, its source with the commit, and how it was obtained. They are not used in verdicts; they
show how far a parent is from what its network reaches elsewhere.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import pandas as pd

from regrow.report.rows import frame_to_csv
from regrow.report.words import PLUS_MINUS
from regrow.reproduce.layout import NOT_RUN, Sheet, TableCell
from regrow.reproduce.paper import UNPRUNED, Paper, papers
from regrow.reproduce.printed import PrintedCell, printed, records, results

TITLE = "The same unpruned networks elsewhere: accuracy in %"
COLUMNS = ("network", "the paper", "ours", "elsewhere", "source")


@dataclass(frozen=True, kw_only=True)
class Elsewhere:
    """Another source's number for an unpruned network of a table."""

    cell: TableCell
    number: PrintedCell
    source: str
    how: str = ""

    @property
    def texts(self) -> tuple[str, ...]:
        """A row under ``COLUMNS``."""
        labels, ours = self.cell.labels, self.cell.measured_text
        std = self.number.std
        spread = "" if std is None else f" {PLUS_MINUS} {std:.2f}"
        source = self.source + (f"; {self.how}" if self.how else "")
        return (
            f"{labels['dataset']}, {labels['model']}",
            self.cell.paper,
            ours if ours == NOT_RUN or self.cell.measured is None else _counted(self.cell),
            f"{self.number.mean:.2f}{spread}",
            source,
        )


def elsewhere(paper: Paper, sheet: Sheet) -> tuple[Elsewhere, ...]:
    """Return other sources' numbers for the unpruned networks of a table, repositories first."""
    found = []
    seen = set[tuple[str, str]]()
    for cell in sheet.cells:
        if cell.labels.get("arm") != UNPRUNED or cell.labels.get("metric") != "top1":
            continue
        network = cell.labels["dataset"], cell.labels["model"]
        if network in seen:
            continue
        seen.add(network)
        found += [
            Elsewhere(cell=cell, number=printed(row), source=row["source"], how=row["how"])
            for row in _of_repositories()
            if (row["dataset"], row["model"]) == network
        ]
        found += [
            Elsewhere(cell=cell, number=number, source=source)
            for number, source in _of_papers(paper, network)
        ]
    return tuple(found)


def plain(rows: tuple[Elsewhere, ...]) -> str:
    """Return them as text: a line each, with its source below."""
    lines = [TITLE]
    for row in rows:
        network, by_paper, ours, number, source = row.texts
        lines += [f"  {network}: {number} (the paper {by_paper}, ours {ours})", f"    {source}"]
    return "\n".join(lines) + "\n"


def markdown(rows: tuple[Elsewhere, ...]) -> str:
    """Return them as a Markdown table."""
    lines = [f"### {TITLE}", "", f"| {' | '.join(COLUMNS)} |", "|---|---:|---:|---:|---|"]
    return "\n".join([*lines, *(f"| {' | '.join(row.texts)} |" for row in rows), ""])


def as_csv(rows: tuple[Elsewhere, ...]) -> str:
    """Return them as CSV."""
    columns = ("dataset", "model", "mean", "std", "source", "how")
    values = [
        (
            row.cell.labels["dataset"],
            row.cell.labels["model"],
            row.number.mean,
            row.number.std,
            row.source,
            row.how,
        )
        for row in rows
    ]
    return frame_to_csv(pd.DataFrame(values, columns=columns))


def _counted(cell: TableCell) -> str:
    assert cell.measured is not None
    return f"{cell.measured_text} (n = {cell.measured.n})"


def _of_papers(paper: Paper, network: tuple[str, str]) -> Iterator[tuple[PrintedCell, str]]:
    """Yield the distinct numbers that other papers print for an unpruned network."""
    for other in papers().values():
        if other.name == paper.name:
            continue
        seen = set[tuple[float, float | None]]()
        for row in records(results(other)):
            wanted = (row["dataset"], row["model"]) == network and row["arm"] == UNPRUNED
            if not wanted or row["metric"] != "top1":
                continue
            number = printed(row)
            if (number.mean, number.std) not in seen:
                seen.add((number.mean, number.std))
                yield number, f"{other.reference}, Table {row['table']}"


@cache
def _of_repositories() -> list[Mapping[str, Any]]:
    path = files("regrow") / "papers" / "elsewhere.csv"
    with path.open(encoding="utf-8") as opened:
        frame = pd.read_csv(opened, keep_default_na=False, na_values={"std": [""]})
    return [*records(frame.assign(n=1))]
