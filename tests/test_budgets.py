"""Training budgets as an axis of a study: what scales, what stays, and what is refused."""

import csv
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from regrow.errors import ConfigError
from regrow.jobs.arms import FINE_TUNE
from regrow.jobs.base import Job, all_jobs
from regrow.jobs.retrain import Retrain
from regrow.jobs.train import Train
from regrow.report import write
from regrow.report.collect import collect
from regrow.report.contest_words import answers, csv_files
from regrow.report.contests import contests
from regrow.report.frames import epochs_of
from regrow.report.rows import BUDGET, runs_frame, summarise
from regrow.run import run
from regrow.store import Store
from regrow.studies.export import choose
from regrow.studies.lint import CODES, remarks
from regrow.studies.study import Study
from small import PLAN
from test_contests import entries

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
        ([2, 0], "an int from 1 to 1,000,000,000,000,000, or a multiple of that of the recipe"),
        ([10**15 + 1], "an int from 1 to 1,000,000,000,000,000"),
        ([2.5], "Got 2.5"),
        ([True], "Got True"),
        (["half"], "Got 'half'"),
        (["0.001x"], "in the same range. Got '0.001x', and the recipe has 160 epochs"),
        (["-1x"], "Got '-1x'"),
        (["1" * 400 + "x"], "a multiple of that of the recipe, such as 0.5x"),
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


# What follows a budget, and what does not -----------------------------------------------------


def retrains(of: Study, arm: str) -> dict[int | None, Retrain]:
    """Return the first seed's retraining of an arm at each budget."""
    cells = [cell for cell in of.cells() if cell.arm.name == arm and cell.seed == 0]
    return {c.experiment.budget: c.job for c in cells if isinstance(c.job, Retrain)}


ARMS: dict[str, tuple[Any, dict[int, int]]] = {
    "a share": ({"name": "fine-tune"}, {2: 1, 8: 2, 40: 10}),
    "equal epochs": ({"name": "scratch-e"}, {2: 2, 8: 8, 40: 40}),
    "equal FLOPs": ({"name": "scratch-b", "cap": 1.5}, {2: 3, 8: 12, 40: 60}),
    "the whole pipeline": ({"name": "scratch-pipeline", "cap": 1}, {2: 2, 8: 10, 40: 50}),
    "the rate, rewound": ({"name": "lr-rewind"}, {2: 2, 8: 8, 40: 40}),
    "the rate of the last quarter": (
        {"name": "last", "like": "lr-rewind", "schedule_share": 0.75},
        {2: 1, 8: 2, 40: 10},
    ),
    "weights, rewound": (
        {"name": "late", "start": "rewound", "epoch_share": 0.125},
        {2: 1, 8: 7, 40: 35},
    ),
    "epochs": ({"name": "fine-tune", "epochs": 3}, {2: 3, 8: 3, 40: 3}),
    "weights after epochs": (
        {"name": "late", "start": "rewound", "epoch": 1},
        {2: 1, 8: 7, 40: 39},
    ),
}


@pytest.mark.parametrize("kind", ARMS)
def test_an_arm_trains_as_its_budget_says(kind: str) -> None:
    arm, expected = ARMS[kind]
    asked = study(budgets=[*expected], arms=["unpruned", arm])
    found = retrains(asked, arm["name"])
    assert {
        budget: job.arm.trained_epochs(job.recipe.epochs, 4.0) for budget, job in found.items()
    } == expected
    for budget in expected:  # the same job as in a study of that many epochs
        alone = study(recipe={"epochs": budget}, arms=["unpruned", arm])
        assert keys(asked, budget) == keys(alone)


def test_what_has_no_room_in_a_budget_is_refused_with_the_budget() -> None:
    late = {"name": "late", "start": "rewound", "epoch": 5}
    with pytest.raises(ConfigError, match=r"At a budget of 4 epochs: The arm 'late' rewinds to"):
        study(budgets=[8, 4], arms=["unpruned", late])
    enters = {"name": "again", "like": "lr-rewind", "schedule_epoch": 2}
    with pytest.raises(ConfigError, match="At a budget of 2 epochs: The arm 'again' enters"):
        study(budgets=[8, 2], arms=["unpruned", enters])
    with pytest.raises(ConfigError, match="At a budget of 1 epoch: the recipe warms up for 1 ep"):
        study(budgets=[2, 1], recipe={"epochs": 8, "warmup_epochs": 1})
    with pytest.raises(ConfigError, match="At a budget of 2 epochs: The arm 'fine-tune' trains at"):
        study(budgets=[2], recipe={"epochs": 8, "schedule": "linear"})
    long = study(budgets=[8, 2], recipe={"epochs": 8, "warmup_steps": 500})
    with pytest.raises(ConfigError, match=r"At a budget of 8 epochs: .* 500 updates, and 'digits"):
        long.cells()


