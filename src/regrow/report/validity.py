"""Rules by which comparisons allow no conclusion, or only a qualified one.

    reasons = judge(first, second, parent=parent, cut=[first, second], margin=0.3)
    if excluded(reasons): ...

An arm is described by its ``Evidence``: metric, mean, spread and number of seeds, and as far as
known, the size of the test set, its chance level (the score of the metric's baseline) and how the
training ended. It can be made from a row of a table as well as from single runs. Unknown values are
never guessed: a rule then says so, or does not apply.

Three kinds of rules leave a comparison out of all conclusions and averages over cells
(``excludes``): two that are judged here, and an unequal cost of methods
(``regrow.report.contests``):

- *Chance.* An arm is above chance if its answers, counted over all seeds, are right more often than
  those of a network that always predicts the most frequent class (exact binomial test, one-sided,
  at ``GUESSING``), and if a seed one standard deviation below the mean is above chance too: seeds
  that guess vary more than a binomial count, and one good seed among many does not make a good arm.
  If the metric is not a count of test examples (mAP, R2, bits per byte), only the second condition
  is checked, with the metric's baseline. A comparison is left out if its parent, the unpruned
  network, is not above chance, or if neither of its arms is.
- *Convergence.* A parent had not converged if a network pruned from it ends with a lower training
  loss and with a test score that is better by more than the margin plus ``SURE`` standard errors of
  the test set. The parent contains the smaller network, so at its own minimum its loss would be no
  higher; a network that merely generalises better does not count. A parent had not converged either
  if its training loss at the last learning rate still fell by more than 1 % per epoch, and by so
  much that one more epoch could be worth more than the margin (``Metric.per_loss``): a wrong answer
  costs a cross-entropy of at least ln 2, so a fall of d is worth up to d / ln 2 answers.

In a study with several budgets, convergence is measured instead (``regrow.report.budget_gains``),
by the unpruned network's gain from its budget to the next larger one, or for the largest budget,
from the one before. This rule only qualifies a conclusion, because the budget is part of the
question.

The other rules only qualify a conclusion: one of the two arms is not above chance; arms that a
user's function trains saw different numbers of examples for each unit of their budgets; rounding
left a clear part of an arm's equal FLOPs unused; one test example changes the score by more than
the margin, so that only equal counts show equivalence; the sampling error of the test set exceeds
the margin; the chance level is unknown; the convergence of the parent is unknown, because its loss
is not known for two epochs at its last learning rate, or because it still fell by more than 1 % per
epoch and the worth of that is unknown (the metric is not a count, or the loss is that of a user's
function).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from regrow.report.budget_gains import Gain
from regrow.report.rows import Ending, Run, largest, once, smallest
from regrow.report.statistics import at_least, mean_and_std
from regrow.report.words import score, short
from regrow.tasks.metric import ACCURACY, Metric

GUESSING = 0.01  # share of the arms that only guess and still pass as above chance
SURE = 2.0  # standard errors
CLEAR_FALL = 0.01  # of the loss, per epoch
CLEARLY_LESS = 0.05  # share of a budget of equal FLOPs that rounding may leave unused
ALIKE = 0.05  # tolerance for examples per unit of budget, as a last batch may be dropped

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
# Rule -> its finding, worded to fit one cell or several; the weightiest first.
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

    ``chance`` is the score of the metric's baseline, ``num_test`` the number of test examples (None
    for mAP, which is not a count), ``error`` the standard error over them if the metric is not a
    count; ``loss`` and ``fall`` are means of the seeds' ``Ending``; ``pace`` is the number of
    examples per unit of budget. None: unknown.
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
        """Summarise single runs; None without any."""
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
        """True if the arm is above chance by this module's rule; None if that is unknown.

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
        """The standard error of the score due to the sample of test examples; None if unknown."""
        if not self.metric.counted:
            return self.error
        if self.num_test is None:
            return None
        share = min(max(self.mean / 100, 0.0), 1.0)
        return 100 * math.sqrt(share * (1 - share) / self.num_test)


