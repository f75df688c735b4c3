import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from regrow.errors import ConfigError
from regrow.report.statistics import (
    Sample,
    equivalence,
    holm,
    mean_and_std,
    means_of_others,
    paired,
    pooled,
    seeds_to_settle,
    sign_test,
    welch,
)

FIRST = [93.62, 93.81, 93.47, 93.90, 93.55]
SECOND = [93.41, 93.52, 93.44, 93.60, 93.49]

points = st.lists(st.floats(0, 100, allow_nan=False), min_size=3, max_size=12)


def test_paired_equals_scipy() -> None:
    ours = paired(FIRST, SECOND)
    theirs = scipy_stats.ttest_rel(FIRST, SECOND)
    interval = theirs.confidence_interval(0.95)
    assert ours.p == pytest.approx(theirs.pvalue, rel=1e-9)
    assert (ours.low, ours.high) == pytest.approx((interval.low, interval.high), rel=1e-9)
    assert ours.df == 4


def test_paired_changes_sign_with_its_arms() -> None:
    one, other = paired(FIRST, SECOND), paired(SECOND, FIRST)
    assert one.difference == pytest.approx(-other.difference)
    assert one.p == pytest.approx(other.p)


def test_equivalence_equals_two_one_sided_scipy_tests() -> None:
    margin = 0.3
    above = scipy_stats.ttest_1samp(_differences(), -margin, alternative="greater").pvalue
    below = scipy_stats.ttest_1samp(_differences(), margin, alternative="less").pvalue
    result = equivalence(paired(FIRST, SECOND), margin=margin)
    assert result.p == pytest.approx(max(above, below), rel=1e-9)


@given(points, st.floats(0.05, 5))
def test_equivalence_holds_exactly_when_its_interval_lies_within_the_margin(
    differences: list[float], margin: float
) -> None:
    result = equivalence(paired(differences, [50.0] * len(differences)), margin=margin)
    if result.low is None or result.high is None or result.p is None:
        return
    inside = max(abs(result.low), abs(result.high))
    if not math.isclose(inside, margin, rel_tol=1e-6):
        assert (result.p < result.alpha) == (inside < margin)


def test_welch_equals_scipy_from_summary_figures() -> None:
    first, second = Sample(mean=93.78, std=0.15, n=5), Sample(mean=93.41, std=0.12, n=5)
    ours = welch(first, second)
    theirs = scipy_stats.ttest_ind_from_stats(
        first.mean, first.std, first.n, second.mean, second.std, second.n, equal_var=False
    )
    assert ours.p == pytest.approx(theirs.pvalue, rel=1e-9)
    assert not ours.paired


def test_welch_degrees_of_freedom_by_hand() -> None:
    # Equal std and n: Satterthwaite gives 2 (n - 1).
    result = welch(Sample(mean=1, std=0.2, n=5), Sample(mean=0, std=0.2, n=5))
    assert result.df == pytest.approx(8)
    assert result.error == pytest.approx(0.2 * math.sqrt(2 / 5))


def test_one_pair_gives_a_difference_and_no_test() -> None:
    result = paired([95.0], [94.0])
    assert (result.n, result.difference, result.p, result.low) == (1, 1.0, None, None)
    assert "no test" in result.note
    assert equivalence(result).p is None


def test_a_single_printed_run_gives_no_welch_test() -> None:
    result = welch(Sample(mean=73.0, std=None, n=1), Sample(mean=72.5, std=None, n=1))
    assert result.difference == 0.5
    assert result.p is None
    assert "no test" in result.note


def test_no_spread_in_printed_cells_gives_no_test() -> None:
    result = welch(Sample(mean=1.0, std=0.0, n=5), Sample(mean=0.0, std=0.0, n=5))
    assert result.p is None
    assert "no spread" in result.note


@pytest.mark.parametrize(("shift", "p"), [(0.0, 1.0), (0.5, 2.0**-4), (-0.5, 2.0**-4)])
def test_equal_differences_are_judged_by_an_exact_sign_test(shift: float, p: float) -> None:
    result = paired([value + shift for value in SECOND], SECOND)
    assert result.std == 0.0
    assert result.p == p
    assert result.low is None


def test_equal_differences_within_the_margin_are_equivalent_with_enough_pairs() -> None:
    assert equivalence(paired(SECOND, SECOND)).p == 2.0**-5
    assert equivalence(paired([96.0, 97.0], [95.0, 96.0])).p == 1.0


