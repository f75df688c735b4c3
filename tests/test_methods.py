"""The contract of every registered criterion and method, on a small network of each family.

A new method is found here by itself: no test knows a name.
"""

import copy
import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regrow.core.registry import load_file
from regrow.errors import TraceError
from regrow.jobs.prune import structure_only
from regrow.pruning.layers import Layers
from regrow.pruning.method import ALLOCATIONS, CRITERIA, METHODS, Method
from regrow.pruning.probe import Probe
from regrow.pruning.select import allocated, groups_in_scope, layers_of, refined, scores_of, select
from regrow.surgery import Group, Trace, shrink, trace
from regrow.surgery.mask import Mask
from small import LINEAR_NETWORKS, NETWORKS, SHAPE, digits, equal, small, snapshot

# The file that the contributing guide shows is held to the same contract.
load_file(Path(__file__).parents[1] / "examples" / "extend" / "my_method.py")

PLAIN = Method(name="plain", criterion="l1-norm")
IMAGES = 8  # for criteria that look at some
EXACT_SHARES = [0.0, 0.1, 0.3, 0.5, 0.75]


@cache
def _network(label: str, seed: int = 0) -> tuple[nn.Module, Trace]:
    """Return a network with its trace, made once: nothing here changes either."""
    return small(label, seed=seed)


def _methods_on_networks() -> list[tuple[str, str]]:
    """List every method with every network that it can prune; each must prune one at least."""
    pairs = []
    for name in METHODS.names():
        # In a single group (the stem of a ResNeXt) there is too little to choose.
        fits = [label for label in NETWORKS if len(_groups(METHODS.get(name), label)) > 1]
        fits = fits or [n for n in LINEAR_NETWORKS if len(_groups(METHODS.get(name), n)) > 1]
        assert fits, f"the method {name!r} prunes none of {', '.join(NETWORKS)}"
        pairs += [(name, label) for label in fits]
    return pairs


def _groups(method: Method, label: str) -> dict[str, Group]:
    try:
        return groups_in_scope(*_network(label), method)
    except TraceError:
        return {}


METHODS_ON_NETWORKS = _methods_on_networks()


def _users(criterion: str) -> list[Method]:
    """Return the methods of a criterion, which tell what it can score."""
    methods = [METHODS.get(name) for name in METHODS.names()]
    return [m for m in methods if m.criterion == criterion] or [PLAIN]


def _groups_of_users(criterion: str, label: str) -> list[dict[str, Group]]:
    """Return the groups that methods of a criterion prune, by unit: a score depends on no more."""
    by_unit: dict[str, dict[str, Group]] = {}
    for method in _users(criterion):
        by_unit.setdefault(method.unit, {}).update(_groups(method, label))
    return [groups for groups in by_unit.values() if groups]


def _scores(criterion: str, model: nn.Module, groups: dict[str, Group]) -> dict[str, Tensor]:
    probe = Probe(model, digits(), num_images=IMAGES, groups=groups)
    return {name: CRITERIA.get(criterion)(group, probe) for name, group in groups.items()}


def _select(name: str, label: str, sparsity: float, *, seed: int = 0) -> Mask:
    """Do what ``select`` does, of scores that are computed once."""
    method, layers = METHODS.get(name), _layers(name, label, sparsity, seed=seed)
    options: dict[str, Any] = {"seed": seed, "num_images": IMAGES, "groups": layers.groups}
    probe = Probe(layers.network, digits(), **options)
    return refined(method, layers, layers.mask(allocated(method, layers, sparsity)), probe)


def _layers(name: str, label: str, sparsity: float, *, seed: int = 0) -> Layers:
    method, (model, found) = METHODS.get(name), _network(label)
    trained_at = sparsity if _trains_masks(method) else None
    scores = _scores_of(name, label, seed, trained_at=trained_at)
    return layers_of(model, found, method, scores=scores)


@cache
def _scores_of(name: str, label: str, seed: int, *, trained_at: float | None) -> dict[str, Tensor]:
    model, groups = _network(label)[0], _groups(METHODS.get(name), label)
    masks = {} if trained_at is None else _masks(model, groups, trained_at, seed=seed)
    probe = Probe(model, digits(), seed=seed, num_images=IMAGES, groups=groups, masks=masks)
    return scores_of(METHODS.get(name), groups, probe, None)


def _selected(name: str, label: str, *, seed: int = 0) -> Mask:
    """Choose half of the units by ``select`` itself, of the network with the weights of a seed."""
    method, groups = METHODS.get(name), _groups(METHODS.get(name), label)
    model, found = _network(label, seed)
    masks = _masks(model, groups, 0.5, seed=seed) if _trains_masks(method) else {}
    options: dict[str, Any] = {"dataset": digits(), "num_images": IMAGES, "seed": seed}
    return select(model, found, method, sparsity=0.5, masks=masks, **options)


def _trains_masks(method: Method) -> bool:
    """Tell whether the training of a method leaves masks at the sparsity that it is asked for."""
    return method.treatment is not None and method.treatment(0.1, 0.5).masks is not None


