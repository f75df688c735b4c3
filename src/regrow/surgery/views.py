"""Rules for operations that only move data: they are run on the colours themselves.

A view may divide a dimension: ``[C] -> [parts, heads, channels]``. Each position keeps its colour,
and an operation that needs all positions along one of the new dimensions unites them, so that they
are removed together. Operations that select positions by number (a slice, a split) keep the
dimension whole, unless they divide it into equal parts: then the same positions of all parts are
removed together. In a module that can narrow itself (with a method ``narrow_``) they keep nothing
whole.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from regrow.surgery.colours import WHOLE, ZERO, Paint, paint, spread
from regrow.surgery.operators import CHOICES, MOVES, SLICES, SPLITS, VIEWS
from regrow.surgery.parameters import equal_parts
from regrow.surgery.rules import rule
from regrow.surgery.tape import Node, Ref

if TYPE_CHECKING:
    from regrow.surgery.painter import Painter


@rule(*MOVES)
def _move(painter: Painter, node: Node) -> None:
    """Run an operation that only moves data on the colours themselves."""
    data = node.args[0]
    if any(painter.is_painted(Ref(index)) for index in node.refs()[1:]):
        painter.unknown(node)  # what is moved where depends on the data
        return
    source = painter.of(data)
    if node.module not in painter.movers and node.name in CHOICES:
        source = _keep_what_is_chosen(painter, node, source)
    shape = source.shape
    if 0 in shape:  # a detector that finds no objects passes on such values
        source = replace(source, shape=_with_one(shape))
    try:
        moved = _moved(painter, node, source)
    except (RuntimeError, IndexError):
        if 0 not in shape:
            raise
        moved = [torch.empty(0)] * len(node.outputs)  # its arguments suit an empty value only
    for output, ids in zip(node.outputs, moved, strict=True):
        if output is not None:
            shape = painter.shape(output)
            unknown = 0 in shape and ids.shape != _with_one(shape)
            found = _nothing(shape) if unknown else paint(ids, clean=source.clean)
            painter.paints[output] = replace(found, shape=shape)


def _moved(painter: Painter, node: Node, source: Paint) -> list[Tensor]:
    """Return the colours of each output of an operation that only moves data."""
    rest = node.args[1:]
    if node.name in VIEWS:
        return [_reshaped(source, _with_one(painter.shape(node.outputs[0])))]
    if node.name == "aten::roll" and len(rest) > 1 and rest[1]:
        return [node.op(source.ids, *rest).expand(source.shape)]
    indices = tree_map(lambda a: painter.value(a) if isinstance(a, Ref) else a, rest)
    return tree_leaves(node.op(source.full(), *indices, **node.kwargs))


def _with_one(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a shape with 1 for each size of 0."""
    return tuple(max(size, 1) for size in shape)


def _nothing(shape: tuple[int, ...]) -> Paint:
    """Return the colours of an empty value: none."""
    return Paint(torch.full((1,) * len(shape), ZERO), shape)


def _reshaped(source: Paint, shape: tuple[int, ...]) -> Tensor:
    """Reshape colours of a value that is not empty, without expanding where they do not vary.

    So a window of a map is cut out without storing the colour of each of its positions.
    """
    if 0 in shape or math.prod(shape) != math.prod(source.shape):
        raise RuntimeError(f"{source.shape} cannot be reshaped to {shape}")  # of an empty value
    before: list[int] = []
    after: list[int] = []
    while len(before) < len(source.shape) or len(after) < len(shape):
        own, new = _block(source.shape[len(before) :], shape[len(after) :])
        colours = source.ids.shape[len(before) : len(before) + own]
        varies = any(size > 1 for size in colours)
        before += source.shape[len(before) : len(before) + own] if varies else [1] * own
        after += shape[len(after) : len(after) + new] if varies else [1] * new
    return source.ids.expand(before).reshape(after).expand(shape)


def _block(own: Sequence[int], new: Sequence[int]) -> tuple[int, int]:
    """Count the fewest leading dimensions of two shapes of one size that have equal products."""
    num_own, num_new = min(1, len(own)), min(1, len(new))
    while (size := math.prod(own[:num_own])) != (made := math.prod(new[:num_new])):
        if size < made:
            num_own += 1
        else:
            num_new += 1
    return num_own, num_new


@rule("aten::view_as_complex", "aten::view_as_real")
def _as_complex(painter: Painter, node: Node) -> None:
    """Follow pairs of channels to complex numbers and back; pairs and heads stay complete."""
    source = painter.of(node.args[0])
    if node.name == "aten::view_as_real":
        ids = source.ids.unsqueeze(-1)
    else:
        last = len(source.shape) - 1
        source = painter.level(source, (last - 1, last))
        if last in source.coloured_dims():
            painter.unite(source.ids, source.ids.narrow(last, 0, 1).expand_as(source.ids))
        ids = source.ids.select(last, 0)
    painter.put(node, Paint(ids, painter.shape(node.outputs[0]), source.clean))


