"""The paper's figures drawn from our numbers: curves, heat maps of kernels, histograms of weights.

Pruned, uniform, guided and transferred are blue, red, green and brown as in the paper, the first
three in the shades of Okabe and Ito. A panel without numbers is marked.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from regrow.report.figures import SavedFigure, drawing_style, save
from regrow.report.words import short
from regrow.reproduce.figure_data import HEAT, POSITIONS, STAGES, TOP, FigureData
from regrow.reproduce.layout import NOT_RUN
from regrow.reproduce.measures import COLUMNS, EDGE
from regrow.reproduce.paper import Kind
from regrow.reproduce.printed import records

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL = (3.6, 3.0)  # inches
LEAST = 1.0  # smallest span of an axis, in points of accuracy
STEP = 5_000  # between ticks of Figure 8's vertical axis


@dataclass(frozen=True)
class Style:
    """The look of a series; dashed lines get hollow markers, to be visible on top of another."""

    colour: str
    marker: str
    line: Literal["-", "--", "none"] = "-"

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments for matplotlib; a star needs more room than other markers."""
        return {
            "color": self.colour,
            "marker": self.marker,
            "linestyle": self.line,
            "linewidth": 1.1,
            "markerfacecolor": "white" if self.line == "--" else self.colour,
            "markersize": 8.0 if self.marker == "*" else 4.5,
        }


BLUE, RED, GREEN, BROWN = "#0072B2", "#D55E00", "#009E73", "#8B5A2B"
STYLES = {
    "pruned": Style(BLUE, "o"),
    "uniform": Style(RED, "s"),
    "guided": Style(GREEN, "^"),
    "transferred": Style(BROWN, "D"),
    "winning ticket, rate 0.1": Style(BLUE, "o"),
    "random, rate 0.1": Style(RED, "s"),
    "winning ticket, rate 0.01": Style(BLUE, "o", "--"),
    "random, rate 0.01": Style(RED, "s", "--"),
}
PLAIN = Style("#555555", "*", "none")  # the unpruned network, a single point


def draw(data: FigureData, folder: Path) -> SavedFigure:
    """Draw a figure into a folder, as PNG (150 dpi) and SVG (the same bytes for the same rows)."""
    with drawing_style():
        figure = FIGURES[data.kind](data)
        if data.condition:
            figure.suptitle(data.condition, fontsize=8, color="#777777")
        return save(figure, folder, name=data.name, caption=data.caption)


def _grid(
    rows: int, columns: int, *, panel: tuple[float, float] = PANEL
) -> "tuple[Figure, list[Axes]]":
    from matplotlib.figure import Figure

    size = (panel[0] * columns, panel[1] * rows + 0.3)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    return figure, [axes for row in grid for axes in row]


def _not_run(axes: "Axes") -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.text(
        0.5, 0.5, NOT_RUN, transform=axes.transAxes, ha="center", va="center", color="#777777"
    )


# Curves -------------------------------------------------------------------------------------------


def _curves(data: FigureData) -> "Figure":
    figure, panels = _grid(1, len(data.panels))
    for axes, name in zip(panels, data.panels, strict=True):
        _panel(axes, data.frame[data.frame["panel"] == name], x="parameters")
        axes.set_title(name.replace(": ", "\n"), fontsize=9)
        axes.set_xlabel("parameters kept")
        axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter(lambda value, _: short(value))
    panels[0].set_ylabel("test accuracy (%)")
    _legend(figure, [*dict.fromkeys(data.frame["series"])])
    return figure


