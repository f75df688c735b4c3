"""The charts of a study's page: score against cost, training losses, layers, weights."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean

import pandas as pd
from scipy.special import stdtrit

from regrow.report import words
from regrow.report.figures import AXES, SPARE, STYLES, arm_styles, score_limits
from regrow.report.html.chart import Chart, ChartPoint, ReferenceLine, Series
from regrow.report.html.document import Block, Charts, PageCell, PageSection, PageTable
from regrow.report.html.evidence import Histogram, StudyEvidence
from regrow.report.html.sections import RowLinks
from regrow.report.rows import Run, by_panel
from regrow.tasks.metric import Metric

CONFIDENCE = 0.95
MOST_CHARTS = 60  # of one kind
MOST_LAYERS = 60  # columns of the table of layers
# Colours of the figures -> looks, in the order of the style sheet.
_LOOKS = {colour: look for look, (colour, _) in enumerate((*STYLES.values(), *SPARE))}
UNPRUNED_LOOK = 11


def looks(frame: pd.DataFrame) -> dict[str, int]:
    """Return the look of each arm, the same on the whole page and in the report's figures."""
    pruned = frame[frame["sparsity"].notna() | (frame["target"] != "")]
    known = {arm: _LOOKS[colour] for arm, (colour, _) in arm_styles(pruned).items()}
    return {arm: known.get(arm, UNPRUNED_LOOK) for arm in dict.fromkeys(frame["arm"])}


def cost_section(
    frame: pd.DataFrame, metrics: Sequence[Metric], rows: RowLinks
) -> Iterator[PageSection]:
    """Show the score against each cost, a chart for each method; nothing before any result."""
    finished = frame[frame["n"] > 0]
    if not len(finished):
        return
    blocks: list[Block] = []
    by_arm = looks(finished)
    for metric in metrics:
        part = finished[finished["metric"] == metric.key] if "metric" in finished else finished
        for column, label in AXES.items():
            charts = [
                _score_chart(methods, whole, metric, column, by_arm, rows)
                for methods, whole in _panels(part, column)
            ]
            if charts:
                shown = charts[:MOST_CHARTS]
                names = dict.fromkeys(line.name for chart in shown for line in chart.series)
                blocks.append(
                    Charts(
                        title=f"{metric.name[0].upper()}{metric.name[1:]} against {label}",
                        charts=tuple(shown),
                        names=tuple((name, by_arm[name]) for name in names),
                        about="Points are means over seeds, bars 95% intervals of the mean (t, "
                        "none for a single seed), the dashed line with its band the unpruned "
                        "network. Marks at the edge with a number lie beyond the axis."
                        + _not_shown(charts),
                    )
                )
    yield PageSection(name="curves", title="Score and cost", blocks=tuple(blocks))


def _not_shown(charts: Sequence[Chart]) -> str:
    num = len(charts) - MOST_CHARTS
    return (
        f" {num} more are not shown: rows.csv and runs.csv have their numbers." if num > 0 else ""
    )


def _panels(frame: pd.DataFrame, column: str) -> Iterator[tuple[pd.DataFrame, pd.DataFrame]]:
    """Yield the pruned rows and the unpruned rows of each data set, model and method."""
    for _, panel in by_panel(frame):
        pruned = panel["sparsity"].notna() | (panel["target"] != "")
        for method, part in panel[pruned & (panel[column] > 0)].groupby("method", sort=False):
            whole = panel[~pruned]
            own = whole[whole["method"] == method]
            yield part, own if len(own) else whole[:1]


def _score_chart(
    part: pd.DataFrame,
    whole: pd.DataFrame,
    metric: Metric,
    column: str,
    by_arm: Mapping[str, int],
    rows: RowLinks,
) -> Chart:
    first = part.iloc[0]
    foot, _, top = score_limits(pd.concat([whole, part]), metric)
    series = [
        Series(
            name=str(arm),
            look=by_arm[str(arm)],
            points=tuple(_point(row, column, metric, rows) for row in points.to_dict("records")),
        )
        for arm, points in part.groupby("arm", sort=False)
    ]
    level = None
    for row in whole.to_dict("records"):
        point = _point(row, column, metric, rows)
        level = ReferenceLine(
            y=point.y, low=point.low, high=point.high, text=point.text, href=point.href
        )
    bounds = _with_bars((metric.gain(foot), metric.gain(top)), series, level)
    return Chart(
        title=" / ".join((*next(by_panel(part))[0], first["method"])),
        x=f"{AXES[column]} (log scale)",
        y=metric.axis,
        series=tuple(series),
        level=level,
        log=True,
        falls=metric.better == "lower",
        least=bounds[0],
        most=bounds[1],
        digits=metric.digits,
        apart=True,
    )


