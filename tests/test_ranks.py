"""Tests of methods against reference implementations and published examples.

Friedman, Iman and Davenport, and the critical difference: the worked example of Demsar, Statistical
Comparisons of Classifiers over Multiple Data Sets, JMLR 7, 2006, sections 3.2.2 and Table 6.
Equivalence: the example of the R package TOSTER on R's data set ``sleep`` (Student, 1908), as its
vignette "IntroTOSTt" prints it.
"""

import importlib.util
import itertools
import math
import random
from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats

from regrow.report.ranks import agreement, critical_difference, ranking
from regrow.report.statistics import equivalence, holm, paired, superiority

# Demsar's Table 6: AUC of C4.5 with m, with cf, and with both tuned, on 14 data sets. On "voting"
# two are printed as 0.975 and ranked as 2 and 3, by digits that are not printed: hence 0.97501.
DEMSAR = {
    "C4.5": (
        *(0.763, 0.599, 0.954, 0.628, 0.882, 0.936, 0.661),
        *(0.583, 0.775, 1.000, 0.940, 0.619, 0.972, 0.957),
    ),
    "C4.5+m": (
        *(0.768, 0.591, 0.971, 0.661, 0.888, 0.931, 0.668),
        *(0.583, 0.838, 1.000, 0.962, 0.666, 0.981, 0.978),
    ),
    "C4.5+cf": (
        *(0.771, 0.590, 0.968, 0.654, 0.886, 0.916, 0.609),
        *(0.563, 0.866, 1.000, 0.965, 0.614, 0.97501, 0.946),
    ),
    "C4.5+m+cf": (
        *(0.798, 0.569, 0.967, 0.657, 0.898, 0.931, 0.685),
        *(0.625, 0.875, 1.000, 0.962, 0.669, 0.975, 0.970),
    ),
}
# Extra hours of sleep of ten people under two drugs.
FIRST_DRUG = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
SECOND_DRUG = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
needs_statsmodels = pytest.mark.skipif(
    importlib.util.find_spec("statsmodels") is None, reason="statsmodels is not installed"
)


def test_ranks_and_critical_difference_are_those_of_demsars_example() -> None:
    result = ranking(DEMSAR)
    assert result is not None
    found = dict(zip(result.methods, result.ranks, strict=True))
    printed = {"C4.5": 3.143, "C4.5+m": 2.000, "C4.5+cf": 2.893, "C4.5+m+cf": 1.964}
    assert found == pytest.approx(printed, abs=5e-4)
    # The paper's chi2 of 9.28 and F of 3.69 are without the correction for ties.
    k, n = 4, 14
    plain = 12 * n / (k * (k + 1)) * (sum(r**2 for r in result.ranks) - k * (k + 1) ** 2 / 4)
    assert plain == pytest.approx(9.28, abs=0.01)
    assert (n - 1) * plain / (n * (k - 1) - plain) == pytest.approx(3.69, abs=0.01)
    assert result.chi2 == pytest.approx(stats.friedmanchisquare(*DEMSAR.values()).statistic)
    assert result.critical == pytest.approx(1.25, abs=0.005)
    assert result.p_f is not None
    assert result.p_f < 0.05
    # Nemenyi finds no difference here: all ranks are within 1.25 of each other.
    assert result.alike == (("C4.5+m+cf", "C4.5+m", "C4.5+cf", "C4.5"),)


@pytest.mark.parametrize(
    ("num", "q"),  # Demsar's Table 5 (a), alpha 0.05
    [(2, 1.960), (3, 2.343), (4, 2.569), (5, 2.728), (6, 2.850), (8, 3.031), (10, 3.164)],
)
def test_critical_differences_are_those_of_the_table(num: int, q: float) -> None:
    assert critical_difference(num, 20) == pytest.approx(
        q * math.sqrt(num * (num + 1) / 120), abs=5e-4
    )


def test_sets_that_are_not_told_apart_are_the_largest() -> None:
    gains = {name: [float(10 - i)] * 20 for i, name in enumerate("abcde")}
    result = ranking(gains)
    assert result is not None
    assert result.critical is not None
    assert 1 < result.critical < 2
    assert result.alike == (("a", "b"), ("b", "c"), ("c", "d"), ("d", "e"))


def test_equal_methods_are_no_error() -> None:
    result = ranking({name: [1.0] * 6 for name in "abc"})
    assert result is not None
    assert (result.chi2, result.p, result.ranks) == (0.0, 1.0, (2.0, 2.0, 2.0))


def test_equal_means_tie_in_spite_of_rounding() -> None:
    two, three, four = (100 * (num / 6) for num in (2, 3, 4))
    assert (two + four) / 2 != three
    result = ranking({"a": [(two + four) / 2], "b": [three], "c": [two]})
    assert result is not None
    assert result.ranks == (1.5, 1.5, 3.0)


def test_two_methods_are_not_ranked() -> None:
    assert ranking({"a": [1.0] * 6, "b": [2.0] * 6}) is None


