"""Curves over training budgets as tables and CSV files."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from regrow.report import rows, words
from regrow.report.budget_gains import Gain
from regrow.report.budget_words import better_to, short
from regrow.report.budgets import Curve, Difference, Trend
from regrow.report.render import Extra
from regrow.report.rows import Run
from regrow.report.statistics import mean_and_std, paired
from regrow.tasks.metric import Metric

PLACE = dict.fromkeys(("data", "model", "method", "amount"), rows.TEXT)
PAIR = dict.fromkeys(("retraining", "scratch"), rows.TEXT)
SCORE_COLUMNS = {
    **PLACE,
    "budget": rows.COUNT,
    "arm": rows.TEXT,
    **dict.fromkeys(("n", "n_expected"), rows.COUNT),
    **dict.fromkeys(("mean", "std", "low", "high"), rows.POINTS),
    "epochs": rows.LENGTH,
    **dict.fromkeys(("training_flops", "unpruned_flops"), rows.FLOPS),
    "metric": rows.TEXT,
}
DIFFERENCE_COLUMNS = {
    **PLACE,
    **PAIR,
    "budget": rows.COUNT,
    **dict.fromkeys(("n", "n_expected"), rows.COUNT),
    **dict.fromkeys(("margin", "difference", "std", "low", "high"), rows.POINTS),
    **dict.fromkeys(("low_90", "high_90"), rows.POINTS),
    **dict.fromkeys(("p", "p_equivalence", "p_enough", "p_within", "p_scratch"), rows.LOSS),
    "p_inherited": rows.LOSS,
    "needed": rows.COUNT,
    "reasons": rows.TEXT,
}
ANSWER_COLUMNS = {
    **PLACE,
    **PAIR,
    "answer": rows.TEXT,
    **dict.fromkeys(
        ("enough_from", "within_from", "scratch_better_from", "inherited_better_to"), rows.COUNT
    ),
    "inherited_better_at_largest": rows.FLAG,
    "p_largest": rows.LOSS,
    "margin": rows.POINTS,
    **dict.fromkeys(("gain_from", "gain_to"), rows.COUNT),
    **dict.fromkeys(("gain", "gain_low", "gain_high"), rows.POINTS),
    "gain_state": rows.TEXT,
}
SCORES = (
    "A line for each training budget: the epochs of the unpruned network and the FLOPs of its "
    f"training. Mean {words.PLUS_MINUS} standard deviation (n - 1) over {{n}}."
)
COSTS = (
    "Training FLOPs of each row with every training that it depends on (a multiply-add is 2), and "
    "the epochs of the arm itself."
)
ANSWERS = (
    "'Better to': the largest budget up to which the retraining is shown to be better. 'Enough "
    "from': the budget from which on training from scratch is shown to be worse by less than the "
    "margin; 'within from': to differ by less than it in either direction; 'scratch better from': "
    "to be better. Every larger tried budget is shown too. The difference is the retraining minus "
    "training from scratch at the largest budget."
)
DIFFERENCES = (
    "The retraining minus training from scratch, paired by seed, with the 95% interval at this "
    "budget alone. 'Shown' is what the tests in their order over all budgets allow."
)
GAINS = (
    "What the unpruned network gains from one budget to the next, paired by seed, with the 95% "
    "interval of each step alone. 'Settled': shown to be less than the margin of {margin} "
    "(one-sided t test); 'gaining': shown to be above zero, and not settled. The judgement by the "
    "training loss at the larger budget stands beside it and is not used."
)
BY_LOSS = {"not converged": "not converged", "convergence unknown": "not known"}


def tables(curves: Sequence[Curve]) -> tuple[Extra, ...]:
    """Return all tables of curves: answers, scores and costs of each, differences, and gains."""
    if not curves:
        return ()
    parts = [part for curve in curves for part in (_scores(curve), _costs(curve))]
    with_trends = [curve for curve in curves if curve.trends]
    found = [*([_answers(with_trends)] if with_trends else []), *parts]
    found += [_differences(curve) for curve in with_trends]
    return (*found, *_gains(curves))


def latex_tables(curves: Sequence[Curve]) -> tuple[Extra, ...]:
    """Return the tables that fit an article's page: answers, and scores with a row for each arm."""
    with_trends = [curve for curve in curves if curve.trends]
    answers = [_answers(with_trends)] if with_trends else []
    return (*(replace(table, wide=1) for table in answers), *(_turned(_scores(c)) for c in curves))


def _turned(table: Extra) -> Extra:
    """Transpose a table of scores by budget: a row for each arm, a column for each budget."""
    budgets = [row[0] for row in table.rows]
    columns = list(zip(table.columns, *table.rows, strict=True))[1:]
    return replace(
        table, columns=("epochs", *budgets), rows=tuple(tuple(column) for column in columns)
    )