@rule("aten::im2col", "aten::col2im")
def _slide(painter: Painter, node: Node) -> None:
    """Unfold the windows of a map, channel by channel, or fold them again."""
    source = painter.of(node.args[0])
    apart = node.name == "aten::im2col"
    channels = source.along(-3 if apart else -2)
    if channels is None:
        painter.unknown(node)
        return
    num = math.prod(node.args[1 if apart else 2])
    if apart:
        out = channels.repeat_interleave(num)
    else:
        places = channels.view(-1, num)
        out = painter.unite(places, places[:, :1])[:, 0]
    shape = painter.shape(node.outputs[0])
    painter.put(node, spread(out, shape, len(shape) - (2 if apart else 3), clean=source.clean))


def _keep_what_is_chosen(painter: Painter, node: Node, source: Paint) -> Paint:
    """Keep dimensions whole in which the operation selects positions, or unite equal parts."""
    if node.name in SLICES and painter.shape(node.outputs[0]) == source.shape:
        return source
    if painter.is_idle(node):
        return source  # its result is unused, or only its shape is used
    chosen = _chosen_dims(node, len(source.shape))
    if len(chosen) == 1 and _are_heads_and_others(painter, node, source, chosen[0]):
        return _keep_all_but_heads(painter, node, source, chosen[0])
    source = painter.level(source, chosen)
    for dim in chosen:
        if dim not in source.coloured_dims():
            continue
        step = _step(painter, node, dim)
        if step is not None:
            places = source.ids.reshape(
                *source.ids.shape[:dim], -1, step, *source.ids.shape[dim + 1 :]
            )
            painter.colours.unite(places, places.narrow(dim + 1, 0, 1).expand_as(places))
            continue
        size = _part(painter, node, dim)
        why = f"'{node.name.removeprefix('aten::')}' divides it at fixed positions"
        unequal = size is None or node.name == "aten::split_with_sizes"
        of_data = painter.laid(node.args[0]) is None
        if unequal and of_data and _follow_numbers(painter, node, source, dim, why=why):
            continue
        if size is None:
            painter.keep_whole(source, node, why)
            return Paint(torch.full((1,) * len(source.shape), WHOLE), source.shape)
        ids = source.ids
        parts = ids.reshape(*ids.shape[:dim], -1, size, *ids.shape[dim + 1 :])
        painter.colours.unite(parts, parts.narrow(dim, 0, 1).expand_as(parts))
    return source


def _step(painter: Painter, node: Node, dim: int) -> int | None:
    """Return n if all slices of a value take every n-th position, so that n are cut together."""
    data = node.args[0]
    shape = painter.shape(data.index)
    steps = set()
    for other in painter.tape.choices(data) if node.name == "aten::slice" else ():
        _, along, start, end, step = (*other.args, *(None,) * 5)[:5]
        if other.name == "aten::slice" and (along or 0) % len(shape) == dim:
            through = 0 <= (start or 0) < (step or 1) and (end is None or end >= shape[dim])
            steps.add(step if through else None)
    step = steps.pop() if len(steps) == 1 else None
    return step if step is not None and step > 1 and shape[dim] % step == 0 else None


def _part(painter: Painter, node: Node, dim: int) -> int | None:
    """Return the size of the equal parts that a dimension is divided into, None if it is not."""
    data = node.args[0]
    if node.name in SPLITS:
        parts = [painter.shape(output)[dim] for output in node.outputs]
        if painter.laid(data) is not None:
            return equal_parts(parts)
        return parts[0] if len(set(parts)) == 1 else None
    if node.name not in SLICES:
        return None
    total = painter.shape(data.index)[dim]
    edges = {0, total}
    for other in painter.tape.choices(data):
        if other.name in SLICES and dim in _chosen_dims(other, len(painter.shape(data.index))):
            edges.update(_edges(other, painter.shape(other.outputs[0])[dim], total))
    places = sorted(edges)
    sizes = {b - a for a, b in pairwise(places)}
    return sizes.pop() if len(sizes) == 1 else None


def _are_heads_and_others(painter: Painter, node: Node, source: Paint, dim: int) -> bool:
    """Return whether selections take the first rows, as many as a number says, and some at the end.

    This is how code divides a packed projection into query heads and a shared key and value.
    """
    rank = len(source.shape)
    if dim not in source.coloured_dims() or dim == rank - 1:
        return False
    beside = painter.tape.choices(node.args[0])
    if any(list(_chosen_dims(other, rank)) != [dim] for other in beside):
        return False
    firsts = {painter.shape(n.outputs[0])[dim] for n in beside if n.name in SLICES}
    held = painter.tape.numbers.get(node.module, ())
    left = source.shape[dim] - max(firsts, default=0)
    return (
        len(firsts) == 1
        and firsts <= set(held)
        and left > 0
        and left not in firsts  # two halves are equal parts
        and all(_counts_from_an_end(painter, other, left) for other in beside)
    )


