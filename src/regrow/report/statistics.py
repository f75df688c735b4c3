"""Compare two arms without claiming more than the seeds show.

Arms that share a seed share data order and augmentation, so they are paired by seed: ``paired`` is
the default test. ``welch`` is for published numbers, of which only mean, standard deviation and n
are known. Both return a ``Comparison``, and ``equivalence`` tests whether its difference is smaller
than a margin, because "not significant" is never evidence of equality. Accuracies and differences
are in points (percent) throughout.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from scipy.special import bdtrc, betaincinv, ndtri, stdtr, stdtrit

from regrow.errors import ConfigError

# A smaller spread, relative to the values, is floating-point rounding and no variation of seeds.
ROUNDING = 1e-9
DIGITS = 9  # decimals of a score that are not rounding


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Summary statistics of one cell; ``std`` divides by n - 1 and is None for a single run."""

    mean: float
    std: float | None
    n: int


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """First arm minus second arm, with its uncertainty.

    ``n`` counts pairs (for Welch: the smaller group). ``p`` is two-sided; it is None where no test
    is possible, and ``note`` then says why. ``std`` is that of the paired differences.
    """

    n: int
    difference: float
    std: float | None
    error: float | None
    df: float | None
    low: float | None
    high: float | None
    p: float | None
    confidence: float
    paired: bool
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Equivalence:
    """Outcome of two one-sided tests: a small ``p`` shows a difference below ``margin``.

    ``low`` and ``high`` bound the difference at confidence 1 - 2 alpha, the interval that lies
    within the margins exactly when p < alpha.
    """

    margin: float
    alpha: float
    p: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True)
class Superiority:
    """The probability that one side beats the other on a new seed, with its interval.

    ``wins`` is the number of wins in ``n`` pairs; a tie counts as half a win.
    """

    value: float
    low: float
    high: float
    wins: float
    n: int
    confidence: float


@dataclass(frozen=True, kw_only=True)
class Signs:
    """Numbers of rows that go up and down, with the exact two-sided sign test over untied ones."""

    up: int
    down: int
    ties: int
    p: float


@dataclass(frozen=True, kw_only=True)
class Pooled:
    """Random-effects mean of several differences; ``tau`` is the std of the true differences."""

    num: int
    num_left_out: int
    mean: float
    low: float
    high: float
    p: float
    tau: float
    confidence: float


def mean_and_std(values: Sequence[float]) -> tuple[float, float | None]:
    """Return mean and standard deviation (n - 1; None for one value), whatever the order.

    >>> mean_and_std([1.0, 2.0, 3.0])
    (2.0, 1.0)
    >>> mean_and_std([98.5])
    (98.5, None)
    """
    if not values:
        raise ConfigError("A mean needs at least one value. Got none.")
    if max(values) - min(values) <= ROUNDING * max(1.0, *map(abs, values)):
        return values[0], 0.0 if len(values) > 1 else None
    mean = math.fsum(values) / len(values)
    return mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))


def rounded(value: float) -> float:
    """Return a value without its rounding error, so that equal means tie.

    >>> two, three, four = (100 * (num / 6) for num in (2, 3, 4))
    >>> (two + four) / 2 == three, rounded((two + four) / 2) == rounded(three)
    (False, True)
    """
    return round(value, DIGITS)


def means_of_others(values: Sequence[float]) -> list[float | None]:
    """Return for each value the mean of all others, as ``mean_and_std`` does; None for one value.

    Sums are exact fractions, from which values can be subtracted exactly: all means take one pass,
    and are bit-identical to means that are computed one by one.

    >>> means_of_others([1.0, 2.0, 6.0])
    [4.0, 3.5, 1.5]
    """
    if len(values) < 2:
        return [None] * len(values)
    exact = [Fraction(value) for value in values]
    total, ordered, sizes = sum(exact), sorted(values), sorted(map(abs, values))
    means: list[float | None] = []
    for i, value in enumerate(values):
        low = ordered[value == ordered[0]]
        high = ordered[-2 if value == ordered[-1] else -1]
        size = sizes[-2 if abs(value) == sizes[-1] else -1]
        alike = high - low <= ROUNDING * max(1.0, size)
        other = values[0] if i else values[1]
        means.append(other if alike else float(total - exact[i]) / (len(values) - 1))
    return means


