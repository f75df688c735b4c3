"""Learning Efficient Convolutional Networks through Network Slimming (Liu et al., ICCV 2017)."""

import torch
from torch import Tensor, nn

from regrow.pruning.method import NORMED, criterion, register_method
from regrow.pruning.probe import Probe
from regrow.surgery import Group


@criterion("norm-scale")
def norm_scale(group: Group, probe: Probe) -> Tensor:
    """Score a channel by the absolute scale of its BatchNorm, which training pushes to zero."""
    return group.sum(lambda name: probe.weight(name).abs(), role="norm")


def push_scales_to_zero(model: nn.Module, strength: float) -> None:
    """Add strength * sign(scale) to the gradient of every BatchNorm scale, in place.

    The penalty is strength * sum |scale|; as part of the gradient it also enters the momentum.
    Norms after linear layers (the VGG-11 for ImageNet has them) and those of volumes and
    sequences are included.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    scales = [norm.weight for norm in norms if norm.weight is not None]
    gradients = [scale.grad for scale in scales if scale.grad is not None]
    with torch.no_grad():
        signs = [scale.sign() for scale in scales if scale.grad is not None]
        torch._foreach_add_(gradients, signs, alpha=strength)


register_method(
    "network-slimming",
    criterion=norm_scale,
    allocation="global",
    scope=NORMED,
    penalty=push_scales_to_zero,
    # The strengths of the official code: VGG 1e-4, pre-activation ResNet and DenseNet 1e-5.
    strength={"vgg": 1e-4, "": 1e-5},
    reference="Liu et al., Network Slimming, ICCV 2017, arXiv:1708.06519",
)
