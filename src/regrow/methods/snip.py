"""SNIP: single-shot pruning before training (Lee et al., ICLR 2019, arXiv:1810.02340)."""

from torch import Tensor

from regrow.pruning.method import criterion, register_method
from regrow.pruning.probe import Probe
from regrow.surgery import Group


@criterion("connection-sensitivity")
def connection_sensitivity(group: Group, probe: Probe) -> Tensor:
    """Score a unit by |weight x gradient| of the weights behind it (equation 6, not normalised).

    That is what the loss would change by if they were scaled, for a small step.
    """
    return group.sum(lambda name: (probe.weight(name) * probe.gradient(name)).abs())


register_method(
    "snip",
    criterion=connection_sensitivity,
    allocation="global",
    unit="weight",
    scope=("conv", "linear"),
    trained=False,  # scored on the network as it is first drawn
    reference="Lee et al., SNIP, ICLR 2019, arXiv:1810.02340",
)
