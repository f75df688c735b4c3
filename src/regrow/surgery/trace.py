"""Trace a network into groups: the channels of several layers that live and die together."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from regrow.errors import TraceError
from regrow.surgery.colours import WHOLE, ZERO, Colours, Paint, ViewConflictError
from regrow.surgery.rules import RULES
from regrow.surgery.tape import Node, Ref, Tape, record

Role = Literal["producer", "norm", "reader", "mover-in", "mover-out"]
Kind = Literal["conv", "linear", "stream", "view"]


@dataclass(frozen=True, eq=False)
class Slot:
    """Where a group's units lie in one dimension of one tensor.

    ``units[i]`` is the unit at position i, or -1 where the position belongs to none of the group's.
    For the roles ``mover-in`` and ``mover-out`` the tensor is the data that enters or leaves the
    module called ``tensor``.
    """

    tensor: str
    dim: int
    units: Tensor
    role: Role


@dataclass(frozen=True, eq=False)
class Group:
    """Units (channels) that can be cut, and everything that each of them touches.

    ``kind``: ``conv`` and ``linear`` have one producer; a ``stream`` has several, united by
    residual additions; a ``view`` is a norm's own selection of a stream's channels. ``norms`` are
    the modules that normalise the units without changing them.
    """

    name: str
    kind: Kind
    size: int
    slots: tuple[Slot, ...]
    norms: tuple[str, ...]

    def producers(self) -> tuple[Slot, ...]:
        """Return the weights (not biases) whose output dimension holds the units."""
        return tuple(s for s in self.slots if s.role == "producer" and s.tensor.endswith("weight"))

    def sum(self, values: Callable[[str], Tensor], *, role: Role = "producer") -> Tensor:
        """Add up, for each unit, what it owns of the weights that produce (or normalise) it.

        Args:
            values: from the name of a parameter to numbers of its shape.
            role: ``producer`` for the weights behind the units, ``norm`` for the scales of norms.

        Returns:
            ``[size]``; a ``TraceError`` if the group has no such weights.
        """
        total = torch.zeros(self.size)
        mine = {f"{norm}.weight" for norm in self.norms}
        slots = [s for s in self.slots if s.role == role and s.tensor.endswith("weight")]
        slots = [s for s in slots if role != "norm" or s.tensor in mine]
        if not slots:
            raise TraceError(
                f"The group {self.name!r} ({self.kind}) has no {role} weights to score."
            )
        for slot in slots:
            parts = values(slot.tensor).movedim(slot.dim, 0).reshape(len(slot.units), -1).sum(1)
            here = slot.units >= 0
            total.index_add_(0, slot.units[here], parts[here].to(total))
        return total

    def readers(self) -> tuple[Slot, ...]:
        """Return the weights whose input dimension holds the units."""
        return tuple(s for s in self.slots if s.role == "reader")


@dataclass(frozen=True, eq=False)
class Trace:
    """A network's groups by name in the order of computation, and what is kept whole, with why."""

    groups: Mapping[str, Group]
    whole: Mapping[str, str]
    views: frozenset[str]  # norms that select from a stream
    example: Tensor

    def group(self, name: str) -> Group:
        """Return one group; a ``TraceError`` lists the names there are."""
        if name not in self.groups:
            raise TraceError(
                f"No group {name!r} in this network. Groups: {', '.join(self.groups)}."
            )
        return self.groups[name]


@dataclass(frozen=True)
class _Mark:
    """Colours along one dimension of a tensor, as met while painting."""

    tensor: str
    dim: int
    ids: Tensor
    role: Role