def _masks(
    model: nn.Module, groups: dict[str, Group], sparsity: float, *, seed: int
) -> dict[str, Tensor]:
    """Draw masks of weights that such a training could leave."""
    generator = torch.Generator().manual_seed(seed)
    masks = {}
    for name in groups:
        chance = torch.rand(model.get_parameter(name).numel(), generator=generator)
        chance[chance.argsort()[: int(sparsity * len(chance) + 1e-9)]] = -1.0
        masks[name] = (chance >= 0.0).view(model.get_parameter(name).shape)
    return masks


# Criteria ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CRITERIA.names())
@pytest.mark.parametrize("label", NETWORKS)
def test_a_criterion_gives_one_finite_score_a_unit_and_the_same_again(
    name: str, label: str
) -> None:
    model, _ = _network(label)
    for groups in _groups_of_users(name, label):
        first, again = _scores(name, model, groups), _scores(name, model, groups)
        for group, scores in first.items():
            assert scores.shape == (groups[group].size,)
            assert scores.is_floating_point()
            assert torch.isfinite(scores).all()
            assert torch.equal(scores, again[group])


@pytest.mark.parametrize("name", CRITERIA.names())
def test_a_criterion_follows_a_permutation_of_the_filters(name: str) -> None:
    for label in NETWORKS:
        model, found = _network(label)
        if _is_blind(name, label):
            continue
        of_users = _groups_of_users(name, label)
        named = {key for groups in of_users for key in groups}
        convs = [g for g in found.groups.values() if g.kind == "conv" and {*_keys(g)} & named]
        for apart in _apart(convs):
            other = copy.deepcopy(model)
            generator = torch.Generator().manual_seed(1)
            orders = {g.name: torch.randperm(g.size, generator=generator) for g in apart}
            for group in apart:
                _permute_(other, group, orders[group.name])
            x = torch.rand(2, *SHAPE[1:])
            torch.testing.assert_close(other.eval()(x), model.eval()(x))
            for groups in of_users:
                own = {key: g for g in apart for key in _keys(g) if key in groups}
                scored = {key: groups[key] for key in own}
                before, after = (_scores(name, net, scored) for net in (model, other))
                for key, group in own.items():
                    rows = (s.view(group.size, -1) for s in (before[key], after[key]))
                    order = orders[group.name]
                    torch.testing.assert_close(next(rows)[order], next(rows), atol=1e-6, rtol=1e-4)


def _keys(group: Group) -> tuple[str, str]:
    """Return what a group is called as one of channels, and as one of weights or filters."""
    return group.name, f"{group.name}.weight"


def _apart(groups: list[Group]) -> list[list[Group]]:
    """Part groups into lists within which no two touch a tensor, to permute them at once."""
    lists: list[list[Group]] = []
    for group in groups:
        tensors = {slot.tensor for slot in group.slots}
        free = (
            some
            for some in lists
            if all(tensors.isdisjoint({slot.tensor for slot in g.slots}) for g in some)
        )
        chosen = next(free, None)
        if chosen is None:
            lists.append([group])
        else:
            chosen.append(group)
    return lists


def _is_blind(name: str, label: str) -> bool:
    """Tell whether a criterion looks at positions or chance alone: any weights score the same."""
    groups = [group for method in _users(name) for group in _groups(method, label).items()]
    models = (_network(label)[0], _network(label, 1)[0])
    one, two = (_scores(name, model, dict(groups)) for model in models)
    return all(torch.equal(one[key], two[key]) for key in one)


def _permute_(model: nn.Module, group: Group, order: Tensor) -> None:
    """Put a group's units into another order, in every tensor that they touch."""
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    with torch.no_grad():
        for slot in group.slots:
            places = torch.arange(len(slot.units))
            for new, old in enumerate(order.tolist()):
                places[slot.units == new] = (slot.units == old).nonzero().flatten()
            tensor = tensors[slot.tensor]
            tensor.copy_(tensor.index_select(slot.dim, places))


# Methods ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS.names())
def test_a_method_is_made_of_registered_parts(name: str) -> None:
    method = METHODS.get(name)
    assert method.name == name
    assert CRITERIA.key(method.criterion) == method.criterion
    assert ALLOCATIONS.key(method.allocation) == method.allocation
    assert (not method.strength) or (method.treatment is not None)
    most = 1.0 if method.unit == "block" else 0.999
    for target in method.targets.values():
        assert all(0 <= share <= most for share in target.shares or ())


@pytest.mark.parametrize(("name", "label"), METHODS_ON_NETWORKS)
def test_a_method_leaves_the_model_and_the_global_chance_alone(name: str, label: str) -> None:
    kept, found = _network(label)
    model = copy.deepcopy(kept)
    last = [f"{n}.weight" for n, m in model.named_modules() if isinstance(m, nn.Linear)][-1]
    model.get_parameter(last).grad = torch.ones_like(model.get_parameter(last))
    inner = next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    model.train()
    inner.eval()
    modes = [m.training for m in model.modules()]
    before, chance = snapshot(model), torch.get_rng_state()
    select(model, found, name, sparsity=0.5, dataset=digits(), num_images=IMAGES)
    assert equal(snapshot(model), before)
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), chance)
    for key, parameter in model.named_parameters():
        if key == last:
            assert parameter.grad is not None
            assert bool((parameter.grad == 1).all())
        else:
            assert parameter.grad is None
        assert parameter.requires_grad
    assert all(not m._forward_hooks for m in model.modules())


