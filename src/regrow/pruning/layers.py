"""The layers that a method prunes, as an allocation sees them: scores, shapes and costs."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from regrow.core.units import UNITS, Unit
from regrow.cost import Counted, count, measure
from regrow.surgery import Group, Trace, shrink
from regrow.surgery.cut import duplicate
from regrow.surgery.mask import Mask, apply_, filter_dim, kept_weights, layer_of


@dataclass(frozen=True, eq=False, kw_only=True)
class Layers(Mapping[str, Tensor]):
    """The groups that a method prunes: a mapping from their names to the scores of their units.

    Scores are ``[units]``; in a network that was pruned before, of the units that are left. An
    allocation that needs no more uses it as a mapping; others use its shapes and costs.

    Attributes:
        unit: the name of the unit.
        scores: of all units of each group, ``[units]``.
        left: the units that were not removed before, ``[units]`` booleans.
        multiple_of: each layer keeps a multiple of this number of channels, or all of them.
    """

    network: nn.Module
    trace: Trace
    unit: str
    groups: Mapping[str, Group]
    scores: Mapping[str, Tensor]
    left: Mapping[str, Tensor]
    quick: bool = True  # whether costs are counted without cutting
    device: str = "cpu"  # where a latency is measured
    multiple_of: int = 1

    def __getitem__(self, name: str) -> Tensor:
        return self.scores[name][self.left[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self.scores)

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def num_units(self) -> int:
        """Count the units that are left."""
        return sum(int(left.sum()) for left in self.left.values())

    def weight_shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of the weight of a group's units, such as ``(out, in, kh, kw)``."""
        return tuple(self.network.get_parameter(self._weight(name)).shape)

    def input_dim(self, name: str) -> int:
        """Return which dimension of that weight is the input dimension."""
        return 1 - filter_dim(layer_of(self._weight(name), self.network))

    def _weight(self, name: str) -> str:
        group = self.groups[name]
        tensors = [slot.tensor for slot in (*group.producers(), *group.slots)]
        known = dict(self.network.named_parameters())
        if not known.keys() & {*tensors}:  # it shares a weight whose first name is another
            known = dict(self.network.named_parameters(remove_duplicate=False))
        return next(tensor for tensor in tensors if tensor in known)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a group's mask: the weight's for single weights, else [units]."""
        return self._unit.shape(self.network, self.groups[name])

    def whole(self, name: str) -> Tensor:
        """Return a group's scores in that shape, minus infinity for units removed before."""
        scores = self.scores[name].masked_fill(~self.left[name], -torch.inf)
        return scores.reshape(self.shape(name))

    def part(self, name: str, units: Tensor) -> "Layers":
        """Return the layers of a single group, limited to some of its units."""
        left = {name: self.left[name] & units}
        return replace(self, scores={name: self.scores[name]}, left=left)

    def after(self, mask: Mask, scores: Mapping[str, Tensor]) -> "Layers":
        """Return the layers with new scores; units that a mask removed rank below all others."""
        least = min(float(score.min()) for score in scores.values())
        last = least - max(1.0, abs(least))
        below = {n: s.masked_fill(~mask.kept[n].flatten(), last) for n, s in scores.items()}
        return replace(self, scores=below)

    def mask(self, kept: Mapping[str, Tensor]) -> Mask:
        """Make a mask of an allocation's choice among the units that are left.

        Layers that must not be emptied keep at least one unit.
        """
        chosen = {n: left.masked_scatter(left, kept[n]) for n, left in self.left.items()}
        empty = {name for name, stays in chosen.items() if not bool(stays.any())}
        chosen = {name: self._rounded(name, stays) for name, stays in chosen.items()}
        guarded: tuple[str, ...] = ()
        if self._unit.keep_alive is not None:
            chosen, restored = self._unit.keep_alive(chosen, self.scores, self.trace)
            guarded = tuple(name for name in chosen if name in empty or name in restored)
        shaped = {name: stays.reshape(self.shape(name)) for name, stays in chosen.items()}
        return Mask(unit=self.unit, kept=shaped, guarded=guarded)

    def _rounded(self, name: str, stays: Tensor) -> Tensor:
        """Round a choice of channels to the nearest multiple above zero, by the highest scores."""
        step = self.multiple_of
        if step == 1 or not _are_channels(self.groups[name]):
            return stays
        num, most = int(stays.sum()), int(self.left[name].sum())
        if num == most or (num and num % step == 0):
            return stays
        wanted = min(max(step, (2 * num + step) // (2 * step) * step), most)
        # Chosen units rank above all others that are left.
        ranks = self.scores[name].masked_fill(~self.left[name], -torch.inf).argsort().argsort()
        best = (ranks + stays * len(ranks)).topk(wanted).indices
        return torch.zeros_like(stays).index_fill(0, best, value=True)

    def restored(self, kept: Mapping[str, Tensor], name: str, unit: int) -> dict[str, Tensor]:
        """Return a choice with one more unit, or with ``multiple_of`` more."""
        more = {n: stays.clone() for n, stays in kept.items()}
        gone = self[name].masked_fill(kept[name], -torch.inf)
        num = min(self.multiple_of, int((~kept[name]).sum()))
        more[name][[unit] if num == 1 else gone.topk(num).indices] = True
        return more

    def pruned(self, kept: Mapping[str, Tensor]) -> "Pruned":
        """Return the network that a choice would leave, for its costs; nothing is cut yet."""
        return replace(self.unpruned, mask=self.mask(kept))

    @property
    def unpruned(self) -> "Pruned":
        """The unpruned network, for its costs."""
        return Pruned(
            network=self.network, trace=self.trace, counts=self.counts, device=self.device
        )

    def macs(self, kept: Mapping[str, Tensor]) -> int:
        """Count the MACs of one example in the network that an allocation's choice leaves."""
        return self.pruned(kept).macs

    def parameters(self, kept: Mapping[str, Tensor]) -> int:
        """Count the parameters of the network that an allocation's choice leaves."""
        return self.pruned(kept).parameters

    @property
    def counts(self) -> Counted | None:
        """The unpruned network's costs by parameter; None if costs need the network to be cut."""
        can = self._unit.masked or self._unit.sizes is not None
        return self._counted if self.quick and can else None

    @cached_property
    def _counted(self) -> Counted:
        return count(self.network, self.trace.example)

    @property
    def _unit(self) -> Unit:
        return UNITS.get(self.unit)


def _are_channels(group: Group) -> bool:
    """Return whether each unit is one channel, not a head or a group of a convolution."""
    slots = [slot for slot in group.slots if slot.role in ("producer", "norm")]
    return all(
        len(torch.unique(units)) == len(units)
        for units in (slot.units[slot.units >= 0] for slot in slots)
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class Pruned:
    """A choice of units, and the costs of the network that it leaves.

    With ``counts``, the costs of the unpruned network by parameter, nothing is cut to count: each
    layer's MACs shrink in proportion to its weights. Without, costs are counted on the pruned
    network itself.
    """

    network: nn.Module  # unpruned
    trace: Trace
    mask: Mask | None = None  # None: the unpruned network
    counts: Counted | None = None
    device: str = "cpu"  # where a latency is measured

    @property
    def macs(self) -> int:
        """The MACs of one example."""
        return self._costs[0]

    @property
    def parameters(self) -> int:
        """The number of parameters."""
        return self._costs[1]

    @cached_property
    def small(self) -> nn.Module:
        """The pruned network."""
        if self.mask is None:
            return self.network
        if not UNITS.get(self.mask.unit).masked:
            return shrink(self.network, self.mask, self.trace)
        small = duplicate(self.network)
        apply_(small, self.mask)
        return small

    @cached_property
    def _costs(self) -> tuple[int, int]:
        if self.counts is None:
            cost = measure(self.small, self.trace.example, self.mask)
            return cost.macs, cost.parameters
        macs, parameters = self.counts.cost.macs, self.counts.cost.parameters
        for name, size in self._sizes().items():
            numel = self.network.get_parameter(name).numel()
            of_layer = self.counts.by_parameter.get(name, 0)
            macs -= of_layer - of_layer * size // numel
            parameters -= numel - size
        return macs, parameters

    def _sizes(self) -> dict[str, int]:
        if self.mask is None:
            return {}
        unit = UNITS.get(self.mask.unit)
        if unit.sizes is not None:
            return unit.sizes(self.mask, self.network, self.trace)
        weights = kept_weights(self.mask, self.network)
        return {name: int(kept.sum()) for name, kept in weights.items()}
