"""Rules for which comparisons allow no conclusion, by what the networks scored.

    reasons = judge(first, second, parent=parent, cut=[first, second], margin=0.3)
    if excluded(reasons): ...

An arm is known by its ``Evidence``: metric, mean, spread and number of seeds, and as far as they
are known the size of the test set, its chance level (what the metric's baseline scores) and how the
training ended. A row of a table serves as well as single runs. What is not known is never guessed:
the rule then says so, or stays silent.

Three rules leave a comparison out of every conclusion and of averages over cells (``excludes``):
two that are judged here, and between methods an unequal cost (``regrow.report.contests``):

- *Chance.* An arm is above chance if its answers, counted over all seeds, are right more often than
  those of a network that always names the most frequent class (exact binomial test, one-sided, at
  ``GUESSING``), and if a seed one standard deviation below the mean is above chance too: seeds that
  guess differ by more than a binomial count, and one good seed among many is not a good arm. Where
  the metric is no count of test examples (mAP, R2, bits per byte), the second half alone is
  asked, of the metric's baseline. A comparison is left out if its
  parent, the unpruned network, is not above chance, or if neither of its arms is.
- *Convergence.* A parent had not converged if a network pruned from it ends with a lower training
  loss and with a test score that is better by more than the margin and ``SURE`` standard errors of
  the test set. The parent contains the smaller network, so at its own minimum its loss would be no
  higher; a network that merely generalises better does not count. Nor had it converged if its
  training loss still fell, at its last learning rate, by more than 1 % of itself an epoch, and by
  so much that one more epoch could be worth more than the margin (``Metric.per_loss``): a wrong
  answer costs at least ln 2 of cross-entropy, so a fall of d is worth up to d / ln 2 of them.

In a study with several budgets convergence is measured instead (``regrow.report.budget_gains``): by
what the unpruned network gains from its budget to the next larger one, or of the largest from the
one before. It then only qualifies, because the budget is part of what is asked.

Others only qualify what is said: one arm of the two not above chance; arms that saw other numbers
of examples for each unit of their budgets, where a function of one's own trains them; an arm of
equal FLOPs of which rounding left a clear part unspent; one test
example more than the margin, so that only equal counts show equivalence; a test set whose own
sampling error is more than the margin; a chance level that is not known; a parent whose convergence
is not known, because no two epochs are known to have had its last learning rate, or because its
loss still fell by more than 1 % an epoch where nobody knows what that is worth: the metric is no
count, or the loss is that of a function of one's own.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from regrow.report.budget_gains import Gain
from regrow.report.rows import Ending, Run, largest, smallest
from regrow.report.statistics import at_least, mean_and_std
from regrow.report.words import score, short
from regrow.tasks.metric import ACCURACY, Metric

GUESSING = 0.01  # of the arms that only guess, this share passes for above chance
SURE = 2.0  # standard errors
CLEAR_FALL = 0.01  # of the loss, in an epoch
CLEARLY_LESS = 0.05  # of a budget of equal FLOPs, which rounding leaves unspent
ALIKE = 0.05  # of the examples seen for each unit of a budget: a last batch that is dropped

Rule = Literal[
    "unequal cost",
    "parent at chance",
    "arms at chance",
    "not converged",
    "one arm at chance",
    "budgets not spent",
    "FLOPs not spent",
    "still gaining",
    "margin below one image",
    "margin below sampling error",
    "chance unknown",
    "convergence unknown",
    "gain unknown",
]
# Rule -> what is so, in words that fit one cell and several; in the order of their weight.
_RULE_TEXTS: Mapping[Rule, str] = {
    "unequal cost": "the methods' networks do not cost the same",
    "parent at chance": "the unpruned network is not {beats_baseline}",
    "arms at chance": "neither arm is {beats_baseline}",
    "not converged": "the unpruned network had not converged",
    "one arm at chance": "one of the two arms is not {beats_baseline}",
    "budgets not spent": "the two arms used different shares of their budgets",
    "FLOPs not spent": "rounding left a clear part of the equal FLOPs unused",
    "still gaining": "the unpruned network still gains from a longer training",
    "margin below one image": "one test {example} changes the score by more than the margin",
    "margin below sampling error": "the sampling error of the test set exceeds the margin",
    "chance unknown": "it is not known whether the networks are {beats_baseline}",
    "convergence unknown": "it is not known whether the unpruned network had converged",
    "gain unknown": "it is not known whether the unpruned network gains from a longer training",
}
RULES: tuple[Rule, ...] = tuple(_RULE_TEXTS)
EXCLUDING: tuple[Rule, ...] = (
    *("unequal cost", "parent at chance", "arms at chance", "not converged"),
)


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Facts about one arm over its seeds: its score by a metric, as reports show it.

    ``chance`` is what the metric's baseline scores, ``num_test`` counts test examples (None for
    mAP, which is no count), ``error`` is the standard error over them where the metric is no count;
    ``loss`` and ``fall`` average the seeds' ``Ending``; ``pace`` counts the examples seen for each
    unit of the budget. None: not known.
    """

    mean: float
    std: float | None
    n: int
    num_test: int | None = None
    chance: float | None = None
    loss: float | None = None
    fall: float | None = None
    error: float | None = None
    metric: Metric = ACCURACY
    pace: float | None = None

    @classmethod
    def of(
        cls,
        scores: Sequence[float],
        *,
        metric: Metric = ACCURACY,
        errors: Iterable[float | None] = (),
        num_test: int | None = None,
        chance: float | None = None,
        endings: Iterable[Ending | None] = (),
        paces: Iterable[float | None] = (),
    ) -> "Evidence | None":
        """Gather what single runs show; None without any."""
        if not scores:
            return None
        mean, std = mean_and_std(scores)
        sampling = [error for error in errors if error is not None]
        known = [ending for ending in endings if ending is not None]
        falls = [ending.fall for ending in known if ending.fall is not None]
        measured_paces = [pace for pace in paces if pace is not None]
        return cls(
            mean=mean,
            std=std,
            n=len(scores),
            num_test=num_test,
            chance=chance,
            loss=mean_and_std([ending.loss for ending in known])[0] if known else None,
            fall=mean_and_std(falls)[0] if falls else None,
            error=mean_and_std(sampling)[0] if sampling else None,
            metric=metric,
            pace=mean_and_std(measured_paces)[0] if measured_paces else None,
        )

    @property
    def above_chance(self) -> bool | None:
        """True if the arm is above chance by this module's rule; None if that is not known.

        >>> Evidence(mean=10.0, std=0.0, n=5, num_test=10_000, chance=10.0).above_chance
        False
        """
        if self.chance is None:
            return None
        if self.metric.gain(self.mean - self.chance) <= (self.std or 0.0):
            return False
        if self.num_test is None or not self.metric.counted:
            return True
        answers = self.num_test * self.n
        correct = round(self.mean / 100 * answers)
        return at_least(correct, of=answers, chance=self.chance / 100) < GUESSING

    @property
    def sampling_error(self) -> float | None:
        """Standard error of the score as that of other examples too."""
        if not self.metric.counted:
            return self.error
        if self.num_test is None:
            return None
        share = min(max(self.mean / 100, 0.0), 1.0)
        return 100 * math.sqrt(share * (1 - share) / self.num_test)


