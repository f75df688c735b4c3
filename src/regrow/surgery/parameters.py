"""Follow parameters and buffers through operations before they are combined with data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

from regrow.surgery.colours import paint
from regrow.surgery.operators import (
    ARITHMETIC,
    COPIES,
    MADE_ANEW,
    MOVES,
    RESIZES,
    SPLITS,
    TURNS,
    UNARY,
    VIEWS,
    names,
)
from regrow.surgery.tape import Node, Ref

if TYPE_CHECKING:
    from regrow.surgery.painter import Painter


@dataclass(frozen=True)
class Laid:
    """The layout of a parameter or buffer in a value that was made of it.

    ``dims`` gives for each dimension of the value the tensor's dimension that lies there complete
    and in order, or None; ``sizes`` are those of the tensor.
    """

    name: str
    dims: tuple[int | None, ...]
    sizes: tuple[int, ...]
    same_values: bool = True  # values were only moved, not changed
    in_order: bool = True  # values are in the tensor's memory order, in any shape
    standardised: str | None = None  # the module that standardised its rows, one by one
    # For each dimension of the value, the tensor's dimensions that a view merged; () if none did.
    merged: tuple[tuple[int, ...], ...] = ()
    # If the value is a part of the tensor: where that begins, along the dimension that was divided.
    start: int | None = None

    @property
    def as_it_is(self) -> bool:
        """True if the value is the tensor itself, with its dimensions in some order."""
        return self.same_values and self.is_weight and self.start is None

    @property
    def is_weight(self) -> bool:
        """True if all dimensions are there, and values are unchanged or rows standardised."""
        wide = {dim for dim, size in enumerate(self.sizes) if size != 1}
        values = self.same_values or self.standardised is not None
        return values and wide <= set(self.dims)

    def within(self, dim: int) -> tuple[int, ...]:
        """Return the tensor's dimensions that lie in one of the value's, the slowest first."""
        own = self.dims[dim]
        return self.merged[dim] if self.merged else () if own is None else (own,)

    def order(self) -> tuple[int, ...]:
        """Return ``dims``, with -1 for None."""
        return tuple(-1 if dim is None else dim for dim in self.dims)


_ONLY_LIKE = (*MADE_ANEW, *names("zeros_like ones_like empty_like"))
_JOINS = ("aten::cat", "aten::stack")


def follow(painter: Painter, node: Node) -> None:
    """Follow parameters and buffers through an operation that takes no data."""
    named = [Ref(index) for index in dict.fromkeys(node.refs()) if painter.laid(Ref(index))]
    if not named or node.name in _ONLY_LIKE:
        return
    alone = len(named) == 1 and bool(node.args) and node.args[0] == named[0]
    followed = (*COPIES, *TURNS, *MOVES, *UNARY, *ARITHMETIC, *_JOINS)
    if alone and node.name in (*COPIES, *TURNS) and node.name != "aten::unsqueeze":
        _turn(painter, node, named[0])
    elif node.name in followed and all(_is_vector(painter, ref) for ref in named):
        for ref in named:
            painter.paint_parameter(ref)
        painter.rules[node.name](painter, node)
    elif alone and node.name in RESIZES:
        _resize(painter, node, named[0])
    elif node.name == "aten::cat" and (columns := _columns(painter, node, named)) is not None:
        for ref in named:
            painter.paint_parameter(ref, along=(columns,))
        painter.rules[node.name](painter, node)
    elif alone and node.name in SPLITS and _divide(painter, node, named[0]):
        pass
    elif alone and node.name in (*MOVES, "aten::unsqueeze"):
        _move(painter, node, named[0])
    elif alone and node.name in UNARY and len(node.refs()) == 1:
        laid = painter.laid(named[0])
        assert laid is not None
        painter.lay(node, replace(laid, same_values=False))
    elif node.name == "aten::native_batch_norm" and is_of_rows(painter, node):
        standardise(painter, node)
    else:
        painter.compute(node)


def _is_vector(painter: Painter, ref: Ref) -> bool:
    return sum(size > 1 for size in painter.value(ref).shape) <= 1


def is_of_rows(painter: Painter, node: Node) -> bool:
    """Return whether a norm standardises each row of a weight, laid out as [1, rows, the rest]."""
    data, *affine = node.args[:5]
    laid = painter.laid(data)
    gains = [ref for ref in affine if ref is not None]
    return (
        laid is not None
        and laid.same_values
        and laid.in_order
        and len(laid.dims) == 3
        and laid.dims[1] == 0
        and bool(node.args[5])
        and all(painter.is_painted(ref) or painter.parameter(ref) for ref in gains)
    )


def standardise(painter: Painter, node: Node) -> None:
    """Follow a weight through the standardisation of its rows, and unite these with their gains."""
    laid = painter.laid(node.args[0])
    assert laid is not None
    for gain in node.args[1:3]:
        if gain is not None and (painter.is_painted(gain) or painter.paint_parameter(gain)):
            painter.unite(painter.rows(laid.name, laid.sizes[0]), painter.of(gain).full())
    painter.lay(node, replace(laid, same_values=False, standardised=node.module))


def equal_parts(sizes: Sequence[int]) -> int | None:
    """Return the smallest of some sizes if all are multiples of it, else None."""
    least = min(sizes)
    return None if least == 0 or any(size % least for size in sizes) else least


def _divide(painter: Painter, node: Node, ref: Ref) -> bool:
    """Divide a weight's rows among layers (queries, keys and values); False for other divisions.

    The same positions of all parts are removed, so that code may derive their sizes from its input.
    """
    laid = painter.laid(ref)
    assert laid is not None
    dim = int(node.args[2] if len(node.args) > 2 else 0) % len(laid.dims)
    sizes = [painter.shape(output)[dim] for output in node.outputs]
    part, own = equal_parts(sizes), laid.dims[dim]
    if part is None or own != 0 or not laid.as_it_is or painter.is_painted(ref):
        return False
    rows = painter.rows(laid.name, laid.sizes[own])
    painter.unite_rows(rows.view(-1, part).t().flatten(), rows[:part])
    for output, start in zip(node.outputs, accumulate([0, *sizes]), strict=False):
        painter.lay(node, replace(laid, in_order=False, start=start), output)
    return True


def _turn(painter: Painter, node: Node, ref: Ref) -> None:
    """Copy a tensor, or reorder its dimensions."""
    laid = painter.laid(ref)
    assert laid is not None
    rank = len(laid.dims)
    order = list(range(rank))
    if node.name == "aten::t":
        order.reverse()
    elif node.name == "aten::transpose":
        a, b = (int(d) % rank for d in node.args[1:3])
        order[a], order[b] = order[b], order[a]
    elif node.name == "aten::permute":
        order = [int(d) % rank for d in node.args[1]]
    dims = tuple(laid.dims[d] for d in order)
    merged = tuple(laid.merged[d] for d in order) if laid.merged else ()
    in_order = laid.in_order and node.name in COPIES
    painter.lay(node, replace(laid, dims=dims, merged=merged, in_order=in_order))


def _move(painter: Painter, node: Node, ref: Ref) -> None:
    """Move a tensor's values, and find out by moving positions which dimensions stay in order."""
    laid = painter.laid(ref)
    assert laid is not None
    shape = painter.shape(ref.index)
    if len(node.outputs) > 1 or node.outputs[0] is None:
        painter.compute(node)
        return
    result = painter.shape(node.outputs[0])
    in_order = laid.in_order and node.name in VIEWS
    if in_order and result == laid.sizes:
        painter.lay(node, replace(laid, dims=tuple(range(len(result))), merged=()))
        return
    merged = _merged(laid, shape, result) if node.name in VIEWS else ()
    dims: list[int | None] = [None] * len(result)
    for dim, own in enumerate(laid.dims):
        if own is None or shape[dim] == 1:
            continue
        places = torch.arange(shape[dim]).view([-1 if d == dim else 1 for d in range(len(shape))])
        places = _moved(painter, node, places.expand(shape))
        compact = paint(places).ids
        varied = [d for d, size in enumerate(compact.shape) if size > 1]
        if len(varied) == 1 and torch.equal(compact.flatten(), torch.arange(shape[dim])):
            dims[varied[0]] = own
    if set(dims) == {None}:
        painter.compute(node)
    else:
        painter.lay(node, replace(laid, dims=tuple(dims), merged=merged, in_order=in_order))


