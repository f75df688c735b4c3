"""Trainings of other than whole epochs: each spends what it is allowed to within one update."""

import json
from dataclasses import replace
from math import floor
from pathlib import Path
from typing import Any

import pytest
import torch

from regrow.errors import ConfigError
from regrow.jobs.arms import FINE_TUNE, SCRATCH_B, Budget
from regrow.jobs.retrain import Retrain
from regrow.report.collect import collect
from regrow.report.rows import Ending, fairness
from regrow.run import run
from regrow.store import Store
from regrow.studies.lint import remarks
from regrow.studies.study import Study
from regrow.train import RECIPES, Moment, Recipe, Treatment, fit
from small import PLAN, snapshot
from test_gpu_sharing import Bodies, assert_close, eager, graphed
from test_training import assert_same_bits, training
from test_treatment import Repeats, treated_training

PART = Recipe(epochs=3, last_epoch=0.5, batch=16, lr=0.05)  # of 70 images: 5 steps, 12 in all
STEPS = 5


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # the promise of equal bits is for one thread


# Trainings ----------------------------------------------------------------------------------


def test_a_last_epoch_in_part_is_the_beginning_of_a_whole_one() -> None:
    recipe = replace(PART, schedule="constant")
    part, whole = training(recipe), training(replace(recipe, last_epoch=1.0))
    assert part.num_steps == 12
    fit(part)
    while whole.steps_done < 12:
        whole.step()
    for name, value in snapshot(part.model).items():
        assert torch.equal(value, snapshot(whole.model)[name]), name
    assert part.samples == whole.samples == 2 * 70 + 2 * 16
    assert (part.done, part.epochs_in_all) == (True, 2.4)
    losses = whole.parts.losses.tolist()[:2]
    assert part.history[:2] == whole.history
    assert part.history[2] == {
        "epoch": 2,
        "lr": 0.05,
        "loss": pytest.approx(sum(losses) / 2),
        "share": 0.4,
    }


@pytest.mark.parametrize(
    ("schedule", "length", "rates"),
    [
        # Shares of so short a training: whole epochs would have no room for any of them.
        ("drops", 0.8, [1.0, 1.0, 0.1, 0.01]),
        ("every", 0.8, [1.0, 1.0, 0.1, 0.01]),
        ("constant", 0.8, [1.0, 1.0, 1.0, 1.0]),
        ("cosine", 0.4, [1.0, 0.5]),
        ("linear", 0.8, [1.0, 0.75, 0.5, 0.25]),
        ("linear", 1.2, [1 - step / 6 for step in range(6)]),
    ],
)
def test_schedules_follow_the_updates(schedule: str, length: float, rates: list[float]) -> None:
    recipe = Recipe(lr=1.0, schedule=schedule).lasting(length)
    found = [
        recipe.lr_at(*divmod(step, STEPS)[:1], place=step % STEPS, steps=STEPS)
        for step in range(recipe.num_steps(STEPS))
    ]
    assert found == pytest.approx(rates)


def test_a_warm_up_by_share_follows_them_too() -> None:
    recipe = Recipe(lr=1.0, schedule="linear", warmup_share=0.5).lasting(0.8)
    assert [recipe.lr_at(0, place=place, steps=STEPS) for place in range(4)] == [0.5, 1, 1, 0.5]


@pytest.mark.parametrize("stop", [*range(1, 13)])
def test_it_resumes_bit_by_bit(stop: int) -> None:
    recipe = replace(PART, ema=0.9, mixup=0.4)
    whole, begun, again = (training(recipe, dropout=0.3) for _ in range(3))
    fit(whole)
    while begun.steps_done < stop:
        begun.step()
    tensors, meta = begun.state()
    again.restore(tensors, json.loads(json.dumps(meta)))
    fit(again)
    assert_same_bits(whole, again)


