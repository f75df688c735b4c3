"""Choose which units stay: the built-in allocations, the groups in a method's scope, ``select``."""

from collections.abc import Mapping, Sequence
from math import floor

import torch
from torch import Tensor, nn

from regrow.core.units import UNITS
from regrow.data import Dataset
from regrow.errors import ConfigError, TraceError
from regrow.pruning.method import (
    ALLOCATIONS,
    CRITERIA,
    METHODS,
    SCOPES,
    Method,
    allocation,
    checked_share,
    checked_sparsity,
)
from regrow.pruning.probe import IMAGES, Probe
from regrow.pruning.stages import Part, Pattern, lay, stages_of
from regrow.surgery import Group, Trace
from regrow.surgery.mask import Mask


@allocation("global")
def allocate_global(scores: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    """Remove the floor(N * sparsity) lowest scores of all groups together.

    The official code takes the score at that position for a threshold and removes it too, with all
    that equal it: one unit more.
    """
    units = sum(score.numel() for score in scores.values())
    return keep_best(scores, units - whole_share(units, sparsity))


@allocation("independent")
def allocate_independent(scores: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    """Keep every unit whose score is at least the sparsity: of random scores, each by chance.

    No unit's fate depends on another's, so how many stay is left to chance too.
    """
    return {name: score >= sparsity for name, score in scores.items()}


@allocation("uniform")
def allocate_uniform(scores: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    """Keep the floor(width * (1 - sparsity)) highest scores of every group."""
    return allocate_shares(scores, [sparsity] * len(scores))


def allocate_shares(scores: Mapping[str, Tensor], shares: Sequence[float]) -> dict[str, Tensor]:
    """Keep the floor(width * (1 - share)) highest scores of each group; a share for each."""
    return {
        name: allocate_count(score, whole_share(score.numel(), 1.0 - share))
        for (name, score), share in zip(scores.items(), shares, strict=True)
    }


def keep_best(scores: Mapping[str, Tensor], num: int) -> dict[str, Tensor]:
    """Keep so many of the highest scores of all groups together."""
    kept = allocate_count(torch.cat([score.flatten() for score in scores.values()]), num)
    parts = torch.split(kept, [score.numel() for score in scores.values()])
    return {name: part.clone() for name, part in zip(scores, parts, strict=True)}


def allocate_count(scores: Tensor, num: int) -> Tensor:
    """Keep so many of the highest scores; of equal ones the first."""
    kept = torch.zeros(len(scores), dtype=torch.bool)
    kept[torch.argsort(scores, stable=True, descending=True)[:num]] = True
    return kept


def whole_share(count: int, share: float) -> int:
    """Return floor(count * share)."""
    # 10 x (1 - 0.3) is 7 - 1e-15 in floating point, and 7 is meant.
    return floor(count * share + 1e-9)


def groups_in_scope(model: nn.Module, trace: Trace, method: Method) -> dict[str, Group]:
    """Return the groups that a method prunes in a network, in the order of computation.

    Raises:
        TraceError: there are none, or weights to be held at zero are computed from others.
    """
    groups = UNITS.get(method.unit).groups(model, trace, method.scope)
    if not groups:
        raise TraceError(_nothing(trace, method))
    return groups


def left_out(trace: Trace, method: Method | str) -> dict[str, str]:
    """Return the groups of channels that a method leaves alone, with why; see also trace.whole."""
    chosen = METHODS.get(method) if isinstance(method, str) else method
    find = UNITS.get(chosen.unit).left_out
    return {} if find is None else find(trace, chosen.scope)


def _nothing(trace: Trace, method: Method) -> str:
    """Word the error for a network of which a method can prune nothing: what holds all of it."""
    kinds = _listed([SCOPES[kind] for kind in method.scope])
    message = (
        f"{method.name} prunes {kinds} (scope {', '.join(method.scope)}), and this network has "
        "none that can be cut."
    )
    if UNITS.get(method.unit).left_out is None:
        return message
    others = left_out(trace, method)
    if others:
        message += f" Its groups: {_by_reason(others)}. Choose a method whose scope has them."
    if trace.whole:
        message += f" Kept whole: {_by_reason(trace.whole)}."
    return message


def _by_reason(reasons: Mapping[str, str], *, num: int = 4) -> str:
    """List names by their reasons, the first few of each: ``'a', 'b' and 3 more (why); ...``."""
    names: dict[str, list[str]] = {}
    for name, why in reasons.items():
        names.setdefault(why, []).append(repr(name))
    parts = []
    for why, those in names.items():
        shown = those if len(those) <= num else [*those[:num], f"{len(those) - num} more"]
        parts.append(f"{_listed(shown)} ({why})")
    more = [f"and {len(parts) - num} other reasons"] if len(parts) > num else []
    return "; ".join([*parts[:num], *more])


def _listed(names: Sequence[str]) -> str:
    return " and ".join([*([", ".join(names[:-1])] if names[1:] else []), names[-1]])


def select(
    model: nn.Module,
    trace: Trace,
    method: Method | str,
    *,
    sparsity: float | None = None,
    shares: Sequence[float] | None = None,
    pattern: Pattern | None = None,
    dataset: Dataset | None = None,
    seed: int = 0,
    within: Mask | None = None,
    masks: Mapping[str, Tensor] | None = None,
    num_images: int = IMAGES,
) -> Mask:
    """Choose the units of a network that stay.

    Args:
        model: the trained network (or any, for a method that does not look at weights).
        trace: its trace.
        method: a method or its name.
        sparsity: removed share of all units in the method's scope, in [0, 1).
        shares: instead of a sparsity, the removed share of each group in the order of computation.
        pattern: instead of a sparsity, what another network kept in each stage; the allocation then
            works within each layer (or kernel position) at the sparsity that the pattern has there.
        dataset: images, for criteria that look at gradients or activations.
        seed: for criteria that draw.
        within: an earlier choice: of the units that it kept some go, and the others stay gone.
        masks: by parameter, which weights the network's training left, for criteria that ask.
        num_images: how many of the images such criteria see.

    Returns:
        A mask over the groups in scope. Groups of channels that had to keep one more, so that no
        layer is emptied, are listed in ``mask.guarded``. Layers of weights or filters may lose all
        of them, because they still pass on their bias and norm.
    """
    chosen = METHODS.get(method) if isinstance(method, str) else method
    groups = groups_in_scope(model, trace, chosen)
    if shares is None and pattern is None:
        sparsity = checked_sparsity(sparsity)
    if shares is not None and len(shares) != len(groups):
        raise ConfigError(
            f"{chosen.name}: expected a share for each of the network's {len(groups)} groups. "
            f"Got {len(shares)}."
        )
    unit = UNITS.get(chosen.unit)
    shapes = {name: unit.shape(model, group) for name, group in groups.items()}
    probe = Probe(model, dataset, seed=seed, num_images=num_images, groups=groups, masks=masks)
    score = CRITERIA.get(chosen.criterion)
    scores = {name: _checked(chosen, group, score(group, probe)) for name, group in groups.items()}
    everything = {name: torch.ones(group.size, dtype=torch.bool) for name, group in groups.items()}
    left = everything if within is None else _left(within, everything)
    open_scores = {name: score[left[name]] for name, score in scores.items()}
    if shares is not None:
        kept = allocate_shares(open_scores, [checked_share(chosen, share) for share in shares])
    elif pattern is not None:
        parts = lay(pattern, stages_of(model, trace), shapes)
        kept = {
            name: _in_parts(chosen, {name: score}, parts[name], left[name])
            for name, score in scores.items()
        }
    else:
        assert sparsity is not None
        kept = _allocated(chosen, open_scores, sparsity)
    kept = {name: left[name].masked_scatter(left[name], kept[name]) for name in scores}
    guarded: tuple[str, ...] = ()
    if unit.keep_alive is not None:
        kept, guarded = unit.keep_alive(kept, scores, trace)
    kept = {name: stays.reshape(shapes[name]) for name, stays in kept.items()}
    return Mask(unit=chosen.unit, kept=kept, guarded=guarded)


def _allocated(method: Method, scores: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    kept = ALLOCATIONS.get(method.allocation)(scores, sparsity)
    _check_kept(method, scores, kept)
    return kept


def _in_parts(
    method: Method, scores: Mapping[str, Tensor], parts: Sequence[Part], left: Tensor
) -> Tensor:
    """Allocate within each part of one group; returns which of the units that are left stay."""
    ((name, score),) = scores.items()
    kept = torch.zeros_like(left)
    for part in parts:
        here = part.units & left
        kept[here] = _allocated(method, {name: score[here]}, part.sparsity)[name]
    return kept[left]


def _left(within: Mask, everything: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the units that an earlier choice kept; of what it does not name, all."""
    return {name: within.kept.get(name, units).flatten() for name, units in everything.items()}


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
            "finite."
        )
    return scores.detach().cpu()


def _check_kept(method: Method, scores: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> None:
    for name, score in scores.items():
        stays = kept.get(name)
        if stays is None or stays.dtype != torch.bool or stays.shape != score.shape:
            got = "nothing" if stays is None else f"{stays.dtype} {list(stays.shape)}"
            raise ConfigError(
                f"The allocation {method.allocation!r} must return a boolean for each of the "
                f"{len(score)} units of {name!r}. Got {got}."
            )