def test_every_arm_of_a_linear_schedule_can_be_said_without_a_rate() -> None:
    arms = [
        *("unpruned", "pruned", "scratch-e", "scratch-b", "lr-rewind"),
        {"name": "fine-tune", "peak_rates": 0.01},
        {
            "name": "falling",
            "like": "fine-tune",
            "schedule": "linear",
            "peak_rates": 0.1,
            "warmup_share": 0,
        },
    ]
    linear = study(budgets=[2, 4, 8], arms=arms, recipe="fast")
    low, falling = (retrains(linear, name)[8] for name in ("fine-tune", "falling"))
    rates = low.arm.recipe(low.recipe, 2)
    assert rates.schedule == "constant"
    assert rates.lr == pytest.approx(0.0075)
    fall = falling.arm.recipe(falling.recipe, 2)
    assert fall.lr_at(0, place=0, steps=10) == pytest.approx(0.075)
    assert fall.lr_at(1, place=9, steps=10) == pytest.approx(0.075 / 20)


def test_rates_are_tuned_as_multiples_of_the_peak() -> None:
    tuned = {"name": "fine-tune", "tune": {"peak_rates": [0.01, 0.1]}}
    data = {**DIGITS, "validation": 0.25}
    names = [arm.name for arm in study(budgets=[2, 4], data=data, arms=[tuned]).experiments[0].arms]
    assert names == ["fine-tune peak_rates 0.01", "fine-tune peak_rates 0.1"]


def test_rounds_train_their_ticket_within_the_budget() -> None:
    late = {"name": "late", "start": "rewound", "epoch_share": 0.25}
    lottery = {"name": "lottery", "rounds": 2, "sparsity": 0.5, "ticket": "late"}
    asked = study(budgets=[4, 8], methods=lottery, arms=["unpruned", late], seeds=1)
    parents = [job for job in jobs(asked).values() if isinstance(job, Train)]
    assert {(job.recipe.epochs, job.keep) for job in parents} == {(4, (1,)), (8, (2,))}
    tickets = [job for job in jobs(asked).values() if isinstance(job, Retrain)]
    assert {(job.recipe.epochs, job.arm.epoch) for job in tickets} == {(4, 1), (8, 2)}
    assert len(tickets) == 4  # two rounds, of which the first is the ticket of the second


def test_patterns_are_followed_at_their_budget_or_at_their_own() -> None:
    guided: dict[str, Any] = {"name": "guided-pruning", "sparsity": 0.5}
    own: dict[str, Any] = {**guided, "label": "of six", "from": {"recipe": {"epochs": 6}}}
    found = {
        str(method): {
            job.recipe.epochs
            for job in jobs(study(budgets=[2, 4], methods=method, arms=["scratch-e"])).values()
            if isinstance(job, Train)
        }
        for method in (guided, own)
    }
    assert [*found.values()] == [{2, 4}, {6}]


# Remarks, choices and comparisons ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"budgets": [4, 8]}, "few-budgets", "2 training budgets show no curve"),
        ({"budgets": [2, 4, 8]}, "rounded-shares", "fine-tune trains 1 of 2 epochs, not 25 %"),
        (
            {"arms": ["unpruned", "scratch-e", {"name": "fine-tune", "epochs": 3}]},
            "fixed-in-epochs",
            "the arm fine-tune trains 3 epochs at every",
        ),
        (
            {"arms": ["unpruned", {"name": "late", "start": "rewound", "epoch": 1}]},
            "fixed-in-epochs",
            "the arm late rewinds to epoch 1 at every",
        ),
        (
            {"arms": ["unpruned", {"name": "a", "like": "lr-rewind", "schedule_epoch": 2}]},
            "fixed-in-epochs",
            "the arm a enters its schedule at epoch 2 at every",
        ),
        (
            {"recipe": {"epochs": 8, "warmup_epochs": 1}},
            "fixed-in-epochs",
            "the recipe warms up for 1 epoch at every",
        ),
        (
            {"recipe": {"epochs": 8, "warmup_steps": 500}},
            "fixed-in-epochs",
            "the recipe warms up for 500 updates at every",
        ),
        (
            {
                "methods": {
                    "name": "guided-pruning",
                    "sparsity": 0.5,
                    "from": {"recipe": "cifar"},
                }
            },
            "fixed-in-epochs",
            "the network that guided-pruning follows trains 160 epochs at every",
        ),
        (
            {"recipe": {"epochs": 8, "schedule": "cosine"}},
            "moving-last-rate",
            "depends on the training budget",
        ),
    ],
)
def test_a_reviewer_says_what_is_weak_in_an_axis(
    changes: dict[str, Any], code: str, words: str
) -> None:
    found = {r.code: r.reason for r in remarks(study(**{"budgets": [4, 8, 16], **changes}))}
    assert words in found[code]
    assert code in CODES