@dataclass
class Painter:
    """Carry colours through a tape, and note where they lie in every parameter."""

    tape: Tape
    views: frozenset[str]
    movers: frozenset[str]
    colours: Colours = field(default_factory=Colours)
    paints: dict[int, Paint] = field(default_factory=dict)
    marks: list[_Mark] = field(default_factory=list)
    opened: dict[str, Tensor] = field(default_factory=dict)  # view norms -> their colours
    norms: list[tuple[str, Tensor]] = field(default_factory=list)
    linear: dict[str, bool] = field(default_factory=dict)  # producers -> whether they are linear
    _seen: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    _moved: dict[int, tuple[str, tuple[int, ...]]] = field(default_factory=dict)

    def run(self) -> None:
        """Paint every value."""
        for index in self.tape.inputs:
            shape = tuple(self.tape.values[index].shape)
            self.paints[index] = Paint(torch.full((1,) * len(shape), WHOLE), shape)
        for node in self.tape.nodes:
            if any(self.is_painted(Ref(i)) for i in node.refs()):
                RULES.get(node.name, Painter.unknown)(self, node)
            else:
                self.move_parameter(node)
        for index in self.tape.outputs:
            if index in self.paints:
                self.colours.freeze(self.paints[index].ids, "it is the network's output")
        for name, source, result in self.tape.movers:
            for value, role in ((source, "mover-in"), (result, "mover-out")):
                ids = self.paints[value].along(1)
                if ids is None:
                    raise TraceError(f"The channels that pass {name!r} vary over its map.")
                self.marks.append(_Mark(name, 1, ids, role))  # type: ignore[arg-type]
        self.colours.settle()

    # What rules ask -----------------------------------------------------------------------------

    def is_painted(self, ref: Ref) -> bool:
        """Tell whether a value depends on the input (or is a parameter that was painted)."""
        return ref.index in self.paints

    def of(self, ref: Ref) -> Paint:
        """Return a value's colours."""
        if ref.index not in self.paints:
            shape = tuple(self.value(ref).shape)
            return Paint(torch.full((1,) * len(shape), WHOLE), shape)
        return self.paints[ref.index]

    def value(self, ref: Ref) -> Tensor:
        """Return the recorded tensor."""
        return self.tape.values[ref.index]

    def shape(self, index: int | None) -> tuple[int, ...]:
        """Return the shape of a recorded value."""
        assert index is not None
        return tuple(self.tape.values[index].shape)

    def tensor_name(self, ref: Ref) -> str | None:
        """Return the name of a parameter or buffer, or None."""
        return self.tape.names.get(ref.index)

    def parameter(self, ref: Ref) -> str | None:
        """Return the name of an untouched parameter, or None."""
        return self.tape.names.get(ref.index) if ref.index in self.tape.parameters else None

    def parameter_view(self, ref: Ref) -> tuple[str, tuple[int, ...]] | None:
        """Return (name, order of dimensions) of a permuted parameter, or None."""
        if ref.index in self.tape.parameters:
            return self.tape.names[ref.index], tuple(range(self.value(ref).dim()))
        return self._moved.get(ref.index)

    def is_zero_when_silenced(self, ref: Ref) -> bool:
        """Tell whether a cut channel is exactly zero in this operand."""
        if self.is_painted(ref):
            return self.of(ref).clean
        # A bias added by hand is a producer's: silenced with it. Any other constant is not.
        return ref.index in self.tape.parameters or not bool(self.value(ref).any())

    def unite(self, a: Tensor, b: Tensor) -> Tensor:
        """Unite the colours of two operands under broadcasting; return those of the result."""
        shape = torch.broadcast_shapes(a.shape, b.shape)  # type: ignore[no-untyped-call]
        return self.colours.unite(a.expand(shape), b.expand(shape))

    # What rules do ------------------------------------------------------------------------------

    def put(self, node: Node, result: Paint) -> None:
        """Set the colours of an operation's first result; further ones carry no channels."""
        first, *rest = node.outputs
        assert first is not None
        self.paints[first] = result
        for index in rest:
            if index is not None:
                shape = self.shape(index)
                self.paints[index] = Paint(torch.full((1,) * len(shape), WHOLE), shape)

    def read(self, weight: str, dim: int, ids: Tensor, source: Paint, node: Node) -> None:
        """Note that a weight's input dimension reads these channels."""
        if not source.clean:
            self.keep_whole(
                source, node, "a channel that is cut would not be zero where it is read"
            )
        self._mark(weight, dim, ids, "reader")

    def produce(
        self, weight: str, bias: str | None, dim: int, count: int, *, linear: bool
    ) -> Tensor:
        """Give a producer's output channels their colours."""
        ids = self._seen.get((weight, dim))
        if ids is None:
            ids = self.colours.fresh(count)
            self.linear[weight] = linear
            self._mark(weight, dim, ids, "producer")
            if bias is not None:
                self._mark(bias, 0, ids, "producer")
        return ids

    def pass_through(self, tensor: str, dim: int, ids: Tensor, *, norm: str | None = None) -> None:
        """Note a parameter or buffer with one entry for each channel that passes."""
        self._mark(tensor, dim, ids, "norm")
        if norm is not None:
            self.norms.append((norm, ids))

    def paint_parameter(self, ref: Ref) -> bool:
        """Colour a parameter that takes part in elementwise arithmetic; False if it is none."""
        name = self.parameter(ref)
        if name is None:
            return False
        value = self.value(ref)
        wide = [d for d, size in enumerate(value.shape) if size > 1]
        if len(wide) > 1:
            self.paints[ref.index] = Paint(
                torch.full((1,) * value.dim(), WHOLE), tuple(value.shape)
            )
            return True
        shape = tuple(value.shape)
        ids = self.colours.fresh(value.numel())
        if wide:
            self._mark(name, wide[0], ids, "norm")
            self.paints[ref.index] = Paint(ids.reshape(shape).clone(), shape)
        else:
            self.paints[ref.index] = Paint(torch.full((1,) * value.dim(), ZERO), shape)
        return True

    def move_parameter(self, node: Node) -> None:
        """Follow a parameter through a transposition; other arithmetic on constants is constant."""
        first = node.args[0] if node.args else None
        viewed = self.parameter_view(first) if isinstance(first, Ref) else None
        output = node.outputs[0] if node.outputs else None
        if viewed is None or output is None:
            return
        name, order = viewed
        operation = node.name.removeprefix("aten::")
        rank = len(order)
        if operation in ("detach", "alias"):
            self._moved[output] = (name, order)
        elif operation == "t":
            self._moved[output] = (name, tuple(reversed(order)))
        elif operation == "transpose":
            a, b = (int(d) % rank for d in node.args[1:3])
            swapped = list(order)
            swapped[a], swapped[b] = swapped[b], swapped[a]
            self._moved[output] = (name, tuple(swapped))
        elif operation == "permute":
            self._moved[output] = (name, tuple(order[int(d) % rank] for d in node.args[1]))

    def keep_whole(self, source: Paint, node: Node, reason: str) -> None:
        """Freeze the channels of a value."""
        where = f" in {node.module!r}" if node.module else ""
        self.colours.freeze(source.ids, f"{reason}{where}")

    def unknown(self, node: Node) -> None:
        """Keep everything whole that enters an operation whose channels cannot be followed."""
        for index in node.refs():
            if index in self.paints:
                self.keep_whole(self.paints[index], node, f"'{node.name}' cannot be followed")
        for output in node.outputs:
            if output is not None:
                shape = self.shape(output)
                self.paints[output] = Paint(torch.full((1,) * len(shape), WHOLE), shape)

    def _mark(self, tensor: str, dim: int, ids: Tensor, role: Role) -> None:
        seen = self._seen.get((tensor, dim))
        if seen is not None:
            self.colours.unite(seen, ids)
            return
        self._seen[tensor, dim] = ids
        self.marks.append(_Mark(tensor, dim, ids, role))


