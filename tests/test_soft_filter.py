"""Soft filter pruning: which filters, when they are zero, and what its rows are."""

import copy
import math
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from regrow.core.units import UNITS
from regrow.cost import measure
from regrow.errors import ConfigError
from regrow.jobs.arms import PRUNED, SCRATCH_B, SCRATCH_E
from regrow.jobs.retrain import Retrain
from regrow.jobs.train import Train
from regrow.methods.soft_filter import zero_smallest_filters_
from regrow.models import ModelSpec, build
from regrow.pruning.method import METHODS
from regrow.pruning.select import select
from regrow.run import run
from regrow.store import Store
from regrow.studies.expand import Cell
from regrow.studies.study import Study
from regrow.surgery import trace
from regrow.surgery.mask import Mask, kept_weights
from regrow.train import NO_TREATMENT, RECIPES, Recipe, Training, fit
from regrow.units.masked import filter_groups
from small import NETWORKS, SHAPE, digits, equal, first_weights, snapshot

# Protocols, section 8: filters zeroed of 16, 32 and 64.
ZEROED = {0.1: (1, 3, 6), 0.2: (3, 6, 12), 0.3: (4, 9, 19), 0.4: (6, 12, 25)}
CIFAR = {"classes": 10, "in_channels": 3, "input_size": 32}
TYPE_A = {"shortcut": "subsample", "fc_init": "kaiming"}


def zeroed(model: nn.Module) -> dict[str, int]:
    """Count the filters of each convolution or linear layer that are exactly zero."""
    return {
        name: int((module.weight.flatten(1) == 0).all(1).sum())
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    }


@pytest.mark.parametrize("sparsity", ZEROED)
def test_as_many_filters_are_zeroed_as_published_in_every_convolution(sparsity: float) -> None:
    model = build(ModelSpec("resnet-56", {**CIFAR, **TYPE_A}))
    zero_smallest_filters_(model, sparsity=sparsity)
    found = zeroed(model)
    assert found.pop("head") == 0
    assert len(found) == 55
    of_width = dict(zip((16, 32, 64), ZEROED[sparsity], strict=True))
    for name, count in found.items():
        assert count == of_width[len(model.get_parameter(f"{name}.weight"))], name


def test_the_filters_of_least_l2_norm_go_and_nothing_else_is_touched() -> None:
    model = build(NETWORKS["resnet"])
    before = snapshot(model)
    zero_smallest_filters_(model, sparsity=0.4)
    for name, value in snapshot(model).items():
        if name in filter_groups(model):
            norms = before[name].flatten(1).norm(dim=1)
            gone = (value.flatten(1) == 0).all(1)
            assert int(gone.sum()) == math.floor(len(norms) * 0.4)
            assert norms[gone].max() < norms[~gone].min()
            assert torch.equal(value[~gone], before[name][~gone])
        else:
            assert torch.equal(value, before[name])