def _counts_from_an_end(painter: Painter, node: Node, left: int) -> bool:
    """Return whether rows are selected from the first on, or by their distance from the end."""
    if node.name in SLICES:
        return (node.args[2] if len(node.args) > 2 else None) in (0, None)
    if node.name == "aten::select":
        return -left <= int(node.args[2]) < 0
    if node.name != "aten::index":
        return False
    (index,) = (ref for ref in node.args[1] if ref is not None)
    places = painter.value(index)
    return places.dtype == torch.long and bool(((places < 0) & (places >= -left)).all())


def _keep_all_but_heads(painter: Painter, node: Node, source: Paint, dim: int) -> Paint:
    """Unite the colours within each head, and keep the rows whole that all heads share."""
    source = painter.level(source, [d for d in source.coloured_dims() if d != dim])
    ids = source.along(dim)
    assert ids is not None
    if node.name in SLICES:
        num = painter.shape(node.outputs[0])[dim]
        painter.count(node.module, ids[:num])
        painter.keep_whole(paint(ids[num:]), node, "all heads share it")
    return source


def _follow_numbers(painter: Painter, node: Node, source: Paint, dim: int, *, why: str) -> bool:
    """Allow cuts in parts of unequal sizes, if the module that divides holds these sizes.

    All that one number counts is removed together; a trial decides whether it counts them. Return
    False if the module does not hold the sizes.
    """
    channels = source.along(dim)
    held = painter.tape.numbers.get(node.module, ())
    if channels is None or node.name not in ("aten::split_with_sizes", "aten::slice"):
        return False
    if node.name == "aten::slice":
        first = _only_edge(painter, node, dim)
        if first not in held:
            return _are_products(painter, node, dim, held)
        painter.count(node.module, channels[:first])
        return True
    parts = torch.split(channels, [painter.shape(output)[dim] for output in node.outputs])
    others = [part for part in parts if len(part) not in held]
    if len(others) == len(parts):
        return False
    rest = len(others) == 1 and len(channels) in held  # one part is the rest of a number held
    for part in parts:
        if rest and part is others[0]:
            continue
        if len(part) in held:
            painter.count(node.module, part)
        else:
            painter.keep_whole(paint(part), node, why)
    return True


def _are_products(painter: Painter, node: Node, dim: int, held: Collection[int]) -> bool:
    """Return whether each part that slices make is as wide as a product of two numbers held."""
    data = node.args[0]
    total = painter.shape(data.index)[dim]
    edges = {0, total}
    for other in painter.tape.choices(data):
        if other.name in SLICES:
            if _chosen_dims(other, len(painter.shape(data.index))) != [dim]:
                return False
            edges.update(_edges(other, painter.shape(other.outputs[0])[dim], total))
    sizes = {b - a for a, b in pairwise(sorted(edges))}
    return len(sizes) > 1 and sizes <= {a * b for a in held for b in held}


def _only_edge(painter: Painter, node: Node, dim: int) -> int | None:
    """Return where slices divide a dimension in two, if that is counted from its start."""
    shape = painter.shape(node.args[0].index)
    edges = set()
    for other in painter.tape.choices(node.args[0]):
        if other.name == "aten::slice":
            given = dict(zip(("dim", "start", "end", "step"), other.args[1:], strict=False))
            if given.get("dim", 0) % len(shape) != dim:
                continue
            if given.get("step", 1) != 1:
                return None
            end = given.get("end")
            edges |= {given.get("start") or 0, shape[dim] if end is None else end}
    inner = {edge for edge in edges if 0 != edge < shape[dim]}
    return inner.pop() if len(inner) == 1 and min(inner) > 0 else None


def _edges(node: Node, length: int, total: int) -> tuple[int, ...]:
    """Return where a slice begins and ends; all positions if it has a step."""
    start = int(node.args[2]) if len(node.args) > 2 and node.args[2] is not None else 0
    if node.name == "aten::slice" and len(node.args) > 4 and node.args[4] != 1:
        return tuple(range(total + 1))
    start = min(start + total if start < 0 else start, total)
    return start, start + length


def _chosen_dims(node: Node, rank: int) -> Sequence[int]:
    """Return the dimensions along which an operation selects positions by number."""
    name = node.name.removeprefix("aten::")
    if name == "index":
        return [d for d, index in enumerate(node.args[1]) if index is not None]
    position = {"split": 2, "split_with_sizes": 2, "chunk": 2, "roll": 2}.get(name, 1)
    dims = node.args[position] if len(node.args) > position else 0
    if not isinstance(dims, int):
        return [d % rank for d in dims] or list(range(rank))
    return [dims % rank] if name != "roll" or len(node.args) > 2 else list(range(rank))
