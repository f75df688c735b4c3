"""Choose which units to keep: the groups in a method's scope, their scores, and ``select``."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from regrow.core.texts import first_few, listed
from regrow.core.units import UNITS
from regrow.data import Dataset
from regrow.errors import ConfigError, TiedScores, TraceError
from regrow.pruning.allocations import allocate_shares
from regrow.pruning.costs import COST_TARGETS, CostShare
from regrow.pruning.examples import Examples, Loss, examples_of
from regrow.pruning.layers import Layers
from regrow.pruning.method import (
    ALL,
    ALLOCATIONS,
    CHOICES,
    CRITERIA,
    METHODS,
    SCOPES,
    Method,
    Scope,
    checked_multiple,
    checked_share,
    checked_sparsity,
)
from regrow.pruning.normalise import NORMALISATIONS, UNCHANGED, Scored
from regrow.pruning.probe import IMAGES, Probe
from regrow.pruning.stages import Part, Pattern, lay, stages_of
from regrow.pruning.targets import reach
from regrow.surgery import Group, Trace, silence
from regrow.surgery.cut import duplicate
from regrow.surgery.mask import Mask, apply_


def groups_in_scope(model: nn.Module, trace: Trace, method: Method) -> dict[str, Group]:
    """Return the groups that a method prunes in a network, in the order of computation.

    Raises:
        TraceError: there are none, or a weight to be held at zero is computed from others.
    """
    groups = UNITS.get(method.unit).groups(model, trace, method.scope)
    if not groups:
        raise TraceError(_nothing(trace, method))
    return groups


def left_out(
    trace: Trace, method: Method | str, *, scope: Scope | Sequence[Scope] | None = None
) -> dict[str, str]:
    """Return the groups of channels that a method does not prune, with reasons; see trace.whole.

    ``scope`` replaces the method's own.
    """
    chosen = (METHODS.get(method) if isinstance(method, str) else method).within(scope)
    find = UNITS.get(chosen.unit).left_out
    return {} if find is None else find(trace, chosen.scope)


def _nothing(trace: Trace, method: Method) -> str:
    """Return the error message for a network in which a method can prune nothing, with reasons."""
    of_all = {*method.scope} == {*ALL}
    kinds = SCOPES["all"] if of_all else listed([SCOPES[kind] for kind in method.scope])
    scope = "all" if of_all else ", ".join(method.scope)
    message = (
        f"{method.name} prunes {kinds} (scope {scope}), and this network has none that can be cut."
    )
    if UNITS.get(method.unit).left_out is None:
        return message
    left_out_groups = left_out(trace, method)
    if left_out_groups:
        groups = _by_reason(left_out_groups)
        message += f" Its groups: {groups}. Give the method a scope that includes them: all."
    if trace.whole:
        message += f" Kept whole: {_by_reason(trace.whole)}."
    return message


def _by_reason(reasons: Mapping[str, str], *, num: int = 4) -> str:
    """List names by their reasons, the first few of each: ``'a', 'b' and 3 more (why); ...``."""
    names: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        names.setdefault(reason, []).append(repr(name))
    parts = []
    for reason, members in names.items():
        parts.append(f"{listed(first_few(members, num))} ({reason})")
    rest = [f"and {len(parts) - num} other reasons"] if len(parts) > num else []
    return "; ".join([*parts[:num], *rest])


def select(
    model: nn.Module,
    trace: Trace,
    method: Method | str,
    *,
    scope: Scope | Sequence[Scope] | None = None,
    sparsity: float | None = None,
    shares: Sequence[float] | None = None,
    pattern: Pattern | None = None,
    dataset: Dataset | Iterable[Any] | None = None,
    loss: Loss | None = None,
    seed: int = 0,
    within: Mask | None = None,
    masks: Mapping[str, Tensor] | None = None,
    num_images: int = IMAGES,
    rounds: int = 1,
    multiple_of: int = 1,
    device: str = "cpu",
    **costs: float,
) -> Mask:
    """Choose which units of a network to keep.

    Args:
        model, trace: the trained network (or any, for a method that uses no weights).
        method, scope: a method or its name; kinds of groups instead of its own, or ``all``.
        sparsity: removed share of all units in the method's scope, in [0, 1).
        shares: instead of a sparsity, the removed share of each group in the order of computation.
        pattern: instead of a sparsity, what another network kept in each stage; the allocation
            works within each layer (or kernel position) at the sparsity of the pattern.
        dataset, loss: for criteria that use gradients or activations: see ``pruning.examples``.
        seed: for criteria that use random numbers.
        within: an earlier choice; only units that it kept can be removed.
        masks: by parameter, which weights the training kept; num_images: how many images are used.
        rounds: n pruning steps; after step k, (1 - sparsity) ** (k/n) is left and scored again.
        multiple_of: each layer keeps a multiple of this number of channels, or all of them.
        device: where a latency is measured.
        costs: instead of a sparsity, the largest share of a registered cost that may remain:
            ``macs=0.5``, ``parameters=0.3`` or ``latency=0.5``.

    Returns:
        A mask over the groups in scope; ``mask.guarded`` are the groups of channels that kept one
        unit so that no layer is emptied. Layers of weights or filters may lose all of them.
    """
    chosen = (METHODS.get(method) if isinstance(method, str) else method).within(scope)
    groups = groups_in_scope(model, trace, chosen)
    amount = _amount(chosen, sparsity, shares, pattern, costs, rounds=rounds, groups=groups)
    data = _examples(dataset, model, loss=loss, num=num_images)
    probe = _prober(data, trace, seed=seed, num_images=num_images, groups=groups, masks=masks)
    options: dict[str, Any] = {"within": within, "device": device, "multiple_of": multiple_of}
    scores = scores_of(chosen, groups, whole := probe(model, within), within)
    layers = layers_of(model, trace, chosen, scores=scores, **options)
    if shares is not None:
        return refined(chosen, layers, _by_shares(chosen, layers, shares), whole)
    if pattern is not None:
        return _by_pattern(chosen, layers, pattern)
    for number in range(1, rounds):
        mask = _chosen(chosen, layers, amount, number / rounds)
        remaining = probe(left_by(mask, model, trace), mask)
        layers = layers.after(mask, scores_of(chosen, groups, remaining, mask))
    return refined(chosen, layers, _chosen(chosen, layers, amount), whole)


def refined(method: Method, layers: Layers, mask: Mask, probe: Probe) -> Mask:
    """Apply a method's ``choice`` within each layer if it has one; else return the mask."""
    if method.choice is None:
        return mask
    choose, allocate = CHOICES.get(method.choice), ALLOCATIONS.get(method.allocation)
    kept = choose(layers, mask, probe, allocate)
    _check_kept(method, layers, kept)
    return layers.mask(kept)


