"""First-order Taylor criteria: what removing a unit does to the loss.

Of weights: |sum of weight x gradient| over the weights of a unit (Molchanov et al., Importance
Estimation for Neural Network Pruning, CVPR 2019, arXiv:1906.10771, equation 8 and its root).

Of gates: the same for a factor of 1 on each unit (section 3.3; Molchanov et al., ICLR 2017,
arXiv:1611.06440, equation 9). The factor stands where the unit is read, and its derivative is then
the sum of weight x gradient over the weights that read it, because those multiply what it does. In
a network of ReLUs that is the derivative of a factor behind the norm, where the paper puts it:
scale x its gradient + shift x its gradient.

The papers square these and average over minibatches; here the gradient is that of the mean loss
over all of the probe's images, so that the size of a batch decides nothing. Scores estimate changes
of one loss, so groups compare as they are.
"""

from collections.abc import Callable

from torch import Tensor

from regrow.pruning.method import criterion, register_method
from regrow.pruning.probe import Probe
from regrow.surgery import Group


@criterion("taylor")
def taylor(group: Group, probe: Probe) -> Tensor:
    """Estimate what removing each unit does to the loss: |sum of weight x gradient|."""
    return group.sum(lambda name: probe.weight(name) * probe.gradient(name)).abs()  # [units]


@criterion("taylor-gate")
def taylor_gate(group: Group, probe: Probe) -> Tensor:
    """Score a unit by the absolute derivative of the loss by a factor on it, where it is read."""
    return gate_derivatives(group, lambda name: probe.weight(name) * probe.gradient(name)).abs()


def gate_derivatives(group: Group, product: Callable[[str], Tensor]) -> Tensor:
    """Return the derivative of a loss by a factor of 1 on each unit, ``[units]``.

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
