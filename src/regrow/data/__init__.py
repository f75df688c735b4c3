"""Data sets by name: read once, split by seed, augmented in whole batches.

    dataset = load(DataSpec("hf:some/folder", subset=2000, validation=0.1))
    draws = dataset.train.draw(dataset.augmentation, generator)  # for one epoch
    pixels = dataset.train.augmented(indices, draws[:64], kind=dataset.augmentation)  # uint8
    x = normalise(pixels, dataset.mean, dataset.std)

To add a data set, add a module to this folder that calls ``register_data``.
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
# Imported lazily: these need PyTorch, which takes seconds to import, and reading a study does not.
__getattr__ = exports(
    "regrow.data",
    {
        "augment": ("draw", "normalise", "scale_bytes", "scaling"),
        "images": ("Images", "MemoryImages", "StreamedImages"),
        "loading": ("Dataset", "fingerprint", "load", "scaling_of"),
    },
)