@pytest.mark.parametrize(
    "recipe",
    [
        PART,
        replace(PART, epochs=1, last_epoch=0.4, cutout=2, mixup=0.4, ema=0.9),
        replace(RECIPES["fast"], batch=16, lr=0.05, norm_bias_rate=8.0).lasting(2.7),
    ],
    ids=["plain", "mixed", "fast"],
)
def test_recorded_steps_equal_single_calls(recipe: Recipe) -> None:
    recorder = Bodies()
    one, other = graphed(recipe, recorder=recorder), eager(recipe)
    fit(one)
    fit(other)
    assert_close(one, other)
    assert recorder.replayed == one.num_steps == recipe.num_steps(STEPS)
    if recipe.lookahead is not None:  # the network ends as the average, whatever the last update
        for value, average in zip(other.parts.averaged, other.parts.averages, strict=True):
            assert torch.equal(value, average)


def test_hooks_are_called_at_its_end() -> None:
    seen: list[tuple[str, int, int, float]] = []

    def note(name: str) -> Any:
        def hook(_: Any, moment: Moment) -> None:
            seen.append((name, int(moment.step), int(moment.epoch), round(moment.progress, 3)))

        return hook

    how = Treatment(epoch=note("epoch"), end=note("end"))
    fit(training(PART, treatment=how))
    assert seen == [
        ("epoch", 0, 0, 0.0),
        ("epoch", 5, 1, 0.417),
        ("epoch", 10, 2, 0.833),
        ("epoch", 12, 2, 1.0),
        ("end", 12, 2, 1.0),
    ]


@pytest.mark.parametrize("name", ["soft-filter", "network-slimming", "rigl", "agp"])
def test_treatments_are_recorded_and_resumed_as_ever(name: str) -> None:
    recipe = Recipe(batch=32, lr=0.05).lasting(1.75)
    one, other, again = (
        treated_training(name, recipe=recipe, **options)
        for options in ({}, {"recorder": Repeats()}, {})
    )
    for part in (one, other):
        fit(part)
    for key, value in snapshot(one.model).items():
        torch.testing.assert_close(value, snapshot(other.model)[key], rtol=1e-4, atol=1e-5)
    begun = treated_training(name, recipe=recipe)
    while begun.steps_done < begun.num_steps - 1:
        begun.step()
    again.restore(*begun.state())
    fit(again)
    assert_same_bits(one, again)


def test_a_training_cannot_begin_behind_its_end() -> None:
    with pytest.raises(ConfigError, match=r"of 2\.1 epochs can begin"):
        training(Recipe(epochs=3, last_epoch=0.1, batch=16), first_epoch=2)


@pytest.mark.parametrize("share", [0.0, 1.5, float("nan")])
def test_what_is_no_part_of_an_epoch_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match="'last_epoch' of a recipe must be a share of an epoch"):
        Recipe(last_epoch=share)


# Budgets ------------------------------------------------------------------------------------

BASE: dict[str, Any] = {
    "data": {"name": "digits", "subset": 128, "test_subset": 64},
    "models": {"name": "vgg", **PLAN, "label": "net"},
    "methods": {"name": "l1-filter", "sparsity": 0.5},
    "arms": ["unpruned", "fine-tune", "scratch-e", "scratch-b"],
    "seeds": 1,
    "recipe": {"name": "fast", "epochs": 2, "batch": 16, "augmentation": "none"},
}
BASE["recipe"] |= {"alternating_flip": False, "precision": "fp32", "lr": 0.05}
BASE["arms"][1] = {"name": "fine-tune", "peak_rates": 0.1}


def study(**changes: Any) -> Study:
    return Study.from_json({**BASE, **changes})


def keys(of: Study) -> dict[tuple[str, int | None], str]:
    return {(cell.arm.name, cell.experiment.budget): cell.job.key for cell in of.cells()}


