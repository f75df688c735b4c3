"""Figures of methods on one axis: score against cost, with intervals over seeds.

One panel for each arm (small multiples), and a row of panels for each data set and model. Points
are means and bars their 95 % intervals (t, over seeds); a line joins the amounts of one method.
Colours belong to methods, and stay the same in all panels.
"""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from regrow.report.figures import (
    BESIDE,
    MOVED,
    PAGE,
    SPARE,
    STYLES,
    SavedFigure,
    drawing_style,
    limits,
    places_of,
    save,
    shifted,
    size_ticks,
)
from regrow.report.panels import Limits, Panel, PanelLine, figure_of
from regrow.report.rows import Run, Table
from regrow.report.statistics import mean_and_std, paired
from regrow.tasks.metric import Metric

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PALETTE = (*(style for style in STYLES.values() if style[1] != "X"), *SPARE)  # without grey
Place = tuple[str, ...]  # ``Run.panel``, then the arm


def draw_methods(
    runs: Sequence[Run], folder: Path, *, metrics: Sequence[Metric]
) -> list[SavedFigure]:
    """Draw and save a figure for each metric by which several methods are scored."""
    saved: list[SavedFigure] = []
    with drawing_style():
        for metric in metrics:
            done = [run for run in runs if run.done and run.metric == metric]
            for number, part in enumerate(_parts(done)):
                figure = methods_figure(part, metric=metric)
                if figure is None:
                    continue
                suffix = f"-{number + 1}" if number else ""
                name = f"methods-{metric.key.replace('_', '-')}-macs{suffix}"
                title = f"{metric.name[0].upper()}{metric.name[1:]}"
                caption = (
                    f"{title} against MACs: methods on one axis, a panel for each arm; bars: 95% "
                    "intervals of the mean over seeds; dashed: the unpruned network; "
                    f"{MOVED}"
                )
                saved.append(save(figure, folder, name=name, caption=caption))
    return saved


def methods_figure(runs: Sequence[Run], *, metric: Metric) -> "Figure | None":
    """Draw the methods of some finished runs; None where no panel has two of them."""
    panels = method_panels(runs, metric=metric)
    methods = dict.fromkeys(line.name for panel in panels for line in panel.lines)
    if len(methods) < 2:
        return None
    rows = [panels[i : i + BESIDE] for i in range(0, len(panels), BESIDE)]
    return figure_of(
        rows,
        dict(zip(methods, itertools.cycle(PALETTE), strict=False)),
        size=(max(5.2, 0.6 + 3.0 * len(rows[0])), 0.9 + 2.7 * len(rows)),
        reference=next((run.arm for run in runs if run.unpruned), None),
    )


def method_panels(runs: Sequence[Run], *, metric: Metric) -> list[Panel]:
    """Return a panel for each data set, model and arm; those of a model share their score axis."""
    table = Table(runs)
    panels = {
        place: _panel(place, curves, metric=metric, table=table)
        for place, curves in _panels(runs).items()
    }
    alike: dict[Place, list[float]] = {}
    for place, panel in panels.items():
        alike.setdefault(place[:-1], []).extend(panel.y)
    ends = (max, min) if metric.better == "lower" else (min, max)
    return [
        replace(panel, y=(ends[0](alike[place[:-1]]), ends[1](alike[place[:-1]])))
        for place, panel in panels.items()
    ]


def _parts(runs: Sequence[Run]) -> list[list[Run]]:
    """Split runs into figures: all in one or, if too many, by data set and model."""
    if len(_panels(runs)) <= PAGE:
        return [list(runs)] if runs else []
    parts: dict[Place, list[Run]] = {}
    for run in runs:
        parts.setdefault(run.panel, []).append(run)
    return list(parts.values())


Curves = dict[str, dict[str, list[Run]]]  # method -> amount -> its runs


def _panels(runs: Sequence[Run]) -> dict[Place, Curves]:
    """Return the trained runs of each panel that has several methods."""
    panels: dict[Place, Curves] = {}
    for run in runs:
        if run.trained and run.done and run.macs and run.method:
            curves = panels.setdefault((*run.panel, run.arm), {})
            curves.setdefault(run.method, {}).setdefault(run.level, []).append(run)
    order = list(dict.fromkeys(place[:-1] for place in panels))
    places = sorted(panels, key=lambda place: order.index(place[:-1]))
    return {place: panels[place] for place in places if len(panels[place]) > 1}


def _panel(place: Place, curves: Curves, *, metric: Metric, table: Table) -> Panel:
    values = {
        method: sorted(_point(runs) for runs in amounts.values())
        for method, amounts in curves.items()
    }
    first = next(iter(next(iter(curves.values())).values()))[0]
    scores = [r.score for r in table.unpruned(first) if r.done and r.score is not None]
    rules = (mean_and_std(scores)[0],) if scores else ()
    costs = pd.Series([cost for points in values.values() for cost, *_ in points])
    x = limits(costs)
    places = places_of(x, costs, list(values))
    points = []
    for method, of_method in values.items():
        at, means, below, above = zip(*of_method, strict=True)
        moved = tuple(shifted(x, cost, places[method]) for cost in at)
        points.append(PanelLine(name=method, at=moved, values=means, below=below, above=above))
    return Panel(
        title="\n".join((" / ".join(place[:-1]), place[-1])),
        x=x,
        y=_reach(points, rules),
        ticks=size_ticks(x),
        x_label="MACs (log scale)",
        y_label=metric.axis,
        lines=tuple(points),
        rules=rules,
    )


def _reach(points: Sequence[PanelLine], rules: Sequence[float]) -> Limits:
    """Return the range of scores that a panel shows, with a little room."""
    lows = [v - b for p in points for v, b in zip(p.values, p.below, strict=True)]
    highs = [v + a for p in points for v, a in zip(p.values, p.above, strict=True)]
    low, high = min([*lows, *rules]), max([*highs, *rules])
    room = 0.05 * (high - low) or 0.05 * max(abs(low), 1.0)
    return low - room, high + room


def _point(runs: Sequence[Run]) -> tuple[float, float, float, float]:
    """Return a row's cost and mean score, and how far its interval extends below and above."""
    scores = [run.score for run in runs if run.score is not None]
    test = paired(scores, [0.0] * len(scores))
    reach = 0.0 if test.low is None else test.difference - test.low
    cost = mean_and_std([float(run.macs or 0) for run in runs])[0]
    return cost, test.difference, reach, reach
