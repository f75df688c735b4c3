"""Growing regularisation, GReg-1 (Wang et al., ICLR 2021, arXiv:2012.09243).

The filters to remove are chosen before the training, by their L1 norms. An L2 penalty on them alone
grows while the network trains, so that the other filters take over their function; then they are
removed. The method is meant for trained networks (``pretrained: true``, ``lr: 0.001``).

The paper raises the penalty by 1e-4 every few iterations up to 1. Here it rises linearly over the
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
CHOSEN = "growing_regularisation"  # name of a layer's buffer that marks the penalised filters


def choose_(model: nn.Module, *, sparsity: float) -> None:
    """Mark each convolution's filters of smallest L1 norm, in buffers of 1 and 0, in place."""
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
    """Yield the layers that have marks, and their marks."""
    for module in model.modules():
        if CHOSEN in module._buffers:
            marks = module._buffers[CHOSEN]
            assert marks is not None
            yield module, marks


def forget_(model: nn.Module) -> None:
    """Remove the marks, in place."""
    for module, _ in list(chosen(model)):
        del module._buffers[CHOSEN]


def push(model: nn.Module, moment: Moment, *, strength: float) -> None:
    """Add the penalty's gradient, current strength x weight, to that of the marked filters."""
    share = torch.as_tensor(moment.progress / GROWS_UNTIL).clamp(max=1.0)
    with torch.no_grad():
        for layer, marks in chosen(model):
            assert isinstance(layer.weight, Tensor)
            if layer.weight.grad is not None:
                layer.weight.grad.add_(layer.weight * marks * (share * strength))


def growing(strength: float, sparsity: float) -> Treatment:
    """Return the treatment that pushes the marked filters towards zero by a growing penalty."""
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
