"""Rules for operations that select positions by data, and for mixtures of experts.

Channels pass through if positions are selected along other dimensions: a token that is looked up,
or tokens that are sent to an expert and added back at their positions.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._pytree import tree_map

import regrow.surgery.views  # noqa: F401  (its rules select positions by number)
from regrow.surgery.attention import multiply_by_stack
from regrow.surgery.colours import ZERO, Paint, spread
from regrow.surgery.operators import names
from regrow.surgery.rules import RULES, rule
from regrow.surgery.tape import Node, Ref

if TYPE_CHECKING:
    from regrow.surgery.painter import Painter

# Experts lose channels in blocks of 8: rows of weights must be multiples of 16 bytes in float16.
ALIGNED = 8
_ZEROS = names("zeros new_zeros")
_BY_NUMBER = {name: RULES[name] for name in names("index index_select")}


@rule(*_BY_NUMBER)
def _choose(painter: Painter, node: Node) -> None:
    """Index positions along some dimensions."""
    data, indices = node.args[0], node.refs()[1:]
    if not any(painter.is_painted(Ref(index)) for index in indices):
        _BY_NUMBER[node.name](painter, node)
        return
    last = len(painter.shape(data.index)) - 1
    if not painter.is_painted(data) and last not in _chosen(painter, node):
        painter.paint_parameter(data, along=(last,))  # such as the biases of experts
    source = painter.of(data)
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
    """Gather along a dimension, at the same positions for all channels."""
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
    *names("scatter_reduce_ copy_"),
)
def _put_back(painter: Painter, node: Node) -> None:
    """Write or add rows at positions of a tensor, which may be a new one of zeros."""
    data, *rest = node.args
    after = {"aten::copy_": 0, "aten::index_put": 1, "aten::index_put_": 1}
    added = rest[after.get(node.name, 2)]
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
    # Dimensions of channels, counted from the last one, because the tensors may differ in rank.
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
    """Return whether a tensor held only zeros before an operation that may write data into it."""
    before = [painter.maker(Ref(index)) for index in painter.tape.aliases(data.index)]
    if not any(other is not None and other.name in _ZEROS for other in before):
        return not bool(painter.value(data).any())
    return not any(other.in_place for other in before if other is not None and other is not node)


def _same_along(painter: Painter, dim: int, data: Ref, index: Ref, added: Ref) -> bool:
    """Return whether an index is constant along a dimension of equal size in all three tensors."""
    sizes = {painter.shape(ref.index)[dim] for ref in (data, index, added)}
    return len(sizes) == 1 and painter.value(index).stride(dim) == 0


@rule(*names("segment_reduce"))
def _reduce_segments(painter: Painter, node: Node) -> None:
    """Take the sum, mean, minimum or maximum of the rows of each segment."""
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
    """Multiply rows by the weights of their experts, which are one parameter: [e, in, out]."""
    data, weight = node.args[:2]
    laid = painter.weight_view(weight)
    channels = None if laid is None else multiply_by_stack(painter, node, painter.of(data), laid)
    for ids in channels or ():
        if len(ids) % ALIGNED == 0:
            painter.unite_rows(ids, ids[::ALIGNED])
    if channels is None:
        painter.unknown(node)


def _are_coloured(painter: Painter, indices: list[int]) -> bool:
    return any(painter.of(Ref(index)).coloured_dims() for index in indices)


def _chosen(painter: Painter, node: Node) -> set[int]:
    """Return the dimensions along which positions are selected."""
    rank = len(painter.of(node.args[0]).shape)
    if node.name == "aten::copy_":
        return set()
    if "index_put" not in node.name and node.name != "aten::index":
        return {int(node.args[1]) % rank}
    chosen, at = set(), 0
    for index in node.args[1]:
        wide = _num_dims(painter, index)
        chosen |= set(range(at, at + wide)) if index is not None else set()
        at += wide
    return chosen


def _num_dims(painter: Painter, index: Any) -> int:
    """Count the dimensions that an index covers; a boolean mask covers as many as it has."""
    if isinstance(index, Ref) and painter.value(index).dtype in (torch.bool, torch.uint8):
        return painter.value(index).dim()
    return 1


def _spelt(painter: Painter, arguments: Any) -> Any:
    """Replace a boolean mask by one index for each of its dimensions."""
    first, *rest = arguments
    if not isinstance(first, list | tuple):
        return arguments
    spelt = [index for index in first for _ in range(_num_dims(painter, index))]
    return [spelt, *rest]


def _first(painter: Painter, argument: Any) -> Any:
    """Return an index like another one that selects the first position only."""
    if not isinstance(argument, Ref):
        return argument
    value = painter.value(argument)
    mask = value.dtype in (torch.bool, torch.uint8)
    return torch.zeros([1] * (1 if mask else value.dim()), dtype=torch.long)