def evidence(runs: Sequence[Run]) -> Evidence | None:
    """Return what the runs of one arm show, for the rules of validity; None before any is done."""
    done = [run for run in runs if run.done]
    return Evidence.of(
        [run.score for run in done if run.score is not None],
        metric=runs[0].metric if runs else ACCURACY,
        errors=[run.error for run in done],
        num_test=smallest(run.num_test for run in done),
        chance=largest(run.chance for run in done),
        endings=[run.ending for run in done],
        paces=[run.pace for run in done],
    )


def parent_evidence(runs: Iterable[Run]) -> Evidence | None:
    """Return what is known of the network that the arms of one cell were pruned from."""
    known = {run.seed: run for run in runs if run.parent_score is not None}
    return Evidence.of(
        [run.parent_score for run in known.values() if run.parent_score is not None],
        metric=next((run.metric for run in known.values()), ACCURACY),
        errors=[run.parent_error for run in known.values()],
        num_test=smallest(run.num_test for run in known.values()),
        chance=largest(run.chance for run in known.values()),
        endings=[run.parent_ending for run in known.values()],
    )


@dataclass(frozen=True, kw_only=True)
class Reason:
    """A rule that a comparison meets, and the figures by which it does."""

    rule: Rule
    figures: str
    metric: Metric = ACCURACY

    @property
    def excludes(self) -> bool:
        """True if the comparison takes no part in any conclusion."""
        return self.rule in EXCLUDING

    @property
    def text(self) -> str:
        """The reason for people."""
        return f"{rule_text(self.rule, self.metric)} ({self.figures})"


