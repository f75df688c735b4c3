"""Rules for how each ATen operation passes on colours.

An operation without a rule keeps its inputs whole. The rules for operations that only move data are
in ``views``, those for norms in ``norms``, for products of two tensors of data in ``attention``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from regrow.surgery.colours import WHOLE, ZERO, Paint, paint, spread
from regrow.surgery.operators import (
    ARITHMETIC,
    COPIES,
    EMBEDDINGS,
    RESIZES,
    SLICES,
    TURNS,
    UNARY,
    names,
)
from regrow.surgery.painter import Painter, Rule, where
from regrow.surgery.parameters import Laid
from regrow.surgery.tape import Node, Ref

RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a function as the rule of operations, e.g. ``"aten::relu"`` (decorator)."""

    def register(function: Rule) -> Rule:
        for name in names:
            RULES[name] = function
        return function

    return register


@rule(*UNARY)
def _unary(painter: Painter, node: Node) -> None:
    """Apply a function of one tensor: colours stay, and silenced channels stay zero if f(0) = 0."""
    data, *rest = node.args
    if not isinstance(data, Ref) or len(node.refs()) > 1:
        painter.unknown(node)
        return
    source = painter.of(data)
    zero = torch.zeros(1, dtype=painter.value(data).dtype)
    result = tree_leaves(node.op(zero, *rest, **node.kwargs))[0]
    coloured = bool((source.ids > ZERO).any())
    if coloured and source.clean and not bool(torch.isfinite(result).all()):
        painter.unknown(node, f"'{node.name}' of a channel that is zero is not finite")
        return
    painter.put(node, replace(source, clean=source.clean and not bool(result.any())))


@dataclass(frozen=True)
class _Operand:
    """A tensor in elementwise arithmetic, with as many dimensions as the result."""

    ref: Ref
    paint: Paint | None  # None: a constant
    sizes: tuple[int, ...]
    same: bool = False  # the same for all channels, over which it is broadcast

    def is_zero(self, painter: Painter) -> bool:
        """Return whether a removed channel is zero in this operand."""
        if self.paint is None:
            return not bool(painter.value(self.ref).any())
        return self.paint.clean and not self.same

    def num_channels(self) -> int:
        """Return how many channels it has."""
        dims = () if self.paint is None else self.paint.coloured_dims()
        return math.prod(self.sizes[d] for d in dims)


def _meet(painter: Painter, node: Node) -> tuple[Paint, list[_Operand]]:
    """Unite the colours of an elementwise operation's operands under broadcasting."""
    shape = painter.shape(node.outputs[0])
    operands = []
    refs = [a for a in node.args if isinstance(a, Ref)]
    painter.align(refs)
    painted_first = [painter.of(ref) for ref in refs if painter.is_painted(ref)]
    along = {d - len(p.shape) for p in painted_first for d in p.coloured_dims()}
    for ref in refs:
        own = _own_sizes(painter, ref)
        dims = {len(own) + d for d in along}
        painted = painter.is_painted(ref) or painter.paint_parameter(ref, along=dims)
        missing = (1,) * (len(shape) - len(own))
        paint = painter.of(ref) if painted else None
        if paint is not None:
            ids = paint.ids.reshape(missing + tuple(paint.ids.shape))
            paint = Paint(ids, missing + own, paint.clean)
        operands.append(_Operand(ref, paint, missing + own))
    operands = _note_broadcasts(operands, shape)
    crossing = [o for o in operands if o.same and o.num_channels() > 1]
    for operand in sorted(crossing, key=_Operand.num_channels)[:-1]:  # the most channels can stay
        crossed = operand.paint or painter.of(operand.ref)
        painter.keep_whole(crossed, node, "it is broadcast over other channels")
        whole = Paint(torch.full((1,) * len(shape), WHOLE), operand.sizes, crossed.clean)
        operands = [replace(o, paint=whole) if o is operand else o for o in operands]
    operands = _note_broadcasts(operands, shape)
    met: Tensor | None = None
    for operand in operands:
        if operand.paint is None:
            continue
        if operand.same:
            painter.keep_whole(operand.paint, node, "it is broadcast over other channels")
        else:
            met = operand.paint.ids if met is None else painter.unite(met, operand.paint.ids)
    if met is None:
        met = torch.full((1,) * len(shape), WHOLE)
    result = Paint(met, shape)
    for place, operand in enumerate(operands):
        wide = [d for d in result.coloured_dims() if operand.sizes[d] > 1]
        if operand.paint is not None or not wide:
            continue
        from_end = wide[0] - len(shape)
        if len(wide) == 1 and painter.paint_constant(operand.ref, from_end):
            paint = painter.of(operand.ref)
            operands[place] = replace(operand, paint=paint)
            result = replace(result, ids=painter.unite(result.ids, paint.ids))
        else:
            painter.keep_whole(result, node, "it is combined with a constant of fixed width")
    return result, operands


