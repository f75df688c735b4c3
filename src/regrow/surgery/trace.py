"""Trace a network into groups: the channels of several layers that live and die together."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn

from regrow.errors import TraceError
from regrow.surgery.colours import WHOLE, ZERO, Classes, Colours, Paint, ViewConflictError, spread
from regrow.surgery.rules import RULES
from regrow.surgery.tape import Node, Ref, Tape, record

Role = Literal["producer", "bias", "norm", "reader", "mover"]
Kind = Literal["conv", "linear", "stream", "view"]


@dataclass(frozen=True, eq=False)
class Slot:
    """Where a group's units lie in one dimension of one tensor.

    ``units[i]`` is the unit at position i, or -1 where the position belongs to none of the group's.
    For the role ``mover`` it is no tensor but the data that enters or leaves a module,
    ``<module>:in`` and ``<module>:out``, or the number of channels that a norm was told,
    ``<module>:width``.
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
        return tuple(s for s in self.slots if s.role == "producer")

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
        slots = [s for s in self.slots if s.role == role and (role != "norm" or s.tensor in mine)]
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
    movers: Mapping[str, tuple[int, int]]  # modules that move channels -> how many enter and leave
    idle: tuple[str, ...]  # parameters that took no part: those of layers that only train
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
    norms: dict[str, Tensor] = field(default_factory=dict)  # norms -> the colours they pass
    linear: dict[str, bool] = field(default_factory=dict)  # producers -> whether they are linear
    fixed: dict[str, str] = field(default_factory=dict)  # parameters that keep their shape -> why
    _seen: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    _marked: set[tuple[str, int, Role]] = field(default_factory=set)
    _moved: dict[int, tuple[str, tuple[int, ...]]] = field(default_factory=dict)

    def run(self) -> None:
        """Paint every value."""
        for index in self.tape.inputs:
            shape = tuple(self.tape.values[index].shape)
            self.paints[index] = Paint(torch.full((1,) * len(shape), WHOLE), shape)
        for node in self.tape.nodes:
            if not any(index in self.paints for index in node.refs()):
                self.move_parameter(node)
            elif "out" in node.kwargs:
                self.unknown(node)
            else:
                RULES.get(node.name, Painter.unknown)(self, node)
            if node.in_place:
                self._follow_aliases(node)
        for index in self.tape.outputs:
            if index in self.paints:
                self.colours.freeze(self.paints[index].ids, "it is the network's output")
        for name, source, result in self.tape.movers:
            self._mark(f"{name}:in", 1, self._channels_of_mover(name, source), "mover")
            self._mark(f"{name}:out", 1, self._channels_of_mover(name, result), "mover")
        for mark in self.marks:
            if mark.tensor in self.fixed:
                self.colours.freeze(mark.ids, self.fixed[mark.tensor])

    def _channels_of_mover(self, name: str, value: int) -> Tensor:
        painted = self.of(Ref(value))
        ids = painted.along(1) if len(painted.shape) > 1 else None
        if ids is None:
            raise TraceError(
                f"The channels that pass {name!r} vary over its map, so its narrow_() cannot be "
                "told which of them stay. Remove that method, and its channels are kept whole."
            )
        return ids

    def _follow_aliases(self, node: Node) -> None:
        """Let other views of memory that was overwritten know what it holds now."""
        result = node.outputs[0]
        if result not in self.paints:
            return
        for index in self.tape.aliases(result):
            if index not in self.paints:
                shape = self.shape(index)
                self.paints[index] = Paint(torch.full((1,) * len(shape), WHOLE), shape)
            elif not self.paints[result].clean:
                self.paints[index] = replace(self.paints[index], clean=False)

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
            self._mark(bias, 0, ids, "bias")
        return ids

    def pass_through(self, tensor: str, dim: int, ids: Tensor, *, norm: str | None = None) -> None:
        """Note a parameter or buffer with one entry for each channel that passes."""
        self._mark(tensor, dim, ids, "norm")
        if norm is not None:
            self.norms.setdefault(norm, ids)

    def pass_width(self, norm: str, ids: Tensor) -> None:
        """Note a norm that knows the number of its channels, but has no tensor of that size."""
        if norm in self.tape.normalisers:
            self._mark(f"{norm}:width", 0, ids, "mover")

    def paint_parameter(self, ref: Ref) -> bool:
        """Colour a parameter that takes part in elementwise arithmetic; False if it is none."""
        name = self.parameter(ref)
        if name is None:
            return False
        value = self.value(ref)
        shape = tuple(value.shape)
        wide = [d for d, size in enumerate(shape) if size > 1]
        if len(wide) > 1:
            self.fixed[name] = "its weights take part in other arithmetic"
            self.paints[ref.index] = Paint(torch.full((1,) * len(shape), WHOLE), shape)
        elif wide:
            ids = self.colours.fresh(value.numel())
            self._mark(name, wide[0], ids, "norm")
            self.paints[ref.index] = spread(ids, shape, wide[0])
        else:
            # One number, which no channel owns: silencing leaves it as it is.
            self.paints[ref.index] = Paint(torch.full((1,) * len(shape), ZERO), shape, clean=False)
        return True

    def move_parameter(self, node: Node) -> None:
        """Follow a parameter through a transposition; other arithmetic on constants is constant."""
        first = node.args[0] if node.args else None
        viewed = self.parameter_view(first) if isinstance(first, Ref) else None
        operation = node.name.removeprefix("aten::")
        if viewed is None or operation not in (*_TRANSPOSITIONS, *_VECTOR_MOVES):
            self._fix_parameters(node)
            return
        assert isinstance(first, Ref)
        if operation in _VECTOR_MOVES:
            if sum(size > 1 for size in self.value(first).shape) <= 1 and self.paint_parameter(
                first
            ):
                RULES[node.name](self, node)
            else:
                self._fix_parameters(node)
            return
        name, order = viewed
        rank = len(order)
        swapped = list(order)
        if operation == "t":
            swapped.reverse()
        elif operation == "transpose":
            a, b = (int(d) % rank for d in node.args[1:3])
            swapped[a], swapped[b] = swapped[b], swapped[a]
        elif operation == "permute":
            swapped = [order[int(d) % rank] for d in node.args[1]]
        output = node.outputs[0]
        assert output is not None
        self._moved[output] = (name, tuple(swapped))

    def _fix_parameters(self, node: Node) -> None:
        """Keep the shapes of parameters whose numbers flow into constants."""
        for index in node.refs():
            viewed = self.parameter_view(Ref(index))
            if viewed is not None:
                self.fixed[viewed[0]] = f"its weights also go through '{node.name}'"

    def keep_whole(self, source: Paint, node: Node, reason: str) -> None:
        """Freeze the channels of a value."""
        where = f" in {node.module!r}" if node.module else ""
        self.colours.freeze(source.ids, f"{reason}{where}")

    def unknown(self, node: Node) -> None:
        """Keep everything whole that enters an operation whose channels cannot be followed."""
        self._fix_parameters(node)
        for index in node.refs():
            if index in self.paints:
                self.keep_whole(self.paints[index], node, f"'{node.name}' cannot be followed")
        for output in node.outputs:
            if output is not None:
                shape = self.shape(output)
                self.paints[output] = Paint(torch.full((1,) * len(shape), WHOLE), shape)

    def _mark(self, tensor: str, dim: int, ids: Tensor, role: Role) -> None:
        seen = self._seen.setdefault((tensor, dim), ids)
        if seen is not ids:
            self.colours.unite(seen, ids)
        if (tensor, dim, role) not in self._marked:
            self._marked.add((tensor, dim, role))
            self.marks.append(_Mark(tensor, dim, ids, role))