def _with_bars(
    limits: tuple[float, float], series: Sequence[Series], level: ReferenceLine | None
) -> tuple[float, float]:
    """Widen an axis to show intervals, on each side by at most its own length."""
    low, high = sorted(limits)
    shown: list[ChartPoint | ReferenceLine] = [
        p for line in series for p in line.points if low <= p.y <= high
    ]
    shown += [] if level is None else [level]
    bars = [b for item in shown for b in (item.low, item.high) if b is not None]
    room = high - low
    return max(min([low, *bars]), low - room), min(max([high, *bars]), high + room)


def _point(row: Mapping[object, object], column: str, metric: Metric, rows: RowLinks) -> ChartPoint:
    mean, n = float(str(row["mean"])), int(str(row["n"]))
    std = None if pd.isna(row["std"]) else float(str(row["std"]))  # type: ignore[call-overload]
    half = None if std is None or n < 2 else half_width(std, n)
    interval = ""
    if half is not None:
        interval = f", 95% {mean - half:.{metric.digits}f} to {mean + half:.{metric.digits}f}"
    size = float(str(row[column]))
    amount = row["target"] or ("" if pd.isna(row["sparsity"]) else f"{row['sparsity']:g}")  # type: ignore[call-overload]
    name = " ".join(filter(None, (str(row["arm"]), str(amount))))
    return ChartPoint(
        x=size,
        y=mean,
        low=None if half is None else mean - half,
        high=None if half is None else mean + half,
        text=f"{name}: {mean:.{metric.digits}f}{interval}, n = {n}; "
        f"{words.quantity(size)} {AXES[column]}",
        href=rows.href(str(row["group"]), str(row["arm"])),
    )


def half_width(std: float, n: int) -> float:
    """Return half the width of the 95% interval of a mean.

    >>> round(half_width(1.0, 5), 3)
    1.242
    """
    return float(stdtrit(n - 1, 1 - (1 - CONFIDENCE) / 2) * std / n**0.5)


def training_section(frame: pd.DataFrame, rows: RowLinks) -> Iterator[PageSection]:
    """Show the training loss of each arm by epoch, a chart for each cell."""
    by_arm = looks(frame)
    groups: dict[str, dict[str, tuple[Run, list[float]]]] = {}
    for (group, arm), runs in rows.runs.items():
        losses = [[line["loss"] for line in b.history] for _, b in runs if b.done and b.history]
        if losses:
            length = min(map(len, losses))
            means = [fmean(values[epoch] for values in losses) for epoch in range(length)]
            groups.setdefault(group, {})[arm] = runs[0][0], means
    charts = [_training_chart(group, arms, by_arm, rows) for group, arms in groups.items()]
    charts = [chart for chart in charts if chart.series]
    if charts:
        shown = charts[:MOST_CHARTS]
        names = dict.fromkeys(line.name for chart in shown for line in chart.series)
        block = Charts(
            title="Training loss by epoch",
            charts=tuple(shown),
            names=tuple((name, by_arm[name]) for name in names),
            about="Means over seeds, of each arm's own epochs. Arms may have different training "
            "objectives, or continue from the trained unpruned network." + _not_shown(charts),
        )
        yield PageSection(name="training", title="Training curves", blocks=(block,), optional=True)


def _training_chart(
    group: str,
    arms: Mapping[str, tuple[Run, Sequence[float]]],
    by_arm: Mapping[str, int],
    rows: RowLinks,
) -> Chart:
    series = []
    for arm, (_, losses) in arms.items():
        href = rows.href(group, arm)
        last = len(losses) - 1
        points = tuple(ChartPoint(x=float(epoch + 1), y=loss) for epoch, loss in enumerate(losses))
        series.append(Series(name=arm, look=by_arm[arm], points=points, marks=False))
        end = ChartPoint(
            x=float(last + 1),
            y=losses[last],
            text=f"{arm}: {losses[last]:.4g} after epoch {last + 1}",
            href=href,
        )
        series.append(Series(name=arm, look=by_arm[arm], points=(end,)))
    return Chart(
        title=rows.name(group),
        x="epoch",
        y="training loss (log scale)",
        series=tuple(series),
        log_y=True,
    )


