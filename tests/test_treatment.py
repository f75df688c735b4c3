"""What methods do while a network trains: in which turn, resumed anywhere, recorded as a graph."""

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regrow.core.seeds import seeded
from regrow.data import normalise
from regrow.errors import ConfigError, TraceError, TrainingError
from regrow.models import build
from regrow.pruning.method import METHODS
from regrow.pruning.select import groups_in_scope
from regrow.train import (
    NO_TREATMENT,
    MaskUpdates,
    Moment,
    Recipe,
    Training,
    Treatment,
    fit,
)
from regrow.train.treatment import Hook
from small import FIRST, NETWORKS, digits, equal, small, snapshot

RECIPE = Recipe(epochs=3, batch=32, lr=0.05)
TREATED = [name for name in METHODS.names() if METHODS.get(name).treatment is not None]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # the promise of equal bits is for one thread


def treatment(name: str, *, strength: float = 0.1, sparsity: float = 0.3) -> Treatment:
    make = METHODS.get(name).treatment
    assert make is not None
    return make(strength, sparsity)


def training(
    how: Treatment, recipe: Recipe = RECIPE, *, net: str = "preresnet", **options: Any
) -> Training:
    return Training(build(NETWORKS[net]), digits(), recipe, seed=3, treatment=how, **options)


@cache
def network_for(name: str) -> str:
    """Name a network that has what a method prunes, the pre-activation one if it has."""
    for label in ("preresnet", *NETWORKS):
        try:
            groups_in_scope(*small(label), METHODS.get(name))
        except TraceError:
            continue
        return label
    raise AssertionError(name)


def treated_training(name: str, **options: Any) -> Training:
    return training(treatment(name), net=network_for(name), **options)


def test_every_part_has_its_turn() -> None:
    calls: list[Any] = []
    weight = "features.conv.weight"
    before = snapshot(build(NETWORKS["preresnet"]))[weight]
    kept = torch.zeros_like(before).bool()
    kept[0] = True

    def note(name: str) -> Hook:
        def hook(model: nn.Module, moment: Moment) -> None:
            value, gradient = model.get_parameter(weight), model.get_parameter(weight).grad
            moved = not torch.equal(value[0], before[0])
            masked = None if gradient is None else not bool(gradient[1:].any())
            calls.append((name, moment.step, moment.epoch, moment.lr, moved, masked))
            if name == "updated":
                assert not bool(value[1:].any())
                with torch.no_grad():
                    value.fill_(1.0)  # what is masked is zeroed after it

        return hook

    def change(model: nn.Module, masks: Mapping[str, Tensor], moment: Moment) -> None:
        note("change")(model, moment)
        assert masks.keys() == {weight}
        assert not bool(model.get_parameter(weight)[1:].any())

    def start(model: nn.Module, moment: Moment) -> dict[str, Tensor]:
        note("start")(model, moment)
        return {weight: kept}

    how = Treatment(
        begin=note("begin"),
        gradients=note("gradients"),
        updated=note("updated"),
        epoch=note("epoch"),
        end=note("end"),
        masks=MaskUpdates(
            start=start, when=lambda moment: moment.step == 1, change=change, dense_gradients=True
        ),
    )
    recipe = Recipe(epochs=2, batch=128, lr=0.05, drop_at=(0.5,))
    one = training(how, recipe)
    fit(one)
    assert not bool(one.model.get_parameter(weight)[1:].any())
    assert calls == [
        ("begin", 0, 0, 0.05, False, None),
        ("start", 0, 0, 0.05, False, None),
        ("epoch", 0, 0, 0.05, False, None),
        ("gradients", 0, 0, 0.05, False, False),
        ("updated", 0, 0, 0.05, True, True),
        ("epoch", 1, 1, 0.005, True, True),
        ("gradients", 1, 1, 0.005, True, False),
        ("change", 1, 1, 0.005, True, False),
        ("updated", 1, 1, 0.005, True, True),
        ("epoch", 2, 2, 0.005, True, True),
        ("end", 2, 2, 0.005, True, True),
    ]


@pytest.mark.parametrize("name", TREATED)
def test_a_method_changes_what_is_trained_but_not_what_the_network_is_made_of(name: str) -> None:
    plain, treated = training(NO_TREATMENT, net=network_for(name)), treated_training(name)
    fit(plain)
    fit(treated)
    one, other = snapshot(plain.model), snapshot(treated.model)
    assert one.keys() == other.keys()
    assert not equal(one, other)
    assert [type(m) for m in plain.model.modules()] == [type(m) for m in treated.model.modules()]
    assert all(p.requires_grad for p in treated.model.parameters())