def test_equal_flops_and_shares_are_spent_within_one_update(tmp_path: Path) -> None:
    asked = study(rounding="updates")
    store = Store.open(tmp_path / "store", create=True)
    assert run(asked.jobs(), store, workers=0).complete
    records = {cell.arm.name: store.record(cell.job.key) for cell in asked.cells()}
    whole = records["unpruned"]
    update = 16 * 3 * records["scratch-b"]["flops"]
    missing = whole["training_flops"] - records["scratch-b"]["training_flops"]
    assert 0 <= missing < update
    ratio = whole["flops"] / records["scratch-b"]["flops"]
    assert records["scratch-b"]["epochs"] == floor(2 * ratio * 8) / 8 != floor(2 * ratio)
    assert records["fine-tune"]["epochs"] == 0.5
    assert records["fine-tune"]["samples"] == 64  # a quarter of two epochs of 128
    assert records["scratch-e"]["epochs"] == 2
    runs, _ = collect(asked, store)
    row = {one.arm: one for one in runs}
    assert (row["fine-tune"].epochs, row["fine-tune"].pruning_epochs) == (0.5, 0)
    assert row["fine-tune"].total_epochs == 2.5
    assert fairness([row["fine-tune"]]) == "0.5 epochs after the unpruned network's 2"


def test_whole_epochs_are_the_rule_and_keep_their_keys() -> None:
    plain, fine = keys(study(budgets=[2, 8])), keys(study(budgets=[2, 8], rounding="updates"))
    assert keys(study(budgets=[2, 8], rounding="epochs")) == plain
    changed = {name for name, key in plain.items() if fine[name] != key}
    # A quarter of 8 epochs is whole, so it is the same training; what equal FLOPs come to is not
    # known beforehand.
    assert changed == {("fine-tune", 2), ("scratch-b", 2), ("scratch-b", 8)}


def test_the_rounding_is_that_of_budgets_that_may_be_no_whole_epochs() -> None:
    for kind in ("none", "equal-epochs"):
        budget = Budget(kind=kind)
        assert budget.rounded_to("updates", 5) == budget
    share = FINE_TUNE.budget.rounded_to("updates", 5)
    assert (share.epochs(5, 1.0), share.rounding) == (1.25, "updates")
    assert FINE_TUNE.budget.rounded_to("updates", 8) == FINE_TUNE.budget
    pipeline = Budget(kind="pipeline", amount=0.25, cap=1.5).rounded_to("updates", 5)
    assert pipeline.epochs(5, 2.0) == 8.75
    longer = SCRATCH_B.budget.rounded_to("updates", 2)
    assert [longer.epochs(2, ratio) for ratio in (1.9, 2.0, 0.1)] == [3.8, 4, 0.2]
    with pytest.raises(ConfigError, match="'rounding' of budgets must be epochs or updates"):
        Budget(kind="share", amount=0.25, rounding="steps")  # type: ignore[arg-type]


def test_what_is_planned_is_what_is_trained() -> None:
    cells = study(rounding="updates").cells()
    job = next(cell.job for cell in cells if cell.arm.name == "fine-tune")
    assert isinstance(job, Retrain)
    recipe = job.arm.recipe(job.recipe, job.arm.epochs(job.recipe.length, 1.9))
    assert (recipe.epochs, recipe.last_epoch, job.expected_epochs) == (1, 0.5, 0.5)


@pytest.mark.parametrize("value", ["steps", 3, None, ["updates"]])
def test_what_is_no_rounding_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match="'rounding' of budgets must be epochs or updates"):
        study(rounding=value)


def test_a_recipe_in_a_file_has_whole_epochs() -> None:
    with pytest.raises(ConfigError, match="last_epoch"):
        study(recipe={"epochs": 3, "last_epoch": 0.5})


def test_a_reviewer_names_the_remedy() -> None:
    def said(**changes: Any) -> str:
        found = {r.code: r for r in remarks(study(budgets=[2, 4, 8], **changes))}
        remark = found.get("rounded-shares")
        return "" if remark is None else f"{remark.reason} {remark.remedy}"

    text = said()
    assert "fine-tune trains 1 of 2 epochs, not 25 %" in text
    assert "scratch-b spends equal FLOPs rounded down to whole epochs" in text
    assert "at 2 epochs that can be 33 % of them" in text
    assert "rounding: updates" in text
    assert not said(rounding="updates")


def test_an_ending_is_that_of_the_last_whole_epoch() -> None:
    lines = [{"lr": 0.1, "loss": loss} for loss in (3.0, 2.0)]
    part = {"lr": 0.1, "loss": 7.0, "share": 0.01}
    assert Ending.of([*lines, part]) == Ending.of(lines)
    assert Ending.of([part]) == Ending(loss=7.0)
