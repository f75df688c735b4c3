"""What methods do while a network trains: in which turn, resumed anywhere, recorded as a graph."""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regrow.errors import ConfigError, TraceError
from regrow.models import build
from regrow.pruning.method import METHODS
from regrow.pruning.select import groups_in_scope
from regrow.train import NO_TREATMENT, Recipe, Training, Treatment, fit
from small import NETWORKS, digits, equal, small, snapshot

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

    def moved(model: nn.Module) -> bool:
        return not torch.equal(model.get_parameter(weight), before)

    def note(name: str) -> Callable[[nn.Module], None]:
        return lambda model: calls.append((name, moved(model)))

    def updated(model: nn.Module, lr: float | Tensor) -> None:
        calls.append(("updated", moved(model), lr))

    how = Treatment(
        begin=note("begin"),
        gradients=note("gradients"),
        updated=updated,
        epoch=lambda _, epochs: calls.append(("epoch", epochs)),
        end=note("end"),
    )
    recipe = Recipe(epochs=2, batch=128, lr=0.05, drop_at=(0.5,))
    fit(training(how, recipe, hold=note("hold")))
    step = [("hold", True), ("updated", True, 0.005), ("hold", True), ("epoch", 2), ("end", True)]
    assert calls == [
        ("begin", False),
        ("epoch", 0),
        ("gradients", False),
        ("hold", False),
        ("updated", True, 0.05),
        ("hold", True),
        ("epoch", 1),
        ("gradients", True),
        *step,
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
        for momentum in whole.parts.momentum:
            momentum.zero_()
    fit(whole)
    fit(late)
    assert equal(snapshot(whole.model), snapshot(late.model))
    assert late.samples == 2 * 128
    assert [line["epoch"] for line in late.history] == [1, 2]
    with pytest.raises(ConfigError, match=r"of 3 epochs can begin at one from 0 to 2\. Got 3"):
        training(NO_TREATMENT, first_epoch=3)
