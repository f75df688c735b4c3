"""The GPU engine on a GPU: recorded steps against single calls, resume, threads, fallback.

    python -m pytest tests/test_gpu.py

Skipped where there is no CUDA. The driver is tested on the CPU in ``test_gpu_sharing.py``.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regrow.core.seeds import seeded
from regrow.jobs.train import Train
from regrow.run import run
from regrow.run.executors import exact_floats
from regrow.run.gpu_sharing import Trial, how_many
from regrow.store import Store
from regrow.train import RECIPES, Moment, Recipe, Training, Treatment, evaluate, fit
from small import MATERIAL, bright, digits
from test_jobs import RECIPE, VGG
from test_training import network
from test_training_options import OPTIONS

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

QUICK = Recipe(epochs=3, batch=16, lr=0.05)


@pytest.fixture(autouse=True)
def _exact() -> Iterator[None]:
    with exact_floats():
        yield


def training(recipe: Recipe = QUICK, *, num: int = 70, **options: Any) -> Training:
    model = network(dropout=options.pop("dropout", 0.0))
    return Training(model, bright(num), recipe, seed=7, device="cuda", **options)


def assert_close(one: Training, other: Training, *, atol: float = 2e-4) -> None:
    tensors, others = one.state()[0], other.state()[0]
    for name, value in tensors.items():
        # Other kernels, other orders of sums, over 15 steps.
        torch.testing.assert_close(value, others[name], rtol=2e-3, atol=atol)


def penalty(model: nn.Module, _: Moment) -> None:
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        assert norm.weight.grad is not None
        norm.weight.grad.add_(norm.weight.detach().sign(), alpha=0.01)


def half() -> dict[str, Tensor]:
    return {"3.weight": torch.rand(16, 8, 3, 3, generator=seeded(0, "mask")) < 0.5}


@pytest.mark.parametrize("num", [64, 65, 70])
@pytest.mark.parametrize(
    "kind", ["none", "pad-crop-flip", "reflect-shift-flip", "resized-crop-flip"]
)
def test_recorded_steps_equal_single_calls_and_the_cpu(num: int, kind: str) -> None:
    recipe = replace(QUICK, augmentation=kind)
    one, other = training(recipe, num=num), training(recipe, num=num, eager=True)
    on_cpu = Training(network(), bright(num), recipe, seed=7)
    for each in (one, other, on_cpu):
        fit(each)
    assert one.notice is None, one.notice
    assert_close(one, other)
    # An H200's resizing of images moved a weight by 3.6e-4; one image shifted by a pixel: by 0.017.
    assert_close(one, on_cpu, atol=1e-3)


@pytest.mark.parametrize("hook", ["gradients", "masks"])
def test_hooks_are_recorded_with_the_step(hook: str) -> None:
    options: dict[str, Any] = {"treatment": Treatment(gradients=penalty)}
    if hook == "masks":
        options = {"masks": half()}
    one, other = training(**options), training(eager=True, **options)
    fit(one)
    fit(other)
    assert one.notice is None, one.notice
    assert_close(one, other)


@pytest.mark.parametrize("name", OPTIONS)
def test_options_of_a_recipe_are_recorded_with_the_step(name: str) -> None:
    recipe = replace(QUICK, **OPTIONS[name])
    one, other = training(recipe), training(recipe, eager=True)
    fit(one)
    fit(other)
    assert one.notice is None, one.notice
    assert_close(one, other)


@pytest.mark.parametrize("name", ["plain", "fast"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("stop", [1, 4, 5, 7, 14])
def test_recorded_steps_resume(stop: int, dropout: float, name: str) -> None:
    recipe = replace(QUICK, **OPTIONS.get(name, {}))
    undisturbed = training(recipe, dropout=dropout)
    fit(undisturbed)
    killed = training(recipe, dropout=dropout)
    for _ in range(stop):
        killed.step()
    resumed = training(recipe, dropout=dropout)
    resumed.restore(*killed.state())
    fit(resumed)
    assert_close(resumed, undisturbed)


def test_dropout_differs_from_step_to_step_and_not_from_run_to_run() -> None:
    recipe = replace(QUICK, lr=1e-12, momentum=0.0, weight_decay=0.0, augmentation="none", batch=70)
    losses = []
    for _ in range(2):
        one = training(recipe, dropout=0.5)
        fit(one)
        losses.append([line["loss"] for line in one.history])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0][0] != pytest.approx(losses[0][1], rel=1e-4)


def test_what_cannot_be_recorded_is_called_step_by_step() -> None:
    def look(model: nn.Module, _: Moment) -> None:
        weight = model.get_parameter("0.weight")
        assert isinstance(weight.grad, Tensor)
        weight.grad.mul_(1.0 if weight.grad.sum().item() > -1e9 else 0.0)  # waits for the device

    one, other = training(treatment=Treatment(gradients=look)), training(eager=True)
    fit(one)
    fit(other)
    assert one.notice is not None
    assert "not replayed as CUDA graphs" in one.notice
    assert_close(one, other)
    after = training()  # and the next can be recorded
    fit(after)
    assert after.notice is None, after.notice


def test_bf16_learns_and_is_evaluated_as_on_a_cpu() -> None:
    one = training(replace(QUICK, epochs=8, lr=0.1, precision="bf16", augmentation="flip"), num=200)
    fit(one)
    assert one.notice is None, one.notice
    found = evaluate(one.model, one.dataset.test, one.dataset, precision="bf16")
    assert found.score > 0.8
    exact = evaluate(one.model, one.dataset.test, one.dataset)
    assert exact.score == evaluate(one.model.cpu(), one.dataset.test, one.dataset).score


def test_the_fast_recipe_learns_in_bf16_as_single_calls_do() -> None:
    given: dict[str, Any] = {
        "epochs": 8,
        "batch": 64,
        "lr": 0.1,
        "precision": "bf16",
        "norm_bias_rate": 8.0,
    }
    recipe = replace(RECIPES["fast"], **given)
    found = {}
    for eager in (False, True):
        one = training(recipe, num=400, eager=eager)
        fit(one)
        assert one.notice is None, one.notice
        for value, average in zip(one.parts.averaged, one.parts.averages, strict=True):
            assert torch.equal(value, average)  # the network is where the last look ahead left it
        found[eager] = one.history[-1]["loss"]
        assert evaluate(one.model, one.dataset.test, one.dataset, precision="bf16").score > 0.8
    assert found[False] == pytest.approx(found[True], rel=0.05)


def test_threads_that_share_the_device_do_what_one_does_alone(tmp_path: Path) -> None:
    jobs = [Train(data=MATERIAL, model=VGG, recipe=RECIPE, seed=seed) for seed in range(6)]
    losses = {}
    for workers in (1, 3):
        store = Store.open(tmp_path / str(workers))
        assert run(jobs, store, workers=workers, device="cuda").complete
        losses[workers] = [store.record(job.key)["history"][-1]["loss"] for job in jobs]
    assert losses[1] == pytest.approx(losses[3], rel=1e-2)


def test_how_many_share_the_device_is_measured() -> None:
    trial = Trial(VGG, digits(), RECIPE, device="cuda")
    assert how_many(lambda num: trial.measure(num, seconds=0.2), most=8) in (1, 2, 4, 8)
    trial.close()
