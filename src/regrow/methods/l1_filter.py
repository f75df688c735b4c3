"""Pruning Filters for Efficient ConvNets (Li et al., ICLR 2017, arXiv:1608.08710)."""

from torch import Tensor

from regrow.pruning.method import Target, criterion, register_method
from regrow.pruning.probe import Probe
from regrow.surgery import Group

RESNET_34_WHOLE = (2, 8, 14, 16, 26, 28, 30, 32)


@criterion("l1-norm")
def l1_norm(group: Group, probe: Probe) -> Tensor:
    """Score a unit by the sum of the absolute weights that produce it."""
    return group.sum(lambda name: probe.weight(name).abs())


def _basic_blocks(
    model: str, per_stage: tuple[int, ...], shares: tuple[float, ...], whole: tuple[int, ...]
) -> Target:
    """Make the target that prunes the first convolution of each block by its stage's share.

    ``per_stage``: the number of blocks of each stage. ``whole``: the layers that are kept whole;
    the blocks' first convolutions are numbered 2, 4, ... as in the paper.
    """
    laid = [p for p, num in zip(shares, per_stage, strict=True) for _ in range(num)]
    kept = [0.0 if 2 * i in whole else p for i, p in enumerate(laid, start=1)]
    return Target(model=model, shares=tuple(kept))


# Shares and skipped layers as in Li et al.; VGG-16-A halves convolution 1 and convolutions 8-13.
register_method(
    "l1-filter",
    criterion=l1_norm,
    allocation="uniform",
    scope=("conv",),
    targets={
        "vgg-16-a": Target(model="vgg-16", shares=(0.5, *[0.0] * 6, *[0.5] * 6)),
        "resnet-56-a": _basic_blocks("resnet-56", (9,) * 3, (0.1, 0.1, 0.1), (16, 20, 38, 54)),
        "resnet-56-b": _basic_blocks(
            "resnet-56", (9,) * 3, (0.6, 0.3, 0.1), (16, 18, 20, 34, 38, 54)
        ),
        "resnet-110-a": _basic_blocks("resnet-110", (18,) * 3, (0.5, 0.0, 0.0), (36,)),
        "resnet-110-b": _basic_blocks("resnet-110", (18,) * 3, (0.5, 0.4, 0.3), (36, 38, 74)),
        "resnet-34-a": _basic_blocks(
            "imagenet-resnet-34", (3, 4, 6, 3), (0.3, 0.3, 0.3, 0.0), RESNET_34_WHOLE
        ),
        "resnet-34-b": _basic_blocks(
            "imagenet-resnet-34", (3, 4, 6, 3), (0.5, 0.6, 0.4, 0.0), RESNET_34_WHOLE
        ),
    },
    reference="Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017, arXiv:1608.08710",
)