def csv_files(curves: Sequence[Curve]) -> dict[str, str]:
    """Return every number of the curves as CSV texts by file name; none without curves."""
    if not curves:
        return {}
    files = {
        "budgets.csv": (_score_rows, SCORE_COLUMNS),
        "budget-differences.csv": (_difference_rows, DIFFERENCE_COLUMNS),
        "budget-answers.csv": (_answer_rows, ANSWER_COLUMNS),
    }
    return {
        name: rows.to_csv(
            rows.to_frame([row for curve in curves for row in make(curve)], columns), columns
        )
        for name, (make, columns) in files.items()
    }


# Tables -------------------------------------------------------------------------------------


def _scores(curve: Curve) -> Extra:
    numbers = {len(_done(runs)) for step in curve.steps for runs in step.arms.values()}
    alike = len(numbers) == 1
    lines = []
    for step in curve.steps:
        cells = [_score(step.arms.get(arm, ()), curve.metric, alike=alike) for arm in curve.arms]
        lines.append((str(step.budget), words.quantity(curve.flops(step.budget)), *cells))
    how = f"{words.num_seeds(max(numbers), max(numbers))}" if alike else "n seeds"
    return Extra(
        name="budget-scores",
        title=f"{curve.name}: {curve.metric.head} by training budget",
        columns=("epochs", "FLOPs", *curve.arms),
        rows=tuple(lines),
        about=SCORES.format(n=how),
        csv="",
    )


def _score(runs: Sequence[Run], metric: Metric, *, alike: bool) -> str:
    scores = [run.score for run in _done(runs) if run.score is not None]
    if not runs:
        return ""
    mean, std = mean_and_std(scores) if scores else (None, None)
    text = words.score(mean, std, len(scores), digits=metric.digits)
    return text if alike or not scores else f"{text} (n = {len(scores)})"


def _costs(curve: Curve) -> Extra:
    lines = []
    for step in curve.steps:
        cells = []
        for arm in curve.arms:
            done = _done(step.arms.get(arm, ()))
            epochs = _mean([float(run.epochs) for run in done if run.epochs is not None])
            flops = _mean([run.training_flops for run in done if run.training_flops is not None])
            text = words.quantity(flops)
            cells.append(f"{text}, {epochs:.4g} ep." if text and epochs is not None else text)
        lines.append((str(step.budget), *cells))
    return Extra(
        name="budget-costs",
        title=f"{curve.name}: training FLOPs and epochs by training budget",
        columns=("epochs", *curve.arms),
        rows=tuple(lines),
        about=COSTS,
        csv="",
    )


def _answers(curves: Sequence[Curve]) -> Extra:
    several = len(curves) > 1
    lines = [
        (*([curve.name] if several else []), *_answer(trend))
        for curve in curves
        for trend in curve.trends
    ]
    columns = (
        *("retraining", "against", "as good", "better to", "enough from", "within from"),
        *("scratch better from", "at the largest"),
    )
    title = "as good as the retraining, from which training budget on"
    return Extra(
        name="budget-answers",
        title=f"Training from scratch {title}" if several else f"{curves[0].name}: {title}",
        columns=("pruned by", *columns) if several else columns,
        rows=tuple(lines),
        about=ANSWERS,
        csv="",
        names=3 if several else 2,
    )


def _answer(trend: Trend) -> tuple[str, ...]:
    last = trend.differences[-1]
    budgets = (trend.enough_from, trend.within_from, trend.scratch_from)
    return (
        trend.retraining,
        trend.scratch,
        short(trend),
        better_to(trend),
        *("" if budget is None else str(budget) for budget in budgets),
        _interval(last, trend.metric),
    )


def _differences(curve: Curve) -> Extra:
    lines = [
        (
            trend.retraining,
            trend.scratch,
            str(d.budget),
            _interval(d, trend.metric),
            words.seeds(d.n, d.verdict.n_expected),
            "" if d.test is None or d.test.p is None else _p(d.test.p),
            _shown(d, trend),
        )
        for trend in curve.trends
        for d in trend.differences
    ]
    return Extra(
        name="budget-differences",
        title=f"{curve.name}: difference to training from scratch by training budget",
        columns=("retraining", "against", "epochs", "difference", "n", "p alone", "shown"),
        rows=tuple(lines),
        about=DIFFERENCES,
        csv="",
        names=3,
    )


def _gains(curves: Sequence[Curve]) -> Iterator[Extra]:
    networks: dict[tuple[str, str, str], Curve] = {}
    for curve in curves:
        networks.setdefault((curve.data, curve.model, curve.metric.key), curve)
    lines = [
        (
            f"{curve.data} / {curve.model}",
            f"{gain.smaller} to {gain.larger}",
            _gain(gain),
            str(gain.comparison.n),
            gain.state,
            _by_loss(curve, gain),
        )
        for curve in networks.values()
        for gain in curve.gains
    ]
    margins = dict.fromkeys(
        gain.metric.amount(f"{gain.margin:g}") for c in networks.values() for gain in c.gains
    )
    if lines:
        yield Extra(
            name="budget-gains",
            title="What the unpruned network gains from a longer training",
            columns=("network", "epochs", "gain", "n", "measured", "by its loss"),
            rows=tuple(lines),
            about=GAINS.format(margin=" or ".join(margins)),
            csv="",
            names=2,
        )


