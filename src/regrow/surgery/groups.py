"""Groups of channels that are removed together, and their positions in a network's tensors."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from regrow.errors import TraceError

Kind = Literal["conv", "linear", "grouped", "head", "stream", "view", "block"]
Role = Literal["producer", "bias", "norm", "reader", "mover"]
OWN_ROLES = ("producer", "bias", "norm")  # of tensors that make or normalise units

# Suffixes of the names of slots that are no tensors:
WIDTH = ":width"  # after a norm's name: its number of channels
NUMBER = ":number."  # after a module's name, before an attribute's: a number that holds a width
OVER = ":over"  # after a module's name, before a size: dimensions over which it takes statistics


@dataclass(frozen=True, eq=False)
class Slot:
    """The positions of a group's units in one dimension of one tensor.

    ``units[i]`` is the unit at position i, or -1 if the position belongs to none of the group's. A
    unit of several channels (a group of a grouped convolution or of a group norm, an attention
    head) has several positions.

    For the role ``mover``, ``tensor`` does not name a tensor but the data that enters or leaves a
    module (``<module>:in``, ``<module>:out``), a norm's number of channels (``<module>:width``),
    another number that a module holds (``<module>:number.num_heads``, with ``dim`` for the entry of
    a list), or dimensions over which a module takes statistics (``<module>:over64``).

    ``zeroed``: the entries of a silenced unit are set to zero here. For a reader this holds if the
    silenced unit is not zero where it is read (after a sigmoid), so that it is ignored.
    """

    tensor: str
    dim: int
    units: Tensor
    role: Role
    zeroed: bool = True


@dataclass(frozen=True, eq=False)
class Group:
    """Units (channels) that can be cut, and all of their positions in tensors.

    ``kind``: ``conv`` and ``linear`` have one producer; ``linear`` may have several whose outputs
    are multiplied (a gated feed-forward part); the units of ``grouped`` are the groups of a grouped
    convolution, each with its input and output channels; those of ``head`` are attention heads,
    each with its rows of queries, keys and values and the columns that read it (where heads share
    keys and values, a unit is a key-value head with its query heads); a ``stream`` has several
    producers, joined by residual additions; a ``view`` is a norm's own selection of a stream's
    channels; a ``block`` is a residual block, whose branch is its single unit. ``norms`` are the
    norms that the units pass through.
    """

    name: str
    kind: Kind
    size: int
    slots: tuple[Slot, ...]
    norms: tuple[str, ...]

    def producers(self) -> tuple[Slot, ...]:
        """Return the weights (not biases) whose output dimension holds the units."""
        return tuple(s for s in self.slots if s.role == "producer")

    def owned(self, role: Role | None = None) -> tuple[Slot, ...]:
        """Return the weights by which units are scored: those of a role, or those they own.

        Units own the weights that produce them; the units of a view own the weights that read them.

        Raises:
            TraceError: the group has no such weights.
        """
        own_scales = {f"{norm}.weight" for norm in self.norms}
        slots = tuple(
            s for s in self.slots if s.role == role and (role != "norm" or s.tensor in own_scales)
        )
        if role is None:
            slots = self.producers() or self.readers()
        if not slots:
            raise TraceError(
                f"The group {self.name!r} ({self.kind}) has no {f'{role} ' if role else ''}weights "
                f"to score. Use a criterion of other weights, leave {self.kind!r} out of the "
                f"method's scope, or keep the layer whole: trace(..., keep=[{self.name!r}])."
            )
        return slots

    def sum(self, values: Callable[[str], Tensor], *, role: Role | None = None) -> Tensor:
        """Sum values over all weights that each unit owns.

        Args:
            values: maps the name of a parameter to numbers of its shape.
            role: ``producer`` for the weights that produce the units, ``reader`` for those that
                read them, ``norm`` for the scales of norms. Default: the producers, or the readers
                of units without producers (views).

        Returns:
            ``[size]``; a ``TraceError`` if the group has no such weights.
        """
        total = torch.zeros(self.size)
        for slot in self.owned(role):
            parts = values(slot.tensor).movedim(slot.dim, 0).reshape(len(slot.units), -1).sum(1)
            present = slot.units >= 0
            total.index_add_(0, slot.units[present], parts[present].to(total))
        return total

    def rows(self, values: Callable[[str], Tensor], *, role: Role | None = None) -> Tensor:
        """Return the values over the weights that each unit owns (see ``sum``), as one vector each.

        Returns:
            ``[size, numbers]``, padded with zeros where units own different numbers of weights.
        """
        parts: list[list[Tensor]] = [[] for _ in range(self.size)]
        for slot in self.owned(role):
            owned = values(slot.tensor).movedim(slot.dim, 0).reshape(len(slot.units), -1)
            for unit, row in zip(slot.units.tolist(), owned, strict=True):
                if unit >= 0:
                    parts[unit].append(row)
        return pad_sequence([torch.cat(own) for own in parts], batch_first=True)

    def readers(self) -> tuple[Slot, ...]:
        """Return the weights whose input dimension holds the units."""
        return tuple(s for s in self.slots if s.role == "reader")

    def held(self) -> dict[str, float]:
        """Return which share of each tensor that makes or normalises the units belongs to them."""
        shares: dict[str, float] = {}
        for slot in self.slots:
            if slot.role in OWN_ROLES:
                share = float((slot.units >= 0).double().mean())
                shares[slot.tensor] = max(shares.get(slot.tensor, 0.0), share)
        return shares


@dataclass(frozen=True, eq=False)
class Trace:
    """A network's groups by name in order of computation, and what is kept whole, with reasons.

    ``whole`` is by layer, or by parameter if its module contains layers, or is only partly whole.
    Every parameter of the network is in a slot of a group or belongs to an entry of ``whole``.
    """

    groups: Mapping[str, Group]
    whole: Mapping[str, str]
    views: frozenset[str]  # norms that select from a stream
    movers: Mapping[str, tuple[int, int]]  # modules that move channels -> how many enter and leave
    even: frozenset[str]  # weights of grouped convolutions that lose channels from every group
    measured: frozenset[str]  # norms whose statistics run over channels that may be cut
    idle: tuple[str, ...]  # unused parameters: their layers may run in training only
    # Parameters that are used only after arithmetic on them: their entries are not plain weights.
    computed: frozenset[str]
    # Shapes of the outputs for the example; None if they depend on its values.
    outputs: tuple[tuple[int, ...], ...] | None
    example: Any  # what the network was run on: see ``tape.call``
    # Numbers in modules, by ``tensor`` and ``dim`` of their slots, that equal a width which can be
    # cut, and stay, because nothing that ran needs them to change.
    unneeded: frozenset[tuple[str, int]] = frozenset()

    def group(self, name: str) -> Group:
        """Return one group; for an unknown name a ``TraceError`` lists all names."""
        if name not in self.groups:
            raise TraceError(
                f"No group {name!r} in this network. Groups: {', '.join(self.groups)}."
            )
        return self.groups[name]

    def held_whole(self, model: nn.Module) -> dict[str, dict[str, int]]:
        """Count the entries that are in no group, by layer that is kept whole and by parameter."""
        left: dict[str, float] = {}
        for group in self.groups.values():
            for name, share in group.held().items():
                left[name] = left.get(name, 1.0) - share
        return {
            layer: {
                name: round(parameter.numel() * max(left.get(name, 1.0), 0.0))
                for name, parameter in model.named_parameters()
                if belongs(name, layer)
            }
            for layer in self.whole
        }

    def reasons(self, model: nn.Module) -> dict[str, int]:
        """Return why parameters are kept whole and how many entries, the most frequent first."""
        held: Counter[str] = Counter()
        for layer, parameters in self.held_whole(model).items():
            held[self.whole[layer]] += sum(parameters.values())
        return dict(held.most_common())

    def unaccounted(self, model: nn.Module) -> tuple[str, ...]:
        """Return the parameters that are in no group and not in ``whole``; there should be none."""
        grouped = {slot.tensor for group in self.groups.values() for slot in group.slots}
        return tuple(
            name
            for name, _ in model.named_parameters()
            if name not in grouped and not any(belongs(name, layer) for layer in self.whole)
        )


def belongs(tensor: str, layer: str) -> bool:
    """Return whether a tensor belongs to a layer or to a layer inside it, by their names."""
    return layer in ("", tensor) or tensor.startswith(f"{layer}.")
