"""What allows no conclusion: networks at chance, unfinished parents, coarse test sets."""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from regrow.report.rows import Ending
from regrow.report.statistics import at_least
from regrow.report.validity import EXCLUDING, RULES, Evidence, Rule, excluded, judge

TEN: dict[str, Any] = {"num_test": 10_000, "chance": 10.0}
GOOD = Evidence(mean=93.5, std=0.2, n=5, **TEN, loss=0.002, fall=0.0)
LOW = Evidence(mean=10.0, std=0.0, n=5, **TEN)


def rules(*args: Evidence, margin: float = 0.3, **options: Any) -> list[Rule]:
    return [reason.rule for reason in judge(*args, margin=margin, **options)]


@pytest.mark.parametrize(
    ("accuracies", "options", "above"),
    [
        ([10.0] * 5, TEN, False),  # always one class
        ([9.7] * 5, TEN, False),  # always a rarer one
        ([10.3, 10.1, 9.9], TEN, False),
        ([12.0], TEN, True),
        ([12.0], {"num_test": 100, "chance": 10.0}, False),
        ([30.0], {"num_test": 10_000, "chance": 30.0}, False),  # unequal classes
        ([19.0, 9.7, 10.2, 9.0, 17.0], {"num_test": 359, "chance": 10.3}, False),  # by luck
        ([90.0, 10.0, 10.0, 10.0, 10.0], TEN, False),  # one of five learnt
        ([90.0, 90.0, 90.0, 10.0, 10.0], TEN, True),
        ([40.0, 90.0], TEN, True),
        ([55.0], {"chance": None, "num_test": 100}, None),
        ([0.5], {"chance": 0.1, "num_test": None}, True),  # a detector above its untrained self
        ([0.1], {"chance": 0.1, "num_test": None}, False),
        ([100.0], {"chance": 100.0, "num_test": 50}, False),  # a test set of one class
    ],
)
def test_above_chance_means_beating_the_most_frequent_class(
    accuracies: Sequence[float], options: dict[str, Any], above: bool | None
) -> None:
    found = Evidence.of(accuracies, **options)
    assert found is not None
    assert found.above_chance is above


def test_networks_that_guess_are_hardly_ever_called_above_chance() -> None:
    rng = random.Random(0)
    passed = 0
    for _ in range(400):
        seeds = [sum(rng.random() < 0.1 for _ in range(200)) / 2 for _ in range(3)]
        found = Evidence.of(seeds, num_test=200, chance=10.0)
        assert found is not None
        passed += found.above_chance is True
    assert passed <= 10


def test_a_tail_of_the_binomial_is_exact() -> None:
    assert at_least(0, of=5, chance=0.1) == 1.0
    assert at_least(5, of=5, chance=0.1) == pytest.approx(1e-5)
    assert at_least(4, of=5, chance=0.1) == pytest.approx(1e-5 + 5 * 0.9 * 1e-4)


def test_no_conclusion_where_the_parent_or_both_arms_are_at_chance() -> None:
    above = replace(GOOD, mean=13.5, std=0.5)
    assert rules(above, GOOD, parent=LOW)[0] == "parent at chance"
    assert rules(above, GOOD, parent=GOOD, plain=LOW)[0] == "parent at chance"
    assert rules(LOW, replace(LOW, mean=9.0), parent=GOOD)[0] == "arms at chance"
    assert excluded(judge(above, GOOD, parent=LOW, margin=0.3))
    found = judge(GOOD, LOW, parent=GOOD, margin=0.3)  # one that pruning broke is a result
    assert [reason.rule for reason in found] == ["one arm at chance"]
    assert not excluded(found)
    assert "10.00 \u00b1 0.00, and always naming the most frequent class 10.00" in found[0].text


def test_what_is_not_known_is_said_or_left_alone() -> None:
    bare = Evidence(mean=50.0, std=1.0, n=3)
    assert rules(bare, bare, parent=bare, cut=[bare]) == ["chance unknown"]


@pytest.mark.parametrize(
    ("arm", "unfinished"),
    [
        ({"mean": 50.3, "loss": 1.2}, True),
        ({"mean": 50.3, "loss": 1.6}, False),  # it generalises better, and fits no better
        ({"mean": 47.5, "loss": 1.2}, False),  # by no more than the margin and the test set's error
        ({"mean": 50.3, "loss": None}, False),
        ({"mean": 50.3, "loss": 1.2, "num_test": None}, False),
    ],
)
def test_a_parent_that_a_smaller_network_outgrows_had_not_converged(
    arm: dict[str, Any], unfinished: bool
) -> None:
    parent = Evidence(mean=44.6, std=1.4, n=2, num_test=2000, chance=10.0, loss=1.5)
    other = replace(parent, **arm)
    found = judge(parent, parent, margin=1.0, parent=parent, cut=[parent, other])
    assert excluded(found) is unfinished
    if unfinished:
        assert "beats it by 5.70 points, at a training loss of 1.2 below its own" in found[0].text


