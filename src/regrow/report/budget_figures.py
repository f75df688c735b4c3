"""Figures over training budgets: scores of arms, and differences from training from scratch.

One panel for each data set, network, method and amount (small multiples), so that many methods
stay readable. The axis of budgets is logarithmic, in epochs below and in FLOPs of the unpruned
network's training above. Bars are 95 % intervals over seeds: of a mean, or of paired differences,
beside which the margin is drawn as a band.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from regrow.report.budgets import Curve, Trend
from regrow.report.figures import (
    BESIDE,
    PAGE,
    SavedFigure,
    arm_styles,
    drawing_style,
    save,
    shifted,
)
from regrow.report.panels import Limits, Outlier, Panel, PanelLine, Styles, figure_of
from regrow.report.rows import Run
from regrow.report.statistics import Comparison, paired
from regrow.report.words import quantity
from regrow.tasks.metric import Metric

if TYPE_CHECKING:
    from matplotlib.figure import Figure

UNPRUNED = ("black", ".")
# Offsets, as shares of the axis: between neighbouring lines, and at most from first to last.
DODGE, MOST_DODGE = 0.013, 0.05
CUT_BARS = "which go on beyond the axis where they have no cap"
MOST_TITLE = 40  # characters per line of a panel's title
Points = list[tuple[int, Comparison]]


def draw_budgets(curves: Sequence[Curve], folder: Path) -> list[SavedFigure]:
    """Draw and save both figures for each metric; none without curves."""
    saved: list[SavedFigure] = []
    with drawing_style():
        for metric in dict.fromkeys(curve.metric for curve in curves):
            of_metric = [curve for curve in curves if curve.metric == metric]
            for number, part in enumerate(_parts(of_metric)):
                if not any(score_points(curve, arm) for curve in part for arm in curve.arms):
                    continue
                suffix = f"-{number + 1}" if number else ""
                key = metric.key.replace("_", "-")
                saved.append(
                    save(
                        budget_figure(part, metric=metric),
                        folder,
                        name=f"budgets-{key}{suffix}",
                        caption=score_caption(metric),
                    )
                )
                if any(trend.run for curve in part for trend in curve.trends):
                    saved.append(
                        save(
                            difference_figure(part, metric=metric),
                            folder,
                            name=f"budget-differences-{key}{suffix}",
                            caption=difference_caption(metric, part[0]),
                        )
                    )
    return saved


def score_caption(metric: Metric) -> str:
    """Return the caption of the figure of scores."""
    name = f"{metric.name[0].upper()}{metric.name[1:]}"
    return (
        f"{name} against the training budget (epochs of the unpruned network, and above the FLOPs "
        "of its training; log scale), a line for each arm; bars: 95% intervals of the mean over "
        f"seeds, {CUT_BARS}; triangles at the bottom: means below the axis"
    )


def difference_caption(metric: Metric, curve: Curve) -> str:
    """Return the caption of the figure of differences."""
    margins = dict.fromkeys(trend.margin for trend in curve.trends)
    margin = " or ".join(metric.amount(f"{margin:g}") for margin in margins)
    return (
        "Difference to training from scratch against the training budget, a line for each "
        "retraining of inherited weights; bars: 95% intervals of paired differences, of each "
        f"budget alone, {CUT_BARS}; grey band: the margin of {margin}"
    )


def budget_figure(curves: Sequence[Curve], *, metric: Metric) -> "Figure":
    """Draw the scores of every arm by budget, a panel for each curve."""
    panels = []
    for curve in curves:
        lines = {arm: score_points(curve, arm) for arm in curve.arms}
        panel = _panel(curve, lines, score_range(lines, curve), metric)
        panels.append(replace(panel, title=in_lines(curve.name), y_label=metric.axis))
    return _figure(panels, styles_of(curves), beside=min(BESIDE, len(curves)))


def difference_figure(curves: Sequence[Curve], *, metric: Metric) -> "Figure":
    """Draw the differences of each retraining by budget, a panel for each curve and control."""
    controls = scratch_arms(curves)
    retrainings = dict.fromkeys(t.retraining for curve in curves for t in curve.trends)
    styles = {arm: style for arm, style in styles_of(curves).items() if arm in retrainings}
    unit = f" ({metric.difference_unit})" if metric.difference_unit else ""
    panels = []
    for curve, scratch in itertools.product(curves, controls):
        trends = [trend for trend in curve.trends if trend.scratch == scratch]
        margin = trends[0].margin if trends else metric.margin
        lines = {trend.retraining: difference_points(trend) for trend in trends}
        panels.append(
            replace(
                _panel(curve, lines, difference_range(lines, margin), metric),
                title=f"{in_lines(curve.name)}\nminus {scratch}",
                y_label=f"difference in {metric.name}{unit}",
                bands=((-margin, margin),),
                rules=(0.0,),
            )
        )
    return _figure(panels, styles, beside=min(BESIDE, len(controls)))


def in_lines(name: str) -> str:
    """Break a panel's name into lines between its parts, to fit the width of the panel.

    >>> in_lines("CIFAR-10 / six convolutions / l1-filter macs 0.5, multiples of 8")
    'CIFAR-10 / six convolutions /\\nl1-filter macs 0.5, multiples of 8'
    """
    first, *others = name.split(" / ")
    lines = [first]
    for part in others:
        fits = len(lines[-1]) + len(part) + 3 <= MOST_TITLE
        lines[-1] += " / " if fits else " /"
        if fits:
            lines[-1] += part
        else:
            lines.append(part)
    return "\n".join(lines)


# Values of the figures, which the HTML page uses too ----------------------------------------------


def styles_of(curves: Sequence[Curve]) -> dict[str, tuple[str, str]]:
    """Return the style of each arm, the same as in the report's other figures."""
    runs = {
        arm: next(iter(step.arms[arm]))
        for curve in curves
        for arm in curve.arms
        for step in curve.steps
        if step.arms.get(arm)
    }
    pruned = {arm: run for arm, run in runs.items() if not run.unpruned}
    frame = pd.DataFrame(
        [(arm, run.start, run.budget) for arm, run in pruned.items()],
        columns=["arm", "start", "budget"],
    )
    known = arm_styles(frame)
    return {arm: known.get(arm, UNPRUNED) for arm in runs}


