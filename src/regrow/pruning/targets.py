"""The built-in cost targets, and the search for a pruning that meets one.

The search finds the lowest sparsity of the method's own allocation that meets the target. Where one
step removes several units at once (a uniform allocation removes one of every layer), those that
rank highest in their layers are restored as far as the target allows.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from regrow.core.units import UNITS
from regrow.cost.latency import latencies, machine
from regrow.errors import ConfigError, TraceError
from regrow.pruning.costs import CostShare, Measured, cost_target, masked_refusal
from regrow.pruning.layers import Layers, Pruned
from regrow.surgery import Trace
from regrow.surgery.mask import Mask

LARGEST = 1.0 - 1e-12  # sparsity
CLOSE = 1e-4  # share of the unpruned network's cost: how close the search comes
TOLERANCE = 0.005  # further from the target than this, units are restored out of order too
TIMED_TOLERANCE, TIMED_STEPS = 0.01, 12
MOST_TRIES = 600  # of restoring single units
BROKEN = -1.0  # share of a network that cannot be cut this far, so that the search removes less


@cost_target("macs")
def macs(pruned: Pruned, unpruned: Pruned) -> Measured:
    """Multiply-accumulates of one example; weights held at zero do not count."""
    return Measured(pruned.macs / max(unpruned.macs, 1))


@cost_target("parameters")
def parameters(pruned: Pruned, unpruned: Pruned) -> Measured:
    """Parameters of the network; those held at zero do not count."""
    return Measured(pruned.parameters / max(unpruned.parameters, 1))


@cost_target("latency", timed=True)
def latency(pruned: Pruned, unpruned: Pruned) -> Measured:
    """Seconds for a batch of 32 on this machine; the record names the machine."""
    example = unpruned.trace.example
    networks = (pruned.small, unpruned.small)
    short, long = latencies(*networks, example=example, device=pruned.device)
    seconds = {"seconds": short, "unpruned_seconds": long}
    return Measured(short / long, {**seconds, **machine(pruned.device)})


def measure_cost(
    cost: CostShare, network: nn.Module, trace: Trace, *, mask: Mask, device: str = "cpu"
) -> Measured:
    """Measure the cost of the network that a mask leaves, on that network itself."""
    pruned = Pruned(network=network, trace=trace, mask=mask, device=device)
    return cost.target.function(pruned, replace(pruned, mask=None))


NOTABLE = 0.05  # share of the parameters: less kept whole does not explain a missed target

Allocate = Callable[[float], Mapping[str, Tensor]]


def reach(layers: Layers, allocate: Callable[[Layers, float], Any], cost: CostShare) -> Mask:
    """Choose the units to keep by an allocation, so that the network costs at most a share.

    Raises:
        ConfigError: no sparsity reaches the share; the message says which can be reached.
    """
    layers = check_reachable(layers, allocate, cost)
    search = _timed if cost.target.timed else _counted
    mask = search(_Choices(layers, partial(allocate, layers), cost))
    counts_agree = layers.counts is None or _agree(layers, mask)
    if not cost.target.timed and not counts_agree:  # weights are used outside of their layers
        slow = replace(layers, quick=False)
        mask = _counted(_Choices(slow, partial(allocate, slow), cost))
    return mask


def check_reachable(
    layers: Layers, allocate: Callable[[Layers, float], Any], cost: CostShare
) -> Layers:
    """Raise a ``ConfigError`` if removing all that a method may remove still leaves too much.

    Returns:
        The layers. They count costs on the cut network if only that shows the cost to be in reach,
        as in networks that multiply by computed weights (such as standardised ones).
    """
    if cost.target.timed:
        if UNITS.get(layers.unit).masked:
            raise ConfigError(masked_refusal(cost, layers.unit))
        return layers  # measured once, by the search
    for counted in (layers, replace(layers, quick=False)):
        most = _Choices(counted, partial(allocate, counted), cost).at(LARGEST)
        if most.share <= cost.share:
            return counted
        if layers.counts is None:
            break
    raise ConfigError(_out_of_reach(layers, cost, most.share))


def _out_of_reach(layers: Layers, cost: CostShare, least: float) -> str:
    has_other_groups = bool(layers.trace.groups.keys() - layers.groups.keys())
    wider = ", or widen the method's 'scope'" if has_other_groups else ""
    return (
        f"{cost.label} cannot be reached: with everything removed that the method may remove "
        f"({layers.num_units:,} {layers.unit}s in {len(layers)} groups, of which some stay so "
        f"that no layer is empty), {least:.3f} of the unpruned network's {cost.name} is left. Ask "
        f"for a share from {least:.3f} to 1{wider}.{_kept_whole(layers)}"
    )


def _kept_whole(layers: Layers) -> str:
    """Return a sentence on the parameters that are kept whole, if they are many."""
    total = sum(parameter.numel() for parameter in layers.network.parameters())
    reasons = {why: num / total for why, num in layers.trace.reasons(layers.network).items() if num}
    if sum(reasons.values()) < NOTABLE:
        return ""
    parts = [f"{share:.1%} because {why}" for why, share in list(reasons.items())[:3]]
    return f" Of its parameters {sum(reasons.values()):.1%} are kept whole: {'; '.join(parts)}."


def _agree(layers: Layers, mask: Mask) -> bool:
    """Return whether the costs counted without cutting are those of the cut network."""
    quick = replace(layers.unpruned, mask=mask)
    exact = replace(quick, counts=None)
    return (quick.macs, quick.parameters) == (exact.macs, exact.parameters)


@dataclass(frozen=True)
class _Candidate:
    kept: Mapping[str, Tensor]
    share: float  # of the unpruned network's cost that remains


class _Choices:
    """Choices of units to keep, and their costs."""

    def __init__(self, layers: Layers, allocate: Allocate, cost: CostShare) -> None:
        self.layers, self.cost = layers, cost
        self._allocate = allocate
        self._unpruned = layers.unpruned
        self._broken: TraceError | None = None

    def at(self, sparsity: float) -> _Candidate:
        """Return what the allocation keeps at a sparsity."""
        return self.of(self._allocate(sparsity))

    def of(self, kept: Mapping[str, Tensor]) -> _Candidate:
        """Return a choice as it would be cut, with its cost."""
        pruned = self.layers.pruned(kept)
        assert pruned.mask is not None
        flat = {n: s.flatten()[self.layers.left[n]] for n, s in pruned.mask.kept.items()}
        try:
            share = self.cost.target.function(pruned, self._unpruned).share
        except TraceError as error:  # too narrow for what the network does with its layers
            self._broken, share = error, BROKEN
        return _Candidate(flat, share)

    def mask(self, chosen: _Candidate) -> Mask:
        """Return the mask of a candidate; a ``TraceError`` if the network cannot be cut by it."""
        if chosen.share == BROKEN and self._broken is not None:
            raise self._broken
        return self.layers.mask(chosen.kept)


def _counted(choices: _Choices) -> Mask:
    """Search for the lowest sparsity, then restore single units as far as the target allows."""
    layers, wanted = choices.layers, choices.cost.share
    low, high = 0.0, LARGEST
    above, below = choices.at(low), choices.at(high)
    if above.share <= wanted:
        return choices.mask(above)
    while high - low > 1.0 / (4 * layers.num_units) and wanted - below.share > CLOSE:
        middle = (low + high) / 2
        candidate = choices.at(middle)
        if candidate.share <= wanted:
            high, below = middle, candidate
        else:
            low, above = middle, candidate
    return choices.mask(_filled(choices, above, below))


def _filled(choices: _Choices, above: _Candidate, below: _Candidate) -> _Candidate:
    """Restore units of a choice below the target, as far as the target allows.

    First those that the next lower sparsity would keep; if the target is then missed by more than
    a tolerance, others too. Of both, those that rank highest in their groups come first.
    """
    wanted, layers = choices.cost.share, choices.layers
    full: set[str] = set()  # groups to which no further multiple of units can be restored
    for first, tolerance in ((True, CLOSE), (False, TOLERANCE)):
        for number, (name, unit) in enumerate(_by_rank(layers, above, below, first=first)):
            if wanted - below.share <= tolerance or number >= MOST_TRIES:
                break
            if below.kept[name][unit] or name in full:
                continue
            more = choices.of(layers.restored(below.kept, name, unit))
            if more.share <= wanted:
                below = more
            elif layers.multiple_of > 1:
                full.add(name)
    return below


def _by_rank(
    layers: Layers, above: _Candidate, below: _Candidate, *, first: bool
) -> Iterator[tuple[str, int]]:
    """Yield removed units, those of highest rank in their groups first; equal ranks by score.

    Of each group, which may have millions, no more than ``MOST_TRIES``.
    """
    ranked: list[tuple[float, float, int, str, int]] = []
    for name, scores in layers.items():
        gone = ~below.kept[name] & (above.kept[name] if first else ~above.kept[name])
        if not bool(gone.any()):
            continue
        ranks = torch.empty(len(scores), dtype=torch.long)
        ranks[torch.argsort(scores, stable=True)] = torch.arange(len(scores))
        mean = float(scores.abs().mean()) or 1.0
        units = gone.nonzero().flatten()
        best = torch.topk(ranks[units], min(MOST_TRIES, len(units))).indices
        for unit in units[best].tolist():
            rank = (int(ranks[unit]) + 1) / len(scores)
            ranked.append((-rank, -float(scores[unit]) / mean, len(ranked), name, unit))
    yield from ((name, unit) for *_, name, unit in sorted(ranked))


def _timed(choices: _Choices) -> Mask:
    """Search for a sparsity whose network takes close to the target share of time, and no more."""
    wanted, low, high = choices.cost.share, 0.0, LARGEST
    best = choices.at(high)
    if best.share > wanted:
        raise ConfigError(_out_of_reach(choices.layers, choices.cost, best.share))
    for _ in range(TIMED_STEPS):
        middle = (low + high) / 2
        candidate = choices.at(middle)
        if candidate.share > wanted:
            low = middle
            continue
        high, best = middle, candidate
        if wanted - candidate.share <= TIMED_TOLERANCE:
            break
    return choices.mask(best)
