"""Post-activation ResNet for small images: basic blocks in three stages of 16, 32, 64 channels."""

from typing import Literal

from torch import Tensor, nn

from regrow.models import register_model
from regrow.models.fused import rectified
from regrow.models.layers import (
    AveragePoolShortcut,
    Classifier,
    FunctionalReLU,
    Init,
    SubsampleShortcut,
    blocks_per_stage,
    conv,
    named,
    scaled,
)

WIDTHS = (16, 32, 64)


@register_model("resnet-20", family="resnet", depth=20, shortcut="subsample", fc_init="kaiming")
@register_model("resnet-32", family="resnet", depth=32, shortcut="subsample", fc_init="kaiming")
@register_model("resnet-56", family="resnet", depth=56)
@register_model("resnet-110", family="resnet", depth=110)
@register_model("resnet-50-lottery", family="resnet", depth=50, shortcut="projection")
def resnet(
    *,
    classes: int,
    depth: int,
    in_channels: int = 3,
    input_size: int = 32,
    width: float = 1.0,
    shortcut: Literal["average-pool", "subsample", "projection"] = "average-pool",
    fc_init: Literal["default", "kaiming"] = "default",
    norm_scale: float = 1.0,
) -> nn.Module:
    """Build a ResNet of ``depth`` = 6n + 2 layers, n basic blocks in each of three stages.

    Protocols, section 2.2, has three versions, which differ at the two transitions between stages
    and in the last layer's initialisation:

    - resnet-56 and resnet-110 are those of L1-norm pruning: ``shortcut="average-pool"``, a 2x2 mean
      and zero channels, through which *no gradient flows*.
    - resnet-20 and resnet-32 are those of soft filter pruning: ``shortcut="subsample"`` (type A:
      every second pixel and zero channels) and ``fc_init="kaiming"``. With the same two arguments,
      resnet-56 and resnet-110 are its variants. The published FLOPs do not count their ReLUs
      (protocols, section 2.3).
    - resnet-50-lottery is that of the lottery ticket experiments: ``shortcut="projection"`` (type
      B: 1x1 convolution and norm). It has basic blocks and 0.76 M parameters and is not the
      ResNet-50 of ImageNet.

    Reference: He et al., Deep Residual Learning for Image Recognition, CVPR 2016, arXiv:1512.03385.
    """
    num_blocks = blocks_per_stage(depth, per_block=6, extra=2, family="CIFAR ResNet")
    stem = scaled(WIDTHS[0], width)
    relu = FunctionalReLU if shortcut == "subsample" else nn.ReLU
    parts: list[tuple[str, nn.Module]] = [
        ("conv", conv(in_channels, stem, kernel=3)),
        ("norm", nn.BatchNorm2d(stem)),
        ("relu", relu()),
    ]
    channels = stem
    for stage, planes in enumerate((scaled(w, width) for w in WIDTHS), start=1):
        blocks: list[nn.Module] = []
        for block in range(num_blocks):
            stride = 2 if stage > 1 and block == 0 else 1
            blocks.append(Block(channels, planes, stride=stride, shortcut=shortcut, relu=relu))
            channels = planes
        parts.append((f"stage{stage}", nn.Sequential(*blocks)))
    init = Init(norm_scale=norm_scale, linear=fc_init)
    return Classifier(named(parts), nn.Linear(channels, classes), init=init)


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut around them."""

    def __init__(
        self, num_in: int, planes: int, *, stride: int, shortcut: str, relu: type[nn.Module]
    ) -> None:
        super().__init__()
        self.conv1 = conv(num_in, planes, kernel=3, stride=stride)
        self.norm1 = nn.BatchNorm2d(planes)
        self.relu1 = relu()
        self.conv2 = conv(planes, planes, kernel=3)
        self.norm2 = nn.BatchNorm2d(planes)
        self.shortcut = _shortcut(shortcut, num_in, planes) if stride > 1 else nn.Identity()
        self.relu2 = relu()

    def forward(self, x: Tensor) -> Tensor:
        """Return relu(norm(conv(relu(norm(conv(x))))) + shortcut(x))."""
        out = rectified(self.norm1, self.relu1, self.conv1(x))
        return rectified(self.norm2, self.relu2, self.conv2(out), added=self.shortcut(x))

    def branch_end(self) -> nn.Module:
        """Return the last layer of the branch."""
        return self.norm2

    def without_branch(self) -> nn.Module:
        """Return relu(shortcut(x))."""
        return named([("shortcut", self.shortcut), ("relu2", self.relu2)])


def _shortcut(kind: str, num_in: int, planes: int) -> nn.Module:
    if kind == "average-pool":
        return AveragePoolShortcut(planes - num_in)
    if kind == "subsample":
        return SubsampleShortcut(planes - num_in)
    return named(
        [("conv", conv(num_in, planes, kernel=1, stride=2)), ("norm", nn.BatchNorm2d(planes))]
    )