@pytest.mark.parametrize(
    ("loss", "fall", "margin", "unfinished"),
    [
        (1.5, 0.05, 1.0, True),
        (1.5, 0.05, 10.0, False),  # worth less than the margin
        (1.5, 0.014, 1.0, False),  # below 1 % of itself
        (0.01, 0.001, 0.3, False),
        (1.5, None, 1.0, False),
        (1.5, -0.1, 1.0, False),
    ],
)
def test_a_loss_that_still_falls_means_not_converged(
    loss: float, fall: float | None, margin: float, unfinished: bool
) -> None:
    parent = replace(GOOD, mean=50.0, loss=loss, fall=fall)
    found = judge(GOOD, GOOD, parent=parent, margin=margin)
    assert ("not converged" in [reason.rule for reason in found]) is unfinished


@pytest.mark.parametrize(
    ("loss", "fall", "num_test", "said"),
    [
        (
            1.5,
            0.05,
            None,
            "still fell by 0.05 an epoch at its last learning rate, and what that is worth",
        ),
        (1.5, 0.014, None, ""),  # below 1 % of itself
        (1.5, None, None, "not known for two epochs at its last learning rate"),
        (1.5, None, 2000, "not known for two epochs at its last learning rate"),
        (None, None, None, ""),  # weights from elsewhere: nothing is known of their training
    ],
)
def test_what_is_not_known_of_the_end_of_a_training_is_said(
    loss: float | None, fall: float | None, num_test: int | None, said: str
) -> None:
    parent = replace(GOOD, loss=loss, fall=fall, num_test=num_test)
    found = [r for r in judge(GOOD, GOOD, parent=parent, margin=1.0) if "convergence" in r.rule]
    assert [said in reason.text for reason in found] == ([True] if said else [])
    assert not excluded(found)


def test_convergence_is_asked_of_the_network_that_no_method_treated() -> None:
    treated = replace(GOOD, mean=50.0, loss=2.0)
    assert not excluded(judge(GOOD, GOOD, parent=treated, plain=GOOD, cut=[GOOD], margin=0.3))
    assert excluded(judge(GOOD, GOOD, parent=GOOD, plain=treated, cut=[GOOD], margin=0.3))


@pytest.mark.parametrize(
    ("num_test", "mean", "margin", "expected"),
    [
        (10_000, 99.0, 0.3, []),
        (300, 100.0, 0.3, ["margin below one image"]),
        (300, 99.99, 0.4, []),
        (2000, 45.0, 1.0, ["margin below sampling error"]),
    ],
)
def test_a_margin_finer_than_the_test_set_is_said(
    num_test: int, mean: float, margin: float, expected: list[Rule]
) -> None:
    arm = Evidence(mean=mean, std=0.1, n=5, num_test=num_test, chance=10.0)
    found = judge(arm, arm, margin=margin)
    assert [reason.rule for reason in found] == expected
    assert not excluded(found)


def test_reasons_that_exclude_come_first() -> None:
    small = replace(LOW, num_test=100)
    found = judge(small, small, parent=small, margin=0.3)
    assert [reason.excludes for reason in found] == sorted(
        [reason.excludes for reason in found], reverse=True
    )
    assert RULES[: len(EXCLUDING)] == EXCLUDING


@pytest.mark.parametrize(
    ("rates", "losses", "fall"),
    [
        ([], [], "none"),
        ([0.1], [2.0], None),
        ([0.1, 0.01], [2.0, 1.0], None),
        ([0.1, 0.01, 0.01], [2.0, 1.0, 0.75], 0.25),
        # The first epoch at a lower rate shows the drop, not the pace.
        ([0.1, 0.01, 0.01, 0.01], [2.0, 1.0, 0.75, 0.625], 0.125),
        ([0.1] * 5, [2.0, 1.0, 0.8, 0.6, 0.4], pytest.approx(0.2)),
    ],
)
def test_the_fall_of_a_loss_is_that_at_the_last_rate(
    rates: list[float], losses: list[float], fall: Any
) -> None:
    found = Ending.of([{"lr": r, "loss": v} for r, v in zip(rates, losses, strict=True)])
    if fall == "none":
        assert found is None
    else:
        assert found == Ending(loss=losses[-1], fall=fall)