def layer_section(evidence: StudyEvidence, rows: RowLinks) -> Iterator[PageSection]:
    """Show the share of each layer that is kept, as a heat map."""
    first_runs = {group: runs[0][0] for (group, _), runs in rows.runs.items()}
    tables: dict[tuple[tuple[str, ...], str, tuple[str, ...]], list[tuple[PageCell, ...]]] = {}
    for kept in evidence.kept:
        names = tuple(kept.shares)
        run = first_runs[kept.group]
        href = rows.href(kept.group, run.arm)
        cells = [PageCell(text=" ".join(filter(None, (run.cut, kept.rival))))]
        cells += [
            PageCell(text=f"{100 * s:.3g}", shade=s, href=href)
            for s in [*kept.shares.values()][:MOST_LAYERS]
        ]
        tables.setdefault((run.panel, kept.unit, names), []).append(tuple(cells))
    blocks: list[Block] = [
        PageTable(
            title=f"{' / '.join(panel)}: percent of the {unit}s of each group that are kept",
            columns=("pruned by", *short_names(names)[:MOST_LAYERS]),
            rows=tuple(listed),
            about=f"{len(names) - MOST_LAYERS} further layers are not shown."
            if len(names) > MOST_LAYERS
            else "",
        )
        for (panel, unit, names), listed in tables.items()
    ]
    if blocks:
        yield PageSection(
            name="layers",
            title="Share of each layer that is kept",
            lead="On average over seeds, before retraining. Layers stand in the order of "
            "computation; a group of layers that can only be cut together has the name of its "
            "first.",
            blocks=tuple(blocks),
            optional=True,
        )


def short_names(names: Sequence[str]) -> tuple[str, ...]:
    """Strip the common prefix of layer names, and the suffix ``.weight``.

    >>> short_names(["features.conv1.weight", "features.conv2.weight"])
    ('conv1', 'conv2')
    """
    parts = [name.removesuffix(".weight").split(".") for name in names]
    if len(parts) > 1:
        while len({part[0] for part in parts}) == 1 and min(map(len, parts)) > 1:
            parts = [part[1:] for part in parts]
    return tuple(map(".".join, parts))


def weight_section(
    frame: pd.DataFrame, evidence: StudyEvidence, rows: RowLinks
) -> Iterator[PageSection]:
    """Show the distribution of weights of each network."""
    if not evidence.histograms:
        return
    by_arm = looks(frame)
    groups: dict[str, list[Histogram]] = {}
    for histogram in evidence.histograms:
        groups.setdefault(histogram.group, []).append(histogram)
    charts = [
        _weight_chart(rows.name(group), histograms, by_arm) for group, histograms in groups.items()
    ]
    names = dict.fromkeys(h.arm for listed in groups.values() for h in listed)
    notes = "".join(f" {note[0].upper()}{note[1:]}." for note in evidence.notes)
    block = Charts(
        title="Distributions of weights",
        charts=tuple(charts[:MOST_CHARTS]),
        names=tuple((name, by_arm[name]) for name in names),
        about="Densities of the nonzero weights of all layers after training, for one seed each, "
        f"up to three standard deviations from zero.{notes}{_not_shown(charts)}",
    )
    yield PageSection(name="weights", title="Weights", blocks=(block,), optional=True)


def _weight_chart(title: str, histograms: Sequence[Histogram], by_arm: Mapping[str, int]) -> Chart:
    return Chart(
        title=title,
        x="weight",
        y="density",
        series=tuple(
            Series(
                name=h.arm,
                look=by_arm[h.arm],
                points=tuple(
                    ChartPoint(x=x, y=y) for x, y in zip(h.middles, h.densities, strict=True)
                ),
                marks=False,
            )
            for h in histograms
        ),
        least=0.0,
    )
