"""Comparison of curves in Figures 3, 5 and 6: accuracy at equal parameters, and the reverse.

The numbers are those that ``regrow reproduce figure-5`` writes. A curve is the line through the
points of a series, as drawn: straight between neighbours, with the unpruned network at its end. The
series of Figure 7 have their points at the same shares pruned, and are compared at those.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import hypot
from typing import Literal

import pandas as pd

from regrow.report.statistics import Sample
from regrow.reproduce.contrasts import Pair, compared, corrected
from regrow.reproduce.paper import UNPRUNED
from regrow.reproduce.printed import records

POINT = ("panel", "series", "ratio", "parameters", "mean", "std", "n", "n_expected")
# Relative difference in parameters of networks with equal sparsity whose units were removed at
# random; a point no further beyond the end of the other curve is compared with that end.
SLACK = 0.02


@dataclass(frozen=True)
class Point:
    """A point of a curve: mean parameters, and accuracy in percent."""

    parameters: float
    accuracy: Sample
    ratio: float = 0.0


@dataclass(frozen=True, kw_only=True)
class CurveContrast:
    """Two curves to compare: ``first`` minus ``second``, at each point of the first.

    They are in the panels of a figure whose names begin with ``panels``. At equal shares pruned,
    the unpruned network is left out, because both series begin with it.
    """

    figure: int
    first: str
    second: str
    panels: str = ""
    at: Literal["parameters", "shares pruned"] = "parameters"

    @property
    def name(self) -> str:
        """The difference in words, with the figure."""
        return f"{self.first} - {self.second} at equal {self.at}, {self.where}"

    @property
    def where(self) -> str:
        """The figure and its panels."""
        return f"Figure {self.figure}" + (f", {self.panels}" if self.panels else "")

    @property
    def absent(self) -> str:
        """The reason when there is nothing to compare."""
        return (
            f"no numbers of these curves; needed: points over the same {self.at}, as `regrow "
            f"reproduce figure-{self.figure}` writes them"
        )


def curve_pairs(
    frame: pd.DataFrame, contrast: CurveContrast, *, margin: float
) -> tuple[tuple[Pair, ...], int]:
    """Compare every point that has a counterpart, and count those beyond the other curve's ends.

    ``frame`` holds the numbers of figures, with the column ``figure``. p-values are corrected
    within the figure.
    """
    pairs, num_beyond = [], 0
    for panel, points, curve in opposed(frame, contrast):
        pruned = {_place(point): point.accuracy for point in curve if point.ratio}
        for point in points:
            if contrast.at == "parameters":
                counterpart = accuracy_at(curve, point.parameters)
                num_beyond += counterpart is None
            else:
                counterpart = pruned.get(_place(point))
            if counterpart is None:
                continue
            row = {"table": contrast.figure, "dataset": panel, "model": contrast.first}
            row["target"] = f"{100 * point.ratio:g}%"
            pairs.append(compared(row, point.accuracy, counterpart, margin=margin))
    return corrected(pairs), num_beyond


def opposed(
    frame: pd.DataFrame, contrast: CurveContrast
) -> Iterator[tuple[str, list[Point], list[Point]]]:
    """Yield each panel, the points of the first curve, and the second with the unpruned network."""
    if frame.empty:
        return
    points = frame[(frame["figure"] == contrast.figure) & (frame["n"] > 0)]
    points = points[points["panel"].str.startswith(contrast.panels)]
    for panel, rows in points.groupby("panel", sort=False):
        second = _points(rows, contrast.second)
        yield (
            str(panel),
            _points(rows, contrast.first),
            second and [*second, *_points(rows, UNPRUNED)],
        )


def accuracy_at(curve: Sequence[Point], parameters: float) -> Sample | None:
    """Read a curve at a number of parameters; None beyond its ends.

    Between two points with weights 1 - w and w, the mean is interpolated linearly, and the variance
    is (1 - w)^2 s1^2 + w^2 s2^2, because the runs of two points are independent.

    Args:
        curve: its points in order of increasing parameters.
        parameters: where to read it.
    """
    if not curve or not _within(curve, parameters):
        return None
    sizes = [point.parameters for point in curve]
    i = bisect_left(sizes, parameters)
    if i in (0, len(curve)):
        return curve[min(i, len(curve) - 1)].accuracy
    first, second = curve[i - 1].accuracy, curve[i].accuracy
    w = (parameters - sizes[i - 1]) / (sizes[i] - sizes[i - 1])
    if w == 1.0:
        return second
    untested = first.std is None or second.std is None
    return Sample(
        mean=(1 - w) * first.mean + w * second.mean,
        std=None if untested else hypot((1 - w) * (first.std or 0.0), w * (second.std or 0.0)),
        n=min(first.n, second.n),
    )


def parameters_at(curve: Sequence[Point], accuracy: float) -> float | None:
    """Return the fewest parameters at which a curve reaches an accuracy; None if it never does.

    Also None if its smallest point already reaches it, because smaller ones were not tried.
    """
    if not curve or curve[0].accuracy.mean >= accuracy:
        return None
    for low, high in pairwise(curve):
        if high.accuracy.mean >= accuracy:
            w = (accuracy - low.accuracy.mean) / (high.accuracy.mean - low.accuracy.mean)
            return (1 - w) * low.parameters + w * high.parameters
    return None


def _place(point: Point) -> float:
    return round(point.ratio, 6)


def _points(rows: pd.DataFrame, series: str) -> list[Point]:
    points = []
    for row in records(rows[rows["series"] == series]):
        std = None if pd.isna(row["std"]) else float(row["std"])
        accuracy = Sample(mean=float(row["mean"]), std=std, n=int(row["n"]))
        points.append(Point(float(row["parameters"]), accuracy, float(row["ratio"])))
    return sorted(points, key=lambda point: point.parameters)


def _within(curve: Sequence[Point], parameters: float) -> bool:
    low, high = curve[0].parameters * (1 - SLACK), curve[-1].parameters * (1 + SLACK)
    return low <= parameters <= high
