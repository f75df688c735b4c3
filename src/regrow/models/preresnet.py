"""Pre-activation ResNet for small images: bottleneck blocks in three stages."""

from torch import Tensor, nn

from regrow.models import register_model
from regrow.models.fused import branched, rectified, summed
from regrow.models.layers import Classifier, Init, blocks_per_stage, conv, named, scaled

PLANES = (16, 32, 64)
EXPANSION = 4


@register_model("preresnet-56", family="preresnet", depth=56)
@register_model("preresnet-110", family="preresnet", depth=110)
@register_model("preresnet-164", family="preresnet", depth=164)
def preresnet(
    *,
    classes: int,
    depth: int,
    in_channels: int = 3,
    input_size: int = 32,
    width: float = 1.0,
    norm_scale: float = 0.5,
) -> nn.Module:
    """Build a pre-activation ResNet of ``depth`` = 9n + 2 layers, n bottlenecks in each stage.

    The default is Network Slimming's variant, whose norm scales start at 0.5; those of unstructured
    pruning start at 1 (``norm_scale=1.0``). Protocols, section 2.2, suspects that the "110" of
    unstructured pruning had 18 blocks in each stage, which is preresnet-164 here.

    Reference: He et al., Identity Mappings in Deep Residual Networks, ECCV 2016, arXiv:1603.05027.
    """
    num_blocks = blocks_per_stage(depth, per_block=9, extra=2, family="CIFAR PreResNet")
    stem = scaled(PLANES[0], width)
    parts: list[tuple[str, nn.Module]] = [("conv", conv(in_channels, stem, kernel=3))]
    channels = stem
    for stage, planes in enumerate((scaled(p, width) for p in PLANES), start=1):
        blocks: list[nn.Module] = []
        for block in range(num_blocks):
            stride = 2 if stage > 1 and block == 0 else 1
            blocks.append(Bottleneck(channels, planes, stride=stride, project=block == 0))
            channels = planes * EXPANSION
        parts.append((f"stage{stage}", nn.Sequential(*blocks)))
    parts += [("norm", nn.BatchNorm2d(channels)), ("relu", nn.ReLU())]
    init = Init(norm_scale=norm_scale)
    return Classifier(named(parts), nn.Linear(channels, classes), init=init)


class Bottleneck(nn.Module):
    """Norm, ReLU and convolution three times (1x1, 3x3, 1x1), and a shortcut around them."""

    def __init__(self, num_in: int, planes: int, *, stride: int, project: bool) -> None:
        super().__init__()
        num_out = planes * EXPANSION
        self.norm1 = nn.BatchNorm2d(num_in)
        self.relu1 = nn.ReLU()
        self.conv1 = conv(num_in, planes, kernel=1)
        self.norm2 = nn.BatchNorm2d(planes)
        self.relu2 = nn.ReLU()
        self.conv2 = conv(planes, planes, kernel=3, stride=stride)
        self.norm3 = nn.BatchNorm2d(planes)
        self.relu3 = nn.ReLU()
        self.conv3 = conv(planes, num_out, kernel=1)
        # Of the raw input, before its norm and ReLU, and without a norm (protocols, section 2.2).
        self.shortcut = conv(num_in, num_out, kernel=1, stride=stride) if project else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return branch(x) + shortcut(x), with the shortcut from the raw input."""
        out, x = branched(self.norm1, self.relu1, x)
        out = self.conv1(out)
        out = self.conv2(rectified(self.norm2, self.relu2, out))
        out = self.conv3(rectified(self.norm3, self.relu3, out))
        return summed(out, self.shortcut(x))

    def branch_end(self) -> nn.Module:
        """Return the last layer of the branch."""
        return self.conv3

    def without_branch(self) -> nn.Module:
        """Return the shortcut: the input itself, or its projection."""
        return self.shortcut
