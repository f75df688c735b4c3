"""A unit and a schedule added by a user: one new file each, and nothing else edited."""

from pathlib import Path

import pytest
import torch

from regrow.core.registry import load_file
from regrow.errors import ConfigError
from regrow.jobs.arms import Arm, Budget
from regrow.jobs.retrain import Retrain
from regrow.report.collect import collect
from regrow.run import run
from regrow.store import Store
from regrow.studies.study import Study
from regrow.train import Recipe
from small import STUDY

KERNELS = '''
"""Kernels of convolutions, held at zero: what a filter has for one of its inputs."""

import torch
from torch import Tensor, nn

from regrow.core.units import Unit, register_unit
from regrow.pruning.method import criterion, register_method
from regrow.surgery import Group, Slot


def kernels(model, trace, scope):
    """List the kernels of every convolution, each a unit."""
    groups = {}
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d):
            num = layer.weight.shape[0] * layer.weight.shape[1]
            slot = Slot(f"{name}.weight", 0, torch.arange(num), "producer")
            groups[slot.tensor] = Group(slot.tensor, "conv", num, (slot,), ())
    return groups


def whole_kernels(kept, name, model):
    """Return what stays of a weight, to broadcast over it."""
    outputs, inputs, *_ = model.get_parameter(name).shape
    return kept.view(outputs, inputs, 1, 1)


register_unit("kernel", Unit(about="Kernels, held at zero", groups=kernels, weights=whole_kernels))


@criterion("kernel-norm")
def kernel_norm(group: Group, probe) -> Tensor:
    """Score a kernel by the sum of the absolute values of its weights."""
    return group.sum(lambda name: probe.weight(name).abs())


register_method("kernel-l1", criterion="kernel-norm", allocation="global", unit="kernel")
'''
SCHEDULES = '''
"""Two schedules: the square root of what is left, by update; and half the rate in odd epochs."""

from regrow.train import register_schedule


@register_schedule("square-root", by_step=True)
def square_root(step: int, num: int) -> float:
    """Fall to zero as the square root of what is left."""
    return (1 - step / num) ** 0.5


@register_schedule("odd-half")
def odd_half(recipe, epoch: int) -> float:
    """Halve the rate in every second epoch."""
    return 0.5 if epoch % 2 else 1.0


@register_schedule("broken")
def broken(recipe, epoch: int) -> float:
    """Forget to return a number."""
    return None
'''


@pytest.fixture(autouse=True)
def _names() -> None:
    torch.set_num_threads(1)


def given(tmp_path: Path, text: str) -> Path:
    """Write a user's file, and load it as ``--with`` does."""
    file = tmp_path / "given.py"
    file.write_text(text)
    load_file(file)
    return file


def test_a_unit_of_one_file_runs_in_a_study_of_three_arms(tmp_path: Path) -> None:
    given(tmp_path, KERNELS)
    study = Study.from_json({**STUDY, "methods": {"name": "kernel-l1", "sparsity": 0.4}})
    store = Store.open(tmp_path / "store")
    assert run(study.jobs(), store, workers=0).complete
    runs, failures = collect(study, store)
    assert not failures
    assert [each.arm for each in runs] == ["pruned", "fine-tune", "scratch-e"]
    assert {each.unit for each in runs} == {"kernel"}
    _, fine_tune, scratch = (cell.job for cell in study.cells())
    assert isinstance(fine_tune, Retrain)
    kept = store.tensors(fine_tune.prune.key)
    num, num_kept = (sum(int(f(k)) for k in kept.values()) for f in (torch.numel, torch.sum))
    assert num == 6 + 6 * 8 + 8 * 8
    assert num - num_kept == round(0.4 * num)
    record = store.record(fine_tune.prune.key)
    gone = record["before"]["parameters"] - record["after"]["parameters"]
    assert gone == 9 * (num - num_kept)  # a kernel is 3 x 3 weights
    for job in (fine_tune, scratch):
        weights = store.tensors(job.key)
        for name, stays in kept.items():
            of_kernels = weights[name].flatten(0, 1).flatten(1)
            assert bool((of_kernels[~stays] == 0).all())
            assert bool((of_kernels[stays] != 0).all())
    assert fine_tune.prune.code is not None  # an edited file has other results


def test_a_schedule_of_one_file_is_trained_on(tmp_path: Path) -> None:
    file = given(tmp_path, SCHEDULES)
    assert [Recipe(schedule="odd-half", lr=0.4).lr_at(epoch) for epoch in range(3)] == [
        *(0.4, 0.2, 0.4)
    ]
    by_step = Recipe(schedule="square-root", epochs=2, lr=0.4)
    assert by_step.lr_at(1, place=1, steps=4) == pytest.approx(0.4 * (1 - 5 / 8) ** 0.5)
    assert by_step.no_last_lr == "it changes at each update"
    own = {"name": "own", "start": "inherited", "schedule": "odd-half", "epochs": 2}
    recipe = {**STUDY["recipe"], "schedule": "square-root"}
    study = Study.from_json({**STUDY, "recipe": recipe, "arms": ["unpruned", own]})
    store = Store.open(tmp_path / "store")
    assert run(study.jobs(), store, workers=0).complete
    plain, retrained = (cell.job for cell in study.cells())
    assert [line["lr"] for line in store.record(retrained.key)["history"]] == [0.05, 0.025]
    before = {plain.spec["recipe_code"], retrained.spec["recipe_code"]}
    assert None not in before
    file.write_text(f"{SCHEDULES}\n# Another thought.\n")
    load_file(file)
    for job in Study.from_json({**STUDY, "recipe": recipe, "arms": ["unpruned", own]}).jobs():
        assert job.spec["recipe_code"] not in before


def test_a_schedule_that_returns_no_factor_is_refused_when_a_study_is_read(tmp_path: Path) -> None:
    given(tmp_path, SCHEDULES)
    recipe = {**STUDY["recipe"], "schedule": "broken"}
    with pytest.raises(ConfigError, match=r"'broken' must return a number of at least 0.*Got None"):
        Study.from_json({**STUDY, "recipe": recipe})
    with pytest.raises(
        ConfigError, match=r"Unknown schedule 'odd-halves'\. Did you mean 'odd-half'"
    ):
        Recipe(schedule="odd-halves")
    with pytest.raises(ConfigError, match="must be one of full, last-rate, broken, constant"):
        Arm(name="a", start="random", budget=Budget(kind="none"), schedule="odd-halves")