def _examples(
    data: Dataset | Iterable[Any] | None, model: nn.Module, *, loss: Loss | None, num: int
) -> Dataset | Examples | None:
    if data is None or isinstance(data, Dataset | Examples):
        if loss is not None:
            raise ConfigError("A 'loss' is for batches; a data set uses that of its task.")
        return data
    return examples_of(data, model, num=num, loss=loss)


def _prober(
    dataset: Dataset | Examples | None, trace: Trace, **options: Any
) -> Callable[[nn.Module, Mask | None], Probe]:
    def probe(network: nn.Module, within: Mask | None) -> Probe:
        left = None if within is None else within.kept
        return Probe(network, dataset, example=trace.example, left=left, **options)

    return probe


def scores_of(
    method: Method, groups: Mapping[str, Group], probe: Probe, within: Mask | None
) -> dict[str, Tensor]:
    """Score groups by a method's criterion, and normalise the scores."""
    score, normalise = CRITERIA.get(method.criterion), NORMALISATIONS[method.normalise or UNCHANGED]
    left = _left(groups, within)
    return {
        name: normalise(
            Scored(
                scores=_checked(method, group, score(group, probe)),
                left=left[name],
                num_weights=partial(_num_weights, group, probe),
            )
        )
        for name, group in groups.items()
    }


