"""Means and standard deviations of the channels: published ones by name, or computed."""

import re

import torch
from torch import Tensor

from regrow.data.base import Normalisation
from regrow.data.images import Images, MemoryImages
from regrow.errors import DataError

# The paper's code normalises both CIFARs by the values of CIFAR-10; the std is the mean over images
# of each image's own, which everyone has copied since.
CIFAR = Normalisation(mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010))
# Soft filter pruning has its own: over all pixels, for each CIFAR, given in 1/255.
CIFAR10_SFP = Normalisation(
    mean=(125.3 / 255, 123.0 / 255, 113.9 / 255), std=(63.0 / 255, 62.1 / 255, 66.7 / 255)
)
CIFAR100_SFP = Normalisation(
    mean=(129.3 / 255, 124.1 / 255, 112.4 / 255), std=(68.2 / 255, 65.4 / 255, 70.4 / 255)
)
IMAGENET = Normalisation(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))

CIFAR10_NORMALISATIONS = {"cifar": CIFAR, "sfp": CIFAR10_SFP}
CIFAR100_NORMALISATIONS = {"cifar": CIFAR, "sfp": CIFAR100_SFP}

CIFAR10_CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
# Enough to tell CIFAR-100 from any other set of a hundred classes.
SOME_CIFAR100_CLASSES = frozenset({"aquarium_fish", "pickup_truck", "sweet_pepper", "willow_tree"})
# Likewise ImageNet where its classes have words for names, as on the Hugging Face hub.
SOME_IMAGENET_CLASSES = frozenset({"tench, Tinca tinca", "goldfish, Carassius auratus"})

NUM_COMPUTED = 10_000  # images: the mean then has a standard error below 0.003
NUM_COMPUTED_STREAMED = 1_000  # must be decoded for it
BATCH = 250


def recognised(classes: tuple[str, ...], size: int) -> dict[str, Normalisation]:
    """Return the published normalisations of a layout known by its class names, else none.

    CIFAR-10 and CIFAR-100 at 32 px; ImageNet from 64 px up, or some of its classes by their WordNet
    ids (``n01440764 ...``).
    """
    if size == 32 and sorted(classes) == sorted(CIFAR10_CLASSES):
        return CIFAR10_NORMALISATIONS
    if size == 32 and len(classes) == 100 and SOME_CIFAR100_CLASSES.issubset(classes):
        return CIFAR100_NORMALISATIONS
    by_id = all(re.match(r"n\d{8}\b", name) for name in classes)
    if size >= 64 and (by_id or SOME_IMAGENET_CLASSES.issubset(classes)):
        return {"imagenet": IMAGENET}
    return {}


def computed(images: Images) -> Normalisation:
    """Compute mean and std over all pixels of up to 10,000 evenly spaced images (1,000 streamed).

    By counting how often each byte occurs, so the result does not depend on the order of sums.
    """
    most = NUM_COMPUTED if isinstance(images, MemoryImages) else NUM_COMPUTED_STREAMED
    num = min(most, len(images))
    sample = torch.arange(num) * len(images) // num
    parts = [sample[start : start + BATCH] for start in range(0, num, BATCH)]
    counts = torch.stack([_byte_counts(images.batch(part)) for part in parts]).sum(dim=0)
    values = torch.arange(256, dtype=torch.float64) / 255
    shares = counts.double() / counts.sum(dim=1, keepdim=True)  # [C, 256]
    mean = shares @ values
    std = ((values - mean[:, None]) ** 2 * shares).sum(dim=1).sqrt()
    if not (std > 0).all():
        raise DataError(
            "All training images are of one and the same colour in some channel, so they cannot "
            "be normalised. Check the images, or give 'mean' and 'std'."
        )
    # Four digits, as published values have; the rest is noise of the sample.
    return Normalisation(
        mean=tuple(round(m, 4) for m in mean.tolist()),
        std=tuple(max(round(s, 4), 1e-4) for s in std.tolist()),
    )


def _byte_counts(pixels: Tensor) -> Tensor:
    """Count the bytes of each channel: [B, C, H, W] -> int64 [C, 256]."""
    by_channel = pixels.transpose(0, 1).flatten(1)
    return torch.stack([channel.int().bincount(minlength=256) for channel in by_channel])
