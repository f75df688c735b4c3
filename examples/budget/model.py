"""Six convolutions that learn CIFAR-10 in a few epochs, after the network of airbench94.

Three stages of (3x3 convolution, 2x2 pool, norm, GELU, 3x3 convolution, norm, GELU) read a fixed
first layer that takes neighbouring pixels apart (it learns nothing and is never pruned), and a
linear layer reads what is left, one pixel of each channel. Widths of 32, 128, 128 are 33 million
multiply-accumulates at 32 pixels; 64, 256, 256 are 118 million.

Reference: Jordan, 94% on CIFAR-10 in 3.29 Seconds on a Single GPU, 2024, arXiv:2404.00498. It
differs from there: scales of norms learn, because network slimming chooses by them, the first layer
has no bias, and its filters are written down here rather than found in the data.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Sums and differences of 2x2 pixels: their mean, from top to bottom, from left to right, across.
PLACES = ((1, 1, 1, 1), (1, 1, -1, -1), (1, -1, 1, -1), (1, -1, -1, 1))
# And of colours: brightness, red against blue, green against both.
COLOURS = ((1, 1, 1), (1, 0, -1), (1, -2, 1))
# What such filters of length 1 see of normalised CIFAR-10, as variances: a row for each colour, a
# column for each place. Measured on 20,000 training images stored as JPEG, where the filters are
# nearly uncorrelated (at most 0.14).
VARIANCES = (
    (15.6, 0.617, 0.527, 0.0846),
    (1.22, 0.00872, 0.00581, 0.000315),
    (0.261, 0.00308, 0.00232, 0.000189),
)
LEAST_VARIANCE = 5e-4  # so that noise is not blown up
LOGIT_SCALE = 1 / 9  # of the logits, so that a small loss needs large weights in the last layer
NORM_MOMENTUM = 0.4  # of running statistics: an epoch has few steps


class Whitening(nn.Module):
    """Fixed 2x2 filters whose answers are uncorrelated, of variance 1, each with both signs.

    ``[N, 3, H, W] -> [N, 24, H - 1, W - 1]``; of grey images 8 channels.
    """

    filters: Tensor

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        colours, variances = torch.tensor(COLOURS, dtype=torch.float32), torch.tensor(VARIANCES)
        if in_channels == 1:
            colours, variances = torch.ones(1, 1), variances[:1]
        colours = colours / colours.norm(dim=1, keepdim=True)
        places = torch.tensor(PLACES, dtype=torch.float32) / 2
        filters = torch.einsum("kc,lp->klcp", colours, places)  # [colours, places, C, 4]
        filters = filters / (variances + LEAST_VARIANCE).sqrt()[:, :, None, None]
        filters = filters.reshape(-1, len(colours), 2, 2)
        self.register_buffer("filters", torch.cat([filters, -filters]), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Filter images."""
        return F.conv2d(x, self.filters)


class Six(nn.Module):
    """The network."""

    def __init__(
        self, classes: int, in_channels: int, input_size: int, widths: Sequence[int]
    ) -> None:
        super().__init__()
        self.whitening = Whitening(in_channels)
        self.first = nn.GELU()
        self.stages = nn.Sequential()
        channels, size = len(self.whitening.filters), input_size - 1
        for place, width in enumerate(widths, 1):
            pool = nn.MaxPool2d(2) if size > 1 else nn.Identity()
            size = max(1, size // 2)
            self.stages.add_module(
                f"stage{place}",
                nn.Sequential(
                    nn.Conv2d(channels, width, 3, padding=1, bias=False),
                    pool,
                    nn.BatchNorm2d(width, momentum=NORM_MOMENTUM),
                    nn.GELU(),
                    nn.Conv2d(width, width, 3, padding=1, bias=False),
                    nn.BatchNorm2d(width, momentum=NORM_MOMENTUM),
                    nn.GELU(),
                ),
            )
            channels = width
        self.pool = nn.AdaptiveMaxPool2d(1)
        self.head = nn.Linear(channels, classes, bias=False)
        self.initialise_()

    def forward(self, x: Tensor) -> Tensor:
        """Classify images: ``[N, C, H, W] -> [N, classes]``."""
        x = self.stages(self.first(self.whitening(x)))
        logits: Tensor = self.head(self.pool(x).flatten(1)) * LOGIT_SCALE
        return logits

    def initialise_(self) -> None:
        """Draw all parameters, for the widths as they are: convolutions begin as the identity.

        As far as they have channels for it; the other filters are PyTorch's.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.Linear):
                module.reset_parameters()
            if isinstance(module, nn.Conv2d):
                num_in = module.weight.shape[1]
                nn.init.dirac_(module.weight.data[:num_in])


def build(
    *,
    classes: int,
    in_channels: int,
    input_size: int = 32,
    widths: Sequence[int] = (32, 128, 128),
    width: float = 1.0,
) -> nn.Module:
    """Build the network; ``width`` is a factor on its widths.

    A pool is left out where the map is one pixel already.
    """
    scaled = [max(1, round(width * num)) for num in widths]
    return Six(classes, in_channels, input_size, scaled)
