"""torchvision's vision transformer for small images, built with a study's arguments."""

from torch import nn
from torchvision.models import VisionTransformer


def build(*, classes: int, in_channels: int, input_size: int, dim: int = 32) -> nn.Module:
    """Build the network for a data set; a study can set ``dim``."""
    net = VisionTransformer(
        image_size=input_size,
        patch_size=2,
        num_layers=2,
        num_heads=4,
        hidden_dim=dim,
        mlp_dim=2 * dim,
        num_classes=classes,
    )
    net.conv_proj = nn.Conv2d(in_channels, dim, 2, 2)
    return net