def _num_weights(group: Group, probe: Probe) -> Tensor:
    return group.sum(lambda name: torch.ones_like(probe.weight(name)))


def _left(groups: Mapping[str, Group], within: Mask | None) -> dict[str, Tensor]:
    """Return which units of each group an earlier choice left."""
    left = {name: torch.ones(group.size, dtype=torch.bool) for name, group in groups.items()}
    if within is None:
        return left
    return {name: within.kept.get(name, units).flatten() for name, units in left.items()}


def _chosen(
    method: Method, layers: Layers, amount: float | CostShare, fraction: float = 1.0
) -> Mask:
    """Choose the units to keep at an amount, or at a fraction of the way to it."""
    if isinstance(amount, CostShare):
        target = replace(amount, share=amount.share**fraction)
        return _decided(method, layers, reach(layers, partial(allocated, method), target))
    sparsity = amount if fraction == 1.0 else 1.0 - (1.0 - amount) ** fraction
    return _decided(method, layers, layers.mask(allocated(method, layers, sparsity)))


def left_by(mask: Mask, model: nn.Module, trace: Trace) -> nn.Module:
    """Return a copy of a network in which the units that a mask removes are zero."""
    if not UNITS.get(mask.unit).masked:
        return silence(model, mask, trace)
    left = duplicate(model)
    apply_(left, mask)
    return left


def _amount(
    method: Method,
    sparsity: float | None,
    shares: Sequence[float] | None,
    pattern: Pattern | None,
    costs: Mapping[str, float],
    *,
    rounds: int,
    groups: Mapping[str, Group],
) -> float | CostShare:
    """Return the sparsity or cost share; 0 if shares or a pattern are given instead."""
    _check_rounds(rounds, groups)
    known = {"sparsity": sparsity, "shares": shares, "pattern": pattern}
    amounts = [*(name for name, value in known.items() if value is not None), *costs]
    if len(amounts) > 1:
        raise ConfigError(f"select takes one of {' and '.join(amounts)}, not several.")
    if shares is not None or pattern is not None:
        if rounds > 1:
            raise ConfigError("Rounds are steps to a sparsity or a cost. Leave out 'rounds'.")
        return 0.0
    if costs:
        ((name, share),) = costs.items()
        return CostShare(COST_TARGETS.key(name), share)
    fixed = ALLOCATIONS.get(method.allocation).sparsity
    return checked_sparsity(fixed if sparsity is None else sparsity)


def _check_rounds(rounds: int, groups: Mapping[str, Group]) -> None:
    """Refuse more rounds than there are units: some would remove nothing."""
    num = sum(group.size for group in groups.values())
    if rounds > max(num, 1):
        raise ConfigError(
            f"Each round removes a unit or more, and the method can choose from {num:,} units: "
            f"'rounds' must be at most {num:,}. Got {rounds:,}."
        )


def layers_of(
    model: nn.Module,
    trace: Trace,
    method: Method,
    *,
    scores: Mapping[str, Tensor] | None = None,
    within: Mask | None = None,
    device: str = "cpu",
    multiple_of: int = 1,
) -> Layers:
    """Return the layers that a method prunes; without scores, the first units rank highest."""
    groups = groups_in_scope(model, trace, method)
    if scores is None:
        scores = {name: -torch.arange(group.size).float() for name, group in groups.items()}
    return Layers(
        network=model,
        trace=trace,
        unit=method.unit,
        groups=groups,
        scores=scores,
        left=_left(groups, within),
        device=device,
        multiple_of=checked_multiple(method, multiple_of),
    )


def allocated(method: Method, layers: Layers, sparsity: float) -> dict[str, Tensor]:
    """Return the units that a method's allocation keeps at a sparsity, checked."""
    allocate = ALLOCATIONS.get(method.allocation)
    if allocate.sparsity is not None and sparsity != allocate.sparsity:
        raise ConfigError(
            f"The allocation {method.allocation!r} always has the sparsity {allocate.sparsity:g}. "
            "Leave out the amount."
        )
    kept = allocate(layers, sparsity)
    _check_kept(method, layers, kept)
    return kept