@given(st.lists(st.floats(-1e6, 1e6) | st.sampled_from([93.1, 93.1 + 1e-12]), max_size=9))
def test_means_of_all_others_are_to_the_bit_those_of_each_list_without_one(
    values: list[float],
) -> None:
    others = [values[:i] + values[i + 1 :] for i in range(len(values))]
    expected = [mean_and_std(part)[0] if part else None for part in others]
    assert means_of_others(values) == expected


def test_mean_and_std_do_not_depend_on_the_order() -> None:
    values = [random.Random(1).uniform(90, 99) for _ in range(9)]
    assert mean_and_std(values) == mean_and_std(values[::-1])


def test_holm_by_hand_and_below_bonferroni() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([None, 0.5]) == [None, 0.5]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_keeps_the_order_and_lies_between_raw_and_bonferroni(ps: list[float]) -> None:
    adjusted = [p for p in holm(ps) if p is not None]
    for raw, corrected in zip(ps, adjusted, strict=True):
        assert raw <= corrected <= min(1.0, raw * len(ps)) + 1e-12
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    assert [adjusted[i] for i in order] == sorted(adjusted)


def test_sign_test_equals_scipy() -> None:
    differences = [0.1] * 12 + [-0.2] * 3 + [0.0]
    signs = sign_test(differences)
    assert (signs.up, signs.down, signs.ties) == (12, 3, 1)
    assert signs.p == pytest.approx(scipy_stats.binomtest(12, 15).pvalue)
    assert sign_test([0.0]).p == 1.0


def test_pooled_of_agreeing_rows_is_the_inverse_variance_mean() -> None:
    cells = [(0.2, 0.1), (0.2, 0.2), (0.2, 0.4)]
    rows = [
        welch(Sample(mean=d, std=e * math.sqrt(5), n=5), Sample(mean=0, std=0.0, n=5))
        for d, e in cells
    ]
    result = pooled([*rows, paired([1.0], [0.0])])
    assert result is not None
    assert (result.num, result.num_left_out) == (3, 1)
    assert result.mean == pytest.approx(0.2)
    assert result.tau == 0.0
    half = scipy_stats.t.ppf(0.975, 2) / math.sqrt(sum(1 / e**2 for _, e in cells))
    assert result.high - result.mean == pytest.approx(half)


def test_pooled_needs_two_rows() -> None:
    assert pooled([paired(FIRST, SECOND)]) is None


def test_pooled_finds_what_varies_beyond_chance() -> None:
    rows = [paired([d + 0.01, d, d - 0.01], [0.0] * 3) for d in (-1.0, 0.0, 1.0)]
    result = pooled(rows)
    assert result is not None
    assert result.tau == pytest.approx(1.0, abs=0.01)


def test_seeds_to_settle_grow_with_the_spread() -> None:
    needed = [seeds_to_settle(0.2, std, margin=0.3) for std in (0.1, 0.2, 0.4)]
    assert needed == sorted(needed)
    assert seeds_to_settle(0.0, 0.0, margin=0.3) == 5  # 2^-5 < 0.05


def test_seeds_to_settle_agree_with_the_exact_power_of_the_t_test() -> None:
    # Difference 0.5, std 0.5, margin below the difference: only "find it" is possible.
    n = seeds_to_settle(0.5, 0.5, margin=0.3)
    shift = math.sqrt(n)
    limit = scipy_stats.t.ppf(0.975, n - 1)
    assert scipy_stats.nct.sf(limit, n - 1, shift) == pytest.approx(0.8, abs=0.05)


def test_pairs_must_be_pairs() -> None:
    with pytest.raises(ConfigError, match=r"same number of values in both arms. Got 2 and 1"):
        paired([1.0, 2.0], [1.0])
    with pytest.raises(ConfigError, match="at least one value"):
        paired([], [])


def test_margin_must_be_positive() -> None:
    with pytest.raises(ConfigError, match=r"'margin' .* above 0. Got 0"):
        equivalence(paired(FIRST, SECOND), margin=0)


def test_type_one_errors_stay_at_their_level() -> None:
    rng = random.Random(7)
    found = matched = 0
    for _ in range(2000):
        same = paired([rng.gauss(0, 0.3) for _ in range(5)], [0.0] * 5)
        found += same.p is not None and same.p < 0.05
        at_margin = paired([rng.gauss(0.3, 0.3) for _ in range(5)], [0.0] * 5)
        p = equivalence(at_margin, margin=0.3).p
        matched += p is not None and p < 0.05
    # Three binomial standard errors above 0.05 of 2000 is 129.
    assert 71 <= found <= 129
    assert matched <= 129


def _differences() -> list[float]:
    return [a - b for a, b in zip(FIRST, SECOND, strict=True)]
