"""Synthetic images of coloured shapes on a dark background, generated from a seed."""

import torch
from torch import Tensor

from regrow.core.seeds import seeded
from regrow.data.base import Raw, Split
from regrow.data.spec import DataSpec, register_data

VERSION = 1  # raise it when the same seed gives other images
CLASSES = ("circle", "square", "triangle")
SIZE = 32
NUM_TRAIN, NUM_TEST = 1200, 300
GROUND, PAINT = 80, 130  # the background is below GROUND, the shape at least PAINT


@register_data("shapes", content=lambda spec: f"shapes {VERSION}")
def shapes(spec: DataSpec) -> Raw:
    """Draw 1,200 training and 300 test images [3, 32, 32], with one shape in each.

    Position, size and colour are random; the shape is the class.
    """
    return Raw(
        classes=CLASSES,
        train=_split("train", NUM_TRAIN),
        test=_split("test", NUM_TEST),
        augmentation="none",
    )


def ground(size: tuple[int, int], draw: torch.Generator) -> Tensor:
    """Return a dark noisy image of (width, height): uint8 [3, height, width]."""
    return torch.randint(0, GROUND, (3, size[1], size[0]), generator=draw, dtype=torch.uint8)


def paint_(image: Tensor, shape: str, box: tuple[float, float, float, float], seed: Tensor) -> None:
    """Paint a shape into the box x1, y1, x2, y2 (pixels), in place.

    ``seed``: three numbers in [0, 1), one for each colour channel. A triangle has its base below.
    """
    height, width = image.shape[1:]
    x1, y1, x2, y2 = box
    # Pixel centres, scaled so that the box spans -1 to 1.
    x = (2 * torch.arange(width) + 1 - x1 - x2) / (x2 - x1)
    y = ((2 * torch.arange(height) + 1 - y1 - y2) / (y2 - y1))[:, None]
    inside = {
        "circle": x**2 + y**2 <= 1,
        "square": (x.abs() <= 1) & (y.abs() <= 1),
        "triangle": (x.abs() <= (y + 1) / 2) & (y <= 1),
    }[shape]
    colour = (PAINT + seed * (256 - PAINT)).to(torch.uint8)
    image[:, inside] = colour[:, None]


def _split(name: str, num: int) -> Split:
    draw = seeded(0, "shapes", name)
    labels = torch.arange(num) % len(CLASSES)
    images = []
    for label in labels.tolist():
        image = ground((SIZE, SIZE), draw)
        place, extent = torch.rand(2, generator=draw), 12 + 14 * torch.rand(2, generator=draw)
        (x, y), (width, height) = (place * (SIZE - extent)).tolist(), extent.tolist()
        box = (x, y, x + width, y + height)
        paint_(image, CLASSES[label], box, torch.rand(3, generator=draw))
        images.append(image)
    return Split(images=torch.stack(images), labels=labels)
