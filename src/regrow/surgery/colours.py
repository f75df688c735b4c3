"""Colours: integers that stand for channels, and which of them must live and die together.

Every producer (convolution, linear layer, ...) gives its output channels fresh colours;
elementwise operations unite the colours that meet; a norm may open a *view*: colours of its own
beneath those of the stream it reads, so that a reader can drop a channel which the stream keeps.
"""

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


@dataclass(frozen=True)
class Paint:
    """The colours of one value: ``ids`` broadcasts to ``shape``, with size 1 wherever it can.

    ``clean`` says that a silenced channel is zero here (a sigmoid, for one, makes zero one half).
    """

    ids: Tensor
    shape: tuple[int, ...]
    clean: bool = True

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


class Colours:
    """Union-find over colours, with views above which other colours stand, and frozen ones."""

    def __init__(self) -> None:
        self._parent = [ZERO]
        self._above: dict[int, int] = {}  # colour of a view -> colour of the stream it reads
        self._view_of: dict[int, str] = {}  # colour of a view -> its norm
        self._frozen: dict[int, str] = {}  # colour -> why it is kept whole

    def fresh(self, count: int) -> Tensor:
        """Make new colours ``[count]``."""
        start = len(self._parent)
        self._parent.extend(range(start, start + count))
        return torch.arange(start, start + count)

    def view(self, stream: Tensor, norm: str) -> Tensor:
        """Make new colours beneath those of a stream ``[channels]``, owned by a norm."""
        colours = self.fresh(len(stream))
        for colour, above in zip(colours.tolist(), stream.tolist(), strict=True):
            self._above[colour] = above
            self._view_of[colour] = norm
        return colours

    def find(self, colour: int) -> int:
        """Return the representative of a colour's class."""
        if colour <= ZERO:
            return colour
        root = colour
        while self._parent[root] != root:
            root = self._parent[root]
        while self._parent[colour] != root:
            self._parent[colour], colour = root, self._parent[colour]
        return root

    def above(self, root: int) -> int | None:
        """Return the class of the stream that a view's class reads, else None."""
        return self.find(self._above[root]) if root in self._above else None

    def chain(self, colour: int) -> list[int]:
        """Return the classes whose cutting removes a channel: its own, then those above it."""
        chain = []
        current: int | None = self.find(colour)
        while current is not None and current > ZERO:
            chain.append(current)
            current = self.above(current)
        return chain

    def freeze(self, ids: Tensor, reason: str) -> None:
        """Keep channels whole, with everything above them."""
        for colour in torch.unique(ids).tolist():
            for root in self.chain(colour):
                self._frozen.setdefault(root, reason)

    def reason(self, root: int) -> str | None:
        """Say why a class is kept whole, or None when it may be cut."""
        return self._frozen.get(root)

    def settle(self) -> None:
        """Carry frozen marks to the present representatives, once all unions are made."""
        for colour, reason in list(self._frozen.items()):
            for root in self.chain(colour):
                self._frozen.setdefault(root, reason)

    def unite(self, a: Tensor, b: Tensor) -> Tensor:
        """Unite the colours of two tensors of one shape, element by element; return the result."""
        pairs = torch.unique(torch.stack([a.flatten(), b.flatten()], dim=1), dim=0)
        for x, y in pairs.tolist():
            self._union(x, y)
        whole = (a == WHOLE) | (b == WHOLE)
        return torch.where(whole, WHOLE, torch.where(a == ZERO, b, a))

    def _union(self, x: int, y: int) -> None:
        x, y = self.find(x), self.find(y)
        if x == y or ZERO in (x, y):
            return
        for root in (x, y):
            if root in self._view_of:
                raise ViewConflictError(self._view_of[root])
        if WHOLE in (x, y):
            self.freeze(torch.tensor([max(x, y)]), "it meets data that is kept whole")
            return
        low, high = min(x, y), max(x, y)
        self._parent[high] = low
        if high in self._frozen:
            self._frozen.setdefault(low, self._frozen[high])