def rule_text(rule: Rule, metric: Metric = ACCURACY) -> str:
    """Word what a rule finds, for networks that are scored by a metric."""
    return _RULE_TEXTS[rule].format_map(vars(metric))


def judge(
    first: Evidence,
    second: Evidence,
    *,
    margin: float,
    parent: Evidence | None = None,
    plain: Evidence | None = None,
    cut: Iterable[Evidence] = (),
    gain: Gain | None = None,
) -> tuple[Reason, ...]:
    """Return why ``first`` against ``second`` allows no conclusion, or less than it seems.

    ``parent`` is the network that was pruned; ``plain`` the one trained without a method's
    treatment, whose convergence is judged (the parent, unless given); ``cut`` are the arms that
    train what was left of it. ``gain`` is the parent's from a longer training, which is better
    evidence of its convergence than its loss. Those that exclude come first.
    """
    reasons = [
        *_chance(first, second, (parent, plain)),
        *(convergence(plain or parent, cut, margin=margin) if gain is None else _gaining(gain)),
        *_spending(first, second),
        *_resolution(first, second, margin),
    ]
    return tuple(
        replace(reason, metric=first.metric)
        for reason in sorted(reasons, key=lambda reason: RULES.index(reason.rule))
    )


def spent(run: Run, unpruned: Run | None) -> float | None:
    """Return the share of the unpruned network's MACs that an arm of equal FLOPs trains for.

    Whole epochs may leave a part; None for other arms, capped ones and unknown costs.
    """
    if run.budget != "equal-flops" or not run.done or run.capped:
        return None
    if unpruned is None or not (unpruned.macs and run.macs and run.base_epochs):
        return None
    return float((run.epochs or 0) * run.macs / (run.base_epochs * unpruned.macs))


def unspent(sides: Iterable[Sequence[Run]], unpruned: Sequence[Run]) -> Iterable[Reason]:
    """Judge whether arms of equal FLOPs train for them."""
    whole = {run.seed: run for run in unpruned if run.done}
    for runs in sides:
        shares = [share for r in runs if (share := spent(r, whole.get(r.seed))) is not None]
        if shares and min(shares) < 1 - CLEARLY_LESS:
            figures = f"{runs[0].arm} {100 * min(shares):.0f} %"
            yield Reason(rule="FLOPs not spent", figures=figures, metric=runs[0].metric)


def excluded(reasons: Iterable[Reason]) -> bool:
    """Tell whether a comparison with these reasons allows no conclusion."""
    return any(reason.excludes for reason in reasons)


def _chance(
    first: Evidence, second: Evidence, parents: Iterable[Evidence | None]
) -> Iterable[Reason]:
    sides = (first, second)
    whole = [p for p in parents if p is not None and p.above_chance is False]
    if whole:
        yield Reason(rule="parent at chance", figures=_level(whole[0]))
    low = [side for side in sides if side.above_chance is False]
    if len(low) == len(sides):
        yield Reason(rule="arms at chance", figures="; ".join(dict.fromkeys(map(_level, low))))
    elif low:
        yield Reason(rule="one arm at chance", figures=_level(low[0]))
    if any(side.above_chance is None for side in sides):
        figures = f"the score of {first.metric.baseline} is not known"
        yield Reason(rule="chance unknown", figures=figures)


def _level(evidence: Evidence) -> str:
    """Word an arm's score beside that of the baseline."""
    assert evidence.chance is not None
    metric = evidence.metric
    level = score(evidence.mean, evidence.std, evidence.n, digits=metric.digits)
    return f"{level}, and {metric.baseline} {evidence.chance:.{metric.digits}f}"


def convergence(
    parent: Evidence | None, cut: Iterable[Evidence], *, margin: float
) -> Iterable[Reason]:
    """Judge a parent by losses: a smaller network that beats it by most, or a loss that falls."""
    if parent is None or parent.loss is None:
        return
    better = [arm for arm in cut if _outgrew(arm, parent, margin)]
    if better:
        metric = parent.metric
        best = max(better, key=lambda arm: metric.gain(arm.mean))
        assert best.loss is not None
        gain = metric.amount(f"{metric.gain(best.mean - parent.mean):.{metric.digits}f}")
        yield Reason(
            rule="not converged",
            figures=f"a network pruned from it beats it by {gain}, at a training loss of "
            f"{best.loss:.3g} below its own of {parent.loss:.3g}",
        )
        return
    yield from _still_falling(parent, parent.loss, margin)