def _merged(laid: Laid, shape: Sequence[int], result: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Return the tensor's dimensions in each dimension of a view; () if the view divides one."""
    before = [(laid.within(dim), size) for dim, size in enumerate(shape) if size > 1]
    made: list[tuple[int, ...]] = []
    for size in result:
        inside: tuple[int, ...] = ()
        num = 1
        while num < size and before:
            own, wide = before.pop(0)
            if not own:
                return ()
            inside, num = inside + own, num * wide
        if num != size:
            return ()
        made.append(inside)
    return tuple(made)


def _resize(painter: Painter, node: Node, ref: Ref) -> None:
    """Change the size of a map ``[n, channels, ...]``, channel by channel."""
    laid = painter.laid(ref)
    assert laid is not None
    dims = (*laid.dims[:2], *[None] * (len(laid.dims) - 2))
    painter.lay(node, replace(laid, dims=dims, same_values=False, in_order=False))


def _columns(painter: Painter, node: Node, named: list[Ref]) -> int | None:
    """Return the last dimension that all joined tables share, except the one they are joined on.

    None if there is none, or if other tensors are joined as well.
    """
    laid = [painter.laid(ref) for ref in named]
    rank = len(painter.shape(node.outputs[0]))
    joined = (node.args[1] if len(node.args) > 1 else 0) % rank
    shared = [
        dim
        for dim in range(rank)
        if dim != joined
        and all(own is not None and len(own.dims) == rank for own in laid)
        and all(own.dims[dim] is not None and painter.shape(ref.index)[dim] > 1
                for own, ref in zip(laid, named, strict=True) if own is not None)
    ]  # fmt: skip
    return shared[-1] if shared and set(named) == set(node.args[0]) else None


def _moved(painter: Painter, node: Node, places: torch.Tensor) -> torch.Tensor:
    if node.name in VIEWS:
        return places.reshape(painter.shape(node.outputs[0]))
    values = tree_map(lambda a: painter.value(a) if isinstance(a, Ref) else a, node.args[1:])
    result: Any = tree_leaves(node.op(places, *values, **node.kwargs))[0]
    assert isinstance(result, torch.Tensor)
    return result
