"""Try what a trace found: whether a network runs on when each of its groups loses a unit.

No operation shows that code counts on a width: a view to a number that stands in it, an attribute
that was read when the layer was built, a layer that runs in training only. The last unit of all
groups is cut at once; only if that fails, halves of them are, down to the groups that are at fault.
"""

from collections.abc import Collection, Sequence

import torch
from torch import nn

from regrow.errors import TraceError
from regrow.surgery.cut import cut_, duplicate, what_breaks
from regrow.surgery.groups import Group, Trace
from regrow.surgery.mask import Mask

LONGEST = 160  # characters of an error that are quoted


def refused(model: nn.Module, trace: Trace, names: Collection[str] | None = None) -> dict[str, str]:
    """Return the groups (of some, or all) that cannot lose a unit, with what breaks without one."""
    groups = [group for group in trace.groups.values() if group.size > 1]
    return _search(model, trace, [g for g in groups if names is None or g.name in names])


def _search(model: nn.Module, trace: Trace, groups: Sequence[Group]) -> dict[str, str]:
    if not groups:
        return {}
    small = duplicate(model, sharing=True)
    kept = {group.name: torch.arange(group.size) < group.size - 1 for group in groups}
    try:
        cut_(small, Mask(unit="channel", kept=kept), trace, for_trial=True)
    except TraceError:  # together they would empty a layer, which says nothing about any of them
        breaks = None
    else:
        breaks = what_breaks(small, trace)
        if breaks is None:
            return {}
    if len(groups) == 1:
        return {groups[0].name: _short(breaks)} if breaks else {}
    half = len(groups) // 2
    parts = _search(model, trace, groups[:half]) | _search(model, trace, groups[half:])
    if not parts and breaks:  # each half can go, both cannot
        return {group.name: _short(breaks) for group in groups}
    return parts


def _short(message: str) -> str:
    line = message.splitlines()[0]
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 3]}..."
