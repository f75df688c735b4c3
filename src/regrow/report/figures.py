"""Score against cost: what each arm reaches with how many MACs and parameters.

One panel for each data set, model and method, at most three beside each other, so that a figure
stays readable at the width of a page. Better scores stand higher. Points are means, bars one
standard deviation over seeds, the unpruned network is a line with a band. Colours are those of
Okabe and Ito, told apart by most colour-blind readers, and each arm has a marker of its own.
"""

import itertools
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from regrow.report.rows import by_panel
from regrow.report.words import short
from regrow.tasks.metric import ACCURACY, Metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Start and budget of an arm -> its style; "" stands for any budget that has no style of its own.
STYLES = {
    ("inherited", "none"): ("#7f7f7f", "X"),
    ("inherited", ""): ("#0072B2", "o"),
    ("random", "equal-epochs"): ("#E69F00", "^"),
    ("random", "equal-flops"): ("#D55E00", "s"),
    ("random", "pipeline"): ("#F0E442", "d"),
    ("initial", ""): ("#009E73", "D"),
    ("redrawn", ""): ("#CC79A7", "v"),
}
# For arms without one, and for all but the first of several that would have the same.
SPARE = (("#56B4E9", "P"), ("#999933", "<"), ("#882255", ">"), ("#332288", "h"), ("#44AA99", "*"))
AXES = {"macs": "MACs", "parameters": "parameters"}
# Of the axis, between neighbouring arms, so that equal sizes do not hide each other; less where
# sizes lie close, so that the arms of one do not stand among those of the next.
DODGE, LEAST_DODGE = 0.022, 0.012
BESIDE = 3  # panels in a row
MOVED = "markers are shifted sideways so that none hides another"
MOST_LETTERS = 50  # of a name
PAGE = 12  # panels of one figure; a larger study gets one for each data set and model
COLOURED = 0.9  # line width
FOOT = 0.09  # of the axis, kept free at its foot for each line of means that lie below it


@dataclass(frozen=True, kw_only=True)
class SavedFigure:
    """One figure of a report, in its folder as PNG and SVG."""

    caption: str
    name: str

    @property
    def paths(self) -> tuple[str, str]:
        """File names in the report's folder, the PNG first."""
        return f"{self.name}.png", f"{self.name}.svg"


def draw(
    frame: pd.DataFrame, folder: Path, *, metrics: Sequence[Metric] = (ACCURACY,)
) -> tuple[SavedFigure, ...]:
    """Draw the scores of the rows of ``summarise``, each of their metrics by itself.

    Against MACs and against parameters, as PNG (150 dpi) and SVG (the same bytes for the same
    rows). Without a finished row nothing is drawn.
    """
    saved: list[SavedFigure] = []
    for metric in metrics:
        part = frame if len(metrics) == 1 else frame[frame["metric"] == metric.key]
        saved += _draw(part, folder, metric)
    return tuple(saved)


def _draw(frame: pd.DataFrame, folder: Path, metric: Metric) -> list[SavedFigure]:
    with_results = frame[frame["n"] > 0]
    saved = []
    title = metric.name[0].upper() + metric.name[1:] if metric.name.islower() else metric.name
    with drawing_style():
        for suffix, about, part in _pages(with_results):
            for column, label in AXES.items():
                if part[column].notna().sum() == 0:
                    continue
                figure = score_figure(part, against=column, metric=metric)
                caption = (
                    f"{title} against {label}{about}; grey bands and bars: one std; "
                    f"triangles at the bottom: means below the axis; {MOVED}"
                )
                name = f"{metric.key.replace('_', '-')}-{column}{suffix}"
                saved.append(save(figure, folder, name=name, caption=caption))
    return saved


