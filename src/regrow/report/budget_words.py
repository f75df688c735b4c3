"""Curves over training budgets in words: answers, sentences, and limits of the schedules."""

from collections import Counter
from collections.abc import Iterator, Sequence

from regrow.core.durations import epochs_in_words
from regrow.core.texts import listed
from regrow.report.answer import Answer
from regrow.report.budget_gains import Gain
from regrow.report.budgets import Claim, Curve, Difference, Trend
from regrow.report.rows import Run
from regrow.report.validity import CLEARLY_LESS, gain_words, spent
from regrow.report.words import p_value, signed
from regrow.tasks.metric import Metric

MANY = 1000  # seeds; larger estimates are not given as a number
MOST_NAMES = 4  # most rows that an answer names
HOW = (
    "How answers over budgets are computed: at every budget, arms are compared seed by seed. "
    "'From X on' is tested at the largest budget first, then at the next smaller one, and so on "
    "until a test is not significant: that training from scratch is at most the margin worse "
    "(one-sided t test), that the difference lies within the margin (TOST), that training from "
    "scratch is better (paired t test). 'Better up to X' is tested from the smallest budget up. "
    "Because the order is fixed beforehand, each kind of claim is false in at most {alpha:g} of "
    "studies without a correction for the number of budgets (Maurer et al., 1995); over several "
    "rows the level is shared as in Bretz et al. (2009), which is Holm's procedure at each "
    "budget. The unpruned network's gain from one budget to the next is also paired by seed; its "
    "convergence is judged by this gain instead of the loss."
)


def answers(curves: Sequence[Curve]) -> Iterator[Answer]:
    """Answer from which budget on training from scratch is enough, and if longer training gains."""
    for (retraining, scratch, metric), trends in _pairs(curves).items():
        several = len({curve.metric for curve in curves}) > 1
        by = f" ({metric.name})" if several else ""
        yield Answer(
            question=f"From which training budget on is {scratch} as good as {retraining}{by}?",
            short=_short_of([trend for _, trend in trends]),
            text=_text_of(trends),
        )
    networks: dict[tuple[str, ...], tuple[Curve, Gain]] = {}
    for curve in curves:
        if curve.last_gain is not None:
            networks.setdefault(
                (curve.data, curve.model, curve.metric.key), (curve, curve.last_gain)
            )
    for curve, gain in networks.values():
        yield Answer(
            question=f"Does the unpruned network ({curve.data} / {curve.model}) still gain from "
            "the last step of the budget?",
            short=_gain_short(gain),
            text=_gain_text(curve, gain),
        )


def how(curves: Sequence[Curve]) -> str:
    """Return an explanation of how the answers are computed."""
    alphas = [trend.alpha for curve in curves for trend in curve.trends]
    return HOW.format(alpha=max(alphas, default=0.05))


def sentences(curves: Sequence[Curve]) -> list[str]:
    """Describe every trend of every curve."""
    return [f"{curve.name}: {sentence(trend)}" for curve in curves for trend in curve.trends]


def sentence(trend: Trend) -> str:
    """Describe one trend: its differences, what they show, and the budgets that show nothing."""
    if not trend.run:
        return f"{trend.retraining} minus {trend.scratch} has not run at any budget."
    parts = [_values(trend), *_claims(trend), *_open(trend), *_left_out(trend), *_missing(trend)]
    return " ".join(parts)


def short(trend: Trend) -> str:
    """Answer briefly from which budget on training from scratch is as good, for one trend."""
    text = _enough(trend)
    better = trend.scratch_from is not None and trend.scratch_from == trend.enough_from
    return f"{text}, then better" if better else text


def better_to(trend: Trend) -> str:
    """Format the budget up to which inherited weights are better, and if FLOPs are unequal."""
    if trend.better_to is None:
        return ""
    return f"{trend.better_to}{' (unequal FLOPs)' if [*_unequal(trend)] else ''}"


def _enough(trend: Trend) -> str:
    """Answer from which budget on training from scratch is enough, whether or not it is better."""
    if not trend.run:
        return "Not run"
    start = trend.enough_from
    if start is None:
        return "At no tried budget" if trend.never_enough else "Undecided"
    every = start == trend.run[0].budget
    return "At every tried budget" if every else f"From {epochs_in_words(start)} on"


def schedule_notes(curves: Sequence[Curve]) -> list[str]:
    """List the arms whose lengths were rounded or capped, or do not scale with the budget."""
    rows: dict[str, dict[int, list[Run]]] = {}
    for curve in curves:
        for step in curve.steps:
            for arm, runs in step.arms.items():
                if runs and runs[0].trained:
                    rows.setdefault(arm, {}).setdefault(step.budget, []).extend(runs)
    notes: dict[str, list[str]] = {}
    whole = {
        (run.panel, run.seed): run
        for curve in curves
        for step in curve.steps
        for runs in step.arms.values()
        for run in runs
        if run.unpruned and run.done
    }
    for arm, by_budget in rows.items():
        for text in (
            *_rounded(by_budget),
            *_capped(by_budget),
            *_unspent(by_budget, whole),
            *_fixed(by_budget),
        ):
            notes.setdefault(text, []).append(arm)
    return [f"Training budgets, {listed(arms)}: {text}." for text, arms in notes.items()]


