"""Methods on one axis: what each reaches at which cost, with intervals over seeds.

One panel for each arm (small multiples), and a row of panels for each data set and model. Points
are means and bars their 95 % intervals (t, over seeds); a line joins the amounts of one method.
Colours belong to methods, and stay the same in all panels.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from regrow.report.figures import (
    BESIDE,
    COLOURED,
    MOVED,
    PAGE,
    SPARE,
    STYLES,
    SavedFigure,
    drawing_style,
    legend,
    look,
    places_of,
    save,
    scale,
    shifted,
)
from regrow.report.rows import Run, Table
from regrow.report.statistics import mean_and_std, paired
from regrow.tasks.metric import Metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = (*(style for style in STYLES.values() if style[1] != "X"), *SPARE)  # grey is faint
Panel = tuple[str, ...]  # as ``Run.panel``, and the arm


def draw_methods(
    runs: Sequence[Run], folder: Path, *, metrics: Sequence[Metric]
) -> list[SavedFigure]:
    """Save a figure for each metric by which several methods are scored; none without."""
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
    from matplotlib.figure import Figure

    panels = _panels(runs)
    methods = list(dict.fromkeys(m for panel in panels.values() for m in panel))
    if len(methods) < 2:
        return None
    styles = dict(zip(methods, itertools.cycle(PALETTE), strict=False))
    columns = min(BESIDE, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure(
        figsize=(max(5.2, 0.6 + 3.0 * columns), 0.9 + 2.7 * lines), layout="constrained"
    )
    grid = figure.subplots(lines, columns, squeeze=False)
    table = Table(runs)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, (place, curves) in zip(grid.flat, panels.items(), strict=False):
        _panel(axes, place, curves, styles=styles, metric=metric, table=table)
    _share_scores(list(zip(grid.flat, panels, strict=False)))
    reference = next((run.arm for run in runs if run.unpruned), None)
    legend(figure, styles, reference=reference)
    return figure


def _parts(runs: Sequence[Run]) -> list[list[Run]]:
    """Split runs into those of a figure: all, or those of each data set and model if many."""
    if len(_panels(runs)) <= PAGE:
        return [list(runs)] if runs else []
    places = dict.fromkeys(run.panel for run in runs)
    return [[run for run in runs if run.panel == place] for place in places]


Curves = dict[str, dict[str, list[Run]]]  # method -> amount -> its runs


def _panels(runs: Sequence[Run]) -> dict[Panel, Curves]:
    """Return the trained runs of each panel that has several methods."""
    panels: dict[Panel, Curves] = {}
    for run in runs:
        if run.trained and run.done and run.macs and run.method:
            curves = panels.setdefault((*run.panel, run.arm), {})
            curves.setdefault(run.method, {}).setdefault(run.level, []).append(run)
    order = list(dict.fromkeys(place[:-1] for place in panels))
    places = sorted(panels, key=lambda place: order.index(place[:-1]))
    return {place: panels[place] for place in places if len(panels[place]) > 1}


def _panel(
    axes: "Axes",
    place: Panel,
    curves: Curves,
    *,
    styles: dict[str, tuple[str, str]],
    metric: Metric,
    table: Table,
) -> None:
    import pandas as pd

    points = {
        method: sorted(_point(runs) for runs in amounts.values())
        for method, amounts in curves.items()
    }
    first = next(iter(next(iter(curves.values())).values()))[0]
    whole = [r.score for r in table.unpruned(first) if r.done and r.score is not None]
    if whole:
        axes.axhline(mean_and_std(whole)[0], color="black", linewidth=COLOURED, linestyle="--")
    costs = pd.Series([cost for values in points.values() for cost, *_ in values])
    scale(axes, costs)
    places = places_of(axes, costs, list(points))
    for method, values in points.items():
        colour, marker = styles[method]
        at, means, below, above = zip(*values, strict=True)
        axes.errorbar(
            [shifted(axes, cost, places[method]) for cost in at],
            means,
            yerr=[below, above],
            **look(colour, marker),
            elinewidth=1.0,
            capsize=2,
        )
    if metric.better == "lower":
        axes.invert_yaxis()
    axes.set_title("\n".join((" / ".join(place[:-1]), place[-1])), fontsize=9)
    axes.set_xlabel("MACs (log scale)")
    axes.set_ylabel(metric.axis)
    axes.grid(visible=True, axis="y", linewidth=0.4, alpha=0.5)
    axes.spines[["top", "right"]].set_visible(False)


def _share_scores(drawn: "Sequence[tuple[Axes, Panel]]") -> None:
    """Give the panels of one data set and model the same axis of scores."""
    for place in dict.fromkeys(panel[:-1] for _, panel in drawn):
        alike = [axes for axes, panel in drawn if panel[:-1] == place]
        bounds = [bound for axes in alike for bound in axes.get_ylim()]
        for axes in alike:
            turned = axes.yaxis_inverted()
            axes.set_ylim(*sorted((min(bounds), max(bounds)), reverse=bool(turned)))


def _point(runs: Sequence[Run]) -> tuple[float, float, float, float]:
    """Return the cost and the mean score of a row, and how far its interval reaches either way."""
    scores = [run.score for run in runs if run.score is not None]
    test = paired(scores, [0.0] * len(scores))
    reach = 0.0 if test.low is None else test.difference - test.low
    cost = mean_and_std([float(run.macs or 0) for run in runs])[0]
    return cost, test.difference, reach, reach
