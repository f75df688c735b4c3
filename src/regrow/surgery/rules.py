"""What each ATen operation does to colours.

Operations that only move data are run on the colours themselves. Those whose result depends on how
many channels there are (a split, a slice, a view that divides the channels) keep them whole, unless
they happen inside a module that knows how to narrow itself (it has a method ``narrow_``). An
operation without a rule keeps everything that enters it whole.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from regrow.surgery.colours import WHOLE, ZERO, Paint, paint, spread
from regrow.surgery.tape import Node, Ref

if TYPE_CHECKING:
    from regrow.surgery.trace import Painter

Rule = Callable[["Painter", Node], None]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register what operations, e.g. ``"aten::relu"``, do to colours (decorator)."""

    def register(function: Rule) -> Rule:
        for name in names:
            RULES[name] = function
        return function

    return register


def _names(words: str) -> list[str]:
    return [f"aten::{word}" for word in words.split()]


_ZERO_AT_ZERO = """
    relu relu_ leaky_relu leaky_relu_ relu6 hardtanh hardtanh_ gelu silu silu_ mish tanh tanh_
    hardswish hardswish_ elu elu_ selu neg abs sqrt sin erf sign dropout native_dropout
"""
_POOLS = """
    avg_pool1d avg_pool2d avg_pool3d max_pool2d_with_indices max_pool2d max_pool3d_with_indices
    _adaptive_avg_pool2d adaptive_avg_pool2d adaptive_max_pool2d _adaptive_avg_pool3d
    upsample_nearest2d upsample_bilinear2d upsample_bicubic2d
"""
_LAYOUT_ONLY = """
    permute transpose t expand unsqueeze squeeze clone alias detach contiguous _to_copy cat stack
    lift_fresh
"""


@rule(*_names(_ZERO_AT_ZERO))
def _keep_zero(painter: Painter, node: Node) -> None:
    """Apply a function with f(0) = 0: the colours stay."""
    source = painter.of(node.args[0])
    painter.put(node, source)


@rule(*_names("sigmoid hardsigmoid exp cos softplus reciprocal rsqrt log"))
def _break_zero(painter: Painter, node: Node) -> None:
    """Apply a function with f(0) != 0: the colours stay, but silence is no longer zero."""
    source = painter.of(node.args[0])
    painter.put(node, Paint(source.ids, source.shape, clean=False))


@rule(*_names("add add_ sub sub_ maximum minimum"))
def _add(painter: Painter, node: Node) -> None:
    scalars = [a for a in node.args if not isinstance(a, Ref)]
    clean = all(scalar == 0 for scalar in scalars)
    for ref in _operands(node):
        clean = clean and painter.is_zero_when_silenced(ref)
    painter.put(node, _together(painter, node, clean=clean))


@rule(*_names("mul mul_"))
def _multiply(painter: Painter, node: Node) -> None:
    painted = [ref for ref in _operands(node) if painter.is_painted(ref)]
    clean = any(painter.of(ref).clean for ref in painted)
    painter.put(node, _together(painter, node, clean=clean))


@rule("aten::div", "aten::div_")
def _divide(painter: Painter, node: Node) -> None:
    first = node.args[0]
    clean = isinstance(first, Ref) and painter.is_painted(first) and painter.of(first).clean
    painter.put(node, _together(painter, node, clean=clean))


def _operands(node: Node) -> list[Ref]:
    return [a for a in node.args if isinstance(a, Ref)]


def _together(painter: Painter, node: Node, *, clean: bool) -> Paint:
    """Unite the operands of an elementwise operation under broadcasting."""
    shape = painter.shape(node.outputs[0])
    result: Tensor | None = None
    constants = []
    for ref in _operands(node):
        if not painter.is_painted(ref) and not painter.paint_parameter(ref):
            constants.append(painter.value(ref))
            continue
        ids = painter.of(ref).ids
        ids = ids.reshape((1,) * (len(shape) - ids.dim()) + tuple(ids.shape))
        result = ids if result is None else painter.unite(result, ids)
    assert result is not None
    merged = Paint(result, shape, clean)
    for constant in constants:
        sizes = (1,) * (len(shape) - constant.dim()) + tuple(constant.shape)
        if any(sizes[dim] > 1 for dim in merged.coloured_dims()):
            painter.keep_whole(merged, node, "it meets a constant of fixed width")
    return merged


