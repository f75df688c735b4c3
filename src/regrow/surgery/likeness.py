"""Compare the operations of a smaller network with those of the original, one by one.

The colours predict the size of each value after a cut. A smaller network that runs the same
operations, with the same constants, on values of these sizes, computes the same as the network with
its cut units silenced, by the definitions of the operations: no values have to be compared. Code
that depends on a number of channels changes a size, a constant, or which value an operation reads.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from regrow.surgery.colours import ZERO, Classes
from regrow.surgery.mask import Mask
from regrow.surgery.operators import ARITHMETIC, SLICES, UNARY, VIEWS, names
from regrow.surgery.painter import Painter, where
from regrow.surgery.tape import Node, Ref, Tape

# In these operations, integers in lists are sizes, which show in the size of the result, ...
_SIZED = names(
    "view _unsafe_view reshape _reshape_alias expand repeat split_with_sizes empty zeros ones full "
    "new_empty new_zeros new_ones new_full empty_strided as_strided as_strided_ constant_pad_nd "
    "native_layer_norm rms_norm"
)
# ... and in these, so are integers outside lists.
_COUNTED = (*SLICES, *names("split convolution _convolution native_group_norm"))


# The results of these depend on their constant arguments, and on no size.
_BY_NUMBER = frozenset((*UNARY, *ARITHMETIC, "aten::roll"))


@dataclass(frozen=True)
class Unlike:
    """The number of the first operation in which a smaller network differs.

    If it is the same operation with another constant, ``node`` is the network's own operation, and
    ``numbers`` are the constants of the network and of the smaller one.
    """

    place: int
    node: Node | None = None
    numbers: tuple[Any, Any] = (None, None)

    def __str__(self) -> str:
        assert self.node is not None
        was, now = self.numbers
        return f"'{self.node.name}' takes {now} in place of {was}{where(self.node)}"


@dataclass(frozen=True)
class Likeness:
    """The record of a network, with which smaller ones are compared.

    ``group`` and ``unit`` give, by class of colours, its group and its unit there.
    """

    painter: Painter
    classes: Classes
    group: Tensor
    unit: Tensor
    groups: Mapping[str, int]

    def unlike(self, smaller: Tape, mask: Mask, *, added: Collection[str] = ()) -> Unlike | None:
        """Return where a smaller network first differs, or None; ``added`` modules are ignored."""
        sizes = _Sizes(self, mask)
        mine, its = _Done(self.painter.tape), _Done(smaller, added)
        inputs = zip(self.painter.tape.inputs, smaller.inputs, strict=True)
        same: dict[int | None, int | None] = dict(inputs)

        def are_same(values: Sequence[int], others: Sequence[int]) -> bool:
            """Return whether values correspond to the network's, as far as they were computed."""
            pairs = zip(map(mine.source, values), map(its.source, others), strict=True)
            return all(same.get(a, b) == b for a, b in pairs)

        for place, (node, other) in enumerate(zip_longest(mine.nodes(), its.nodes())):
            if node is None or other is None or _name(node) != _name(other):
                return Unlike(place)
            numbers = _other_numbers(node, other)
            if numbers is not None and self._decides(node, numbers):
                return Unlike(place, node, numbers)
            alike = numbers is None and self._same_constants(node, other, smaller)
            if not alike or not sizes.fit(node, other, smaller):
                return Unlike(place)
            if not are_same(node.refs(), other.refs()):
                return Unlike(place)
            same.update(zip(node.outputs, other.outputs, strict=True))
        ends = (self.painter.tape.outputs, smaller.outputs)
        return None if are_same(*ends) else Unlike(len(self.painter.tape.nodes))

    def _decides(self, node: Node, numbers: tuple[Any, Any]) -> bool:
        """Return whether an operation on data computes something else with another constant."""
        return (
            node.name in _BY_NUMBER
            and all(type(number) in (int, float) for number in numbers)
            and any(output in self.painter.paints for output in node.outputs)
        )

    def _same_constants(self, node: Node, other: Node, smaller: Tape) -> bool:
        """Return whether the tensors that the code itself creates hold the same numbers."""
        for mine, its in zip(node.refs(), other.refs(), strict=True):
            if mine in self._constants:
                a, b = self.painter.tape.values[mine], smaller.values[its]
                if b.is_meta or a.shape != b.shape or not torch.equal(a, b):
                    return False
        return True

    @cached_property
    def _constants(self) -> frozenset[int]:
        tape = self.painter.tape
        made = {output for node in tape.nodes for output in node.outputs}
        known = {*made, *tape.names, *tape.inputs}
        used = {index for node in tape.nodes for index in node.refs()} - known
        return frozenset(index for index in used if not tape.values[index].is_meta)