def _tickets(data: FigureData) -> "Figure":
    columns = 2
    figure, panels = _grid(-(-len(data.panels) // columns), columns)
    for axes, name in zip(panels, data.panels, strict=False):
        frame = data.frame[data.frame["panel"] == name]
        _panel(axes, frame.assign(percent=100 * frame["ratio"]), x="percent")
        axes.set_title(name, fontsize=9)
        axes.set_xlim(-4, 100)
        axes.set_xlabel("weights pruned (%)")
        axes.set_ylabel("test accuracy (%)")
    for axes in panels[len(data.panels) :]:
        axes.set_visible(False)
    _legend(figure, [*dict.fromkeys(data.frame["series"])])
    return figure


def _panel(axes: "Axes", frame: pd.DataFrame, *, x: str) -> None:
    """Draw each series of a panel; bars are one standard deviation over seeds."""
    axes.grid(visible=True, axis="y", linewidth=0.4, alpha=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    finished = frame[frame["n"] > 0]
    if not len(finished):
        _not_run(axes)
    for series, rows in finished.groupby("series", sort=False):
        style = STYLES.get(str(series), PLAIN)
        rows = rows.sort_values(x, kind="stable")
        axes.errorbar(
            rows[x],
            rows["mean"],
            yerr=rows["std"].fillna(0.0),
            elinewidth=1.0,
            capsize=2,
            alpha=0.9,
            **style.options,
        )
    low, high = axes.get_ylim()
    if len(finished) and high - low < LEAST:
        axes.set_ylim((low + high - LEAST) / 2, (low + high + LEAST) / 2)


def _legend(figure: "Figure", series: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], label=n, **STYLES.get(n, PLAIN).options) for n in series]
    inches = sum(0.6 + 0.07 * len(name) for name in series)  # approximate width of a single row
    columns = len(handles) if inches < figure.get_figwidth() else 2
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)


# Heat maps ----------------------------------------------------------------------------------------


def _heatmaps(data: FigureData) -> "Figure":
    """Draw the kernel positions of each stage, darker where more is kept, on one scale of grey."""
    figure, panels = _grid(1, len(STAGES), panel=(2.4, 2.5))
    cells = {tuple(row[name] for name in HEAT): row["mean"] for row in records(data.frame)}
    low, high = (min(cells.values()), max(cells.values())) if cells else (0.0, 1.0)
    room = max(0.1 * (high - low), 0.005)
    image = None
    for axes, stage in zip(panels, STAGES, strict=True):
        axes.set_title(f"Stage {stage}", fontsize=10)
        shares = [[cells.get((stage, i, j)) for j in POSITIONS] for i in POSITIONS]
        if any(share is None for row in shares for share in row):
            _not_run(axes)
            axes.set_aspect("equal")
            continue
        axes.set_xticks([])
        axes.set_yticks([])
        grid = np.array(shares, dtype=float)
        image = axes.imshow(grid, cmap="Greys", vmin=low - room, vmax=high + room)
        for (i, j), share in np.ndenumerate(grid):
            dark = (share - low + room) / (high - low + 2 * room) > 0.55
            colour = "white" if dark else "black"
            axes.text(j, i, f"{share:.3f}", ha="center", va="center", color=colour, fontsize=8)
    if image is not None:
        figure.colorbar(image, ax=panels, shrink=0.75, label="share of weights kept")
    return figure


# Histograms ---------------------------------------------------------------------------------------


def _histograms(data: FigureData) -> "Figure":
    """Draw the weights of each network on the axes of the paper's Figure 8."""
    figure, panels = _grid(len(data.panels), len(COLUMNS), panel=(2.9, 2.4))
    inside = data.frame[np.isfinite(data.frame["low"]) & np.isfinite(data.frame["high"])]
    places = [(name, column) for name in data.panels for column in COLUMNS.values()]
    for number, (axes, place) in enumerate(zip(panels, places, strict=True)):
        bins = inside[(inside["panel"] == place[0]) & (inside["column"] == place[1])]
        if len(bins):
            edges = [*bins["low"], bins["high"].iloc[-1]]
            axes.stairs(bins["value"], edges, fill=True, color="#0072B2")
            if (highest := bins["value"].max()) > TOP:
                axes.text(0.05, 0.93, f"highest {highest:,}", transform=axes.transAxes, va="top")
        else:
            _not_run(axes)
        axes.set_xlim(-EDGE, EDGE)
        axes.set_xticks([-0.2, 0.0, 0.2])
        axes.set_ylim(0, TOP)
        axes.set_yticks(range(0, TOP + 1, STEP))
        axes.set_title(f"{place[0]}\n{place[1]}", fontsize=9)
        if number % len(COLUMNS) == 0:
            axes.set_ylabel("Count")
        if number == len(places) - 2:
            axes.set_xlabel("Weight value")
    return figure


FIGURES: dict[Kind, "Callable[[FigureData], Figure]"] = {
    "curves": _curves,
    "tickets": _tickets,
    "heatmaps": _heatmaps,
    "histograms": _histograms,
}