def test_a_sound_axis_gets_no_remark_of_its_own_and_others_once() -> None:
    found = [remark.code for remark in remarks(study(budgets=[4, 8, 16], rounding="updates"))]
    assert len({*found}) == len(found)
    assert {*found} == {remark.code for remark in remarks(study())}


def test_a_row_is_chosen_by_its_budget() -> None:
    cells = study(budgets=[2, 4]).cells()
    wanted = {"arm": "scratch-e", "seed": "0"}
    with pytest.raises(ConfigError, match="Choose with --budget '2' or '4'"):
        choose(cells, wanted)
    assert choose(cells, {**wanted, "budget": "4"}).experiment.budget == 4


def test_methods_meet_at_one_budget_only() -> None:
    runs = [
        run
        for budget, gap in ((2, 3.0), (8, -3.0))
        for target in ("macs 0.5", "macs 0.3")
        for method, mean in (("a", 90.0 + gap), ("b", 90.0))
        for run in entries(method, FINE_TUNE, mean, target=target, training_budget=budget)
    ]
    found = contests(runs)
    assert [(contest.budget, contest.name) for contest in found] == [
        (8, "fine-tune at 8 epochs"),
        (2, "fine-tune at 2 epochs"),
    ]
    for contest, sign in zip(found, (-3.0, 3.0), strict=True):
        (average,) = contest.averages
        assert average.comparison is not None
        assert average.comparison.difference == pytest.approx(sign, abs=0.2)
        assert [level.name for level in contest.levels] == [
            f"d / m / {contest.budget} epochs / macs {share}" for share in (0.5, 0.3)
        ]
    assert "under fine-tune at 8 epochs" in answers(found)[0]
    for text in csv_files(found).values():
        lines = [*csv.DictReader(text.splitlines())]
        assert {line[BUDGET] for line in lines} <= {"2", "8"}
    plain = csv_files(contests([replace(run, training_budget=None) for run in runs[:20]]))
    assert BUDGET not in plain["methods.csv"]


# Rows ---------------------------------------------------------------------------------------


def test_a_study_over_budgets_is_run_and_written(tmp_path: Path) -> None:
    asked = study(
        budgets=[1, 2],
        arms=["unpruned", "pruned", "scratch-e"],
        seeds=1,
        recipe={"epochs": 2, "batch": 64, "precision": "fp32"},
    )
    store = Store.open(tmp_path / "store", create=True)
    run(asked.jobs(), store, workers=0)
    runs, _ = collect(asked, store)
    made: dict[str, Any] = {"title": "t", "command": "c", "machine": "m", "date": "d"}
    write(runs, tmp_path, **made, draw=False)
    for name in ("rows.csv", "runs.csv"):
        lines = [*csv.DictReader((tmp_path / name).read_text().splitlines())]
        assert [(line[BUDGET], line["arm"]) for line in lines] == [
            (budget, arm) for budget in "12" for arm in ("unpruned", "pruned", "scratch-e")
        ]
        assert [float(line["epochs"]) for line in lines] == [1, 0, 1, 2, 0, 2]
    text = (tmp_path / "report.md").read_text()
    assert "| pruned by | arm | budget |" in text
    frame = epochs_of(asked, store)
    assert {*zip(frame[BUDGET], frame["epoch"], strict=True)} >= {(1, 0), (2, 0), (2, 1)}
    alone = study(
        arms=["unpruned"], seeds=1, recipe={"epochs": 2, "batch": 64, "precision": "fp32"}
    )
    assert all(store.has(job.key) for job in alone.jobs())  # results are shared


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