class _Sizes:
    """The sizes of values without the units that a mask cuts."""

    def __init__(self, whole: Likeness, mask: Mask) -> None:
        self.painter, self.classes = whole.painter, whole.classes
        own = torch.ones_like(whole.group, dtype=torch.bool)
        for name, kept in mask.kept.items():
            here = whole.group == whole.groups[name]
            own[here] = kept[whole.unit[here]]
        self._stays, level = own.clone(), self.classes.above
        while bool(level.any()):  # a view's channel is removed with that of its stream
            self._stays &= own[level]
            level = self.classes.above[level]
        self._known: dict[int, tuple[int, ...] | None] = {}

    def fit(self, node: Node, other: Node, smaller: Tape) -> bool:
        """Return whether an operation's results, as far as they are used, have these sizes."""
        if node.name in SLICES and not self._begin_alike(node, other):
            return False
        return all(
            its is not None and tuple(smaller.values[its].shape) == self._of(mine)
            for mine, its in zip(node.outputs, other.outputs, strict=True)
            if mine is not None and mine in self.painter.live and mine in self.painter.paints
        )

    def _begin_alike(self, node: Node, other: Node) -> bool:
        """Return whether two slices begin at the same channel, or position of another dimension."""
        source = self.painter.of(node.args[0])
        ids = source.along(_dim(node, len(source.shape)))
        if len(source.coloured_dims()) != 1 or ids is None:
            return _start(node) == _start(other)
        stays = self._stays[self.classes.root[ids.clamp(min=ZERO)]]
        start = _start(node)
        before = int(stays[:start].sum()) if start >= 0 else -int(stays[start:].sum())
        return before == _start(other)

    def _of(self, index: int) -> tuple[int, ...] | None:
        """Return the size of a value; None if what is left of it is not a rectangular block."""
        source = self.painter.paints[index]
        key = id(source.ids)
        if key not in self._known:
            self._known[key] = self._left(source.ids)
        left = self._known[key]
        if left is None:
            return None
        return tuple(
            size if colours == 1 else num
            for size, colours, num in zip(source.shape, source.ids.shape, left, strict=True)
        )

    def _left(self, ids: Tensor) -> tuple[int, ...] | None:
        if ids.numel() == 1:
            return tuple(ids.shape)
        stays = self._stays[self.classes.root[ids.clamp(min=ZERO)]]
        wide = [dim for dim, size in enumerate(ids.shape) if size > 1]
        if len(wide) == 1:
            num = int(stays.sum())
            return tuple(num if dim == wide[0] else 1 for dim in range(ids.dim()))
        places = stays.nonzero()
        left = tuple(len(torch.unique(places[:, dim])) for dim in range(stays.dim()))
        return left if len(places) == torch.Size(left).numel() else None


class _Done:
    """A tape without clones and without the operations of inserted modules."""

    def __init__(self, tape: Tape, added: Collection[str] = ()) -> None:
        self._tape, self._added = tape, added
        self._copies: dict[int | None, int] = {}

    def nodes(self) -> Iterator[Node]:
        """Yield the operations."""
        for node in self._tape.nodes:
            if node.name == "aten::clone" or node.module in self._added:
                self._copies[node.outputs[0]] = self.source(node.refs()[0])
            else:
                yield node

    def source(self, index: int) -> int:
        """Return the value that one was copied from, or itself."""
        return self._copies.get(index, index)


def _name(node: Node) -> str:
    return VIEWS[0] if node.name in VIEWS else node.name


def _dim(node: Node, rank: int) -> int:
    return int(node.args[1]) % rank if len(node.args) > 1 else 0


def _start(node: Node) -> int:
    return int(node.args[2]) if len(node.args) > 2 and node.args[2] is not None else 0


def _other_numbers(node: Node, other: Node) -> tuple[Any, Any] | None:
    """Return the first constant that differs, of the network and of the smaller one; else None."""
    if node.name == "aten::native_group_norm":
        channels, groups = node.args[4:7:2]
        left, num = other.args[4:7:2]
        if num != (1 if groups == 1 else left * groups / channels):
            return groups, num
    pairs = _pairs((node.args, dict(node.kwargs)), (other.args, dict(other.kwargs)), deep=-2)
    for a, b, in_list in pairs:
        free = node.name in (_SIZED if in_list else _COUNTED)
        if not (type(a) is type(b) is int and free) and not _equal(a, b):
            return a, b
    return None


def _pairs(mine: Any, its: Any, *, deep: int) -> Iterator[tuple[Any, Any, bool]]:
    """Yield the arguments of two operations in pairs, and whether they are in lists."""
    both = (mine, its)
    if all(isinstance(x, list | tuple) for x in both) and len(mine) == len(its):
        for a, b in zip(mine, its, strict=True):
            yield from _pairs(a, b, deep=deep + 1)
    elif all(isinstance(x, dict) for x in both) and mine.keys() == its.keys():
        for name in mine:
            yield from _pairs(mine[name], its[name], deep=deep + 1)
    else:
        yield mine, its, deep > 0


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Ref) or isinstance(b, Ref):
        return type(a) is type(b)
    if isinstance(a, torch.ScriptObject):  # PyTorch's own, such as a profiler's: not a number
        return type(a) is type(b)
    return type(a) is type(b) and (bool(a == b) or (a != a and b != b))
