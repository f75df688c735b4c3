"""Panels of a figure, described by values and drawn with few matplotlib artists.

Each panel has a log axis of costs or budgets and a linear axis of scores. The positions of all
panels are computed in inches, and elements that look alike are one artist for all panels: an
``Axes`` for each panel, with automatic layout, takes four times as long.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Styles = Mapping[str, tuple[str, str]]  # name -> colour and marker
Limits = tuple[float, float]
Segment = list[tuple[float, float]]
Tick = tuple[float, str]

COLOURED = 0.9  # line width
MOST_LETTERS = 50  # characters of a name
INCH = 72.0  # points
SIZE, SMALL, VALUE = 9.0, 7.0, 7.5  # font sizes in points: most texts, above panels, at marks
LINE = 1.2  # line spacing, in font sizes
TICK, SMALL_TICK, GAP = 3.5, 2.0, 3.5  # points: lengths of ticks, and the gap around them
DIGIT = 0.64  # width of a digit, in font sizes
EDGE = 4.0  # points: margin of the figure
CAP = 2.0  # points: half the width of an error bar's caps
SIDE = 0.2  # inches between panels


@dataclass(frozen=True, kw_only=True)
class PanelLine:
    """The values of one arm or method, joined by a line, with their error bars' lengths."""

    name: str
    at: tuple[float, ...]
    values: tuple[float, ...]
    below: tuple[float, ...]
    above: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Outlier:
    """A value beyond the axis, drawn as a triangle at ``height``, a share of the panel's height."""

    name: str
    at: float
    height: float
    text: str
    up: bool = False


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One pair of axes; ``y`` is (bottom, top), and falls for metrics to be minimised."""

    title: str
    x: Limits
    y: Limits
    ticks: tuple[Tick, ...]
    x_label: str
    y_label: str = ""  # empty: the panel shares the axis of the one on its left
    ticks_above: tuple[Tick, ...] = ()
    label_above: str = ""
    lines: tuple[PanelLine, ...] = ()
    marks: tuple[Outlier, ...] = ()
    bands: tuple[Limits, ...] = ()
    rules: tuple[float, ...] = ()


@dataclass(frozen=True)
class Placed:
    """A panel with its position, in inches."""

    panel: Panel
    left: float
    bottom: float
    width: float
    height: float

    def across(self, x: float) -> float:
        """Return the horizontal position of a value on the log axis."""
        low, high = self.panel.x
        return self.left + self.width * math.log(x / low) / math.log(high / low)

    def up(self, y: float) -> float:
        """Return the vertical position of a score, clipped to the panel."""
        foot, top = self.panel.y
        return self.bottom + self.height * min(1.0, max(0.0, (y - foot) / ((top - foot) or 1.0)))

    def has(self, y: float) -> bool:
        """Return True if a score lies on the axis."""
        return min(self.panel.y) <= y <= max(self.panel.y)

    def level(self, y: float) -> Segment:
        """Return a horizontal line across the panel at a score."""
        return [(self.left, self.up(y)), (self.left + self.width, self.up(y))]

    @property
    def scores(self) -> tuple[Tick, ...]:
        """The ticks of the score axis."""
        return score_ticks(self.panel.y, most=int(self.height * INCH / (2 * SIZE)))


def figure_of(
    rows: Sequence[Sequence[Panel]],
    styles: Styles,
    *,
    size: tuple[float, float],
    reference: str | None = None,
) -> "Figure":
    """Draw rows of panels with a legend below them.

    ``size`` is width and height in inches with a legend of one row; further rows add to the height.
    """
    from matplotlib.figure import Figure

    handles = _handles(styles, reference)
    columns = _legend_columns(handles, width=size[0])
    lines = -(-len(handles) // columns)
    row = SIZE * (LINE + 0.5) / INCH
    figure = Figure(figsize=(size[0], size[1] + row * max(0, lines - 1)))
    foot = row * lines + EDGE / INCH
    placed = places(rows, width=size[0], height=float(figure.get_figheight()), foot=foot)
    for artist in (*_ground(placed), *_lines(placed, styles), *_marks(placed, styles)):
        artist.set_transform(figure.dpi_scale_trans)
        figure.add_artist(artist)
    for one in placed:
        for text in _texts(one, styles):
            figure.text(transform=figure.dpi_scale_trans, **text)
    figure.legend(handles=handles, loc="lower center", ncols=columns, frameon=False)
    return figure


# Layout -------------------------------------------------------------------------------------------


def places(
    rows: Sequence[Sequence[Panel]], *, width: float, height: float, foot: float
) -> list[Placed]:
    """Lay out rows of panels of equal size, with room for the texts around them."""
    columns = max(map(len, rows))
    heads = [max(map(_head, row)) / INCH for row in rows]
    below = (TICK + 3 * GAP + 2 * LINE * SIZE) / INCH
    room = height - foot - sum(heads) - len(rows) * below - EDGE / INCH
    high = room / len(rows)
    sides = [
        max((_side(row[i], height=high) for row in rows if i < len(row)), default=0.0) / INCH
        for i in range(columns)
    ]
    right = max(EDGE, *(_overhang(row[-1]) for row in rows if len(row) == columns)) / INCH
    wide = (width - sum(sides) - (columns - 1) * SIDE - EDGE / INCH - right) / columns
    placed = []
    top = height - EDGE / INCH
    for row, head in zip(rows, heads, strict=True):
        bottom = top - head - high
        left = EDGE / INCH
        for panel, side in zip(row, sides, strict=False):
            left += side
            placed.append(Placed(panel, left, bottom, wide, high))
            left += wide + SIDE
        top = bottom - below
    return placed


def _head(panel: Panel) -> float:
    """Return the height in points of the texts above a panel's box."""
    above = SMALL_TICK + GAP + 2 * LINE * SMALL if panel.ticks_above else 0.0
    return above + GAP + LINE * SIZE * len(panel.title.split("\n"))


