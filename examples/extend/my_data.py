"""Stripes of random colours, in two classes: horizontal and vertical."""

import torch

from regrow.data import DataSpec, Raw, Split, register_data


@register_data("stripes")
def stripes(spec: DataSpec) -> Raw:
    """Draw 400 images [3, 8, 8] of level or upright stripes; a fifth is held out for testing."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % 2
    lines = torch.randint(0, 256, (400, 3, 8, 1), generator=generator, dtype=torch.uint8)
    level = lines.expand(-1, -1, -1, 8)
    images = torch.where(labels.view(-1, 1, 1, 1) == 0, level, level.transpose(2, 3))
    return Raw(
        classes=("level", "upright"),
        train=Split(images=images.contiguous(), labels=labels),
        augmentation="none",
    )
