"""Conclusions as a function of the training budget: curves of arms, and of their differences.

    for curve in curves(runs):
        for trend in curve.trends:
            print(curve.name, trend.retraining, trend.scratch, trend.within_from, trend.better_to)

A *curve* is one data set, network, method and amount at every training budget of a study; a *trend*
is one retraining of inherited weights minus one training from scratch at each of these budgets,
paired by seed. The questions about a trend, and how their tests are corrected:

- From which budget on is training from scratch enough, that is, worse by less than the margin? A
  one-sided t test at the largest budget, then at the next smaller one, and so on until a test is
  not significant (``statistics.in_sequence``). A claim about a budget includes all larger ones, so
  this is the order that the claim requires.
- From which budget on does the difference lie within the margin (TOST), and from which on is
  training from scratch better? In the same order.
- Up to which budget are inherited weights better? From the smallest budget up.
- Are inherited weights still better at the largest budget? One test, for "no budget is enough".

The probability of any false claim of one kind in a study is at most ``alpha``, over all curves that
share a pair of arms. A fixed order has more power than Holm's correction here, because further
budgets cost nothing. A sequence ends at the first budget that is not significant, as the claim
itself would.

A budget is left out if the unpruned network is not above chance, or if neither arm is: a sequence
from the largest budget down ends there, and one from the smallest up begins after it. Convergence
leaves out no budget, because the budget is the variable under study; the gain of the unpruned
network from the last step (``budget_gains``) shows how far an answer depends on the budget.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from scipy.special import stdtr

from regrow.report.budget_gains import Gain, Gains
from regrow.report.questions import BEST_RETRAINING, CellQuestion, ask
from regrow.report.rows import Run, Table
from regrow.report.statistics import Comparison, holm, in_sequence, seeds_to_settle
from regrow.report.tuning import folded
from regrow.report.validity import (
    Evidence,
    Reason,
    convergence,
    evidence,
    judge,
    parent_evidence,
    unspent,
)
from regrow.report.verdict import TOO_FINE, Verdict, compare
from regrow.tasks.metric import Metric

Claim = Literal["enough", "within", "scratch", "inherited"]
FROM_LARGEST: tuple[Claim, ...] = ("enough", "within", "scratch")
Key = tuple[str, str, Metric]
CONVERGENCE = ("not converged", "convergence unknown", "still gaining", "gain unknown")


@dataclass(frozen=True, kw_only=True)
class BudgetStep:
    """One budget of a curve: the runs of its arms, the unpruned network's first."""

    budget: int
    arms: Mapping[str, Sequence[Run]]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A retraining minus a training from scratch at one budget.

    p-values are corrected over budgets and curves, in the order in which their claim is tested:
    ``p_enough``, ``p_within`` and ``p_scratch`` from the largest budget down, ``p_inherited`` from
    the smallest up. None: no test, or the sequence had ended before. ``needed`` estimates the seeds
    that would settle this budget.
    """

    budget: int
    verdict: Verdict
    p_enough: float | None = None
    p_within: float | None = None
    p_scratch: float | None = None
    p_inherited: float | None = None
    needed: int | None = None

    @property
    def n(self) -> int:
        """The number of seeds that have a result in both arms."""
        return self.verdict.n

    @property
    def test(self) -> Comparison | None:
        """The paired comparison; None before any seed has both arms."""
        return self.verdict.comparison

    @property
    def gain(self) -> float:
        """The mean advantage of inherited weights; 0 without results."""
        return self.verdict.metric.gain(self.test.difference) if self.test else 0.0

    @property
    def told(self) -> bool:
        """True if this budget is not left out of conclusions."""
        return self.verdict.left_out_for is None

    @property
    def unspent(self) -> Reason | None:
        """The reason why this is no comparison at equal FLOPs, if rounding left a part unused."""
        return next((r for r in self.verdict.reasons if r.rule == "FLOPs not spent"), None)

    @property
    def too_fine(self) -> Reason | None:
        """The reason why no test can show equivalence here, if there is one."""
        reasons = self.verdict.reasons
        return next((reason for reason in reasons if reason.rule == TOO_FINE), None)

    def p(self, claim: Claim) -> float | None:
        """Return the p-value of a claim at this budget alone."""
        test, equal = self.test, self.verdict.equivalence
        if test is None or equal is None or not self.told:
            return None
        if claim in ("enough", "within"):
            p = self._p_enough(test) if claim == "enough" else equal.p
            if self.too_fine:
                return 1.0 if p is not None else p
            return 0.0 if self.verdict.same else p  # as for a single budget: see ``verdict``
        side = self.gain if claim == "inherited" else -self.gain
        return None if test.p is None else test.p if side > 0 else 1.0

    def _p_enough(self, test: Comparison) -> float | None:
        """Return the p-value for inherited weights being better by less than the margin."""
        if test.error is None or test.df is None:
            return None
        if test.error == 0.0:
            return 2.0**-test.n if self.gain < self.verdict.margin else 1.0
        return float(stdtr(test.df, (self.gain - self.verdict.margin) / test.error))


@dataclass(frozen=True, kw_only=True)
class Trend:
    """A retraining minus a training from scratch, from the smallest budget to the largest.

    ``p_largest`` is the p-value for inherited weights being better at the largest budget, corrected
    by Holm over curves; None before it has results.
    """

    retraining: str
    scratch: str
    metric: Metric
    margin: float
    alpha: float
    differences: tuple[Difference, ...]
    p_largest: float | None = None

    @property
    def run(self) -> tuple[Difference, ...]:
        """The budgets that have results."""
        return tuple(d for d in self.differences if d.test is not None)

    @property
    def enough_from(self) -> int | None:
        """The smallest budget from which on scratch training is shown to be enough."""
        return self._least(lambda d: d.p_enough)

    @property
    def within_from(self) -> int | None:
        """The smallest budget from which on the difference is shown to lie within the margin."""
        return self._least(lambda d: d.p_within)

    @property
    def scratch_from(self) -> int | None:
        """The smallest budget from which on training from scratch is shown to be better."""
        return self._least(lambda d: d.p_scratch)

    @property
    def better_to(self) -> int | None:
        """The largest budget up to which inherited weights are shown to be better."""
        return max(self._shown(lambda d: d.p_inherited), default=None)

    @property
    def never_enough(self) -> bool:
        """True if inherited weights are shown to be better at the largest budget."""
        return self.p_largest is not None and self.p_largest < self.alpha

    def _least(self, p_of: Callable[[Difference], float | None]) -> int | None:
        return min(self._shown(p_of), default=None)

    def _shown(self, p_of: Callable[[Difference], float | None]) -> list[int]:
        ps = [(d.budget, p_of(d)) for d in self.differences]
        return [budget for budget, p in ps if p is not None and p < self.alpha]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One data set, network, method and amount at every training budget."""

    data: str
    model: str
    method: str
    amount: str
    metric: Metric
    steps: tuple[BudgetStep, ...]
    trends: tuple[Trend, ...] = ()  # those against equal-FLOPs scratch training first
    gains: tuple[Gain, ...] = ()  # of the unpruned network, from each budget to the next
    # The unpruned network's convergence as judged by loss, by budget; None where no loss is known.
    by_loss: Mapping[int, tuple[Reason, ...] | None] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Its display name: ``digits / vgg / l1-filter 0.5``."""
        return " / ".join(filter(None, (self.data, self.model, self.cut)))

    @property
    def cut(self) -> str:
        """Method and amount."""
        first = next(run for arm in self.steps[0].arms.values() for run in arm if not run.unpruned)
        return first.cut

    @property
    def budgets(self) -> tuple[int, ...]:
        """All requested budgets, from the smallest."""
        return tuple(step.budget for step in self.steps)

    @property
    def arms(self) -> tuple[str, ...]:
        """Every arm, in order of appearance."""
        return tuple(dict.fromkeys(arm for step in self.steps for arm in step.arms))

    @property
    def last_gain(self) -> Gain | None:
        """The gain of the unpruned network from the last step of the budget."""
        return next((gain for gain in self.gains if gain.last), None)

    def flops(self, budget: int) -> float | None:
        """Return the FLOPs of the unpruned network's training at a budget; None if unknown."""
        step = next(step for step in self.steps if step.budget == budget)
        runs = [run for arm in step.arms.values() for run in arm if run.unpruned and run.done]
        known = [run.training_flops for run in runs if run.training_flops]
        return sum(known) / len(known) if known else None


