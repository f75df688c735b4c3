"""Initialise a cut network as its own code would initialise a network of these widths.

    small, start = started(spec, edit.cut, seed=0)

A network's own ``initialise_()`` is used if it has one. Otherwise its code is run with the narrower
widths (see ``models.narrowed``), and each parameter is compared with its initialisation at full
width, so that only values whose distribution is understood are used. Other parameters are
initialised by their layers (``models.initialise_``), if these use the same distribution as the
code; else they are initialised at full width and cut, and reported in ``Start``.
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

ALIKE, LEAST = 1.25, 16  # ratio up to which two spreads count as equal; the fewest numbers for it
BY_CHANCE = 1e-3  # share of a tensor's numbers that may be equal in two draws by chance
# Variance times width in the usual rules of initialisation; and the numbers needed to measure it.
GAINS, MANY = (1.0, 2.0, 1 / 3, 2 / 3, 25 / 9), 10_000


class Maker(Protocol):
    """Builds a network, initialised from a seed, any number of times."""

    def fresh(self, seed: int) -> nn.Module:
        """Build the network."""

    def has_rule(self) -> bool:
        """Return whether ``models.initialise_`` is known to initialise it as intended."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """The parameters of a random start that are not initialised by the code at their own widths.

    Attributes:
        cut: initialised at full width and cut, so if their spread depends on the width, it is that
            of the uncut network.
        layered: given the same values by the code for every seed (it reads them, or built the
            network before), so initialised by their layers instead, with another spread.
        read: likewise the same for every seed, but no layer initialises them; they keep the values.
    """

    cut: tuple[str, ...] = ()
    layered: tuple[str, ...] = ()
    read: tuple[str, ...] = ()


def started(
    source: Maker, cut: Callable[[nn.Module], nn.Module], *, seed: int
) -> tuple[nn.Module, Start]:
    """Build a cut network, newly initialised from (seed, "reinit"), on the CPU.

    Args:
        source: builds the uncut network.
        cut: cuts it, and returns the smaller one.
        seed: the only source of randomness.
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
    """Build a cut network, initialised by ``initialise_``; what that misses is cut instead."""
    small = cut(source.fresh(seed))
    one = _values(small)
    missed = {*redraw_(small, seed=seed)}
    two = _values(cut(source.fresh(derive(seed, "redrawn")))) if missed else {}
    _fill_(small, {name: one[name] for name in missed})
    read = {name for name in missed if Draws(one[name], two[name]).are_read}
    return small, Start(cut=_sorted(missed - read), read=_sorted(read))


@dataclass(frozen=True)
class Draws:
    """A parameter of a cut network, initialised by two seeds at full width and at its own width.

    ``one`` and ``two`` were initialised at full width and cut, ``new`` and ``again`` at its own
    width. ``whole`` is its shape at full width; None if the uncut network has none of its name.
    """

    one: Tensor
    two: Tensor
    new: Tensor | None = None
    again: Tensor | None = None
    whole: torch.Size | None = None

    @cached_property
    def _fixed(self) -> Tensor:
        """A mask of the values that are equal in both draws at full width: constant, or read."""
        return self.one == self.two

    @cached_property
    def are_read(self) -> bool:
        """True if most values are the same for each seed, but not constant: trained, or a table."""
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
        """True if the initialisation at its own width matches that at full width.

        The same elements are random, the others have the same values, and the widths can explain
        the change of the spread. A constant may depend on the width.
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
        """True if the spread of the initialisation may depend on the full width.

        Either the initialisation at its own width is not understood; or its spread is still that at
        full width, which a usual rule explains by a width that was cut, and by no other width.
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
        # From all four draws, because with so many widths and gains some product is near by chance.
        variance, error = (now + again + before + other) / 4, _error(4 * self.new.numel())
        by_rule = [
            was == now
            for was, now in zip(_widths(self.whole), _widths(self.new.shape), strict=True)
            if any(abs(variance * was / gain - 1) < error for gain in GAINS)
        ]
        return bool(by_rule) and not any(by_rule)


def _error(count: int) -> float:
    """Return a bound on the relative error of a variance estimated from ``count`` numbers."""
    return 5e-3 + 3 * math.sqrt(2 / count)


def _widths(shape: torch.Size) -> Iterator[float]:
    """Yield the widths that usual rules divide by: each dimension, fan-in, fan-out, their mean."""
    yield from shape
    inputs = shape.numel() / shape[0]
    outputs = shape.numel() / shape[1] if len(shape) > 1 else shape[0]
    yield from (inputs, outputs, (inputs + outputs) / 2)


def _typical(values: Tensor) -> float:
    """Return the median absolute value of a sample of values, which is robust to outliers."""
    return float(_some(values).abs().median()) if values.numel() else 0.0


def _some(values: Tensor) -> Tensor:
    """Return evenly spaced values, at most about ``MANY``."""
    return values.flatten()[:: 1 + values.numel() // MANY]


def _is_one(values: Tensor) -> bool:
    return values.numel() > 0 and bool((values == values.flatten()[0]).all())


def _slack(count: int) -> float:
    """Return the ratio up to which two spreads count as equal; huge if there are few numbers."""
    return ALIKE * math.exp(5 / math.sqrt(2 * count)) if count >= LEAST else 1e6


def _drawn_alike(whole: nn.Module, *, seed: int) -> set[str]:
    """Return the names of parameters that their layers initialise with the spread of the code."""
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
