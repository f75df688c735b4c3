"""Recipes: learning rates epoch by epoch as in the paper's code, checking, and JSON."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from regrow.errors import ConfigError
from regrow.train import RECIPES, Recipe, named


def drops(recipe: Recipe) -> list[int]:
    """Return the epochs whose rate differs from that of the epoch before."""
    rates = [recipe.lr_at(epoch) for epoch in range(recipe.epochs)]
    return [epoch for epoch in range(1, recipe.epochs) if rates[epoch] != rates[epoch - 1]]


@pytest.mark.parametrize(("epochs", "expected"), [(160, [80, 120]), (243, [121, 182]), (1, [])])
def test_cifar_drops_at_half_and_three_quarters_rounded_down(
    epochs: int, expected: list[int]
) -> None:
    assert drops(RECIPES["cifar"].lasting(epochs)) == expected


@pytest.mark.parametrize(
    ("epochs", "expected"), [(90, [30, 60]), (180, [60, 120]), (106, [35, 70, 105])]
)
def test_imagenet_drops_every_third_rounded_down(epochs: int, expected: list[int]) -> None:
    recipe = RECIPES["imagenet"].lasting(epochs)
    assert drops(recipe) == expected
    assert recipe.last_lr() == {2: 0.001, 3: 0.0001}[len(expected)]


def test_soft_filter_pruning_warms_up_one_epoch_whatever_the_budget() -> None:
    recipe = RECIPES["cifar-sfp"]
    assert drops(recipe) == [1, 60, 120, 160]
    assert [recipe.lr_at(e) for e in (0, 1, 60, 120, 160)] == [0.01, 0.1, 0.02, 0.004, 0.0008]
    assert drops(recipe.lasting(400)) == [1, 120, 240, 320]


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
def test_a_single_epoch_runs_at_the_full_rate(recipe: Recipe) -> None:
    once = replace(recipe, epochs=1, warmup_epochs=0)
    assert once.lr_at(0) == recipe.lr


def test_constant_schedule_never_drops() -> None:
    recipe = Recipe(epochs=40, lr=RECIPES["cifar"].last_lr(), schedule="constant")
    assert {recipe.lr_at(epoch) for epoch in range(40)} == {0.001}


def test_cosine_falls_from_lr_towards_zero() -> None:
    rates = [Recipe(epochs=10, schedule="cosine").lr_at(epoch) for epoch in range(10)]
    assert rates[0] == 0.1
    assert rates[5] == pytest.approx(0.05)
    assert rates == sorted(rates, reverse=True)
    assert 0 < rates[-1] < 0.01


def test_shares_that_binary_fractions_miss_still_fall_on_their_epoch() -> None:
    assert drops(Recipe(epochs=100, drop_at=(0.29, 0.57))) == [29, 57]


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
def test_recipes_survive_json(recipe: Recipe) -> None:
    assert Recipe.from_json(recipe.to_json()) == recipe


def test_json_may_begin_from_a_name() -> None:
    recipe = Recipe.from_json({"name": "cifar-sfp", "drop_at": [0.5]})
    assert (recipe.drop_at, recipe.batch) == ((0.5,), 128)
    assert Recipe.from_json("imagenet") == named("imagenet")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"epochs": 0}, "'epochs' of a recipe must be an int of at least 1. Got 0"),
        ({"epochs": True}, "'epochs' .* Got True"),
        ({"batch": 2.5}, "'batch' of a recipe must be an int"),
        ({"lr": -1}, "'lr' of a recipe must be a number above 0. Got -1"),
        ({"lr": "0.1"}, "'lr' .* Got '0.1'"),
        ({"lr": float("nan")}, "'lr' .* Got nan"),
        ({"drop_factor": 0}, "'drop_factor' of a recipe must be a number above 0"),
        ({"weight_decay": -1e-4}, "'weight_decay' of a recipe must be a number of at least 0"),
        ({"momentum": 1.0}, r"'momentum' of a recipe must be a number in \[0, 1\)"),
        ({"drop_every": 0}, r"'drop_every' of a recipe must be a share of training in \(0, 1\]"),
        ({"drop_at": (0.75, 0.5)}, "'drop_at' of a recipe must be a rising list of shares"),
        ({"drop_at": (80, 120)}, "'drop_at' .* Got"),
        ({"nesterov": 1}, "'nesterov' of a recipe must be true or false"),
        ({"nesterov": True, "momentum": 0}, "'nesterov' of a recipe must be false where"),
        ({"augmentation": 3}, "'augmentation' of a recipe must be a text"),
        ({"schedule": "drop"}, "Unknown schedule 'drop'. Did you mean 'drops'"),
        ({"precision": "bfp16"}, "Unknown precision 'bfp16'. Did you mean 'bf16'"),
        ({"epoch": 3}, "Unknown field 'epoch'. Did you mean 'epochs'"),
        ({"name": "cifr"}, "Unknown recipe 'cifr'. Did you mean 'cifar'"),
    ],
)
def test_fields_that_cannot_be_meant_are_refused(fields: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Recipe.from_json(fields)


def test_something_else_than_a_mapping_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"must be a name or a mapping of fields\. Got 3"):
        Recipe.from_json(3)  # type: ignore[arg-type]
