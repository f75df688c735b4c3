"""Pruning Filters for Efficient ConvNets (Li et al., ICLR 2017, arXiv:1608.08710)."""

from torch import Tensor

from regrow.prune import Probe, Target, criterion, register_method
from regrow.surgery import Group


@criterion("l1-norm")
def l1_norm(group: Group, probe: Probe) -> Tensor:
    """Score a unit by the sum of the absolute weights that produce it."""
    return group.sum(lambda name: probe.weight(name).abs())


def _basic_blocks(per_stage: int, shares: tuple[float, ...], whole: tuple[int, ...]) -> Target:
    """Lay a share over each stage's first convolutions, numbered 2, 4, ... as in the paper.

    ``whole`` are the numbers of layers that are kept whole.
    """
    numbers = range(2, 2 * per_stage * len(shares) + 1, 2)
    laid = [share for share in shares for _ in range(per_stage)]
    return Target(
        model=f"resnet-{2 * per_stage * len(shares) + 2}",
        shares=tuple(0.0 if n in whole else p for n, p in zip(numbers, laid, strict=True)),
    )


# Shares and skipped layers as in Li et al.; VGG-16-A halves convolution 1 and convolutions 8-13.
register_method(
    "l1-filter",
    criterion=l1_norm,
    allocation="uniform",
    scope=("conv",),
    targets={
        "vgg-16-a": Target(model="vgg-16", shares=(0.5, *[0.0] * 6, *[0.5] * 6)),
        "resnet-56-a": _basic_blocks(9, (0.1, 0.1, 0.1), (16, 20, 38, 54)),
        "resnet-56-b": _basic_blocks(9, (0.6, 0.3, 0.1), (16, 18, 20, 34, 38, 54)),
        "resnet-110-a": _basic_blocks(18, (0.5, 0.0, 0.0), (36,)),
        "resnet-110-b": _basic_blocks(18, (0.5, 0.4, 0.3), (36, 38, 74)),
    },
    reference="Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017, arXiv:1608.08710",
)
