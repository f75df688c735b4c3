"""Training budgets as an axis of a study: what scales, what stays, and what is refused."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from regrow.errors import ConfigError
from regrow.jobs.base import Job, all_jobs
from regrow.jobs.train import Train
from regrow.report.collect import collect
from regrow.report.rows import BUDGET, runs_frame, summarise
from regrow.store import Store
from regrow.studies.study import Study
from small import PLAN

DIGITS = {"name": "digits", "subset": 128, "test_subset": 64}
BASE: dict[str, Any] = {
    "data": DIGITS,
    "models": {"name": "vgg", **PLAN, "label": "net"},
    "methods": {"name": "l1-filter", "sparsity": 0.5},
    "arms": ["unpruned", "pruned", "fine-tune", "scratch-e", "scratch-b", "lr-rewind"],
    "seeds": 2,
    "recipe": {"epochs": 160},
}


def study(**changes: Any) -> Study:
    return Study.from_json({k: v for k, v in {**BASE, **changes}.items() if v is not None})


def keys(of: Study, budget: int | None = None) -> dict[tuple[Any, ...], str]:
    """Return the key of each row's job, of one budget."""
    return {
        (cell.use and cell.use.label, cell.cut and cell.cut.label, cell.arm.name, cell.seed): (
            cell.job.key
        )
        for cell in of.cells()
        if cell.experiment.budget == budget
    }


def jobs(of: Study) -> Mapping[str, Job]:
    return all_jobs(of.jobs())


# Reading ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budgets", "epochs"),
    [
        ([2, 4, 8], [2, 4, 8]),
        (20, [20]),
        (["0.5x", "1x", ".25x", "2x"], [80, 160, 40, 320]),
        (["0.0125x", 8], [2, 8]),
    ],
)
def test_budgets_are_epochs_or_factors_of_the_recipes(budgets: Any, epochs: list[int]) -> None:
    experiments = study(budgets=budgets).experiments
    assert [experiment.budget for experiment in experiments] == epochs
    assert [experiment.recipe.epochs for experiment in experiments] == epochs


@pytest.mark.parametrize(
    ("budgets", "message"),
    [
        ([], "from 1 to 100, such as .2, 4, 8.. Got 0"),
        ([*range(1, 102)], "Got 101"),
        ([2, 0], "an int of at least 1, or a factor of the recipe's, such as 0.5x.* Got 0"),
        ([2.5], "Got 2.5"),
        ([True], "Got True"),
        (["half"], "Got 'half'"),
        (["0.001x"], "leaves at least one. Got '0.001x', and the training has 160 epochs"),
        (["-1x"], "Got '-1x'"),
        ([80, "0.5x"], "'80 epochs' occurs twice; leave one out"),
        ({"epochs": 4}, "Got {'epochs': 4}"),
        (None, "Got None"),
    ],
)
def test_what_is_no_budget_is_refused(budgets: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Study.from_json({**BASE, "budgets": budgets})


# Expansion ----------------------------------------------------------------------------------


def test_a_budget_has_the_jobs_of_a_recipe_of_so_many_epochs() -> None:
    alone = keys(study(recipe={"epochs": 20}))
    assert keys(study(budgets=[20]), 20) == alone
    several = study(budgets=[10, "0.125x", 40])
    assert keys(several, 20) == alone
    assert len({*keys(several, 10).values()} & {*alone.values()}) == 0


def test_budgets_may_be_of_one_experiment() -> None:
    parts = {
        "experiments": [
            {"recipe": {"epochs": 4}, "budgets": [2, "1x"]},
            {"models": {"name": "vgg", **PLAN, "label": "other"}},
        ]
    }
    read = Study.from_json({**BASE, **parts})
    assert [e.budget for e in read.experiments] == [2, 4, None]
    assert [e.recipe.epochs for e in read.experiments] == [2, 4, 160]


def test_seeds_begin_alike_at_every_budget_and_labels_name_it() -> None:
    trainings = [job for job in jobs(study(budgets=[2, 4])).values() if isinstance(job, Train)]
    assert {(job.seed, job.recipe.epochs) for job in trainings} == {
        (seed, budget) for seed in (0, 1) for budget in (2, 4)
    }
    assert {job.label for job in trainings if job.seed == 0} == {
        "net for 2 epochs unpruned seed 0",
        "net for 4 epochs unpruned seed 0",
    }
    every = jobs(study(budgets=[2, 4]))
    assert len({job.label for job in every.values()}) == len(every)


def test_scratch_arms_of_given_widths_share_their_pruning_and_start_at_once() -> None:
    given = {"name": "l1-filter", "shares": [0.5] * 3}
    scratch = study(budgets=[2, 4], methods=given, arms=["scratch-e", "scratch-b"])
    every = jobs(scratch)
    assert not any(isinstance(job, Train) for job in every.values())
    prunings = [job for job in every.values() if job.kind == "prune"]
    assert [job.label for job in prunings] == ["net l1-filter shares prune"]


# Rows ---------------------------------------------------------------------------------------


def test_rows_have_their_budget_and_cells_of_two_are_two(tmp_path: Path) -> None:
    runs, _ = collect(study(budgets=[2, 4]), Store.open(tmp_path / "store"))
    assert {run.training_budget for run in runs} == {2, 4}
    assert {run.panel for run in runs} == {
        ("digits (128 images)", "net", "2 epochs"),
        ("digits (128 images)", "net", "4 epochs"),
    }
    groups = {run.group: run.training_budget for run in runs}
    assert len(groups) == 4  # unpruned and pruned, twice
    for frame in (runs_frame(runs), summarise(runs)):
        assert {*frame[BUDGET]} == {2, 4}
    plain, _ = collect(study(), Store.open(tmp_path / "store"))
    assert {run.training_budget for run in plain} == {None}
    assert BUDGET not in runs_frame(plain)
    assert BUDGET not in summarise(plain)