@rule(*_names(_POOLS))
def _pool(painter: Painter, node: Node) -> None:
    """Change the map's size, channel by channel."""
    source = painter.of(node.args[0])
    channels = source.along(1)
    if channels is None:
        painter.unknown(node)
        return
    painter.put(node, spread(channels, painter.shape(node.outputs[0]), 1, clean=source.clean))


@rule("aten::mean", "aten::sum", "aten::amax", "aten::amin")
def _reduce(painter: Painter, node: Node) -> None:
    source = painter.of(node.args[0])
    rank = len(source.shape)
    given = node.args[1] if len(node.args) > 1 and isinstance(node.args[1], list | tuple) else None
    dims = sorted({d % rank for d in given}) if given else list(range(rank))
    if any(dim in source.coloured_dims() for dim in dims):
        painter.unknown(node)
        return
    keep = bool(node.args[2]) if len(node.args) > 2 else bool(node.kwargs.get("keepdim", False))
    ids = source.ids
    for dim in reversed(dims):
        ids = ids.narrow(dim, 0, 1) if keep else ids.select(dim, 0)
    painter.put(node, Paint(ids, painter.shape(node.outputs[0]), source.clean))


@rule("aten::convolution", "aten::_convolution")
def _convolution(painter: Painter, node: Node) -> None:
    data, weight, bias = node.args[:3]
    transposed, groups = node.args[6], node.args[8]
    name = painter.parameter(weight)
    source = painter.of(data)
    channels = source.along(1)
    if name is None or channels is None:
        painter.unknown(node)
        return
    shape = painter.shape(node.outputs[0])
    bias_name = painter.parameter(bias) if isinstance(bias, Ref) else None
    out_dim, in_dim = (1, 0) if transposed else (0, 1)
    if groups == 1:
        painter.read(name, in_dim, channels, source, node)
        out = painter.produce(name, bias_name, out_dim, shape[1], linear=False)
    elif groups == len(channels) == shape[1]:  # depthwise: each channel goes through by itself
        out = channels
        painter.pass_through(name, 0, out)
        if bias_name is not None:
            painter.pass_through(bias_name, 0, out)
    else:
        painter.keep_whole(source, node, "a grouped convolution reads it")
        out = torch.full((shape[1],), WHOLE)
    painter.put(node, spread(out, shape, 1))


@rule("aten::addmm", "aten::mm", "aten::linear")
def _linear(painter: Painter, node: Node) -> None:
    if node.name == "aten::addmm":
        bias, data, weight = node.args[:3]
    else:
        data, weight = node.args[:2]
        bias = node.args[2] if len(node.args) > 2 else None
    viewed = painter.parameter_view(weight)
    transposed = (1, 0) if node.name != "aten::linear" else (0, 1)
    if viewed is None or viewed[1] != transposed or not painter.is_painted(data):
        painter.unknown(node)
        return
    name = viewed[0]
    source = painter.of(data)
    features = source.along(-1)
    if features is None:
        painter.unknown(node)
        return
    shape = painter.shape(node.outputs[0])
    bias_name = painter.parameter(bias) if isinstance(bias, Ref) else None
    painter.read(name, 1, features, source, node)
    out = painter.produce(name, bias_name, 0, shape[-1], linear=True)
    painter.put(node, spread(out, shape, len(shape) - 1))


@rule("aten::native_batch_norm", "aten::_native_batch_norm_legit_no_training",
      "aten::cudnn_batch_norm", "aten::_batch_norm_no_update")  # fmt: skip
def _batch_norm(painter: Painter, node: Node) -> None:
    source = painter.of(node.args[0])
    channels = source.along(1)
    if channels is None:
        painter.unknown(node)
        return
    if node.module in painter.views and bool((channels > ZERO).any()):
        channels = painter.colours.view(channels, node.module)
        painter.opened[node.module] = channels
    for argument in node.args[1:5]:
        name = painter.tensor_name(argument) if isinstance(argument, Ref) else None
        if name is not None:
            painter.pass_through(name, 0, channels, norm=node.module)
    painter.put(node, spread(channels, source.shape, 1))


_BY_COUNT = {  # operation -> position of the dimension it counts along, None: several
    "slice": 1, "select": 1, "split": 2, "split_with_sizes": 2, "chunk": 2, "unbind": 1,
    "index_select": 1, "roll": None, "flip": None, "repeat": None, "index": None,
    "pixel_shuffle": None, "channel_shuffle": None, "unfold": 1, "narrow": 1,
}  # fmt: skip
_VIEWS = ("view", "_unsafe_view", "reshape", "_reshape_alias")


