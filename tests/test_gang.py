"""Many trainings on one device: recorded steps, and crews of threads. All of it on the CPU here.

A recording is stood in for by its body, called anew each time: the same driver, without graphs.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regrow.mask import Mask, holder
from regrow.seeds import seeded
from regrow.train import Recipe, Training, fit
from regrow.train.engine import CannotRecord
from regrow.turns import drawing
from test_training import QUICK, assert_same_bits, dataset, network


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the promise of equal bits is for one thread
    yield
    torch.set_num_threads(threads)


class Bodies:
    """A recorder that only remembers, and runs the body a few times first, as a real one does."""

    def __init__(self, *, fail_at: int | None = None) -> None:
        self.recorded = 0
        self.replayed = 0
        self._fail_at = fail_at

    def record(
        self, body: Callable[[], None], *, prepare: Callable[[], object]
    ) -> Callable[[], None]:
        for _ in range(2):
            prepare()
            body()
        self.recorded += 1
        if self.recorded == self._fail_at:
            raise CannotRecord("This device has no graphs.")

        def replay() -> None:
            self.replayed += 1
            body()

        return replay

    def seed(self, seed: int) -> AbstractContextManager[None]:
        return drawing(seed)


def graphed(recipe: Recipe = QUICK, *, num: int = 70, **options: Any) -> Training:
    model = network(dropout=options.pop("dropout", 0.0))
    options.setdefault("recorder", Bodies())
    return Training(model, dataset(num), recipe, seed=7, **options)


def eager(recipe: Recipe = QUICK, *, num: int = 70, **options: Any) -> Training:
    model = network(dropout=options.pop("dropout", 0.0))
    return Training(model, dataset(num), recipe, seed=7, **options)


def assert_close(one: Training, other: Training) -> None:
    tensors, meta = one.state()
    others, other_meta = other.state()
    assert meta.keys() == other_meta.keys()
    for name, value in tensors.items():
        # The rate is float32 on a device and float64 in a call: 1e-8 of an update.
        torch.testing.assert_close(value, others[name], rtol=1e-5, atol=1e-6)


def penalty(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.weight.grad is not None
            module.weight.grad.add_(module.weight.detach().sign(), alpha=0.01)


def hold_half() -> Callable[[nn.Module], None]:
    kept = torch.rand(16, 8, 3, 3, generator=seeded(0, "mask")) < 0.5
    return holder(Mask(unit="weight", kept={"3.weight": kept}))


# Recorded steps


@pytest.mark.parametrize("kind", ["none", "flip", "shift", "pad-crop-flip", "resized-crop-flip"])
def test_recorded_steps_equal_single_calls(kind: str) -> None:
    recipe = replace(QUICK, augmentation=kind)
    one, other = graphed(recipe), eager(recipe)
    fit(one)
    fit(other)
    assert_close(one, other)
    assert [line["loss"] for line in one.history] == pytest.approx(
        [line["loss"] for line in other.history], rel=1e-5
    )


@pytest.mark.parametrize("num", [64, 65, 70])
def test_each_size_of_batch_is_recorded_once(num: int) -> None:
    recorder = Bodies()
    one = graphed(num=num, recorder=recorder)
    fit(one)
    assert recorder.recorded == (1 if num == 64 else 2)
    assert recorder.replayed == one.num_steps
    other = eager(num=num)
    fit(other)
    assert_close(one, other)


@pytest.mark.parametrize("options", [{"dropout": 0.3}, {"regulariser": penalty}, {"hold": None}])
def test_dropout_and_hooks_are_recorded_with_the_step(options: dict[str, Any]) -> None:
    if "hold" in options:
        options = {"hold": hold_half()}
    one, other = graphed(**options), eager(**options)
    fit(one)
    fit(other)
    assert_close(one, other)


@pytest.mark.parametrize("stop", [0, 1, 4, 5, 7, 14, 15])
def test_recorded_steps_resume_to_the_same_bits(stop: int) -> None:
    undisturbed = graphed(dropout=0.3)
    fit(undisturbed)
    killed = graphed(dropout=0.3)
    for _ in range(stop):
        killed.step()
    resumed = graphed(dropout=0.3)
    resumed.restore(*killed.state())
    fit(resumed)
    assert_same_bits(resumed, undisturbed)


def test_a_state_restored_into_a_running_training_is_where_it_goes_on() -> None:
    one = graphed()
    for _ in range(3):
        one.step()
    saved = one.state()
    fit(one)
    other = graphed()
    for _ in range(9):  # recorded already, in another epoch, at another place
        other.step()
    other.restore(*saved)
    fit(other)
    assert_same_bits(one, other)


@pytest.mark.parametrize("fail_at", [1, 2])
def test_what_cannot_be_recorded_is_called_step_by_step(fail_at: int) -> None:
    one = graphed(recorder=Bodies(fail_at=fail_at))
    fit(one)
    assert one.notice is not None
    assert "not replayed as CUDA graphs, which is slower. This device has no" in one.notice
    other = eager()
    fit(other)
    assert_close(one, other)
    assert other.notice is None


def test_nothing_is_made_anew_between_replays() -> None:
    """A graph reads and writes the memory that it was recorded with."""
    one = graphed()
    one.step()
    places = {name: p.data_ptr() for name, p in one.model.named_parameters()}
    fit(one)
    assert {name: p.data_ptr() for name, p in one.model.named_parameters()} == places
    one.restore(*graphed().state())
    assert {name: p.data_ptr() for name, p in one.model.named_parameters()} == places


def test_a_diverged_epoch_is_told_at_its_end() -> None:
    def spoil(model: nn.Module) -> None:
        weight = model.get_parameter("9.weight")
        assert isinstance(weight.grad, Tensor)
        weight.grad.fill_(float("inf"))

    one = graphed(regulariser=spoil)
    with pytest.raises(Exception, match="The training diverged: its loss is nan in epoch 1 of 3"):
        fit(one)
