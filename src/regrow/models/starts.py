"""The random start of a network that was cut: as its own code would draw it at the widths left.

    small, start = started(spec, edit.cut, seed=0)

A network's own ``initialise_()`` comes first. Else its code is run at the widths that are left (see
``models.narrowed``), and what it draws is held against what it draws at full width, so that nothing
is taken whose draw was not understood. What is left over is drawn by the layers
(``models.initialise_``) where those draw as the code does, and else as at full width, and is named.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor, nn

from regrow.core.seeds import derive
from regrow.models import of_a_class, redraw_
from regrow.models.narrowed import Narrowed, Widths, name_before, narrowed, watched

ALIKE, LEAST = 1.25, 16  # of two spreads, at most, that count as one; and numbers of each
BY_CHANCE = 1e-3  # share of a tensor's numbers that two draws may have in common
# What the variance of a draw is, times a width, in the usual rules; and how many numbers show it.
GAINS, MANY = (1.0, 2.0, 1 / 3, 2 / 3, 25 / 9), 10_000


class Maker(Protocol):
    """Builds a network, drawn from a seed, as often as it is asked to."""

    def fresh(self, seed: int) -> nn.Module:
        """Build it."""

    def has_rule(self) -> bool:
        """Tell whether ``models.initialise_`` draws it as its code means it to start."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """The parameters of a random start that the network's code does not draw at their widths.

    Attributes:
        cut: those that are as it draws them at full width, and cut: if their spread depends on the
            width, it is that of the whole network.
        layered: those that their layers draw, with another spread than its code gives them, which
            gives them the same values for each seed: it reads them, or made the network before.
        read: those that it reads likewise and no layer draws; they keep the values.
    """

    cut: tuple[str, ...] = ()
    layered: tuple[str, ...] = ()
    read: tuple[str, ...] = ()


def started(
    source: Maker, cut: Callable[[nn.Module], nn.Module], *, seed: int
) -> tuple[nn.Module, Start]:
    """Build a cut network, drawn anew from (seed, "reinit"), on the CPU.

    Args:
        source: what builds the whole network.
        cut: cuts it, and returns the smaller one.
        seed: from which, and from nothing else, all of it is drawn.
    """
    if source.has_rule():
        return _by_rule(source, cut, seed=seed)
    whole = source.fresh(derive(seed, "reinit"))
    other, steps = watched(lambda: source.fresh(derive(seed, "redrawn")))
    small = cut(whole)
    one, two, widths = _values(small), _values(cut(other)), Widths.of(small, whole)

    def at_widths(purpose: str) -> Narrowed:
        return narrowed(lambda: source.fresh(derive(seed, purpose)), steps, widths)

    anew, again = at_widths("reinit").values, at_widths("redrawn")
    shapes = {name: p.shape for name, p in whole.named_parameters(remove_duplicate=False)}
    values, read, doubtful, made = dict(one), set[str](), set[str](), set[str]()
    for name, parameter in small.named_parameters():
        at = name_before(name, small)
        draws = Draws(one[name], two[name], anew.get(at), again.values.get(at), shapes.get(at))
        if draws.are_understood:
            values[name] = anew[at]
        if draws.are_read:
            read |= {name} if parameter.requires_grad else set()
        elif parameter.shape != draws.whole and not draws.are_constant:
            if draws.may_be_of_full_width:
                doubtful.add(name)
            elif at in again.as_made:
                made.add(name)
    if not (doubtful or made or read):
        _fill_(small, values)
        return small, Start()
    missed = {*redraw_(small, seed=seed)}
    known = _drawn_alike(whole, seed=seed)
    alike = {name for name in values if name_before(name, small) in known}
    by_layers = (((doubtful | made) & alike) | read) - missed
    by_class = {f"{at}.{n}".lstrip(".") for at, net in of_a_class(small) for n in _values(net)}
    _fill_(small, {name: value for name, value in values.items() if name not in by_layers})
    return small, Start(
        cut=_sorted(doubtful - by_layers),
        layered=_sorted((read & by_layers) - alike - by_class),
        read=_sorted(read - by_layers),
    )


def _by_rule(
    source: Maker, cut: Callable[[nn.Module], nn.Module], *, seed: int
) -> tuple[nn.Module, Start]:
    """Build a cut network that ``initialise_`` draws, but for what that leaves out."""
    small = cut(source.fresh(seed))
    one = _values(small)
    missed = {*redraw_(small, seed=seed)}
    two = _values(cut(source.fresh(derive(seed, "redrawn")))) if missed else {}
    _fill_(small, {name: one[name] for name in missed})
    read = {name for name in missed if Draws(one[name], two[name]).are_read}
    return small, Start(cut=_sorted(missed - read), read=_sorted(read))


@dataclass(frozen=True)
class Draws:
    """A parameter of a cut network: drawn at full width and cut, and at its own width, each twice.

    ``whole`` is its shape at full width; None: the whole network has none of its name.
    """

    one: Tensor
    two: Tensor
    new: Tensor | None = None
    again: Tensor | None = None
    whole: torch.Size | None = None

    @cached_property
    def _fixed(self) -> Tensor:
        """The places at which the draws at full width are equal: ones, zeros, what is read."""
        return self.one == self.two

    @cached_property
    def are_read(self) -> bool:
        """True if most values are the same for each seed, and differ: trained, or a table."""
        if 2 * int(self._fixed.sum()) <= self.one.numel():
            return False
        some = _some(self.one)[_some(self._fixed)].tolist()
        return len({*some}) > 1 + len(some) // 16

    @cached_property
    def are_constant(self) -> bool:
        """True if all values at full width are one number."""
        return bool(self._fixed.all()) and _is_one(self.one)

    @cached_property
    def are_understood(self) -> bool:
        """True if what is drawn at its width has the form of what is drawn at full width.

        The same numbers are drawn, the others are the same, and the spread may be explained by the
        widths. A constant may depend on the width.
        """
        if self.new is None or self.again is None or self.whole is None or self.are_read:
            return False
        one, new, fixed = self.one, self.new, self._fixed
        is_same = new == self.again
        if self.are_constant and bool(is_same.all()) and _is_one(new):
            return True
        strange = (fixed != is_same) | (fixed & (new != one))
        if int(strange.sum()) > BY_CHANCE * strange.numel():
            return False
        drawn = ~_some(fixed)
        was, now = _typical(_some(one)[drawn]), _typical(_some(new)[drawn])
        slack, narrower = _slack(int(drawn.sum())), math.sqrt(self.whole.numel() / one.numel())
        return was / slack <= now <= was * slack * narrower

    @property
    def may_be_of_full_width(self) -> bool:
        """True if the spread that is drawn may depend on the full width.

        What is drawn at its width is not understood; or its spread is still that of the full width,
        and a usual rule says it of some width that was cut, and of none that was not.
        """
        if not self.are_understood or self.whole is None or self.new is None:
            return True
        assert self.again is not None
        if self.new.numel() < MANY:
            return False
        draws = [self.new, self.again, self.one, self.two]
        now, again, before, other = (float(values.square().mean()) for values in draws)
        if now > (1 + _error(self.new.numel())) * before:
            return False
        # Of all four draws, because widths and gains are many: some product is near by chance.
        variance, error = (now + again + before + other) / 4, _error(4 * self.new.numel())
        by_rule = [
            was == now
            for was, now in zip(_widths(self.whole), _widths(self.new.shape), strict=True)
            if any(abs(variance * was / gain - 1) < error for gain in GAINS)
        ]
        return bool(by_rule) and not any(by_rule)


def _error(count: int) -> float:
    """Return the share by which a variance that so many numbers show may be off."""
    return 5e-3 + 3 * math.sqrt(2 / count)


def _widths(shape: torch.Size) -> Iterator[float]:
    """Yield the numbers that a usual rule may divide by: each dimension, fans, and their mean."""
    yield from shape
    inputs = shape.numel() / shape[0]
    outputs = shape.numel() / shape[1] if len(shape) > 1 else shape[0]
    yield from (inputs, outputs, (inputs + outputs) / 2)


def _typical(values: Tensor) -> float:
    """Return the median size of some values, which a few outliers of a draw do not move."""
    return float(_some(values).abs().median()) if values.numel() else 0.0


def _some(values: Tensor) -> Tensor:
    """Return some of many numbers, from all over."""
    return values.flatten()[:: 1 + values.numel() // MANY]


def _is_one(values: Tensor) -> bool:
    return values.numel() > 0 and bool((values == values.flatten()[0]).all())


def _slack(count: int) -> float:
    """Return the factor within which two spreads count as one; a few numbers tell none."""
    return ALIKE * math.exp(5 / math.sqrt(2 * count)) if count >= LEAST else 1e6


def _drawn_alike(whole: nn.Module, *, seed: int) -> set[str]:
    """Name the parameters that the layers of a network draw as its code did."""
    anew = deepcopy(whole)
    missed = {*redraw_(anew, seed=seed)}
    drawn = dict(anew.named_parameters(remove_duplicate=False))
    alike = set()
    for name, value in whole.named_parameters(remove_duplicate=False):
        sizes = sorted(map(_typical, (value.detach(), drawn[name].detach())))
        if name not in missed and sizes[1] <= _slack(value.numel()) * sizes[0]:
            alike.add(name)
    return alike


def _values(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in network.named_parameters()}


def _fill_(network: nn.Module, values: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name in values:
                parameter.copy_(values[name])


def _sorted(names: set[str]) -> tuple[str, ...]:
    return tuple(sorted(names))
