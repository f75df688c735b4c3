"""Ranks of several methods over several cells, and how well two orders of methods agree.

Friedman's test shows whether ranks differ beyond chance, and Nemenyi's critical difference which
ones do, as recommended by Demsar (Statistical Comparisons of Classifiers over Multiple Data Sets,
JMLR 7, 2006). Both assume that cells are independent.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from regrow.report.statistics import ROUNDING, mean_and_std, paired, rounded

LEAST_CELLS = 6  # with fewer, both tests' asymptotic distributions are poor approximations
LEAST_METHODS = 3


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """Mean ranks (1 is best) of ``methods``, best first, over ``num`` cells.

    ``chi2`` and ``p`` are of Friedman's test, ``f`` and ``p_f`` of Iman and Davenport's, which is
    less conservative; ``critical`` is Nemenyi's critical difference of two mean ranks. None: not
    tested, because there are too few cells. ``alike`` are the largest sets of neighbours in rank
    that do not differ by the critical difference.
    """

    methods: tuple[str, ...]
    ranks: tuple[float, ...]
    num: int
    alpha: float
    chi2: float | None = None
    p: float | None = None
    f: float | None = None
    p_f: float | None = None
    critical: float | None = None
    alike: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Concordance:
    """Kendall's tau-b between two orders of methods, averaged over cells and seeds.

    ``tau`` is the mean over ``n`` seeds of each seed's mean over ``num`` cells, with the interval
    ``low`` to ``high`` (None for one seed). ``n`` is 0 if no seed has a tau in every cell; ``tau``
    is then of the orders by mean score. ``num_methods`` is the smallest number in a cell.
    """

    tau: float
    num: int
    num_methods: int
    n: int
    low: float | None = None
    high: float | None = None


def ranking(gains: Mapping[str, Sequence[float]], *, alpha: float = 0.05) -> Ranking | None:
    """Rank methods by their gains in the same cells (more is better); ties share their mean rank.

    None for fewer than ``LEAST_METHODS`` methods or without a cell.

    >>> result = ranking({"a": [2.0, 3.0], "b": [1.0, 1.0], "c": [1.5, 1.0]})
    >>> result.methods, result.ranks
    (('a', 'c', 'b'), (1.0, 2.25, 2.75))
    """
    from scipy import stats

    k = len(gains)
    num = len(next(iter(gains.values()), ()))
    if k < LEAST_METHODS or num == 0:
        return None
    columns = [[rounded(gain) for gain in column] for column in gains.values()]
    cells = [stats.rankdata([-gain for gain in cell]) for cell in zip(*columns, strict=True)]
    means = [math.fsum(column) / num for column in zip(*cells, strict=True)]
    order = sorted(range(k), key=lambda i: means[i])
    names = tuple([*gains][i] for i in order)
    ranks = tuple(means[i] for i in order)
    plain = Ranking(methods=names, ranks=ranks, num=num, alpha=alpha)
    if num < LEAST_CELLS:
        return plain
    if all(max(cell) - min(cell) <= ROUNDING for cell in zip(*columns, strict=True)):
        chi2, p = 0.0, 1.0  # all tied in all cells: the correction for ties would divide by zero
    else:
        chi2, p = map(float, stats.friedmanchisquare(*columns))
    below = num * (k - 1) - chi2
    f = (num - 1) * chi2 / below if below > ROUNDING else math.inf
    critical = critical_difference(k, num, alpha=alpha)
    return Ranking(
        methods=names,
        ranks=ranks,
        num=num,
        alpha=alpha,
        chi2=chi2,
        p=p,
        f=f,
        p_f=float(stats.f.sf(f, k - 1, (k - 1) * (num - 1))),
        critical=critical,
        alike=_alike(names, ranks, critical),
    )


def critical_difference(num_methods: int, num_cells: int, *, alpha: float = 0.05) -> float:
    """Return Nemenyi's critical difference of mean ranks: q sqrt(k (k + 1) / 6 N).

    q is the quantile of the studentised range for infinitely many degrees of freedom over sqrt(2).
    """
    from scipy.stats import studentized_range

    q = float(studentized_range.ppf(1 - alpha, num_methods, math.inf)) / math.sqrt(2)
    return q * math.sqrt(num_methods * (num_methods + 1) / (6 * num_cells))


def agreement(
    before: Sequence[Mapping[int, Mapping[str, float]]],
    after: Sequence[Mapping[int, Mapping[str, float]]],
    *,
    confidence: float = 0.95,
) -> Concordance | None:
    """Compare two orders of methods in each cell, given scores by seed and method.

    Cells with fewer than ``LEAST_METHODS`` methods that have both scores in all seeds are left out,
    and cells where an order by mean score is all ties. None if no cell is left.
    """
    taus, sizes, by_seed = [], [], []
    for first, second in zip(before, after, strict=True):
        seeds = [seed for seed in first if seed in second]
        common = [
            method
            for method in (first[seeds[0]] if seeds else ())
            if all(method in first[seed] and method in second[seed] for seed in seeds)
        ]
        if len(common) < LEAST_METHODS:
            continue
        orders = [
            [mean_and_std([scores[seed][method] for seed in seeds])[0] for method in common]
            for scores in (first, second)
        ]
        tau = _tau(*orders)
        if tau is None:
            continue
        taus.append(tau)
        sizes.append(len(common))
        by_seed.append(
            {s: _tau(*[[x[s][m] for m in common] for x in (first, second)]) for s in seeds}
        )
    if not taus:
        return None
    means = _by_seed(by_seed)
    low, high = _bounds(means, confidence)
    return Concordance(
        tau=math.fsum(means) / len(means) if means else math.fsum(taus) / len(taus),
        num=len(taus),
        num_methods=min(sizes),
        n=len(means),
        low=low,
        high=high,
    )


def _by_seed(cells: Sequence[Mapping[int, float | None]]) -> list[float]:
    """Return the mean tau over cells, for each seed that has one in every cell."""
    means = []
    for seed in cells[0]:
        values = [cell.get(seed) for cell in cells]
        known = [value for value in values if value is not None]
        if len(known) == len(cells):
            means.append(math.fsum(known) / len(known))
    return means


def _bounds(means: Sequence[float], confidence: float) -> tuple[float | None, float | None]:
    """Return the t interval of the mean over seeds, within [-1, 1]."""
    if len(means) < 2:
        return None, None
    test = paired(means, [0.0] * len(means), confidence=confidence)
    if test.low is None or test.high is None:
        return None, None
    return max(-1.0, test.low), min(1.0, test.high)


def _tau(first: Sequence[float], second: Sequence[float]) -> float | None:
    if min(max(first) - min(first), max(second) - min(second)) <= ROUNDING:
        return None
    # Tau-b by its definition: for few methods far faster than scipy, which also tests it.
    values = (map(rounded, first), map(rounded, second))
    pairs = itertools.combinations(zip(*values, strict=True), 2)
    signs = [((a > c) - (a < c), (b > d) - (b < d)) for (a, b), (c, d) in pairs]
    agreeing = sum(one * other for one, other in signs)
    apart, other_apart = (sum(map(abs, side)) for side in zip(*signs, strict=True))
    return max(-1.0, min(1.0, agreeing / math.sqrt(apart) / math.sqrt(other_apart)))


def _alike(
    names: Sequence[str], ranks: Sequence[float], critical: float
) -> tuple[tuple[str, ...], ...]:
    """Return the largest runs of neighbours within the critical difference of mean ranks."""
    runs: list[tuple[int, int]] = []
    for start in range(len(ranks)):
        end = max(i for i in range(start, len(ranks)) if ranks[i] - ranks[start] < critical)
        if end > start and not any(first <= start and end <= last for first, last in runs):
            runs.append((start, end))
    return tuple(tuple(names[start : end + 1]) for start, end in runs)
