"""Prevent layers without channels: restore a channel wherever a choice would remove all of them.

A layer may hold only some of a group's units (the narrow end of a padded shortcut), and several
groups may share its channels (a stream, and a norm's view of it): a channel remains only if all of
them keep it.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from regrow.surgery import Slot, Trace


def guard(
    kept: Mapping[str, Tensor], scores: Mapping[str, Tensor], trace: Trace
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return kept units by group that leave no layer empty, and the groups where one was restored.

    In an empty group, the unit with the highest score is restored. In any other empty layer, it is
    the position at which the fewest groups have to restore a unit; of several, the highest ranked.
    """
    alive = {name: stays.clone() for name, stays in kept.items()}
    helped: dict[str, None] = {}
    for name, stays in alive.items():
        if not bool(stays.any()):
            stays[_order(scores[name])[0]] = True
            helped[name] = None
    for shared in _layers(trace, alive):
        gone = torch.stack([(s.units >= 0) & ~alive[n][s.units.clamp(min=0)] for n, s in shared])
        if bool((~gone.any(dim=0)).any()):
            continue
        fewest = gone.sum(dim=0)
        ranks = torch.stack([_ranks_at(s, scores[n]) for n, s in shared]).sum(dim=0)
        place = int(ranks.where(fewest == fewest.min(), -torch.inf).argmax())
        for row, (name, slot) in enumerate(shared):
            if bool(gone[row, place]):
                alive[name][slot.units[place]] = True
                helped[name] = None
    return alive, tuple(name for name in alive if name in helped)


def _layers(trace: Trace, groups: Mapping[str, Tensor]) -> list[list[tuple[str, Slot]]]:
    """List, for each dimension of each tensor that holds units of the groups, these groups."""
    layers: dict[tuple[str, int], list[tuple[str, Slot]]] = {}
    for name in groups:
        for slot in trace.groups[name].slots:
            layers.setdefault((slot.tensor, slot.dim), []).append((name, slot))
    return list(layers.values())


def _order(scores: Tensor) -> Tensor:
    return torch.argsort(scores, stable=True, descending=True)


def _ranks_at(slot: Slot, scores: Tensor) -> Tensor:
    """Return, for each position, the share of its group that its unit outranks; 0 if no unit."""
    ranks = torch.empty(len(scores))
    ranks[_order(scores)] = torch.arange(len(scores) - 1, -1, -1.0) / len(scores)
    return ranks[slot.units.clamp(min=0)] * (slot.units >= 0)
