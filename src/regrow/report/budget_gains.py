"""The gain of unpruned networks from a longer training, in studies with several budgets.

    gains = Gains(runs)
    gain = gains.about(run)     # of the network that this run was pruned from, at its budget
    gain.state                  # "settled", "gaining" or "open"

Whether a training had converged is otherwise judged by its loss. Where the same network was also
trained for another budget, the gain in score is measured instead, seed by seed: from the budget to
the next larger one, and of the largest from the one before.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import pandas as pd
from scipy.special import stdtr, stdtrit

from regrow.report.rows import Run
from regrow.report.statistics import Comparison, paired
from regrow.tasks.metric import Metric

State = Literal["settled", "gaining", "open"]
Network = tuple[str, str, str, Metric]  # data set, model, method that treated it, metric


@dataclass(frozen=True, kw_only=True)
class Gain:
    """An unpruned network's gain from one budget to a larger one; positive is better.

    ``comparison`` is paired by seed. ``last`` is True of the largest budget that has results.
    """

    smaller: int
    larger: int
    comparison: Comparison
    metric: Metric
    margin: float
    alpha: float = 0.05
    last: bool = False

    @property
    def p_settled(self) -> float | None:
        """The chance of so small a gain if its true value were the margin (one-sided t test)."""
        test = self.comparison
        if test.error is None or test.df is None:
            return None
        if test.error == 0.0:
            return 2.0**-test.n if test.difference < self.margin else 1.0
        return float(stdtr(test.df, (test.difference - self.margin) / test.error))

    @property
    def most(self) -> float | None:
        """The upper bound of the gain that belongs to that test."""
        test = self.comparison
        if not test.error or test.df is None:
            return None
        return test.difference + float(stdtrit(test.df, 1 - self.alpha)) * test.error

    @property
    def state(self) -> State:
        """``settled``: shown to be less than the margin; ``gaining``: shown, and not settled."""
        settled, p = self.p_settled, self.comparison.p
        if settled is not None and settled < self.alpha:
            return "settled"
        shown = p is not None and p < self.alpha  # and no loss, which would be settled
        return "gaining" if shown else "open"


class Gains:
    """The gains of every unpruned network of a study between neighbouring budgets."""

    def __init__(
        self, runs: Iterable[Run], *, margin: float | None = None, alpha: float = 0.05
    ) -> None:
        self._runs = [run for run in runs if run.training_budget is not None]
        self._margin, self._alpha = margin, alpha

    def about(self, run: Run) -> Gain | None:
        """Return the gain that tells most about the budget of a run; None where there is none."""
        steps = self.of(run)
        budget = run.training_budget
        onwards = next((gain for gain in steps if gain.smaller == budget), None)
        return onwards or next((gain for gain in steps if gain.larger == budget), None)

    def of(self, run: Run) -> Sequence[Gain]:
        """Return the gains of the network behind a run, from the smallest budget up.

        Of a pruned row that is the plain network where the study has it, as in the judgement by the
        loss, because a treatment by a method may cost score on purpose.
        """
        plain = run.data, run.model, "", run.metric
        scores = self._scores.get(plain) or self._scores.get(_network(run), {})
        metric = run.metric
        margin = metric.margin if self._margin is None else self._margin
        gains = []
        budgets = sorted(budget for budget, by_seed in scores.items() if by_seed)
        for smaller, larger in itertools.pairwise(budgets):
            common = [seed for seed in scores[smaller] if seed in scores[larger]]
            if common:
                rises = [metric.gain(scores[larger][s] - scores[smaller][s]) for s in common]
                gains.append(
                    Gain(
                        smaller=smaller,
                        larger=larger,
                        comparison=paired(rises, [0.0] * len(rises), confidence=1 - self._alpha),
                        metric=metric,
                        margin=margin,
                        alpha=self._alpha,
                        last=larger == budgets[-1],
                    )
                )
        return gains

    @cached_property
    def _scores(self) -> Mapping[Network, Mapping[int, Mapping[int, float]]]:
        """Network -> budget -> seed -> score of the network, trained and not pruned."""
        found: dict[Network, dict[int, dict[int, float]]] = {}
        for run in self._runs:
            assert run.training_budget is not None
            score = run.score if run.unpruned else run.parent_score
            if run.done and score is not None:
                by_seed = found.setdefault(_network(run), {}).setdefault(run.training_budget, {})
                by_seed[run.seed] = score
        return found


def _network(run: Run) -> Network:
    return run.data, run.model, run.method, run.metric


def at_largest(runs: Iterable[Run]) -> list[Run]:
    """Return the runs at the largest budget of their data set and model; all without budgets."""
    listed = list(runs)
    largest: dict[tuple[str, str], int] = {}
    for run in listed:
        if run.training_budget is not None:
            place = run.data, run.model
            largest[place] = max(run.training_budget, largest.get(place, 0))
    return [
        run
        for run in listed
        if run.training_budget is None or run.training_budget == largest[run.data, run.model]
    ]


def rows_of(frame: pd.DataFrame, runs: Iterable[Run]) -> pd.DataFrame:
    """Return the rows of a frame that some runs are in."""
    return frame[frame["group"].isin({run.group for run in runs})]