def test_equivalence_is_that_of_toster_on_the_sleep_data() -> None:
    """``t_TOST(extra ~ group, paired = TRUE, eqb = .5)``: t(9) = -4.06, -2.777 and -5.348."""
    test = paired(FIRST_DRUG, SECOND_DRUG)
    result = equivalence(test, margin=0.5)
    assert test.error is not None
    assert test.difference == pytest.approx(-1.58)
    assert test.difference / test.error == pytest.approx(-4.062, abs=5e-4)
    assert (test.difference + 0.5) / test.error == pytest.approx(-2.777, abs=5e-4)
    assert (test.difference - 0.5) / test.error == pytest.approx(-5.348, abs=5e-4)
    assert result.p == pytest.approx(0.989, abs=5e-4)
    assert (result.low, result.high) == pytest.approx((-2.293, -0.867), abs=5e-4)


@needs_statsmodels
def test_equivalence_superiority_and_holm_are_those_of_statsmodels() -> None:
    from statsmodels.stats.multitest import multipletests
    from statsmodels.stats.proportion import proportion_confint
    from statsmodels.stats.weightstats import ttost_paired

    rng = random.Random(0)
    for _ in range(30):
        n, margin = rng.randint(2, 12), rng.uniform(0.1, 1.0)
        first = [rng.gauss(90, 1) for _ in range(n)]
        second = [a + rng.gauss(0.1, 0.3) for a in first]
        p, _, _ = ttost_paired(np.array(first), np.array(second), -margin, margin)
        assert equivalence(paired(first, second), margin=margin).p == pytest.approx(p, rel=1e-9)
        gains = [a - b for a, b in zip(first, second, strict=True)]
        chance = superiority(gains)
        assert chance is not None
        bounds = proportion_confint(chance.wins, n, alpha=0.05, method="beta")
        assert (chance.low, chance.high) == pytest.approx(bounds, rel=1e-9)
        ps = [rng.random() ** 3 for _ in range(n)]
        assert holm(ps) == pytest.approx(list(multipletests(ps, method="holm")[1]), rel=1e-9)


@pytest.mark.parametrize(("wins", "n"), [(0, 3), (3, 3), (1, 5), (7, 10)])
def test_superiority_has_the_exact_binomial_interval(wins: int, n: int) -> None:
    chance = superiority([0.1] * wins + [-0.1] * (n - wins))
    assert chance is not None
    exact = stats.binomtest(wins, n).proportion_ci(method="exact")
    assert (chance.low, chance.high) == pytest.approx((exact.low, exact.high))
    assert chance.value == wins / n


def test_ties_are_half_a_win() -> None:
    chance = superiority([0.0, 0.0, 0.1, -0.1])
    assert chance is not None
    assert (chance.value, chance.wins) == (0.5, 2.0)
    assert superiority([]) is None


def orders(*columns: Sequence[float]) -> list[dict[int, dict[str, float]]]:
    return [{0: dict(zip("abcdef", column, strict=False))} for column in columns]


def test_concordance_is_kendalls_tau_averaged_over_cells() -> None:
    cells = [[1.0, 2.0, 3.0, 4.0], [4.0, 2.0, 1.0, 3.0]]
    after = [[1.0, 3.0, 2.0, 4.0], [1.0, 2.0, 2.0, 3.0]]
    taus = [stats.kendalltau(a, b).statistic for a, b in zip(cells, after, strict=True)]
    found = agreement(orders(*cells), orders(*after))
    assert found is not None
    assert found.tau == pytest.approx(sum(taus) / 2)
    assert (found.num, found.low) == (2, None)  # one seed has no interval


def test_concordance_lies_within_its_interval() -> None:
    """The orders of means may agree where those of single seeds do not."""
    before = [{seed: dict(zip("abcd", (1.0, 2.0, 3.0, 4.0), strict=True)) for seed in range(3)}]
    rows = ((1.0, 2.0, 3.0, 9.0), (1.0, 9.0, 3.0, 4.0), (9.0, 2.0, 3.0, 4.0))
    after = [{seed: dict(zip("abcd", row, strict=True)) for seed, row in enumerate(rows)}]
    found = agreement(before, after)
    taus = [stats.kendalltau((1, 2, 3, 4), row).statistic for row in rows]
    assert found is not None
    assert found.tau == pytest.approx(sum(taus) / 3)
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.tau < found.high


def test_an_order_of_ties_is_no_order() -> None:
    assert agreement(orders([1.0, 1.0, 1.0]), orders([1.0, 2.0, 3.0])) is None


@pytest.mark.parametrize("num", range(3, 7))
def test_ranks_add_up_whatever_ties_there_are(num: int) -> None:
    rng = random.Random(num)
    gains = {name: [float(rng.randint(0, 2)) for _ in range(7)] for name in "abcdef"[:num]}
    result = ranking(gains)
    assert result is not None
    assert sum(result.ranks) == pytest.approx(num * (num + 1) / 2)
    assert all(a <= b for a, b in itertools.pairwise(result.ranks))
