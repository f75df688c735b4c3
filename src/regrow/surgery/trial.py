"""Try what a trace found: whether a network runs, and computes what it should, with fewer units.

No operation shows that code counts on a width: a view to a number that stands in it, an attribute
that was read when the layer was built, a layer that runs in training only. All groups are cut at
once, to numbers that fit nothing else, and the output is compared with that of the network in
which those units are silent; only if that fails, halves of the groups are, down to those at fault.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from regrow.core.seeds import seeded
from regrow.errors import TraceError
from regrow.surgery.alive import called, drawn_like, enlivened, is_blank
from regrow.surgery.cut import cut_, duplicate, what_breaks
from regrow.surgery.groups import Group, Trace
from regrow.surgery.mask import Mask
from regrow.surgery.oracle import silence
from regrow.surgery.proof import compare, difference

LONGEST = 160  # characters of an error that are quoted
ROUNDED = 1e-4  # of the output, in float32: what is off by more is compared in float64


def works(model: nn.Module, trace: Trace) -> bool:
    """Tell whether all groups of a trace can lose units at once."""
    return _Attempt.of(model, trace).wrong(_several(trace)) is None


def refused(
    model: nn.Module,
    trace: Trace,
    names: Collection[str] | None = None,
    *,
    brought_to_life: bool = False,
) -> dict[str, str]:
    """Return the groups (of some, or all) that cannot lose units, with what breaks without them.

    ``brought_to_life`` compares values of a network in which no layer starts at zero.
    """
    groups = [g for g in _several(trace) if names is None or g.name in names]
    attempt = _Attempt.of(model, trace)
    if brought_to_life:
        attempt = replace(attempt, model=enlivened(model, attempt.trace.example))
    # Groups of a kind are often at fault together, and halves should part them from others.
    return attempt.search(sorted(groups, key=lambda group: group.kind))


def _several(trace: Trace) -> list[Group]:
    return [group for group in trace.groups.values() if group.size > 1]


@dataclass(frozen=True)
class _Attempt:
    """Cuts of one network, tried on one example."""

    model: nn.Module
    trace: Trace

    @classmethod
    def of(cls, model: nn.Module, trace: Trace) -> "_Attempt":
        """Prepare trials; where the example is but a shape, on numbers drawn for it."""
        draw = seeded(0, "trial")

        def filled(leaf: Any) -> Any:
            return drawn_like(leaf, draw) if isinstance(leaf, Tensor) and is_blank(leaf) else leaf

        return cls(model, replace(trace, example=tree_map(filled, trace.example)))

    def search(self, groups: Sequence[Group]) -> dict[str, str]:
        """Find by halving the groups that are at fault, in a set of them."""
        if not groups:
            return {}
        wrong = self.wrong(groups)
        if wrong is None:
            return {}
        if len(groups) == 1:
            wrong = wrong or self.wrong(groups, others=True)
            return {groups[0].name: wrong} if wrong else {}
        half = len(groups) // 2
        parts = self.search(groups[:half]) | self.search(groups[half:])
        if not parts and wrong:  # each half can go, both cannot
            return {group.name: wrong for group in groups}
        return parts

    def wrong(self, groups: Sequence[Group], *, others: bool = False) -> str | None:
        """Say what is wrong when groups are cut; "" if they cannot be cut at the same time.

        With ``others`` other units stay: a layer may hold only some of a group's.
        """
        kept = {g.name: some(g, more=i % 2 == 1) for i, g in enumerate(groups)}
        mask = Mask(unit="channel", kept={n: k.flip(0) if others else k for n, k in kept.items()})
        small = duplicate(self.model, sharing=True)
        try:
            cut_(small, mask, self.trace, for_trial=True)
        except TraceError:  # a layer would be emptied, which says nothing about any of them
            return ""
        output, breaks = what_breaks(small, self.trace)
        del small
        if breaks is None and self.trace.outputs is not None:
            breaks = self._off(mask, output)
        return None if breaks is None else _short(f"with {_counts(mask)} it {breaks}")

    def _off(self, mask: Mask, output: Any) -> str | None:
        """Say how far off an output is, if it is; None too if the network cannot be compared."""
        try:
            quiet = silence(self.model, mask, self.trace)
            off = difference(output, called(quiet, self.trace.example))
        except TraceError as error:
            return f"returns something else: {error}"
        if math.isnan(off) or off <= ROUNDED:
            return None
        compared = compare(self.model, mask, self.trace, [self.trace.example])
        if compared.ok or compared.blind or math.isnan(compared.error):
            return None
        return f"computes something else, by {compared.error:.1g} of its output"


def some(group: Group, *, more: bool) -> Tensor:
    """Choose over half of some units: a prime number, which no code divides or multiplies to.

    With ``more`` it is the next one, so that groups of one size come apart.
    """
    primes = (n for n in range(group.size // 2 + 1, group.size) if _is_prime(n))
    first = next(primes, 1)
    num = next(primes, first) if more else first
    kept = torch.zeros(group.size, dtype=torch.bool)
    kept[torch.linspace(0, group.size - 1, num).round().long()] = True
    return kept


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % n for n in range(2, math.isqrt(number) + 1))


def _counts(mask: Mask) -> str:
    if len(mask.kept) > 1:
        return "part of them"
    (kept,) = mask.kept.values()
    return f"{int(kept.sum())} of {len(kept)}"


def _short(message: str) -> str:
    line = message.splitlines()[0]
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 3]}..."
