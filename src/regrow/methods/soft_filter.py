"""Soft Filter Pruning (He et al., IJCAI 2018, arXiv:1808.06866).

The smallest filters of every convolution are zeroed before the first epoch and after each, and
train freely in between; the network after the last zeroing is the pruned one. The study's recipe
should be ``cifar-sfp``; with ``pretrained: true`` training continues from the unpruned network.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from regrow.pruning.allocations import allocate_count, whole_share
from regrow.pruning.method import allocation, criterion, register_method
from regrow.pruning.probe import Probe
from regrow.surgery import Group
from regrow.train import Treatment
from regrow.units.masked import filter_groups


@criterion("l2-norm")
def l2_norm(group: Group, probe: Probe) -> Tensor:
    """Score a unit by the L2 norm of the weights that produce it."""
    return group.sum(lambda name: probe.weight(name).square()).sqrt()


@allocation("uniform-rounded-down")
def allocate_rounded_down(scores: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    """Remove the floor(width * sparsity) lowest scores of every group."""
    return {
        name: allocate_count(score, score.numel() - whole_share(score.numel(), sparsity))
        for name, score in scores.items()
    }


def zero_smallest_filters_(model: nn.Module, *, sparsity: float) -> None:
    """Zero each convolution's floor(width * sparsity) filters of smallest L2 norm, in place.

    Projections of shortcuts are skipped; norms and biases are left alone.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, group in filter_groups(model).items():
            weight = parameters[name]
            (filters,) = group.slots
            norms = weight.movedim(filters.dim, 0).flatten(1).square().sum(1).sqrt()
            order = torch.argsort(norms, stable=True, descending=True)
            gone = order[group.size - whole_share(group.size, sparsity) :]
            weight.index_fill_(filters.dim, gone, 0.0)


def soft_pruning(_strength: float, sparsity: float) -> Treatment:
    """Return the treatment that zeroes filters before the first epoch and after each."""
    return Treatment(epoch=lambda model, _: zero_smallest_filters_(model, sparsity=sparsity))


register_method(
    "soft-filter",
    criterion=l2_norm,
    allocation="uniform-rounded-down",
    unit="filter",
    scope=("conv",),
    treatment=soft_pruning,
    each_sparsity=True,
    reference="He et al., Soft Filter Pruning, IJCAI 2018, arXiv:1808.06866",
)
