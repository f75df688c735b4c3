"""The values of surgery: groups of channels that are removed together, and where they are."""

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
OWN_ROLES = ("producer", "bias", "norm")  # of what makes and norms units

WIDTH = ":width"  # after a norm's name: not a tensor but the number of channels it was told
NUMBER = ":number."  # after a module's name: a number that it keeps of its widths, by attribute
OVER = (
    ":over"  # after a module's name: dimensions of that size over which its code takes statistics
)


@dataclass(frozen=True, eq=False)
class Slot:
    """The positions of a group's units in one dimension of one tensor.

    ``units[i]`` is the unit at position i, or -1 where the position belongs to none of the group's.
    For the role ``mover`` it is no tensor but the data that enters or leaves a module,
    ``<module>:in`` and ``<module>:out``, the number of channels that a norm was told,
    ``<module>:width``, or another number that a module keeps, ``<module>:number.num_heads`` (with
    ``dim`` for the entry of a list). A unit of several channels (a group of a grouped convolution
    or of a group norm, an attention head) lies at several positions. ``zeroed``: a silent unit's
    entries are zero here. Those of a reader are where a silent unit is not zero when it arrives (a
    sigmoid): nobody reads it then.
    """

    tensor: str
    dim: int
    units: Tensor
    role: Role
    zeroed: bool = True


@dataclass(frozen=True, eq=False)
class Group:
    """Units (channels) that can be cut, and everything that each of them touches.

    ``kind``: ``conv`` has one producer, and so has ``linear``, or several whose outputs are
    multiplied (a gated feed-forward part); the units of ``grouped`` are the groups of a grouped
    convolution, each with the channels that go in and come out; those of a ``head`` are attention
    heads, each with rows of queries, keys and values and columns of what reads them (where heads
    share keys and values, a unit is a key-value head with its queries' heads); a ``stream`` has
    several producers, united by residual additions; a ``view`` is a norm's own selection of a
    stream's channels; a ``block`` is no channels but a residual block, whose branch is its one
    unit. ``norms`` are the modules that normalise the units without changing them.
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
        """Return the weights that units are scored by: of a role, or those that units own.

        Units own the weights that produce them, those of a view the weights that read them.

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
                f"to score. Take a criterion of other weights, leave {self.kind!r} out of the "
                f"method's scope, or keep the layer whole: trace(..., keep=[{self.name!r}])."
            )
        return slots

    def sum(self, values: Callable[[str], Tensor], *, role: Role | None = None) -> Tensor:
        """Add up, for each unit, what it owns of the weights behind it: of all of them together.

        Args:
            values: from the name of a parameter to numbers of its shape.
            role: ``producer`` for the weights that produce the units, ``reader`` for those that
                read them, ``norm`` for the scales of norms; the producers unless given, and of
                units that nothing produces (views) the readers.

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
        """Write what each unit owns of the weights behind it (see ``sum``) as a vector.

        Returns:
            ``[size, numbers]``, padded with zeros where units own unequally many.
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
        """Return the share of each tensor that the units hold of what makes and norms them."""
        shares: dict[str, float] = {}
        for slot in self.slots:
            if slot.role in OWN_ROLES:
                share = float((slot.units >= 0).double().mean())
                shares[slot.tensor] = max(shares.get(slot.tensor, 0.0), share)
        return shares


@dataclass(frozen=True, eq=False)
class Trace:
    """A network's groups by name in the order of computation, and what is kept whole, with why.

    ``whole`` is by layer, and by parameter where a module with layers inside has some of its own.
    Every parameter of the network lies in a slot of a group or belongs to one of these layers.
    """

    groups: Mapping[str, Group]
    whole: Mapping[str, str]
    views: frozenset[str]  # norms that select from a stream
    movers: Mapping[str, tuple[int, int]]  # modules that move channels -> how many enter and leave
    even: frozenset[str]  # weights of grouped convolutions that lose channels out of every group
    measured: frozenset[str]  # norms whose statistics run over channels that may be cut
    idle: tuple[str, ...]  # parameters that took no part: those of layers that only train
    # Parameters that data meets after arithmetic on them only: their entries are no weights.
    computed: frozenset[str]
    # Shapes of what the network returns for the example; None if they depend on the data itself.
    outputs: tuple[tuple[int, ...], ...] | None
    example: Any  # what the network was run on: see ``tape.call``

    def group(self, name: str) -> Group:
        """Return one group; a ``TraceError`` lists the names there are."""
        if name not in self.groups:
            raise TraceError(
                f"No group {name!r} in this network. Groups: {', '.join(self.groups)}."
            )
        return self.groups[name]

    def held_whole(self, model: nn.Module) -> dict[str, dict[str, int]]:
        """Count what is kept whole: by layer, by parameter, the numbers that lie in no group."""
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
        """Return why parameters of the network are kept whole and how many, the most first."""
        held: Counter[str] = Counter()
        for layer, parameters in self.held_whole(model).items():
            held[self.whole[layer]] += sum(parameters.values())
        return dict(held.most_common())

    def unaccounted(self, model: nn.Module) -> tuple[str, ...]:
        """Name the parameters of the network that are in no group and not in ``whole``: none."""
        grouped = {slot.tensor for group in self.groups.values() for slot in group.slots}
        return tuple(
            name
            for name, _ in model.named_parameters()
            if name not in grouped and not any(belongs(name, layer) for layer in self.whole)
        )


def belongs(tensor: str, layer: str) -> bool:
    """Tell whether a tensor is a layer's own, or of a layer inside, by their names."""
    return layer in ("", tensor) or tensor.startswith(f"{layer}.")