def _by_shares(method: Method, layers: Layers, shares: Sequence[float]) -> Mask:
    """Keep the highest scores of each group, given the removed share of each."""
    if len(shares) != len(layers):
        raise ConfigError(
            f"{method.name}: expected a share for each of the network's {len(layers)} groups. "
            f"Got {len(shares)}."
        )
    mask = layers.mask(allocate_shares(layers, [checked_share(method, share) for share in shares]))
    are_single = all(len(layers[name]) <= 1 for name in layers)  # the shares alone decide
    return mask if are_single else _decided(method, layers, mask)


def _by_pattern(method: Method, layers: Layers, pattern: Pattern) -> Mask:
    """Allocate within each part of each group, at the share that a pattern kept there."""
    shapes = {name: layers.shape(name) for name in layers}
    parts = lay(pattern, stages_of(layers.network, layers.trace), shapes)
    kept = {name: _in_parts(method, layers, name, parts[name]) for name in layers}
    return _decided(method, layers, layers.mask(kept))


def _in_parts(method: Method, layers: Layers, name: str, parts: Sequence[Part]) -> Tensor:
    """Allocate within each part of one group; return which of its remaining units stay."""
    left = layers.left[name]
    kept = torch.zeros_like(left)
    for part in parts:
        here = layers.part(name, part.units)
        kept[here.left[name]] = allocated(method, here, part.sparsity)[name]
    return kept[left]


def _checked(method: Method, group: Group, scores: Tensor) -> Tensor:
    if not isinstance(scores, Tensor) or scores.shape != (group.size,):
        shape = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise ConfigError(
            f"The criterion {method.criterion!r} must return one score for each of the "
            f"{group.size} units of {group.name!r}. Got shape {shape}."
        )
    if not bool(torch.isfinite(scores).all()):
        raise ConfigError(
            f"The criterion {method.criterion!r} gave scores for {group.name!r} that are not all "
            "finite. Check that its weights are finite, and the criterion's values on these data."
        )
    # Counts, or true and false, may be scores; what follows divides them, and needs infinities.
    return scores.detach().cpu().to(torch.promote_types(scores.dtype, torch.float32))


def _decided(method: Method, layers: Layers, mask: Mask) -> Mask:
    """Return a choice; refuse one that was decided by the order of units with tied scores."""
    if method.choice is None and _is_tied(layers, mask):
        raise TiedScores(
            f"The criterion {method.criterion!r} gives all units of each group the same score, so "
            "it cannot decide which of them to remove. It may measure something that this network "
            "does not have, such as the scales or masks that a training leaves. Choose another "
            "criterion ('random' removes any units)."
        )
    return mask


def _is_tied(layers: Layers, mask: Mask) -> bool:
    """Return whether scores are equal within every group, and a mask removes part of a group.

    If each group is a single unit, as blocks are, the groups are compared.
    """
    scores = [layers[name] for name in layers]
    if all(len(score) <= 1 for score in scores):
        return 0 < mask.num_kept < mask.num_units and _are_equal(torch.cat(scores))
    return all(map(_are_equal, scores)) and any(
        0 < int(kept.flatten()[layers.left[name]].sum()) < len(layers[name])
        for name, kept in mask.kept.items()
        if name not in mask.guarded
    )


def _are_equal(scores: Tensor) -> bool:
    return not len(scores) or bool(scores.min() == scores.max())


def _check_kept(method: Method, scores: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> None:
    for name, score in scores.items():
        stays = kept.get(name)
        if stays is None or stays.dtype != torch.bool or stays.shape != score.shape:
            got = "nothing" if stays is None else f"{stays.dtype} {list(stays.shape)}"
            raise ConfigError(
                f"The allocation {method.allocation!r} must return a boolean for each of the "
                f"{len(score)} units of {name!r}. Got {got}."
            )
