"""Printed numbers of a paper, and the comparison of a measured one with them.

Every frame here has a row per cell: label columns (``Paper.labels``), then ``mean``, ``std`` (with
n - 1; empty where none is printed) and ``n``, which is the paper's ``runs`` where it prints a
standard deviation and 1 elsewhere. Frames of our own results have the same columns. The digits in
``printed/*.csv`` are the printed ones: ``results.csv`` holds accuracies, ``widths.csv`` channels by
layer, ``sparsity.csv`` shares kept.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import pandas as pd

from regrow.errors import ConfigError, unknown
from regrow.report.statistics import ROUNDING, Sample, welch
from regrow.report.words import p_value, signed
from regrow.reproduce.paper import RESULT, SPARSITY, UNPRUNED, WIDTH, Paper, Repeat

FIGURES = ("mean", "std", "n")
NEEDED = ("table", "dataset", "model", "arm", *FIGURES)  # required columns of our own rows
OTHER = "other"  # arms that ``Entry.changes`` does not name
FILES = {RESULT: "results", WIDTH: "widths", SPARSITY: "sparsity"}


@dataclass(frozen=True, kw_only=True)
class PrintedCell:
    """One printed cell; ``std`` is None where the paper gives none."""

    mean: float
    std: float | None
    n: int

    @property
    def sample(self) -> Sample:
        """The cell as a ``Sample`` for the statistics."""
        return Sample(mean=self.mean, std=self.std, n=self.n)


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Ours minus the paper's for one cell.

    ``within``: whether the difference is at most the sum of the two standard deviations, so that
    the intervals mean +- std overlap; None if the paper prints no std. ``p`` is Welch's.
    """

    difference: float
    within: bool | None
    p: float | None
    words: str


def results(paper: Paper) -> pd.DataFrame:
    """Return the printed accuracies of all tables, in printed order."""
    frame = _read(paper, RESULT).copy()
    if "learning_rate" in frame:
        frame["learning_rate"] = pd.to_numeric(frame["learning_rate"])
    if "epochs" in frame:
        frame["epochs"] = pd.to_numeric(frame["epochs"]).astype("Int64")
    return frame


def widths(paper: Paper) -> pd.DataFrame:
    """Return channels by layer: ``quantity`` "width" (unpruned) and "pruned width"."""
    return _read(paper, WIDTH).copy()


def sparsity(paper: Paper) -> pd.DataFrame:
    """Return shares kept, of channels or weights."""
    return _read(paper, SPARSITY).copy()


def cells(paper: Paper, table: int) -> pd.DataFrame:
    """Return the cells of one table in printed order; an unknown table is a ``ConfigError``."""
    source = {RESULT: results, WIDTH: widths, SPARSITY: sparsity}[paper.labels(table)](paper)
    return source[source["table"] == table].reset_index(drop=True)


def lookup(
    paper: Paper,
    *,
    table: int,
    arm: str,
    dataset: str | None = None,
    model: str | None = None,
    target: str | None = None,
    part: str | None = None,
    method: str | None = None,
    learning_rate: float | None = None,
    reference: str | None = None,
) -> PrintedCell:
    """Return the one cell of ``results`` that has the given labels; omitted labels may be any.

    No such cell, or more than one, is a ``ConfigError`` that says which label to correct or add.

    >>> from regrow.reproduce.paper import find_paper
    >>> lookup(find_paper("liu2019"), table=1, model="VGG-16", target="VGG-16-A", arm="scratch-b")
    PrintedCell(mean=93.78, std=0.15, n=5)
    """
    frame = results(paper)
    labels = {"table": table, "arm": arm, "dataset": dataset, "model": model, "target": target}
    labels |= {"part": part, "method": method, "reference": reference}
    labels |= {"learning_rate": learning_rate}
    labels_given = {name: value for name, value in labels.items() if value is not None}
    for name, value in labels_given.items():
        rows = frame[frame[name] == value]
        if rows.empty:
            labels_there = {str(label) for label in frame[name].dropna() if label != ""}
            raise ConfigError(
                f"Among the cells asked for: {unknown(name, str(value), labels_there)}"
            )
        frame = rows
    if len(frame) > 1:
        open_ = [name for name in labels if name not in labels_given and frame[name].nunique() > 1]
        raise ConfigError(
            f"{len(frame)} printed cells have the labels {labels_given}. Also give "
            f"{' or '.join(open_)}."
        )
    return printed(records(frame)[0])


def once(paper: Paper, frame: pd.DataFrame) -> pd.DataFrame:
    """Drop the cells that repeat a cell of another table in the frame, so that pools count once."""
    keys = set(_keys(frame, RESULT))
    first_rows = []
    for row in records(frame):
        origins = (_origin(row, repeat) for repeat in paper.table(row["table"]).repeats)
        first_rows.append(not any(origin in keys for origin in origins if origin))
    return frame[first_rows].reset_index(drop=True)


