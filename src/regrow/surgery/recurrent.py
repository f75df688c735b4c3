"""The rule for recurrent layers, which are recorded as one operation each.

A hidden unit has a row in the block of each gate, and a column in the recurrent weights. Without
these it stays zero if its initial state is zero. A layer has a single hidden size, so the same
units are removed from all stacked layers and from both directions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from regrow.surgery.colours import Paint, spread
from regrow.surgery.rules import rule
from regrow.surgery.tape import RECURRENT, Node, Ref

if TYPE_CHECKING:
    from regrow.surgery.painter import Painter


@rule(RECURRENT)
def _recur(painter: Painter, node: Node) -> None:
    data, states, cells, num_directions = node.args
    source = painter.of(data)
    channels = source.along(-1)
    weights = [ref for cell in cells for ref in cell]
    if channels is None or any(painter.parameter(ref) is None for ref in weights):
        painter.unknown(node)
        return
    if states:
        painter.unknown(node, "an initial state is passed to the recurrent layer")
        return
    projection = painter.value(cells[0][-1]) if _is_projected(cells[0]) else None
    held = painter.value(cells[0][1]) if projection is None else projection
    units = painter.colours.fresh(held.shape[1])
    out = units if projection is None else painter.colours.fresh(len(projection))
    for number, cell in enumerate(cells):
        if number == num_directions:  # the first layer's output
            channels = out.repeat(num_directions)
            source = Paint(channels, source.shape)
        _pass_cell(painter, cell, channels, source, units=units, out=out)
    results = (out.repeat(num_directions), out, units)
    for index, ids in zip(node.outputs, results, strict=False):
        if index is not None:
            shape = painter.shape(index)
            painter.paints[index] = spread(ids, shape, len(shape) - 1)


def _is_projected(cell: list[Ref]) -> bool:
    """Return whether a cell projects its output (``proj_size``), by a matrix after the others."""
    return len(cell) in (3, 5)


def _pass_cell(
    painter: Painter,
    cell: list[Ref],
    channels: Tensor,
    source: Paint,
    *,
    units: Tensor,
    out: Tensor,
) -> None:
    """Record the tensors of one cell: input, recurrent and projection weights, and biases."""
    biases = cell[2:4] if len(cell) > 3 else [None, None]
    reads = ((channels, source), (out, Paint(out, source.shape)))
    for ref, bias, (ids, read) in zip(cell[:2], biases, reads, strict=True):
        laid = painter.weight_view(ref)
        assert laid is not None
        painter.read(laid, 1, ids, read)
        name = painter.parameter(bias) if bias is not None else None
        rows = painter.produce(laid.name, name, 0, laid.sizes[0], linear=True)
        painter.unite(rows.view(-1, len(units)), units)
    if _is_projected(cell):
        laid = painter.weight_view(cell[-1])
        assert laid is not None
        painter.read(laid, 1, units, Paint(units, source.shape))
        painter.unite(painter.produce(laid.name, None, 0, laid.sizes[0], linear=True), out)
