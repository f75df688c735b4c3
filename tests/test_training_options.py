"""What a recipe can ask for beside plain SGD: against plain loops, resumed, recorded, refused."""

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regrow.core.choice import Choice
from regrow.core.distributed import Ranks
from regrow.core.registry import load_file
from regrow.core.seeds import seeded
from regrow.data import MemoryImages, normalise
from regrow.data.augment import cut_out, draw_holes, draw_shares, mix
from regrow.data.spec import FLIPPING
from regrow.errors import ConfigError
from regrow.jobs.arms import read_arm
from regrow.train import RECIPES, Recipe, Training, evaluate, fit
from regrow.train.optimiser import decays_and_rates, make_optimiser
from small import bright
from test_gpu_sharing import Bodies, half
from test_training import QUICK, assert_same_bits, network, training

# With an eps that is not small beside the gradient of a bias before a norm, which is rounding.
ADAMW = Choice("adamw", eps=1e-3)
OPTIONS: dict[str, dict[str, Any]] = {
    "adamw": {"optimiser": ADAMW, "lr": 0.01, "weight_decay": 0.1},
    "adamw, decay on weights": {
        "optimiser": Choice("adamw", beta1=0.8, beta2=0.95, eps=1e-3),
        "lr": 0.01,
        "weight_decay": 0.1,
        "decayed": "weights",
    },
    "linear with warm-up": {"schedule": "linear", "warmup_share": 0.2},
    "cosine by step": {"schedule": "cosine-by-step"},
    "one-cycle": {"schedule": "one-cycle"},
    "drops with warm-up": {"warmup_steps": 7},
    "clip": {"clip": 0.5},
    "ema": {"ema": 0.7},
    "mixup": {"mixup": 0.4},
    "cutout": {"cutout": 3},
    "label smoothing": {"objective": Choice("cross-entropy", label_smoothing=0.1)},
    "nesterov": {"nesterov": True, "momentum": 0.85},
    "linear from and to": {
        "schedule": "linear",
        "warmup_share": 0.2,
        "warmup_start": 0.3,
        "end_factor": 0.1,
    },
    "cosine to": {"schedule": "cosine-by-step", "end_factor": 0.1},
    "rate of norms' biases": {"norm_bias_rate": 8.0, "weight_decay": 0.05},
    "lookahead": {"lookahead": 4},
    "reflected shift": {"augmentation": "reflect-shift-flip"},
    "alternating flip": {"alternating_flip": True},
}
ALL: dict[str, Any] = {
    **{k: v for options in OPTIONS.values() for k, v in options.items()},
    "optimiser": ADAMW,
    "schedule": "one-cycle",
    "warmup_steps": 0,
    "warmup_share": 0.0,
    "warmup_start": 0.0,
    "end_factor": 0.0,
    "lookahead": None,
    "nesterov": False,
    "momentum": 0.9,
    "norm_bias_rate": 2.0,
}
# As the recipe, at rates for 15 steps.
OPTIONS["fast"] = {
    **{k: getattr(RECIPES["fast"], k) for k in RECIPES["fast"].to_json()},
    "epochs": 3,
    "batch": 16,
    "lr": 0.05,
    "norm_bias_rate": 8.0,
    "lookahead": 4,
}
NORM_BIASES = ("1.bias", "4.bias")  # of ``network``
PLAIN = replace(bright(), augmentation="none")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def recipe_with(options: dict[str, Any]) -> Recipe:
    return replace(QUICK, channels_last=False, **options)


