"""Units: what pruning methods remove from networks, as values in a registry.

A ``Unit`` defines where a network's units are, how a selection of them is applied and counted, and
whether a layer may lose all of them. Units are either cut out, so that the network gets smaller, or
masked: held at zero in a network of full size. A new unit is one file, in the folder ``units`` or
the user's own, that calls ``register_unit``; methods, masks and records refer to it by name.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from regrow.core.registry import Registry, calling_file
from regrow.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from regrow.surgery import Group, Trace
    from regrow.surgery.mask import Mask

Kept = Mapping[str, "Tensor"]  # by group: booleans, True = stays
Names = tuple[str, ...]


def _one_each(_model: "nn.Module", group: "Group") -> tuple[int, ...]:
    return (group.size,)


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A kind of unit that pruning methods remove, such as channels or single weights.

    Either ``cut`` and ``silence`` are given (units are cut out), or ``weights`` (they are masked).

    Attributes:
        about: a one-line description.
        groups: finds the units of a network: ``(model, trace, scope) -> groups by name``.
        cut: cuts a mask's units out of a copy of a network, in place: ``(copy, mask, trace)``.
        silence: sets them to zero instead; the cut network must compute the same as this one.
        weights: which single weights of a parameter stay: ``(kept, parameter's name, model)`` to
            booleans that broadcast over the parameter.
        shape: the shape of a group's entry in a mask; by default ``[units]``.
        sizes: counts the remaining elements of each parameter, to count costs quickly:
            ``(mask, model, trace) -> counts by parameter``. Not needed for masked units; for
            others without it, costs are counted by cutting.
        keep_alive: ``(kept, scores, trace) -> (kept, groups that got a unit back)``, so that no
            layer is emptied. None: layers may lose all their units.
        left_out: returns the groups of a trace that are not in a scope, with the reason.
        given_by_shares: whether each group's kept share determines the architecture, for a scope.
        narrows: whether layers get narrower, so that the layers that read them can be repaired.
        unstructured: whether the units are single weights.
        exponent: FLOPs are roughly proportional to the kept share of units to this power.
    """

    about: str
    groups: "Callable[[nn.Module, Trace, Collection[str]], dict[str, Group]]"
    cut: "Callable[[nn.Module, Mask, Trace], None] | None" = None
    silence: "Callable[[nn.Module, Mask, Trace], None] | None" = None
    weights: "Callable[[Tensor, str, nn.Module], Tensor] | None" = None
    shape: "Callable[[nn.Module, Group], tuple[int, ...]]" = _one_each
    sizes: "Callable[[Mask, nn.Module, Trace], dict[str, int]] | None" = None
    keep_alive: "Callable[[Kept, Kept, Trace], tuple[dict[str, Tensor], Names]] | None" = None
    left_out: "Callable[[Trace, Collection[str]], dict[str, str]] | None" = None
    given_by_shares: Callable[[Collection[str]], bool] = lambda scope: False
    narrows: bool = False
    unstructured: bool = False
    exponent: float = 1.0

    def __post_init__(self) -> None:
        parts = [self.cut is not None, self.silence is not None, self.weights is not None]
        if parts not in ([True, True, False], [False, False, True]):
            raise ConfigError(
                "A unit must have either 'cut' and 'silence' (it is cut out) or 'weights' (it is "
                "held at zero)."
            )

    @property
    def masked(self) -> bool:
        """True if units are masked in a network of full size, rather than cut out."""
        return self.weights is not None


UNITS: Registry[Unit] = Registry("unit", "regrow.units", register="register_unit")


def register_unit(name: str, unit: Unit) -> Unit:
    """Register a unit under its name."""
    UNITS.add(name, unit, origin=calling_file())
    return unit


def masked_units() -> list[str]:
    """Return the names of the registered units that are masked, for messages."""
    return [name for name in UNITS.names() if UNITS.get(name).masked]
