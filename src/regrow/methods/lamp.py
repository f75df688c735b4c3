"""LAMP: magnitudes made comparable between layers (Lee et al., ICLR 2021, arXiv:2010.07611)."""

import torch
from torch import Tensor

from regrow.pruning.method import criterion, register_method
from regrow.pruning.probe import Probe
from regrow.surgery import Group


@criterion("lamp")
def lamp(group: Group, probe: Probe) -> Tensor:
    """Score a weight by its square, relative to the squares of all weights at least as large.

    score_i = w_i^2 / sum of w_j^2 over all j of the layer with |w_j| >= |w_i| (equation 3): the
    largest scores 1, so that no layer is emptied. For a channel, w_i^2 is the sum over its weights.
    """
    squares = group.sum(lambda name: probe.weight(name).square()).double()
    order = torch.argsort(squares, stable=True, descending=True)
    energy = torch.empty_like(squares)
    energy[order] = squares[order].cumsum(0)
    return torch.where(squares > 0.0, squares / energy, 0.0).float()


register_method(
    "lamp",
    criterion=lamp,
    allocation="global",
    unit="weight",
    scope=("conv", "linear"),
    reference="Lee et al., Layer-adaptive Sparsity (LAMP), ICLR 2021, arXiv:2010.07611",
)
