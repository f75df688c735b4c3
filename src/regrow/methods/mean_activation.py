"""Mean activations: remove units that hardly fire (Molchanov et al., ICLR 2017, arXiv:1611.06440).

One of the baselines of that paper (section 2.2), after Polyak and Wolf, 2015.
"""

import torch
from torch import Tensor

from regrow.pruning.method import criterion, register_method
from regrow.pruning.probe import Probe
from regrow.surgery import Group


@criterion("mean-activation")
def mean_activation(group: Group, probe: Probe) -> Tensor:
    """Score a unit by its mean absolute activation, as the next layers read it."""
    return probe.read(group, torch.abs)


register_method(
    "mean-activation",
    criterion=mean_activation,
    allocation="global",
    scope="all",
    normalise="group",
    reference="Molchanov et al., Pruning CNNs, ICLR 2017, arXiv:1611.06440, section 2.2",
)
