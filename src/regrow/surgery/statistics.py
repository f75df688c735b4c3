"""Rules for reductions over channels, and for norms that are written by hand.

If removed channels are zero, a sum over all channels equals the sum over the kept ones. A mean or
variance may be computed over the kept channels alone if it only normalises these channels: it is
subtracted from them, they are multiplied or divided by its root, or they are divided by their own
mean. Any other use keeps the channels whole.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from regrow.surgery.colours import WHOLE, Paint, Statistic
from regrow.surgery.operators import COPIES, TURNS, VIEWS, names
from regrow.surgery.rules import rule
from regrow.surgery.tape import Node, Ref

if TYPE_CHECKING:
    from regrow.surgery.painter import Painter

_TAKES_DIMS = names("mean sum amax amin max min var std var_mean std_mean logsumexp prod argmax "
                    "argmin any all")  # fmt: skip
_NORMS = names("linalg_vector_norm norm")  # whose arguments are an order, then dimensions
_NOT_OF_ZERO = names("logsumexp argmax argmin all")
_MEASURED = names("mean var std var_mean std_mean")
_ROOTS = names("std std_mean")


@rule(*_TAKES_DIMS, *_NORMS)
def _reduce(painter: Painter, node: Node) -> None:
    """Reduce dimensions along which the colour does not vary, or channels may be reduced."""
    data = node.args[0]
    if not isinstance(data, Ref) or len(node.refs()) > 1:
        painter.unknown(node)
        return
    source = painter.of(data)
    rank = len(source.shape)
    dims = _dims(node, rank)
    source = painter.level(source, dims)
    coloured = source.coloured_dims()
    crossed = [dim for dim in dims if dim in coloured]
    if node.name in _MEASURED:
        painter.plain |= {
            (node.module, source.shape[d], d - rank) for d in dims if d not in crossed
        }
    if crossed:
        _reduce_channels(painter, node, source, dims, crossed)
        return
    keep = len(painter.shape(node.outputs[0])) == rank
    ids = source.ids
    for dim in reversed(dims):
        ids = ids.narrow(dim, 0, 1) if keep else ids.select(dim, 0)
    clean = source.clean and node.name not in _NOT_OF_ZERO
    for output in node.outputs:
        if output is not None:
            painter.paints[output] = Paint(ids, painter.shape(output), clean)


def _dims(node: Node, rank: int) -> list[int]:
    place = 2 if node.name in _NORMS else 1
    given = node.args[place] if len(node.args) > place else None
    dims = [given] if isinstance(given, int) else given or range(rank)
    return sorted({d % rank for d in dims})


def _reduce_channels(
    painter: Painter, node: Node, source: Paint, dims: list[int], crossed: list[int]
) -> None:
    """Reduce the dimension of the channels."""
    channels, data = source.along(crossed[0]), node.args[0]
    if channels is None:
        painter.unknown(node)
        return
    statistic = None
    if node.name in _MEASURED:
        _note(painter, node, channels, dims, crossed[0])
        of = data.index if node.name == "aten::mean" else None
        statistic = Statistic(channels, node.name in _ROOTS, of)
    elif not (source.clean and _adds_up(node)):
        short = node.name.removeprefix("aten::")
        painter.unknown(node, f"'{short}' over its channels would change with their number")
        return
    for output in node.outputs:
        if output is not None:
            shape = painter.shape(output)
            ids = torch.full((1,) * len(shape), WHOLE)
            painter.paints[output] = Paint(ids, shape, clean=False, statistic=statistic)


def _adds_up(node: Node) -> bool:
    """Return whether zeros do not change the result."""
    order = node.args[1] if node.name in _NORMS and len(node.args) > 1 else 2
    return node.name in ("aten::sum", *_NORMS) and isinstance(order, int | float) and order > 0


def _note(painter: Painter, node: Node, channels: Tensor, dims: list[int], dim: int) -> None:
    """Record that a module's own code computes statistics over channels."""
    rank = len(painter.of(node.args[0]).shape)
    painter.measured.add(node.module)
    painter.pass_statistics(node.module, channels, dim - rank)
    if painter.tape.normalisers.get(node.module) == "normalized_shape":
        painter.pass_width(node.module, channels, dim=dims.index(dim))


# Operations whose result is still the statistic, up to its scale, shift, power or shape.
_ON_THE_WAY = (
    *COPIES, *TURNS, *VIEWS,
    *names("expand squeeze pow sqrt sqrt_ rsqrt rsqrt_ reciprocal clamp clamp_ clamp_min clamp_min_"
           " add add_ sub sub_ mul mul_ div div_ neg maximum"),
)  # fmt: skip
_DIVIDES = names("div div_")
_RESCALES = (*_DIVIDES, *names("mul mul_"))
_CENTRES = names("sub sub_ rsub")
LOST = (
    "a mean or variance over its channels is used for something other than normalising them, "
    "and would change with their number"
)


def carry(painter: Painter, node: Node) -> None:
    """Follow statistics through an operation; other uses than normalising keep channels whole.

    Called after the operation's result has been painted.
    """
    came = {
        index: painted.statistic
        for index in node.refs()
        if (painted := painter.paints.get(index)) is not None and painted.statistic is not None
    }
    if not came:
        return
    (output, *others) = node.outputs
    result = painter.paints[output] if output is not None else None
    if result is None or others or node.name not in (*_ON_THE_WAY, *_CENTRES):
        for statistic in came.values():
            painter.colours.freeze(statistic.ids, LOST)
        return
    first, *more = came.values()
    coloured = result.coloured_dims()
    alone = all(index in came or not painter.is_painted(Ref(index)) for index in node.refs())
    if alone and not coloured:
        is_root = any(s.is_root for s in came.values()) or _is_root(node)
        for other in more:
            _unite(painter, first, other.ids)
        assert output is not None
        of = None if more else first.of
        painter.paints[output] = replace(result, statistic=Statistic(first.ids, is_root, of))
        return
    channels = result.along(coloured[0]) if len(coloured) == 1 else None
    for statistic in came.values():
        own = node.name in _DIVIDES and statistic.of in node.refs()[:1]
        is_scale = node.name in _RESCALES and (statistic.is_root or own)
        comes_back = node.name in _CENTRES or is_scale
        if channels is not None and comes_back:
            _unite(painter, statistic, channels)
        else:
            painter.colours.freeze(statistic.ids, LOST)


def _is_root(node: Node) -> bool:
    name = node.name.removesuffix("_")
    return name in ("aten::sqrt", "aten::rsqrt") or (
        name == "aten::pow" and node.args[1] in (0.5, -0.5)
    )


def _unite(painter: Painter, statistic: Statistic, channels: Tensor) -> None:
    if len(statistic.ids) == len(channels):
        painter.unite(statistic.ids, channels)
    else:
        painter.colours.freeze(statistic.ids, LOST)
