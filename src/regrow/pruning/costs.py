"""Cost targets: the largest share of a network's MACs, parameters or latency that may remain.

``macs: 0.5`` asks for at most half of the unpruned network's MACs. (A ``sparsity`` is the removed
share of the units; a cost is the remaining share, because that is what one pays.) A cost is
measured by a registered function of the pruned and the unpruned network. A custom one::

    @cost_target("memory")
    def memory(pruned: Pruned, unpruned: Pruned) -> Measured:
        return Measured(largest_map(pruned.small) / largest_map(unpruned.small))
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from regrow.core.registry import Registry
from regrow.core.validation import is_number, percent
from regrow.errors import ConfigError

if TYPE_CHECKING:
    from regrow.pruning.layers import Pruned


@dataclass(frozen=True)
class Measured:
    """The share of the unpruned network's cost that is left, and how it was measured."""

    share: float
    how: Mapping[str, Any] = field(default_factory=dict)


MeasureCost = Callable[["Pruned", "Pruned"], Measured]


@dataclass(frozen=True)
class CostTarget:
    """A cost that can be a target: a function of the pruned and the unpruned network.

    ``timed``: a time measured on a machine, so repeated measurements differ, and only units that
    are cut out (not held at zero) save any.
    """

    function: MeasureCost
    timed: bool = False


COST_TARGETS: Registry[CostTarget] = Registry(
    "cost target", "regrow.methods", register="cost_target", modules=["regrow.pruning.targets"]
)


def cost_target(name: str, *, timed: bool = False) -> Callable[[MeasureCost], MeasureCost]:
    """Register a cost: ``(pruned, unpruned) -> Measured`` (decorator)."""

    def register(function: MeasureCost) -> MeasureCost:
        COST_TARGETS.add(name, CostTarget(function, timed), origin=function)
        return function

    return register


@dataclass(frozen=True)
class CostShare:
    """The share of a cost that may remain: ``CostShare("macs", 0.5)``, at most half of the MACs."""

    name: str
    share: float

    def __post_init__(self) -> None:
        if not is_number(self.share) or not 0.0 < self.share < 1.0:
            raise ConfigError(
                f"A target for {self.name} is the largest share of the unpruned network's that may "
                f"remain, a number between 0 and 1. Got {self.share!r}.{percent(self.share)}"
            )

    @property
    def label(self) -> str:
        """Its name in a table."""
        return f"{self.name} {self.share:g}"

    @property
    def target(self) -> CostTarget:
        """The registered cost."""
        return COST_TARGETS.get(self.name)

    def to_json(self) -> dict[str, float]:
        """Return the target as JSON values."""
        return {self.name: self.share}


def masked_refusal(cost: CostShare, unit: str) -> str:
    """Return the error message for a latency target of weights that are only held at zero."""
    return (
        f"{cost.label}: {unit}s are held at zero in a network of full size, which takes as long "
        f"as before, so {cost.name} cannot be a target. Use a method that cuts channels or "
        "blocks, or ask for 'macs' or 'parameters'."
    )
