"""The original images of well-known data sets, and how our cells depart from a paper's setting.

Printed numbers are a reference only for cells at the paper's scale and with its images. Data that a
user names are checked as far as possible: a copy of CIFAR counts as the original if its training
pixels have the same sums, and ImageNet if its validation files have the size of its archive. If
nothing can be checked, that is the reason given.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch

from regrow.data import DATASETS, DataSpec, MemoryImages, Split, load
from regrow.data.folder import ImageFiles
from regrow.reproduce.scales import SCALES, Scale, scaled
from regrow.studies.expand import material

TAR_BLOCK = 512  # bytes; each file in an archive has a header of one block, and fills whole blocks
TAR_SLACK = 20_480  # bytes by which the padding at the end of an archive may differ


@dataclass(frozen=True, kw_only=True)
class Original:
    """The known facts about a published data set.

    ``same`` checks data that have these numbers of images and classes. It returns why they are not
    the original, or why that cannot be decided; empty if they are.
    """

    classes: int
    num_train: int
    num_test: int
    same: Callable[[DataSpec], str]


@dataclass(frozen=True, kw_only=True)
class CellImages:
    """The images that a cell is trained and tested on, for one of the paper's data sets.

    A data set that is downloaded under its own name (not ``stands_in``) is verified by its
    published checksums.
    """

    dataset: str
    spec: DataSpec
    stands_in: bool

    @classmethod
    def of(cls, dataset: str, spec: DataSpec, *, label: str) -> "CellImages":
        """Make it from a study's data, whose label is the paper's unless it is a stand-in."""
        return cls(dataset=dataset, spec=spec, stands_in=label != dataset)


def _sums_to(spec: DataSpec, *, sums: tuple[int, int, int]) -> str:
    """Compare the sums of all training pixels by channel with the original's."""
    images = load(spec).train
    if not isinstance(images, MemoryImages):
        return "its pixels cannot be compared with the original's"
    totals = images.pixels.sum((0, 2, 3), dtype=torch.int64).tolist()
    return "" if tuple(totals) == sums else "its pixels are not the original's, as in JPEG copies"


def _archived(spec: DataSpec, *, num_bytes: int) -> str:
    """Compare the total size of the test files with that of the original archive."""
    test = DATASETS.get(spec.name).read(spec).test
    if not (isinstance(test, Split) and isinstance(test.images, ImageFiles)):
        return "it is not known whether its images are the original files"
    sizes = (path.stat().st_size for path in test.images.paths)
    packed = sum(TAR_BLOCK * (1 + math.ceil(size / TAR_BLOCK)) for size in sizes)
    return "" if abs(packed - num_bytes) <= TAR_SLACK else "its test files have other sizes"


ORIGINALS: Mapping[str, Original] = {
    "CIFAR-10": Original(
        classes=10,
        num_train=50_000,
        num_test=10_000,
        same=partial(_sums_to, sums=(6_415_714_204, 6_295_060_180, 5_829_907_619)),
    ),
    "CIFAR-100": Original(
        classes=100,
        num_train=50_000,
        num_test=10_000,
        same=partial(_sums_to, sums=(6_620_373_279, 6_352_382_090, 5_756_623_363)),
    ),
    "ImageNet": Original(
        classes=1000,
        num_train=1_281_167,
        num_test=50_000,
        same=partial(_archived, num_bytes=6_744_924_160),
    ),
}


def scale_departs(value: Mapping[str, Any], scale: Scale) -> str:
    """Return how a scale changes a study from the paper's setting; empty if it does not.

    The number of seeds is ignored, because each cell shows its own.
    """
    smaller, whole = (
        {**scaled(value, factor), "seeds": None} for factor in (scale, SCALES["paper"])
    )
    thinned = scale.subset is not None or scale.test_subset is not None
    return f"the scale {scale.name} has {scale.about}" if smaller != whole or thinned else ""


def departs(scale: str, images: Iterable[CellImages]) -> list[str]:
    """Return why printed numbers are no reference for a cell; empty if they are.

    Args:
        scale: how its scale departs from the paper's (``scale_departs``).
        images: the images that it is trained and tested on.
    """
    reasons = [scale] if scale else []
    for used in images:
        if not used.stands_in:
            continue
        stands_in = f"{used.spec.name} stands for {used.dataset}"
        if scale:  # reason enough, so the images need not be checked
            reasons.append(stands_in)
        elif reason := _copy_departs(used.dataset, used.spec):
            reasons.append(f"{stands_in}: {reason}")
    return reasons


@cache
def _copy_departs(dataset: str, spec: DataSpec) -> str:
    published = ORIGINALS.get(dataset)
    if published is None:
        return "it is not known whether its images are the original ones"
    actual = material(spec)
    for count, original, things in (
        (actual.classes, published.classes, "classes"),
        (actual.num_train, published.num_train, "training images"),
        (actual.num_test, published.num_test, "test images"),
    ):
        if count != original:
            return f"it has {count:,} {things}, not {original:,}"
    return published.same(spec)
