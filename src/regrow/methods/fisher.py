"""Second-order criteria from the Fisher information: OBD for weights, Fisher pruning for channels.

Where the gradient is zero, removing a weight w changes the loss by h w^2 / 2, with h the curvature
(LeCun et al., Optimal Brain Damage, NeurIPS 1989, equation 5). The curvature is approximated by the
diagonal of the empirical Fisher information: the mean over images of the squared gradient of each
image's own loss (Theis et al., Faster gaze prediction with dense networks and Fisher pruning, 2018,
arXiv:1801.05787, equations 5 to 7).

``obd`` applies this to each weight and sums over a unit; ``fisher`` applies it to a gate (a factor
of 1) on each unit, whose derivative is that of ``taylor-gate``, so that the joint effect of a
unit's weights is included.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor

from regrow.methods.taylor import gate_derivatives
from regrow.pruning.method import criterion, register_method
from regrow.pruning.probe import Probe
from regrow.surgery import Group


def squared_gradients(probe: Probe) -> dict[str, Tensor]:
    """Return the mean over the images of each weight's squared gradient, by parameter."""
    return probe.gradients(lambda gradients: {n: g.square() for n, g in gradients.items()})


def squared_gate_derivatives(probe: Probe, groups: Sequence[Group]) -> dict[str, Tensor]:
    """Return the mean squared derivative w.r.t. each unit's gate over the images, by group."""
    weights = {slot.tensor: probe.weight(slot.tensor) for g in groups for slot in g.readers()}

    def measure(gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
        def product(name: str) -> Tensor:
            return weights[name] * gradients[name]

        return {g.name: gate_derivatives(g, product).square() for g in groups}

    return probe.gradients(measure)


@criterion("obd")
def obd(group: Group, probe: Probe) -> Tensor:
    """Score a unit by the sum of weight^2 x mean gradient^2 / 2 over its weights."""
    squares = probe.once(squared_gradients)
    return group.sum(lambda name: probe.weight(name).square() * squares[name] / 2)


@criterion("fisher")
def fisher(group: Group, probe: Probe) -> Tensor:
    """Score a unit by half the mean squared derivative of each image's loss w.r.t. its gate."""
    return probe.together(group, squared_gate_derivatives) / 2


register_method(
    "obd",
    criterion=obd,
    allocation="global",
    unit="weight",
    scope=("conv", "linear"),
    reference="LeCun et al., Optimal Brain Damage, NeurIPS 1989",
)
register_method(
    "fisher",
    criterion=fisher,
    allocation="global",
    scope="all",
    reference="Theis et al., Fisher pruning, 2018, arXiv:1801.05787",
)
