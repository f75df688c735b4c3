"""Group lasso on filters while a network trains (Wen et al., NeurIPS 2016, arXiv:1608.03665).

Structured sparsity learning: strength x the sum of the L2 norms of all convolutions' filters is
added to the loss (equation 3). Its gradient pulls each filter towards zero at the same speed,
however small the filter is; filters that became small are then cut.
"""

import torch
from torch import Tensor, nn

from regrow.methods.soft_filter import l2_norm
from regrow.pruning.method import register_method
from regrow.surgery.mask import filter_dim


def filter_norms(weight: Tensor, dim: int) -> Tensor:
    """Return the L2 norm of each filter, in a shape that broadcasts over the weight."""
    others = tuple(d for d in range(weight.dim()) if d != dim)
    return weight.square().sum(others, keepdim=True).sqrt()


def pull_filters_to_zero(model: nn.Module, strength: float) -> None:
    """Add strength x filter / |filter| to the gradient of each convolution's weight, in place."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.conv._ConvNd) and module.weight.grad is not None:
                norms = filter_norms(module.weight, filter_dim(module)).clamp(min=1e-12)
                module.weight.grad.add_(module.weight / norms, alpha=strength)


register_method(
    "group-lasso",
    criterion=l2_norm,
    allocation="global",
    scope="conv",
    normalise="group",
    penalty=pull_filters_to_zero,
    strength={"": 1e-3},
    reference="Wen et al., Learning Structured Sparsity, NeurIPS 2016, arXiv:1608.03665",
)
