"""The workload of a benchmark: networks, images, and the size of a training step."""

from dataclasses import dataclass
from typing import Any

import torch

from regrow.core.seeds import seeded
from regrow.cost import measure
from regrow.data import Dataset, DataSpec, MemoryImages, load
from regrow.errors import ConfigError, unknown
from regrow.models import ModelSpec, build

BATCH = 64
NUM_IMAGES = 2560
SYNTHETIC = "synthetic"
# The quickstart's network, on its 8x8 digits.
DIGITS_PLAN: list[Any] = [16, 16, "M", 32, 32, "M", 64, 64]
NETS = ("resnet-56", "vgg-16", "densenet-40", "preresnet-164", "digits")
QUICK_NETS = ("resnet-56", "digits")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A network and the images it is trained on; ``data`` is ``synthetic`` or a data set's name."""

    net: str
    data: str = SYNTHETIC

    def __post_init__(self) -> None:
        if self.net not in NETS:
            raise ConfigError(unknown("net of the benchmark", self.net, NETS))

    def dataset(self) -> Dataset:
        """Load the images, or draw random ones of CIFAR's shape."""
        if self.net == "digits":
            return load(DataSpec("digits"))
        if self.data == SYNTHETIC:
            return _synthetic()
        return load(DataSpec(self.data, subset=NUM_IMAGES, test_subset=256))

    def model(self, dataset: Dataset) -> ModelSpec:
        """Return the network's spec for these images."""
        fitting: dict[str, Any] = {
            "classes": len(dataset.classes),
            "in_channels": dataset.channels,
            "input_size": dataset.size,
        }
        if self.net == "digits":
            return ModelSpec("vgg", {**fitting, "plan": DIGITS_PLAN})
        return ModelSpec(self.net, fitting)


def training_flops(subject: Subject) -> float:
    """Return the FLOPs of training on one image, counted as for matrix products.

    2 per multiply-accumulate of convolutions and linear layers, times 3 for forward and backward.
    """
    dataset = subject.dataset()
    shape = (1, dataset.channels, dataset.size, dataset.size)
    return 6.0 * measure(build(subject.model(dataset)), torch.zeros(shape)).macs


def _synthetic() -> Dataset:
    draw = seeded(0, "benchmark")

    def images(num: int) -> MemoryImages:
        pixels = torch.randint(0, 256, (num, 3, 32, 32), dtype=torch.uint8, generator=draw)
        return MemoryImages(pixels, torch.randint(0, 10, (num,), generator=draw))

    return Dataset(
        spec=DataSpec("cifar10"),  # the images have its shape; it is not loaded
        train=images(NUM_IMAGES),
        validation=None,
        test=images(256),
        classes=tuple("0123456789"),
        channels=3,
        size=32,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2023, 0.1994, 0.2010),
        augmentation="pad-crop-flip",
    )