@pytest.mark.parametrize(("name", "label"), METHODS_ON_NETWORKS)
def test_a_method_is_deterministic_and_speaks_of_all_groups_in_scope(name: str, label: str) -> None:
    first, again = _selected(name, label), _select(name, label, 0.5)
    groups = _groups(METHODS.get(name), label)
    assert list(first.kept) == list(groups)
    assert all(k.numel() == groups[n].size for n, k in first.kept.items())
    assert all(torch.equal(first.kept[n], again.kept[n]) for n in groups)
    assert first.guarded == again.guarded


@pytest.mark.parametrize(("name", "label"), METHODS_ON_NETWORKS)
def test_a_method_meets_the_sparsity_within_one_unit(name: str, label: str) -> None:
    """Over the whole network, or else in each group, before layers are kept alive.

    Where every unit's fate is a draw of its own, within five standard deviations of their number.
    """
    for sparsity in EXACT_SHARES:
        mask = _select(name, label, sparsity)
        if _draws_each(name, label):
            spread = math.sqrt(mask.num_units * sparsity * (1 - sparsity))
            assert abs(mask.num_kept - mask.num_units * (1 - sparsity)) <= 5 * spread
            continue
        kept = {group: stays.flatten() for group, stays in mask.kept.items()}
        if METHODS.get(name).choice is None:  # else what is chosen is no allocation's alone
            kept = allocated(METHODS.get(name), _layers(name, label, sparsity), sparsity)
        removed = sum(int((~stays).sum()) for stays in kept.values())
        whole = removed == math.floor(mask.num_units * sparsity + 1e-9)
        each = all(abs(int(k.sum()) - k.numel() * (1 - sparsity)) < 1 for k in kept.values())
        assert whole or each, f"{removed} of {mask.num_units} removed at {sparsity}"
        for group, stays in kept.items():
            given_back = mask.kept[group].flatten() & ~stays
            assert bool(given_back.any()) == (group in mask.guarded)
            assert not bool((stays & ~mask.kept[group].flatten()).any())


@cache
def _draws_each(name: str, label: str) -> bool:
    """Tell whether chance decides how many units stay: another seed keeps another number."""
    masks = [_select(name, label, 0.5, seed=seed) for seed in range(4)]
    return masks[0].unit != "channel" and len({mask.num_kept for mask in masks}) > 1


@pytest.mark.parametrize(("name", "label"), METHODS_ON_NETWORKS)
def test_a_method_leaves_a_network_that_runs_even_when_next_to_nothing_stays(
    name: str, label: str
) -> None:
    mask = _select(name, label, 0.97)
    model, found = _network(label)
    if mask.unit != "channel":
        assert mask.guarded == ()
        return
    assert all(left >= 1 for left in mask.widths().values())
    assert mask.guarded
    assert all(mask.widths()[g] == 1 for g in mask.guarded if not _shares_layers(found, g))
    small_one = shrink(model, mask, found)
    assert small_one.eval()(torch.zeros(SHAPE)).shape == (1, 10)
    # The second layer of a group has one of its own when a convolution's groups are down to one.
    layers = {s.tensor.rpartition(".")[0] for g in found.groups.values() for s in g.producers()}
    assert trace(small_one, SHAPE).groups.keys() <= found.groups.keys() | layers | {
        f"{group}.norm" for group in found.groups
    }


def _shares_layers(found: Trace, group: str) -> bool:
    """Tell whether layers hold units of another group too, or some of this group's only."""
    others = {(s.tensor, s.dim) for n, g in found.groups.items() if n != group for s in g.slots}
    return any(
        (s.tensor, s.dim) in others or len(torch.unique(s.units)) < found.group(group).size
        for s in found.group(group).slots
    )


@pytest.mark.parametrize(("name", "label"), METHODS_ON_NETWORKS)
def test_a_method_that_needs_no_training_still_looks_at_the_seed_or_the_weights(
    name: str, label: str
) -> None:
    other, _ = _network(label, 7)
    one, two = _select(name, label, 0.5), _selected(name, label, seed=7)
    if structure_only(METHODS.get(name)) == METHODS.get(name):  # widths alone, which all share
        assert all(torch.equal(one.kept[n], two.kept[n]) for n in one.kept)
        return
    if all(torch.equal(one.kept[n], two.kept[n]) for n in one.kept):  # of few units
        criterion, groups = METHODS.get(name).criterion, _groups(METHODS.get(name), label)
        scores = [_scores(criterion, net, groups) for net in (_network(label)[0], other)]
        assert any(not torch.equal(scores[0][n], scores[1][n]) for n in groups)