def trace(model: nn.Module, example: Tensor | Sequence[int], *, keep: Sequence[str] = ()) -> Trace:
    """Find the groups of a network by running it once on an example.

    Args:
        model: any network; it is left as it was.
        example: an input ``[N, ...]``, or its shape; one sample of it is run.
        keep: names of modules (or prefixes of names) whose output channels stay whole.

    Raises:
        TraceError: the network fails on the example, or a name in ``keep`` is none of its modules.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten())
    >>> [(g.name, g.kind, g.size) for g in trace(net, (1, 3, 8, 8)).groups.values()]
    [('0', 'conv', 8)]
    """
    names = {name for name, _ in model.named_modules()}
    for name in keep:
        if name not in names:
            raise TraceError(f"keep: the network has no module {name!r}.")
    sample = _sample(model, example)
    tape = record(model, sample)
    movers = frozenset(name for name, _, _ in tape.movers)
    views = _candidate_views(tape)
    while True:
        painter = Painter(tape, views, movers)
        try:
            painter.run()
            break
        except ViewConflictError as conflict:
            views = views - {conflict.norm}
    for mark in painter.marks:
        if mark.role == "producer" and any(_within(mark.tensor, module) for module in keep):
            painter.colours.freeze(mark.ids, "asked to be kept")
    return _assemble(painter, sample)


def _sample(model: nn.Module, example: Tensor | Sequence[int]) -> Tensor:
    first = next(model.parameters(), None)
    if isinstance(example, Tensor):
        sample = example[:1].detach().clone()
    else:
        sample = torch.zeros(1, *tuple(example)[1:])
    return sample if first is None or not sample.is_floating_point() else sample.to(first)


