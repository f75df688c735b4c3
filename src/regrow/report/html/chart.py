"""Charts as values, and the positions of their marks in a small SVG.

Not drawn by matplotlib, because a page is also read on a phone and in dark mode: here text stays
text, colours follow the page, each point is a link with its value, and a chart takes 2 to 6 kB
instead of the 30 to 100 kB of matplotlib.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from regrow.report.figures import log_ticks
from regrow.report.words import short

WIDTH, HEIGHT = 340.0, 230.0
LEFT, RIGHT, TOP, BOTTOM = 48.0, 12.0, 12.0, 40.0
STRIP_WIDTH, STRIP_HEIGHT = 170.0, 20.0
APART, MOST_APART = 5.0, 22.0  # pixels between neighbouring lines, and at most from first to last
MOST_POINTS = 80  # of a line without marks
# Outlines of marks with a radius of about 4.5 pixels, by look; the style sheet has the colours.
MARKS = (
    "M-4 -4L4 4M-4 4L4 -4",
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0Z",
    "M0 -4.6L4.4 3.6H-4.4Z",
    "M-3.6 -3.6H3.6V3.6H-3.6Z",
    "M0 -5L4.4 0L0 5L-4.4 0Z",
    "M0 4.6L4.4 -3.6H-4.4Z",
    "M-1.5 -4.5H1.5V-1.5H4.5V1.5H1.5V4.5H-1.5V1.5H-4.5V-1.5H-1.5Z",
    "M-4.6 0L3.6 -4.4V4.4Z",
    "M4.6 0L-3.6 -4.4V4.4Z",
    "M-4.4 -2.5L0 -5L4.4 -2.5V2.5L0 5L-4.4 2.5Z",
    "M0 -5L1.3 -1.6L5 -1.6L2 .7L3 4.3L0 2.2L-3 4.3L-2 .7L-5 -1.6L-1.3 -1.6Z",
    "M-4.5 -1.5H4.5V1.5H-4.5Z",
)


@dataclass(frozen=True, kw_only=True)
class ChartPoint:
    """One value of a series, with its interval, its description and a link to its records."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    text: str = ""
    href: str = ""


@dataclass(frozen=True, kw_only=True)
class Series:
    """The points of one line of a chart, with or without marks."""

    name: str
    look: int
    points: tuple[ChartPoint, ...]
    marks: bool = True


