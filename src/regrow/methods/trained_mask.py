"""Pruning by the final masks of a training, for methods whose treatment chooses the weights."""

from collections.abc import Mapping

from torch import Tensor

from regrow.pruning.method import allocation, criterion
from regrow.pruning.probe import Probe
from regrow.surgery import Group


@criterion("trained-mask")
def trained_mask(group: Group, probe: Probe) -> Tensor:
    """Score a unit by how many of its weights the masks of the training kept."""
    return group.sum(lambda name: probe.mask(name).float())


@allocation("nonzero")
def allocate_nonzero(scores: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    """Keep every unit whose score is not zero, whatever the sparsity."""
    return {name: score != 0.0 for name, score in scores.items()}
