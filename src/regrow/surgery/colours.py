"""Colours: integers that stand for channels, and which of them must live and die together.

Every producer (convolution, linear layer, ...) gives its output channels fresh colours;
elementwise operations unite the colours that meet; a norm may open a *view*: colours of its own
beneath those of the stream it reads, so that a reader can drop a channel which the stream keeps.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

ZERO = 0  # a channel that is constantly zero: meets any colour freely
WHOLE = -1  # data whose layout must not change: whatever meets it is kept whole


class ViewConflictError(Exception):
    """A view's colours met others, so its norm is no view. Carries the norm's module name."""

    def __init__(self, norm: str) -> None:
        super().__init__(norm)
        self.norm = norm


@dataclass(frozen=True, eq=False)
class Statistic:
    """A mean or a variance over channels, of those colours; ``is_root`` if it is a scale.

    ``of`` is the value whose mean it is, if it is one value's.
    """

    ids: Tensor
    is_root: bool
    of: int | None


@dataclass(frozen=True)
class Paint:
    """The colours of one value: ``ids`` broadcasts to ``shape``, with size 1 wherever it can.

    ``clean`` says that a silenced channel is zero here (a sigmoid, for one, makes zero one half).
    A ``statistic`` over channels has to come back to them, as it does in a norm.
    """

    ids: Tensor
    shape: tuple[int, ...]
    clean: bool = True
    statistic: Statistic | None = None

    def full(self) -> Tensor:
        """Return the colour of every element."""
        return self.ids.expand(self.shape)

    def coloured_dims(self) -> list[int]:
        """Return the dimensions along which the colour varies."""
        return [d for d, size in enumerate(self.ids.shape) if size > 1]

    def along(self, dim: int) -> Tensor | None:
        """Return the colours ``[size]`` of one dimension, or None when another one varies too."""
        dim %= len(self.shape)
        if any(d != dim for d in self.coloured_dims()):
            return None
        return self.ids.flatten().expand(self.shape[dim]).clone()


def paint(ids: Tensor, *, clean: bool = True) -> Paint:
    """Make a value's colours from those of every element, in compact form."""
    shape = tuple(ids.shape)
    for dim, size in enumerate(shape):
        if size > 1:
            first = ids.narrow(dim, 0, 1)
            if ids.stride(dim) == 0 or bool((ids == first).all()):
                ids = first
    return Paint(ids.clone(), shape, clean)


def spread(ids: Tensor, shape: tuple[int, ...], dim: int, *, clean: bool = True) -> Paint:
    """Lay the colours ``[size]`` along one dimension of a value."""
    wanted = [1] * len(shape)
    wanted[dim] = len(ids)
    return Paint(ids.reshape(wanted).clone(), shape, clean)


@dataclass(frozen=True, eq=False)
class Classes:
    """Colours when all unions are made; every tensor ``[colours]`` is indexed by colour."""

    root: Tensor  # the representative of a colour's class
    above: Tensor  # class of the stream that a view's class reads, else ZERO
    _reason: Tensor  # position in ``_reasons``, -1 where the class may be cut
    _reasons: tuple[str, ...]

    def levels(self, ids: Tensor) -> Iterator[Tensor]:
        """Yield the classes of colours, then those of the streams above them, to the top."""
        level = self.root[ids.clamp(min=ZERO)]
        while bool(level.any()):
            yield level
            level = self.above[level]

    def free(self, classes: Tensor) -> Tensor:
        """Tell which classes may be cut."""
        return (classes > ZERO) & (self._reason[classes] < 0)

    def reason(self, colour: int) -> str:
        """Say why a class is kept whole."""
        return self._reasons[int(self._reason[colour])]


class Colours:
    """Union-find over colours, with views above which other colours stand, and frozen ones."""

    def __init__(self) -> None:
        self._parent = [ZERO]
        self._above: dict[int, int] = {}  # colour of a view -> colour of the stream it reads
        self._view_of: dict[int, str] = {}  # colour of a view -> its norm
        self._frozen: list[tuple[Tensor, str]] = []  # colours, why they are kept whole
        self.origin: Callable[[], str] = str  # says where the whole data begins that is met now

    def fresh(self, count: int) -> Tensor:
        """Make new colours ``[count]``."""
        start = len(self._parent)
        self._parent.extend(range(start, start + count))
        return torch.arange(start, start + count)

    def view(self, stream: Tensor, norm: str) -> Tensor:
        """Make new colours beneath those of a stream ``[channels]``, owned by a norm."""
        ids = self.fresh(len(stream))
        self._above.update(zip(ids.tolist(), stream.tolist(), strict=True))
        self._view_of.update(dict.fromkeys(ids.tolist(), norm))
        return ids

    def freeze(self, ids: Tensor, reason: str) -> None:
        """Keep channels whole, with everything above them."""
        self._frozen.append((ids.flatten(), reason))

    def are_one(self, a: Tensor, b: Tensor) -> bool:
        """Tell whether two lists of colours are the same, by what has been united so far."""
        pairs = zip(a.tolist(), b.tolist(), strict=True) if len(a) == len(b) else [(ZERO, WHOLE)]
        return all(self._find(x) == self._find(y) for x, y in pairs)

    def unite(self, a: Tensor, b: Tensor) -> Tensor:
        """Unite the colours of two tensors of one shape, element by element; return the result."""
        differ = (a != b) & (a != ZERO) & (b != ZERO)
        for x, y in dict.fromkeys(zip(a[differ].tolist(), b[differ].tolist(), strict=True)):
            self._union(x, y)
        whole = (a == WHOLE) | (b == WHOLE)
        if bool(whole.any()):
            origin = self.origin()
            more = f": {origin}" if origin else ""
            self.freeze(torch.maximum(a, b)[whole], f"it meets data that is kept whole{more}")
        return torch.where(whole, WHOLE, torch.where(a == ZERO, b, a))

    def roots(self, ids: Tensor) -> Tensor:
        """Return the colours ``[n]`` by which those that are united so far are known."""
        return torch.tensor([self._find(colour) for colour in ids.tolist()], dtype=torch.long)

    def classes(self) -> Classes:
        """Look every colour up, now that all unions are made."""
        root = torch.tensor(self._parent)
        while not torch.equal(root, root[root]):
            root = root[root]
        above = torch.zeros_like(root)
        if self._above:
            below = torch.tensor(list(self._above))
            above[below] = root[torch.tensor(list(self._above.values())).clamp(min=ZERO)]
        reason = torch.full_like(root, -1)
        classes = Classes(root, above, reason, tuple(text for _, text in self._frozen))
        for number, (ids, _) in enumerate(self._frozen):
            for level in classes.levels(ids):
                reason[level] = torch.where(reason[level] < 0, number, reason[level])
        return classes

    def _union(self, x: int, y: int) -> None:
        x, y = self._find(x), self._find(y)
        for root in (x, y):
            if x != y and root in self._view_of:
                raise ViewConflictError(self._view_of[root])
        if WHOLE not in (x, y):
            self._parent[max(x, y)] = min(x, y)

    def _find(self, colour: int) -> int:
        if colour == WHOLE:
            return WHOLE
        root = colour
        while self._parent[root] != root:
            root = self._parent[root]
        while self._parent[colour] != root:
            self._parent[colour], colour = root, self._parent[colour]
        return root
