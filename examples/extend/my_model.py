"""A small network with a custom shortcut (a concatenation)."""

import torch
from torch import Tensor, nn

from regrow.models import register_model


class Skip(nn.Module):
    """Two convolutions; the input of the second is concatenated with its output."""

    def __init__(self, num_in: int, num_out: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(num_in, num_out, 3, padding=1)
        self.norm = nn.BatchNorm2d(num_out)
        self.second = nn.Conv2d(num_out, num_out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[N, 2 x num_out, H, W]``, without fixing a number of channels."""
        x = self.norm(self.first(x)).relu()
        return torch.cat([x, self.second(x).relu()], dim=1)


@register_model("skip-net", family="example")
def skip_net(
    *, classes: int, in_channels: int = 3, input_size: int = 32, width: float = 1.0
) -> nn.Module:
    """Build the network, for any image size, because it ends in average pooling."""
    channels = max(1, round(16 * width))
    return nn.Sequential(
        Skip(in_channels, channels),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * channels, classes),
    )
