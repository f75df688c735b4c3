"""GraSP: keep the gradient flow of a network before training (Wang et al., 2020, arXiv:2002.07376).

Removing weights changes the squared norm of the gradient by -theta . H g to first order (equation
8), so the weights with the largest -theta * (H g) are removed: the rest preserve the gradient flow.
"""

from torch import Tensor

from regrow.pruning.method import criterion, register_method
from regrow.pruning.probe import Probe
from regrow.surgery import Group

TEMPERATURE = 200.0  # of the softmax, as in the published code


@criterion("gradient-flow")
def gradient_flow(group: Group, probe: Probe) -> Tensor:
    """Score a unit by the sum of weight x (Hessian x gradient) over its weights."""
    return group.sum(
        lambda name: probe.weight(name) * probe.hessian_gradient(name, temperature=TEMPERATURE)
    )


register_method(
    "grasp",
    criterion=gradient_flow,
    allocation="global",
    unit="weight",
    scope=("conv", "linear"),
    trained=False,  # scored on the network at initialisation
    reference="Wang et al., Picking Winning Tickets (GraSP), ICLR 2020, arXiv:2002.07376",
)