def _within(tensor: str, module: str) -> bool:
    return tensor == module or tensor.startswith(f"{module}.")


_PRODUCERS = {"aten::convolution", "aten::_convolution", "aten::addmm", "aten::mm", "aten::linear"}
_NORMS = {name for name in RULES if "batch_norm" in name}


def _candidate_views(tape: Tape) -> frozenset[str]:
    """Name the norms that read a shared stream rather than one producer's own output."""
    users: dict[int, int] = {}
    makers: dict[int, Node] = {}
    for node in tape.nodes:
        for index in node.refs():
            users[index] = users.get(index, 0) + 1
        for output in node.outputs:
            if output is not None:
                makers[output] = node
    views = set()
    for node in tape.nodes:
        if node.name in _NORMS:
            source = node.args[0].index
            maker = makers.get(source)
            alone = users[source] == 1 and maker is not None and maker.name in _PRODUCERS
            if not alone:
                views.add(node.module)
    return frozenset(views)


def _assemble(painter: Painter, sample: Tensor) -> Trace:
    """Gather classes of colours into groups, and everything they touch into slots."""
    colours = painter.colours
    colours.settle()
    owners = _owners(painter)
    group_of = _components(painter, owners)
    members: dict[int, list[int]] = {}  # group -> classes, in order
    names: dict[int, str] = {}
    producers: dict[int, set[str]] = {}
    whole: dict[str, str] = {}
    for owner, ids in owners:
        for root in dict.fromkeys(colours.find(c) for c in ids.tolist()):
            reason = colours.reason(root)
            if reason is not None:
                whole.setdefault(owner, reason)
                continue
            group = group_of[root]
            names.setdefault(group, owner)
            producers.setdefault(group, set()).add(owner)
            if root not in members.setdefault(group, []):
                members[group].append(root)
    unit_of = {
        root: (group, unit) for group, roots in members.items() for unit, root in enumerate(roots)
    }
    slots: dict[int, list[Slot]] = {group: [] for group in members}
    for mark in painter.marks:
        for group, units in _levels(colours, mark.ids, unit_of).items():
            slots[group].append(Slot(mark.tensor, mark.dim, units, mark.role))
    norms: dict[int, list[str]] = {group: [] for group in members}
    for norm, ids in painter.norms:
        for group in _levels(colours, ids, unit_of, own=True):
            if norm not in norms[group]:
                norms[group].append(norm)
    groups = {}
    for group, roots in members.items():
        name = names[group]
        kind: Kind = "conv"
        if name in painter.opened:
            kind = "view"
        elif len(producers[group]) > 1:
            kind = "stream"
        elif painter.linear.get(f"{name}.weight", False):
            kind = "linear"
        groups[name] = Group(name, kind, len(roots), tuple(slots[group]), tuple(norms[group]))
    return Trace(groups, whole, frozenset(painter.opened), sample)


def _owners(painter: Painter) -> list[tuple[str, Tensor]]:
    """List what gives colours, in order of computation: producers and norms that open views."""
    order = [
        (mark.tensor.removesuffix(".weight"), mark.ids)
        for mark in painter.marks
        if mark.role == "producer" and mark.tensor in painter.linear
    ]
    order += list(painter.opened.items())
    return sorted(order, key=lambda owner: int(owner[1].min()))


def _components(painter: Painter, owners: list[tuple[str, Tensor]]) -> dict[int, int]:
    """Number the groups: producers that share a class are in one group."""
    colours = painter.colours
    group_of: dict[int, int] = {}
    for number, (_, ids) in enumerate(owners):
        roots = {r for r in (colours.find(c) for c in ids.tolist()) if colours.reason(r) is None}
        met = {group_of[root] for root in roots if root in group_of}
        for root, group in list(group_of.items()):
            if group in met:
                group_of[root] = number
        group_of.update(dict.fromkeys(roots, number))
    return group_of


def _levels(
    colours: Colours, ids: Tensor, unit_of: Mapping[int, tuple[int, int]], *, own: bool = False
) -> dict[int, Tensor]:
    """Write colours along a dimension as units: of their own groups and of the streams above."""
    found: dict[int, Tensor] = {}
    for position, colour in enumerate(ids.tolist()):
        chain = colours.chain(colour)
        for root in chain[:1] if own else chain:
            if root in unit_of:
                group, unit = unit_of[root]
                if group not in found:
                    found[group] = torch.full((len(ids),), -1)
                found[group][position] = unit
    return found