def plain_loop(recipe: Recipe, *, seed: int) -> Iterator[dict[str, Tensor]]:
    """Train with PyTorch's own parts, yielding the parameters that would be measured."""
    model, data = network(), bright()
    steps, num = 5, 5 * recipe.epochs
    rates = [
        recipe.norm_bias_rate if n in NORM_BIASES else 1.0 for n, _ in model.named_parameters()
    ]
    groups = [
        {
            "params": [p],
            "lr": recipe.lr * rate,
            "weight_decay": recipe.weight_decay
            / rate
            * (p.dim() > 1 or recipe.decayed != "weights"),
        }
        for p, rate in zip(model.parameters(), rates, strict=True)
    ]
    if recipe.optimiser is None:
        optimiser: Any = torch.optim.SGD(
            groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.nesterov
        )
    else:
        given = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8} | recipe.optimiser.arguments
        optimiser = torch.optim.AdamW(
            groups,
            lr=recipe.lr,
            betas=(given["beta1"], given["beta2"]),
            eps=given["eps"],
        )
    first, last = recipe.warmup_start, recipe.end_factor
    warmup = round(num * recipe.warmup_share)
    factors = {
        "linear": lambda s: (
            first + (1 - first) * (s + 1) / warmup
            if s < warmup
            else last + (1 - last) * (num - s) / (num - warmup)
        ),
        "cosine-by-step": lambda s: last + (1 - last) * (1 + math.cos(math.pi * s / num)) / 2,
        "drops": lambda s: (
            min((s + 1) / 7, 1) * 0.1 ** (s // steps)
            if recipe.warmup_steps
            else 0.1 ** (s // steps)
        ),
    }
    if recipe.schedule == "one-cycle":
        peaks = [group["lr"] for group in optimiser.param_groups]
        schedule: Any = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, peaks, total_steps=num, cycle_momentum=False
        )
    else:
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, factors[recipe.schedule])
    smoothing = {} if recipe.objective is None else recipe.objective.arguments
    average = {name: p.detach().clone() for name, p in model.named_parameters()}
    kind = recipe.augmentation or data.augmentation
    coins = torch.randint(0, 2, (70,), generator=seeded(seed, "flip"))
    for epoch in range(recipe.epochs):
        order = torch.randperm(70, generator=seeded(seed, "shuffle", epoch))
        generator = seeded(seed, "augment", epoch)
        draws = data.train.draw(kind, generator)
        if recipe.alternating_flip:
            for place, image in enumerate(order.tolist()):
                draws[place, -1] = int(coins[image]) ^ (epoch % 2)
        holes = draw_holes(70, size=8, generator=generator) if recipe.cutout else order[:, None]
        shares = draw_shares(5, alpha=recipe.mixup or 1, generator=generator).tolist()
        for step, places in enumerate(torch.split(torch.arange(70), 16)):
            pixels = data.train.augmented(order[places], draws[places], kind=kind)
            x = normalise(pixels, data.mean, data.std)
            y = data.train.labels[order[places]]
            if recipe.cutout:
                for image, (row, column) in zip(x, holes[places].tolist(), strict=True):
                    rows, columns = (slice(max(at - 1, 0), at + 2) for at in (row, column))
                    image[:, rows, columns] = 0
            share = shares[step] if recipe.mixup else 1.0
            outputs = model(share * x + (1 - share) * x.flip(0))
            loss = share * F.cross_entropy(outputs, y, **smoothing)
            loss = loss + (1 - share) * F.cross_entropy(outputs, y.flip(0), **smoothing)
            optimiser.zero_grad()
            loss.backward()
            if recipe.clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
            optimiser.step()
            schedule.step()
            done = epoch * steps + step
            decay = min(recipe.ema or 0.0, (1 + done) / (10 + done))
            if recipe.lookahead:
                decay = 0.95**recipe.lookahead * ((done + 1) / num) ** 3
            pulls = recipe.lookahead and ((done + 1) % recipe.lookahead == 0 or done + 1 == num)
            for name, p in model.named_parameters():
                if pulls or not recipe.lookahead:
                    average[name].mul_(decay).add_(p.detach(), alpha=1 - decay)
                if pulls:
                    p.data.copy_(average[name])
            yield {name: value.clone() for name, value in average.items()}


@pytest.mark.parametrize("name", OPTIONS)
def test_equals_a_plain_loop(name: str) -> None:
    recipe = recipe_with(OPTIONS[name])
    ours = training(recipe)
    for expected in plain_loop(recipe, seed=7):
        ours.step()
        live = dict(ours.model.named_parameters())
        averages = dict(zip(ours._averaged, ours.parts.averages, strict=True))
        for key, value in expected.items():
            found = averages.get(key, live[key]).detach()
            torch.testing.assert_close(found, value, rtol=1e-5, atol=2e-6)
    assert ours.done