def as_cells(paper: Paper, frame: pd.DataFrame) -> pd.DataFrame:
    """Convert rows of our own results to the form of the printed cells of accuracies.

    Required columns are table, dataset, model, arm, mean, std, n, and target for pruned networks; a
    missing one is a ``ConfigError``. Arms get the paper's names. Rows without a result (n = 0) are
    left out. In tables of changes, accuracies of pruned networks become signed changes from our own
    unpruned network (``metric`` top1-drop; std unchanged); ``accuracy`` keeps the original
    ``mean``.
    """
    missing = [name for name in NEEDED if name not in frame.columns]
    if missing:
        raise ConfigError(
            f"Rows beside the paper's need the columns {', '.join(NEEDED)}. Missing: "
            f"{', '.join(missing)}. Got: {', '.join(map(str, frame.columns))}."
        )
    blank = {"part": "", "method": "", "target": "", "metric": "top1", "reference": ""}
    for name, value in blank.items():
        column = frame[name] if name in frame.columns else pd.Series(value, index=frame.index)
        frame = frame.assign(**{name: column.fillna(value)})
    frame = frame.assign(**{name: pd.to_numeric(frame[name]) for name in FIGURES})
    frame = frame[(frame["n"] > 0) & frame["mean"].notna()].reset_index(drop=True)
    frame["arm"] = frame["arm"].replace(dict(paper.arms))
    frame["accuracy"] = frame["mean"]
    changed = [_as_change(paper, row, frame) for row in records(frame)]
    return pd.DataFrame(changed, columns=[*frame.columns])


def compare(measured: Sample, printed: PrintedCell) -> Agreement:
    """Compare one of our cells with the paper's, in numbers and in words.

    >>> compare(Sample(mean=93.5, std=0.2, n=3), PrintedCell(mean=93.62, std=0.11, n=5)).words
    '-0.12 points, within the two spreads (Welch p = 0.415; n = 3 and 5)'
    >>> compare(Sample(mean=70.5, std=None, n=1), PrintedCell(mean=71.18, std=None, n=1)).words
    '-0.68 points; the paper prints no spread for this cell, so nothing can be tested (n = 1 and 1)'
    """
    difference = measured.mean - printed.mean
    counts = f"n = {measured.n} and {printed.n}"
    if printed.std is None:
        reason = "the paper prints no spread for this cell, so nothing can be tested"
        words = f"{signed(difference)} points; {reason} ({counts})"
        return Agreement(difference=difference, within=None, p=None, words=words)
    within = abs(difference) <= printed.std + (measured.std or 0.0) + ROUNDING
    p = welch(measured, printed.sample).p
    spread = "the two spreads" if measured.std is not None else "the paper's spread"
    tested = "no test" if p is None else f"Welch {p_value(p)}"
    words = (
        f"{signed(difference)} points, {'within' if within else 'beyond'} {spread} "
        f"({tested}; {counts})"
    )
    return Agreement(difference=difference, within=within, p=p, words=words)


def printed(row: Mapping[str, Any]) -> PrintedCell:
    """Read mean, std and n from a row of any frame of cells."""
    mean, std, n = (float(row[name]) for name in FIGURES)
    return PrintedCell(mean=mean, std=None if math.isnan(std) else std, n=int(n))


def sample(row: Mapping[str, Any]) -> Sample:
    """Read mean, std and n from a row as a ``Sample`` for the statistics."""
    return printed(row).sample


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a frame as dictionaries."""
    return cast(list[dict[str, Any]], frame.to_dict("records"))


@cache
def _read(paper: Paper, labels: tuple[str, ...]) -> pd.DataFrame:
    """Read a file of printed cells; labels stay text, except the table's number."""
    path = paper.folder / "printed" / f"{FILES[labels]}.csv"
    if not path.is_file():
        return pd.DataFrame(columns=[*labels, *FIGURES])
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    if missing := [name for name in ("table", "mean", "std") if name not in frame]:
        frame = frame.assign(**dict.fromkeys(missing, ""))
    frame = frame.assign(**{name: "" for name in labels if name not in frame})
    for name in ("mean", "std"):
        frame[name] = pd.to_numeric(frame[name])
    frame["n"] = frame["std"].notna().map({True: paper.runs, False: 1})
    return frame.assign(table=frame["table"].astype(int))


def _keys(frame: pd.DataFrame, columns: tuple[str, ...]) -> list[tuple[object, ...]]:
    return list(zip(*(frame[name] for name in columns), strict=True))


def _origin(row: Mapping[str, Any], repeat: Repeat) -> tuple[object, ...] | None:
    """Return the labels of the cell that a row repeats; None if ``repeat`` excludes the row."""
    if any(row[name] not in allowed for name, allowed in repeat.where.items()):
        return None
    return tuple({**row, "table": repeat.of, **repeat.renamed}[name] for name in RESULT)


def _as_change(paper: Paper, row: dict[str, Any], frame: pd.DataFrame) -> dict[str, Any]:
    changes = paper.table(row["table"]).changes
    if not changes:
        return row
    reference = changes[OTHER]
    row = {**row, "reference": row["reference"] or changes.get(row["arm"], reference)}
    if row["arm"] == UNPRUNED or row["metric"] != "top1":
        return row
    references = {*changes.values()} - {reference}
    reference_rows = (frame["arm"] == UNPRUNED) & ~frame["reference"].isin(references)
    for name in ("table", "dataset", "model"):
        reference_rows &= frame[name] == row[name]
    if not reference_rows.any():
        raise ConfigError(
            f"Table {row['table']} shows changes from the unpruned {row['model']}, of which there "
            f"is no result. Add its row (arm '{UNPRUNED}'), or give changes as 'top1-drop'."
        )
    change = float(row["mean"]) - float(frame.loc[reference_rows, "mean"].iloc[0])
    return {**row, "mean": change, "metric": "top1-drop"}
