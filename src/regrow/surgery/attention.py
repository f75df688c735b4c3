"""Rules for products of two tensors of data, as in attention.

A product keeps channels along batch dimensions (attention heads) apart and unites them with those
of the other factor; everything within a head is removed with it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from regrow.surgery.colours import WHOLE, Paint, spread
from regrow.surgery.rules import RULES, rule
from regrow.surgery.tape import Node, Ref

if TYPE_CHECKING:
    from regrow.surgery.painter import Painter
    from regrow.surgery.parameters import Laid


_BY_WEIGHT = RULES["aten::mm"]


@rule("aten::mm", "aten::_sparse_addmm")
def _multiply_by_matrix(painter: Painter, node: Node) -> None:
    """Multiply by a matrix of data from the left: each channel is mixed over the nodes of a graph.

    The product with a sparse matrix is recorded as one that is added to zeros.
    """
    if node.name != "aten::mm":
        if node.kwargs.get("beta") != 0:
            painter.unknown(node)
            return
        node = replace(node, name="aten::mm", args=node.args[1:3])
    graph, data = node.args
    alone = not (painter.is_painted(graph) and painter.of(graph).coloured_dims())
    if alone and painter.is_painted(data) and painter.parameter(graph) is None:
        source = painter.of(data)
        if source.along(-1) is not None:
            painter.put(node, Paint(source.ids, painter.shape(node.outputs[0]), source.clean))
            return
    _BY_WEIGHT(painter, node)


@rule("aten::bmm", "aten::baddbmm")
def _multiply_matrices(painter: Painter, node: Node) -> None:
    """Multiply ``[b, m, k]`` and ``[b, k, n]``; ``baddbmm`` adds another tensor."""
    *added, left, right = node.args[:3] if node.name == "aten::baddbmm" else node.args[:2]
    a, b = painter.of(left), painter.of(right)
    matrix = None if added or painter.is_painted(right) else painter.weight_view(right)
    if matrix is not None and _multiply_by_weight(painter, node, a, matrix):
        return
    if _has_heads(a) or _has_heads(b):
        others = [_within_heads(painter, source) for source in _biases(painter, added)]
        a, b = _within_heads(painter, a), _within_heads(painter, b)
        result = _unite_heads(painter, [a, b, *others])
    else:
        result = _contract(painter, node, a, b)
        if added and result.coloured_dims():
            painter.keep_whole(result, node, "another tensor is added to it")
    painter.put(node, replace(result, shape=painter.shape(node.outputs[0])))


def _multiply_by_weight(painter: Painter, node: Node, source: Paint, weight: Laid) -> bool:
    """Multiply by a parameter whose several dimensions were merged to a matrix, as by einsum.

    Channels lie along one of its input dimensions, and along one of its output dimensions. Return
    False if it is laid out in another way.
    """
    features = source.along(-1)
    if features is None:
        return False
    if painter.shape(node.refs()[1])[0] != 1:
        return multiply_by_stack(painter, node, source, weight) is not None
    read, made = (weight.within(dim) for dim in (1, 2))
    wide = sorted(dim for dim, size in enumerate(weight.sizes) if size > 1)
    if not read or not made or sorted(read + made) != wide:
        return False
    sizes = [weight.sizes[dim] for dim in read]
    grid = painter.settled(Paint(features.view(sizes), tuple(sizes)))
    (along, *others) = grid.coloured_dims() or [0]
    painter.level(grid, others)
    ids = features.view(sizes).movedim(along, 0).reshape(sizes[along], -1)[:, 0]
    painter.read(weight, read[along], ids, source)
    out = painter.produce(weight.name, None, made[0], weight.sizes[made[0]], linear=True)
    shape = painter.shape(node.outputs[0])
    painter.put(node, spread(out.repeat_interleave(shape[2] // len(out)), shape, 2))
    return True


def multiply_by_stack(
    painter: Painter, node: Node, source: Paint, weight: Laid
) -> tuple[Tensor, Tensor] | None:
    """Multiply by one matrix of several in a parameter ``[e, in, out]``, as experts do.

    Return the colours of the input's and the output's channels; None if it is laid out otherwise.
    """
    features = source.along(-1)
    if features is None or len(weight.dims) != 3 or min(weight.order()) < 0:
        return None
    shape = painter.shape(node.outputs[0])
    _, read, made = weight.order()
    painter.read(weight, read, features, source)
    out = painter.produce(weight.name, None, made, shape[-1], linear=True)
    painter.put(node, spread(out, shape, len(shape) - 1))
    return features, out


def _contract(painter: Painter, node: Node, a: Paint, b: Paint) -> Paint:
    """Multiply matrices of channels; unite the channels that are summed over."""
    whole = Paint(torch.full((1, 1, 1), WHOLE), a.shape)
    if len(a.coloured_dims()) > 1 or len(b.coloured_dims()) > 1:
        painter.unknown(node)
        return whole
    for stays, summed, dim in ((a, b, 1), (b, a, 2)):
        if dim in stays.coloured_dims() and dim in summed.coloured_dims():
            painter.keep_whole(
                summed, node, "it is summed over together with data that is kept whole"
            )
            return stays
    if 2 in a.coloured_dims() or 1 in b.coloured_dims():
        painter.unite(a.ids.transpose(1, 2), b.ids)
        if not (a.clean or b.clean):
            painter.keep_whole(a, node, "a removed channel would not be zero where it is read")
        return whole
    if 1 in a.coloured_dims() and 2 in b.coloured_dims():
        painter.keep_whole(
            b, node, "each of its channels is multiplied with every channel of another tensor"
        )
    return a if 1 in a.coloured_dims() else b


@rule(
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention",
    "aten::_scaled_dot_product_fused_attention_overrideable",
    "aten::_scaled_dot_product_attention_math",
)
def _attend(painter: Painter, node: Node) -> None:
    """Follow attention of ``[..., tokens, channels]`` to ``[..., other tokens, channels]``."""
    queries, keys, values = (painter.of(ref) for ref in node.args[:3])
    masks = _biases(painter, map(Ref, node.refs()[3:]))
    shape = painter.shape(node.outputs[0])
    data = [queries, keys, values]
    if any(_has_heads(source) for source in data):
        for source in data:
            if _is_shared(source, shape):
                painter.keep_whole(source, node, "all heads share it")
        data = [_within_heads(painter, source) for source in (*data, *masks)]
        apart = [source for source in data if not _is_shared(source, shape)]
        met = _unite_heads(painter, [_as_many(source, shape) for source in apart])
        clean = data[2].clean and _has_heads(data[2])
        painter.put(node, Paint(met.ids, shape, clean))
        return
    asking, asked = queries.along(-1), keys.along(-1)
    scaled = node.kwargs.get("scale") is not None and queries.clean
    if scaled and asking is not None and asked is not None:
        painter.unite(asking, asked)  # they are summed over
    else:
        for source in (queries, keys):
            if source.coloured_dims():
                painter.keep_whole(source, node, "the scale of attention depends on its width")
    for source in masks:
        if source.coloured_dims():
            painter.keep_whole(source, node, "it is added to the scores of attention")
    painter.put(node, Paint(values.ids, shape, values.clean))


def _biases(painter: Painter, refs: Iterable[Ref]) -> list[Paint]:
    """Return the colours of biases of attention scores that differ from head to head."""
    biases = []
    for ref in refs:
        shape = painter.shape(ref.index)
        heads = len(shape) - 3
        if heads < 0 or (shape[heads] == 1 and not painter.of(ref).coloured_dims()):
            continue  # the same for all heads
        follows = painter.is_painted(ref) or painter.paint_parameter(ref, along=(heads,))
        if not follows and not painter.paint_constant(ref, heads - len(shape)):
            painter.paint_whole(ref, "numbers that the network's code computes for each head")
        biases.append(painter.of(ref))
    return biases


def _has_heads(source: Paint) -> bool:
    return any(dim < len(source.shape) - 2 for dim in source.coloured_dims())


def _within_heads(painter: Painter, source: Paint) -> Paint:
    """Unite the colours within each head, if a factor has heads."""
    rank = len(source.shape)
    return painter.level(source, (rank - 2, rank - 1)) if _has_heads(source) else source


def _is_shared(source: Paint, shape: tuple[int, ...]) -> bool:
    """Return whether several heads share a factor."""
    return len(shape) > 2 and source.shape[-3] == 1 < shape[-3]


def _as_many(source: Paint, shape: tuple[int, ...]) -> Paint:
    """Repeat the colours of key-value heads for the query heads that share them."""
    dim = len(shape) - 3
    if dim >= 0 and 1 < source.ids.shape[dim] < shape[dim]:
        times = shape[dim] // source.ids.shape[dim]
        return replace(source, ids=source.ids.repeat_interleave(times, dim))
    return source


def _unite_heads(painter: Painter, factors: Iterable[Paint]) -> Paint:
    """Unite the heads of several factors, except factors that are the same for all heads."""
    apart = [f for f in factors if f.ids.numel() > 1 or int(f.ids.flatten()[0]) == WHOLE]
    met = apart[0].ids
    for factor in apart[1:]:
        met = painter.unite(met, factor.ids)
    painter.heads.append(met.flatten())
    return Paint(met, apart[0].shape, any(f.clean for f in apart))
