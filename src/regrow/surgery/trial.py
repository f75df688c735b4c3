"""Try what a trace found: whether a network runs on when each of its groups loses a unit.

No operation shows that code counts on a width: a view to a number that stands in it, an attribute
that was read when the layer was built, a layer that runs in training only. The last unit of all
groups is cut at once; only if that fails, halves of them are, down to the groups that are at fault.
"""

from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import nn

from regrow.errors import TraceError
from regrow.surgery.cut import cut_, duplicate, what_breaks
from regrow.surgery.groups import NUMBER, Group, Trace
from regrow.surgery.mask import Mask
from regrow.surgery.numbers import Attribute, Choice, Number
from regrow.surgery.proof import verify

MOST_TRIES = 16
LONGEST = 160  # characters of an error that are quoted


def refused(model: nn.Module, trace: Trace, names: Collection[str] | None = None) -> dict[str, str]:
    """Return the groups (of some, or all) that cannot lose a unit, with what breaks without one."""
    groups = [group for group in trace.groups.values() if group.size > 1]
    return _search(model, trace, [g for g in groups if names is None or g.name in names])


def other_choices(
    model: nn.Module,
    trace: Trace,
    told: Sequence[Number],
    broken: Collection[str],
    follow: Callable[[Mapping[Attribute, Choice]], Trace],
    choices: Mapping[Attribute, Choice],
) -> dict[Attribute, Choice]:
    """Find which numbers of modules follow, where to let all of them follow breaks some groups.

    Tried are another dimension for one, all but one, and one alone; the values decide.
    """
    better: dict[Attribute, Choice] = {}
    known: set[tuple[Attribute, ...]] = set()
    remaining = list(broken)
    while remaining:
        name = remaining.pop(0)
        places = _places_of(trace.groups[name], told)
        if places in known:
            continue
        known.add(places)
        for tried in _tries(places, told):
            found = follow({**choices, **better, **tried})
            if not refused(model, found, [name]) and _right(model, found, name):
                better |= tried
                remaining = list(refused(model, found, remaining))
                break
    return better


def _places_of(group: Group, told: Sequence[Number]) -> tuple[Attribute, ...]:
    """Name the numbers that may count a group's units."""
    touched = {(slot.tensor, slot.dim) for slot in group.slots if NUMBER in slot.tensor}
    return tuple(dict.fromkeys(n.place for n in told if n.slot in touched))


def _tries(places: Sequence[Attribute], told: Sequence[Number]) -> list[dict[Attribute, Choice]]:
    several = {number.place for number in told if len(number.counted) > 1}
    tries: list[dict[Attribute, Choice]] = [
        {place: "first"} for place in places if place in several
    ]
    tries += [{place: "none"} for place in places]
    if len(places) > 2:
        tries += [{p: "none" for p in places if p != place} for place in places]
    return tries[:MOST_TRIES]


def _right(model: nn.Module, trace: Trace, name: str) -> bool:
    """Tell whether the network without a unit of a group is the one where it is silent."""
    mask = Mask(unit="channel", kept={name: torch.arange(trace.groups[name].size) > 0})
    return verify(model, mask, trace, sensitivity={name: 1.0}).ok


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