# Answers ------------------------------------------------------------------------------------

Pair = tuple[str, str, Metric]


def _pairs(curves: Sequence[Curve]) -> dict[Pair, list[tuple[Curve, Trend]]]:
    """Group trends by pair of arms and metric."""
    pairs: dict[Pair, list[tuple[Curve, Trend]]] = {}
    for curve in curves:
        for trend in curve.trends:
            key = trend.retraining, trend.scratch, trend.metric
            pairs.setdefault(key, []).append((curve, trend))
    return pairs


def _short_of(trends: Sequence[Trend]) -> str:
    """Return the answer that all rows share, or the most frequent one with its number of rows."""
    found = Counter(map(short if len(trends) == 1 else _enough, trends))
    text, num = found.most_common(1)[0]
    return text if num == len(trends) else f"{text} in {num} of {len(trends)} rows"


def _text_of(trends: Sequence[tuple[Curve, Trend]]) -> str:
    """Describe a single trend in full; of several, list which rows have which answer."""
    if len(trends) == 1:
        return sentence(trends[0][1])
    rows: dict[str, list[str]] = {}
    for curve, trend in trends:
        rows.setdefault(_enough(trend), []).append(curve.name)
    end = " ".join([_at_largest([trend for _, trend in trends]), *_unequal_leads(trends)])
    if len(rows) == 1:
        return f"in each of {len(trends)} rows. {end}"
    parts = []
    for text, names in sorted(rows.items(), key=lambda row: -len(row[1])):
        more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
        shown = "; ".join(names[:MOST_NAMES])
        parts.append(
            f"{text[0].lower()}{text[1:]} in {len(names)} of {len(trends)} ({shown}{more})"
        )
    return f"{'; '.join(parts)}. {end}"


def _unequal_leads(trends: Sequence[tuple[Curve, Trend]]) -> Iterator[str]:
    """Name the rows where inherited weights lead, but scratch training had fewer FLOPs."""
    found = [(curve.name, trend, text) for curve, trend in trends for text in _unequal(trend)]
    if found:
        name, trend, text = found[0]
        more = f"; and {len(found) - 1} more" if len(found) > 1 else ""
        yield (
            f"{trend.retraining} is better up to {epochs_in_words(trend.better_to)} in "
            f"{name}{more}. {text}"
        )


def _at_largest(trends: Sequence[Trend]) -> str:
    """Give the range of the differences at the largest budget of each row."""
    metric = trends[0].metric
    values = [test.difference for t in trends if (test := t.differences[-1].test) is not None]
    if not values:
        return "The largest budget is not run."
    low, high = (signed(value, digits=metric.digits) for value in (min(values), max(values)))
    return (
        f"At the largest budget {trends[0].retraining} minus {trends[0].scratch} is {low} to "
        f"{metric.amount(high)}."
    )


def _gain_short(gain: Gain) -> str:
    if gain.state == "settled":
        return "No, less than the margin"
    return "Yes" if gain.state == "gaining" else "Undecided"


def _gain_text(curve: Curve, gain: Gain) -> str:
    words = gain_words(gain)
    within = gain.metric.amount(f"{gain.margin:g}")
    if gain.state == "settled":
        bound = "" if gain.most is None else f", at most {gain.most:.{gain.metric.digits}f}"
        text = f"{words}; shown to be less than {within}{bound} (one-sided 95% bound)"
    elif gain.state == "gaining":
        text = (
            f"{words}. Conclusions at {epochs_in_words(gain.larger)} hold for that budget; a "
            "larger one may change them"
        )
    else:
        text = f"{words}, which shows neither a gain nor that it is less than {within}"
    return f"{text}. {_by_loss(curve, gain)}"


def _by_loss(curve: Curve, gain: Gain) -> str:
    """Say that this gain decides on convergence, and what the training loss alone would say."""
    reasons = curve.by_loss.get(gain.larger)
    if reasons is None:
        return "Convergence is judged by this gain; no training loss is known."
    rules = [reason.rule for reason in reasons]
    if "not converged" in rules:
        found = "it had not converged"
    else:
        found = "that is not known" if rules else "it had converged"
    return f"Convergence is judged by this gain; by its training loss alone {found}."


# Sentences ----------------------------------------------------------------------------------