# A parameter keeps its name through these: a weight in any order, a vector in any place.
_TRANSPOSITIONS = ("detach", "alias", "t", "transpose", "permute")
_VECTOR_MOVES = ("view", "_unsafe_view", "reshape", "unsqueeze", "squeeze", "expand")


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
    tape = record(model, sample.clone())
    movers = frozenset(name for name, _, _ in tape.movers)
    views = _candidate_views(tape)
    while True:
        painter = Painter(tape, views, movers)
        try:
            painter.run()
        except ViewConflictError as conflict:
            views = views - {conflict.norm}
            continue
        for mark in painter.marks:
            if mark.role in ("producer", "norm") and any(_within(mark.tensor, m) for m in keep):
                painter.colours.freeze(mark.ids, "asked to be kept")
        classes = painter.colours.classes()
        needless = _needless_views(painter, classes)
        if not needless:
            return _assemble(painter, classes, sample)
        views = views - needless


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
    users: Counter[int] = Counter()
    makers: dict[int, Node] = {}
    for node in tape.nodes:
        users.update(node.refs())
        makers.update((output, node) for output in node.outputs if output is not None)
    views = set()
    for node in tape.nodes:
        if node.name in _NORMS:
            source = node.args[0].index
            alone = users[source] == 1 and source in makers and makers[source].name in _PRODUCERS
            if not alone:
                views.add(node.module)
    return frozenset(views)


def _needless_views(painter: Painter, classes: Classes) -> frozenset[str]:
    """Name the views that alone read what one producer makes: to cut them is to cut that one."""
    num_readers = torch.zeros_like(classes.root)
    num_producers = torch.zeros_like(classes.root)
    streams = {name: classes.above[classes.root[ids]] for name, ids in painter.opened.items()}
    for mark in painter.marks:
        if mark.role == "reader" or mark.tensor.endswith(":in"):
            num_readers[torch.unique(classes.root[mark.ids.clamp(min=ZERO)])] += 1
        elif mark.role == "producer":
            num_producers[classes.root[mark.ids]] += 1
    for stream in streams.values():
        num_readers[torch.unique(stream)] += 1
    once = (num_readers == 1) & (num_producers == 1)
    return frozenset(
        name
        for name, stream in streams.items()
        if bool((classes.free(stream) & once[stream]).all())
    )


