"""Rules for operations that select positions by data, and for mixtures of experts.

Channels pass where the places lie along other dimensions: a token that is looked for, tokens that
go to an expert and are added up again where they came from.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._pytree import tree_map

import regrow.surgery.views  # noqa: F401  (its rules are those for places chosen by number)
from regrow.surgery.colours import ZERO, Paint, spread
from regrow.surgery.operators import names
from regrow.surgery.rules import RULES, rule
from regrow.surgery.tape import Node, Ref

if TYPE_CHECKING:
    from regrow.surgery.painter import Painter

# Channels that experts lose at once: rows of weights have to fill 16 bytes, in half precision.
ALIGNED = 8
_ZEROS = names("zeros new_zeros")
_BY_NUMBER = {name: RULES[name] for name in names("index index_select")}


@rule(*_BY_NUMBER)
def _choose(painter: Painter, node: Node) -> None:
    """Take places along some dimensions."""
    indices = node.refs()[1:]
    source = painter.of(node.args[0])
    if not any(painter.is_painted(Ref(index)) for index in indices):
        _BY_NUMBER[node.name](painter, node)
        return
    if _are_coloured(painter, indices) or _chosen(painter, node).intersection(
        source.coloured_dims()
    ):
        painter.unknown(node)
        return
    places = tree_map(lambda a: _first(painter, a), _spelt(painter, node.args[1:]))
    ids = node.op(source.ids, *places, **node.kwargs)
    painter.put(node, Paint(ids, painter.shape(node.outputs[0]), source.clean))


@rule(*names("gather"))
def _gather(painter: Painter, node: Node) -> None:
    """Take one place along a dimension for each of the others, the same one for all channels."""
    source, dim = painter.of(node.args[0]), int(node.args[1]) % len(painter.of(node.args[0]).shape)
    index = node.args[2]
    coloured = source.coloured_dims()
    value = painter.value(index)
    apart = [d for d in coloured if value.stride(d) != 0 and value.shape[d] > 1]
    if dim in coloured or apart or _are_coloured(painter, [index.index]):
        painter.unknown(node)
        return
    painter.put(node, Paint(source.ids, painter.shape(node.outputs[0]), source.clean))


@rule(
    *names("index_add index_add_ index_put index_put_ index_copy index_copy_ index_reduce"),
    *names("index_reduce_ scatter scatter_ scatter_add scatter_add_ scatter_reduce"),
    *names("scatter_reduce_"),
)
def _put_back(painter: Painter, node: Node) -> None:
    """Put or add rows to places of a tensor, which may be one of zeros made for it."""
    data, *rest = node.args
    added = rest[1] if node.name.startswith("aten::index_put") else rest[2]
    if not isinstance(added, Ref):
        painter.unknown(node)
        return
    source = painter.of(data)
    rank = len(source.shape)
    if not painter.is_painted(added):
        painter.paint_parameter(added, along=(painter.value(added).dim() - 1,))
    rows = painter.of(added)
    fresh = not painter.is_painted(data) and _is_fresh(painter, node, data)
    indices = [index for index in node.refs() if index not in (data.index, added.index)]
    # Counted from the last dimension, in which both have their channels.
    places = {d - rank for d in source.coloured_dims()}
    places |= {d - len(rows.shape) for d in rows.coloured_dims()}
    chosen = any(d + rank in _chosen(painter, node) for d in places)
    if node.name.startswith("aten::scatter"):
        chosen |= not all(_same_along(painter, d, data, *rest[1:3]) for d in places)
    if _are_coloured(painter, indices) or chosen or len(places) > 1:
        painter.unknown(node)
        return
    if not places:
        painter.put(node, source)
        return
    (place,) = places
    value = painter.value(added)
    if value.dim() < -place or value.shape[place] == 1 or value.stride(place) == 0:
        painter.put(node, replace(source, clean=False))  # one number for all channels
        return
    own = source.ids.flatten()
    own = (torch.full_like(own, ZERO) if fresh else own).expand(source.shape[place])
    met = painter.unite(own, rows.ids.flatten().expand(source.shape[place]))
    clean = rows.clean and (fresh or source.clean)
    painter.put(node, spread(met, source.shape, place % rank, clean=clean))


def _is_fresh(painter: Painter, node: Node, data: Ref) -> bool:
    """Tell whether a tensor held zeros before an operation that may have put data into it."""
    maker = painter.maker(data)
    if maker is None or maker.name not in _ZEROS:
        return not bool(painter.value(data).any())
    before = [painter.maker(Ref(index)) for index in painter.tape.aliases(data.index)]
    return not any(other.in_place for other in before if other is not None and other is not node)


def _same_along(painter: Painter, dim: int, data: Ref, index: Ref, added: Ref) -> bool:
    """Tell whether an index of as many places as numbers has the same ones along a dimension."""
    sizes = {painter.shape(ref.index)[dim] for ref in (data, index, added)}
    return len(sizes) == 1 and painter.value(index).stride(dim) == 0


@rule(*names("segment_reduce"))
def _reduce_segments(painter: Painter, node: Node) -> None:
    """Add up, or take the mean or an extreme of, the rows of each segment."""
    source = painter.of(node.args[0])
    axis = int(node.kwargs.get("axis", 0))
    others = [index for index in node.refs() if index != node.args[0].index]
    if axis in source.coloured_dims() or _are_coloured(painter, others):
        painter.unknown(node)
        return
    clean = source.clean and not node.kwargs.get("initial")
    painter.put(node, Paint(source.ids, painter.shape(node.outputs[0]), clean))


@rule(*names("_grouped_mm"))
def _by_experts(painter: Painter, node: Node) -> None:
    """Multiply rows by the weights of their experts, which lie in one parameter: [e, in, out]."""
    data, weight = node.args[:2]
    laid = painter.weight_view(weight)
    source = painter.of(data)
    features = source.along(-1)
    if laid is None or features is None or len(laid.dims) != 3 or min(laid.order()) < 0:
        painter.unknown(node)
        return
    shape = painter.shape(node.outputs[0])
    painter.read(laid, laid.order()[1], features, source)
    out = painter.produce(laid.name, None, laid.order()[2], shape[-1], linear=True)
    for channels in (features, out):
        if len(channels) % ALIGNED == 0:
            painter.unite_rows(channels, channels[::ALIGNED])
    painter.put(node, spread(out, shape, len(shape) - 1))


def _are_coloured(painter: Painter, indices: list[int]) -> bool:
    return any(painter.of(Ref(index)).coloured_dims() for index in indices)


def _chosen(painter: Painter, node: Node) -> set[int]:
    """Return the dimensions along which places are chosen."""
    rank = len(painter.of(node.args[0]).shape)
    if "index_put" not in node.name and node.name != "aten::index":
        return {int(node.args[1]) % rank}
    chosen, at = set(), 0
    for index in node.args[1]:
        wide = _num_dims(painter, index)
        chosen |= set(range(at, at + wide)) if index is not None else set()
        at += wide
    return chosen


def _num_dims(painter: Painter, index: Any) -> int:
    """Count the dimensions that an index stands for: a mask for all of its own."""
    if isinstance(index, Ref) and painter.value(index).dtype in (torch.bool, torch.uint8):
        return painter.value(index).dim()
    return 1


def _spelt(painter: Painter, arguments: Any) -> Any:
    """Write a mask as one index for each of its dimensions."""
    first, *rest = arguments
    if not isinstance(first, list | tuple):
        return arguments
    spelt = [index for index in first for _ in range(_num_dims(painter, index))]
    return [spelt, *rest]


def _first(painter: Painter, argument: Any) -> Any:
    """Return an index like another, of the first place alone."""
    if not isinstance(argument, Ref):
        return argument
    value = painter.value(argument)
    mask = value.dtype in (torch.bool, torch.uint8)
    return torch.zeros([1] * (1 if mask else value.dim()), dtype=torch.long)
