"""Synthetic images of coloured shapes with boxes, generated from a seed, for detection."""

from dataclasses import dataclass

import torch
from torch import Tensor

from regrow.core.seeds import seeded
from regrow.data.base import Boxes
from regrow.data.boxed_images import BoxedImages, Truth, fitted
from regrow.data.cache import digest
from regrow.data.shapes import CLASSES, ground, paint_
from regrow.data.shapes import VERSION as SHAPES_VERSION
from regrow.data.spec import DataSpec, register_data
from regrow.errors import ConfigError

VERSION = 1  # raise it when the same spec gives other images or boxes
SIZE = (640, 480)  # scaled like photographs
NUM = {"train": 32, "test": 16}
MOST = 3  # objects on an image


def _identity(spec: DataSpec) -> str:
    names = ("name", "subset", "test_subset", "seed")
    options = {key: value for key, value in spec.to_json().items() if key in names}
    return digest(VERSION, SHAPES_VERSION, options)


@register_data("voc-shapes", identity=_identity)
def voc_shapes(spec: DataSpec) -> Boxes:
    """Draw 32 training and 16 test images, with one to three shapes in boxes."""
    return Boxes(classes=CLASSES, train=_split(spec, "train"), test=_split(spec, "test"))


@dataclass(frozen=True, kw_only=True)
class _Drawn:
    """The images of a split, drawn at the requested size."""

    split: str
    seed: int
    num: int

    def __len__(self) -> int:
        return self.num

    def fitted(self, short_side: int, long_side: int) -> BoxedImages:
        """Draw the images; shapes may overlap."""
        size = fitted(SIZE, short_side, long_side)
        drawn = [_draw(size, seeded(self.seed, "shapes", self.split, n)) for n in range(self.num)]
        return BoxedImages(lambda index: drawn[index][0], [truth for _, truth in drawn], kept=True)


def _split(spec: DataSpec, split: str) -> _Drawn:
    wanted = spec.subset if split == "train" else spec.test_subset
    if wanted is not None and wanted > NUM[split]:
        raise ConfigError(
            f"{spec.name}: there are {NUM[split]} images to {split} on. Got {wanted}."
        )
    return _Drawn(split=split, seed=spec.seed, num=NUM[split] if wanted is None else wanted)


def _draw(size: tuple[int, int], chance: torch.Generator) -> tuple[Tensor, Truth]:
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
    none = torch.zeros(len(labels), dtype=torch.bool)
    return image, Truth(boxes=torch.stack(boxes), labels=torch.tensor(labels), difficult=none)
