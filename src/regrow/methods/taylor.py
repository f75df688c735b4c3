"""First-order Taylor criteria: the estimated effect of removing a unit on the loss.

On weights: |sum of weight x gradient| over the weights of a unit (Molchanov et al., Importance
Estimation for Neural Network Pruning, CVPR 2019, arXiv:1906.10771, equation 8 and its root).

On gates: the same for a gate (a factor of 1) on each unit (section 3.3; Molchanov et al., ICLR
2017, arXiv:1611.06440, equation 9). The gate is placed where the unit is read, so its derivative is
the sum of weight x gradient over the weights that read the unit, because those multiply its output.
With ReLUs this equals the derivative of a gate after the norm, where the paper puts it: scale x its
gradient + shift x its gradient.

The papers square these and average over minibatches; here the gradient is that of the mean loss
over all of the probe's images, so that the batch size does not matter. All scores estimate changes
of the same loss, so they are comparable between groups as they are.
"""

from collections.abc import Callable

from torch import Tensor

from regrow.pruning.method import criterion, register_method
from regrow.pruning.probe import Probe
from regrow.surgery import Group


@criterion("taylor")
def taylor(group: Group, probe: Probe) -> Tensor:
    """Estimate how much removing each unit changes the loss: |sum of weight x gradient|."""
    return group.sum(lambda name: probe.weight(name) * probe.gradient(name)).abs()  # [units]


@criterion("taylor-gate")
def taylor_gate(group: Group, probe: Probe) -> Tensor:
    """Score a unit by the absolute derivative of the loss w.r.t. a gate where the unit is read."""
    return gate_derivatives(group, lambda name: probe.weight(name) * probe.gradient(name)).abs()


def gate_derivatives(group: Group, product: Callable[[str], Tensor]) -> Tensor:
    """Return the derivative of a loss w.r.t. a gate (a factor of 1) on each unit, ``[units]``.

    ``product`` returns weight x gradient of a parameter.
    """
    return group.sum(product, role="reader")


register_method(
    "taylor",
    criterion=taylor,
    allocation="global",
    scope="all",
    reference="Molchanov et al., Importance Estimation, CVPR 2019, arXiv:1906.10771",
)
register_method(
    "taylor-gate",
    criterion=taylor_gate,
    allocation="global",
    scope="all",
    reference="Molchanov et al., Importance Estimation, CVPR 2019, arXiv:1906.10771",
)