@pytest.mark.parametrize("name", TREATED)
@pytest.mark.parametrize("stop", [1, 4, 6, 12])
def test_a_treated_training_resumes_bit_by_bit(name: str, stop: int) -> None:
    whole, part = treated_training(name), treated_training(name)
    fit(whole)
    for _ in range(stop):
        part.step()
    tensors, meta = part.state()
    again = treated_training(name)
    again.restore(tensors, json.loads(json.dumps(meta)))
    fit(again)
    (one, first), (other, second) = whole.state(), again.state()
    assert first == second
    assert equal(one, other)


class Repeats:
    """A recorder that does again what it was given, once it has warmed up."""

    def record(
        self, body: Callable[[], None], *, prepare: Callable[[], object]
    ) -> Callable[[], None]:
        prepare()
        body()
        return body

    def seed(self, seed: int) -> AbstractContextManager[None]:
        return nullcontext()


@pytest.mark.parametrize("name", TREATED)
def test_recorded_steps_are_treated_like_single_calls(name: str) -> None:
    one, other = treated_training(name), treated_training(name, recorder=Repeats())
    fit(one)
    fit(other)
    assert other.notice is None
    theirs = snapshot(other.model)
    for key, value in snapshot(one.model).items():
        # The rate is float32 on a device and float64 in a call: 1e-8 of an update.
        torch.testing.assert_close(value, theirs[key], rtol=1e-4, atol=1e-5)


# Masks that change

CONV = "features.conv.weight"


def swapping(*, replaces_update: bool = False, dense: bool = True) -> Treatment:
    """Drop the smallest kept weight of a layer and grow where the gradient is largest, at times."""

    def start(model: nn.Module, moment: Moment) -> dict[str, Tensor]:
        weight = model.get_parameter(CONV)
        return {CONV: torch.rand(weight.shape, generator=moment.generator("start")) < 0.5}

    def change(model: nn.Module, masks: Mapping[str, Tensor], moment: Moment) -> None:
        weight = model.get_parameter(CONV)
        assert weight.grad is not None
        masks[CONV].copy_(swapped(weight.detach(), weight.grad, masks[CONV].bool()))

    masks = MaskUpdates(
        start=start,
        when=lambda moment: 0 < moment.step < 9 and moment.step % 2 == 0,
        change=change,
        dense_gradients=dense,
        replaces_update=replaces_update,
    )
    return Treatment(masks=masks)


def swapped(weight: Tensor, gradient: Tensor, kept: Tensor) -> Tensor:
    """Return a mask with three of the kept weights dropped, and three others grown."""
    after = kept.clone().flatten()
    smallest = weight.abs().masked_fill(~kept, torch.inf).flatten().argsort(stable=True)[:3]
    largest = gradient.abs().masked_fill(kept, -1.0).flatten().argsort(stable=True)[-3:]
    after[smallest], after[largest] = False, True
    return after.view_as(kept)


@pytest.mark.parametrize("replaces_update", [False, True])
def test_masks_that_change_equal_a_plain_loop(replaces_update: bool) -> None:
    recipe = replace(RECIPE, channels_last=False)
    one = training(swapping(replaces_update=replaces_update), recipe)
    kept = one.kept()[CONV]
    model, data = build(NETWORKS["preresnet"]).train(), digits()
    weight = model.get_parameter(CONV)
    with torch.no_grad():
        weight.mul_(kept)
    assert equal(snapshot(model), snapshot(one.model))
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    order = torch.randperm(len(data.train), generator=seeded(3, "shuffle", 0))
    for step, batch in enumerate(torch.split(order, 32)):
        x = normalise(data.train.batch(batch), data.mean, data.std)
        optimiser.zero_grad()
        F.cross_entropy(model(x), data.train.labels[batch]).backward()  # type: ignore[no-untyped-call]
        assert weight.grad is not None
        changes = step == 2
        if changes:
            kept = swapped(weight.detach(), weight.grad, kept)
            optimiser.state[weight]["momentum_buffer"].mul_(kept)
        with torch.no_grad():
            weight.mul_(kept)
            weight.grad.mul_(kept)
        if not (changes and replaces_update):
            optimiser.step()
        with torch.no_grad():
            weight.mul_(kept)
        one.step()
        assert torch.equal(one.kept()[CONV], kept), step
        remembered = one.state()[0][f"momentum.{CONV}"]
        assert not bool(remembered[~kept].any()), step  # it may grow again, from nothing
    for name, value in snapshot(model).items():
        torch.testing.assert_close(snapshot(one.model)[name], value, rtol=1e-5, atol=1e-6)
    assert int(kept.sum()) == int(training(swapping()).kept()[CONV].sum())
    assert not torch.equal(kept, training(swapping()).kept()[CONV])


