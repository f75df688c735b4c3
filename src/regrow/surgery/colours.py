"""Colours: integers that label channels, and which of them must be removed together.

Every producer (convolution, linear layer, ...) gives its output channels new colours; elementwise
operations unite the colours of their operands; a norm may open a *view*: colours of its own below
those of the stream it reads, so that a reader can drop a channel which the stream keeps.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

ZERO = 0  # a channel that is always zero: it can be combined with any colour
WHOLE = -1  # data whose shape must not change: what is combined with it is kept whole


class ViewConflictError(Exception):
    """A view's colours were united with others, so its norm is no view. Holds the norm's name."""

    def __init__(self, norm: str) -> None:
        super().__init__(norm)
        self.norm = norm


@dataclass(frozen=True, eq=False)
class Statistic:
    """A mean or variance over channels with the colours ``ids``.

    ``is_root`` says that a square root was taken, so that it can scale these channels; ``of`` is
    the index of the value whose mean it is, if it is the mean of a single value.
    """

    ids: Tensor
    is_root: bool
    of: int | None


@dataclass(frozen=True)
class Paint:
    """The colours of one value: ``ids`` broadcasts to ``shape``, with size 1 wherever possible.

    ``clean`` says that a silenced channel is zero here (not so after a sigmoid, which turns zero
    into one half). A ``statistic`` over channels may only be used to normalise them, as in a norm.
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
        """Return the colours ``[size]`` along a dimension; None if they vary along others too."""
        dim %= len(self.shape)
        if any(d != dim for d in self.coloured_dims()):
            return None
        return self.ids.flatten().expand(self.shape[dim]).clone()


def paint(ids: Tensor, *, clean: bool = True) -> Paint:
    """Return a value's colours in compact form, given those of every element."""
    shape = tuple(ids.shape)
    for dim, size in enumerate(shape):
        if size > 1:
            first = ids.narrow(dim, 0, 1)
            if ids.stride(dim) == 0 or bool((ids == first).all()):
                ids = first
    return Paint(ids.clone(), shape, clean)


def spread(ids: Tensor, shape: tuple[int, ...], dim: int, *, clean: bool = True) -> Paint:
    """Return a value's colours, given those of one dimension, ``[size]``."""
    wanted = [1] * len(shape)
    wanted[dim] = len(ids)
    return Paint(ids.reshape(wanted).clone(), shape, clean)


@dataclass(frozen=True, eq=False)
class Classes:
    """The classes of colours after all unions; every tensor ``[colours]`` is indexed by colour."""

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
        """Return which classes may be cut."""
        return (classes > ZERO) & (self._reason[classes] < 0)

    def reason(self, colour: int) -> str:
        """Return why a class is kept whole."""
        return self._reasons[int(self._reason[colour])]


class Colours:
    """Union-find over colours, with views below the colours of streams, and frozen colours."""

    def __init__(self) -> None:
        self._parents = torch.zeros(1024, dtype=torch.long)  # by colour, with spare capacity
        self._num = 1
        self._above: list[tuple[Tensor, Tensor]] = []  # colours of views, those of their streams
        self._views: list[str] = []  # norms with views
        self._view_of = torch.full((1024,), -1)  # by colour, the position of its norm there, or -1
        self._frozen: list[tuple[Tensor, str]] = []  # colours, why they are kept whole
        self.origin: Callable[[], str] = str  # names the origin of data that is kept whole

    def fresh(self, count: int) -> Tensor:
        """Make new colours ``[count]``."""
        ids = torch.arange(self._num, self._num + count)
        self._num += count
        more = max(self._num - len(self._parents), 0)
        if more:
            more += len(self._parents)  # doubles the capacity, so copying costs little in total
            self._parents = torch.cat([self._parents, torch.zeros(more, dtype=torch.long)])
            self._view_of = torch.cat([self._view_of, torch.full((more,), -1)])
        self._parents[ids] = ids
        return ids

    def view(self, stream: Tensor, norm: str) -> Tensor:
        """Make new colours for a norm's view, below those of its stream ``[channels]``."""
        ids = self.fresh(len(stream))
        self._above.append((ids, stream))
        self._view_of[ids] = len(self._views)
        self._views.append(norm)
        return ids

    def freeze(self, ids: Tensor, reason: str) -> None:
        """Keep channels whole, with everything above them."""
        self._frozen.append((ids.flatten(), reason))

    def are_one(self, a: Tensor, b: Tensor) -> bool:
        """Return whether two lists of colours are equal after the unions so far."""
        return len(a) == len(b) and torch.equal(self.roots(a), self.roots(b))

    def unite(self, a: Tensor, b: Tensor) -> Tensor:
        """Unite the colours of two tensors of one shape, element by element; return the result."""
        differ = (a != b) & (a != ZERO) & (b != ZERO)
        self._union(a[differ], b[differ])
        whole = (a == WHOLE) | (b == WHOLE)
        if bool(whole.any()):
            origin = self.origin()
            more = f": {origin}" if origin else ""
            self.freeze(
                torch.maximum(a, b)[whole], f"it is combined with data that is kept whole{more}"
            )
        return torch.where(whole, WHOLE, torch.where(a == ZERO, b, a))

    def roots(self, ids: Tensor) -> Tensor:
        """Return the representatives ``[n]`` of colours after the unions so far."""
        found = self._parents[ids.clamp(min=ZERO)]
        while True:
            above = self._parents[found]
            if torch.equal(above, found):
                return torch.where(ids == WHOLE, WHOLE, found)
            found = above

    def classes(self) -> Classes:
        """Return the classes of all colours; call it after all unions."""
        root = self.roots(torch.arange(self._num))
        above = torch.zeros_like(root)
        for ids, stream in self._above:
            above[ids] = root[stream.clamp(min=ZERO)]
        reason = torch.full_like(root, -1)
        classes = Classes(root, above, reason, tuple(text for _, text in self._frozen))
        for number, (ids, _) in enumerate(self._frozen):
            for level in classes.levels(ids):
                reason[level] = torch.where(reason[level] < 0, number, reason[level])
        return classes

    def _union(self, x: Tensor, y: Tensor) -> None:
        """Unite pairs of colours ``[n]``; the smallest colour represents a class."""
        while len(x):
            x, y = self.roots(x), self.roots(y)
            differ = x != y
            x, y = x[differ], y[differ]
            norms = self._view_of[torch.stack([x, y], 1).clamp(min=ZERO)].flatten()
            if bool((norms >= 0).any()):
                raise ViewConflictError(self._views[int(norms[norms >= 0][0])])
            apart = (x != WHOLE) & (y != WHOLE)
            x, y = x[apart], y[apart]
            more, less = torch.maximum(x, y), torch.minimum(x, y)
            self._parents[more] = less
            # Pairs that share a colour overwrite each other: the lost ones are united next round.
            lost = self._parents[more] != less
            x, y = x[lost], y[lost]