def curves(
    runs: Iterable[Run], *, margin: float | None = None, alpha: float = 0.05
) -> tuple[Curve, ...]:
    """Return the curves of a study with several training budgets, in study order."""
    listed = folded(run for run in runs if run.training_budget is not None)
    gains, table = Gains(listed, margin=margin, alpha=alpha), Table(listed)
    places: dict[tuple[str, str, str, str, Metric], dict[int, dict[str, list[Run]]]] = {}
    for run in listed:
        if not run.unpruned:
            place = run.data, run.model, run.method, run.level, run.metric
            budget = run.training_budget or 0
            arms = places.setdefault(place, {}).setdefault(budget, {})
            arms.setdefault(run.arm, []).append(run)
    found = [
        _curve(place, by_budget, table=table, gains=gains, margin=margin, alpha=alpha)
        for place, by_budget in places.items()
    ]
    return tuple(_corrected([curve for curve in found if len(curve.steps) > 1]))


def _curve(
    place: tuple[str, str, str, str, Metric],
    by_budget: Mapping[int, Mapping[str, Sequence[Run]]],
    *,
    table: Table,
    gains: Gains,
    margin: float | None,
    alpha: float,
) -> Curve:
    data, model, method, amount, metric = place
    limit = metric.margin if margin is None else margin
    steps: list[BudgetStep] = []
    by_loss: dict[int, tuple[Reason, ...] | None] = {}
    trends: dict[tuple[str, str], dict[int, Difference]] = {}
    for budget, arms in sorted(by_budget.items()):
        first = next(iter(arms.values()))[0]
        whole = table.unpruned(first)
        steps.append(
            BudgetStep(budget=budget, arms={**({whole[0].arm: whole} if whole else {}), **arms})
        )
        runs = [run for arm in arms.values() for run in arm]
        plain, parent = evidence(whole), parent_evidence(runs)
        trained = [side for arm in arms.values() if arm[0].trained and (side := evidence(arm))]
        judged = plain or parent
        if judged is None or judged.loss is None:
            by_loss[budget] = None
        else:
            by_loss[budget] = tuple(convergence(judged, trained, margin=limit))
        for question in ask(arms, ()):
            about, against = question.question.about, question.question.second.name
            if about == "scratch" and against != BEST_RETRAINING:
                pair = question.second[0].arm, question.first[0].arm
                trends.setdefault(pair, {})[budget] = _difference(
                    budget, question, whole, parent=parent, margin=limit, alpha=alpha
                )
    firsts = {arm: runs[0] for arms in by_budget.values() for arm, runs in arms.items()}
    ordered = sorted(trends.items(), key=lambda pair: firsts[pair[0][1]].budget != "equal-flops")
    return Curve(
        data=data,
        model=model,
        method=method,
        amount=amount,
        metric=metric,
        steps=tuple(steps),
        trends=tuple(
            Trend(
                retraining=retraining,
                scratch=scratch,
                metric=metric,
                margin=limit,
                alpha=alpha,
                differences=tuple(differences.values()),
            )
            for (retraining, scratch), differences in ordered
        ),
        gains=tuple(gains.of(first)),
        by_loss=by_loss,
    )


