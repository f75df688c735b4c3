"""How often contests say what is not so: simulated tables whose truth is known.

The whole way from runs to verdicts is simulated: scores of seeds that methods share, comparisons,
and the correction over a table. A few tables in the default tests; 10,000 of each kind by
``uv run pytest -n 0 -m slow tests/test_false_verdicts.py -s``, which prints the rates.
"""

import math
import random
from collections.abc import Callable

import pytest

from regrow.report.contests import contests
from regrow.report.rows import Ending, Run

MARGIN = 0.3
ALPHA = 0.05
FEW, MANY = 60, 10_000
# (methods, levels, seeds)
SIZES = {"small": (3, 2, 3), "usual": (4, 2, 5), "wide": (7, 1, 5)}


def simulated(
    gap: float, *, size: tuple[int, int, int], rng: random.Random, test_images: int | None = None
) -> list[Run]:
    """Make a table whose methods differ by multiples of a gap; seeds have effects of their own.

    With ``test_images`` scores are shares of so many images, so that ties occur.
    """
    num_methods, num_levels, num_seeds = size
    runs = []
    for level in range(num_levels):
        of_seed = [rng.gauss(0, 0.5) for _ in range(num_seeds)]
        for method in range(num_methods):
            for seed in range(num_seeds):
                score = 90 + gap * method + of_seed[seed] + rng.gauss(0, 0.2)
                if test_images is not None:
                    score = round(score / 100 * test_images) / test_images * 100
                runs.append(
                    Run(
                        data="d",
                        model=f"m{level}",
                        method=f"method {method}",
                        target="macs 0.5",
                        arm="fine-tune",
                        seed=seed,
                        start="inherited",
                        budget="share",
                        status="done",
                        score=score,
                        macs=500,
                        cost_asked=0.5,
                        cost_left=0.5,
                        num_test=10_000,
                        chance=10.0,
                        ending=Ending(loss=0.01),
                    )
                )
    return runs


def rate(num: int, wrong: set[str], make: Callable[[random.Random], list[Run]]) -> float:
    """Return the share of tables in which a pair, or an average, is said to be what it is not."""
    rng = random.Random(20261126)
    errors = [0, 0]
    for _ in range(num):
        (contest,) = contests(make(rng), margin=MARGIN, alpha=ALPHA)
        for kind, verdicts in enumerate((contest.pairs, contest.averages)):
            errors[kind] += any(verdict.outcome in wrong for verdict in verdicts)
    return max(errors) / num


def allowed(num: int) -> float:
    """Return the level, and three standard errors of a rate at it."""
    return ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / num)


@pytest.mark.parametrize("size", SIZES)
def test_equal_methods_are_hardly_ever_called_better(size: str) -> None:
    found = rate(FEW, {"better", "worse"}, lambda rng: simulated(0.0, size=SIZES[size], rng=rng))
    assert found <= allowed(FEW)


@pytest.mark.parametrize("size", SIZES)
def test_methods_a_margin_apart_are_hardly_ever_called_equivalent(size: str) -> None:
    found = rate(FEW, {"equivalent"}, lambda rng: simulated(MARGIN, size=SIZES[size], rng=rng))
    assert found <= allowed(FEW)


def test_without_a_correction_tables_would_be_wrong_more_often() -> None:
    def errors(rng: random.Random) -> bool:
        (contest,) = contests(simulated(0.0, size=SIZES["wide"], rng=rng), margin=0.01)
        tests = [verdict.comparison for verdict in contest.pairs]
        return any(test is not None and (test.p or 0.0) < ALPHA for test in tests)

    rng = random.Random(1)
    assert sum(errors(rng) for _ in range(FEW)) / FEW > 0.2


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("name", "wrong", "gap", "test_images"),
    [
        ("false better", {"better", "worse"}, 0.0, None),
        ("false better, 2,000 images", {"better", "worse"}, 0.0, 2000),
        ("false equivalent", {"equivalent"}, MARGIN, None),
        ("false equivalent, 2,000 images", {"equivalent"}, MARGIN, 2000),
    ],
)
def test_in_ten_thousand_tables_errors_stay_at_their_level(
    name: str, wrong: set[str], gap: float, test_images: int | None, size: str
) -> None:
    found = rate(
        MANY,
        wrong,
        lambda rng: simulated(gap, size=SIZES[size], rng=rng, test_images=test_images),
    )
    print(f"{name}, {size} {SIZES[size]}: {100 * found:.2f} % of {MANY:,} tables")
    assert found <= ALPHA
