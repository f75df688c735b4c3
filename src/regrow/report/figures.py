"""Figures of score against cost: the score of each arm by MACs and by parameters.

One panel for each data set, model and method, at most three in a row, so that a figure stays
readable at the width of a page. Better scores are higher up, also for metrics to be minimised.
Points are means, bars one standard deviation over seeds, the unpruned network is a line with a
band. Colours are those of Okabe and Ito, which most colour-blind readers can distinguish, and each
arm has its own marker.
"""

import itertools
import math
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from regrow.report.panels import Limits, Outlier, Panel, PanelLine, Tick, figure_of, shown
from regrow.report.rows import by_panel
from regrow.report.words import short
from regrow.tasks.metric import ACCURACY, Metric

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Start and budget of an arm -> colour and marker; "" is any budget without its own style.
STYLES = {
    ("inherited", "none"): ("#7f7f7f", "X"),
    ("inherited", ""): ("#0072B2", "o"),
    ("random", "equal-epochs"): ("#E69F00", "^"),
    ("random", "equal-flops"): ("#D55E00", "s"),
    ("random", "pipeline"): ("#F0E442", "d"),
    ("initial", ""): ("#009E73", "D"),
    ("redrawn", ""): ("#CC79A7", "v"),
}
# For arms without a style, and for all but the first of several that would share one.
SPARE = (("#56B4E9", "P"), ("#999933", "<"), ("#882255", ">"), ("#332288", "h"), ("#44AA99", "*"))
AXES = {"macs": "MACs", "parameters": "parameters"}
# Offsets between neighbouring arms, as shares of the axis, so that markers at equal sizes do not
# overlap; smaller where sizes are close, so that the arms of one do not mix with those of the next.
DODGE, LEAST_DODGE = 0.022, 0.012
BESIDE = 3  # panels in a row
MOVED = "markers are shifted sideways so that none hides another"
PAGE = 12  # most panels of one figure; larger studies get one for each data set and model
FOOT = 0.09  # share of the axis, reserved at the bottom for each row of means below the axis


@dataclass(frozen=True, kw_only=True)
class SavedFigure:
    """One figure of a report, saved in its folder as PNG and SVG."""

    caption: str
    name: str

    @property
    def paths(self) -> tuple[str, str]:
        """File names in the report's folder, the PNG first."""
        return f"{self.name}.png", f"{self.name}.svg"


def draw(
    frame: pd.DataFrame, folder: Path, *, metrics: Sequence[Metric] = (ACCURACY,)
) -> tuple[SavedFigure, ...]:
    """Draw the scores of ``summarise``'s rows against MACs and against parameters, for each metric.

    Figures are saved as PNG (150 dpi) and SVG (byte for byte the same for the same rows). Without a
    finished row nothing is drawn.
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
    """Set the font size of figures, and make SVG files reproducible byte for byte."""
    import matplotlib as mpl

    # Names may have dollar signs that are no formulas, and characters that the font lacks.
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
    from PIL import Image

    saved = SavedFigure(caption=caption, name=name)
    png, svg = (folder / path for path in saved.paths)
    # Not figure.savefig, which draws each file twice, first only to compute the layout.
    dpi = figure.dpi
    figure.dpi = 150
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    picture.save(png, dpi=(150, 150), compress_level=3)  # faster than the usual 6, and as small
    figure.dpi = dpi
    figure.set_layout_engine("none")  # keep the layout; computing it again takes half the time
    canvas = FigureCanvasSVG(figure)
    canvas.print_svg(svg, metadata={"Date": None})
    return saved


def score_figure(
    frame: pd.DataFrame, *, against: str = "macs", metric: Metric = ACCURACY
) -> "Figure":
    """Draw the score of each arm against a column of ``summarise``, "macs" or "parameters"."""
    rows = score_panels(frame, against=against, metric=metric)
    pruned = _is_pruned(frame)
    columns = max(map(len, rows))
    return figure_of(
        rows,
        arm_styles(frame[pruned]),
        size=(max(5.2, 0.6 + 3.0 * columns), 0.9 + 2.7 * len(rows)),
        reference=next(iter(frame[~pruned]["arm"]), None),
    )


def score_panels(frame: pd.DataFrame, *, against: str, metric: Metric) -> list[list[Panel]]:
    """Return rows of panels for each data set and model, at most ``BESIDE`` panels in a row."""
    arms = [*arm_styles(frame[_is_pruned(frame)])]
    rows = []
    for title, part in _panels(frame):
        foot, low, high = score_limits(part, metric)
        y = (metric.gain(foot), metric.gain(high))
        pruned, methods = _is_pruned(part), _methods(part)
        whole = part[~pruned]
        for start in range(0, len(methods), BESIDE):
            panels: list[Panel] = []
            for method in methods[start : start + BESIDE]:
                own = whole[whole["method"] == method]
                rows_of = part[pruned & (part["method"] == method)]
                panel = _panel(
                    rows_of,
                    own if len(own) else whole[:1],
                    against=against,
                    arms=arms,
                    metric=metric,
                    low=low,
                    y=y,
                )
                title_of = "\n".join(map(shown, filter(None, (title, _called(method, rows_of)))))
                label = "" if panels else metric.axis
                panels.append(replace(panel, title=title_of, y_label=label))
            rows.append(panels)
    return rows


def _panel(
    rows: pd.DataFrame,
    whole: pd.DataFrame,
    *,
    against: str,
    arms: Sequence[str],
    metric: Metric,
    low: float,
    y: Limits,
) -> Panel:
    """Return the panel of a method's rows; means below ``low`` are marked at its bottom."""
    x = limits((rows if len(rows) else whole)[against].dropna())
    places = places_of(x, rows[against].dropna(), arms)
    rows = rows.dropna(subset=[against])
    inside = metric.gain(1.0) * rows["mean"] >= low
    levels: Counter[str] = Counter()
    marks = []
    # Arms of one network are stacked, so that no value hides another.
    columns = ["group", "arm", against, "mean"]
    for group, arm, size, mean in rows[~inside][columns].itertuples(index=False):
        marks.append(
            Outlier(
                name=arm,
                at=shifted(x, size, places[arm]),
                height=0.02 + FOOT * levels[group],
                text=f"{mean:.{metric.digits - 1}f}",
            )
        )
        levels[group] += 1
    in_order = rows[inside].sort_values(against, kind="stable")
    lines = []
    for arm, of_arm in in_order.groupby("arm", sort=False):
        spread = tuple(of_arm["std"].fillna(0.0))
        lines.append(
            PanelLine(
                name=str(arm),
                at=tuple(shifted(x, size, places[str(arm)]) for size in of_arm[against]),
                values=tuple(of_arm["mean"]),
                below=spread,
                above=spread,
            )
        )
    spreads = whole["std"].fillna(0.0)
    return Panel(
        title="",
        x=x,
        y=y,
        ticks=size_ticks(x),
        x_label=f"{AXES[against]} (log scale)",
        lines=tuple(lines),
        marks=tuple(marks),
        bands=tuple(zip(whole["mean"] - spreads, whole["mean"] + spreads, strict=True)),
        rules=tuple(whole["mean"]),
    )