def _note_broadcasts(operands: Sequence[_Operand], shape: Sequence[int]) -> list[_Operand]:
    """Note for each operand whether it is the same for all channels of another one."""
    coloured = {d for o in operands if o.paint is not None for d in o.paint.coloured_dims()}
    return [replace(o, same=any(o.sizes[d] == 1 < shape[d] for d in coloured)) for o in operands]


def _own_sizes(painter: Painter, ref: Ref) -> tuple[int, ...]:
    """Return a value's sizes, 1 where it repeats a single number."""
    value = painter.value(ref)
    coloured = painter.of(ref).coloured_dims()
    return tuple(
        1 if stride == 0 and d not in coloured else size
        for d, (size, stride) in enumerate(zip(value.shape, value.stride(), strict=True))
    )


@rule(*ARITHMETIC)
def _combine(painter: Painter, node: Node) -> None:
    """Combine tensors elementwise: silenced channels stay zero if a factor or all terms are."""
    if len(node.refs()) == 1 and isinstance(node.args[0], Ref):
        _unary(painter, node)
        return
    result, operands = _meet(painter, node)
    zero = {id(o.ref): o.is_zero(painter) for o in operands}
    silent = [zero[id(a)] if isinstance(a, Ref) else a == 0 for a in node.args]
    name = node.name.removeprefix("aten::").removesuffix("_")
    if name == "mul":
        clean = any(silent)
    elif name == "addcmul":
        clean = silent[0] and (silent[1] or silent[2])
    elif name in ("add", "sub", "where", "masked_fill", "lerp", "maximum", "minimum"):
        first, last = {"where": (1, 3), "lerp": (0, 2)}.get(name, (0, len(silent)))
        clean = all(s for i, s in enumerate(silent[first:last]) if (name, i) != ("masked_fill", 1))
    else:
        clean = False
    if name != "mul" and len([i for i in node.refs() if painter.is_data(i)]) > 1:
        painter.added.append(result.ids.flatten())
    painter.put(node, replace(result, clean=clean))


@rule(*names("div div_ fmod remainder floor_divide addcdiv addcdiv_"))
def _divide(painter: Painter, node: Node) -> None:
    result, operands = _meet(painter, node)
    first, second = node.args[:2]
    divisor = next((o for o in operands if o.ref == second), None)
    if not isinstance(first, Ref) or (
        divisor is not None and divisor.paint is not None and divisor.is_zero(painter)
    ):
        painter.unknown(node, "a removed channel would divide by zero")
        return
    painter.put(node, replace(result, clean=operands[0].is_zero(painter)))


@rule("aten::_prelu_kernel")
def _prelu(painter: Painter, node: Node) -> None:
    """Scale negative values, with one factor per channel or one for all."""
    result, operands = _meet(painter, node)
    painter.put(node, replace(result, clean=operands[0].is_zero(painter)))


@rule(*RESIZES)
def _pool(painter: Painter, node: Node) -> None:
    """Resize a map, channel by channel (and head by head, if heads are in the batch)."""
    source = painter.of(node.args[0])
    rank = len(source.shape)
    num = next((n for n in range(1, 4) if f"{n}d" in node.name), rank - 2)  # of map dimensions
    source = painter.level(source, range(rank - num, rank))
    if any(dim >= rank - num for dim in source.coloured_dims()):
        painter.unknown(node)
        return
    painter.put(node, Paint(source.ids, painter.shape(node.outputs[0]), source.clean))


@rule(*names("glu"))
def _gate(painter: Painter, node: Node) -> None:
    """Multiply one half of the channels by a sigmoid of the other: they are removed in pairs."""
    source = painter.of(node.args[0])
    dim = int(node.args[1] if len(node.args) > 1 else -1) % len(source.shape)
    ids = source.ids
    if dim in source.coloured_dims():
        ids = painter.unite(*ids.chunk(2, dim))
    painter.put(node, Paint(ids, painter.shape(node.outputs[0]), source.clean))