def _assemble(painter: Painter, classes: Classes, sample: Tensor) -> Trace:
    """Gather classes of colours into groups, and everything they touch into slots."""
    owners = _owners(painter)
    whole = {}
    for owner, ids in owners:
        frozen = classes.root[ids][~classes.free(classes.root[ids])]
        if len(frozen):
            whole[owner] = classes.reason(int(frozen[0]))
    numbering = _Numbering.of(owners, classes)
    slots: dict[int, list[Slot]] = {group: [] for group in numbering.owners}
    for mark in painter.marks:
        for group, units in numbering.levels(mark.ids).items():
            slots[group].append(Slot(mark.tensor, mark.dim, units, mark.role))
    norms: dict[int, dict[str, None]] = {group: {} for group in numbering.owners}
    for norm, ids in painter.norms.items():
        for group in numbering.own(ids):
            norms[group][norm] = None
    groups = {}
    for group, names in numbering.owners.items():
        kind = _kind(painter, names)
        size = numbering.sizes[group]
        groups[names[0]] = Group(names[0], kind, size, tuple(slots[group]), tuple(norms[group]))
    widths = {
        name: (painter.shape(source)[1], painter.shape(result)[1])
        for name, source, result in painter.tape.movers
    }
    used = {index for node in painter.tape.nodes for index in node.refs()}
    idle = tuple(painter.tape.names[i] for i in sorted(painter.tape.parameters - used))
    return Trace(groups, whole, frozenset(painter.opened), widths, idle, sample)


def _owners(painter: Painter) -> list[tuple[str, Tensor]]:
    """List what gives colours, in order of computation: producers and norms that open views."""
    order = [
        (mark.tensor.removesuffix(".weight"), mark.ids)
        for mark in painter.marks
        if mark.role == "producer"
    ]
    order += list(painter.opened.items())
    return sorted(order, key=lambda owner: int(owner[1].min()))


def _kind(painter: Painter, owners: Sequence[str]) -> Kind:
    if owners[0] in painter.opened:
        return "view"
    if len(owners) > 1:
        return "stream"
    return "linear" if painter.linear.get(f"{owners[0]}.weight", False) else "conv"


@dataclass(frozen=True)
class _Numbering:
    """Groups and units by number; producers that share a class are in one group."""

    classes: Classes
    group: Tensor  # [colours] -> group, -1 where there is none
    unit: Tensor  # [colours] -> unit within its group
    owners: Mapping[int, list[str]]
    sizes: Mapping[int, int]
    _known: dict[bytes, dict[int, Tensor]] = field(default_factory=dict)

    @classmethod
    def of(cls, owners: Sequence[tuple[str, Tensor]], classes: Classes) -> "_Numbering":
        group = torch.full_like(classes.root, -1)
        unit = torch.full_like(classes.root, -1)
        names: dict[int, list[str]] = {}
        for number, (owner, ids) in enumerate(owners):
            mine = classes.root[ids]
            mine = mine[classes.free(mine)]
            if not len(mine):
                continue
            met = [g for g in torch.unique(group[mine]).tolist() if g >= 0]
            home = min(met, default=number)
            for other in met[1:]:
                # Two groups are one after all: its units come after those of the first.
                moved = group == other
                unit[moved] += int((group == home).sum())
                group[moved] = home
                names[home] += names.pop(other)
            new = _first_places(mine[group[mine] < 0])
            unit[new] = int((group == home).sum()) + torch.arange(len(new))
            group[new] = home
            names.setdefault(home, []).append(owner)
        sizes = {number: int((group == number).sum()) for number in names}
        return cls(classes, group, unit, names, sizes)

    def levels(self, ids: Tensor) -> Mapping[int, Tensor]:
        """Write colours along a dimension as units: of their own groups and of those above."""
        key = ids.numpy().tobytes()  # many tensors share their colours: a norm's four, its reader
        if key not in self._known:
            self._known[key] = self._levels(ids)
        return self._known[key]

    def _levels(self, ids: Tensor) -> dict[int, Tensor]:
        found: dict[int, Tensor] = {}
        for level in self.classes.levels(ids):
            here = self.group[level]
            for group in torch.unique(here[here >= 0]).tolist():
                units = found.setdefault(group, torch.full_like(ids, -1))
                mine = here == group
                units[mine] = self.unit[level][mine]
        return found

    def own(self, ids: Tensor) -> list[int]:
        """Return the groups that colours belong to, without those above."""
        here = self.group[self.classes.root[ids.clamp(min=ZERO)]]
        groups: list[int] = torch.unique(here[here >= 0]).tolist()
        return groups


def _first_places(values: Tensor) -> Tensor:
    """Drop repetitions, in order of first appearance."""
    return torch.tensor(list(dict.fromkeys(values.tolist())), dtype=torch.long)