def _values(trend: Trend) -> str:
    """Format the mean differences: ``a minus b is +3.61 at 2, +0.13 at 4 epochs (n = 5)``."""
    metric, run = trend.metric, trend.run
    values = [
        f"{signed(d.test.difference, digits=metric.digits)} at {d.budget}"
        for d in run
        if d.test is not None
    ]
    ns = sorted({d.n for d in run})
    n = f"n = {ns[0]}" if len(ns) == 1 else f"n = {ns[0]} to {ns[-1]}"
    unit = f", in {metric.difference_unit}" if metric.difference_unit else ""
    return f"{trend.retraining} minus {trend.scratch} is {listed(values)} epochs ({n}{unit})."


def _claims(trend: Trend) -> Iterator[str]:
    """State what is shown, from the smallest budget up."""
    metric = trend.metric
    last = trend.run[-1]
    within = metric.amount(f"{trend.margin:g}")
    if trend.better_to is not None:
        upto = [d for d in trend.run if d.budget <= trend.better_to]
        every = trend.better_to == last.budget
        where = "at every tried budget" if every else f"up to {epochs_in_words(trend.better_to)}"
        yield f"{trend.retraining} is better {where} ({_most(upto, 'inherited')})."
        yield from _unequal(trend)
    starts: tuple[tuple[int | None, str, Claim], ...] = (
        (trend.enough_from, f"{trend.scratch} is at most {within} worse", "enough"),
        (trend.within_from, f"the difference lies within {within}", "within"),
        (trend.scratch_from, f"{trend.scratch} is better", "scratch"),
    )
    for start, claim, name in starts:
        if start is not None and (name != "enough" or trend.within_from != start):
            onwards = [d for d in trend.run if d.budget >= start]
            yield f"{_from(start, trend)} {claim} ({_most(onwards, name)})."
    if trend.never_enough:
        small = trend.enough_from is not None
        size = metric.amount(f"{last.gain:.{metric.digits}f}")
        yield (
            f"At {epochs_in_words(last.budget)} {trend.retraining} is "
            f"{'better, but by less than that' if small else 'still better'}: by {size} "
            f"({p_value(trend.p_largest or 0.0)})."
        )


def _unequal(trend: Trend) -> Iterator[str]:
    """Name the budgets where inherited weights lead, but rounding left FLOPs unused."""
    short_of = [d for d in trend.run if d.budget <= (trend.better_to or 0) and d.unspent]
    if short_of:
        shares = [f"{d.unspent.figures} at {d.budget}" for d in short_of if d.unspent]
        yield (
            f"But rounding left a part of the equal FLOPs unused ({listed(shares)} epochs), so "
            "this is not a lead at equal FLOPs."
        )


def _from(start: int, trend: Trend) -> str:
    if start == trend.run[0].budget:
        return "At every tried budget"
    largest = start == trend.run[-1].budget
    return f"At {epochs_in_words(start)}" if largest else f"From {epochs_in_words(start)} on"


def _most(differences: Sequence[Difference], claim: Claim) -> str:
    """Format the largest of the p-values that a claim about some budgets rests on."""
    if claim in ("enough", "within") and all(d.verdict.same for d in differences):
        return "the same in every seed"
    ps = [getattr(d, f"p_{claim}") for d in differences]
    return p_value(max((p for p in ps if p is not None), default=0.0))


def _open(trend: Trend) -> Iterator[str]:
    """Name the undecided budgets and why, starting with the largest, which holds up the answer."""
    if all(d.n == 1 for d in trend.run):
        yield "One seed allows no test."
        return
    better, start = trend.better_to or 0, trend.enough_from
    between = [
        d for d in trend.run if d.told and d.budget > better and (start is None or d.budget < start)
    ]
    if trend.never_enough:
        between = [d for d in between if d is not trend.run[-1]]
    if between:
        yield f"Not decided: {'; '.join(_undecided(d, trend) for d in reversed(between))}."


def _undecided(difference: Difference, trend: Trend) -> str:
    test, metric = difference.test, trend.metric
    assert test is not None
    place = f"at {epochs_in_words(difference.budget)}"
    if test.n == 1:
        return f"{place} (one seed)"
    if difference.too_fine is not None:
        return f"{place} ({difference.too_fine.text})"
    words = []
    if test.low is not None and test.high is not None:
        low, high = (signed(bound, digits=metric.digits) for bound in (test.low, test.high))
        words.append(f"95% interval {low} to {high}")
    if alone := _shown_alone(difference, trend):
        words.append(f"that {alone} is significant on its own, but not in the sequence of tests")
    elif difference.needed is not None:
        many = difference.needed > MANY
        seeds = f"more than {MANY}" if many else f"about {difference.needed}"
        words.append(f"{seeds} seeds would likely settle it")
    return f"{place} ({'; '.join(words)})" if words else place