@contextmanager
def drawing_style() -> Iterator[None]:
    """Give figures their font size, and SVG files the same bytes for the same content."""
    import matplotlib as mpl

    # A name may hold dollar signs, which are no formulas, and letters that the font lacks.
    with (
        mpl.rc_context({"svg.hashsalt": "regrow", "font.size": 9, "text.parse_math": False}),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", message="Glyph")
        yield


def save(figure: "Figure", folder: Path, *, name: str, caption: str) -> SavedFigure:
    """Write a figure into a folder as PNG (150 dpi) and SVG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    saved = SavedFigure(caption=caption, name=name)
    png, svg = (folder / path for path in saved.paths)
    # Not figure.savefig, which draws each file twice, at first to no effect but the layout.
    dpi = figure.dpi
    figure.dpi = 150
    canvas: Any = FigureCanvasAgg(figure)
    canvas.print_png(png)
    figure.dpi = dpi
    figure.set_layout_engine("none")  # the layout stands; computing it again costs half the time
    canvas = FigureCanvasSVG(figure)
    canvas.print_svg(svg, metadata={"Date": None})
    return saved


def score_figure(
    frame: pd.DataFrame, *, against: str = "macs", metric: Metric = ACCURACY
) -> "Figure":
    """Draw the score over one column of ``summarise`` ("macs" or "parameters"), arm by arm."""
    from matplotlib.figure import Figure

    pruned = _is_pruned(frame)
    styles = arm_styles(frame[pruned])
    panels = _panels(frame)
    columns = min(BESIDE, max(len(_methods(part)) for _, part in panels))
    lines = [(title, part, line) for title, part in panels for line in _lines(part)]
    width = max(5.2, 0.6 + 3.0 * columns)
    reference = next(iter(frame[~pruned]["arm"]), None)
    figure = Figure(figsize=(width, 0.9 + 2.7 * len(lines)), layout="constrained")
    grid = figure.subplots(len(lines), columns, squeeze=False, sharey="row")
    for axes_row, (title, part, methods) in zip(grid, lines, strict=True):
        foot, low, high = score_limits(part, metric)
        for axes in axes_row[len(methods) :]:
            axes.set_visible(False)
        for axes, method in zip(axes_row, methods, strict=False):
            rows = part[(part["method"] == method) & _is_pruned(part)]
            whole = part[~_is_pruned(part)]
            points = whole[whole["method"] == method]
            _reference(axes, points if len(points) else whole[:1])
            scale(axes, (rows if len(rows) else whole)[against].dropna())
            places = places_of(axes, rows[against].dropna(), list(styles))
            axes.set_ylim(metric.gain(foot), metric.gain(high))
            inside = metric.gain(1.0) * rows["mean"] >= low
            for arm, style in styles.items():
                points = rows[inside & (rows["arm"] == arm)]
                _arm(axes, points, against, style, place=places[arm])
            _clipped(axes, rows[~inside], against, places, styles, digits=metric.digits - 1)
            axes.set_title("\n".join(map(_shown, filter(None, (title, method)))), fontsize=9)
            axes.set_xlabel(f"{AXES[against]} (log scale)")
            axes.grid(visible=True, axis="y", linewidth=0.4, alpha=0.5)
            axes.spines[["top", "right"]].set_visible(False)
        axes_row[0].set_ylabel(metric.axis)
    legend(figure, styles, reference=reference)
    return figure


def _methods(part: pd.DataFrame) -> list[str]:
    return [method for method in dict.fromkeys(part["method"]) if method] or [""]


def _lines(part: pd.DataFrame) -> list[list[str]]:
    """Split the methods of a data set and model into rows of panels."""
    methods = _methods(part)
    return [methods[i : i + BESIDE] for i in range(0, len(methods), BESIDE)]


def _pages(frame: pd.DataFrame) -> list[tuple[str, str, pd.DataFrame]]:
    """Split what would be too many panels: (suffix of the file, of the caption, rows)."""
    panels = _panels(frame)
    if sum(len(_methods(part)) for _, part in panels) <= PAGE:
        return [("", "", frame)] if panels else []
    return [(f"-{i}", f" ({title})", part) for i, (title, part) in enumerate(panels, start=1)]


def _panels(frame: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    return [(" / ".join(panel), part) for panel, part in by_panel(frame)]


def _is_pruned(rows: pd.DataFrame) -> pd.Series:
    return rows["sparsity"].notna() | (rows["target"] != "")


def arm_styles(rows: pd.DataFrame) -> dict[str, tuple[str, str]]:
    """Give each arm its colour and marker by what it is, the same in every figure of a report."""
    styles: dict[str, tuple[str, str]] = {}
    spare = itertools.cycle(SPARE)
    for arm, start, budget in rows[["arm", "start", "budget"]].itertuples(index=False):
        if arm not in styles:
            style = STYLES.get((start, budget)) or STYLES.get((start, ""))
            styles[arm] = next(spare) if style is None or style in styles.values() else style
    return styles


def score_limits(rows: pd.DataFrame, metric: Metric) -> tuple[float, float, float]:
    """Choose the y axis by what was trained: (its foot, the least that is drawn in place, its top).

    Of a metric of which less is better, of the values below zero that have their size.

    An arm left as cut may fall far below it, and is then marked in a strip at the foot.
    """
    trained = rows[rows["epochs"] > 0]
    visible = trained if len(trained) else rows
    spread = visible["std"].fillna(0.0)
    sign = metric.gain(1.0)
    low, high = (sign * visible["mean"] - spread).min(), (sign * visible["mean"] + spread).max()
    pad = max(0.08 * (high - low), metric.margin / 2)
    low, high = low - pad, high + pad
    below = rows[_is_pruned(rows) & (sign * rows["mean"] < low)]
    strip = FOOT * (below["group"].value_counts().max() + 0.5) if len(below) else 0.0
    return low - strip * (high - low), low, high


def places_of(axes: "Axes", sizes: pd.Series, arms: Sequence[str]) -> dict[str, float]:
    """Offset each arm from its true place, in shares of the axis."""
    low, high = axes.get_xlim()
    at = sorted({math.log(size / low) / math.log(high / low) for size in sizes})
    gaps = [right - left for left, right in itertools.pairwise(at) if right - left > DODGE]
    step = min([DODGE, *(max(LEAST_DODGE, gap / (len(arms) + 1)) for gap in gaps)])
    return {arm: step * (i - (len(arms) - 1) / 2) for i, arm in enumerate(arms)}


def scale(axes: "Axes", values: pd.Series) -> None:
    """Set a log axis with room at both ends and ticks that people can read."""
    low, high = (values.min(), values.max()) if len(values) else (1.0, 10.0)
    room = max(0.14 * math.log(high / low), math.log(1.5))
    low, high = low / math.exp(room), high * math.exp(room)
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    ticks = log_ticks(low, high)
    axes.set_xticks(ticks, [short(tick) for tick in ticks])
    axes.set_xticks([], minor=True)


def log_ticks(low: float, high: float) -> list[float]:
    """Choose at most five round numbers on a log axis, as fine as that allows.

    >>> log_ticks(9e4, 4e6), log_ticks(80, 130)
    ([100000.0, 200000.0, 500000.0, 1000000.0, 2000000.0], [80.0, 90.0, 100.0])
    """
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    best: list[float] = []
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), tuple(range(1, 10))):
        ticks = [float(step * 10**power) for power in powers for step in steps]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(best) < len(ticks) <= 5:
            best = ticks
    return best or [math.sqrt(low * high)]


def shifted(axes: "Axes", x: float, place: float) -> float:
    """Move a place on a log axis by a share of the axis."""
    low, high = axes.get_xlim()
    return float(x * (high / low) ** place)


def _reference(axes: "Axes", whole: pd.DataFrame) -> None:
    for mean, std in zip(whole["mean"], whole["std"].fillna(0.0), strict=True):
        axes.axhspan(mean - std, mean + std, color="black", alpha=0.08, linewidth=0)
        axes.axhline(mean, color="black", linewidth=COLOURED, linestyle="--")


def _arm(
    axes: "Axes", rows: pd.DataFrame, against: str, style: tuple[str, str], *, place: float
) -> None:
    rows = rows.dropna(subset=[against]).sort_values(against, kind="stable")
    if len(rows) == 0:
        return
    colour, marker = style
    axes.errorbar(
        [shifted(axes, x, place) for x in rows[against]],
        rows["mean"],
        yerr=rows["std"].fillna(0.0),
        **look(colour, marker),
        elinewidth=1.0,
        capsize=2,
    )


def _shown(name: str) -> str:
    """Leave out the middle of a name that is too long for a figure."""
    half = MOST_LETTERS // 2
    return name if len(name) <= MOST_LETTERS else f"{name[:half]}...{name[-half:]}"


def look(colour: str, marker: str) -> dict[str, Any]:
    """Style points and their line; a white edge keeps points apart where they overlap."""
    edge = {"markeredgecolor": "white", "markeredgewidth": 0.4}
    return {"color": colour, "marker": marker, "markersize": 5.5, "linewidth": COLOURED, **edge}


def _clipped(
    axes: "Axes",
    rows: pd.DataFrame,
    against: str,
    places: dict[str, float],
    styles: dict[str, tuple[str, str]],
    *,
    digits: int,
) -> None:
    """Mark points below the axis at its foot, with their value, rather than lose them.

    Those of one network's arms stand above each other, so that no value hides another.
    """
    foot, high = axes.get_ylim()
    for _, cell in rows.dropna(subset=[against]).groupby("group", sort=False):
        for level, (_, row) in enumerate(cell.iterrows()):
            colour = styles[row["arm"]][0]
            at = shifted(axes, row[against], places[row["arm"]])
            y = foot + (0.02 + FOOT * level) * (high - foot)
            axes.plot([at], [y], marker=7, color=colour, markersize=5, clip_on=False)
            axes.annotate(
                f"{row['mean']:.{digits}f}",
                (at, y),
                xytext=(0, 5),
                textcoords="offset points",
                ha="center",
                fontsize=7.5,
                color=colour,
            )


def legend(figure: "Figure", styles: dict[str, tuple[str, str]], *, reference: str | None) -> None:
    """Name what each style stands for, below the panels, in as many columns as fit."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], **look(colour, marker), label=_shown(arm))
        for arm, (colour, marker) in styles.items()
    ]
    if reference is not None:
        line = Line2D([], [], color="black", linestyle="--", linewidth=COLOURED, label=reference)
        handles.insert(0, line)
    longest = max((len(str(handle.get_label())) for handle in handles), default=1)
    fit = max(1, int(figure.get_figwidth() / (0.75 + 0.075 * longest)))  # inches at 9 points
    rows = max(1, math.ceil(len(handles) / fit))
    columns = max(1, math.ceil(len(handles) / rows))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)