def _methods(part: pd.DataFrame) -> list[str]:
    return [method for method in dict.fromkeys(part["method"]) if method] or [""]


def _called(method: str, rows: pd.DataFrame) -> str:
    """Return the name of a method, with the amount if all its rows have the same."""
    amounts = {
        target or f"{sparsity:g}"
        for target, sparsity in zip(rows["target"], rows["sparsity"], strict=True)
    }
    return " ".join([method, *amounts]) if method and len(amounts) == 1 else method


def _pages(frame: pd.DataFrame) -> list[tuple[str, str, pd.DataFrame]]:
    """Split rows into figures if they have too many panels: (file suffix, caption suffix, rows)."""
    panels = _panels(frame)
    if sum(len(_methods(part)) for _, part in panels) <= PAGE:
        return [("", "", frame)] if panels else []
    return [(f"-{i}", f" ({title})", part) for i, (title, part) in enumerate(panels, start=1)]


def _panels(frame: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    return [(" / ".join(panel), part) for panel, part in by_panel(frame)]


def _is_pruned(rows: pd.DataFrame) -> pd.Series:
    return rows["sparsity"].notna() | (rows["target"] != "")


def arm_styles(rows: pd.DataFrame) -> dict[str, tuple[str, str]]:
    """Return each arm's colour and marker by start and budget, the same in all figures."""
    styles: dict[str, tuple[str, str]] = {}
    spare = itertools.cycle(SPARE)
    for arm, start, budget in rows[["arm", "start", "budget"]].itertuples(index=False):
        if arm not in styles:
            style = STYLES.get((start, budget)) or STYLES.get((start, ""))
            styles[arm] = next(spare) if style is None or style in styles.values() else style
    return styles


def score_limits(rows: pd.DataFrame, metric: Metric) -> tuple[float, float, float]:
    """Choose the y axis by the trained arms: (bottom, lowest value drawn in place, top).

    For metrics to be minimised, these are negated scores. Pruned networks that were not retrained
    may lie far below the axis, and are then marked in a strip at its bottom.
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


def places_of(x: Limits, sizes: pd.Series, arms: Sequence[str]) -> dict[str, float]:
    """Return a horizontal offset for each arm, as a share of the axis."""
    low, high = x
    at = sorted({math.log(size / low) / math.log(high / low) for size in sizes})
    gaps = [right - left for left, right in itertools.pairwise(at) if right - left > DODGE]
    step = min([DODGE, *(max(LEAST_DODGE, gap / (len(arms) + 1)) for gap in gaps)])
    return {arm: step * (i - (len(arms) - 1) / 2) for i, arm in enumerate(arms)}


def limits(values: pd.Series) -> Limits:
    """Choose the limits of a log axis, with room at both ends."""
    low, high = (values.min(), values.max()) if len(values) else (1.0, 10.0)
    room = max(0.14 * math.log(high / low), math.log(1.5))
    return float(low / math.exp(room)), float(high * math.exp(room))


def size_ticks(x: Limits) -> tuple[Tick, ...]:
    """Choose round ticks of a log axis, with their labels."""
    return tuple((tick, short(tick)) for tick in log_ticks(*x))


def log_ticks(low: float, high: float) -> list[float]:
    """Choose as many round numbers on a log axis as possible, at most five.

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


def shifted(x: Limits, at: float, place: float) -> float:
    """Shift a value on a log axis by a share of the axis."""
    low, high = x
    return float(at * (high / low) ** place)
