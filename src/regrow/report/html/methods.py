"""Comparisons of methods on the page: all on one axis, then the tables of each contest."""

from collections.abc import Iterator, Mapping, Sequence

from regrow.report.contest_words import answers, name_of, question, short_answer, unequal
from regrow.report.contests import Contest, Entrant, Level
from regrow.report.figures import AXES
from regrow.report.html.chart import MARKS, Chart, ChartPoint, Series
from regrow.report.html.document import Block, Charts, Headline, PageSection, PageTable
from regrow.report.html.sections import RowLinks
from regrow.report.render import Extra
from regrow.report.verdict import Verdict
from regrow.tasks.metric import Metric


def method_headlines(contests: Sequence[Contest]) -> Iterator[Headline]:
    """Summarise each contest; unequal costs are among the cautions."""
    for contest in contests:
        text = next(line for line in answers([contest]) if line not in unequal([contest]))
        asked, rest = question(contest), f"Of {text.partition(': of ')[2]}"
        if contest.reference is not None:
            rest = text.removeprefix(f"{asked} {short_answer(contest)}").lstrip(":. ")
        yield Headline(
            question=asked,
            short=_short(contest) if contest.reference is None else short_answer(contest),
            text=rest if contest.reference is not None or ": of " in text else text,
            tone="open" if not _winners(contest) else "good",
        )


def method_cautions(contests: Sequence[Contest]) -> list[str]:
    """Say once which methods are not compared because their costs differ."""
    return unequal(contests)


def _winners(contest: Contest) -> list[str]:
    """Return the methods that are better than at least one other and worse than none."""
    ahead = [v.arm if v.outcome == "better" else v.against for v in contest.main if _decided(v)]
    behind = {v.against if v.outcome == "better" else v.arm for v in contest.main if _decided(v)}
    return [name for name in dict.fromkeys(ahead) if name not in behind]


def _decided(verdict: Verdict) -> bool:
    return verdict.outcome in ("better", "worse")


def _short(contest: Contest) -> str:
    if not any(verdict.differences for verdict in contest.main):
        return "Not run"
    winners, outcomes = _winners(contest), {verdict.outcome for verdict in contest.main}
    if outcomes == {"equivalent"}:
        return "All equivalent"
    if not any(verdict.counts for verdict in contest.main):
        return "No conclusion"
    if not winners:
        return "Undecided"
    return f"Better than some and worse than none: {', '.join(winners)}"


def method_section(
    contests: Sequence[Contest], tables: Sequence[Extra], rows: RowLinks
) -> Iterator[PageSection]:
    """Show every contest; nothing if methods are not compared."""
    if not contests:
        return
    blocks: list[Block] = [_charts(contests, rows)]
    ways = {
        **{f"methods {contest.arm}": _entrant_hrefs(contest, rows) for contest in contests},
        **{f"pairs {contest.arm}": _pair_hrefs(contest, rows) for contest in contests},
    }
    for table in tables:
        hrefs = ways.get(table.name, [])
        hrefs = hrefs if len(hrefs) == len(table.rows) else []  # one arm has two metrics
        blocks.append(
            PageTable.of(
                table.title,
                table.columns,
                table.rows,
                table.about,
                named=table.names,
                hrefs=hrefs,
            )
        )
    yield PageSection(
        name="methods",
        title="Methods against methods",
        lead="All methods at equal cost, under the same retraining; rows of unequal cost are not "
        "ranked.",
        blocks=tuple(blocks),
    )


def _entrant_hrefs(contest: Contest, rows: RowLinks) -> list[str]:
    """Return the link of each method to its records, in the order of the table."""
    return [_href(entrant, rows) for level in contest.levels for entrant in level.entrants]


def _pair_hrefs(contest: Contest, rows: RowLinks) -> list[str]:
    """Return the link of each comparison to its first method's records, at the first level."""
    return [
        next(
            (
                href
                for level in contest.levels
                if verdict.group in ("", level.name)
                for entrant in level.entrants
                if entrant.method == verdict.arm and (href := _href(entrant, rows))
            ),
            "",
        )
        for verdict in contest.main
    ]


def _href(entrant: Entrant, rows: RowLinks) -> str:
    return rows.href(entrant.runs[0].group, entrant.runs[0].arm) if entrant.runs else ""


def _charts(contests: Sequence[Contest], rows: RowLinks) -> Charts:
    """Return the charts of all contests, in which each method has the same look."""
    entrants = (e for contest in contests for level in contest.levels for e in level.entrants)
    methods = dict.fromkeys(entrant.method for entrant in entrants)
    looks = {method: 1 + number % (len(MARKS) - 1) for number, method in enumerate(methods)}
    charts = []
    for contest in contests:
        panels: dict[tuple[str, str, str], list[Level]] = {}
        for level in contest.levels:
            panels.setdefault((level.data, level.model, level.cost), []).append(level)
        for levels in panels.values():
            lines: dict[str, list[ChartPoint]] = {}
            for level in levels:
                for entrant in level.entrants:
                    if entrant.mean is not None and entrant.cost:
                        point = _point(entrant, level, contest.metric, rows)
                        lines.setdefault(entrant.method, []).append(point)
            if lines:
                charts.append(_chart(contest, levels[0], lines, looks))
    return Charts(
        title="All methods on one axis",
        charts=tuple(charts),
        names=tuple(looks.items()),
        about="Means over seeds with 95% intervals; methods at one place are moved apart.",
    )


def _chart(
    contest: Contest,
    level: Level,
    lines: Mapping[str, Sequence[ChartPoint]],
    looks: Mapping[str, int],
) -> Chart:
    return Chart(
        title=f"{level.data} / {level.model}: {name_of(contest)}",
        x=f"share of {AXES.get(level.cost, level.cost)} left",
        y=contest.metric.axis,
        series=tuple(
            Series(name=method, look=looks[method], points=tuple(points))
            for method, points in lines.items()
        ),
        falls=contest.metric.better == "lower",
        digits=contest.metric.digits,
        apart=True,
    )


def _point(entrant: Entrant, level: Level, metric: Metric, rows: RowLinks) -> ChartPoint:
    assert entrant.mean is not None
    assert entrant.cost is not None
    interval = ""
    if entrant.low is not None and entrant.high is not None:
        interval = f", 95% {entrant.low:.{metric.digits}f} to {entrant.high:.{metric.digits}f}"
    return ChartPoint(
        x=entrant.cost,
        y=entrant.mean,
        low=entrant.low,
        high=entrant.high,
        text=f"{entrant.method} ({level.amount}): {entrant.mean:.{metric.digits}f}{interval}, "
        f"n = {entrant.n}",
        href=_href(entrant, rows),
    )
