"""Numbers in modules that count channels, and so have to change with a cut.

An attention layer holds its number of heads, a recurrent layer its input size. An attribute (an
integer, or an entry of a list or tuple) may count channels if it equals the size of a dimension in
the module's code or tensors; a trial decides whether it does. The same holds for a number in a
settings object that the module's code reads. Modules share such objects.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from regrow.surgery.colours import ZERO, Classes
from regrow.surgery.groups import NUMBER, WIDTH, Slot, Trace, belongs
from regrow.surgery.held import compared_in_code, held, holder, names_in_code
from regrow.surgery.painter import Painter

# ``cut`` knows the numbers of these.
_KNOWN = (
    nn.Linear,
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
)

# Which of the dimensions that it may count a number does: 0 for the last one, 1 for the one before;
# None if it does not change.
Choice = int | None
# Attributes of PyTorch's own modules that count channels. The others are sizes and strides of maps:
# a pool of size 3 stays one even where there are three channels. For other modules, trials decide.
_OF_TORCH = (
    *("embed_dim", "num_heads", "kdim", "vdim", "embedding_dim", "d_model"),
    *("input_size", "hidden_size", "proj_size", "unflattened_size"),
)


@dataclass(frozen=True)
class Attribute:
    """An attribute of a class of modules that holds a number (``config.width`` in settings)."""

    kind: Any  # of module
    name: str
    entry: int | None  # of a list or tuple

    @property
    def is_read(self) -> bool:
        """True if the code of the class reads it when it runs."""
        return self.short in names_in_code(self.kind)

    @property
    def is_of_torch(self) -> bool:
        """True if it belongs to a module of PyTorch, where it describes the module's parameters."""
        module: str = self.kind.__module__
        return module.startswith("torch.nn.")

    @property
    def short(self) -> str:
        """Its name without that of the settings object."""
        return self.name.rpartition(".")[2]

    def is_compared_with(self, other: "Attribute") -> bool:
        """Return whether the code of the class compares the two."""
        names = frozenset((self.short, other.short))
        return self.kind == other.kind and names in compared_in_code(self.kind)


@dataclass(frozen=True)
class Number:
    """A number in a module, and the dimensions that it may count, in order of computation.

    Dimensions without channels come first, so that the last ones have some.
    """

    module: str
    place: Attribute
    counted: tuple[Tensor, ...]
    held_in: int  # identity of the module or settings object

    @property
    def own(self) -> tuple[int, str, int | None]:
        """The object, attribute and entry that hold it; modules may share them."""
        return self.held_in, self.place.short, self.place.entry

    @property
    def slot(self) -> tuple[str, int]:
        """The ``tensor`` and ``dim`` of its slots."""
        return f"{self.module}{NUMBER}{self.place.name}", self.place.entry or 0

    def follows(self, choice: Choice) -> Tensor | None:
        """Return the colours of the dimension that it counts by a choice; None if it stays."""
        return None if choice is None else self.counted[max(0, len(self.counted) - 1 - choice)]


def numbers(model: nn.Module, painter: Painter, classes: Classes) -> list[Number]:
    """List the attributes of modules that equal a width which may be cut."""
    told = {m.tensor.removesuffix(WIDTH) for m in painter.marks if m.tensor.endswith(WIDTH)}
    places = {
        name: list(_places(module))
        for name, module in model.named_modules()
        if name not in told | painter.movers  # which are updated by themselves
        and not isinstance(module, (*_KNOWN, torch.jit.ScriptModule))
    }
    wanted = {name: {value for _, value in own} for name, own in places.items() if own}
    widths = _widths(painter, classes, wanted)
    # A number without such a dimension in its own code is compared or passed on: look inside.
    known = {place for place, own in widths.items() if any(map(_is_coloured, own.values()))}
    read = {
        name: {value for place, value in own if place.is_read and (name, value) not in known}
        for name, own in places.items()
    }
    widths |= _widths_inside(painter, classes, {name: own for name, own in read.items() if own})
    every = [
        Number(
            name,
            place,
            tuple(sorted(widths.get((name, value), {}).values(), key=_is_coloured)),
            id(holder(model.get_submodule(name), place.name)),
        )
        for name, own in places.items()
        for place, value in own
    ]
    sure = {n.own: n.counted for n in reversed(every) if _may_be_cut(classes, n.counted)}
    # A setting that another module reads counts the same there.
    return [
        n if _may_be_cut(classes, n.counted) else replace(n, counted=sure[n.own])
        for n in every
        if n.own in sure
    ]


