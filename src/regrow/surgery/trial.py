"""Trials of a trace: whether a network runs, and computes what it should, with fewer units.

Code may depend on a width in ways that no operation shows: a view to a hard-coded size, an
attribute that was set when the layer was built, a layer that runs in training only. All groups are
cut at once, to sizes that match nothing else, and the operations of the smaller network are
compared with those of the network (``likeness``). Another constant in arithmetic on data is an
error. If operations, operands or sizes differ, values decide: its output is compared with that of
the network with these units silenced, both in a copy with redrawn parameters (``alive``); if
rounding hides the answer, the cut counts as wrong. Only if the trial fails are halves of the groups
cut, down to those at fault. A network that does something else when it runs again uncut cannot be
judged, and a proof refuses it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from regrow.errors import TraceError
from regrow.surgery.alive import enlivened
from regrow.surgery.cut import (
    Select,
    copied,
    cut_,
    duplicate,
    kept_positions,
    train,
    wrong_output,
)
from regrow.surgery.groups import Group, Trace
from regrow.surgery.likeness import Likeness, Unlike
from regrow.surgery.mask import Mask
from regrow.surgery.proof import changed_by, compare, inputs_like, is_steady
from regrow.surgery.tape import Unrecorded, rerun

MANY = 128  # size of a group from which on over a quarter of its units suffices, else over half
DIFFERENT = 16  # how many sizes are considered for groups of one size
LONGEST = 160  # characters of an error that are quoted


class Tried:
    """The network that is tried, with its redrawn copy and inputs, made once if needed."""

    def __init__(self, model: nn.Module, example: Any) -> None:
        self.model = model
        self.names = {name for name, _ in model.named_modules()}
        self._example = example
        self._living: tuple[nn.Module, list[Any]] | None = None
        self.again: tuple[Unlike | None] | None = None  # its difference when run again, if tried
        self._steady: bool | None = None

    def living(self) -> tuple[nn.Module, list[Any]]:
        """Return a redrawn copy, and inputs like the example.

        Several inputs, as one batch: if the first dimension counts positions instead of samples,
        attention over a single position would be trivial.
        """
        if self._living is None:
            inputs = inputs_like(self.model, self._example)
            self._living = enlivened(self.model, inputs[0]), inputs
        return self._living

    def steady(self) -> bool:
        """Return whether rounding hardly changes the redrawn copy's output; measured once."""
        if self._steady is None:
            live, inputs = self.living()
            self._steady = is_steady(live, inputs[0])
        return self._steady


@dataclass(frozen=True)
class Wrong:
    """A fault of a smaller network; ``how`` is empty if no smaller network could be made."""

    how: str
    unlike: Unlike | None = None  # the constant at fault, if it is one
    reached: int = 0  # number of correct operations before it, as far as is known

    @property
    def known(self) -> bool:
        """True if something is wrong for certain."""
        return self.how != ""


