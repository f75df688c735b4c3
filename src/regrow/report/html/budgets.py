"""Training budgets on the page: answers, charts of scores and of differences, and tables."""

from collections.abc import Iterator, Mapping, Sequence

from regrow.core.durations import epochs_in_words
from regrow.report import words
from regrow.report.budget_figures import (
    Points,
    difference_points,
    difference_range,
    score_points,
    score_range,
    scratch_arms,
)
from regrow.report.budget_words import answers, how, sentences
from regrow.report.budgets import Curve
from regrow.report.html.chart import Chart, ChartPoint, ReferenceLine, Series
from regrow.report.html.document import Block, Charts, Headline, PageSection, PageTable, Texts, Tone
from regrow.report.html.sections import RowLinks
from regrow.report.render import Extra
from regrow.report.rows import Run
from regrow.tasks.metric import Metric

X = "training budget: epochs and FLOPs (log scale)"
ABOUT = "Budgets are epochs of the unpruned network, with the FLOPs of its training. "


def budget_headlines(curves: Sequence[Curve]) -> Iterator[Headline]:
    """Answer each question over budgets."""
    for answer in answers(curves):
        yield Headline(
            question=answer.question,
            short=answer.short,
            text=answer.text,
            tone=_tone(answer.short),
        )


def budget_section(
    curves: Sequence[Curve], tables: Sequence[Extra], rows: RowLinks, looks: Mapping[str, int]
) -> Iterator[PageSection]:
    """Show every curve; nothing if a study has no training budgets."""
    if not curves:
        return
    blocks: list[Block] = [_score_charts(curves, rows, looks)]
    if any(trend.run for curve in curves for trend in curve.trends):
        blocks.append(_difference_charts(curves, rows, looks))
    blocks += [PageTable.of(t.title, t.columns, t.rows, t.about, named=t.names) for t in tables]
    told = tuple(sentences(curves))
    if told:
        blocks.append(Texts(title="Each line in words", items=told, listed=True, folded=True))
        blocks.append(
            Texts(title="How these answers are computed", items=(how(curves),), folded=True)
        )
    yield PageSection(
        name="budgets",
        title="By training budget",
        lead="The same study at every training budget: what each arm reaches, and what inherited "
        "weights are worth beside training from scratch.",
        blocks=tuple(blocks),
    )


def _tone(short: str) -> Tone:
    if short.startswith(("From ", "At every")):
        return "good" if " rows" not in short else "open"
    return "bad" if short == "At no tried budget" else "open"


def _score_charts(curves: Sequence[Curve], rows: RowLinks, looks: Mapping[str, int]) -> Charts:
    charts = []
    for curve in curves:
        lines = {arm: score_points(curve, arm) for arm in curve.arms}
        low, high = score_range(lines, curve)
        charts.append(
            _chart(
                curve,
                title=curve.name,
                y=curve.metric.axis,
                lines={
                    arm: _series(curve, arm, points, looks, rows) for arm, points in lines.items()
                },
                limits=(low, high),
            )
        )
    names = dict.fromkeys(arm for curve in curves for arm in curve.arms)
    return Charts(
        title="Score against training budget",
        charts=tuple(charts),
        names=tuple((arm, looks.get(arm, 0)) for arm in names),
        about=f"{ABOUT}Means over seeds with 95% intervals (t). Lines at one budget are moved "
        "apart; marks at the edge with a number lie beyond the axis.",
    )


def _difference_charts(curves: Sequence[Curve], rows: RowLinks, looks: Mapping[str, int]) -> Charts:
    charts = []
    for curve in curves:
        metric = curve.metric
        for scratch in scratch_arms([curve]):
            trends = [t for t in curve.trends if t.scratch == scratch and t.run]
            if not trends:
                continue
            margin = trends[0].margin
            lines = {trend.retraining: difference_points(trend) for trend in trends}
            unit = f" ({metric.difference_unit})" if metric.difference_unit else ""
            charts.append(
                _chart(
                    curve,
                    title=f"{curve.name} minus {scratch}",
                    y=f"difference in {metric.name}{unit}",
                    lines={
                        arm: _series(curve, arm, points, looks, rows, signed=True)
                        for arm, points in lines.items()
                    },
                    limits=difference_range(lines, margin),
                    level=ReferenceLine(
                        y=0.0,
                        low=-margin,
                        high=margin,
                        text=f"no difference; within {metric.amount(f'{margin:g}')} counts as "
                        "equivalent",
                    ),
                )
            )
    names = dict.fromkeys(trend.retraining for curve in curves for trend in curve.trends)
    return Charts(
        title="Difference to training from scratch against training budget",
        charts=tuple(charts),
        names=tuple((arm, looks.get(arm, 0)) for arm in names),
        about=f"{ABOUT}Retraining of inherited weights minus training from scratch, paired by "
        "seed, with 95% intervals of each budget alone. Above the dashed line inherited weights "
        "are better; the band is the margin.",
    )


def _chart(
    curve: Curve,
    *,
    title: str,
    y: str,
    lines: Mapping[str, Series],
    limits: tuple[float, float],
    level: ReferenceLine | None = None,
) -> Chart:
    return Chart(
        title=title,
        x=X,
        y=y,
        series=tuple(lines.values()),
        level=level,
        log=True,
        falls=curve.metric.better == "lower",
        least=limits[0],
        most=limits[1],
        digits=curve.metric.digits,
        apart=True,
        ticks=tuple((float(b), str(b), words.quantity(curve.flops(b))) for b in curve.budgets),
    )


def _series(
    curve: Curve,
    arm: str,
    points: Points,
    looks: Mapping[str, int],
    rows: RowLinks,
    *,
    signed: bool = False,
) -> Series:
    runs = {step.budget: step.arms.get(arm, ()) for step in curve.steps}
    marks = []
    for budget, test in points:
        first = next(iter(runs[budget]), None)
        marks.append(
            ChartPoint(
                x=float(budget),
                y=test.difference,
                low=test.low,
                high=test.high,
                text=f"{arm}, {epochs_in_words(budget)}: "
                f"{_number(test.difference, curve.metric, signed)}"
                f"{_interval(test.low, test.high, curve.metric, signed)}, n = {test.n}",
                href=_href(first, rows),
            )
        )
    return Series(name=arm, look=looks.get(arm, 0), points=tuple(marks))


def _href(run: Run | None, rows: RowLinks) -> str:
    return "" if run is None else rows.href(run.group, run.arm)


def _number(value: float, metric: Metric, signed: bool) -> str:
    if signed:
        return words.signed(value, digits=metric.digits)
    return f"{value:.{metric.digits}f}"


def _interval(low: float | None, high: float | None, metric: Metric, signed: bool) -> str:
    if low is None or high is None:
        return ""
    return f", 95% {_number(low, metric, signed)} to {_number(high, metric, signed)}"