def _difference(
    budget: int,
    question: CellQuestion,
    whole: Sequence[Run],
    *,
    parent: Evidence | None,
    margin: float,
    alpha: float,
) -> Difference:
    """Compare a retraining with a training from scratch at one budget, uncorrected."""
    plain = evidence(whole)
    turned = CellQuestion(question=question.question, first=question.second, second=question.first)
    first, second = evidence(turned.first), evidence(turned.second)
    reasons: tuple[Reason, ...] = ()
    if first is not None and second is not None:
        judged = judge(first, second, parent=parent or plain, plain=plain or parent, margin=margin)
        reasons = tuple(reason for reason in judged if reason.rule not in CONVERGENCE)
        reasons += tuple(unspent((turned.first, turned.second), whole))
    verdict = compare(turned, reasons=reasons, margin=margin, alpha=alpha)
    return Difference(budget=budget, verdict=verdict)


def _corrected(found: Sequence[Curve]) -> list[Curve]:
    """Correct p-values for each pair of arms over its budgets and curves."""
    keys: dict[Key, list[tuple[int, int]]] = {}
    for i, curve in enumerate(found):
        for j, trend in enumerate(curve.trends):
            keys.setdefault((trend.retraining, trend.scratch, trend.metric), []).append((i, j))
    trends = [[*curve.trends] for curve in found]
    for places in keys.values():
        together = _together([trends[i][j] for i, j in places])
        for (i, j), trend in zip(places, together, strict=True):
            trends[i][j] = trend
    return [replace(c, trends=tuple(own)) for c, own in zip(found, trends, strict=True)]


def _together(trends: Sequence[Trend]) -> list[Trend]:
    """Correct the p-values of all trends of one pair of arms."""
    # A budget without results ends a sequence, as one does whose test is not significant.
    down = [list(reversed(trend.differences)) for trend in trends]
    up = [_from_first_told(trend.differences) for trend in trends]
    enough, within, scratch = (_by_budget(down, claim) for claim in FROM_LARGEST)
    inherited = _by_budget(up, "inherited")
    largest = holm([chain[0].p("inherited") if chain else None for chain in down])
    level = 1 / max(1, len(trends))
    return [
        replace(
            trend,
            p_largest=largest[i],
            differences=tuple(
                replace(
                    d,
                    p_enough=enough[i].get(d.budget),
                    p_within=within[i].get(d.budget),
                    p_scratch=scratch[i].get(d.budget),
                    p_inherited=inherited[i].get(d.budget),
                    needed=_needed(d, level * trend.alpha),
                )
                for d in trend.differences
            ),
        )
        for i, trend in enumerate(trends)
    ]


def _by_budget(
    chains: Sequence[Sequence[Difference]], claim: Claim
) -> list[dict[int, float | None]]:
    adjusted = in_sequence([[d.p(claim) for d in chain] for chain in chains])
    return [
        {d.budget: p for d, p in zip(chain, ps, strict=True)}
        for chain, ps in zip(chains, adjusted, strict=True)
    ]


def _from_first_told(differences: Sequence[Difference]) -> Sequence[Difference]:
    """Skip the smallest budgets that are left out of conclusions."""
    first = next((i for i, d in enumerate(differences) if d.told), len(differences))
    return differences[first:]


def _needed(difference: Difference, alpha: float) -> int | None:
    """Estimate the seeds that would settle a budget; None where more seeds cannot."""
    test = difference.test
    if test is None or test.std is None or not difference.told or difference.too_fine:
        return None
    margin = difference.verdict.margin
    estimate = seeds_to_settle(test.difference, test.std, margin=margin, alpha=alpha)
    return max(estimate, test.n + 1)
