"""Tuned arms: trials of a study, the choice on validation, its cost, and what fewer had given."""

import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from regrow.errors import ConfigError
from regrow.jobs.arms import ARMS, read_arm
from regrow.jobs.trials import read_trials
from regrow.report import write
from regrow.report.contests import contests
from regrow.report.rows import Run
from regrow.report.setups import setup
from regrow.report.tuning import expected_validation, folded, tuning_rows, unequal_trials
from regrow.report.verdict import verdicts
from regrow.studies.study import Study
from regrow.tasks.metric import BITS_PER_BYTE

COMMON: dict[str, Any] = {
    "data": "d",
    "model": "m",
    "target": "macs 0.5",
    "status": "done",
    "start": "inherited",
    "budget": "share",
    "macs": 500,
    "epochs": 10,
    "total_epochs": 50,
    "num_test": 10_000,
    "chance": 10.0,
    "cost_asked": 0.5,
    "cost_left": 0.5,
    "training_flops": 5e9,
    "arm_flops": 1e9,
}


def trials(
    results: Mapping[str, tuple[float, float]], *, method: str = "a", **changes: Any
) -> list[Run]:
    """Make two seeds of each trial, of (validation, test) scores."""
    return [
        Run(
            **{**COMMON, "method": method, **changes},
            arm=f"fine-tune lr {rate}",
            trial_of="fine-tune",
            seed=seed,
            validation=held_out + seed / 10,
            score=test + seed / 10,
        )
        for rate, (held_out, test) in results.items()
        for seed in range(2)
    ]


FOUND = {"0.1": (90.0, 95.0), "0.01": (92.0, 91.0), "0.001": (91.0, 93.0)}


