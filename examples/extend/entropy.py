"""A criterion with its own loss: the entropy of the predictions, which needs no labels."""

from torch import Tensor

from regrow.pruning.method import criterion, register_method
from regrow.pruning.probe import Probe
from regrow.surgery import Group
from regrow.train import Objective


def entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the entropy of each image's class probabilities, ``[N]``."""
    log_p = outputs.log_softmax(dim=1)
    return -(log_p.exp() * log_p).sum(dim=1)


ENTROPY = Objective(name="entropy", losses=entropy)


@criterion("entropy-taylor")
def entropy_taylor(group: Group, probe: Probe) -> Tensor:
    """Estimate what removing a unit does to the entropy: |sum of weight x its gradient|."""
    gradient = {s.tensor: probe.gradient(s.tensor, objective=ENTROPY) for s in group.producers()}
    return group.sum(lambda name: probe.weight(name) * gradient[name]).abs()


register_method("entropy-taylor", criterion=entropy_taylor, allocation="global", unit="channel")