def test_adamw_has_the_bits_of_pytorch() -> None:
    generator = seeded(0, "x")
    ours, theirs = ([nn.Parameter(torch.ones(3, 5))] for _ in range(2))
    adamw = make_optimiser(Recipe(optimiser=Choice("adamw")))
    state = adamw.start(ours)
    pytorch = torch.optim.AdamW(theirs, lr=0.01, weight_decay=0.1, fused=True)
    for _ in range(5):
        gradient = torch.randn(3, 5, generator=generator)
        ours[0].grad, theirs[0].grad = gradient, gradient.clone()
        adamw.step(ours, state, decays=[0.1], lr=0.01)
        pytorch.step()
        assert torch.equal(ours[0], theirs[0])


@pytest.mark.parametrize("engine", ["single calls", "recorded"])
@pytest.mark.parametrize("stop", [1, 7, 14, 15])
@pytest.mark.parametrize("name", ["all", "adamw", "ema", "fast"])
def test_resumes_to_the_same_bits(name: str, stop: int, engine: str) -> None:
    recipe = recipe_with(ALL if name == "all" else OPTIONS[name])

    def begun() -> Training:
        recorder = Bodies() if engine == "recorded" else None
        return training(recipe, dropout=0.3, recorder=recorder)

    undisturbed = begun()
    fit(undisturbed)
    killed = begun()
    for _ in range(stop):
        killed.step()
    resumed = begun()
    resumed.restore(*killed.state())
    fit(resumed)
    assert_same_bits(resumed, undisturbed)


@pytest.mark.parametrize("name", ["all", *OPTIONS])
def test_recorded_steps_equal_single_calls(name: str) -> None:
    recipe = recipe_with(ALL if name == "all" else OPTIONS[name])
    one, other = training(recipe, recorder=Bodies()), training(recipe)
    one.step()
    kept = [*one.parts.averages, *(t for ts in one.parts.state.values() for t in ts)]
    places = [tensor.data_ptr() for tensor in kept]
    fit(one)
    fit(other)
    assert one.notice is None
    assert [tensor.data_ptr() for tensor in kept] == places  # what a graph was recorded with
    for key, value in one.state()[0].items():
        # A rate is float32 on a device; AdamW divides by square roots of nearly nothing.
        torch.testing.assert_close(value, other.state()[0][key], rtol=1e-4, atol=1e-5)


def test_average_is_what_is_left_at_the_end_and_masks_hold_in_it() -> None:
    one = training(recipe_with({"ema": 0.9}), masks=half())
    fit(one)
    for name, average in zip(one._averaged, one.parts.averages, strict=True):
        torch.testing.assert_close(one.model.state_dict()[name], average, rtol=0, atol=1e-6)
    assert (one.model.get_parameter("3.weight") == 0).float().mean() == pytest.approx(0.5, abs=0.1)
    plain = training(recipe_with({}))
    fit(plain)
    assert not torch.equal(
        one.model.state_dict()["1.running_mean"], plain.model.state_dict()["1.running_mean"]
    )


def test_lookahead_leaves_the_average_and_masks_hold_in_it() -> None:
    one = training(recipe_with({"lookahead": 4}), masks=half())
    for _ in range(one.num_steps):
        one.step()
        pulled = one.steps_done % 4 == 0 or one.done
        for value, average in zip(one.parts.averaged, one.parts.averages, strict=True):
            where = value != 0  # what is masked, the average may remember
            assert not pulled or torch.equal(value[where], average[where])
        assert (one.model.get_parameter("3.weight")[~half()["3.weight"]] == 0).all()
    running = one.model.state_dict()["1.running_mean"]
    assert not torch.equal(running, torch.zeros_like(running))