def test_an_entry_with_tune_becomes_an_arm_for_each_trial() -> None:
    arms = read_trials({"name": "fine-tune", "epochs": 8, "tune": {"lr": [0.1, 1e-3]}})
    assert [arm.name for arm in arms] == ["fine-tune lr 0.1", "fine-tune lr 0.001"]
    assert {arm.trial_of for arm in arms} == {"fine-tune"}
    assert [arm.lr for arm in arms] == [0.1, 0.001]
    assert {arm.budget.amount for arm in arms} == {8}
    alone = read_arm({"name": "fine-tune", "epochs": 8, "lr": 0.1})
    assert alone.to_json() == arms[0].to_json()  # so a trial shares results with the plain arm
    relative = read_trials(
        {"name": "fine-tune-10x", "tune": {"last_rates": [1, 10], "trials": 2, "on": "validation"}}
    )
    assert [arm.last_rates for arm in relative] == [1, 10]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"name": "pruned", "tune": {"lr": [0.1, 0.2]}}, "trains nothing"),
        ({"name": "fine-tune", "tune": {"lr": [0.1]}}, "from 2 to 100 different numbers.*0.1"),
        ({"name": "fine-tune", "tune": {"lr": [0.1, 0.1]}}, "different numbers"),
        ({"name": "fine-tune", "tune": {"lr": [0.1, "x"]}}, "different numbers"),
        (
            {"name": "fine-tune", "tune": {}},
            "one of 'lr', 'last_rates', 'peak_rates'.*none of them",
        ),
        ({"name": "fine-tune", "tune": {"rate": [1, 2]}}, "rate"),
        ({"name": "fine-tune", "tune": {"lr": [1, 2], "trials": 20}}, "must be 2. Got 20"),
        ({"name": "fine-tune", "tune": {"lr": [1, 2], "on": "test"}}, "never on the test set"),
        ({"name": "fine-tune", "lr": 1, "tune": {"lr": [1, 2]}}, "has a 'lr' and tunes 'lr'"),
        ({"name": "fine-tune", "tune": [1, 2]}, "tune"),
    ],
)
def test_a_tuning_that_cannot_be_meant_is_refused(entry: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_trials(entry)


def test_a_study_has_a_row_for_each_trial_and_needs_a_validation_split() -> None:
    study: dict[str, Any] = {
        "data": {"name": "digits", "subset": 60, "validation": 0.2},
        "models": {"name": "vgg", "plan": [4, "M", 4]},
        "methods": {"name": "l1-filter", "sparsity": 0.5},
        "arms": [{"name": "fine-tune", "tune": {"lr": [0.1, 0.01]}}],
        "seeds": 1,
        "recipe": {"epochs": 1},
    }
    cells = Study.from_json(study).cells()
    assert [cell.arm.trial_of for cell in cells] == ["fine-tune"] * 2
    with pytest.raises(ConfigError, match="no validation split to choose on"):
        Study.from_json({**study, "data": {"name": "digits", "subset": 60}}).cells()


def test_the_trial_that_is_best_on_validation_stands_for_its_arm() -> None:
    one, two = folded(trials(FOUND))
    assert (one.arm, one.trial_of, one.score, two.score) == ("fine-tune", "", 91.0, 91.1)
    assert one.training_flops == 5e9 + 2 * 1e9  # the parent once, and every trial
    assert one.total_epochs == 50 + 2 * 10
    assert one.recipe == "the best of 3 trials on validation"


def test_tuned_training_from_scratch_costs_all_of_its_trials() -> None:
    scratch = folded(trials(FOUND, start="random"))
    one = [replace(run, trial_of="") for run in trials({"0.1": (90.0, 95.0)})]
    assert setup(scratch, [replace(r, total_epochs=10, training_flops=1e9) for r in one]) == "S1"
    as_much = [replace(run, total_epochs=30, training_flops=3e9) for run in one]
    assert setup(scratch, as_much) == "S1, SX-A, SX-B"


def test_of_a_metric_of_which_less_is_better_the_least_is_chosen() -> None:
    one, _ = folded(trials(FOUND, metric=BITS_PER_BYTE))
    assert one.score == 95.0


def test_without_validation_nothing_is_chosen() -> None:
    runs = [replace(run, validation=None) for run in trials(FOUND)]
    assert folded(runs) == runs
    assert tuning_rows(runs) == []


def test_a_trial_that_lacks_a_seed_takes_no_part_while_others_are_complete() -> None:
    runs = [
        replace(run, status="missing", score=None, validation=None)
        if run.arm == "fine-tune lr 0.01" and run.seed == 1
        else run
        for run in trials(FOUND)
    ]
    assert folded(runs)[0].score == 93.0


def test_verdicts_and_contests_see_one_row_for_all_trials() -> None:
    scratch = [
        Run(**{**COMMON, "method": "a", "start": "random"}, arm="scratch-b", seed=s, score=91.0 + s)
        for s in range(2)
    ]
    found = verdicts([*trials(FOUND), *scratch])
    assert [(v.arm, v.against) for v in found] == [("scratch-b", "fine-tune")]
    runs = [*trials(FOUND), *trials({"0.1": (90.0, 90.0), "0.2": (91.0, 92.0)}, method="b")]
    (contest,) = contests(runs)
    assert [entrant.mean for entrant in contest.levels[0].entrants] == [91.05, 92.05]


@pytest.mark.parametrize("num", [1, 2, 5])
def test_expected_validation_is_the_mean_best_of_random_draws(num: int) -> None:
    rng = random.Random(num)
    scores = [rng.uniform(80, 95) for _ in range(num)]
    curve = expected_validation(scores)
    assert curve[0] == pytest.approx(fmean(scores))
    assert curve == sorted(curve)
    drawn = [max(rng.choice(scores) for _ in range(num)) for _ in range(20_000)]
    assert curve[-1] == pytest.approx(fmean(drawn), abs=0.15)


def test_unequal_numbers_of_trials_are_a_limit() -> None:
    scratch = replace(trials(FOUND)[0], arm="scratch-b", trial_of="", start="random")
    assert unequal_trials([*trials(FOUND), scratch]) == [
        "Arms were tuned by unequal numbers of trials: fine-tune 3 and scratch-b 1."
    ]
    assert unequal_trials(trials(FOUND)) == []
    assert unequal_trials([scratch]) == []


def test_the_report_shows_the_trials_and_what_they_cost(tmp_path: Path) -> None:
    write(
        trials(FOUND),
        tmp_path,
        title="t",
        command="c",
        machine="m",
        date="2026-11-26",
        draw=False,
    )
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "### Tuned arms" in page
    assert "| fine-tune | 3 | fine-tune lr 0.01 | 92.05 | 7.00G | 91.05" in page
    header, first = (tmp_path / "rows.csv").read_text().splitlines()[:2]
    assert (header.split(",")[-1], first.split(",")[-1]) == ("validation", "90.0500")
    lines = (tmp_path / "tuning.csv").read_text().splitlines()
    assert len(lines) == 1 + 3
    assert lines[1].startswith("d / m / a macs 0.5,fine-tune,3,fine-tune lr 0.01,92.0500,")
    assert ARMS.get("fine-tune").trial_of is None