def _side(panel: Panel, *, height: float) -> float:
    """Return the width in points of the texts on the left of a panel's box."""
    if not panel.y_label:
        return 0.0
    ticks = Placed(panel, 0.0, 0.0, 1.0, height).scores
    longest = max((len(text) for _, text in ticks), default=0)
    return TICK + 2 * GAP + DIGIT * SIZE * longest + LINE * SIZE


def _overhang(panel: Panel) -> float:
    """Return how many points the last tick's text may extend beyond the box."""
    at, text = panel.ticks[-1] if panel.ticks else (panel.x[0], "")
    low, high = panel.x
    is_at_end = math.log(at / low) > 0.95 * math.log(high / low)
    return EDGE + DIGIT * SIZE * len(text) / 2 if is_at_end else 0.0


def score_ticks(y: Limits, *, most: int) -> tuple[Tick, ...]:
    """Choose round ticks of a linear axis, with their labels.

    >>> score_ticks((88.0, 95.5), most=8)[:3]
    ((88.0, '88'), (89.0, '89'), (90.0, '90'))
    """
    from matplotlib.ticker import MaxNLocator

    locator: Any = MaxNLocator(nbins=min(9, max(2, most)), steps=[1, 2, 2.5, 5, 10])
    low, high = sorted(y)
    values = [float(v) for v in locator.tick_values(low, high) if low <= v <= high]
    for digits in range(12):
        texts = [f"{value:.{digits}f}" for value in values]
        if all(math.isclose(float(t), v, abs_tol=1e-9) for t, v in zip(texts, values, strict=True)):
            break
    shown = [f"{value:g}" for value in values] if max(map(len, texts), default=0) > 8 else texts
    return tuple(zip(values, (text.replace("-", "\N{MINUS SIGN}") for text in shown), strict=True))


# Artists ------------------------------------------------------------------------------------------


def _ground(placed: Sequence[Placed]) -> Iterator[Any]:
    """Yield the bands, grid, reference lines, axes and ticks of all panels."""
    from matplotlib.collections import PolyCollection

    bands: list[Segment] = []
    grid: list[Segment] = []
    rules: list[Segment] = []
    frame: list[Segment] = []
    fine: list[Segment] = []
    for one in placed:
        left, right, bottom = one.left, one.left + one.width, one.bottom
        top = bottom + one.height
        bands += [one.level(low) + one.level(high)[::-1] for low, high in one.panel.bands]
        rules += [one.level(y) for y in one.panel.rules if one.has(y)]
        grid += [one.level(y) for y, _ in one.scores]
        frame.append([(left, top), (left, bottom), (right, bottom)])
        for x, _ in one.panel.ticks:
            frame.append([(one.across(x), bottom), (one.across(x), bottom - TICK / INCH)])
        for y, _ in one.scores:
            frame.append([(left, one.up(y)), (left - TICK / INCH, one.up(y))])
        if one.panel.ticks_above:
            fine.append([(left, top), (right, top)])
        for x, _ in one.panel.ticks_above:
            fine.append([(one.across(x), top), (one.across(x), top + SMALL_TICK / INCH)])
    if bands:
        yield PolyCollection(bands, facecolors="black", alpha=0.08, linewidths=0, zorder=1)
    yield _stroke(grid, color="#b0b0b0", linewidth=0.4, alpha=0.5, zorder=1.1)
    yield _stroke(frame, color="black", linewidth=0.8, zorder=1.2, solid_capstyle="projecting")
    yield _stroke(fine, color="black", linewidth=0.5, zorder=1.2)
    yield _stroke(rules, color="black", linewidth=COLOURED, linestyle="--", zorder=1.3)


def _stroke(segments: Iterable[Segment], **options: Any) -> Any:
    """Return all segments as one line with gaps between them."""
    from matplotlib.lines import Line2D

    gap = (math.nan, math.nan)
    points = [point for segment in segments for point in (*segment, gap)] or [gap]
    return Line2D(*zip(*points, strict=True), **{"solid_capstyle": "butt"} | options)


