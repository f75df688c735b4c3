"""Paint a recorded network: pass colours through every operation, and record where they lie."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from regrow.errors import TraceError
from regrow.surgery.colours import WHOLE, ZERO, Colours, Paint, paint, spread
from regrow.surgery.groups import OVER, WIDTH, Role, belongs
from regrow.surgery.operators import EMBEDDINGS, MADE_ANEW, NORMS, PRODUCERS
from regrow.surgery.parameters import Laid, follow
from regrow.surgery.tape import Node, Ref, Tape


@dataclass(frozen=True)
class Mark:
    """Colours along one dimension of a tensor, found while painting."""

    tensor: str
    dim: int
    ids: Tensor
    role: Role


Rule = Callable[["Painter", Node], None]  # what an operation does to colours


@dataclass
class Painter:
    """Passes colours through a tape, and records where they lie in every parameter.

    ``rules`` give, by the name of an operation, what it does to colours; an operation without a
    rule keeps its inputs whole. ``coupled`` are weights whose outputs are removed together with the
    inputs at their positions, because the network's code derives the number of attention heads from
    the width of its input. ``even`` are weights of grouped convolutions of which every group loses
    the same channels, and no whole group is removed.
    """

    tape: Tape
    views: frozenset[str]
    movers: frozenset[str]
    rules: Mapping[str, Rule] = field(kw_only=True)
    after: Rule = field(kw_only=True)  # called after each operation
    coupled: frozenset[str] = field(default=frozenset(), kw_only=True)
    even: frozenset[str] = field(default=frozenset(), kw_only=True)
    colours: Colours = field(default_factory=Colours)
    paints: dict[int, Paint] = field(default_factory=dict)
    marks: list[Mark] = field(default_factory=list)
    opened: dict[str, Tensor] = field(default_factory=dict)  # view norms -> their colours
    norms: dict[str, Tensor] = field(default_factory=dict)  # norms -> the colours that they pass on
    linear: dict[str, bool] = field(default_factory=dict)  # producers -> whether they are linear
    fixed: dict[str, str] = field(default_factory=dict)  # parameters that keep their shape -> why
    computed: dict[str, str] = field(default_factory=dict)  # those used after arithmetic -> why
    divided: set[str] = field(default_factory=set)  # grouped convolutions' weights, if evenly cut
    grouped: set[str] = field(default_factory=set)  # grouped convolutions
    measured: set[str] = field(default_factory=set)  # norms with statistics over channels
    # Statistics over other dimensions than channels: module, size, dimension from the end.
    plain: set[tuple[str, int, int]] = field(default_factory=set)
    held: set[tuple[str, int]] = field(default_factory=set)  # dimensions that are never cut
    added: list[Tensor] = field(default_factory=list)  # colours of data that was added to data
    heads: list[Tensor] = field(default_factory=list)  # colours of attention heads
    # Module and a number that it holds -> colours of the channels that this counts.
    counted: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    _seen: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    _marked: set[tuple[str, int, Role]] = field(default_factory=set)
    _laid: dict[int, Laid] = field(default_factory=dict)
    _held: dict[str, str] = field(default_factory=dict)  # buffers that keep their shape -> why
    _unread: set[tuple[str, int]] = field(default_factory=set)  # readers that silencing zeroes
    _kept_values: set[str] = field(default_factory=set)  # tensors that silencing does not change
    entered: dict[str, str] = field(default_factory=dict)  # readers of whole data -> its origin
    _origins: dict[int, str] = field(default_factory=dict)  # values where whole data begins -> why
    _makers: dict[int, Node] = field(default_factory=dict)  # values -> operations that made them
    _running: Node | None = None

    def run(self) -> None:
        """Paint every value."""
        for index in self.tape.inputs:
            shape = tuple(self.tape.values[index].shape)
            self.paints[index] = Paint(torch.full((1,) * len(shape), WHOLE), shape)
            self._origins[index] = "the network's input"
        self.colours.origin = self.origin
        for node in self.tape.nodes:
            self._running = node
            self._makers.update((index, node) for index in node.outputs if index is not None)
            if not self._makes_data(node):
                follow(self, node)
            elif self.tape.compiled and self._is_compiled(node):
                self.unknown(node, "it enters a module that torch.jit compiled")
            elif "out" in node.kwargs:
                self.unknown(node)
            else:
                self.rules.get(node.name, Painter.unknown)(self, node)
            self.after(self, node)
            if node.in_place:
                self._follow_aliases(node)
        for index in self.tape.outputs:
            if index in self.paints:
                painted = self.paints[index]
                statistic = painted.statistic
                over = [] if statistic is None else [statistic.ids]
                for ids in (painted.ids, *over):
                    self.colours.freeze(ids, "it is the network's output")
        for name, source, result in self.tape.movers:
            self._mark(f"{name}:in", 1, self._channels_of_mover(name, source), "mover")
            self._mark(f"{name}:out", 1, self._channels_of_mover(name, result), "mover")
        self._couple()
        self._make_boxes()
        for mark in self.marks:
            if (*_statistics(mark.tensor), mark.dim) in self.plain:
                self.colours.freeze(
                    mark.ids, "its module also averages over as many positions as it has channels"
                )
            why = self.fixed.get(mark.tensor) or self._held.get(mark.tensor)
            if why:
                self.colours.freeze(mark.ids, why)

    def _makes_data(self, node: Node) -> bool:
        """Return whether an operation takes data, or is a layer on a parameter or a constant."""
        if any(index in self.paints for index in node.refs()):
            return node.name not in MADE_ANEW
        if node.name in NORMS:
            return self.paint_table(node.args[0])
        if node.name == "aten::bmm":
            table, weight = (self.laid(ref) for ref in node.args[:2])
            by_weight = weight is not None and weight.name in self._parameters
            return by_weight and (table is None or table.name not in self._parameters)
        if node.name not in PRODUCERS:
            return False
        data, *weights = node.args[node.name == "aten::addmm" :][:2]
        if node.name in EMBEDDINGS:
            data, weights = weights[0], [data]
        if not any(map(self.weight_view, weights)):
            return False
        return self.paint_table(data) or not self.parameter_view(data)

    def _couple(self) -> None:
        """Unite outputs of coupled weights with inputs: heads with their parts, others singly."""
        heads = torch.unique(self.colours.roots(torch.cat([*self.heads, torch.empty(0).long()])))
        for mark in self.marks:
            read = self._seen.get((mark.tensor, 1 - mark.dim))
            if mark.role != "producer" or mark.tensor not in self.coupled or read is None:
                continue
            made = self.colours.roots(mark.ids)
            if len(made) % len(read):
                continue
            each = torch.tensor(list(dict.fromkeys(made.tolist())))  # in order
            if len(read) % len(each) == 0 and bool(torch.isin(each, heads).all()):
                parts = read.view(len(each), -1)
                self.colours.unite(parts, each[:, None].expand_as(parts))
            else:
                rows = mark.ids.view(-1, len(read))
                self.colours.unite(rows, read.expand_as(rows))

    def _make_boxes(self) -> None:
        """Unite channels that vary along several dimensions, so that they vary along one only.

        Cutting leaves a rectangular tensor only if it removes the same positions everywhere.
        """
        unsettled = [i for i, source in self.paints.items() if len(source.coloured_dims()) > 1]
        while unsettled:
            settled: dict[int, tuple[Tensor, Tensor]] = {}  # many values share their colours
            for index in unsettled:
                source = self.paints[index]
                if id(source.ids) not in settled:
                    settled[id(source.ids)] = source.ids, self.settled(source).ids
                self.paints[index] = replace(source, ids=settled[id(source.ids)][1])
            unsettled = [i for i in unsettled if len(self.paints[i].coloured_dims()) > 1]
            if unsettled:
                index = unsettled.pop(0)  # handled once: ZERO among its colours is never united
                source = self.paints[index]
                varied = source.coloured_dims()
                stays = max(varied, key=lambda dim: (source.ids.shape[dim], -dim))
                self.level(source, [dim for dim in varied if dim != stays])
                self.paints[index] = self.settled(source)

    def _is_compiled(self, node: Node) -> bool:
        """Return whether an operation takes a tensor of a module that torch.jit compiled."""
        names = [self.tensor_name(Ref(index)) for index in node.refs()]
        return any(name and belongs(name, m) for name in names for m in self.tape.compiled)

    def _channels_of_mover(self, name: str, value: int) -> Tensor:
        painted = self.of(Ref(value))
        ids = painted.along(1) if len(painted.shape) > 1 else None
        if ids is None:
            raise TraceError(
                f"The channels of {name!r} vary over its map, so its narrow_() cannot be told "
                "which of them are kept. Remove that method; its channels are then kept whole."
            )
        return ids

    def _follow_aliases(self, node: Node) -> None:
        """Update the paint of other values in memory that an operation has overwritten."""
        result = node.outputs[0]
        if result not in self.paints:
            return
        for index in self.tape.aliases(result):
            if index not in self.paints:
                shape = self.shape(index)
                self.paints[index] = Paint(torch.full((1,) * len(shape), WHOLE), shape)
                self._origins[index] = f"'{node.name}' writes into a part of it{where(node)}"
            elif not self.paints[result].clean:
                self.paints[index] = replace(self.paints[index], clean=False)

    def is_idle(self, node: Node) -> bool:
        """Return whether no output depends on an operation, such as attention's mean over heads."""
        return not node.in_place and self.live.isdisjoint(node.outputs)

    @cached_property
    def live(self) -> frozenset[int | None]:
        """The values that an output depends on."""
        live: set[int | None] = set(self.tape.outputs)
        for node in reversed(self.tape.nodes):
            if node.in_place or not live.isdisjoint(node.outputs):
                live.update(node.refs())
        return frozenset(live)

    # Queries of rules ---------------------------------------------------------------------------

    def is_painted(self, ref: Ref) -> bool:
        """Return whether a value depends on the input (or is a parameter that was painted)."""
        return ref.index in self.paints

    def is_data(self, index: int) -> bool:
        """Return whether a value depends on the input, and is no parameter."""
        return index in self.paints and self.laid(Ref(index)) is None

    def of(self, ref: Ref) -> Paint:
        """Return a value's colours."""
        if ref.index not in self.paints:
            shape = tuple(self.value(ref).shape)
            return Paint(torch.full((1,) * len(shape), WHOLE), shape)
        if len(self.paints[ref.index].coloured_dims()) > 1:
            self.paints[ref.index] = self.settled(self.paints[ref.index])
        return self.paints[ref.index]

    def settled(self, source: Paint) -> Paint:
        """Replace colours by their representatives, so that united ones no longer vary."""
        return replace(source, ids=paint(self.colours.roots(source.ids)).ids)

    def maker(self, ref: Ref) -> Node | None:
        """Return the operation that made a value, if one did."""
        return self._makers.get(ref.index)

    def value(self, ref: Ref) -> Tensor:
        """Return the recorded tensor."""
        return self.tape.values[ref.index]

    def shape(self, index: int | None) -> tuple[int, ...]:
        """Return the shape of a recorded value."""
        assert index is not None
        return tuple(self.tape.values[index].shape)

    def tensor_name(self, ref: Ref) -> str | None:
        """Return the name of a parameter or buffer, or None."""
        return self.parameter(ref) or self.tape.names.get(ref.index)

    def parameter(self, ref: Ref) -> str | None:
        """Return the name of a parameter that is used unchanged (or cast), or None."""
        viewed = self.parameter_view(ref)
        if viewed is None or viewed[1] != tuple(range(len(viewed[1]))):
            return None
        return viewed[0]

    def parameter_view(self, ref: Ref) -> tuple[str, tuple[int, ...]] | None:
        """Return (name, order of dimensions) of a permuted parameter, or None."""
        laid = self.laid(ref)
        if laid is None or not laid.as_it_is or laid.name not in self._parameters:
            return None
        return laid.name, laid.order()

    def weight_view(self, ref: Ref, *, in_parts: bool = False) -> Laid | None:
        """Return the layout of a parameter (or with ``in_parts``, some of its rows) as a weight."""
        laid = self.laid(ref)
        if laid is None or laid.name not in self._parameters:
            return None
        if laid.start is not None and not in_parts:
            return None
        return laid if laid.same_values or laid.standardised is not None else None

    @cached_property
    def _parameters(self) -> frozenset[str]:
        return frozenset(self.tape.names[index] for index in self.tape.parameters)

    def laid(self, ref: Ref) -> Laid | None:
        """Return the layout of a parameter or buffer in a value; None if the value is data."""
        name = self.tape.names.get(ref.index)
        if name is None:
            return self._laid.get(ref.index)
        value = self.value(ref)
        if ref.index not in self.tape.parameters and not value.is_floating_point():
            return None  # positions, and masks
        return Laid(name, tuple(range(value.dim())), tuple(value.shape))

    def unite(self, a: Tensor, b: Tensor) -> Tensor:
        """Unite the colours of two operands under broadcasting; return those of the result."""
        shape = torch.broadcast_shapes(a.shape, b.shape)  # type: ignore[no-untyped-call]
        return self.colours.unite(a.expand(shape), b.expand(shape))

    # Actions of rules ---------------------------------------------------------------------------

    def level(self, source: Paint, dims: Iterable[int]) -> Paint:
        """Unite colours along dimensions that must not be cut, if they vary along others as well.

        Positions in a part of a packed projection, or within an attention head, have separate
        colours until an operation uses all of them.
        """
        varied = source.coloured_dims()
        levelled = [dim for dim in dims if dim in varied]
        if not levelled or len(levelled) == len(varied):
            return source
        first = source.ids
        for dim in levelled:
            first = first.narrow(dim, 0, 1)
        self.colours.unite(source.ids, first.expand_as(source.ids))
        return replace(source, ids=first.clone())

    def align(self, refs: Sequence[Ref]) -> None:
        """Level operands whose channels vary along a dimension over which another is broadcast."""
        painted = [self.of(ref) for ref in refs if self.is_painted(ref)]
        if all(len(source.coloured_dims()) < 2 for source in painted):
            return
        varied = sorted({d - len(p.shape) for p in painted for d in p.coloured_dims()})
        sizes = [(1,) * -varied[0] + self.shape(ref.index) for ref in refs]
        if any(size[d] == 1 for size in sizes for d in varied):
            for source in painted:
                self.level(source, [d + len(source.shape) for d in varied[1:]])

    def put(self, node: Node, result: Paint) -> None:
        """Set the colours of an operation's first result; further ones carry no channels."""
        first, *rest = node.outputs
        assert first is not None
        self.paints[first] = result
        for index in rest:
            if index is not None:
                shape = self.shape(index)
                self.paints[index] = Paint(torch.full((1,) * len(shape), WHOLE), shape)

    def read(self, weight: Laid, dim: int, ids: Tensor, source: Paint) -> None:
        """Record that a weight's input dimension reads these channels."""
        if weight.standardised is not None:  # its statistics run over all of its inputs
            each = math.prod(weight.sizes[1:]) // len(ids)
            over = ids.repeat_interleave(each)
            self.measured.add(weight.standardised)
            self.pass_statistics(weight.standardised, over, -1)
        elif not source.clean:  # silencing has to zero the entries that read it
            self._unread.add((weight.name, dim))
        self._mark(weight.name, dim, ids, "reader")

    def rows(self, weight: str, count: int) -> Tensor:
        """Return the colours of a weight's first dimension."""
        if (weight, 0) not in self._seen:
            self._seen[weight, 0] = self.colours.fresh(count)
        return self._seen[weight, 0]

    def produce(
        self, weight: str, bias: str | None, dim: int, count: int, *, linear: bool, start: int = 0
    ) -> Tensor:
        """Return the colours of a producer's output channels: ``count`` of them, from ``start``."""
        known = self._seen.get((weight, dim))
        if known is None:
            known = self.colours.fresh(count)
        self.linear[weight] = linear
        self._mark(weight, dim, known, "producer")
        ids = known[start : start + count]
        if bias is not None:
            self._mark(bias, 0, ids, "bias")
        return ids

    def produce_groups(self, weight: str, bias: str | None, *, rows: Tensor, out: Tensor) -> None:
        """Record a grouped convolution: the colours of its weight's rows, and of its outputs."""
        self.grouped.add(weight.removesuffix(".weight"))
        self._mark(weight, 0, rows, "producer")
        if bias is not None:
            self._mark(bias, 0, out, "bias")

    def unite_rows(self, channels: Tensor, heads: Tensor) -> None:
        """Divide channels into equal parts, and unite each part with one of the ``heads``."""
        rows = channels.view(len(heads), -1)
        self.colours.unite(rows, heads[:, None].expand_as(rows))

    def pass_through(self, tensor: str, dim: int, ids: Tensor, *, norm: str | None = None) -> None:
        """Record a parameter or buffer with one entry for each of these channels."""
        self._mark(tensor, dim, ids, "norm")
        if norm is not None:
            self.norms.setdefault(norm, ids)

    def pass_statistics(self, module: str, ids: Tensor, dim: int) -> None:
        """Record that a module takes statistics over channels; ``dim`` counts from the end."""
        self._mark(f"{module}{OVER}{len(ids)}", dim, ids, "mover")

    def hold(self, tensor: str, dim: int, *, size: int, why: str) -> None:
        """Keep one dimension of a tensor whole, whatever else is done to it."""
        self.held.add((tensor, dim))
        known = self._seen.setdefault((tensor, dim), self.colours.fresh(size))
        self.colours.freeze(known, why)

    def count(self, module: str, ids: Tensor) -> None:
        """Record that a number in a module counts channels; unite all channels that it counts."""
        known = self.counted.setdefault((module, len(ids)), ids)
        self.colours.unite(known, ids)

    def pass_width(self, norm: str, ids: Tensor, *, dim: int = 0) -> None:
        """Record that a norm holds the number of its channels, as the size of one dimension."""
        self._mark(f"{norm}{WIDTH}", dim, ids, "mover")

    def paint_parameter(self, ref: Ref, *, along: Collection[int] = ()) -> bool:
        """Colour a parameter or buffer that is used in arithmetic; False if that is impossible.

        It may have further dimensions if the channels that it is combined with lie ``along`` one
        (a table of positions that is added to tokens).
        """
        laid = self.laid(ref)
        if laid is None:
            return False
        shape = tuple(self.value(ref).shape)
        wide = [d for d, size in enumerate(shape) if size > 1]
        met = [d for d in along if d in wide]
        if len(along) == len(met) == 1:
            wide = met
        dim = laid.dims[wide[0]] if len(wide) == 1 else None
        if len(wide) > 1 or (wide and dim is None):
            if laid.name not in self._parameters and laid.as_it_is:
                return False
            self.fix(ref, "its weights take part in other arithmetic")
            self.paints[ref.index] = Paint(torch.full((1,) * len(shape), WHOLE), shape)
        elif dim is not None:
            ids = self.colours.fresh(shape[wide[0]])
            self._mark(laid.name, dim, ids, "norm")
            zeroed = laid.same_values and laid.name in self._parameters
            if not zeroed:
                self._kept_values.add(laid.name)
            self.paints[ref.index] = spread(ids, shape, wide[0], clean=zeroed)
        else:
            # A single number belongs to no channel, so silencing does not change it.
            self.paints[ref.index] = Paint(torch.full((1,) * len(shape), ZERO), shape, clean=False)
        return True

    def paint_table(self, ref: Ref) -> bool:
        """Colour the columns of a parameter that is the input of another module's layer."""
        laid = self.laid(ref)
        if laid is None or self._running is None or laid.name not in self._parameters:
            return False
        columns, shape = laid.dims[-1], self.shape(ref.index)
        if not laid.same_values or columns is None or belongs(laid.name, self._running.module):
            return False
        for dim, size in enumerate(laid.sizes):
            if dim != columns and size > 1:
                self.hold(laid.name, dim, size=size, why="a layer runs on each of its rows")
        out = self.produce(laid.name, None, columns, shape[-1], linear=True)
        self.paints[ref.index] = spread(out, shape, len(shape) - 1)
        return True

    def paint_constant(self, ref: Ref, dim: int) -> bool:
        """Colour a constant that is the same all along a dimension; False if it is not.

        Its values suit any channels; whether its size follows their number, a trial decides.
        """
        value = self.value(ref)
        if self.is_painted(ref) or value.is_meta or self.laid(ref) is not None:
            return False
        if not bool((value == value.narrow(dim, 0, 1)).all()):
            return False
        shape = tuple(value.shape)
        clean = not bool(value.any())
        self.paints[ref.index] = spread(self.colours.fresh(shape[dim]), shape, dim, clean=clean)
        return True

    def paint_whole(self, ref: Ref, origin: str) -> None:
        """Keep a constant whole; ``origin`` names it in the reasons of what it is combined with."""
        shape = self.shape(ref.index)
        self.paints[ref.index] = Paint(torch.full((1,) * len(shape), WHOLE), shape)
        self._origins[ref.index] = origin

    def lay(self, node: Node, laid: Laid, output: int | None = None) -> None:
        """Record a parameter's layout in an operation's result, by default the first."""
        output = node.outputs[0] if output is None else output
        assert output is not None
        self._laid[output] = laid

    def compute(self, node: Node) -> None:
        """Record parameters that are used only after arithmetic on them."""
        why = f"its weights go through '{node.name}' before they are used"
        for index in node.refs():
            name = self.fix(Ref(index), why)
            if name is not None:
                self.computed.setdefault(name, why)

    def fix(self, ref: Ref, why: str) -> str | None:
        """Keep the shape of a parameter or buffer; return the name if it is a parameter."""
        laid = self.laid(ref)
        if laid is None:
            return None
        is_parameter = laid.name in self._parameters
        (self.fixed if is_parameter else self._held).setdefault(laid.name, why)
        return laid.name if is_parameter else None

    def zeroed(self, mark: Mark) -> bool:
        """Return whether silencing sets the entries of a mark's units to zero."""
        if mark.role == "reader":
            return (mark.tensor, mark.dim) in self._unread
        # The variance does not matter where the mean is zero, so it is left as it is.
        stays = mark.tensor in self._kept_values or mark.tensor.endswith("running_var")
        return mark.role in ("producer", "bias", "norm") and not stays

    def keep_whole(self, source: Paint, node: Node, reason: str) -> None:
        """Freeze the channels of a value."""
        self.colours.freeze(source.ids, f"{reason}{where(node)}")

    def unknown(self, node: Node, why: str = "") -> None:
        """Keep all inputs of an operation whole, because channels cannot be followed through it."""
        why = why or f"'{node.name}' cannot be followed"
        for index in node.refs():
            self.fix(Ref(index), f"{why}{where(node)}")
            if index in self.paints and not self.is_idle(node):
                self.keep_whole(self.paints[index], node, why)
        for output in node.outputs:
            if output is not None:
                shape = self.shape(output)
                self.paints[output] = Paint(torch.full((1,) * len(shape), WHOLE), shape)
                self._origins[output] = f"{why}{where(node)}"

    def origin(self) -> str:
        """Return where the whole data begins that the current operation takes; "" if none runs.

        If that is not known, the operation itself is named.
        """
        if self._running is None:
            return ""
        queue = self._whole_inputs(self._running)
        for index in queue:
            if index in self._origins:
                return self._origins[index]
            maker = self._makers.get(index)
            inputs = [] if maker is None else self._whole_inputs(maker)
            if maker is not None and not inputs:
                return f"the result of '{maker.name}'{where(maker)}"
            queue += [i for i in inputs if i not in queue]
        return f"an input of '{self._running.name}'{where(self._running)}"

    def _whole_inputs(self, node: Node) -> list[int]:
        painted = [index for index in node.refs() if index in self.paints]
        return [index for index in painted if bool((self.paints[index].ids == WHOLE).any())]

    def _mark(self, tensor: str, dim: int, ids: Tensor, role: Role) -> None:
        if not bool((ids > ZERO).any()):
            self.entered.setdefault(tensor, self.origin())
        seen = self._seen.setdefault((tensor, dim), ids)
        if seen is not ids:
            self.colours.unite(seen, ids)
        if (tensor, dim, role) not in self._marked:
            self._marked.add((tensor, dim, role))
            self.marks.append(Mark(tensor, dim, ids, role))


def _statistics(tensor: str) -> tuple[str, int]:
    """Return the module and size in the name of a mark of statistics, else ("", -1)."""
    module, _, size = tensor.rpartition(OVER)
    return (module, int(size)) if size.isdecimal() else ("", -1)


def where(node: Node) -> str:
    """Return the module that an operation runs in, as the end of a sentence."""
    return f" in {node.module!r}" if node.module else ""
