"""Sparse structure selection: the step by hand, exact zeros, and blocks that are dropped."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cutting import enliven_, random_mask
from regrow.cost import measure
from regrow.errors import ConfigError, StoreError, TraceError
from regrow.jobs.prune import Prune
from regrow.jobs.retrain import Retrain
from regrow.jobs.train import Train
from regrow.methods.sparse_structure import (
    Factor,
    accelerated_proximal_step_,
    attach_,
    factors,
    fold_,
    selecting,
    set_gradients_aside,
)
from regrow.methods.sparse_structure_groups import attach_to_paths_, selecting_groups
from regrow.models import ModelSpec, build
from regrow.pruning.method import METHODS
from regrow.pruning.select import select
from regrow.run import run
from regrow.store import Store
from regrow.studies.expand import Cell
from regrow.studies.study import Study
from regrow.surgery import Trace, aggregations, blocks, shrink, silence, trace, verify
from regrow.surgery.architecture import Architecture, load, save
from regrow.surgery.mask import Mask
from regrow.surgery.tape import evaluating
from regrow.train import Recipe, Training, fit
from regrow.train.step import descend
from small import FROM_DIGITS, NETWORKS, SHAPE, digits, equal, small, snapshot

# A network of each kind of block.
BLOCKS = {
    "resnet": NETWORKS["resnet"],
    "resnet-projection": ModelSpec("resnet-50-lottery", {**FROM_DIGITS, "depth": 14, "width": 0.5}),
    "preresnet": ModelSpec("preresnet-56", {**FROM_DIGITS, "depth": 20, "width": 0.25}),
    "imagenet-basic": ModelSpec("imagenet-resnet-34", {**FROM_DIGITS, "depth": 18, "width": 0.1}),
    "imagenet-bottleneck": ModelSpec("imagenet-resnet-50", {**FROM_DIGITS, "width": 0.05}),
    "resnext": NETWORKS["resnext"],
    "imagenet-preresnet": ModelSpec("imagenet-preresnet-50", {**FROM_DIGITS, "width": 0.05}),
}


def network(label: str) -> nn.Module:
    model = build(BLOCKS[label])
    enliven_(model, SHAPE)
    return model


def mask_over(model: nn.Module, kept: list[bool]) -> Mask:
    names = list(blocks(model))
    assert len(names) == len(kept)
    return Mask(unit="block", kept={n: torch.tensor([k]) for n, k in zip(names, kept, strict=True)})


# Learning factors -------------------------------------------------------------------------------


def test_three_steps_equal_those_by_hand() -> None:
    """Huang and Wang, equations 11 to 13, in plain numbers, and the projection of their code."""
    model = build(BLOCKS["resnet"])
    attach_(model)
    lr, gamma, mu = 0.1, 0.5, 0.9
    gradients = [(2.0, -1.0, 9.0), (1.0, 0.3, 9.5), (-4.0, 0.0, 8.0)]
    looked_ahead, velocity = [1.0] * 3, [0.0] * 3
    for step in gradients:
        for factor, gradient in zip(factors(model), step, strict=True):
            factor.gradient = torch.tensor([gradient])
        accelerated_proximal_step_(model, lr, strength=gamma)
        for i, gradient in enumerate(step):
            z = looked_ahead[i] - lr * gradient
            s = max(abs(z) - lr * gamma, 0.0) * (1.0 if z > 0 else -1.0)
            velocity[i] = s - looked_ahead[i] + mu * velocity[i]
            looked_ahead[i] = max(0.0, s + mu * velocity[i])
        for i, factor in enumerate(factors(model)):
            assert factor.value.item() == pytest.approx(looked_ahead[i], rel=1e-5, abs=1e-6)
            assert factor.velocity.item() == pytest.approx(velocity[i], rel=1e-5, abs=1e-6)


def test_the_same_steps_are_those_of_nesterovs_method() -> None:
    """Before the change of variables: lambda, and the point d where the gradient is taken.

    So long as no factor would become negative.
    """
    model = build(BLOCKS["resnet"])
    attach_(model)
    one = next(factors(model))
    lr, gamma, mu = 0.05, 0.2, 0.9

    def gradient(at: float) -> float:
        return 2.0 * (at - 0.8)

    now, before = 1.0, 1.0
    for _ in range(12):
        for factor in factors(model):
            factor.gradient = torch.tensor([gradient(factor.value.item())])
        accelerated_proximal_step_(model, lr, strength=gamma)
        ahead = now + mu * (now - before)
        z = ahead - lr * gradient(ahead)
        before, now = now, max(abs(z) - lr * gamma, 0.0) * (1.0 if z > 0 else -1.0)
        assert (one.value - mu * one.velocity).item() == pytest.approx(now, abs=1e-5)


@pytest.mark.parametrize("label", BLOCKS)
def test_a_factor_scales_its_branch_and_folding_it_changes_nothing(label: str) -> None:
    model = network(label)
    names, x = set(snapshot(model)), torch.randn(2, *SHAPE[1:])
    with evaluating(model), torch.no_grad():
        plain = model(x)
        attach_(model)
        assert torch.equal(model(x), plain)
        for number, factor in enumerate(factors(model)):
            factor.value.fill_(0.0 if number % 2 else 0.7)
        scaled = model(x)
        gone = mask_over(model, [number % 2 == 0 for number in range(len(blocks(model)))])
        fold_(model)
        assert torch.equal(model(x), scaled)
    assert not torch.equal(scaled, plain)
    assert set(snapshot(model)) == names
    assert not any(isinstance(module, Factor) for module in model.modules())
    assert verify(model, gone, trace(model, SHAPE)).error == 0.0
    small_one = shrink(model, gone, trace(model, SHAPE))
    with evaluating(small_one), torch.no_grad():
        torch.testing.assert_close(small_one(x), scaled, rtol=1e-5, atol=1e-5)


# With which some branches of the small network prove useless and some do not.
SPARSE: dict[str, Any] = {
    "epochs": 15,
    "batch": 16,
    "lr": 0.1,
    "nesterov": True,
    "schedule": "constant",
}


def _trained(strength: float, *, epochs: int = 15) -> Training:
    recipe = Recipe(**{**SPARSE, "epochs": epochs})
    model = build(BLOCKS["preresnet"])
    one = Training(model, digits(), recipe, seed=0, treatment=selecting(strength, 0.0))
    fit(one)
    return one


def test_factors_are_never_negative_and_some_become_zero_under_a_moderate_penalty() -> None:
    recipe = Recipe(**SPARSE)
    one = Training(
        build(BLOCKS["preresnet"]), digits(), recipe, seed=0, treatment=selecting(0.07, 0.0)
    )
    zeros: set[int] = set()
    while one.steps_done < one.num_steps - 1:
        one.step()
        values = [factor.value.item() for factor in factors(one.model)]
        assert min(values) >= 0.0
        zeros.update(i for i, value in enumerate(values) if value == 0.0)
    assert 0 < len(zeros) < len(values)


def test_what_is_folded_is_the_point_where_the_loss_is_computed() -> None:
    model = network("preresnet")
    attach_(model)
    for number, factor in enumerate(factors(model)):
        with torch.no_grad():
            factor.value.fill_(0.0 if number == 0 else 0.7)
            factor.velocity.fill_(-0.1)
    x = torch.randn(2, *SHAPE[1:])
    with evaluating(model), torch.no_grad():
        trained = model(x)
        fold_(model)
        assert torch.equal(model(x), trained)
    mask = select(model, trace(model, SHAPE), "sparse-structure", sparsity=0.0)
    assert [bool(kept) for kept in mask.kept.values()] == [False, *[True] * 5]


def test_shifts_and_biases_are_not_decayed_and_everything_else_is() -> None:
    """With gradients of zero an update is the decay alone; factors have none."""
    recipe = Recipe(epochs=1, batch=32, lr=0.1, weight_decay=0.5, decayed="factors")
    model = network("resnet")  # whose branches end with a norm, so a bias is parametrized
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.25)
    one = Training(model, digits(), recipe, seed=0, treatment=selecting(0.1, 0.0))
    before = snapshot(model)
    for parameter in one.parts.parameters:
        parameter.grad = torch.zeros_like(parameter)
    set_gradients_aside(model)
    descend(one.parts, recipe.lr)
    for name, parameter in model.named_parameters():
        kept = "bias" in name or name.endswith(".value")
        expected = before[name] * (1.0 if kept else 1 - 0.5 * 0.1 * 1.0)
        torch.testing.assert_close(parameter.detach(), expected, msg=name)


def test_factors_reach_exact_zeros_and_dropping_those_changes_nothing() -> None:
    one = _trained(0.07)
    model = one.model.double().to(memory_format=torch.contiguous_format)
    found = trace(model, SHAPE)
    mask = select(model, found, "sparse-structure", sparsity=0.0)
    assert 0 < mask.num_kept < mask.num_units
    for name, block in blocks(model).items():
        end = block.branch_end()
        assert end is not None
        assert isinstance(end.weight, Tensor)
        assert bool(end.weight.any()) == bool(mask.kept[name])
    x = torch.randn(4, *SHAPE[1:], dtype=torch.float64)
    small_one = shrink(model, mask, found)
    with evaluating(model), evaluating(small_one), torch.no_grad():
        torch.testing.assert_close(small_one(x), model(x), rtol=1e-9, atol=1e-9)
    assert measure(small_one, x[:1]).parameters < measure(model, x[:1]).parameters
    more = select(model, found, "sparse-structure", sparsity=5 / 6)
    assert more.num_kept == 1
    assert all(bool(mask.kept[name]) for name, kept in more.kept.items() if bool(kept))


def test_without_a_penalty_no_factor_is_zero() -> None:
    model = _trained(0.0, epochs=2).model
    mask = select(model, trace(model, SHAPE), "sparse-structure", sparsity=0.0)
    assert mask.num_kept == mask.num_units


def test_weights_take_the_updates_that_they_take_without_a_factor_of_one() -> None:
    """So long as the factors stay at 1, which no penalty and no rate of their own would change."""
    recipe = Recipe(epochs=1, batch=32, lr=0.05)
    plain, treated = build(BLOCKS["preresnet"]), build(BLOCKS["preresnet"])
    one = Training(plain, digits(), recipe, seed=0)
    other = Training(treated, digits(), recipe, seed=0, treatment=selecting(0.1, 0.0))
    one.step()
    other.step()
    named = dict(treated.named_parameters())
    for name, value in plain.named_parameters():
        layer, _, tensor = name.rpartition(".")
        theirs = named.get(name, named.get(f"{layer}.parametrizations.{tensor}.original"))
        assert theirs is not None
        assert torch.equal(value, theirs)
    assert all(factor.value.item() != 1.0 for factor in factors(treated))


# Dropping blocks --------------------------------------------------------------------------------


@pytest.mark.parametrize("label", BLOCKS)
def test_dropping_blocks_equals_silencing_their_branches(label: str) -> None:
    model = network(label)
    found, before = trace(model, SHAPE), snapshot(model)
    generator = torch.Generator().manual_seed(0)
    num = len(blocks(model))
    choices = [torch.rand(num, generator=generator) < 0.5 for _ in range(3)]
    for kept in [*choices, torch.zeros(num) > 0]:
        mask = mask_over(model, kept.tolist())
        assert verify(model, mask, found) < 1e-9
        left = shrink(model, mask, found)
        assert len(blocks(left)) == mask.num_kept
        assert sum(p.numel() for p in left.parameters()) < sum(
            p.numel() for p in model.parameters()
        )
    assert equal(snapshot(model), before)


@pytest.mark.parametrize("label", BLOCKS)
def test_dropping_nothing_is_the_identity(label: str) -> None:
    model = network(label)
    mask = mask_over(model, [True] * len(blocks(model)))
    left = shrink(model, mask, trace(model, SHAPE))
    assert equal(snapshot(left), snapshot(model))
    assert equal(snapshot(silence(model, mask, trace(model, SHAPE))), snapshot(model))


def test_names_that_are_no_blocks_are_refused() -> None:
    model = network("preresnet")
    wrong = Mask(unit="block", kept={"features.stage1.7": torch.tensor([False])})
    with pytest.raises(TraceError, match=r"block 'features.stage1.7'. Did you mean"):
        shrink(model, wrong, trace(model, SHAPE))
    wide = Mask(unit="block", kept={"features.stage1.1": torch.tensor([False, True])})
    with pytest.raises(TraceError, match=r"must be a single boolean. Got 2"):
        shrink(model, wide, trace(model, SHAPE))
    with pytest.raises(
        TraceError, match=r"sparse-structure prunes residual blocks \(scope block\), and"
    ):
        select(*small("vgg"), "sparse-structure", sparsity=0.5)


def test_a_network_without_some_blocks_can_be_saved_and_cut_further(tmp_path: Path) -> None:
    model = network("preresnet")
    whole = Architecture(model=BLOCKS["preresnet"], shape=SHAPE)
    fewer = whole.then(mask_over(model, [False, True, True, False, True, True]))
    left = fewer.cut(model)
    thin = fewer.then(select(left, trace(left, SHAPE), "l1-filter", sparsity=0.5))
    small_one = thin.cut(model)
    save(tmp_path / "net", small_one, thin)
    again = load(tmp_path / "net")
    x = torch.randn(2, *SHAPE[1:])
    with evaluating(small_one), torch.no_grad():
        assert torch.equal(again(x), small_one(x))
    assert thin.to_json()["units"] == ["block", "channel"]
    assert "units" not in whole.then(select(model, trace(model, SHAPE), "l1-filter",
                                            sparsity=0.5)).to_json()  # fmt: skip
    broken = {**thin.to_json(), "units": ["block", "weight"]}
    with pytest.raises(StoreError, match="This architecture is damaged"):
        Architecture.from_json(broken)


# Protocols, section 9.3.
@pytest.mark.parametrize(
    ("target", "registered"),
    [("resnet-41", "preresnet-41"), ("resnet-32", "preresnet-32"), ("resnet-26", "preresnet-26")],
)
def test_targets_leave_the_networks_of_the_paper(target: str, registered: str) -> None:
    """The counts of the registered ones at full width are tests of the models."""
    arguments = {"classes": 10, "in_channels": 3, "input_size": 64, "width": 0.25}
    parent = build(ModelSpec("imagenet-preresnet-50", arguments))
    example = torch.zeros(1, 3, 64, 64)
    found = trace(parent, example)
    shares = METHODS.get("sparse-structure").targets[target].shares
    mask = select(parent, found, "sparse-structure", shares=shares)
    ours, theirs = shrink(parent, mask, found), build(ModelSpec(registered, arguments))
    assert measure(ours, example) == measure(theirs, example)
    assert 2 + 3 * len(blocks(ours)) == int(target.removeprefix("resnet-"))
    assert blocks(ours).keys() >= {
        name for name in blocks(theirs) if name.endswith(".0")
    }  # whose first blocks stay is published


def test_targets_leave_as_many_parameters_as_published() -> None:
    arguments = {"classes": 1000, "in_channels": 3, "input_size": 224}
    with torch.device("meta"):
        parent = build(ModelSpec("imagenet-preresnet-50", arguments))
    counts = {"resnet-41": 25_351_080, "resnet-32": 14_261_928, "resnet-26": 14_915_496}
    for target, expected in counts.items():
        shares = METHODS.get("sparse-structure").targets[target].shares
        assert shares is not None
        left = sum(p.numel() for p in parent.parameters())
        for gone, block in zip(shares, blocks(parent).values(), strict=True):
            assert isinstance(block, nn.Module)
            rest = sum(p.numel() for p in block.without_branch().parameters())
            left -= int(gone) * (sum(p.numel() for p in block.parameters()) - rest)
        assert left == expected


# Rows -------------------------------------------------------------------------------------------

STUDY: dict[str, Any] = {
    "data": {"name": "digits", "subset": 128, "test_subset": 64},
    "models": {"name": "preresnet-56", "depth": 20, "width": 0.25, "label": "net"},
    "methods": {"name": "sparse-structure", "strength": 0.07, "target": "zeros"},
    "arms": ["pruned", "scratch-e", "scratch-b"],
    "seeds": 1,
    "recipe": SPARSE,
}


def ran(
    study: dict[str, Any], store: Store, *, rel: float
) -> tuple[dict[str, Cell], Retrain, dict[str, Any]]:
    """Run a study, whose pruning drops what adds nothing; return its cells and that pruning."""
    cells = {cell.arm.name: cell for cell in Study.from_json(study).cells()}
    assert run([cell.job for cell in cells.values()], store, workers=0).complete
    pruned = cells["pruned"].job
    assert isinstance(pruned, Retrain)
    assert isinstance(pruned.parent, Train)
    ours, parent = store.record(pruned.key), store.record(pruned.parent.key)
    assert ours["accuracy"] == parent["accuracy"]
    assert ours["loss"] == pytest.approx(parent["loss"], rel=rel)
    assert ours["parameters"] < parent["parameters"]
    choice = store.record(pruned.prune.key)
    rebuilt = Architecture.from_json(choice["architecture"]).build()
    rebuilt.load_state_dict(store.tensors(cells["scratch-e"].job.key))
    return cells, pruned, choice


def test_the_rows_of_a_study(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    cells, pruned, choice = ran(STUDY, store, rel=1e-5)
    assert isinstance(pruned.parent, Train)
    assert pruned.parent.spec["penalty"] == {
        "method": "sparse-structure",
        "strength": 0.07,
        "revision": 2,
    }
    # Less is left, so a budget of equal FLOPs is longer.
    assert store.record(cells["scratch-b"].job.key)["epochs"] > 15
    assert choice["unit"] == "block"
    assert set(choice["widths"].values()) == {0, 1}
    assert cells["pruned"].cut is not None
    assert cells["pruned"].cut.label == "zeros"


def test_a_target_of_another_network_is_refused() -> None:
    methods = {"name": "sparse-structure", "target": "resnet-41"}
    with pytest.raises(ConfigError, match=r"made for imagenet-preresnet-50. Got the model preresn"):
        Study.from_json({**STUDY, "methods": methods}).cells()


def test_given_shares_say_which_blocks_go() -> None:
    model = network("preresnet")
    found = trace(model, SHAPE)
    mask = select(model, found, "sparse-structure", shares=[1.0, 0.0, 0.0, 1.0, 0.0, 0.0])
    assert mask.widths() == dict(zip(blocks(model), (0, 1, 1, 0, 1, 1), strict=True))
    with pytest.raises(ConfigError, match="A sparsity is the removed share"):
        select(model, found, "l1-filter", shares=[1.0] * 13)


def test_scratch_of_given_blocks_waits_for_no_training() -> None:
    shares = [1, 0, 0, 1, 0, 0]  # of the blocks of the small network
    methods = {**STUDY["methods"], "target": [], "shares": shares}
    jobs = {
        cell.arm.name: cell.job for cell in Study.from_json({**STUDY, "methods": methods}).cells()
    }
    scratch, pruned = jobs["scratch-e"], jobs["pruned"]
    assert isinstance(scratch, Retrain)
    assert isinstance(pruned, Retrain)
    assert scratch.prune.inputs == ()
    assert pruned.prune.inputs == (pruned.parent,)


def test_copies_of_a_treated_network_are_treated() -> None:
    model = build(BLOCKS["resnet"])
    attach_(model)
    assert len(list(factors(copy.deepcopy(model)))) == len(blocks(model)) == 3


def test_a_pruning_of_blocks_has_a_key_of_its_own() -> None:
    cells = Study.from_json({**STUDY, "arms": ["scratch-e"]}).cells()
    job = cells[0].job
    assert isinstance(job, Retrain)
    assert isinstance(job.prune, Prune)
    assert job.prune.spec["unit"] == "block"
    assert job.prune.spec["sparsity"] == 0.0


# Groups of grouped convolutions -----------------------------------------------------------------

GROUPS = "sparse-structure-groups"
QUICK: dict[str, Any] = {**SPARSE, "epochs": 8, "batch": 32, "lr": 0.05}


def mask_over_groups(found: Trace, *, seed: int, share: float = 0.5) -> Mask:
    kept = random_mask(found, seed=seed, kinds=["grouped"], keep=share).kept
    return Mask(unit="channel", kept=kept)


def test_a_factor_scales_its_group_and_folding_it_changes_nothing() -> None:
    model = network("resnext")
    names, x = set(snapshot(model)), torch.randn(2, *SHAPE[1:])
    found = trace(model, SHAPE)
    gone = mask_over_groups(found, seed=3)
    assert [g.size for g in found.groups.values() if g.kind == "grouped"] == [4] * 16
    assert len(gone.kept) == 16
    with evaluating(model), torch.no_grad():
        plain = model(x)
        attach_to_paths_(model)
        assert torch.equal(model(x), plain)
        for factor, kept in zip(factors(model), gone.kept.values(), strict=True):
            factor.value.copy_(torch.where(kept, 0.7, 0.0))
        scaled = model(x)
        fold_(model)
        assert torch.equal(model(x), scaled)
    assert not torch.allclose(scaled, plain)
    assert set(snapshot(model)) == names
    small_one = shrink(model, gone, found)
    with evaluating(small_one), torch.no_grad():
        torch.testing.assert_close(small_one(x), scaled, rtol=1e-5, atol=1e-5)


def test_gradient_of_a_factor_is_that_of_its_group() -> None:
    """By the chain rule: the sum of weight times gradient over the columns of the group."""
    model = network("resnext").double()
    attach_to_paths_(model)
    model(torch.randn(4, *SHAPE[1:], dtype=torch.float64)).square().sum().backward()
    named = dict(model.named_parameters())
    assert len(list(factors(model))) == 16
    for (name, (_, paths)), factor in zip(aggregations(model).items(), factors(model), strict=True):
        weight = named[f"{name}.conv3.parametrizations.weight.original"]
        assert weight.grad is not None
        parts = (weight * weight.grad).sum((0, 2, 3)).view(paths, -1).sum(1)
        assert factor.value.grad is not None
        torch.testing.assert_close(factor.value.grad, parts, rtol=1e-8, atol=1e-8)


def test_factors_of_groups_reach_exact_zeros_and_dropping_those_changes_nothing() -> None:
    model = build(BLOCKS["resnext"])
    fit(Training(model, digits(), Recipe(**QUICK), seed=0, treatment=selecting_groups(0.3, 0.0)))
    model = model.double().to(memory_format=torch.contiguous_format)
    found = trace(model, SHAPE)
    mask = select(model, found, GROUPS, sparsity=0.0)
    assert 0 < mask.num_kept < mask.num_units == 64
    for (end, paths), kept in zip(aggregations(model).values(), mask.kept.values(), strict=True):
        assert isinstance(end.weight, Tensor)
        columns = end.weight.unflatten(1, (paths, -1)).movedim(1, 0).flatten(1)  # type: ignore
        assert torch.equal(columns.any(1), kept)
    x = torch.randn(4, *SHAPE[1:], dtype=torch.float64)
    small_one = shrink(model, mask, found)
    with evaluating(model), evaluating(small_one), torch.no_grad():
        torch.testing.assert_close(small_one(x), model(x), rtol=1e-9, atol=1e-9)
    more = select(model, found, GROUPS, sparsity=0.75)
    assert more.num_kept - len(more.guarded) == 16
    for name, kept in more.kept.items():
        assert name in more.guarded or bool((~kept | mask.kept[name]).all())


def test_dropping_groups_equals_silencing_them_and_what_is_left_trains(tmp_path: Path) -> None:
    model = network("resnext")
    found = trace(model, SHAPE)
    for seed in range(3):
        mask = mask_over_groups(found, seed=seed)
        assert verify(model, mask, found) < 1e-9
    architecture = Architecture(model=BLOCKS["resnext"], shape=SHAPE).then(mask)
    small_one = architecture.cut(model)
    before = snapshot(small_one)
    one = Training(small_one, digits(), Recipe(epochs=1, batch=32, lr=0.01), seed=0)
    one.step()
    assert all(not torch.equal(v, before[n]) for n, v in one.model.named_parameters())
    trained = one.model.to(memory_format=torch.contiguous_format)
    save(tmp_path / "net", trained, architecture)
    again, x = load(tmp_path / "net"), torch.randn(2, *SHAPE[1:])
    with evaluating(trained), torch.no_grad():
        assert torch.equal(again(x), trained(x))
    left = [module for module in again.modules() if getattr(module, "groups", 1) > 1]
    assert [m.groups for m in left] == [n for n in mask.widths().values() if n > 1]
    assert architecture.to_json()["cuts"][0]["features.stage1.0.conv1"]["of"] == 4


def test_parameters_of_a_resnext_without_some_groups_by_hand() -> None:
    """32 groups of 4, 8, 16 and 32 channels: the 32x4d of Xie et al., at the size of ImageNet."""
    arguments = {"classes": 1000, "in_channels": 3, "input_size": 32}
    model = build(ModelSpec("imagenet-resnext-50", arguments))
    whole = sum(p.numel() for p in model.parameters())
    assert whole == 25_028_904
    found = trace(model, (1, 3, 32, 32))
    names = [name for name, group in found.groups.items() if group.kind == "grouped"]
    gone = [number % 8 for number in range(16)]
    kept = {name: torch.arange(32) >= k for name, k in zip(names, gone, strict=True)}
    small_one = shrink(model, Mask(unit="channel", kept=kept), found)
    stages = [stage for stage, num in enumerate((3, 4, 6, 3)) for _ in range(num)]
    expected = whole
    for block, (stage, k) in enumerate(zip(stages, gone, strict=True)):
        first = block == 0 or stages[block - 1] != stage
        num_out, width = 256 * 2**stage, 4 * 2**stage
        num_in = num_out if not first else max(64, num_out // 2) if stage else 64
        # its columns and rows of the 1x1 convolutions, its 3x3, and two norms
        expected -= k * (num_in * width + 9 * width * width + width * num_out + 4 * width)
    assert sum(p.numel() for p in small_one.parameters()) == expected
    convolution = small_one.get_submodule("features.stage4.2.conv2")
    assert isinstance(convolution, nn.Conv2d)
    assert (convolution.groups, convolution.in_channels) == (25, 800)


def test_a_network_without_declared_groups_is_refused_before_it_trains() -> None:
    with pytest.raises(ConfigError, match=r"declares none. Use a ResNeXt, or give the blocks"):
        Training(
            build(BLOCKS["preresnet"]), digits(), Recipe(epochs=1), seed=0,
            treatment=selecting_groups(0.1, 0.0),
        )  # fmt: skip
    with pytest.raises(TraceError, match=f"{GROUPS} prunes whole groups of grouped convolutions"):
        select(*small("vgg"), GROUPS, sparsity=0.5)


def test_the_rows_of_a_study_of_groups(tmp_path: Path) -> None:
    spec = BLOCKS["resnext"]
    study = {
        **STUDY,
        "models": {"name": spec.name, "groups": 4, "group_width": 32, "width": 0.05},
        "methods": {"name": GROUPS, "strength": 0.3, "target": "zeros"},
        "arms": ["pruned", "scratch-e"],
        "recipe": QUICK,
    }
    _, _, choice = ran(study, Store.open(tmp_path / "store"), rel=1e-4)
    assert choice["unit"] == "channel"
