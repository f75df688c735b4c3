"""Per-channel means and standard deviations: published ones by name, or computed."""

import re

import torch
from torch import Tensor

from regrow.data.base import Normalisation
from regrow.data.images import Images, MemoryImages
from regrow.errors import DataError

# The paper's code uses CIFAR-10's values for both CIFARs. The std is the mean over images of each
# image's own std, as in most published code.
CIFAR = Normalisation(mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010))
# The code of soft filter pruning has its own: over all pixels, for each CIFAR, in units of 1/255.
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
# Enough to distinguish CIFAR-100 from any other set of a hundred classes.
SOME_CIFAR100_CLASSES = frozenset({"aquarium_fish", "pickup_truck", "sweet_pepper", "willow_tree"})
# Likewise for ImageNet with words as class names, as on the Hugging Face hub.
SOME_IMAGENET_CLASSES = frozenset({"tench, Tinca tinca", "goldfish, Carassius auratus"})

NUM_COMPUTED = 10_000  # images: the mean then has a standard error below 0.003
NUM_COMPUTED_STREAMED = 1_000  # fewer, because they have to be decoded
BATCH = 250


def recognised(classes: tuple[str, ...], size: int) -> dict[str, Normalisation]:
    """Return the published normalisations of a data set recognised by its class names, if any.

    These are CIFAR-10 and CIFAR-100 at 32 px, and ImageNet at 64 px or more, also with only some of
    its classes if they are named by WordNet ids (``n01440764 ...``).
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

    Computed from counts of each byte value, so the result does not depend on the order of sums.
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
            "Some channel has the same value in all training images, so they cannot be "
            "normalised. Check the images, or give 'mean' and 'std'."
        )
    # Four digits, as in published values; more would be sampling noise.
    return Normalisation(
        mean=tuple(round(m, 4) for m in mean.tolist()),
        std=tuple(max(round(s, 4), 1e-4) for s in std.tolist()),
    )


def _byte_counts(pixels: Tensor) -> Tensor:
    """Count the bytes of each channel: [B, C, H, W] -> int64 [C, 256]."""
    by_channel = pixels.transpose(0, 1).flatten(1)
    return torch.stack([channel.int().bincount(minlength=256) for channel in by_channel])
