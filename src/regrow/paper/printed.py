"""The paper's printed numbers, as package data, and how one of ours stands beside one of them.

Source: Liu et al., Rethinking the Value of Network Pruning, ICLR 2019, arXiv:1810.05270. Digits are
the printed ones (``printed/*.csv``): ``results.csv`` holds Tables 1-6 and 8-17, ``widths.csv``
Table 7, ``sparsity.csv`` Tables 18-21. CIFAR cells are over 5 seeds; ImageNet and VOC cells are
single runs without a standard deviation.

Every frame here is of cells: label columns, then ``mean``, ``std`` (divides by n - 1; empty where
none is printed) and ``n``. Frames of our own results have the same columns.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any, cast

import pandas as pd

from regrow.errors import ConfigError, unknown
from regrow.report.words import p_value, signed
from regrow.stats import ROUNDING, Sample, welch

SEEDS = 5  # "each point is averaged over 5 runs", on CIFAR only
FIGURES = ("mean", "std", "n")
UNPRUNED = "unpruned"
# What names a cell of a table, one tuple for each of the three files. The initial rate follows
# from table and part, the method from the table; both are columns, neither is needed as a name.
RESULT = ("table", "part", "dataset", "model", "target", "arm", "reference")
WIDTH = ("table", "layer", "quantity")
SPARSITY = ("table", "ratio", "stage", "kernel_row", "kernel_col")
TABLES = range(1, 22)
CHANGES = (2, 3)  # tables that print signed changes from an unpruned network
THEIRS, HERE = "original-paper", "this-implementation"  # the unpruned networks of those tables


@dataclass(frozen=True, kw_only=True)
class Printed:
    """One printed cell; ``std`` is None where the paper gives none."""

    mean: float
    std: float | None
    n: int

    @property
    def sample(row: Mapping[str, Any]) -> Sample:
    """Read mean, std and n from a row of any frame of cells."""
    return _printed(row).sample


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a frame as dictionaries."""
    return cast(list[dict[str, Any]], frame.to_dict("records"))


def _read(name: str) -> pd.DataFrame:
    """Read a file of package data; everything but the table's number stays text."""
    path = files("regrow.paper") / "printed" / f"{name}.csv"
    with path.open(encoding="utf-8") as file:
        frame = pd.read_csv(file, dtype=str, keep_default_na=False)
    return frame.assign(table=frame["table"].astype(int)) if "table" in frame else frame


def _printed(row: Mapping[str, Any]) -> Printed:
    mean, std, n = (float(row[name]) for name in FIGURES)
    return Printed(mean=mean, std=None if math.isnan(std) else std, n=int(n))


def _keys(frame: pd.DataFrame, columns: tuple[str, ...]) -> list[tuple[object, ...]]:
    return list(zip(*(frame[name] for name in columns), strict=True))


def _origin(row: Mapping[str, Any], repeat: Repeat) -> tuple[object, ...] | None:
    """Name the cell that a row would repeat; None where the repetition is not about this row."""
    if row["table"] != repeat.table:
        return None
    if any(row[name] not in allowed for name, allowed in repeat.where.items()):
        return None
    return tuple({**row, "table": repeat.of, **repeat.renamed}[name] for name in RESULT)


def _as_change(row: dict[str, Any], frame: pd.DataFrame) -> dict[str, Any]:
    if row["table"] not in CHANGES:
        return row
    tuned = row["arm"] == "fine-tuned"
    row = {**row, "reference": row["reference"] or (THEIRS if tuned else HERE)}
    if row["arm"] == UNPRUNED or row["metric"] != "top1":
        return row
    same = (frame["arm"] == UNPRUNED) & (frame["reference"] != THEIRS)
    for name in ("table", "dataset", "model"):
        same &= frame[name] == row[name]
    if not same.any():
        raise ConfigError(
            f"Table {row['table']} shows changes from the unpruned {row['model']}, of which there "
            f"is no result. Add its row (arm '{UNPRUNED}'), or give changes as 'top1-drop'."
        )
    change = float(row["mean"]) - float(frame.loc[same, "mean"].iloc[0])
    return {**row, "mean": change, "metric": "top1-drop"}