def evidence(runs: Sequence[Run]) -> Evidence | None:
    """Return the evidence of the runs of one arm, each measured once; None before any is done."""
    done = once(run for run in runs if run.done)
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
    """Return the evidence of the network that the arms of one cell were pruned from, if known."""
    known = {run.base or run.seed: run for run in runs if run.parent_score is not None}
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
    """A rule that a comparison meets, with the figures that show it."""

    rule: Rule
    figures: str
    metric: Metric = ACCURACY

    @property
    def excludes(self) -> bool:
        """True if the rule leaves the comparison out of all conclusions."""
        return self.rule in EXCLUDING

    @property
    def text(self) -> str:
        """The reason in words."""
        return f"{rule_text(self.rule, self.metric)} ({self.figures})"


def rule_text(rule: Rule, metric: Metric = ACCURACY) -> str:
    """Return the finding of a rule in words, for networks that are scored by a metric."""
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
    """Return why ``first`` against ``second`` allows no conclusion, or only a qualified one.

    ``parent`` is the network that was pruned; ``plain`` is the one trained without a method's
    treatment, whose convergence is judged (default: the parent); ``cut`` are the arms that train
    networks pruned from it. ``gain`` is the parent's gain from a longer training, which is better
    evidence of its convergence than its loss. Reasons that exclude come first.
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
    """Return the training FLOPs of an equal-FLOPs arm over those of the unpruned network.

    Rounding may leave a part unused. If a user's function trains, both are per example of a unit of
    the budget, because examples are compared elsewhere (``pace``). None for other arms, those that
    are capped or enter their schedule late, and unknown costs.
    """
    if run.budget != "equal-flops" or not run.done or run.capped or run.entered:
        return None
    if unpruned is None or not (unpruned.arm_flops and run.arm_flops and run.base_epochs):
        return None
    share = run.arm_flops / unpruned.arm_flops
    return share * unpruned.pace / run.pace if run.pace and unpruned.pace else share


def unspent(sides: Iterable[Sequence[Run]], unpruned: Sequence[Run]) -> Iterable[Reason]:
    """Yield a reason for each arm of equal FLOPs that leaves a clear part of them unused."""
    whole = {run.seed: run for run in unpruned if run.done}
    for runs in sides:
        shares = [share for r in runs if (share := spent(r, whole.get(r.seed))) is not None]
        if shares and min(shares) < 1 - CLEARLY_LESS:
            figures = f"{runs[0].arm} {100 * min(shares):.0f} %"
            yield Reason(rule="FLOPs not spent", figures=figures, metric=runs[0].metric)


def excluded(reasons: Iterable[Reason]) -> bool:
    """Return whether a comparison with these reasons allows no conclusion."""
    return any(reason.excludes for reason in reasons)


def _chance(
    first: Evidence, second: Evidence, parents: Iterable[Evidence | None]
) -> Iterable[Reason]:
    sides = (first, second)
    whole = [p for p in parents if p is not None and p.above_chance is False]
    if whole:
        yield Reason(rule="parent at chance", figures=level(whole[0]))
    low = [side for side in sides if side.above_chance is False]
    if len(low) == len(sides):
        yield Reason(rule="arms at chance", figures="; ".join(dict.fromkeys(map(level, low))))
    elif low:
        yield Reason(rule="one arm at chance", figures=level(low[0]))
    if any(side.above_chance is None for side in sides):
        figures = f"the score of {first.metric.baseline} is not known"
        yield Reason(rule="chance unknown", figures=figures)


def level(evidence: Evidence) -> str:
    """Format an arm's score and that of the baseline."""
    assert evidence.chance is not None
    metric = evidence.metric
    own = score(evidence.mean, evidence.std, evidence.n, digits=metric.digits)
    return f"{own}, and {metric.baseline} {evidence.chance:.{metric.digits}f}"


def convergence(
    parent: Evidence | None, cut: Iterable[Evidence], *, margin: float
) -> Iterable[Reason]:
    """Judge a parent's convergence: if a pruned network outgrew it, or its loss still fell."""
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
    """Judge a parent's convergence by its measured gain from a longer training."""
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
    """Return whether a network pruned from a parent shows that the parent had not converged."""
    error, parent_error = arm.sampling_error, parent.sampling_error
    if arm.loss is None or parent.loss is None or error is None or parent_error is None:
        return False
    clear = margin + SURE * math.hypot(error, parent_error)
    return arm.loss < parent.loss and parent.metric.gain(arm.mean - parent.mean) > clear


def _spending(first: Evidence, second: Evidence) -> Iterable[Reason]:
    """Yield a reason if the arms saw different numbers of examples per unit of budget."""
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
