"""Growing regularisation, GReg-1 (Wang et al., ICLR 2021, arXiv:2012.09243).

The filters that are to go are chosen before the training, by their L1 norms, and an L2 penalty on
them alone grows while the network trains, so that it moves what they do into the others; then they
are removed. The method is made for trained networks (``pretrained: true``, ``lr: 0.001``).

The paper raises the penalty by 1e-4 every few iterations up to 1. Here it rises evenly over the
first three quarters of the training, up to the strength (1), so that trainings of any length end
at the same penalty.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from regrow.methods.l1_filter import l1_norm
from regrow.pruning.allocations import whole_share
from regrow.pruning.method import register_method
from regrow.surgery.mask import layer_of
from regrow.train import Moment, Treatment
from regrow.units.masked import filter_groups

GROWS_UNTIL = 0.75  # of training
CHOSEN = "growing_regularisation"  # the buffer of a layer that says which filters are pushed


def choose_(model: nn.Module, *, sparsity: float) -> None:
    """Mark the filters of least L1 norm of each convolution in buffers of 1 and 0, in place."""
    for name, group in filter_groups(model).items():
        layer, weight = layer_of(name, model), model.get_parameter(name).detach()
        (slot,) = group.slots
        norms = weight.movedim(slot.dim, 0).flatten(1).abs().sum(1)
        order = torch.argsort(norms, stable=True, descending=True)
        going = torch.zeros_like(norms)
        going[order[whole_share(group.size, 1.0 - sparsity) :]] = 1.0
        shape = [-1 if d == slot.dim else 1 for d in range(weight.dim())]
        layer.register_buffer(CHOSEN, going.view(shape))


def chosen(model: nn.Module) -> Iterator[tuple[nn.Module, Tensor]]:
    """Yield layers and their marks."""
    for module in model.modules():
        if CHOSEN in module._buffers:
            marks = module._buffers[CHOSEN]
            assert marks is not None
            yield module, marks


def forget_(model: nn.Module) -> None:
    """Take the marks away, in place."""
    for module, _ in list(chosen(model)):
        del module._buffers[CHOSEN]


def push(model: nn.Module, moment: Moment, *, strength: float) -> None:
    """Add the penalty's gradient, strength at the moment x weight, to that of marked filters."""
    share = torch.as_tensor(moment.progress / GROWS_UNTIL).clamp(max=1.0)
    with torch.no_grad():
        for layer, marks in chosen(model):
            assert isinstance(layer.weight, Tensor)
            if layer.weight.grad is not None:
                layer.weight.grad.add_(layer.weight * marks * (share * strength))


def growing(strength: float, sparsity: float) -> Treatment:
    """Push the filters that are to go towards zero, more and more."""
    return Treatment(
        begin=lambda model, _: choose_(model, sparsity=sparsity),
        gradients=lambda model, moment: push(model, moment, strength=strength),
        end=lambda model, _: forget_(model),
    )


register_method(
    "growing-regularisation",
    criterion=l1_norm,
    allocation="uniform",
    unit="filter",
    scope=("conv",),
    treatment=growing,
    strength={"": 1.0},
    each_sparsity=True,
    reference="Wang et al., Neural Pruning via Growing Regularization, ICLR 2021, arXiv:2012.09243",
)