class Masked(nn.Module):
    """A network that adds a constant mask of minus infinity, as attention does."""

    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.net = network()
        self.register_buffer("mask", torch.tensor([0.0, -math.inf]))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        return logits * (1.0 + self.mask.softmax(0)[1])


@pytest.mark.parametrize("averaged", [{"ema": 0.9}, {"lookahead": 4}])
def test_infinities_stay_as_they_are_beside_averages(averaged: dict[str, Any]) -> None:
    recipe, data = recipe_with(averaged), bright()
    one, plain = Masked(), network()
    fit(Training(one, data, recipe, seed=7))
    fit(Training(plain, data, recipe, seed=7))
    assert one.mask.tolist() == [0.0, -math.inf]
    for name, value in plain.state_dict().items():
        assert torch.equal(one.net.state_dict()[name], value), name


def test_lookahead_takes_up_the_schedule_where_a_training_enters_it() -> None:
    late = training(recipe_with({"lookahead": 4}), first_epoch=1)
    pulls = [numbers.pull for epoch in (1, 2) for numbers in late._numbers(epoch, seeded(0, "x"))]
    assert [5 + place + 1 for place, pull in enumerate(pulls) if pull] == [8, 12, 15]
    last = late._numbers(2, seeded(0, "x"))[-1]
    assert last.decay == pytest.approx(0.95**4)


