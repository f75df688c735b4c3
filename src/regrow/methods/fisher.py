"""Second-order criteria by the Fisher information: OBD on weights, Fisher pruning on channels.

Removing what is at w changes the loss by h w^2 / 2, where its gradient is zero and h is the
curvature (LeCun et al., Optimal Brain Damage, NeurIPS 1989, equation 5). The curvature is taken as
the diagonal of the empirical Fisher information, the mean over images of the squared gradient of
each image's own loss (Theis et al., Faster gaze prediction with dense networks and Fisher pruning,
2018, arXiv:1801.05787, equations 5 to 7).

``obd`` does so for each weight and adds up; ``fisher`` for a factor of 1 on a unit, of which the
derivative is that of ``taylor-gate``, so that what a unit's weights do together is not lost.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor

from regrow.methods.taylor import gate_derivatives
from regrow.pruning.method import criterion, register_method
from regrow.pruning.probe import Probe
from regrow.surgery import Group


def squared_gradients(probe: Probe) -> dict[str, Tensor]:
    """Return the mean square of each weight's gradient over the images, by parameter."""
    return probe.gradients(lambda gradients: {n: g.square() for n, g in gradients.items()})


def squared_gate_derivatives(probe: Probe, groups: Sequence[Group]) -> dict[str, Tensor]:
    """Return the mean square over the images of the derivative by each unit's factor, by group."""
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
    """Score a unit by half the mean squared derivative of each image's loss by its factor."""
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
