"""A custom method: keeps the units whose weights have the largest gradients."""

from torch import Tensor

from regrow.pruning.method import criterion, register_method
from regrow.pruning.probe import Probe
from regrow.surgery import Group


@criterion("steepness")
def steepness(group: Group, probe: Probe) -> Tensor:
    """Score a unit by the sum of the absolute gradients of its weights."""
    return group.sum(lambda name: probe.gradient(name).abs())  # [units]


register_method("steepest", criterion=steepness, allocation="global", unit="channel")