def _by_loss(curve: Curve, gain: Gain) -> str:
    reasons = curve.by_loss.get(gain.larger)
    if reasons is None:
        return "no loss known"
    rules = [reason.rule for reason in reasons]
    return next((text for rule, text in BY_LOSS.items() if rule in rules), "converged")


def _gain(gain: Gain) -> str:
    test, digits = gain.comparison, gain.metric.digits
    text = words.signed(test.difference, digits=digits)
    if test.low is None or test.high is None:
        return text
    low, high = (words.signed(bound, digits=digits) for bound in (test.low, test.high))
    return f"{text} ({low} to {high})"


def _interval(difference: Difference, metric: Metric) -> str:
    test = difference.test
    if test is None:
        return "not run"
    text = words.signed(test.difference, digits=metric.digits)
    if test.low is None or test.high is None:
        return text
    low, high = (words.signed(bound, digits=metric.digits) for bound in (test.low, test.high))
    return f"{text} ({low} to {high})"


def _shown(difference: Difference, trend: Trend) -> str:
    """Name the claims that are shown at one budget."""
    if difference.test is None:
        return "not run"
    reason = difference.verdict.left_out_for
    if reason is not None:
        return f"nothing: {reason.rule}"
    claims = (
        (difference.p_inherited, f"{trend.retraining} better"),
        (difference.p_within, "within the margin"),
        (difference.p_scratch, f"{trend.scratch} better"),
        (difference.p_enough, f"{trend.scratch} enough"),
    )
    shown = [text for p, text in claims if p is not None and p < trend.alpha]
    if difference is trend.run[-1] and trend.never_enough and claims[0][1] not in shown:
        shown.insert(0, claims[0][1])
    if "within the margin" in shown or claims[2][1] in shown:
        shown = [text for text in shown if text != claims[3][1]]
    return ", ".join(shown) or "nothing"


def _p(p: float) -> str:
    return words.p_value(p).removeprefix("p = ").removeprefix("p ")


def _done(runs: Sequence[Run]) -> list[Run]:
    return [run for run in runs if run.done]


def _mean(values: Sequence[float]) -> float | None:
    return mean_and_std(values)[0] if values else None


# Files --------------------------------------------------------------------------------------


def _place(curve: Curve) -> dict[str, object]:
    return {name: getattr(curve, name) for name in PLACE}


def _score_rows(curve: Curve) -> Iterator[dict[str, object]]:
    for step in curve.steps:
        for arm, runs in step.arms.items():
            done = _done(runs)
            scores = [run.score for run in done if run.score is not None]
            mean, std = mean_and_std(scores) if scores else (None, None)
            test = paired(scores, [0.0] * len(scores)) if scores else None
            yield {
                **_place(curve),
                "budget": step.budget,
                "arm": arm,
                "n": len(scores),
                "n_expected": len(runs),
                "mean": mean,
                "std": std,
                "low": test.low if test else None,
                "high": test.high if test else None,
                "epochs": _mean([float(r.epochs) for r in done if r.epochs is not None]),
                "training_flops": _mean(
                    [r.training_flops for r in done if r.training_flops is not None]
                ),
                "unpruned_flops": curve.flops(step.budget),
                "metric": curve.metric.key,
            }


def _difference_rows(curve: Curve) -> Iterator[dict[str, object]]:
    empty = dict.fromkeys(("difference", "std", "low", "high", "p"))
    for trend in curve.trends:
        for d in trend.differences:
            equal = d.verdict.equivalence
            yield {
                **(vars(d.test) if d.test else empty),
                **vars(d),
                **_place(curve),
                "retraining": trend.retraining,
                "scratch": trend.scratch,
                "n": d.n,
                "n_expected": d.verdict.n_expected,
                "margin": trend.margin,
                "low_90": equal.low if equal else None,
                "high_90": equal.high if equal else None,
                "p_equivalence": equal.p if equal else None,
                "reasons": "; ".join(reason.text for reason in d.verdict.reasons),
            }


def _answer_rows(curve: Curve) -> Iterator[dict[str, object]]:
    gain = curve.last_gain
    for trend in curve.trends:
        yield {
            **_place(curve),
            "retraining": trend.retraining,
            "scratch": trend.scratch,
            "answer": short(trend),
            "enough_from": trend.enough_from,
            "within_from": trend.within_from,
            "scratch_better_from": trend.scratch_from,
            "inherited_better_to": trend.better_to,
            "inherited_better_at_largest": trend.never_enough,
            "p_largest": trend.p_largest,
            "margin": trend.margin,
            "gain_from": gain.smaller if gain else None,
            "gain_to": gain.larger if gain else None,
            "gain": gain.comparison.difference if gain else None,
            "gain_low": gain.comparison.low if gain else None,
            "gain_high": gain.comparison.high if gain else None,
            "gain_state": gain.state if gain else "",
        }
