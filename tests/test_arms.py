"""Arms and budgets against the table of resolved budgets in the protocols."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from regrow.cost import measure
from regrow.errors import ConfigError
from regrow.jobs.arms import (
    ARMS,
    DEFAULT_ARMS,
    FINE_TUNE,
    SCRATCH_B,
    SCRATCH_E,
    Arm,
    Budget,
    read_arm,
    register_arm,
)
from regrow.models import ModelSpec, build
from regrow.pruning.method import METHODS
from regrow.pruning.select import select
from regrow.studies.experiment import check_arm
from regrow.surgery import trace
from regrow.surgery.architecture import Architecture
from regrow.train import RECIPES, Recipe

EQUAL_FLOPS = Budget(kind="equal-flops")
TWICE = Budget(kind="equal-flops", cap=2)


def drops(recipe: Recipe) -> list[int]:
    return [e for e in range(1, recipe.epochs) if recipe.lr_at(e) < recipe.lr_at(e - 1)]


# Target, r, epochs and drops with a base of 160 epochs, epochs with a base of 300.
CIFAR = [
    ("vgg-16-a", 1.519, 243, [121, 182], 455),
    ("resnet-56-a", 1.116, 178, [89, 133], 334),
    ("resnet-56-b", 1.379, 220, [110, 165], 413),
    ("resnet-110-a", 1.188, 190, [95, 142], 356),
    ("resnet-110-b", 1.627, 260, [130, 195], 488),
]


def measured_ratio(target: str) -> float:
    found = METHODS.get("l1-filter").targets[target]
    more = {"head": "two-layer"} if found.model == "vgg-16" else {}
    spec = ModelSpec(found.model, {"classes": 10, **more})
    model, shape = build(spec), (1, 3, 32, 32)
    mask = select(model, trace(model, shape), "l1-filter", shares=found.shares)
    small = Architecture(model=spec, shape=shape, cuts=(mask,)).build()
    example = torch.zeros(shape)
    return measure(model, example).flops / measure(small, example).flops


@pytest.mark.parametrize(("target", "ratio", "epochs", "dropped", "long"), CIFAR)
def test_scratch_b_trains_as_long_as_in_the_paper(
    target: str, ratio: float, epochs: int, dropped: list[int], long: int
) -> None:
    ours = measured_ratio(target)
    assert round(ours, 3) == ratio
    for r in (ratio, ours):
        assert EQUAL_FLOPS.epochs(160, r) == epochs
    # The printed ratio is rounded: 300 x 1.627 is 488.1, 300 x 1.188 is 356.4.
    assert EQUAL_FLOPS.epochs(300, ours) == long
    recipe = SCRATCH_B.recipe(RECIPES["cifar"], EQUAL_FLOPS.epochs(160, ours))
    assert recipe.epochs == epochs
    assert drops(recipe) == dropped
    stretched = SCRATCH_B.recipe(RECIPES["cifar"], long)
    assert drops(stretched) == [math.floor(0.5 * long), math.floor(0.75 * long)]


@pytest.mark.parametrize(
    ("ratio", "epochs", "step"),
    [
        (1.182, 106, 35),  # ResNet-34-A
        (1.316, 118, 39),  # ResNet-34-B
        (3.227, 180, 60),  # VGG-Conv
        (3.312, 180, 60),  # VGG-GAP
        (15.35, 180, 60),  # VGG-Tiny
        (3.479, 180, 60),  # ResNet50-30 %
        (2.235, 180, 60),
        (1.569, 141, 47),
        (4.398, 180, 60),  # VGG-16-5x
        (1.495, 134, 44),  # ResNet-50-2x
    ],
)
def test_on_imagenet_scratch_b_at_most_doubles(ratio: float, epochs: int, step: int) -> None:
    assert TWICE.epochs(90, ratio) == epochs == math.floor(90 * min(ratio, 2))
    assert TWICE.is_capped(ratio) == (ratio > 2)
    recipe = SCRATCH_B.recipe(RECIPES["imagenet"], epochs)
    assert drops(recipe) == [e for e in range(1, epochs) if e % step == 0]


@pytest.mark.parametrize(
    ("budget", "base", "ratio", "epochs"),
    [
        (Budget(kind="none"), 160, 2.0, 0),
        (Budget(kind="epochs", amount=40), 160, 2.0, 40),
        (Budget(kind="share", amount=0.25), 160, 2.0, 40),
        (Budget(kind="share", amount=0.29), 100, 2.0, 29),  # 28.999999999999996 in binary
        (Budget(kind="share", amount=0.01), 3, 2.0, 1),
        (Budget(kind="equal-epochs"), 160, 2.0, 160),
        (Budget(kind="equal-flops"), 160, 1.0, 160),
        (Budget(kind="equal-flops"), 160, 20.0, 3200),
        (Budget(kind="equal-flops", cap=2), 160, 2.0, 320),
    ],
)
def test_budgets_resolve_to_epochs(budget: Budget, base: int, ratio: float, epochs: int) -> None:
    assert budget.epochs(base, ratio) == epochs


def test_only_a_cap_that_decided_is_told() -> None:
    assert not TWICE.is_capped(2.0)
    assert TWICE.is_capped(2.01)
    assert not EQUAL_FLOPS.is_capped(100.0)


def test_fine_tuning_is_40_epochs_at_the_last_rate_on_cifar() -> None:
    recipe = FINE_TUNE.recipe(RECIPES["cifar"], FINE_TUNE.budget.epochs(160, 2.0))
    assert recipe.epochs == 40
    assert {recipe.lr_at(epoch) for epoch in range(40)} == {0.001}


def test_fine_tuning_starts_without_the_recipes_warmup() -> None:
    recipe = FINE_TUNE.recipe(RECIPES["cifar-sfp"], 50)
    assert {recipe.lr_at(epoch) for epoch in range(50)} == {RECIPES["cifar-sfp"].last_lr()}


def test_an_arm_may_have_a_rate_of_its_own() -> None:
    base = RECIPES["cifar"]
    tuned = Arm(name="t", start="inherited", budget=EQUAL_FLOPS, schedule="last-rate", lr=0.02)
    fresh = Arm(name="f", start="random", budget=EQUAL_FLOPS, lr=0.02)
    assert tuned.recipe(base, 10).lr_at(9) == 0.02
    assert [fresh.recipe(base, 8).lr_at(e) for e in (0, 4, 6)] == [0.02, 0.002, 0.0002]


def test_an_arm_may_have_a_schedule_of_its_own() -> None:
    base = Recipe(epochs=40, lr=0.1)
    budget = Budget(kind="epochs", amount=20)
    cosine = Arm(name="c", start="inherited", budget=budget, schedule="cosine", lr=0.01)
    recipe = cosine.recipe(base, 20)
    assert (recipe.schedule, recipe.lr_at(0), recipe.lr_at(10)) == ("cosine", 0.01, 0.005)
    drops = Arm(name="d", start="inherited", budget=budget, schedule="drops", drop_at=(0.9,))
    recipe = drops.recipe(replace(base, schedule="cosine"), 20)
    assert [recipe.lr_at(epoch) for epoch in (0, 17, 18)] == [0.1, 0.1, 0.01]
    assert (drops.to_json()["schedule"], drops.to_json()["drop_at"]) == ("drops", [0.9])
    assert "drop_at" not in cosine.to_json()
    with pytest.raises(ConfigError, match=r"'drop_at', so its 'schedule' must be drops\. Got"):
        Arm(name="d", start="inherited", budget=budget, drop_at=(0.5,))
    with pytest.raises(ConfigError, match=r"The arm 'd': .*rising list of shares"):
        replace(drops, drop_at=(0.5, 0.2))


def test_the_papers_arms_are_what_they_are_called() -> None:
    assert [arm.name for arm in DEFAULT_ARMS[:5]] == [
        *("unpruned", "pruned", "fine-tune", "scratch-e", "scratch-b")
    ]
    assert set(DEFAULT_ARMS) <= {ARMS.get(name) for name in ARMS.names()}
    assert SCRATCH_E.to_json() == {
        "start": "random",
        "schedule": "full",
        "budget": {"kind": "equal-epochs"},
    }
    assert ARMS.get("winning-ticket").start == "initial"
    assert ARMS.get("random-init").start == "redrawn"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "forever"}, "A budget must be one of none, epochs, .*Got 'forever'"),
        ({"kind": "epochs"}, "epochs must be an int of at least 1. Got None"),
        ({"kind": "epochs", "amount": 1.5}, "epochs must be an int of at least 1. Got 1.5"),
        ({"kind": "epochs", "amount": True}, "epochs must be an int of at least 1. Got True"),
        ({"kind": "share", "amount": 0}, "share must be a number above 0. Got 0"),
        ({"kind": "share", "amount": math.inf}, "share must be a number above 0. Got inf"),
        ({"kind": "equal-flops", "cap": 0.5}, "cap must be a number of at least 1. Got 0.5"),
        ({"kind": "equal-flops", "cap": "2"}, "cap must be a number of at least 1. Got '2'"),
        ({"kind": "equal-flops", "cap": math.nan}, "cap must be a number of at least 1. Got nan"),
        ({"kind": "equal-epochs", "cap": 2}, "Only a budget of equal FLOPs can have a 'cap'"),
        ({"kind": "equal-epochs", "amount": 2}, "A budget of equal-epochs takes no 'amount'"),
    ],
)
def test_a_budget_that_cannot_be_meant_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Budget(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"start": "warm"}, "'start' of the arm 'a' must be one of inherited, .*Got 'warm'"),
        ({"schedule": "slow"}, "'schedule' of the arm 'a' must be one of full, .*Got 'slow'"),
        ({"lr": 0}, "'lr' of the arm 'a' must be a number above 0. Got 0"),
        ({"lr": math.inf}, "'lr' of the arm 'a' must be a number above 0. Got inf"),
    ],
)
def test_an_arm_that_cannot_be_meant_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Arm(**{"name": "a", "start": "random", "budget": EQUAL_FLOPS, **fields})


def test_weights_and_schedule_are_rewound_separately() -> None:
    lr_rewind = ARMS.get("lr-rewind")
    assert (lr_rewind.start, lr_rewind.schedule, lr_rewind.first_epoch) == ("inherited", "full", 0)
    tail = replace(lr_rewind, schedule_epoch=5)
    both = Arm(name="b", start="rewound", epoch=5, budget=Budget(kind="equal-epochs"))
    weights = replace(both, schedule_epoch=0)
    assert [arm.first_epoch for arm in (tail, both, weights)] == [5, 5, 0]
    assert [arm.trained_epochs(20, 1.0) for arm in (tail, both, weights)] == [15, 15, 20]
    assert [arm.trained_epochs(20, 1.0) for arm in (FINE_TUNE, ARMS.get("pruned"))] == [5, 0]
    assert "schedule_epoch" not in both.to_json()
    assert {**both.to_json(), "schedule_epoch": 0} == weights.to_json()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"schedule_epoch": -1}, "'schedule_epoch' of the arm 'a' must be an int of at least 0"),
        ({"schedule_epoch": True}, "must be an int of at least 0. Got True"),
        ({"schedule_epoch": 3, "schedule": "last-rate"}, "there is no schedule to enter at 'sche"),
        ({"epoch": 3}, "where it enters the schedule is 'schedule_epoch'"),
    ],
)
def test_a_schedule_that_cannot_be_entered_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Arm(**{"name": "a", "start": "inherited", "budget": Budget(kind="equal-epochs"), **fields})


def test_a_registered_arm_is_found_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ARMS, "_values", dict(ARMS._values))
    long = register_arm(Arm(name="fine-tune-long", start="inherited", budget=EQUAL_FLOPS))
    assert ARMS.get("Fine_Tune long") is long
    with pytest.raises(ConfigError, match=r"Unknown arm 'scratch-c'. Did you mean 'scratch-"):
        ARMS.get("scratch-c")


def test_ten_times_the_last_rate_ends_at_the_last_rate() -> None:
    recipe = Recipe(epochs=160, lr=0.1)
    tuned = ARMS.get("fine-tune-10x").recipe(recipe, 40)
    assert [tuned.lr_at(epoch) for epoch in (0, 19, 20, 39)] == pytest.approx(
        [0.01, 0.01, 0.001, 0.001]
    )
    assert recipe.last_lr() == pytest.approx(0.001)
    assert FINE_TUNE.recipe(recipe, 40).lr == pytest.approx(0.001)
    one_cycle = ARMS.get("one-cycle").recipe(recipe, 160)
    assert (one_cycle.schedule, one_cycle.lr) == ("one-cycle", 0.1)


def test_a_rate_of_ones_own_takes_the_place_of_a_multiple() -> None:
    arm = read_arm({"name": "fine-tune-10x", "lr": 0.02})
    assert (arm.lr, arm.last_rates) == (0.02, None)
    cosine = read_arm({"name": "warm", "like": "fine-tune-10x", "schedule": "cosine"})
    assert (cosine.schedule, cosine.drop_at, cosine.last_rates) == ("cosine", None, 10.0)
    assert "last_rates" not in FINE_TUNE.to_json()
    assert ARMS.get("fine-tune-10x").to_json()["last_rates"] == 10.0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"last_rates": 0}, "'last_rates' of the arm 'a' must be a number above 0.*Got 0"),
        ({"last_rates": 2.0, "lr": 0.1}, "has both 'lr' and 'last_rates'"),
    ],
)
def test_a_multiple_of_the_last_rate_must_be_one(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Arm(**{"name": "a", "start": "inherited", "budget": EQUAL_FLOPS, **fields})


def test_a_recipe_without_a_last_rate_has_no_multiple_of_it() -> None:
    with pytest.raises(ConfigError, match="has none: it changes at each update"):
        check_arm(ARMS.get("fine-tune-10x"), Recipe(schedule="one-cycle"))


def test_a_budget_of_the_pipeline_pays_for_the_parent_and_its_fine_tuning() -> None:
    arm = ARMS.get("scratch-pipeline")
    ratio, base = 2.0, 160
    spent = base * 1.0 + FINE_TUNE.epochs(base, ratio) / ratio  # in epochs of the unpruned network
    assert arm.epochs(base, ratio) / ratio == spent
    assert read_arm({"name": "scratch-pipeline", "share": 0.5}).epochs(base, ratio) == 400
    capped = read_arm({"name": "scratch-pipeline", "cap": 1.5})
    assert (capped.epochs(base, ratio), capped.budget.is_capped(ratio)) == (280, True)
    own = read_arm({"name": "mine", "start": "random", "budget": "pipeline", "share": 0.1})
    assert own.budget == Budget(kind="pipeline", amount=0.1)
    with pytest.raises(ConfigError, match="share must be a number above 0"):
        read_arm({"name": "mine", "start": "random", "budget": "pipeline"})
    assert read_arm({"name": "scratch-pipeline", "epochs": 3}).budget.kind == "epochs"


# Shares and multiples, for recipes of any length --------------------------------------------


def test_a_multiple_of_the_peak_needs_no_last_rate() -> None:
    linear = Recipe(epochs=8, lr=1.5, schedule="linear", warmup_share=0.25, warmup_start=0.2)
    constant = read_arm({"name": "fine-tune", "peak_rates": 0.01})
    check_arm(constant, linear)
    low = constant.recipe(linear, 2)
    assert [low.lr_at(epoch, place=place, steps=4) for epoch in (0, 1) for place in (0, 3)] == [
        pytest.approx(0.015)
    ] * 4
    falling = read_arm(
        {
            "name": "falling",
            "like": "fine-tune",
            "schedule": "linear",
            "peak_rates": 0.1,
            "warmup_share": 0,
        }
    )
    check_arm(falling, linear)
    tuned = falling.recipe(linear, 2)
    rates = [tuned.lr_at(epoch, place=place, steps=4) for epoch in (0, 1) for place in range(4)]
    assert rates == pytest.approx([0.15 * (1 - step / 8) for step in range(8)])
    assert read_arm({"name": "fine-tune-10x", "peak_rates": 0.1}).last_rates is None


def test_a_warm_up_of_an_arm_takes_the_place_of_the_recipes() -> None:
    recipe = Recipe(epochs=8, warmup_epochs=2)
    arm = read_arm({"name": "again", "like": "lr-rewind", "warmup_share": 0.5})
    warmed = arm.recipe(recipe, 8)
    assert (warmed.warmup_epochs, warmed.warmup_share) == (0, 0.5)
    none = read_arm({"name": "again", "like": "lr-rewind", "warmup_share": 0})
    assert none.recipe(recipe, 8).lr_at(0) == recipe.lr
    assert ARMS.get("lr-rewind").recipe(recipe, 8).lr_at(0) == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"peak_rates": 0}, "'peak_rates' of the arm 'a' must be a number above 0, by which"),
        ({"peak_rates": "x"}, "Got 'x'"),
        ({"peak_rates": 0.1, "lr": 0.1}, "has both 'lr' and 'peak_rates'"),
        ({"peak_rates": 0.1, "last_rates": 1}, "has both 'last_rates' and 'peak_rates'"),
        ({"warmup_share": 1}, r"'warmup_share' of the arm 'a' must be a share.*\[0, 1\). Got 1"),
        ({"warmup_share": 0.1, "schedule": "last-rate"}, "at one learning rate, so it has no warm"),
        ({"epoch_share": 0.5}, "has an 'epoch_share' to rewind to .0.5., so its 'start' must be"),
        ({"epoch_share": -1, "start": "rewound"}, "must be a share of training"),
        ({"epoch_share": 0.5, "epoch": 2, "start": "rewound"}, "both 'epoch' and 'epoch_share'"),
        ({"start": "rewound"}, "needs an 'epoch' to rewind to.* or an 'epoch_share'"),
        ({"schedule_share": 0.5, "schedule_epoch": 2}, "both 'schedule_epoch' and 'schedule_sh"),
        ({"schedule_share": 0.5, "schedule": "last-rate"}, "to enter at 'schedule_share' 0.5"),
    ],
)
def test_shares_and_multiples_that_cannot_be_meant_are_refused(
    fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Arm(**{"name": "a", "start": "inherited", "budget": EQUAL_FLOPS, **fields})


@pytest.mark.parametrize(
    ("schedule", "why"),
    [
        ("linear", "the schedule 'linear' has none: it changes at each update and ends at zero"),
        ("cosine-by-step", "it changes at each update and ends at zero.* 'peak_rates' .0.01"),
        ("one-cycle", "it changes at each update. Give"),
    ],
)
def test_a_last_rate_of_zero_is_refused_by_its_name(schedule: str, why: str) -> None:
    for name in ("fine-tune", "fine-tune-10x"):
        with pytest.raises(ConfigError, match=why):
            check_arm(ARMS.get(name), Recipe(schedule=schedule))


def test_shares_of_training_become_epochs_beside_a_recipe() -> None:
    late = read_arm({"name": "late", "start": "rewound", "epoch_share": 0.1})
    assert [late.within(Recipe(epochs=epochs)).epoch for epochs in (160, 8, 2)] == [16, 1, 1]
    last = read_arm({"name": "last", "like": "lr-rewind", "schedule_share": 0.75})
    assert [last.within(Recipe(epochs=epochs)).first_epoch for epochs in (160, 8, 2)] == [120, 6, 1]
    by_epoch = read_arm({"name": "last", "like": "lr-rewind", "schedule_epoch": 6})
    eight = Recipe(epochs=8, lr=1.5)
    assert last.within(eight) == by_epoch  # so that both have the same results
    assert by_epoch.within(eight) == by_epoch
    low = read_arm({"name": "fine-tune", "peak_rates": 0.01})
    assert low.within(eight) == read_arm({"name": "fine-tune", "lr": 0.015})
    changed = read_arm({"name": "late", "start": "rewound", "epoch": 3}).within(eight)
    assert changed.epoch == 3