def _gaining(gain: Gain) -> Iterable[Reason]:
    """Judge a parent by what a longer training was measured to bring."""
    if gain.state != "settled":
        rule: Rule = "still gaining" if gain.state == "gaining" else "gain unknown"
        yield Reason(rule=rule, figures=gain_words(gain))


def gain_words(gain: Gain) -> str:
    """Word a gain: ``from 2 to 4 epochs it gained 1.25 points, 95% interval 0.9 to 1.6, n = 5``."""
    test, metric = gain.comparison, gain.metric
    size = metric.amount(f"{abs(test.difference):.{metric.digits}f}")
    interval = ""
    if test.low is not None and test.high is not None:
        low, high = (f"{bound:.{metric.digits}f}" for bound in (test.low, test.high))
        interval = f", {100 * test.confidence:.0f}% interval {low} to {high}"
    verb = "gained" if test.difference >= 0 else "lost"
    sign = "" if test.difference >= 0 or not interval else " of the gain"
    interval = interval.replace(" interval", f" interval{sign}")
    return f"from {gain.smaller} to {gain.larger} epochs it {verb} {size}{interval}, n = {test.n}"


def _still_falling(parent: Evidence, loss: float, margin: float) -> Iterable[Reason]:
    metric, fall = parent.metric, parent.fall
    if fall is None:
        figures = "its loss is not known for two epochs at its last learning rate"
        yield Reason(rule="convergence unknown", figures=figures)
        return
    if fall <= CLEAR_FALL * loss:
        return
    fell = (
        f"its training loss of {loss:.3g} still fell by {fall:.2g} an epoch at its last learning "
        "rate"
    )
    if parent.num_test is None or metric.per_loss is None:
        figures = f"{fell}, and what that is worth is not known"
        yield Reason(rule="convergence unknown", figures=figures)
    elif (worth := metric.per_loss * fall) > margin:
        figures = f"{fell}, worth up to {metric.amount(f'{worth:.{metric.digits - 1}f}')}"
        yield Reason(rule="not converged", figures=figures)


def _outgrew(arm: Evidence, parent: Evidence, margin: float) -> bool:
    """Tell whether a network pruned from a parent shows that this one's training was unfinished."""
    error, parent_error = arm.sampling_error, parent.sampling_error
    if arm.loss is None or parent.loss is None or error is None or parent_error is None:
        return False
    clear = margin + SURE * math.hypot(error, parent_error)
    return arm.loss < parent.loss and parent.metric.gain(arm.mean - parent.mean) > clear


def _spending(first: Evidence, second: Evidence) -> Iterable[Reason]:
    """Find arms that saw other numbers of examples than their budgets say."""
    if first.pace is None or second.pace is None:
        return
    if abs(first.pace - second.pace) > ALIKE * max(first.pace, second.pace):
        figures = (
            f"per unit of budget one trained on {first.pace:,.0f} examples, the other on "
            f"{second.pace:,.0f}"
        )
        yield Reason(rule="budgets not spent", figures=figures)


def _resolution(first: Evidence, second: Evidence, margin: float) -> Iterable[Reason]:
    metric = first.metric
    counts = [side.num_test for side in (first, second) if side.num_test is not None]
    errors = [e for side in (first, second) if (e := side.sampling_error) is not None]
    if not counts or not errors:
        return
    num = min(counts)
    if metric.counted and metric.factor / num > margin:
        resolution = metric.amount(f"{metric.factor / num:.{metric.digits}f}")
        figures = f"1 of {num:,} is {resolution}, the margin {short(margin)}"
        yield Reason(rule="margin below one image", figures=figures)
    if (error := max(errors)) > margin:
        most = metric.amount(f"{error:.{metric.digits}f}")
        figures = (
            f"the standard error of {metric.name} on {num:,} test {metric.example}s is {most}; the "
            f"margin is {short(margin)}"
        )
        yield Reason(rule="margin below sampling error", figures=figures)