@pytest.mark.parametrize("stop", [1, 2, 3, 8, 12])
def test_masks_that_change_resume_bit_by_bit(stop: int) -> None:
    whole, part = training(swapping()), training(swapping())
    fit(whole)
    for _ in range(stop):
        part.step()
    tensors, meta = part.state()
    again = training(swapping())
    again.restore(tensors, json.loads(json.dumps(meta)))
    fit(again)
    (one, first), (other, second) = whole.state(), again.state()
    assert first == second
    assert equal(one, other)
    assert whole.passes == again.passes


def test_steps_that_change_masks_are_not_replayed() -> None:
    one, other = training(swapping()), training(swapping(), recorder=Repeats())
    fit(one)
    fit(other)
    assert other.notice is None
    assert torch.equal(one.kept()[CONV], other.kept()[CONV])
    theirs = snapshot(other.model)
    for key, value in snapshot(one.model).items():
        torch.testing.assert_close(value, theirs[key], rtol=1e-4, atol=1e-5)


def test_passes_count_what_is_masked_and_dense_gradients() -> None:
    one, other = training(swapping()), training(swapping(dense=False))
    kept, size = int(one.kept()[CONV].sum()), one.kept()[CONV].numel()
    fit(one)
    fit(other)
    images, dense = 3 * 128, 4 * 32  # on four steps
    assert one.passes is not None
    assert other.passes is not None
    assert one.passes.weights == {CONV: 3 * images * kept + dense * (size - kept)}
    assert other.passes.weights == {CONV: 3 * images * kept}
    assert other.passes.densities(images) == {CONV: pytest.approx(kept / size)}


def test_given_masks_are_the_first() -> None:
    kept = torch.zeros_like(build(NETWORKS["preresnet"]).get_parameter(CONV)).bool()
    kept[0] = True
    one = training(swapping(), masks={CONV: kept})
    assert torch.equal(one.kept()[CONV], kept)
    fit(one)
    assert int(one.kept()[CONV].sum()) == int(kept.sum())
    assert not torch.equal(one.kept()[CONV], kept)


def test_masks_of_other_numbers_and_of_unknown_parameters_are_refused() -> None:
    def change(model: nn.Module, masks: Mapping[str, Tensor], moment: Moment) -> None:
        masks[CONV].fill_(0.5)

    how = swapping()
    assert how.masks is not None
    with pytest.raises(TrainingError, match=f"mask of '{CONV}' holds other numbers than 0 and 1"):
        fit(training(replace(how, masks=replace(how.masks, change=change))))
    with pytest.raises(ConfigError, match=r"Unknown parameter 'features.con.weight'. Did you mean"):
        training(NO_TREATMENT, masks={"features.con.weight": torch.ones(1).bool()})


def test_random_streams_hang_on_seed_step_and_purpose() -> None:
    def draw(moment: Moment, *purpose: str) -> float:
        return float(torch.rand((), generator=moment.generator(*purpose)))

    later, other = replace(FIRST, step=1), replace(FIRST, seed=1)
    draws = [draw(FIRST, "a"), draw(FIRST, "b"), draw(later, "a"), draw(other, "a")]
    assert len(set(draws)) == 4
    assert draw(FIRST, "a") == draws[0]
    recorded: Any = torch.zeros((), dtype=torch.int64)
    with pytest.raises(ConfigError, match="cannot make random generators"):
        replace(FIRST, step=recorded).generator("a")


# Trainings that begin later


def test_a_training_that_begins_later_sees_what_is_left_of_the_schedule() -> None:
    recipe = replace(RECIPE, drop_at=(0.5,))
    whole, late = training(NO_TREATMENT, recipe), training(NO_TREATMENT, recipe, first_epoch=1)
    assert (late.epoch, late.samples) == (1, 0)
    for _ in range(whole.steps_per_epoch):
        whole.step()
    tensors, _ = whole.state()
    late.model.load_state_dict(
        {n.removeprefix("model."): v for n, v in tensors.items() if n.startswith("model.")}
    )
    with torch.no_grad():
        for momentum in whole.parts.state["momentum"]:
            momentum.zero_()
    fit(whole)
    fit(late)
    assert equal(snapshot(whole.model), snapshot(late.model))
    assert late.samples == 2 * 128
    assert [line["epoch"] for line in late.history] == [1, 2]
    with pytest.raises(ConfigError, match=r"of 3 epochs can begin at an epoch from 0 to 2\. Got 3"):
        training(NO_TREATMENT, first_epoch=3)