def _shown_alone(difference: Difference, trend: Trend) -> str | None:
    """Return the strongest claim that a budget would show without the others; None without any."""
    within = trend.metric.amount(f"{trend.margin:g}")
    claims: dict[Claim, str] = {
        "scratch": f"{trend.scratch} is better",
        "inherited": f"{trend.retraining} is better",
        "enough": f"{trend.scratch} is at most {within} worse",
    }
    ps = {claim: difference.p(claim) for claim in claims}
    shown = (claims[claim] for claim, p in ps.items() if p is not None and p < trend.alpha)
    return next(shown, None)


def _left_out(trend: Trend) -> Iterator[str]:
    for d in trend.run:
        reason = d.verdict.left_out_for
        if reason is not None:
            yield f"No conclusion at {epochs_in_words(d.budget)}: {reason.text}."


def _missing(trend: Trend) -> Iterator[str]:
    missing = [str(d.budget) for d in trend.differences if d.test is None]
    if missing:
        largest = trend.differences[-1].test is None
        end = ", and what holds from a budget on is tested from the largest down" if largest else ""
        yield f"Not run: {listed(missing)} epochs{end}."


# Schedules ----------------------------------------------------------------------------------

ByBudget = dict[int, list[Run]]


def _rounded(by_budget: ByBudget) -> Iterator[str]:
    """Describe shares of a budget that were rounded to whole epochs."""
    changed = []
    for budget, runs in by_budget.items():
        first = runs[0]
        if first.budget == "share" and first.amount is not None and first.base_epochs:
            asked = first.base_epochs * first.amount
            epochs = next((run.epochs for run in runs if run.epochs is not None), None)
            if (
                epochs is not None
                and abs(asked - round(asked)) > 1e-6
                and epochs in (1, int(asked))
            ):
                changed.append(f"at {budget} ({asked:.3g} became {epochs})")
    if changed:
        yield f"arms train for whole epochs, so a share was rounded {listed(changed)} epochs"


def _capped(by_budget: ByBudget) -> Iterator[str]:
    capped = {b: sum(run.capped for run in runs) for b, runs in by_budget.items()}
    done = {b: sum(run.done for run in runs) for b, runs in by_budget.items()}
    found = [f"{b} ({num} of {done[b]} runs)" for b, num in capped.items() if num]
    if found:
        cap = max(run.cap or 0.0 for runs in by_budget.values() for run in runs)
        yield (
            f"capped at {cap:g}x of the epochs at {listed(found)} epochs, which is less than "
            "the unpruned network's FLOPs there"
        )


def _unspent(by_budget: ByBudget, whole: dict[tuple[tuple[str, ...], int], Run]) -> Iterator[str]:
    """Describe budgets of equal FLOPs of which rounding left a clear part unused."""
    found, counted = [], set()
    for budget, runs in by_budget.items():
        found_shares = (spent(run, whole.get((run.panel, run.seed))) for run in runs)
        shares = [share for share in found_shares if share is not None]
        if shares and min(shares) < 1 - CLEARLY_LESS:  # a mean would hide the worst row
            found.append(f"{100 * min(shares):.0f} % at {budget}")
            counted.add(_rounded_to(runs))
    if found:
        yield (
            f"arms train for whole {' or '.join(counted)}, so that in the row that falls short "
            f"most, only {listed(found)} epochs of the unpruned network's training FLOPs are "
            "spent, and differences there favour the other arm"
        )


def unspent_notes(runs: Sequence[Run]) -> Iterator[str]:
    """Describe the same for a study with a single training budget."""
    whole = {(run.panel, run.seed): run for run in runs if run.unpruned and run.done}
    found: dict[str, list[float]] = {}
    counted = set()
    for run in runs:
        share = spent(run, whole.get((run.panel, run.seed)))
        if share is not None and share < 1 - CLEARLY_LESS:
            found.setdefault(run.arm, []).append(share)
            counted.add(_rounded_to([run]))
    if not found:
        return
    arms = listed([f"{arm} {100 * min(shares):.0f} %" for arm, shares in found.items()])
    yield (
        f"Equal FLOPs: arms train for whole {' or '.join(counted)}. These arms spend as little as "
        f"this share of the unpruned network's training FLOPs: {arms}."
    )


def _rounded_to(runs: Sequence[Run]) -> str:
    """Return what the lengths of some runs were rounded to: ``epochs`` or ``updates``."""
    return "epochs" if all(float(run.epochs or 0).is_integer() for run in runs) else "updates"


def _fixed(by_budget: ByBudget) -> Iterator[str]:
    """Describe arms whose length does not scale with the budget."""
    firsts = [runs[0] for runs in by_budget.values()]
    epochs = [run.epochs for runs in by_budget.values() for run in runs if run.epochs is not None]
    if len(firsts) > 1 and all(run.budget == "epochs" for run in firsts) and epochs:
        yield f"{epochs_in_words(epochs[0])} at every budget, instead of a share of it"