@rule(*names("pixel_shuffle channel_shuffle native_channel_shuffle pixel_unshuffle"))
def _shuffle(painter: Painter, node: Node) -> None:
    """Move channels into the map or back, or shuffle them: unite those that belong together."""
    source = painter.of(node.args[0])
    channels = source.along(-3) if "pixel" in node.name else source.along(1)
    if channels is None:
        painter.unknown(node)
        return
    factor, rank = int(node.args[1]), len(source.shape)
    if node.name == "aten::pixel_shuffle":
        parts = channels.view(-1, factor**2)
        out = painter.unite(parts, parts[:, :1])[:, 0]
    elif node.name == "aten::pixel_unshuffle":
        out = channels.repeat_interleave(factor**2)
    else:
        parts = channels.view(factor, -1)
        out = painter.unite(parts, parts[:1]).t().flatten()
    dim = rank - 3 if "pixel" in node.name else 1
    painter.put(node, spread(out, painter.shape(node.outputs[0]), dim, clean=source.clean))


@rule(*names("cumsum cumprod cummax cummin logcumsumexp sort triu tril topk"))
def _along_another(painter: Painter, node: Node) -> None:
    """Accumulate, sort or mask along a dimension in which the colour does not vary."""
    source = painter.of(node.args[0])
    short = node.name.removeprefix("aten::")
    place = 2 if short == "topk" else 1
    if short in ("triu", "tril"):
        dims: Any = (-1, -2)
    else:
        dims = node.args[place] if len(node.args) > place else -1
    dims = [d % len(source.shape) for d in ([dims] if isinstance(dims, int) else dims)]
    source = painter.level(source, dims)
    if len(node.refs()) > 1 or any(d in source.coloured_dims() for d in dims):
        painter.unknown(node)
        return
    clean = source.clean and short in ("cumsum", "triu", "tril")
    for output in node.outputs:
        assert output is not None
        painter.paints[output] = Paint(source.ids, painter.shape(output), clean)


@rule(*names("_softmax _log_softmax _safe_softmax"))
def _softmax(painter: Painter, node: Node) -> None:
    source = painter.of(node.args[0])
    dim = node.args[1] % len(source.shape)
    source = painter.level(source, [dim])
    if dim in source.coloured_dims():
        painter.unknown(node)
        return
    painter.put(node, replace(source, clean=False))


def _no_parameter(painter: Painter, weight: Ref) -> str:
    constant = "the weights that it is multiplied by are computed or constant, not parameters"
    return "" if painter.is_painted(weight) else constant