class RMSNorm(nn.Module):
    """A norm of a library: a scale and a bias of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(3)), nn.Parameter(torch.zeros(3))


def test_biases_of_norms_are_told_by_what_norms_are() -> None:
    net = nn.ModuleDict(
        {
            "conv": nn.Conv2d(3, 3, 1),
            "batch": nn.BatchNorm2d(3),
            "layer": nn.LayerNorm(3),
            "group": nn.GroupNorm(1, 3),
            "own": RMSNorm(),
            "bare": nn.BatchNorm2d(3, affine=False),
            "linear": nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)),
            "scaled": nn.BatchNorm2d(3),
            "held": nn.BatchNorm2d(3),
        }
    )
    nn.utils.parametrize.register_parametrization(net["scaled"], "bias", nn.Identity())
    net["held"].requires_grad_(False)
    recipe = Recipe(norm_bias_rate=64, weight_decay=0.64)
    names = [name for name, p in net.named_parameters() if p.requires_grad]
    decays, rates = decays_and_rates(net, recipe)
    fast = {name for name, rate in zip(names, rates, strict=True) if rate == 64}
    norms = {"batch.bias", "layer.bias", "group.bias", "own.bias"}
    assert fast == norms | {"scaled.parametrizations.bias.original"}
    assert {decay for decay, rate in zip(decays, rates, strict=True) if rate == 64} == {0.01}
    assert {decay for decay, rate in zip(decays, rates, strict=True) if rate == 1} == {0.64}


@pytest.mark.parametrize("kind", FLIPPING)
def test_each_image_is_flipped_in_every_second_epoch(kind: str) -> None:
    seen: list[dict[int, int]] = []
    one = training(recipe_with({"alternating_flip": True, "augmentation": kind}))
    begin = one._engine.begin

    def look(epoch: Any) -> None:
        flips = epoch.draws[:, -1].tolist()
        seen.append(dict(zip(epoch.order.tolist(), flips, strict=True)))
        begin(epoch)

    one._engine.begin = look  # type: ignore[method-assign]
    fit(one)
    first, second, third = seen
    assert first == third
    assert all(first[image] + second[image] == 1 for image in range(70))
    assert 20 < sum(first.values()) < 50


def test_own_optimiser_is_one_file(tmp_path: Path) -> None:
    file = tmp_path / "sign.py"
    file.write_text(
        "from regrow.train import register_optimiser\n\n"
        '@register_optimiser("sign", state=("average",))\n'
        "def sign(parameters, gradients, state, *, lr, weight_decay, beta=0.9):\n"
        "    for p, g, average in zip(parameters, gradients, state['average']):\n"
        "        average.lerp_(g, 1 - beta)\n"
        "        p.mul_(1 - lr * weight_decay).sub_(average.sign() * lr)\n"
    )
    load_file(file)
    recipe = Recipe.from_json({"optimiser": {"name": "sign", "beta": 0.5}, "lr": 0.01, "epochs": 1})
    assert recipe.to_json()["optimiser"] == {"name": "sign", "beta": 0.5}
    assert recipe.code() is not None
    one = training(replace(recipe, batch=16, weight_decay=0.0))
    before = one.model.get_parameter("3.weight").detach().clone()
    one.step()
    change = (one.model.get_parameter("3.weight") - before).detach().abs()
    torch.testing.assert_close(change, torch.full_like(change, 0.01), rtol=1e-4, atol=1e-6)
    assert "average.3.weight" in one.state()[0]


def test_an_optimiser_that_cannot_step_is_refused_before_training(
    tmp_path: Path,
) -> None:
    file = tmp_path / "broken.py"
    file.write_text(
        "from regrow.train import register_optimiser\n\n"
        '@register_optimiser("broken")\n'
        "def broken(parameters, gradients, state, *, lr, weight_decay):\n"
        "    state['nothing']\n"
    )
    load_file(file)
    with pytest.raises(ConfigError, match="'broken' cannot take a step: KeyError"):
        make_optimiser(Recipe(optimiser=Choice("broken")))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"optimiser": "adam-w2", "lr": 1}, "adamw"),
        (
            {"optimiser": "adamw"},
            r"'adamw' needs its own 'lr'. That of 'sgd' is 0.1",
        ),
        ({"optimiser": {"name": "adamw", "beta": 0.9}, "lr": 1}, "beta1"),
        ({"optimiser": {"name": "adamw", "eps": "x"}, "lr": 1}, "'eps' must be a number. Got 'x'"),
        ({"optimiser": "adamw", "lr": 1, "momentum": 0.5}, "takes no 'momentum'. Leave it out"),
        ({"schedule": "liner"}, "linear"),
        ({"warmup_steps": 5, "warmup_share": 0.1}, "one warm-up. Give one of warmup_steps and"),
        (
            {"warmup_share": 1},
            r"'warmup_share' of a recipe must be a share of training in \[0, 1\)",
        ),
        ({"clip": 0}, "'clip' of a recipe must be a number above 0, or nothing. Got 0"),
        ({"ema": 1}, "'ema' of a recipe must be a number between 0 and 1"),
        ({"mixup": -1}, "'mixup' of a recipe must be a number above 0"),
        ({"cutout": 2.5}, "'cutout' of a recipe must be an int of at least 1"),
        ({"lookahead": 0}, "'lookahead' of a recipe must be an int of at least 1, or nothing"),
        ({"lookahead": 5, "ema": 0.9}, "averages weights in one way. Give one of 'ema' and 'look"),
        ({"norm_bias_rate": 0}, "'norm_bias_rate' of a recipe must be a number above 0"),
        ({"warmup_start": 1}, r"'warmup_start' of a recipe must be a share of 'lr' in \[0, 1\)"),
        ({"warmup_start": 0.2}, "needs 'warmup_steps' or a 'warmup_share', which rise from it"),
        ({"end_factor": -1}, r"'end_factor' of a recipe must be a share of 'lr' in \[0, 1\)"),
        (
            {"name": "fast", "schedule": "drops"},
            "'drops' takes no 'end_factor'; cosine-by-step and linear do. Give 'end_factor: 0'",
        ),
        ({"alternating_flip": 1}, "'alternating_flip' of a recipe must be true or false"),
        (
            {"alternating_flip": True, "augmentation": "shift"},
            "needs an 'augmentation' that flips images .* Got 'shift'",
        ),
        ({"decayed": "weight"}, "weights"),
    ],
)
def test_what_cannot_be_meant_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Recipe.from_json(given)


def test_what_cannot_be_trained_is_refused() -> None:
    with pytest.raises(ConfigError, match="'beta1' must be a number in"):
        training(replace(QUICK, optimiser=Choice("adamw", beta1=1)))
    with pytest.raises(ConfigError, match=r"at most the 8 pixels of an image here. Got 9"):
        training(replace(QUICK, cutout=9))
    with pytest.raises(ConfigError, match="These data have 'none': give the recipe an 'augment"):
        Training(network(), PLAIN, replace(QUICK, alternating_flip=True), seed=0)
    with pytest.raises(ConfigError, match="'mixup' pairs images of a whole batch"):
        training(replace(QUICK, mixup=0.2), ranks=Ranks(rank=0, size=2))
    with pytest.raises(ConfigError, match="'distillation' learns from a trained network"):
        training(replace(QUICK, objective=Choice("distillation")))


@pytest.mark.parametrize(
    ("option", "message"),
    [({"cutout": 2}, "erases squares of images"), ({"mixup": 0.2}, "ids rather than quantities")],
)
def test_what_is_for_images_is_refused_for_tokens(option: Any, message: str) -> None:
    tokens = torch.randint(0, 9, (4, 5))
    data = replace(bright(), train=MemoryImages(tokens, tokens), channels=0)
    assert not data.of_images
    with pytest.raises(ConfigError, match=message):
        Training(network(), data, replace(QUICK, **option), seed=0)


def test_new_fields_enter_no_key_unless_given() -> None:
    assert Recipe().to_json() == {}
    recipe = Recipe(ema=0.9, optimiser=Choice("adamw"))
    assert recipe.to_json() == {"ema": 0.9, "optimiser": "adamw"}
    assert Recipe.from_json({"name": "fast", "epochs": 4}).at_one_rate(0.1).to_json() == {
        "epochs": 4,
        "batch": 512,
        "schedule": "constant",
        "momentum": 0.85,
        "nesterov": True,
        "weight_decay": 6.7e-4,
        "augmentation": "reflect-shift-flip",
        "lookahead": 5,
        "objective": {"name": "cross-entropy", "label_smoothing": 0.2},
        "norm_bias_rate": 16.0,
        "alternating_flip": True,
    }


def test_whole_numbers_are_the_same_recipe_as_floats() -> None:
    whole, floats = Recipe(lr=1, norm_bias_rate=16), Recipe(lr=1.0, norm_bias_rate=16.0)
    assert json.dumps(whole.to_json()) == json.dumps(floats.to_json())
    arms = [
        read_arm({"name": "a", "start": "inherited", "share": 0.5, "lr": lr}) for lr in (1, 1.0)
    ]
    assert len({json.dumps(arm.to_json()) for arm in arms}) == 1


def test_squares_are_cut_out_around_their_centres() -> None:
    x = torch.ones(3, 2, 5, 5)
    found = cut_out(x, torch.tensor([[2, 2], [0, 4], [4, 0]]), side=3)
    assert [int((image == 0).sum()) for image in found[:, 0]] == [9, 4, 4]
    assert (found[0, :, 1:4, 1:4] == 0).all()
    assert (cut_out(x, torch.full((3, 2), 2), side=2)[0, 0, 1:3, 1:3] == 0).all()


def test_shares_are_beta_and_partners_mirror() -> None:
    shares = draw_shares(20_000, alpha=0.2, generator=seeded(0, "x"))
    assert float(shares.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(shares.var()) == pytest.approx(1 / (4 * (2 * 0.2 + 1)), rel=0.03)  # of Beta(a, a)
    x = torch.arange(3.0)
    assert mix(x, 0.25).tolist() == [1.5, 1.0, 0.5]


def test_a_schedule_by_step_stretches_with_its_budget() -> None:
    short = Recipe(epochs=10, schedule="linear", warmup_share=0.1)
    long = short.lasting(20)
    for share in (0, 2, 5, 9):
        assert long.lr_at(2 * share, steps=100) == pytest.approx(short.lr_at(share, steps=200))


def test_all_options_together_learn() -> None:
    recipe = Recipe(epochs=12, batch=16, **{**ALL, "lr": 0.05, "mixup": 0.1, "cutout": 2})
    one = training(recipe, num=200)
    fit(one)
    assert evaluate(one.model, one.dataset.test, one.dataset).score > 0.8