@pytest.mark.parametrize(
    ("name", "arguments", "projections"),
    [
        ("resnet-50-lottery", CIFAR, 2),
        ("imagenet-resnet-34", {**CIFAR, "width": 0.1}, 3),
        ("imagenet-resnet-50", {**CIFAR, "width": 0.1}, 4),
        ("imagenet-preresnet-50", {**CIFAR, "width": 0.1}, 4),
    ],
)
def test_projections_of_shortcuts_are_left_out_and_other_small_kernels_are_not(
    name: str, arguments: dict[str, Any], projections: int
) -> None:
    model = build(ModelSpec(name, arguments))
    convs = {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    left_out = convs - filter_groups(model).keys()
    assert len(left_out) == projections
    assert all("shortcut" in name for name in left_out)


# Published are r of 10 to 40 %, which count the weights that are not zero.
@pytest.mark.parametrize(
    ("depth", "sparsity", "least", "most"),
    [(20, 0.1, 1.08, 1.10), (56, 0.2, 1.225, 1.235), (56, 0.3, 1.37, 1.385), (56, 0.4, 1.60, 1.62)],
)
def test_budgets_count_the_weights_that_are_not_zero(
    depth: int, sparsity: float, least: float, most: float
) -> None:
    model = build(ModelSpec("resnet-56", {**CIFAR, **TYPE_A, "depth": depth}))
    example = torch.zeros(1, 3, 32, 32)
    mask = select(model, trace(model, example), "soft-filter", sparsity=sparsity)
    ratio = measure(model, example).flops / measure(model, example, mask).flops
    assert least < ratio < most


def _training(sparsity: float, *, epochs: int = 2) -> Training:
    how = METHODS.get("soft-filter").treatment
    assert how is not None
    recipe = Recipe(epochs=epochs, batch=32, lr=0.05, nesterov=True)
    model = build(NETWORKS["resnet"])
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            # At a shift of 0, as first drawn, a filter of zeros lies at the kink of its ReLU, whose
            # gradient there is 0; it would never move.
            nn.init.constant_(module.bias, 0.5)
    return Training(model, digits(), recipe, seed=1, treatment=how(0.0, sparsity))


def test_zeroed_filters_train_freely_and_are_zero_again_after_each_epoch() -> None:
    one = _training(0.5)
    convs = [name.removesuffix(".weight") for name in filter_groups(one.model)]
    half = {name: len(one.model.get_parameter(f"{name}.weight")) // 2 for name in convs}
    for _ in range(2):
        assert {name: zeroed(one.model)[name] for name in convs} == half
        one.step()
        assert not any(zeroed(one.model).values())
        for _ in range(one.steps_per_epoch - 1):
            one.step()
    assert one.done
    assert {name: zeroed(one.model)[name] for name in convs} == half


def test_between_the_zeroings_training_is_plain_training() -> None:
    one = _training(0.5)
    plain = Training(copy.deepcopy(one.model), digits(), one.recipe, seed=1)
    for _ in range(one.steps_per_epoch - 1):
        one.step()
        plain.step()
        assert equal(snapshot(one.model), snapshot(plain.model))


def test_other_filters_can_take_the_place_of_those_zeroed_before() -> None:
    one = _training(0.5, epochs=4)
    seen = []
    for _ in range(5):
        weights = [one.model.get_parameter(name).detach() for name in filter_groups(one.model)]
        seen.append(torch.cat([(w.flatten(1) == 0).all(1) for w in weights]))
        for _ in range(0 if one.done else one.steps_per_epoch):
            one.step()
    assert any(not torch.equal(seen[0], later) for later in seen[1:])
    assert len({int(pattern.sum()) for pattern in seen}) == 1


# Rows -------------------------------------------------------------------------------------------

STUDY: dict[str, Any] = {
    "data": {"name": "digits", "subset": 128, "test_subset": 64},
    "models": {"name": "resnet-20", "depth": 8, "width": 0.5, "label": "net"},
    "methods": {"name": "soft-filter", "sparsity": 0.3},
    "arms": ["unpruned", "pruned", "scratch-e", "scratch-b"],
    "seeds": 1,
    "recipe": {"name": "cifar-sfp", "epochs": 3, "batch": 32},
}


def cells(**changes: Any) -> dict[str, Cell]:
    return {cell.arm.name: cell for cell in Study.from_json({**STUDY, **changes}).cells()}


@cache
def _expanded() -> dict[str, Cell]:
    return cells()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    found = Store.open(tmp_path_factory.mktemp("sfp") / "store")
    assert run([cell.job for cell in _expanded().values()], found, workers=0).complete
    return found


def _job(arm: str) -> Retrain:
    job = _expanded()[arm].job
    assert isinstance(job, Retrain)
    return job


def test_the_pruned_row_is_the_network_after_the_last_zeroing(store: Store) -> None:
    parent = _job(PRUNED.name).parent
    assert isinstance(parent, Train)
    assert parent.spec["penalty"] == {"method": "soft-filter", "sparsity": 0.3}
    assert parent.recipe == replace(RECIPES["cifar-sfp"], epochs=3, batch=32)
    ours, theirs = store.record(_job("pruned").key), store.record(parent.key)
    assert (ours["accuracy"], ours["loss"]) == (theirs["accuracy"], theirs["loss"])
    assert ours["parameters"] < theirs["parameters"]


def test_scratch_trains_under_the_zero_pattern_of_that_network(store: Store) -> None:
    parent = _job(PRUNED.name).parent
    assert parent is not None
    trained = store.tensors(parent.key)
    mask = store.tensors(_job(SCRATCH_E.name).prune.key)
    for name, kept in mask.items():
        assert torch.equal(kept, trained[name].flatten(1).any(1))
    for arm in (SCRATCH_E, SCRATCH_B):
        state = store.tensors(_job(arm.name).key)
        for name, kept in mask.items():
            assert not state[name][~kept].any()
            assert state[name][kept].flatten(1).any(1).all()
    ratio = store.record(_job(SCRATCH_B.name).key)["ratio"]
    assert store.record(_job(SCRATCH_B.name).key)["epochs"] == math.floor(3 * ratio) == 4


def test_each_sparsity_trains_a_network_of_its_own_and_pretrained_ones_go_on() -> None:
    study = {**STUDY, "methods": {"name": "soft-filter", "sparsity": [0.2, 0.3]}}
    parents = {
        cell.job.parent.key
        for cell in Study.from_json({**study, "arms": ["pruned"]}).cells()
        if isinstance(cell.job, Retrain) and cell.job.parent
    }
    assert len(parents) == 2
    again = cells(methods={**STUDY["methods"], "pretrained": True, "lr": 0.01})
    job = again["pruned"].job
    assert isinstance(job, Retrain)
    assert isinstance(job.parent, Train)
    assert job.parent.inputs == (again["unpruned"].job,)
    assert job.parent.recipe == replace(RECIPES["cifar-sfp"], epochs=3, batch=32, lr=0.01)
    assert again["unpruned"].job.key == _expanded()["unpruned"].job.key


def test_a_pretrained_network_starts_from_the_unpruned_ones_last_weights(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = first_weights(monkeypatch)
    again = cells(methods={**STUDY["methods"], "pretrained": True}, arms=["unpruned", "pruned"])
    assert run([cell.job for cell in again.values()], store, workers=0).complete
    assert len(starts) == 1
    assert equal(starts[0], store.tensors(again["unpruned"].job.key))


def test_scratch_weights_are_drawn_by_the_filters_that_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = first_weights(monkeypatch)
    wide = {"name": "resnet-20", "depth": 8, "width": 4.0}
    job = cells(models=wide, arms=["scratch-e"], recipe={"epochs": 1})["scratch-e"].job
    assert isinstance(job, Retrain)
    store = Store.open(tmp_path / "store")
    assert run([job], store, workers=0).complete
    for name, kept in store.tensors(job.prune.key).items():
        drawn = starts[-1][name][kept]
        expected = math.sqrt(2.0 / (9 * int(kept.sum())))
        assert float(drawn.std()) == pytest.approx(expected, rel=4 / math.sqrt(2 * drawn.numel()))


def test_a_mask_over_filters_holds_all_of_their_weights() -> None:
    model = build(NETWORKS["resnet"])
    mask = select(model, trace(model, SHAPE), "soft-filter", sparsity=0.4)
    assert (mask.unit, UNITS.get(mask.unit).masked) == ("filter", True)
    recipe = Recipe(epochs=2, batch=32, lr=0.05)
    masks = kept_weights(mask, model)
    one = Training(model, digits(), recipe, seed=0, treatment=NO_TREATMENT, masks=masks)
    fit(one)
    for name, kept in mask.kept.items():
        weight = model.get_parameter(name)
        assert not weight[~kept].any()
        assert weight[kept].flatten(1).any(1).all()
    with pytest.raises(ConfigError, match=r"the shape \(3,\), but the parameter has \(8,\)"):
        kept_weights(Mask(unit="filter", kept={"features.conv.weight": torch.ones(3) > 0}), model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shares": [0.3]}, "trains for a 'sparsity', so it takes no 'target' or 'shares'"),
        ({"strength": 1.0}, "no penalty during training, so it takes no 'strength'"),
        ({"lr": -1}, "'lr' must be a number above 0. Got -1"),
        ({"pretrained": "yes"}, "'pretrained' must be true or false. Got 'yes'"),
        ({"name": "l1-filter", "pretrained": True}, "does not change training"),
        ({"rounds": 2, "sparsity": [0.1, 0.2]}, "A sparsity is the removed share"),
    ],
)
def test_what_cannot_be_meant_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        cells(methods={**STUDY["methods"], **change})