@rule("aten::convolution")
def _convolution(painter: Painter, node: Node) -> None:
    data, weight, bias = node.args[:3]
    transposed, groups = node.args[6], node.args[8]
    laid = painter.weight_view(weight)
    source = painter.of(data)
    channels = source.along(1)
    shape = painter.shape(node.outputs[0])
    depthwise = groups > 1 and channels is not None and groups == len(channels) == shape[1]
    if channels is not None and depthwise and _filter_channels(painter, node, channels):
        return
    if channels is None and _filter_beside(painter, node, source):
        return
    out_dim, in_dim = (
        (laid.order()[side] for side in ((1, 0) if transposed else (0, 1))) if laid else (-1, -1)
    )
    if laid is None or channels is None or min(out_dim, in_dim) < 0:
        along = "the convolution slides along the channels and mixes neighbouring ones"
        why = along if channels is None and source.coloured_dims() else ""
        painter.unknown(node, _no_parameter(painter, weight) if laid is None else why)
        return
    if groups > 1:
        bias_name = painter.parameter(bias) if bias is not None else None
        if bias is not None and bias_name is None:
            painter.unknown(node)
            return
        several = min(len(channels), shape[1]) >= 2 * groups
        if laid.name in painter.even and (out_dim, in_dim, several) == (0, 1, True):
            painter.put(node, _divided_evenly(painter, node, laid, channels, bias_name))
            return
        value = painter.value(weight)
        heads = painter.colours.fresh(groups)  # a group's inputs and outputs are removed together
        painter.unite_rows(channels, heads)
        rows, out = (heads.repeat_interleave(n // groups) for n in (len(value), shape[1]))
        painter.produce_groups(laid.name, bias_name, rows=rows, out=out)
        painter.put(node, spread(out, shape, 1))
    else:
        painter.read(laid, in_dim, channels, source)
        painter.put(node, _produced(painter, node, laid, out_dim, bias, linear=False))


def _divided_evenly(
    painter: Painter, node: Node, laid: Laid, channels: Tensor, bias: str | None
) -> Paint:
    """Cut the same channels from every group of a convolution, which keeps all of its groups."""
    source, groups = painter.of(node.args[0]), node.args[8]
    parts = channels.view(groups, -1)
    painter.unite(parts, parts[:1])
    painter.divided.add(laid.name)
    painter.read(laid, 1, parts[0], source)
    out = painter.produce(laid.name, bias, 0, laid.sizes[0], linear=False)
    painter.unite(out.view(groups, -1), out.view(groups, -1)[:1])
    return spread(out, painter.shape(node.outputs[0]), 1)


def _filter_beside(painter: Painter, node: Node, source: Paint) -> bool:
    """Pass on channels that no filter mixes: heads in the batch, or positions under filters of 1.

    Return False if a filter covers several of them.
    """
    rank = len(source.shape)
    sizes = painter.value(node.args[1]).shape[2:]
    strides, paddings = (tuple(node.args[i]) * (rank - 2) for i in (3, 4))
    alone = [d + 2 for d in range(rank - 2) if (sizes[d], strides[d], paddings[d]) == (1, 1, 0)]
    source = painter.level(source, [d for d in range(1, rank) if d not in alone])
    if any(d and d not in alone for d in source.coloured_dims()):
        return False
    for ref in node.args[1:3]:
        if ref is not None:
            painter.fix(ref, f"it is the same for all channels{where(node)}")
    shape = painter.shape(node.outputs[0])
    painter.put(node, Paint(source.ids, shape, source.clean and node.args[2] is None))
    return True


def _filter_channels(painter: Painter, node: Node, channels: Tensor) -> bool:
    """Pass each channel through its own filter; False if the filters are no parameter or buffer.

    A single filter that is expanded over all channels (a blur) may be any tensor.
    """
    weight, bias = node.args[1:3]
    shape = painter.shape(node.outputs[0])
    clean = painter.of(node.args[0]).clean
    laid = painter.laid(weight)
    bias_laid = painter.laid(bias) if bias is not None else None
    if bias is not None and (bias_laid is None or not bias_laid.as_it_is):
        return False
    if laid is not None and laid.is_weight and laid.dims[0] is not None:
        painter.pass_through(laid.name, laid.dims[0], channels)
        clean = True
    elif painter.value(weight).stride(0) != 0 or painter.is_painted(weight):
        return False
    if bias_laid is not None:
        painter.pass_through(bias_laid.name, 0, channels)
    painter.put(node, spread(channels, shape, 1, clean=clean))
    return True


def _produced(
    painter: Painter, node: Node, weight: Laid, dim: int, bias: Ref | None, *, linear: bool
) -> Paint:
    """Colour a layer's outputs; a bias is a parameter, is united with them, or keeps them whole."""
    name = painter.parameter(bias) if bias is not None else None
    shape = painter.shape(node.outputs[0])
    along = len(shape) - 1 if linear else 1
    out = painter.produce(
        weight.name, name, dim, shape[along], linear=linear, start=weight.start or 0
    )
    if bias is None or name is not None:
        clean = bias is None or not painter.is_painted(bias) or painter.of(bias).clean
        return spread(out, shape, along, clean=clean)
    added = painter.of(bias)
    channels = added.along(0) if len(added.shape) == 1 else None
    if channels is not None and painter.is_painted(bias):
        return spread(painter.unite(out, channels), shape, along, clean=added.clean)
    painter.fix(bias, "it is added to channels that are kept whole")
    why = "its bias is computed or constant, not a parameter"
    painter.colours.freeze(out, why)
    return spread(out, shape, along)


@rule("aten::addmm", "aten::mm", "aten::linear")
def _linear(painter: Painter, node: Node) -> None:
    first, *rest = node.args
    if node.name == "aten::addmm":
        bias, data, weight = (first, *rest)
    else:
        data, weight, bias = first, rest[0], rest[1] if len(rest) > 1 else None
    last = len(painter.value(data).shape) - 1
    if not painter.is_painted(data):
        painter.paint_parameter(data, along=(last,))
    source = painter.of(data)
    coloured = source.coloured_dims()
    if coloured and last not in coloured and not _is_coloured(painter, weight):
        _mix_places(painter, node, source, (weight, bias))
        return
    if bias is None and _is_coloured(painter, weight):
        _contract(painter, node, source, painter.of(weight))
        return
    laid = painter.weight_view(weight, in_parts=True)
    features = source.along(-1)
    if laid is None or features is None or min(laid.order()) < 0:
        painter.unknown(node, _no_parameter(painter, weight) if laid is None else "")
        return
    in_dim, out_dim = laid.order() if node.name != "aten::linear" else reversed(laid.order())
    painter.read(laid, in_dim, features, source)
    painter.put(node, _produced(painter, node, laid, out_dim, bias, linear=True))


def _contract(painter: Painter, node: Node, a: Paint, b: Paint) -> None:
    """Sum products over the channels of two tensors, and unite those that are multiplied."""
    left, right = a.along(-1), b.along(-1 if node.name == "aten::linear" else 0)
    if left is None or right is None or not (a.clean or b.clean):
        painter.unknown(node)
        return
    painter.unite(left, right)
    shape = painter.shape(node.outputs[0])
    painter.put(node, Paint(torch.full((1,) * len(shape), WHOLE), shape, clean=False))


def _is_coloured(painter: Painter, ref: Ref) -> bool:
    return painter.is_painted(ref) and bool(painter.of(ref).coloured_dims())


def _mix_places(
    painter: Painter, node: Node, source: Paint, weights: tuple[Ref | None, ...]
) -> None:
    """Mix the positions of each channel by itself, as in an MLP-Mixer."""
    for ref in weights:
        if ref is not None:
            painter.fix(ref, f"it mixes positions, not channels{where(node)}")
    shape = painter.shape(node.outputs[0])
    painter.put(node, Paint(source.ids, shape, source.clean and weights[1] is None))


@rule(*EMBEDDINGS)
def _embedding(painter: Painter, node: Node) -> None:
    """Look up rows of a table, whose columns are the channels."""
    table, places = node.args[:2]
    laid = painter.laid(table)
    if painter.of(places).coloured_dims() or laid is None or not laid.as_it_is:
        painter.unknown(node)
        return
    shape = painter.shape(node.outputs[0])
    if painter.parameter_view(table) is not None:
        rows = painter.value(table).shape[0]
        painter.hold(laid.name, 0, size=rows, why="the network's input selects among its rows")
        out = painter.produce(laid.name, None, 1, shape[-1], linear=True)
        painter.put(node, spread(out, shape, len(shape) - 1))
    else:
        out = painter.colours.fresh(shape[-1])
        painter.pass_through(laid.name, 1, out)
        painter.put(node, spread(out, shape, len(shape) - 1))


@rule(*COPIES)
def _copy(painter: Painter, node: Node) -> None:
    painter.put(node, painter.of(node.args[0]))


@rule(*names("zeros_like ones_like full_like rand_like randn_like empty_like"))
def _make_like(painter: Painter, node: Node) -> None:
    """Make a tensor of other numbers in the shape of a given one."""
    source = painter.of(node.args[0])
    painter.put(node, replace(source, clean=node.name == "aten::zeros_like"))


@rule("aten::copy_")
def _write(painter: Painter, node: Node) -> None:
    """Copy data into a tensor of channels."""
    if not bool((painter.of(node.args[0]).ids > ZERO).any()):
        painter.unknown(node)
        return
    result, operands = _meet(painter, node)
    painter.put(node, replace(result, clean=all(o.is_zero(painter) for o in operands)))


@rule(*names("zero_ fill_"))
def _overwrite(painter: Painter, node: Node) -> None:
    """Fill a tensor with one number."""
    number = node.args[1] if len(node.args) > 1 else 0
    if isinstance(number, Ref):
        painter.unknown(node)
        return
    painter.put(node, replace(painter.of(node.args[0]), clean=number == 0))


@rule("aten::as_strided_")
def _lay_out(painter: Painter, node: Node) -> None:
    """Change the strides of a single row of numbers, such as a pooled map; others are unknown."""
    source, size = painter.of(node.args[0]), tuple(node.args[1])
    wide = [stride for stride, n in zip(node.args[2], size, strict=True) if n > 1]
    if size == source.shape and len(node.args) == 3 and wide in ([], [1]):
        painter.put(node, source)
    else:
        painter.unknown(node)


@rule(*TURNS)
def _turn(painter: Painter, node: Node) -> None:
    """Reorder or add dimensions, on the colours' compact form."""
    source = painter.of(node.args[0])
    ids = node.op(source.ids, *node.args[1:])
    painter.put(node, Paint(ids, painter.shape(node.outputs[0]), source.clean))


@rule("aten::cat", "aten::stack")
def _join(painter: Painter, node: Node) -> None:
    rank = len(painter.shape(node.outputs[0]))
    dim = int(node.args[1] if len(node.args) > 1 else 0) % rank
    refs = [ref for ref in node.args[0] if not _is_nothing(painter, ref, rank)]
    along = {d for ref in refs if painter.is_painted(ref) for d in painter.of(ref).coloured_dims()}
    for ref in refs:
        if not painter.is_painted(ref):
            painter.paint_parameter(ref, along=along)
    parts = [_part(painter, node, ref) for ref in refs]
    if node.name == "aten::stack":
        parts = [
            Paint(p.ids.unsqueeze(dim), (*p.shape[:dim], 1, *p.shape[dim:]), p.clean) for p in parts
        ]
    # Other examples may have elements where this one has none.
    if not parts or any(0 in p.shape for p in parts):
        painter.unknown(node)
        return
    sizes = [max(p.ids.shape[d] for p in parts) for d in range(rank)]
    shape = painter.shape(node.outputs[0])
    clean = all(p.clean for p in parts)
    if max(sizes) > 1 == sizes[dim]:
        # Joined along another dimension (tokens of two sources): unite the channels of all parts.
        met = parts[0].ids
        for part in parts[1:]:
            met = painter.unite(met, part.ids)
        painter.put(node, Paint(met, shape, clean))
        return
    pieces = [
        p.ids.expand([p.shape[d] if d == dim else size for d, size in enumerate(sizes)])
        for p in parts
    ]
    joined = Paint(paint(torch.cat(pieces, dim)).ids, shape, clean)
    painter.put(node, _give_zeros_colours(painter, joined))


def _is_nothing(painter: Painter, ref: Ref, rank: int) -> bool:
    """Return whether a tensor never has elements, such as an empty cache or an empty slice."""
    shape, maker = painter.shape(ref.index), painter.maker(ref)
    fixed = not painter.is_painted(ref) or (maker is not None and maker.name in SLICES)
    return 0 in shape and (fixed or (shape == (0,) and rank > 1))


def _part(painter: Painter, node: Node, ref: Ref) -> Paint:
    if painter.is_painted(ref):
        return painter.of(ref)
    value = painter.value(ref)
    # Zeros that a mover appends are narrowed by it; any other constant has a fixed width.
    inside = node.module in painter.movers and not bool(value.any())
    return Paint(torch.full((1,) * value.dim(), ZERO if inside else WHOLE), tuple(value.shape))


@rule("aten::constant_pad_nd")
def _pad(painter: Painter, node: Node) -> None:
    source = painter.of(node.args[0])
    widths = list(node.args[1])
    zeros = len(node.args) < 3 or node.args[2] == 0
    rank = len(source.shape)
    padded = [d for d in range(rank) if any(widths[2 * (rank - 1 - d) : 2 * (rank - d)])]
    if not any(d in source.coloured_dims() for d in padded):
        # Around the map: the border belongs to its channel.
        shape = painter.shape(node.outputs[0])
        painter.put(node, Paint(source.ids, shape, source.clean and zeros))
        return
    fill = ZERO if node.module in painter.movers and zeros else WHOLE
    padded_ids = torch.constant_pad_nd(source.full(), widths, fill)
    painter.put(node, _give_zeros_colours(painter, paint(padded_ids, clean=source.clean)))


def _give_zeros_colours(painter: Painter, result: Paint) -> Paint:
    """Colour the zero channels that a mover appends; they are removed with those they meet."""
    channels = result.along(1) if len(result.shape) > 1 else None
    if channels is None or not bool((channels == ZERO).any()):
        return result
    zeros = channels == ZERO
    channels[zeros] = painter.colours.fresh(int(zeros.sum()))
    return spread(channels, result.shape, 1, clean=result.clean)