@dataclass(frozen=True, kw_only=True)
class ReferenceLine:
    """A value that does not depend on x, with its interval: a dashed line with a band."""

    y: float
    low: float | None = None
    high: float | None = None
    text: str = ""
    href: str = ""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One panel of a chart.

    ``least`` and ``most`` are the limits of the y axis; values beyond are drawn at its edge.
    ``falls`` inverts the y axis, for scores to be minimised. ``ticks`` replace round numbers on the
    x axis; each has a label and a smaller second label below.
    """

    title: str
    x: str
    y: str
    series: tuple[Series, ...]
    level: ReferenceLine | None = None
    log: bool = False
    falls: bool = False
    least: float | None = None
    most: float | None = None
    digits: int = 2
    log_y: bool = False
    ticks: tuple[tuple[float, str, str], ...] = ()
    apart: bool = False  # series are offset a little, so that points at equal x do not overlap

    @property
    def about(self) -> str:
        """A description of the chart, for readers who cannot see it."""
        names = ", ".join(series.name for series in self.series)
        return f"{self.title}: {self.y} against {self.x}. Lines: {names or 'none'}."


@dataclass(frozen=True, kw_only=True)
class Strip:
    """A difference with its interval and the margin, on the same axis in all rows of a table."""

    value: float
    low: float | None
    high: float | None
    margin: float
    reach: float  # half the length of the axis, which is centred on zero
    text: str = ""


@dataclass
class DrawnChart:
    """The marks of a chart, in pixels."""

    x_ticks: list[tuple[float, str]] = field(default_factory=list)
    below: list[tuple[float, str]] = field(default_factory=list)  # smaller, under the x ticks
    y_ticks: list[tuple[float, str]] = field(default_factory=list)
    level: dict[str, Any] | None = None
    lines: list[tuple[int, str]] = field(default_factory=list)
    marks: list[dict[str, Any]] = field(default_factory=list)


def draw(chart: Chart) -> DrawnChart:
    """Compute the positions of all marks of a chart."""
    drawn = DrawnChart()
    points = [point for series in chart.series for point in series.points]
    on_axis = [*(point.x for point in points), *(at for at, _, _ in chart.ticks)]
    place_x, drawn.x_ticks = _x_axis(chart, on_axis)
    place_y, drawn.y_ticks = _y_axis(chart, points)
    drawn.below = [(place_x(at), text) for at, _, text in chart.ticks if text]
    foot, head = HEIGHT - BOTTOM, TOP

    def inside(y: float) -> float:
        return min(max(place_y(y), head), foot)

    if chart.level is not None:
        level = chart.level
        edges = sorted(inside(level.y if y is None else y) for y in (level.low, level.high))
        drawn.level = {"y": inside(level.y), "top": edges[0], "height": edges[1] - edges[0]}
    gaps = len(chart.series) - 1
    step = min(APART, MOST_APART / max(1, gaps)) if chart.apart else 0.0
    for number, series in enumerate(chart.series):
        aside = step * (number - gaps / 2)
        ordered = sorted(series.points, key=lambda point: point.x)
        thin = ordered if series.marks else _thinned(ordered)
        places = [(place_x(point.x) + aside, inside(point.y)) for point in thin]
        on_it = [
            (x, y) for p, (x, y) in zip(thin, places, strict=True) if abs(place_y(p.y) - y) < 1
        ]
        drawn.lines.append((series.look, _path(on_it)))
        for point, (x, y) in zip(thin, places, strict=True) if series.marks else ():
            beyond = abs(place_y(point.y) - y) > 0.5
            whisker = [inside(b) for b in (point.low, point.high) if b is not None]
            drawn.marks.append(
                {
                    "x": x,
                    "y": y,
                    "look": series.look,
                    "bar": whisker if len(whisker) == 2 and not beyond else [],
                    "value": f"{point.y:.{chart.digits}f}" if beyond else "",
                    "point": point,
                }
            )
    return drawn


def _path(places: Sequence[tuple[float, float]]) -> str:
    """Return the SVG path that joins points by straight lines."""
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places) if places else ""


def _thinned(points: Sequence[ChartPoint]) -> list[ChartPoint]:
    """Thin out the points of a long line, keeping the first and the last."""
    step = max(1, math.ceil(len(points) / MOST_POINTS))
    return [p for i, p in enumerate(points) if i % step == 0 or i == len(points) - 1]


Place = Callable[[float], float]
Ticks = list[tuple[float, str]]


def _x_axis(chart: Chart, values: Sequence[float]) -> tuple[Place, Ticks]:
    width = WIDTH - LEFT - RIGHT
    low, high = (min(values), max(values)) if values else (1.0, 10.0)
    if chart.log:
        room = max(0.06 * math.log(high / low), math.log(1.15))
        first, last = math.log(low) - room, math.log(high) + room
        ticks = log_ticks(math.exp(first), math.exp(last))

        def place(x: float) -> float:
            return LEFT + width * (math.log(x) - first) / (last - first)

    else:
        room = (0.07 * (high - low) or 0.05 * abs(high) or 0.5) if chart.apart else 0.0
        first, last = low - room, (high if high > low else low + (not room)) + room
        ticks = _round_ticks(first, last)

        def place(x: float) -> float:
            return LEFT + width * (x - first) / (last - first)

    if chart.ticks:
        return place, [(place(at), text) for at, text, _ in chart.ticks]
    return place, [(place(tick), short(tick)) for tick in ticks]


def _y_axis(chart: Chart, points: Iterable[ChartPoint]) -> tuple[Place, Ticks]:
    bounds = [b for point in points for b in (point.y, point.low, point.high) if b is not None]
    level = chart.level
    bounds += (
        [] if level is None else [b for b in (level.y, level.low, level.high) if b is not None]
    )
    low, high = (min(bounds), max(bounds)) if bounds else (0.0, 1.0)
    low = low if chart.least is None else chart.least
    high = high if chart.most is None else chart.most
    height = HEIGHT - TOP - BOTTOM
    if chart.log_y and low > 0:
        low, high = low / 1.15, high * 1.15

        def place_log(y: float) -> float:
            return TOP + height * (1.0 - math.log(y / low) / math.log(high / low))

        return place_log, [(place_log(tick), f"{tick:g}") for tick in log_ticks(low, high)]
    if high <= low:
        low, high = low - 0.5, low + 0.5
    ticks = _round_ticks(low, high)

    def place(y: float) -> float:
        share = (y - low) / (high - low)
        return TOP + height * (share if chart.falls else 1.0 - share)

    return place, [(place(tick), f"{tick:g}") for tick in ticks]


def _round_ticks(low: float, high: float) -> list[float]:
    """Choose at most six round numbers on a linear axis.

    >>> _round_ticks(0.13, 2.4), _round_ticks(96.1, 99.2)
    ([0.5, 1.0, 1.5, 2.0], [97.0, 98.0, 99.0])
    """
    power = 10.0 ** math.floor(math.log10((high - low) / 5.5))
    step = next(s * power for s in (1, 2, 5, 10, 20) if (high - low) / (s * power) < 5.5)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(step * i, 10) for i in range(first, last + 1)]


def draw_strip(strip: Strip) -> dict[str, float]:
    """Compute the positions of the marks of a strip."""

    def place(value: float) -> float:
        inside = min(max(value, -strip.reach), strip.reach)
        return STRIP_WIDTH / 2 * (1 + inside / strip.reach)

    return {
        "zero": place(0.0),
        "left": place(-strip.margin),
        "margin": place(strip.margin) - place(-strip.margin),
        "low": place(strip.value if strip.low is None else strip.low),
        "high": place(strip.value if strip.high is None else strip.high),
        "value": place(strip.value),
    }
