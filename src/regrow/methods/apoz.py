"""APoZ, the average percentage of zeros behind a ReLU (Hu et al., 2016, arXiv:1607.03250)."""

from torch import Tensor

from regrow.errors import ConfigError
from regrow.pruning.method import criterion, register_method
from regrow.pruning.probe import Probe
from regrow.surgery import Group


def is_not_zero(values: Tensor) -> Tensor:
    """Tell where values are not zero, as numbers."""
    return (values != 0.0).to(values)


@criterion("apoz")
def apoz(group: Group, probe: Probe) -> Tensor:
    """Score a unit by the share of its values that are not zero, which is 1 - APoZ (equation 1).

    The values are those that the next layers read, behind the ReLU (and pooling, if there is any).
    """
    shares = probe.read(group, is_not_zero)
    if bool((shares == 1.0).all()) and group.size > 1:
        raise ConfigError(
            f"The inputs that layers take from {group.name!r} ({group.kind}) are never zero, and "
            "apoz counts the zeros that a ReLU makes. Use a criterion such as mean-activation, or "
            "leave such groups out of the method's scope."
        )
    return shares


register_method(
    "apoz",
    criterion=apoz,
    allocation="global",
    scope=("conv", "linear"),
    reference="Hu et al., Network Trimming, 2016, arXiv:1607.03250",
)
