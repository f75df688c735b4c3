"""A small MobileNet: depthwise-separable blocks with shortcuts."""

from torch import Tensor, nn

import regrow


class Block(nn.Module):
    """Expand, convolve depthwise, project; the input is added where the shapes are the same."""

    def __init__(self, num_in: int, num_out: int, stride: int) -> None:
        super().__init__()
        hidden = 4 * num_in
        self.layers = nn.Sequential(
            nn.Conv2d(num_in, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(),
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(),
            nn.Conv2d(hidden, num_out, 1, bias=False),
            nn.BatchNorm2d(num_out),
        )
        self.shortcut = stride == 1 and num_in == num_out

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[N, num_out, H, W]``; a stride of 2 halves H and W."""
        return x + self.layers(x) if self.shortcut else self.layers(x)


class MobileNet(nn.Module):
    """A stem, three blocks, global average pooling and a linear layer."""

    def __init__(self, classes: int = 10, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU6()
        )
        self.blocks = nn.Sequential(
            Block(width, width, 1), Block(width, 2 * width, 2), Block(2 * width, 2 * width, 1)
        )
        self.head = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``[N, classes]``."""
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


@regrow.register_model("my-mobilenet", family="mine")  # so that a study can name it
def my_mobilenet(*, classes: int, in_channels: int, input_size: int, width: int = 16) -> nn.Module:
    """Build the network for greyscale images of any size."""
    return MobileNet(classes, width)