def _lines(placed: Sequence[Placed], styles: Styles) -> Iterator[Any]:
    """Yield the error bars and the lines of each name, for all panels."""
    for name, (colour, marker) in styles.items():
        bars: list[Segment] = []
        lines: list[Segment] = []
        for one in placed:
            for line in one.panel.lines:
                if line.name == name:
                    ends = zip(line.at, line.values, line.below, line.above, strict=True)
                    for x, value, below, above in ends:
                        bars += _bar(one, x, value - below, value + above)
                    points = zip(line.at, line.values, strict=True)
                    lines.append([(one.across(x), one.up(value)) for x, value in points])
        yield _stroke(bars, color=colour, linewidth=1.0, zorder=2)
        yield _stroke(lines, **look(colour, marker), zorder=2)


def _bar(one: Placed, x: float, low: float, high: float) -> Iterator[Segment]:
    """Yield the segments of an error bar, with caps on the ends that lie within the panel."""
    if low == high:
        return
    at, cap = one.across(x), CAP / INCH
    yield [(at, one.up(low)), (at, one.up(high))]
    for end in filter(one.has, (low, high)):
        yield [(at - cap, one.up(end)), (at + cap, one.up(end))]


def _marks(placed: Sequence[Placed], styles: Styles) -> Iterator[Any]:
    """Yield the triangles of each name, for all panels."""
    from matplotlib.lines import Line2D

    for name, (colour, _) in styles.items():
        for up in (False, True):
            points = [
                (one.across(mark.at), one.bottom + mark.height * one.height)
                for one in placed
                for mark in one.panel.marks
                if mark.name == name and mark.up == up
            ]
            if points:
                shape: Any = 6 if up else 7
                yield Line2D(
                    *zip(*points, strict=True),
                    marker=shape,
                    color=colour,
                    markersize=5,
                    linestyle="none",
                    zorder=3,
                )


def _texts(one: Placed, styles: Styles) -> Iterator[dict[str, Any]]:
    """Yield the texts of a panel: its ticks, labels, title and the values of its marks."""
    panel, centre, top = one.panel, one.left + one.width / 2, one.bottom + one.height
    below = one.bottom - (TICK + GAP) / INCH
    line = LINE * SIZE / INCH
    for x, text in panel.ticks:
        yield _text(one.across(x), below, text, va="top")
    yield _text(centre, below - line - GAP / 2 / INCH, panel.x_label, va="top")
    if panel.y_label:
        beside = one.left - (TICK + GAP) / INCH
        for y, text in one.scores:
            yield _text(beside, one.up(y), text, ha="right", va="center_baseline")
        left = one.left - _side(panel, height=one.height) / INCH
        middle = one.bottom + one.height / 2
        yield _text(left, middle, panel.y_label, ha="left", va="center", rotation=90)
    above = top + (SMALL_TICK + GAP) / INCH
    for x, text in panel.ticks_above:
        yield _text(one.across(x), above, text, va="bottom", fontsize=SMALL)
    if panel.ticks_above:
        yield _text(
            centre, above + LINE * SMALL / INCH, panel.label_above, va="bottom", fontsize=SMALL
        )
    head = top + _head(panel) / INCH - line * len(panel.title.split("\n"))
    yield _text(centre, head, panel.title, va="bottom")
    for mark in panel.marks:
        offset = -11.0 if mark.up else 5.0
        yield _text(
            one.across(mark.at),
            one.bottom + mark.height * one.height + offset / INCH,
            mark.text,
            va="baseline",
            fontsize=VALUE,
            color=styles[mark.name][0],
        )


def _text(x: float, y: float, s: str, **options: Any) -> dict[str, Any]:
    return {"x": x, "y": y, "s": s, "ha": "center", "fontsize": SIZE} | options


def look(colour: str, marker: str) -> dict[str, Any]:
    """Return the style of a line and its points, whose white edges separate overlapping ones."""
    edge = {"markeredgecolor": "white", "markeredgewidth": 0.4}
    return {"color": colour, "marker": marker, "markersize": 5.5, "linewidth": COLOURED, **edge}


def shown(name: str) -> str:
    """Cut the middle out of a name that is too long for a figure."""
    half = MOST_LETTERS // 2
    return name if len(name) <= MOST_LETTERS else f"{name[:half]}...{name[-half:]}"


# Legend -------------------------------------------------------------------------------------------


def _handles(styles: Styles, reference: str | None) -> list[Any]:
    """Return the handles of the legend, the unpruned network first."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], **look(colour, marker), label=shown(name))
        for name, (colour, marker) in styles.items()
    ]
    if reference is not None:
        line = Line2D([], [], color="black", linestyle="--", linewidth=COLOURED, label=reference)
        handles.insert(0, line)
    return handles


def _legend_columns(handles: Iterable[Any], *, width: float) -> int:
    """Return how many columns the legend has, so that it fits the width."""
    labels = [str(handle.get_label()) for handle in handles]
    longest = max(map(len, labels), default=1)
    fit = max(1, int(width / (0.75 + 0.075 * longest)))  # inches at 9 points
    rows = max(1, math.ceil(len(labels) / fit))
    return max(1, math.ceil(len(labels) / rows))
