"""SNIP: single-shot pruning before training (Lee et al., ICLR 2019, arXiv:1810.02340)."""

from torch import Tensor

from regrow.pruning.method import criterion, register_method
from regrow.pruning.probe import Probe
from regrow.surgery import Group


@criterion("connection-sensitivity")
def connection_sensitivity(group: Group, probe: Probe) -> Tensor:
    """Score a unit by the sum of |weight x gradient| over its weights (equation 6, not normalised).

    |weight x gradient| is the sensitivity of the loss to a small scaling of the weight.
    """
    return group.sum(lambda name: (probe.weight(name) * probe.gradient(name)).abs())


register_method(
    "snip",
    criterion=connection_sensitivity,
    allocation="global",
    unit="weight",
    scope=("conv", "linear"),
    trained=False,  # scored on the network at initialisation
    reference="Lee et al., SNIP, ICLR 2019, arXiv:1810.02340",
)