def scratch_arms(curves: Sequence[Curve]) -> list[str]:
    """Return the scratch arms that retrainings are compared with."""
    return list(dict.fromkeys(trend.scratch for curve in curves for trend in curve.trends))


def score_points(curve: Curve, arm: str) -> Points:
    """Return the mean score of an arm at each budget, with its interval."""
    points: Points = []
    for step in curve.steps:
        runs: Sequence[Run] = step.arms.get(arm, ())
        scores = [run.score for run in runs if run.done and run.score is not None]
        if scores:
            points.append((step.budget, paired(scores, [0.0] * len(scores))))
    return points


def difference_points(trend: Trend) -> Points:
    """Return the difference at each budget, with its interval."""
    return [(d.budget, d.test) for d in trend.run if d.test is not None]


def score_range(lines: dict[str, Points], curve: Curve) -> tuple[float, float]:
    """Choose the score axis by the trained arms; pruned, untrained networks may lie far below."""
    metric = curve.metric
    untrained = {
        arm
        for step in curve.steps
        for arm, runs in step.arms.items()
        if runs and not runs[0].unpruned and not runs[0].trained
    }
    shown = [p for arm, points in lines.items() if arm not in untrained for p in points]
    every = shown or [point for points in lines.values() for point in points]
    low, high = _reach([test for _, test in every])
    pad = max(0.06 * (high - low), metric.margin / 2)
    top = high + pad
    if metric.counted:  # intervals of few seeds exceed the highest possible score
        top = min(top, metric.factor + 0.02 * (metric.factor - low))
    return low - pad, top


def difference_range(lines: dict[str, Points], margin: float) -> tuple[float, float]:
    """Choose the axis of differences, which always includes zero and the margin."""
    tests = [test for points in lines.values() for _, test in points]
    low, high = _reach(tests) if tests else (0.0, 0.0)
    low, high = min(low, -1.4 * margin), max(high, 1.4 * margin)
    return low - 0.04 * (high - low), high + 0.04 * (high - low)


