"""Images to train on: named data sets, read once, split by seed, augmented by whole batches.

    dataset = load(DataSpec("hf:some/folder", subset=2000, validation=0.1))
    draws = dataset.train.draw(dataset.augmentation, generator)  # for an epoch
    pixels = dataset.train.augmented(indices, draws[:64], kind=dataset.augmentation)  # uint8
    x = normalise(pixels, dataset.mean, dataset.std)

Every module of this folder that registers a data set adds one (``register_data``).
"""

from typing import TYPE_CHECKING

from regrow.core.lazy import exports
from regrow.data.base import Arrays, Encoded, Normalisation, Raw, Rows, Split
from regrow.data.spec import AUGMENTATIONS, DATASETS, DataEntry, DataSpec, register_data

if TYPE_CHECKING:
    from regrow.data.augment import draw, normalise, scale_bytes, scaling
    from regrow.data.images import Images, MemoryImages, StreamedImages
    from regrow.data.loading import Dataset, fingerprint, load, scaling_of

__all__ = [
    "AUGMENTATIONS",
    "DATASETS",
    "Arrays",
    "DataEntry",
    "DataSpec",
    "Dataset",
    "Encoded",
    "Images",
    "MemoryImages",
    "Normalisation",
    "Raw",
    "Rows",
    "Split",
    "StreamedImages",
    "draw",
    "fingerprint",
    "load",
    "normalise",
    "register_data",
    "scale_bytes",
    "scaling",
    "scaling_of",
]
# What needs PyTorch, which takes seconds to import: a study file is read without it.
__getattr__ = exports(
    "regrow.data",
    {
        "augment": ("draw", "normalise", "scale_bytes", "scaling"),
        "images": ("Images", "MemoryImages", "StreamedImages"),
        "loading": ("Dataset", "fingerprint", "load", "scaling_of"),
    },
)