@rule(*_names(_LAYOUT_ONLY), *(f"aten::{name}" for name in (*_BY_COUNT, *_VIEWS)))
def _move(painter: Painter, node: Node) -> None:
    """Run an operation that only moves data on the colours themselves."""
    if not any(painter.is_painted(Ref(i)) for i in node.refs()):
        painter.move_parameter(node)
        return
    name = node.name.removeprefix("aten::")
    _keep_what_is_counted(painter, node, name)
    args, kwargs = tree_map(lambda x: _colours_of(painter, x, node), (node.args, dict(node.kwargs)))
    if name == "_to_copy":
        result: Any = args[0]
    elif name in _VIEWS:
        result = args[0].reshape(painter.shape(node.outputs[0]))
    else:
        result = node.op(*args, **kwargs)
    painted = [painter.of(Ref(i)) for i in node.refs() if painter.is_painted(Ref(i))]
    clean = all(p.clean for p in painted)
    for output, ids in zip(node.outputs, tree_leaves(result), strict=True):
        if output is not None:
            painter.paints[output] = _give_zeros_colours(painter, paint(ids, clean=clean))


def _keep_what_is_counted(painter: Painter, node: Node, name: str) -> None:
    """Keep channels whole whose number the operation depends on, outside of movers."""
    if node.module in painter.movers or not isinstance(node.args[0], Ref):
        return
    source = painter.of(node.args[0])
    coloured = source.coloured_dims()
    if name in _BY_COUNT:
        position = _BY_COUNT[name]
        default = 1 if name == "unbind" else 0
        if position is None:
            touched = list(coloured)
        else:
            dim = node.args[position] if len(node.args) > position else node.kwargs.get("dim", 0)
            touched = [
                d
                for d in coloured
                if d == (dim if dim is not None else default) % len(source.shape)
            ]
        if touched and not _takes_all(painter, node, name):
            painter.keep_whole(source, node, f"'{name}' divides it at fixed places")
    elif name in _VIEWS:
        edges = torch.tensor(painter.shape(node.outputs[0])).cumprod(0).tolist()
        before = [1, *torch.tensor(source.shape).cumprod(0).tolist()]
        if any(before[d] < edge < before[d + 1] for d in coloured for edge in edges):
            painter.keep_whole(source, node, "it is split into parts by a view")


def _takes_all(painter: Painter, node: Node, name: str) -> bool:
    return name == "slice" and painter.shape(node.outputs[0]) == painter.of(node.args[0]).shape


def _colours_of(painter: Painter, argument: Any, node: Node) -> Any:
    if not isinstance(argument, Ref):
        return argument
    if painter.is_painted(argument):
        return painter.of(argument).full()
    value = painter.value(argument)
    if node.name != "aten::cat" and node.name != "aten::stack":
        return value  # an index
    # Zeros that a mover appends are narrowed by it; any other constant has a fixed width.
    inside = node.module in painter.movers and not bool(value.any())
    return torch.full(value.shape, ZERO if inside else WHOLE)


@rule("aten::constant_pad_nd")
def _pad(painter: Painter, node: Node) -> None:
    source = painter.of(node.args[0])
    widths = list(node.args[1])
    rank = len(source.shape)
    padded = [d for d in range(rank) if any(widths[2 * (rank - 1 - d) : 2 * (rank - d)])]
    if not any(d in source.coloured_dims() for d in padded):
        # Around the map: a border of zeros belongs to its channel.
        shape = painter.shape(node.outputs[0])
        painter.put(node, Paint(source.ids, shape, source.clean))
        return
    fill = ZERO if node.module in painter.movers else WHOLE
    padded_ids = torch.constant_pad_nd(source.full(), widths, fill)
    painter.put(node, _give_zeros_colours(painter, paint(padded_ids, clean=source.clean)))


def _give_zeros_colours(painter: Painter, result: Paint) -> Paint:
    """Give colours to the zero channels that a mover appends: they die with those they meet."""
    channels = result.along(1) if len(result.shape) > 1 else None
    if channels is None or not bool((channels == ZERO).any()):
        return result
    zeros = channels == ZERO
    channels[zeros] = painter.colours.fresh(int(zeros.sum()))
    return spread(channels, result.shape, 1, clean=result.clean)