def _reach(tests: Sequence[Comparison]) -> tuple[float, float]:
    """Return the range of means with their intervals, ignoring bounds far from all means.

    An interval of two or three seeds can be many times the range of all means.
    """
    if not tests:
        return 0.0, 1.0
    means = [test.difference for test in tests]
    low, high = min(means), max(means)
    room = max(high - low, 1e-9)
    bounds = [b for t in tests for b in (t.low, t.high) if b is not None]
    inside = [bound for bound in bounds if low - 0.5 * room <= bound <= high + 0.5 * room]
    return min([low, *inside]), max([high, *inside])


def places_of(arms: Iterable[str], drawn: Sequence[str]) -> dict[str, float]:
    """Return a horizontal offset for each line, as a share of the axis, to keep bars apart.

    Only lines in ``drawn``, those with a point within the axis, are offset.
    """
    step = min(DODGE, MOST_DODGE / max(1, len(drawn) - 1))
    offsets = {arm: step * (i - (len(drawn) - 1) / 2) for i, arm in enumerate(drawn)}
    return {arm: offsets.get(arm, 0.0) for arm in arms}


# Drawing ------------------------------------------------------------------------------------


def _parts(curves: Sequence[Curve]) -> list[list[Curve]]:
    """Split curves into figures: all in one or, if too many, by data set and model."""
    if len(curves) * max(1, len(scratch_arms(curves))) <= PAGE:
        return [list(curves)] if curves else []
    places = dict.fromkeys((curve.data, curve.model) for curve in curves)
    parts = [[c for c in curves if (c.data, c.model) == place] for place in places]
    return [part[i : i + PAGE // 2] for part in parts for i in range(0, len(part), PAGE // 2)]


def _figure(panels: Sequence[Panel], styles: Styles, *, beside: int) -> "Figure":
    rows = [panels[i : i + beside] for i in range(0, len(panels), beside)]
    return figure_of(rows, styles, size=(max(5.2, 0.6 + 3.2 * beside), 0.9 + 3.1 * len(rows)))


def _panel(curve: Curve, lines: dict[str, Points], y: Limits, metric: Metric) -> Panel:
    """Return the panel of a curve: epochs on the axis below, FLOPs (if known) on that above."""
    budgets = curve.budgets
    room = (budgets[-1] / budgets[0]) ** 0.12 if len(budgets) > 1 else 1.5
    x = (budgets[0] / room, budgets[-1] * room)
    costs = {budget: curve.flops(budget) for budget in budgets}
    known = any(costs.values())
    low, high = y
    drawn = [
        arm for arm, points in lines.items() if any(low <= t.difference <= high for _, t in points)
    ]
    places = places_of(lines, drawn)
    inside, marks = [], []
    for arm, points in lines.items():
        shown = [(shifted(x, b, places[arm]), t) for b, t in points if low <= t.difference <= high]
        inside.append(
            PanelLine(
                name=arm,
                at=tuple(at for at, _ in shown),
                values=tuple(t.difference for _, t in shown),
                below=tuple(0.0 if t.low is None else t.difference - t.low for _, t in shown),
                above=tuple(0.0 if t.high is None else t.high - t.difference for _, t in shown),
            )
        )
        for budget, test in points:
            if not low <= test.difference <= high:
                up = (test.difference > high) == (metric.better == "higher")
                marks.append(
                    Outlier(
                        name=arm,
                        at=shifted(x, budget, places[arm]),
                        height=1.0 if up else 0.0,
                        text=f"{test.difference:.{max(0, metric.digits - 1)}f}",
                        up=up,
                    )
                )
    return Panel(
        title="",
        x=x,
        y=(high, low) if metric.better == "lower" else y,
        ticks=tuple((budget, str(budget)) for budget in budgets),
        x_label="epochs of the unpruned network (log scale)",
        ticks_above=tuple((b, quantity(costs[b])) for b in budgets) if known else (),
        label_above="FLOPs of its training",
        lines=tuple(inside),
        marks=tuple(marks),
    )
