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
from regrow.report.statistics import ROUNDING, Sample, welch
from regrow.report.words import p_value, signed

SEEDS = 5  # "each point is averaged over 5 runs", on CIFAR only
FIGURES = ("mean", "std", "n")
UNPRUNED = "unpruned"
# What names a cell of a table, one tuple for each of the three files. The initial rate follows
# from table and part, the method from the table; both are columns, neither is needed as a name.
RESULT = ("table", "part", "dataset", "model", "target", "arm", "reference")
WIDTH = ("table", "layer", "quantity")
SPARSITY = ("table", "ratio", "stage", "kernel_row", "kernel_col")
NEEDED = ("table", "dataset", "model", "arm", *FIGURES)  # of rows of our own
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
    def sample(self) -> Sample:
        """The cell as the statistics take it."""
        return Sample(mean=self.mean, std=self.std, n=self.n)


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Ours minus the paper's for one cell.

    ``within`` says whether the difference is at most the two standard deviations together, so that
    mean +- std of ours and of theirs touch; None where the paper prints no std. ``p`` is Welch's.
    """

    difference: float
    within: bool | None
    p: float | None
    words: str


@dataclass(frozen=True, kw_only=True)
class Repeat:
    """Cells of ``table`` that stand in table ``of`` too, under the same labels but ``renamed``."""

    table: int
    of: int
    where: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)


_UNPRUNED = {"arm": (UNPRUNED,)}
REPEATS = (
    Repeat(table=3, of=2, where={**_UNPRUNED, "model": ("VGG-16",)}),
    # Not its 'original-paper' number: that is 75.15 in Table 2 and 75.51 in Table 3.
    Repeat(table=3, of=2, where={**_UNPRUNED, "model": ("ResNet-50",), "reference": (HERE,)}),
    Repeat(table=8, of=1, where={**_UNPRUNED, "part": ("a",)}, renamed={"part": ""}),
    Repeat(table=11, of=10, where=_UNPRUNED),
    Repeat(table=13, of=4, where=_UNPRUNED),
    Repeat(table=14, of=1, where=_UNPRUNED),
    Repeat(table=15, of=6),
    Repeat(table=16, of=1, where={"arm": ("scratch-e",)}),
    # The other two rows differ from Table 1, by 0.01 in the mean or in the std: they stay.
    Repeat(
        table=16,
        of=1,
        where={"arm": ("fine-tune-40",), "target": ("ResNet-56-A", "ResNet-110-A", "ResNet-110-B")},
        renamed={"arm": "fine-tuned"},
    ),
)


def results() -> pd.DataFrame:
    """Return the 391 cells of Tables 1-6 and 8-17, in printed order, with their ``n``."""
    frame = _read("results")
    for name in ("mean", "std", "learning_rate"):
        frame[name] = pd.to_numeric(frame[name])
    frame["epochs"] = pd.to_numeric(frame["epochs"]).astype("Int64")
    frame["n"] = frame["std"].notna().map({True: SEEDS, False: 1})
    return frame


def widths() -> pd.DataFrame:
    """Return Table 7, two cells a layer: ``quantity`` "width" (unpruned) and "pruned width"."""
    wide = _read("widths")
    rows = [
        {"table": 7, "layer": row["layer"], "quantity": quantity, "mean": mean, "std": std, "n": n}
        for row in records(wide)
        for quantity, mean, std, n in (
            ("width", row["width"], "", 1),
            ("pruned width", row["pruned_width"], row["pruned_width_std"], SEEDS),
        )
    ]
    frame = pd.DataFrame(rows)
    return frame.assign(mean=pd.to_numeric(frame["mean"]), std=pd.to_numeric(frame["std"]))


def sparsity() -> pd.DataFrame:
    """Return the 213 shares kept of Tables 18-21; of channels (18, 21) or weights (19, 20)."""
    frame = _read("sparsity").rename(columns={"kept_ratio": "mean"})
    return frame.assign(mean=pd.to_numeric(frame["mean"]), std=math.nan, n=1)


def cells(table: int) -> pd.DataFrame:
    """Return the cells of one table in printed order; an unknown table is a ``ConfigError``."""
    if table not in TABLES:
        raise ConfigError(
            f"The paper's tables are numbered 1 to {TABLES[-1]}. Got {table!r}. Name one of these."
        )
    source = {RESULT: results, WIDTH: widths, SPARSITY: sparsity}[names(table)]()
    return source[source["table"] == table].reset_index(drop=True)


def names(table: int) -> tuple[str, ...]:
    """Return the columns that together name a cell of a table."""
    return WIDTH if table == 7 else SPARSITY if table >= 18 else RESULT


def lookup(
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
) -> Printed:
    """Return the one cell of ``results`` that has the labels given; labels left out may be any.

    No such cell, or more than one, is a ``ConfigError`` that says which label to mend or add.

    >>> lookup(table=1, model="VGG-16", target="VGG-16-A", arm="scratch-b")
    Printed(mean=93.78, std=0.15, n=5)
    """
    frame = results()
    labels = {"table": table, "arm": arm, "dataset": dataset, "model": model, "target": target}
    labels |= {"part": part, "method": method, "reference": reference}
    labels |= {"learning_rate": learning_rate}
    given = {name: value for name, value in labels.items() if value is not None}
    for name, value in given.items():
        found = frame[frame[name] == value]
        if found.empty:
            known = {str(other) for other in frame[name].dropna() if other != ""}
            raise ConfigError(f"Among the cells asked for: {unknown(name, str(value), known)}")
        frame = found
    if len(frame) > 1:
        open_ = [name for name in labels if name not in given and frame[name].nunique() > 1]
        raise ConfigError(
            f"{len(frame)} printed cells have the labels {given}. Give also {' or '.join(open_)}."
        )
    return printed(records(frame)[0])


def once(frame: pd.DataFrame) -> pd.DataFrame:
    """Drop the cells that repeat a cell of another table in the frame, so that pools count once."""
    known = set(_keys(frame, RESULT))
    kept = []
    for row in records(frame):
        origins = (_origin(row, repeat) for repeat in REPEATS)
        kept.append(not any(origin in known for origin in origins if origin))
    return frame[kept].reset_index(drop=True)


def as_cells(frame: pd.DataFrame) -> pd.DataFrame:
    """Fit rows of our own results to the cells of Tables 1-6 and 8-17.

    Needed are the columns table, dataset, model, arm, mean, std, n, and target for pruned networks;
    a missing one is a ``ConfigError``. The arm ``fine-tune`` becomes the tables' ``fine-tuned``.
    Rows without a result (n = 0) are left out. In Tables 2 and 3 accuracies of pruned networks
    become signed changes from our own unpruned network (``metric`` top1-drop; std left as it is);
    ``accuracy`` holds what ``mean`` was.
    """
    missing = [name for name in NEEDED if name not in frame.columns]
    if missing:
        raise ConfigError(
            f"Rows beside the paper's need the columns {', '.join(NEEDED)}. Missing: "
            f"{', '.join(missing)}. Got: {', '.join(map(str, frame.columns))}."
        )
    blank = {"part": "", "method": "", "target": "", "metric": "top1", "reference": ""}
    for name, value in blank.items():
        given = frame[name] if name in frame.columns else pd.Series(value, index=frame.index)
        frame = frame.assign(**{name: given.fillna(value)})
    frame = frame.assign(**{name: pd.to_numeric(frame[name]) for name in FIGURES})
    frame = frame[(frame["n"] > 0) & frame["mean"].notna()].reset_index(drop=True)
    frame["arm"] = frame["arm"].replace("fine-tune", "fine-tuned")
    frame["accuracy"] = frame["mean"]
    changed = [_as_change(row, frame) for row in records(frame)]
    return pd.DataFrame(changed, columns=[*frame.columns])


def compare(ours: Sample, printed: Printed) -> Agreement:
    """Set one of our cells beside the paper's, in figures and in words.

    >>> compare(Sample(mean=93.5, std=0.2, n=3), Printed(mean=93.62, std=0.11, n=5)).words
    '-0.12 points, within the two spreads (Welch p = 0.415; n = 3 and 5)'
    >>> compare(Sample(mean=70.5, std=None, n=1), Printed(mean=71.18, std=None, n=1)).words
    '-0.68 points; the paper prints no spread for this cell, so nothing can be tested (n = 1 and 1)'
    """
    difference = ours.mean - printed.mean
    counts = f"n = {ours.n} and {printed.n}"
    if printed.std is None:
        why = "the paper prints no spread for this cell, so nothing can be tested"
        words = f"{signed(difference)} points; {why} ({counts})"
        return Agreement(difference=difference, within=None, p=None, words=words)
    within = abs(difference) <= printed.std + (ours.std or 0.0) + ROUNDING
    p = welch(ours, printed.sample).p
    spread = "the two spreads" if ours.std is not None else "the paper's spread"
    tested = "no test" if p is None else f"Welch {p_value(p)}"
    words = (
        f"{signed(difference)} points, {'within' if within else 'beyond'} {spread} "
        f"({tested}; {counts})"
    )
    return Agreement(difference=difference, within=within, p=p, words=words)


def printed(row: Mapping[str, Any]) -> Printed:
    """Read mean, std and n from a row of any frame of cells."""
    mean, std, n = (float(row[name]) for name in FIGURES)
    return Printed(mean=mean, std=None if math.isnan(std) else std, n=int(n))


def sample(row: Mapping[str, Any]) -> Sample:
    """Read the same as the statistics take it."""
    return printed(row).sample


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a frame as dictionaries."""
    return cast(list[dict[str, Any]], frame.to_dict("records"))


def _read(name: str) -> pd.DataFrame:
    """Read a file of package data; everything but the table's number stays text."""
    path = files("regrow.reproduce") / "printed" / f"{name}.csv"
    with path.open(encoding="utf-8") as file:
        frame = pd.read_csv(file, dtype=str, keep_default_na=False)
    return frame.assign(table=frame["table"].astype(int)) if "table" in frame else frame


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
