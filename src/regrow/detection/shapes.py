"""Pictures of coloured shapes with their boxes, drawn by a seed: detection without any file."""

import torch

from regrow.core.seeds import seeded
from regrow.data.cache import digest
from regrow.data.shapes import CLASSES, ground, paint_
from regrow.data.shapes import VERSION as SHAPES_VERSION
from regrow.detection.pictures import Pictures, Truth, fitted
from regrow.detection.spec import DetectionSpec
from regrow.errors import ConfigError

VERSION = 1  # raise it when the same spec comes to mean other pictures or boxes
SIZE = (640, 480)  # scaled as photographs are
NUM = {"train": 32, "test": 16}
MOST = 3  # objects on a picture


def draw(spec: DetectionSpec, split: str, sides: tuple[int, int]) -> Pictures:
    """Draw the pictures of a split, each with one to three shapes that may cover one another."""
    asked = spec.subset if split == "train" else spec.test_subset
    if asked is not None and asked > NUM[split]:
        raise ConfigError(
            f"{spec.name}: there are {NUM[split]} pictures to {split} on. Got {asked}."
        )
    size = fitted(SIZE, *sides)
    images, truths = [], []
    for number in range(NUM[split] if asked is None else asked):
        chance = seeded(spec.seed, "shapes", split, number)
        image = ground(size, chance)
        labels, boxes = [], []
        for _ in range(int(torch.randint(1, MOST + 1, (), generator=chance))):
            label = int(torch.randint(len(CLASSES), (), generator=chance))
            extent = 0.25 + 0.3 * torch.rand(2, generator=chance)
            extent[0] *= SIZE[1] / SIZE[0]
            low = torch.rand(2, generator=chance) * (1 - extent)
            box = torch.cat([low, low + extent]) * torch.tensor(size).repeat(2)
            x1, y1, x2, y2 = box.tolist()
            paint_(image, CLASSES[label], (x1, y1, x2, y2), torch.rand(3, generator=chance))
            labels.append(label + 1)
            boxes.append(box)
        images.append(image)
        truths.append(
            Truth(
                boxes=torch.stack(boxes),
                labels=torch.tensor(labels),
                difficult=torch.zeros(len(labels), dtype=torch.bool),
            )
        )
    return Pictures.drawn(images, truths)


def content(spec: DetectionSpec) -> str:
    """Return the identity of what a spec draws."""
    options = {k: v for k, v in spec.to_json().items() if k != "memory_limit_bytes"}
    return digest(VERSION, SHAPES_VERSION, options)
