"""Parts of several built-in networks: initialisation by layer type, shortcuts, small helpers.

No model is registered here. No ``forward`` contains a number of channels, because surgery narrows
the layers in place and the network must still run.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regrow.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Init:
    """The distribution from which a network's parameters are drawn.

    - ``conv_fan``: convolutions are N(0, 2 / (k * k * channels)), He et al. 2015, where channels
      are the layer's outputs ("out") or its inputs ("in"); biases are 0.
    - ``norm_scale``: the scale of every BatchNorm2d; shifts are 0.
    - ``norm1d_scale``: the scale of every BatchNorm1d; shifts are 0.
    - ``linear``: "normal" is N(0, 0.01^2) with bias 0, "kaiming" is N(0, 2 / inputs) with bias 0,
      "default" is PyTorch's own.
    """

    conv_fan: Literal["out", "in"] = "out"
    norm_scale: float = 1.0
    norm1d_scale: float = 1.0
    linear: Literal["normal", "kaiming", "default"] = "default"


def initialise_by_type_(model: nn.Module, init: Init) -> None:
    """Reinitialise every convolution, norm and linear layer, by its type and present shape.

    Layers are found by type, not by name, and sizes are read from the layers, so the same rule
    applies after surgery: a layer cut to half its filters has half the fan-out. Running statistics
    are reset too. Numbers are drawn from the global generator; see ``models.initialise_``.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            _draw_conv_(module, init.conv_fan)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
            nn.init.constant_(module.weight, init.norm_scale)
        elif isinstance(module, nn.BatchNorm1d):
            module.reset_parameters()
            nn.init.constant_(module.weight, init.norm1d_scale)
        elif isinstance(module, nn.Linear):
            _draw_linear_(module, init.linear)


def _draw_conv_(conv: nn.Conv2d, fan: str) -> None:
    channels = conv.out_channels if fan == "out" else conv.in_channels // conv.groups
    std = math.sqrt(2.0 / (math.prod(conv.kernel_size) * channels))
    nn.init.normal_(conv.weight, 0.0, std)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


def _draw_linear_(linear: nn.Linear, rule: str) -> None:
    if rule == "default":
        linear.reset_parameters()
        return
    std = 0.01 if rule == "normal" else math.sqrt(2.0 / linear.in_features)
    nn.init.normal_(linear.weight, 0.0, std)
    nn.init.zeros_(linear.bias)


class Classifier(nn.Module):
    """The frame of every family: features of any map size, mean pooling, and a head.

    The head reads ``map_size`` x ``map_size`` means of each channel, usually one.
    """

    def __init__(
        self, features: nn.Module, head: nn.Module, *, init: Init, map_size: int = 1
    ) -> None:
        super().__init__()
        self.features = features
        self.pool = nn.AdaptiveAvgPool2d(map_size)
        self.head = head
        self.init = init
        self.initialise_()

    def forward(self, x: Tensor) -> Tensor:
        """Classify images: ``[N, C, H, W] -> [N, classes]``."""
        logits: Tensor = self.head(torch.flatten(self.pool(self.features(x)), 1))
        return logits

    def initialise_(self) -> None:
        """Reinitialise all parameters by this variant's rule and the layers' present sizes."""
        initialise_by_type_(self, self.init)


class ZeroPad(nn.Module):
    """Append channels of zeros: ``[N, C, H, W] -> [N, C + channels, H, W]``.

    No parameter produces the appended channels, so surgery sets their number (``narrow_``).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        """Append the zero channels after those of ``x``."""
        return F.pad(x, (0, 0, 0, 0, 0, self.channels))

    def narrow_(self, kept_in: Tensor, kept_out: Tensor) -> None:
        """Append as many channels as the output keeps beyond those that the input keeps."""
        assert len(kept_out) >= len(kept_in), f"{len(kept_in)} come in, {len(kept_out)} stay"
        self.channels = len(kept_out) - len(kept_in)

    def extra_repr(self) -> str:
        """Show the appended channels in the printed model."""
        return f"channels={self.channels}"


class SelectChannels(nn.Module):
    """Pass on a fixed choice of channels: ``[N, C, H, W] -> [N, len(index), H, W]``.

    The choice is part of the network, so reinitialising the parameters keeps it. Cutting input or
    output channels updates it (``narrow_``).
    """

    index: Tensor

    def __init__(self, index: Tensor) -> None:
        super().__init__()
        self.register_buffer("index", index.clone())

    def forward(self, x: Tensor) -> Tensor:
        """Select the channels."""
        return x.index_select(1, self.index)

    def narrow_(self, *, kept_in: Tensor, kept_out: Tensor) -> None:
        """Select the kept outputs' channels by their positions among the kept inputs."""
        new_index = self.index[kept_out.to(self.index.device)]
        self.index = torch.searchsorted(kept_in.to(self.index.device), new_index)

    def extra_repr(self) -> str:
        """Show the number of selected channels in the printed model."""
        return f"channels={len(self.index)}"


class FunctionalReLU(nn.Module):
    """A ReLU that the published code calls as a function, so its FLOPs do not count it."""

    def forward(self, x: Tensor) -> Tensor:
        """Return max(x, 0)."""
        return F.relu(x)


class AveragePoolShortcut(nn.Module):
    """Halve the map by 2x2 means and append zero channels; no gradient flows back.

    The L1-norm folder of the official code rebuilds this tensor from raw data, which cuts the
    gradient; it is part of the published network (protocols, section 2.2).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pad = ZeroPad(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[N, C + channels, H / 2, W / 2]``, detached."""
        # Odd sizes round up, as in the 3x3 convolution of stride 2 on the other path. Not a module,
        # because the published FLOPs do not count this pool (protocols, section 3.2).
        padded: Tensor = self.pad(F.avg_pool2d(x.detach(), 2, ceil_mode=True))
        return padded


class SubsampleShortcut(nn.Module):
    """Take every second pixel and append zero channels (type A of He et al. 2016)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        # The published code subsamples with a pooling module, so its FLOPs count it.
        self.pick = nn.AvgPool2d(1, stride=2)
        self.pad = ZeroPad(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[N, C + channels, H / 2, W / 2]``."""
        padded: Tensor = self.pad(self.pick(x))
        return padded


def conv(
    num_in: int, num_out: int, *, kernel: int, stride: int = 1, bias: bool = False
) -> nn.Conv2d:
    """Return a square convolution whose padding keeps the map's size (before its stride)."""
    return nn.Conv2d(num_in, num_out, kernel, stride=stride, padding=kernel // 2, bias=bias)


def scaled(channels: int, width: float) -> int:
    """Scale a number of channels; round to the nearest integer, at least 1.

    >>> scaled(64, 0.25), scaled(12, 0.01)
    (16, 1)
    """
    return max(1, round(channels * width))


def blocks_per_stage(depth: int, *, per_block: int, extra: int, family: str) -> int:
    """Return n in ``depth = per_block * n + extra``; other depths raise a ``ConfigError``."""
    num, rest = divmod(depth - extra, per_block)
    if num >= 1 and rest == 0:
        return num
    nearest = max(1, round((depth - extra) / per_block)) * per_block + extra
    raise ConfigError(
        f"The 'depth' of a {family} must be {per_block}n + {extra} with n of at least 1. "
        f"Got {depth}; the nearest is {nearest}."
    )


def named(parts: Sequence[tuple[str, nn.Module]]) -> nn.Sequential:
    """Chain modules under given names, which reports and errors then show."""
    sequence = nn.Sequential()
    for name, module in parts:
        sequence.add_module(name, module)
    return sequence
