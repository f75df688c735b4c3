"""APoZ, the average percentage of zeros after a ReLU (Hu et al., 2016, arXiv:1607.03250)."""

from torch import Tensor

from regrow.errors import ConfigError
from regrow.pruning.method import criterion, register_method
from regrow.pruning.probe import Probe
from regrow.surgery import Group


def is_not_zero(values: Tensor) -> Tensor:
    """Return 1 where a value is not zero and 0 elsewhere, in the type of the values."""
    return (values != 0.0).to(values)


@criterion("apoz")
def apoz(group: Group, probe: Probe) -> Tensor:
    """Score a unit by its share of nonzero activations, 1 - APoZ (equation 1).

    The activations are those that the next layers read, after the ReLU (and pooling, if any).
    """
    shares = probe.read(group, is_not_zero)
    if bool((shares == 1.0).all()) and group.size > 1:
        raise ConfigError(
            f"The activations that layers read from {group.name!r} ({group.kind}) are never zero, "
            "and apoz counts the zeros that a ReLU makes. Use a criterion such as mean-activation, "
            "or leave such groups out of the method's scope."
        )
    return shares


register_method(
    "apoz",
    criterion=apoz,
    allocation="global",
    scope=("conv", "linear"),
    reference="Hu et al., Network Trimming, 2016, arXiv:1607.03250",
)
