"""Gains of unpruned networks from longer training, in studies with several budgets.

    gains = Gains(runs)
    gain = gains.about(run)     # of the network that this run was pruned from, at its budget
    gain.state                  # "settled", "gaining" or "open"

Convergence is usually judged by the training loss. Where the same network was also trained for
another budget, its gain in score is measured instead, seed by seed: from a budget to the next
larger one, or for the largest budget, from the one before.
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
Network = tuple[str, str, str, Metric]  # data set, model, method whose treatment it had, metric


@dataclass(frozen=True, kw_only=True)
class Gain:
    """An unpruned network's gain from one budget to a larger one; positive is better.

    ``comparison`` is paired by seed. ``last`` is True if ``larger`` is the largest with results.
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
        """The p-value for a gain of less than the margin (one-sided t test)."""
        test = self.comparison
        if test.error is None or test.df is None:
            return None
        if test.error == 0.0:
            return 2.0**-test.n if test.difference < self.margin else 1.0
        return float(stdtr(test.df, (test.difference - self.margin) / test.error))

    @property
    def most(self) -> float | None:
        """The one-sided upper confidence bound of the gain that matches this test."""
        test = self.comparison
        if not test.error or test.df is None:
            return None
        return test.difference + float(stdtrit(test.df, 1 - self.alpha)) * test.error

    @property
    def state(self) -> State:
        """``settled``: shown to be below the margin; else ``gaining``: shown to be positive."""
        settled, p = self.p_settled, self.comparison.p
        if settled is not None and settled < self.alpha:
            return "settled"
        shown = p is not None and p < self.alpha  # a significant loss would be settled
        return "gaining" if shown else "open"


class Gains:
    """The gains of every unpruned network of a study between neighbouring budgets."""

    def __init__(
        self, runs: Iterable[Run], *, margin: float | None = None, alpha: float = 0.05
    ) -> None:
        self._runs = [run for run in runs if run.training_budget is not None]
        self._margin, self._alpha = margin, alpha

    def about(self, run: Run) -> Gain | None:
        """Return the gain from a run's budget to the next, else from the one before; or None."""
        steps = self.of(run)
        budget = run.training_budget
        onwards = next((gain for gain in steps if gain.smaller == budget), None)
        return onwards or next((gain for gain in steps if gain.larger == budget), None)

    def of(self, run: Run) -> Sequence[Gain]:
        """Return the gains of the unpruned network behind a run, from the smallest budget up.

        If the study has it, this is the network trained without a method's treatment, which may
        lower the score on purpose (``validity.judge`` makes the same choice for losses).
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
    """Return the runs at the largest budget of their data set and model, or without a budget."""
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
    """Return the rows of a frame that belong to the cells of some runs."""
    return frame[frame["group"].isin({run.group for run in runs})]