def _is_coloured(ids: Tensor) -> bool:
    return bool((ids > ZERO).any())


def _may_be_cut(classes: Classes, counted: Iterable[Tensor]) -> bool:
    return any(bool(classes.free(classes.root[ids.clamp(min=ZERO)]).any()) for ids in counted)


def _places(module: nn.Module) -> Iterator[tuple[Attribute, int]]:
    for attribute, entry, number in held(module):
        place = Attribute(type(module), attribute, entry)
        if not place.is_of_torch or attribute in _OF_TORCH:
            yield place, number


_Widths = dict[tuple[str, int], dict[bytes, Tensor]]


def _add(widths: _Widths, classes: Classes, name: str, ids: Tensor) -> None:
    """Add the colours of a dimension in a module's code or tensors; repeated ones move last."""
    kinds = widths.setdefault((name, len(ids)), {})
    key = classes.root[ids.clamp(min=ZERO)].numpy().tobytes()
    kinds[key] = kinds.pop(key, ids)


def _widths(painter: Painter, classes: Classes, wanted: Mapping[str, set[int]]) -> _Widths:
    """Find dimensions of the wanted sizes in each module's tensors and in its code's values."""
    widths: _Widths = {}

    def add(name: str, ids: Tensor) -> None:
        if len(ids) in wanted.get(name, ()):
            _add(widths, classes, name, ids)

    for mark in painter.marks:
        if ":" not in mark.tensor:
            add(mark.tensor.rpartition(".")[0], mark.ids)
    ran = {node.module for node in painter.tape.nodes}
    # If a module is not called itself, but its methods are, its parent runs its operations.
    within: dict[str, list[str]] = {name: [name] for name in wanted if name in ran}
    for name in wanted:
        if name not in ran:
            within.setdefault(name.rpartition(".")[0], []).append(name)
    for node in painter.tape.nodes:
        for index in (*node.refs(), *node.outputs) if node.module in within else ():
            for ids in _widths_of(painter, index):
                for name in within[node.module]:
                    add(name, ids)
    for (name, _), ids in painter.counted.items():
        add(name, ids)
    return widths


def _widths_inside(painter: Painter, classes: Classes, wanted: Mapping[str, set[int]]) -> _Widths:
    """Find dimensions of the wanted sizes in tensors of a module's children, deepest first."""
    widths: _Widths = {}
    marks = [mark for mark in painter.marks if ":" not in mark.tensor]
    for mark in sorted(marks, key=lambda mark: -mark.tensor.count(".")) if wanted else ():
        for name, sizes in wanted.items():
            if len(mark.ids) in sizes and belongs(mark.tensor, name):
                _add(widths, classes, name, mark.ids)
    return widths


def _widths_of(painter: Painter, index: int | None) -> Iterator[Tensor]:
    """Yield a value's colours along each of its dimensions."""
    if index is None or index not in painter.paints:
        return
    source = painter.paints[index]
    if len(source.coloured_dims()) > 1:
        source = painter.settled(source)
    varied = source.coloured_dims()
    for dim, size in enumerate(source.shape):
        if varied == [dim]:
            yield source.ids.flatten()
        else:
            yield torch.zeros(size, dtype=torch.long)


def followed(
    found: Trace,
    told: Sequence[Number],
    units: Callable[[Tensor], Mapping[str, Tensor]],
    choices: Mapping[Attribute, Choice],
) -> Trace:
    """Return a trace whose cuts also change the numbers in modules that count channels.

    ``units`` converts colours to units, by name of group.
    """
    slots: dict[str, list[Slot]] = {}
    for number in told:
        ids = number.follows(choices.get(number.place, 0))
        for group, places in units(ids).items() if ids is not None else ():
            slots.setdefault(group, []).append(Slot(*number.slot, places, "mover", zeroed=False))
    groups = {
        name: replace(group, slots=(*group.slots, *slots.get(name, ())))
        for name, group in found.groups.items()
    }
    return replace(found, groups=groups)