def paired(
    first: Sequence[float], second: Sequence[float], *, confidence: float = 0.95
) -> Comparison:
    """Compare two arms over the seeds both have, value by value (paired t test).

    t = mean(d) / (std(d) / sqrt(n)) with n - 1 degrees of freedom, d = first - second. One pair
    gives a difference and no test. If all differences are equal, t is not defined: an exact sign
    test takes its place (all n of one sign: p = 2^(1 - n)), and there is no interval.

    >>> result = paired([95.0, 96.0, 97.0], [94.0, 95.5, 95.5])
    >>> result.difference, result.n, round(result.p, 4)
    (1.0, 3, 0.0742)
    """
    if len(first) != len(second):
        raise ConfigError(
            f"A paired comparison needs the same number of values in both arms. Got {len(first)} "
            f"and {len(second)}. Give only the seeds that both have."
        )
    differences = [a - b for a, b in zip(first, second, strict=True)]
    difference, std = mean_and_std(differences)
    n = len(differences)
    if std is None:
        return _untested(difference, n, confidence, paired=True, note="one pair: no test")
    if std == 0.0:
        p = 1.0 if abs(difference) <= ROUNDING else 2.0 ** (1 - n)
        note = "all differences equal: exact sign test"
        untested = _untested(difference, n, confidence, paired=True, note=note)
        return replace(untested, std=0.0, error=0.0, df=n - 1.0, p=p)
    error = std / math.sqrt(n)
    return _tested(difference, error, n - 1.0, n=n, std=std, confidence=confidence)


def welch(first: Sample, second: Sample, *, confidence: float = 0.95) -> Comparison:
    """Compare two cells by their means, stds and n alone (Welch's t test).

    Variances need not be equal; degrees of freedom by Satterthwaite (1946):
    df = (a + b)^2 / (a^2 / (n1 - 1) + b^2 / (n2 - 1)) with a = s1^2 / n1, b = s2^2 / n2.
    """
    difference = first.mean - second.mean
    n = min(first.n, second.n)
    if n < 2 or first.std is None or second.std is None:
        note = "a single run: no test"
        return _untested(difference, n, confidence, paired=False, note=note)
    a, b = first.std**2 / first.n, second.std**2 / second.n
    if a + b == 0.0:
        note = "no spread in either arm: no test"
        return _untested(difference, n, confidence, paired=False, note=note)
    df = (a + b) ** 2 / (a**2 / (first.n - 1) + b**2 / (second.n - 1))
    return _tested(difference, math.sqrt(a + b), df, n=n, std=None, confidence=confidence)


