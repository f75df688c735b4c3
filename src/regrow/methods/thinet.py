"""ThiNet: A Filter Level Pruning Method (Luo et al., ICCV 2017, arXiv:1707.06342).

A channel is important if the next layer's outputs depend on it. The paper cuts layer by layer, with
an epoch or two of training after each; here all layers are scored on the trained network, cut at
once and repaired in the order of computation, and the arm decides the training that follows.
"""

import torch
from torch import Tensor, nn

from regrow.pruning.method import criterion, register_method, repair
from regrow.pruning.probe import Probe
from regrow.pruning.reconstruct import reconstruct_, rescale
from regrow.surgery import Group, Trace
from regrow.surgery.mask import Mask


@criterion("thinet")
def thinet(group: Group, probe: Probe) -> Tensor:
    """Score a channel by its place in the order of greedy removal, from 1 / width to 1 (last).

    Each step removes the channel that keeps the squared sum of all removed channels' contributions
    smallest, added up over the samples (algorithm 1).
    """
    rows = probe.contributions(group).double()  # [samples, units]
    order = greedy_order(rows.T @ rows)
    scores = torch.empty(group.size)
    scores[order] = torch.arange(1, group.size + 1) / group.size
    silent = (rows == 0.0).all(dim=0)  # removed one after another, in an arbitrary order
    scores[silent] = scores[silent].min() if bool(silent.any()) else 0.0
    return scores


def greedy_order(gram: Tensor) -> Tensor:
    """Return the order of greedy removal, given the Gram matrix of the channels' contributions.

    With S the removed channels, adding c to them raises the squared sum of their contributions by
    ``gram[c, c] + 2 * sum of gram[c, s] over s in S``.
    """
    rise = gram.diagonal().clone()
    order = []
    for _ in range(len(gram)):
        chosen = int(rise.argmin())
        order.append(chosen)
        rise += 2 * gram[chosen]
        rise[chosen] = torch.inf
    return torch.tensor(order)


@repair("rescale-inputs")
def rescale_inputs_(small: nn.Module, mask: Mask, trace: Trace, probe: Probe) -> None:
    """Scale the input channels of each reader by least squares (section 3.2.3), in place."""
    reconstruct_(small, mask, trace, observer=probe, solve=rescale)


register_method(
    "thinet",
    criterion=thinet,
    allocation="uniform",
    scope=("conv",),
    repair="rescale-inputs",
    reference="Luo et al., ThiNet, ICCV 2017, arXiv:1707.06342",
)
