"""First-order Taylor criterion (Molchanov et al., 2017, arXiv:1611.06440), applied to weights."""

from torch import Tensor

from regrow.pruning.method import criterion, register_method
from regrow.pruning.probe import Probe
from regrow.surgery import Group


@criterion("taylor")
def taylor(group: Group, probe: Probe) -> Tensor:
    """Estimate what removing each unit does to the loss: |sum of weight x gradient|."""
    return group.sum(lambda name: probe.weight(name) * probe.gradient(name)).abs()  # [units]


register_method("taylor", criterion=taylor, allocation="global", unit="channel")
