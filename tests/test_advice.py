"""Which network of a comparison to take, and measurements that stand for several seeds."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from regrow.report import summarise, verdicts
from regrow.report.advice import advice
from regrow.report.answer import Answer
from regrow.report.rows import Run
from regrow.tasks.metric import BITS_PER_BYTE, R_SQUARED

SEEDS = 4


def row(arm: str, scores: Sequence[float], *, macs: int = 500, **others: Any) -> list[Run]:
    """Make the runs of an arm, on a cut to half the MACs unless it is the whole network."""
    cut = {} if arm == "unpruned" else {"method": "l1", "target": "macs 0.5"}
    fields: dict[str, Any] = {"data": "mine.py:train", "model": "Net", "status": "done", **cut}
    fields |= {"parameters": macs // 10, "macs": macs, "epochs": 8, "training_flops": 1e9}
    fields |= {"start": "random", "budget": "equal-epochs", "num_test": 10_000, "chance": 10.0}
    return [
        Run(**{**fields, "arm": arm, "seed": seed, "score": score, **others})
        for seed, score in enumerate(scores)
    ]


WHOLE = row("unpruned", [90.0] * SEEDS, macs=1000, job="once", epochs=0)


def told(*rows: list[Run]) -> list[Answer]:
    runs = [run for each in rows for run in each]
    return [*advice(runs, verdicts(runs))]


def test_the_best_network_is_named_with_its_cost_and_what_is_shown_of_it() -> None:
    (found,) = told(
        WHOLE,
        row("fine-tune", [80.0, 80.2, 80.1, 80.3]),
        row("scratch-e", [88.0, 88.3, 88.1, 88.2]),
        row("hidden_size=36", [88.2, 88.2, 88.4, 88.1], macs=400),
    )
    assert str(found) == (
        "Which network to take? Not decided: hidden_size=36 has the best mean of the 3 compared: "
        "88.22 % with 40 (40%) parameters, 400 (40%) MACs, 8 epochs of training and 1.00G training "
        "FLOPs in all. It is the smallest of the 3 compared. It is shown to be better than "
        "fine-tune. Not shown to be worse: scratch-e (-0.07). Tested by paired t tests of all "
        "pairs of these, corrected by Holm. Compared with the unpruned network: -1.77 "
        "points."
    )


def test_one_that_is_shown_to_be_better_than_each_other_is_recommended() -> None:
    (found,) = told(
        WHOLE,
        row("fine-tune", [80.0, 80.2, 80.1, 80.3]),
        row("scratch-e", [88.0, 88.3, 88.1, 88.2]),
    )
    assert str(found) == (
        "Which network to take? Take scratch-e: 88.15 % with 50 (50%) parameters, 500 (50%) MACs, "
        "8 epochs of training and 1.00G training FLOPs in all. It is shown to be better than "
        "fine-tune. Tested by paired t tests of all pairs of these, corrected by Holm. Compared "
        "with the unpruned network: -1.85 points."
    )


def test_none_is_recommended_if_the_best_is_not_above_chance() -> None:
    rows = (
        WHOLE,
        row("fine-tune", [12.0, 12.1, 12.5, 12.2], num_test=100),
        row("scratch-e", [10.0, 10.3, 10.0, 10.1], num_test=100),
        row("scratch-b", [8.0, 8.5, 8.2, 8.1], num_test=100),
    )
    (found,) = told(*rows)
    assert str(found) == (
        "Which network to take? No conclusion: fine-tune has the best mean of the 3 compared, and "
        "is not above chance (12.20 ± 0.22, and always naming the most frequent class 10.00)."
    )
    (found,) = told(*[[replace(run, num_test=10_000) for run in each] for each in rows])
    assert found.short == "Take fine-tune"


def test_a_smaller_one_that_is_not_shown_to_be_worse_is_named() -> None:
    (found,) = told(
        WHOLE,
        row("scratch-e", [88.0, 88.3, 88.1, 88.2]),
        row("width=8", [88.1, 88.0, 88.2, 88.1], macs=300),
    )
    assert found.short == "Not decided"
    assert found.text.startswith("scratch-e has the best mean of the 2 compared: ")
    assert "Not shown to be worse: width=8 (-0.05, and smaller)." in found.text


def test_one_seed_decides_nothing() -> None:
    (found,) = told(WHOLE[:1], row("fine-tune", [80.0]), row("scratch-e", [88.0]))
    assert found.short == "Not decided"
    assert "Nothing is tested: that takes two seeds or more (--seeds)." in found.text
    assert "better than" not in found.text


def test_networks_are_compared_over_the_seeds_that_all_have() -> None:
    lost = row("fine-tune", [0.0, 85.0, 85.5, 86.0])[1:]  # without the seed that was hard
    (found,) = told(WHOLE, lost, row("scratch-b", [10.0, 90.0, 91.1, 90.6]))
    assert found.short == "Take scratch-b"
    assert found.text.startswith("90.57 % ")
    assert "Compared over 3 seeds that all have." in found.text
    (found,) = told(WHOLE, lost[:1], row("scratch-b", [10.0, 90.0, 91.1, 90.6]))
    assert found.short == "Not decided"
    assert "Nothing is tested: the networks have fewer than two seeds in common." in found.text
    (found,) = told(WHOLE, lost, row("scratch-b", [10.0]))
    assert found.short == "Not decided"
    assert "better than" not in found.text


def test_a_network_that_is_shown_to_be_worse_is_never_recommended() -> None:
    fine = replace(R_SQUARED, better="lower", digits=2)
    scores = {"fine-tune": [0.0040, 0.0041, 0.0042], "scratch-b": [0.0010, 0.00111, 0.0012]}
    runs = [
        replace(run, metric=fine, chance=9.0) for arm in scores for run in row(arm, scores[arm])
    ]
    (found,) = advice(runs, verdicts(runs))
    assert found.short == "Take scratch-b", "though both means print as 0.00"


def test_nothing_is_recommended_while_a_network_has_no_result() -> None:
    failed = row("fine-tune", [80.0, 80.2, 80.1, 80.3])
    failed = [replace(run, status="failed", score=None) for run in failed]
    (found,) = told(
        WHOLE,
        failed,
        row("scratch-e", [88.0, 88.3, 88.1, 88.2]),
        row("scratch-b", [90.0, 90.3, 90.1, 90.3]),
    )
    assert found.short == "Not decided"
    assert "It is shown to be better than scratch-e. Without results: fine-tune." in found.text


def test_a_lower_score_is_better_where_the_metric_says_so() -> None:
    runs = [
        replace(run, metric=BITS_PER_BYTE, chance=99.0)
        for run in [
            *row("fine-tune", [2.0, 2.1, 2.3, 2.0]),
            *row("scratch-e", [1.0, 1.1, 1.2, 1.0]),
        ]
    ]
    (found,) = advice(runs, verdicts(runs))
    assert found.short == "Take scratch-e"


def test_a_cell_that_allows_no_conclusion_recommends_nothing() -> None:
    low = [row(arm, [10.0, 10.1, 9.9, 10.0]) for arm in ("fine-tune", "scratch-e")]
    (found,) = told(row("unpruned", [10.0] * SEEDS, macs=1000, job="once"), *low)
    assert found.short == "No conclusion"
    assert "above chance" in found.text


def test_without_two_networks_to_choose_from_nothing_is_said() -> None:
    assert told(WHOLE, row("fine-tune", [80.0, 81.0])) == []
    assert told(WHOLE) == []


def test_one_measurement_counts_once_and_pairs_with_every_seed() -> None:
    runs = [*WHOLE, *row("fine-tune", [80.0, 81.0, 82.0, 83.0])]
    whole, tuned = summarise(runs).to_dict("records")
    assert (whole["mean"], whole["n"], whole["n_expected"]) == (90.0, 1, 1)
    assert whole["std"] != whole["std"], "no spread is known of one measurement"
    assert (tuned["n"], tuned["std"]) == (4, pytest.approx(1.29, abs=0.01))
