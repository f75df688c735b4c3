"""DenseNet for small images: three blocks, in which each layer reads the concatenated stream."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regrow.errors import ConfigError
from regrow.models import register_model
from regrow.models.fused import branched, rectified
from regrow.models.layers import Classifier, Init, blocks_per_stage, conv, named, scaled

NUM_BLOCKS = 3
BOTTLENECK = 4  # outputs of a bottleneck's 1x1 convolution, as a multiple of ``growth``


@register_model("densenet-40", family="densenet", depth=40)
@register_model(
    "densenet-bc-100",
    family="densenet",
    depth=100,
    bottleneck=True,
    compression=0.5,
    norm_scale=1.0,
)
def densenet(
    *,
    classes: int,
    depth: int,
    in_channels: int = 3,
    input_size: int = 32,
    width: float = 1.0,
    growth: int = 12,
    bottleneck: bool = False,
    compression: float = 1.0,
    norm_scale: float = 0.5,
) -> nn.Module:
    """Build a DenseNet: ``depth`` = 3n + 4 layers, n in each block, or 6n + 4 with bottlenecks.

    Each layer adds ``growth`` channels; the stem has twice as many. A transition keeps the share
    ``compression`` of the stream, rounded down. Plain densenet-40 is Network Slimming's, whose norm
    scales start at 0.5; those of unstructured pruning start at 1 (``norm_scale=1.0``), as do those
    of densenet-bc-100. The latter is the true BC network: the command of the official code builds
    ``depth=100, bottleneck=False, compression=0.5`` instead (protocols, section 2.2).

    Reference: Huang et al., Densely Connected Convolutional Networks, CVPR 2017, arXiv:1608.06993.
    """
    _check(growth, compression)
    per_layer = 2 if bottleneck else 1
    num_layers = blocks_per_stage(
        depth,
        per_block=NUM_BLOCKS * per_layer,
        extra=4,
        family="DenseNet-BC" if bottleneck else "DenseNet",
    )
    growth = scaled(growth, width)
    make = BottleneckLayer if bottleneck else BasicLayer
    channels = 2 * growth
    parts: list[tuple[str, nn.Module]] = [("conv", conv(in_channels, channels, kernel=3))]
    for block in range(1, NUM_BLOCKS + 1):
        inputs = [channels + growth * layer for layer in range(num_layers)]
        parts.append((f"block{block}", nn.Sequential(*[make(num, growth) for num in inputs])))
        channels += growth * num_layers
        if block < NUM_BLOCKS:
            # At least one channel: for a narrow stream the number may round down to 0.
            num_kept = max(1, int(channels * compression))
            parts.append((f"transition{block}", Transition(channels, num_kept)))
            channels = num_kept
    parts += [("norm", nn.BatchNorm2d(channels)), ("relu", nn.ReLU())]
    init = Init(norm_scale=norm_scale)
    return Classifier(named(parts), nn.Linear(channels, classes), init=init)


class BasicLayer(nn.Module):
    """Norm, ReLU, 3x3 convolution; its outputs join the stream."""

    def __init__(self, num_in: int, growth: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(num_in)
        self.relu = nn.ReLU()
        self.conv = conv(num_in, growth, kernel=3)

    def forward(self, x: Tensor) -> Tensor:
        """Return the stream with the layer's channels appended."""
        out, x = branched(self.norm, self.relu, x)
        return torch.cat([x, self.conv(out)], 1)


class BottleneckLayer(nn.Module):
    """Norm, ReLU and convolution twice (1x1, 3x3); its outputs join the stream."""

    def __init__(self, num_in: int, growth: int) -> None:
        super().__init__()
        inner = BOTTLENECK * growth
        self.norm1 = nn.BatchNorm2d(num_in)
        self.relu1 = nn.ReLU()
        self.conv1 = conv(num_in, inner, kernel=1)
        self.norm2 = nn.BatchNorm2d(inner)
        self.relu2 = nn.ReLU()
        self.conv2 = conv(inner, growth, kernel=3)

    def forward(self, x: Tensor) -> Tensor:
        """Return the stream with the layer's channels appended."""
        out, x = branched(self.norm1, self.relu1, x)
        out = self.conv1(out)
        return torch.cat([x, self.conv2(rectified(self.norm2, self.relu2, out))], 1)


class Transition(nn.Module):
    """The layers between two blocks: norm, ReLU, 1x1 convolution, 2x2 mean."""

    def __init__(self, num_in: int, num_out: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(num_in)
        self.relu = nn.ReLU()
        self.conv = conv(num_in, num_out, kernel=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[N, num_out, H / 2, W / 2]``."""
        # Not a module: the published FLOPs do not count this pool (protocols, section 3.2).
        return F.avg_pool2d(self.conv(rectified(self.norm, self.relu, x)), 2)


def _check(growth: int, compression: float) -> None:
    if growth < 1:
        raise ConfigError(f"The 'growth' of a DenseNet must be an int of at least 1. Got {growth}.")
    if not 0 < compression <= 1:
        raise ConfigError(
            "The 'compression' of a DenseNet is the share of the stream that a transition keeps, "
            f"above 0 and at most 1. Got {compression}."
        )