@dataclass(frozen=True)
class Trials:
    """Trials of cuts of one network on one example, for all traces made from one painting."""

    tried: Tried
    likeness: Likeness
    halved: bool = False  # cut each group to half, where numbers that code compares may coincide

    def wrong(self, trace: Trace, names: Collection[str] | None = None) -> Wrong | None:
        """Return what is wrong when groups of a trace (all, or ``names``) lose units, or None."""
        return self._wrong(trace, _several(trace, names))

    def refused(self, trace: Trace, names: Collection[str] | None = None) -> dict[str, str]:
        """Return the groups (of all, or of ``names``) that cannot lose units, with what breaks.

        These are the ones that fail alone; if there are none, a minimal set that fails together.
        """
        # Groups of one kind often fail together, so halving should separate them from others.
        groups = tuple(sorted(_several(trace, names), key=lambda group: group.kind))

        @cache
        def tried(parts: tuple[str, ...]) -> Wrong | None:
            return self._wrong(trace, [trace.groups[name] for name in parts])

        every = tuple(group.name for group in groups)
        alone = _alone(tried, every)
        wrong = tried(every) if every and not alone else None
        if wrong is None or not wrong.known:
            return alone
        return dict.fromkeys(_together(tried, every), wrong.how)

    def at_half(self) -> Trials:
        """Return trials in which each group is cut to half."""
        return replace(self, halved=True)

    def _wrong(self, trace: Trace, groups: Sequence[Group]) -> Wrong | None:
        """Return what is wrong when groups are cut, or None."""
        sizes = [group.size for group in groups]
        nums = [(size + 1) // 2 for size in sizes] if self.halved else apart(sizes)
        kept = {g.name: _chosen(g.size, num) for g, num in zip(groups, nums, strict=True)}
        # Keep the first units, so that no tensor is copied; evenly spread ones; or others.
        ways = range(3) if all(map(_is_everywhere, groups)) else (1, 2, 0)
        masks = [Mask(unit="channel", kept={n: k[way] for n, k in kept.items()}) for way in ways]
        made = _smaller(self.tried.model, masks, trace)
        if made is None:
            return Wrong("")
        wrong = self._breaks(*made, masks[1:], trace)
        return wrong and replace(wrong, how=_short(f"with {_counts(masks[0])} it {wrong.how}"))

    def _breaks(
        self, small: nn.Module, mask: Mask, others: Sequence[Mask], trace: Trace
    ) -> Wrong | None:
        try:
            added = self._added(small)
            tape = rerun(small, tree_map(copied, trace.example), told=added)
        except TraceError as error:
            reached = error.reached if isinstance(error, Unrecorded) else 0
            return Wrong(f"does not run: {error.__cause__ or error}", reached=reached)
        try:
            if trace.idle:
                train(small, trace)  # layers that run only there may read what was cut
        except Exception as error:
            return Wrong(f"does not run in training: {error}")
        breaks = wrong_output(tuple(tuple(tape.values[i].shape) for i in tape.outputs), trace)
        if breaks is not None or trace.outputs is None:
            return None if breaks is None else Wrong(breaks)
        unlike = self.likeness.unlike(tape, mask, added=added)
        if unlike is not None and unlike.node is not None:
            again = self._again(trace)
            if again is not None and again.node is not None:
                return None
            return Wrong(f"computes something else: {unlike}", unlike, unlike.place)
        off = None if unlike is None else self._off([*others, mask], trace)
        return None if off is None else Wrong(off)

    def _again(self, trace: Trace) -> Unlike | None:
        """Return where the uncut network differs when it runs again, or None."""
        if self.tried.again is None:
            again = rerun(
                duplicate(self.tried.model, sharing=True), tree_map(copied, trace.example)
            )
            self.tried.again = (self.likeness.unlike(again, Mask(unit="channel", kept={})),)
        return self.tried.again[0]

    def _added(self, small: nn.Module) -> Collection[str]:
        """Return the names of the selections that surgery inserted."""
        known = self.tried.names
        modules = small.named_modules()
        return {n for n, m in modules if isinstance(m, Select) and n not in known}

    def _off(self, masks: Sequence[Mask], trace: Trace) -> str | None:
        """Return how far an output is off, or that this cannot be decided; None if it is right.

        Also None if the network differs when it runs again, its output is not finite, or each of
        the masks empties a layer.
        """
        try:
            live, inputs = self.tried.living()
            mask = next((mask for mask in masks if _empties_nothing(mask, trace)), None)
            if mask is None:
                return None
            compared = compare(live, mask, trace, inputs, steady=self.tried.steady)
        except TraceError as error:
            return f"cannot be compared: {error}"
        if compared.ok or math.isnan(compared.error):
            return None
        if compared.blind:
            rounded = compared.rounded or 0.0
            if math.isnan(rounded) or self._again(trace) is not None:
                return None
            return (
                "runs other operations or with other numbers; whether it computes the same cannot "
                f"be told, because {changed_by(rounded)}"
            )
        return f"computes something else, by {compared.error:.1g} of its output"


_Tried = Callable[[tuple[str, ...]], Wrong | None]  # what is wrong when groups are cut, by names


def _alone(tried: _Tried, names: tuple[str, ...]) -> dict[str, str]:
    """Find by halving the groups that are at fault by themselves, with what breaks."""
    wrong = tried(names) if names else None
    if wrong is None:
        return {}
    if len(names) == 1:
        return {names[0]: wrong.how} if wrong.known else {}
    half = len(names) // 2
    return _alone(tried, names[:half]) | _alone(tried, names[half:])


def _together(
    tried: _Tried, names: tuple[str, ...], beside: tuple[str, ...] = ()
) -> tuple[str, ...]:
    """Find by halving a minimal subset of groups that fails, while ``beside`` are cut too."""
    if len(names) == 1:
        return names
    first, second = names[: len(names) // 2], names[len(names) // 2 :]
    for half in (first, second):
        wrong = tried((*beside, *half))
        if wrong is not None and wrong.known:
            return _together(tried, half, beside)
    found = _together(tried, first, (*beside, *second))
    return (*found, *_together(tried, second, (*beside, *found)))


def _several(trace: Trace, names: Collection[str] | None) -> list[Group]:
    groups = (g for g in trace.groups.values() if g.size > 1)
    return [g for g in groups if names is None or g.name in names]


def _is_everywhere(group: Group) -> bool:
    """Return whether every slot of a group holds all of its units, so that any may be cut."""
    every = {id(slot.units): slot.units for slot in group.slots}
    return all(
        bool((torch.bincount(units[units >= 0], minlength=group.size) > 0).all())
        for units in every.values()
    )


def _smaller(
    model: nn.Module, masks: Sequence[Mask], trace: Trace
) -> tuple[nn.Module, Mask] | None:
    """Cut a network into views of its own tensors, by the first mask that empties no layer."""
    for mask in masks:
        if _empties_nothing(mask, trace):
            small = duplicate(model, sharing=True)
            cut_(small, mask, trace, for_trial=True)
            return small, mask
    return None


def _empties_nothing(mask: Mask, trace: Trace) -> bool:
    """Return whether a mask leaves something of each layer; otherwise a trial tells nothing."""
    try:
        kept_positions(mask, trace)
    except TraceError:
        return False
    return True


def apart(sizes: Sequence[int]) -> list[int]:
    """Choose how many units each of several groups keeps: different numbers, if possible.

    Over half of the units, or over a quarter of many: a prime number, which no code divides, or
    computes as a product. If numbers were equal, code that confuses two groups would pass.
    """
    taken: Counter[int] = Counter()
    nums = [1] * len(sizes)
    for place in sorted(range(len(sizes)), key=lambda place: sizes[place]):  # small: few choices
        fitting = _primes_below(sizes[place])
        if fitting:
            nums[place] = min(fitting, key=lambda num: taken[num])
            taken[nums[place]] += 1
    return nums


@cache
def _primes_below(size: int) -> tuple[int, ...]:
    """List primes that a group of ``size`` units may be cut to, the smallest first."""
    least = size // 2 if size < MANY else size // 4
    primes = (n for n in range(least + 1, size) if _is_prime(n) and size % n)
    return tuple(islice(primes, DIFFERENT))


def _chosen(size: int, num: int) -> Tensor:
    """Choose ``num`` units in three ways: the first ones, evenly spread ones, and others."""
    spread = torch.zeros(size, dtype=torch.bool)
    spread[torch.linspace(0, size - 1, num).round().long()] = True
    return torch.stack([torch.arange(size) < num, spread, spread.flip(0)])


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % n for n in range(2, math.isqrt(number) + 1))


def _counts(mask: Mask) -> str:
    if not mask.kept:
        return "all of its units"
    if len(mask.kept) > 1:
        return "part of them"
    (kept,) = mask.kept.values()
    return f"{int(kept.sum())} of {len(kept)}"


def _short(message: str) -> str:
    line = message.splitlines()[0]
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 3]}..."