def equivalence(comparison: Comparison, *, margin: float = 0.3, alpha: float = 0.05) -> Equivalence:
    """Test whether a difference lies within +-margin (two one-sided t tests, TOST).

    p = max(P(T > (d + margin) / error), P(T < (d - margin) / error)). Where all paired differences
    are equal, each side is the exact sign test of the shifted differences (2^-n).

    Reference: Schuirmann, A comparison of the two one-sided tests procedure and the power approach
    for assessing the equivalence of average bioavailability, J. Pharmacokinet. Biopharm. 1987.
    """
    if not margin > 0:
        raise ConfigError(
            f"The 'margin' of an equivalence test must be a number of points above 0. "
            f"Got {margin!r}."
        )
    d, error, df = comparison.difference, comparison.error, comparison.df
    if error is None or df is None:
        return Equivalence(margin=margin, alpha=alpha, p=None, low=None, high=None)
    if error == 0.0:
        p = 2.0**-comparison.n if abs(d) < margin else 1.0
        return Equivalence(margin=margin, alpha=alpha, p=p, low=None, high=None)
    above = float(stdtr(df, -(d + margin) / error))  # p-value for d > -margin
    below = float(stdtr(df, (d - margin) / error))  # p-value for d < margin
    half = float(stdtrit(df, 1 - alpha)) * error
    return Equivalence(margin=margin, alpha=alpha, p=max(above, below), low=d - half, high=d + half)


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Correct p-values for multiple testing (Holm); None (no test) stays None and is not counted.

    The k-th smallest of m is multiplied by m - k + 1, then made monotone and limited to 1.

    >>> holm([0.01, None, 0.04, 0.03])
    [0.03, None, 0.06, 0.06]

    Reference: Holm, A simple sequentially rejective multiple test procedure, Scand. J. Stat. 1979.
    """
    tested = sorted((p, i) for i, p in enumerate(ps) if p is not None)
    adjusted: list[float | None] = [None] * len(ps)
    running = 0.0
    for rank, (p, i) in enumerate(tested):
        running = max(running, min(1.0, p * (len(tested) - rank)))
        adjusted[i] = running
    return adjusted


def in_sequence(chains: Sequence[Sequence[float | None]]) -> list[list[float | None]]:
    """Correct p-values of hypotheses that are tested in a fixed order, in one or several chains.

    A chain is tested from its first hypothesis on, and ends at the first that is not rejected;
    because the order is fixed beforehand, its length needs no correction (Maurer et al., 1995).
    Chains share the level equally, and a chain whose hypotheses are all rejected passes its share
    on to the others (Bretz et al., 2009), so chains of one hypothesis are Holm's procedure. The
    probability of any false rejection is at most the level, however the tests depend on each other.
    None (no test) ends a chain; a chain that begins with None is not counted.

    >>> in_sequence([[0.01, 0.04, 0.2, 0.001]]), in_sequence([[0.01], [0.03]])
    ([[0.01, 0.04, 0.2, 0.2]], [[0.02], [0.03]])

    References: Maurer, Hothorn, Lehmacher, Multiple comparisons in drug clinical trials and
    preclinical assays: a-priori ordered hypotheses, Biometrie in der chemisch-pharmazeutischen
    Industrie 6, 1995; Bretz, Maurer, Brannath, Posch, A graphical approach to sequentially
    rejective multiple test procedures, Stat. Med. 2009.
    """
    adjusted: list[list[float | None]] = [[None] * len(chain) for chain in chains]
    heads = {i: 0 for i, chain in enumerate(chains) if chain and chain[0] is not None}
    num_open, running = len(heads), 0.0
    while heads:
        p, i = min((chains[i][head] or 0.0, i) for i, head in heads.items())
        running = max(running, min(1.0, p * num_open))
        adjusted[i][heads[i]] = running
        heads[i] += 1
        if heads[i] == len(chains[i]):
            del heads[i]
            num_open -= 1
        elif chains[i][heads[i]] is None:
            del heads[i]
    return adjusted


def sign_test(differences: Sequence[float]) -> Signs:
    """Count rows by the sign of their difference, with the exact binomial p-value (1/2 each).

    >>> sign_test([0.2, 0.1, 0.4, 0.3, 0.2, -0.1, 0.0])
    Signs(up=5, down=1, ties=1, p=0.21875)
    """
    up = sum(d > ROUNDING for d in differences)
    down = sum(d < -ROUNDING for d in differences)
    n = up + down
    tail = sum(math.comb(n, k) for k in range(min(up, down) + 1)) / 2**n
    return Signs(up=up, down=down, ties=len(differences) - n, p=min(1.0, 2 * tail))


def superiority(gains: Sequence[float], *, confidence: float = 0.95) -> Superiority | None:
    """Estimate P(first > second) from paired differences (positive: first is better); None if none.

    The share of pairs that the first wins, as Bouthillier et al. recommend. Their percentile
    bootstrap has no width if all of a few pairs agree, so the interval is the exact binomial one
    (Clopper and Pearson, 1934), which is never too short, whatever the number of pairs.

    >>> won = superiority([0.3, 0.1, 0.4])
    >>> won.value, round(won.low, 3), won.high
    (1.0, 0.292, 1.0)

    Reference: Bouthillier et al., Accounting for Variance in Machine Learning Benchmarks, MLSys
    2021, arXiv:2103.03098.
    """
    n = len(gains)
    if n == 0:
        return None
    wins = sum(1.0 if gain > ROUNDING else 0.5 if gain >= -ROUNDING else 0.0 for gain in gains)
    tail = (1 - confidence) / 2
    low = 0.0 if wins == 0 else float(betaincinv(wins, n - wins + 1, tail))
    high = 1.0 if wins == n else float(betaincinv(wins + 1, n - wins, 1 - tail))
    return Superiority(value=wins / n, low=low, high=high, wins=wins, n=n, confidence=confidence)


def at_least(successes: int, *, of: int, chance: float) -> float:
    """Return the probability of at least so many successes in ``of`` trials (exact binomial).

    >>> at_least(3, of=3, chance=0.5)
    0.125
    """
    return 1.0 if successes <= 0 else float(bdtrc(successes - 1, of, chance))


def pooled(comparisons: Sequence[Comparison], *, confidence: float = 0.95) -> Pooled | None:
    """Average differences over rows that may truly differ (random effects).

    Weights 1 / (error^2 + tau^2), tau^2 by DerSimonian and Laird (1986), interval and p-value by
    Hartung and Knapp (2001) with k - 1 degrees of freedom. Rows without a standard error, or with
    an error of 0, cannot be weighted: they are left out, and counted in ``num_left_out``. None for
    fewer than two rows. Rows that share a parent are treated as independent, which makes the
    interval too short.
    """
    rows = [(c.difference, c.error) for c in comparisons if c.error]
    k = len(rows)
    if k < 2:
        return None
    inverse = [1 / error**2 for _, error in rows]
    fixed = math.fsum(w * d for w, (d, _) in zip(inverse, rows, strict=True)) / sum(inverse)
    q = math.fsum(w * (d - fixed) ** 2 for w, (d, _) in zip(inverse, rows, strict=True))
    scale = sum(inverse) - sum(w**2 for w in inverse) / sum(inverse)
    tau2 = max(0.0, (q - (k - 1)) / scale)
    weights = [1 / (error**2 + tau2) for _, error in rows]
    mean = math.fsum(w * d for w, (d, _) in zip(weights, rows, strict=True)) / sum(weights)
    spread = math.fsum(w * (d - mean) ** 2 for w, (d, _) in zip(weights, rows, strict=True))
    # Never below the plain random-effects error: with few, agreeing rows Hartung-Knapp's is too
    # small (Roever et al., 2015).
    error = math.sqrt(max(1.0, spread / (k - 1)) / sum(weights))
    test = _tested(mean, error, k - 1.0, n=k, std=None, confidence=confidence)
    assert test.low is not None
    assert test.high is not None
    assert test.p is not None
    return Pooled(
        num=k,
        num_left_out=len(comparisons) - k,
        mean=mean,
        low=test.low,
        high=test.high,
        p=test.p,
        tau=math.sqrt(tau2),
        confidence=confidence,
    )


def seeds_to_settle(
    difference: float, std: float, *, margin: float, alpha: float = 0.05, power: float = 0.8
) -> int:
    """Estimate how many pairs would likely decide, taking the observed values as the true ones.

    The smaller of two numbers: pairs to detect the difference, ((z(1 - alpha/2) + z(power)) std /
    d)^2, and, for a difference below the margin, pairs to show equivalence, ((z(1 - alpha) +
    z(1 - (1 - power)/2)) std / (margin - |d|))^2. Normal approximation, with Guenther's (1981)
    correction z^2 / 2 for the t distribution. With a std of 0, the pairs that a sign test needs.

    >>> seeds_to_settle(0.2, 0.2, margin=0.3)
    10
    """
    size = abs(difference)
    if std <= 0.0:
        return math.ceil(math.log2(1 / alpha)) + (size >= margin)
    z_two_sided, z_one_sided, z_power = (float(ndtri(p)) for p in (1 - alpha / 2, 1 - alpha, power))
    needed: list[float] = []
    if size > ROUNDING:
        needed.append(((z_two_sided + z_power) * std / size) ** 2 + z_two_sided**2 / 2)
    if margin - size > ROUNDING:
        z_both = z_one_sided + float(ndtri(1 - (1 - power) / 2))
        needed.append((z_both * std / (margin - size)) ** 2 + z_one_sided**2 / 2)
    return math.ceil(min(needed))


def _tested(
    difference: float, error: float, df: float, *, n: int, std: float | None, confidence: float
) -> Comparison:
    half = float(stdtrit(df, (1 + confidence) / 2)) * error
    return Comparison(
        n=n,
        difference=difference,
        std=std,
        error=error,
        df=df,
        low=difference - half,
        high=difference + half,
        p=2 * float(stdtr(df, -abs(difference) / error)),
        confidence=confidence,
        paired=std is not None,
    )


def _untested(
    difference: float, n: int, confidence: float, *, paired: bool, note: str
) -> Comparison:
    return Comparison(
        n=n,
        difference=difference,
        std=None,
        error=None,
        df=None,
        low=None,
        high=None,
        p=None,
        confidence=confidence,
        paired=paired,
        note=note,
    )
