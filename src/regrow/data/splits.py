"""Split images into training, validation and test, by published names or drawn by a seed."""

import re
from typing import NamedTuple

import torch
from torch import Tensor

from regrow.core.seeds import seeded
from regrow.errors import ConfigError

# Common names of splits, for folders and for Parquet files; compared in lower case.
SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "eval", "evaluation", "dev"),
    "test": ("test", "testing"),
}
_SPLITS = {name: split for split, names in SPLIT_NAMES.items() for name in names}
_WORD = re.compile(r"[^\W\d_]+")


class Named(NamedTuple):
    """A split's name found in the name of a file or folder, and the text before and after it."""

    split: str
    name: str
    before: str
    after: str


def split_called(name: str) -> str | None:
    """Return the split with exactly this name, in upper or lower case, or None.

    >>> split_called("Testing"), split_called("test-set")
    ('test', None)
    """
    return _SPLITS.get(name.lower())


def split_within(name: str) -> Named | None:
    """Find a split's name among the words of a name; if several match, one must come first.

    >>> split_within("mnist_Dev-00000-of-00002")
    Named(split='validation', name='dev', before='mnist_', after='-00000-of-00002')
    """
    words = [(word.start(), word.group().lower()) for word in _WORD.finditer(name)]
    matches = [(start, word) for start, word in words if word in _SPLITS]
    if not matches or (len(matches) > 1 and matches[0] != words[0]):
        return None
    start, word = matches[0]
    return Named(
        split=_SPLITS[word], name=word, before=name[:start], after=name[start + len(word) :]
    )


def draw(labels: Tensor, num: int, generator: torch.Generator, *, spare: int = 0) -> Tensor:
    """Draw images, stratified by class; return a bool tensor [N] that is true for drawn ones.

    Every class gives at least one image and keeps at least ``spare``. For one generator state, a
    larger draw contains a smaller one as far as the proportions allow.
    """
    counts = torch.bincount(labels)
    quotas = _quotas(counts, num, spare=spare)
    order = torch.randperm(len(labels), generator=generator)
    order = order[labels[order].argsort(stable=True)]  # by class, at random within one
    starts = counts.cumsum(0) - counts
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order)) - starts[labels[order]]
    return rank < quotas[labels]


def split(labels: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Draw a share of the images, at least one of each class and never all of one."""
    num = max(round(share * len(labels)), int((torch.bincount(labels) > 0).sum()))
    return draw(labels, num, generator, spare=1)


def seeded_subset(labels: Tensor, num: int | None, *, seed: int, option: str) -> Tensor:
    """Return the sorted indices of a subset of ``num`` images, or all if ``num`` is None.

    More than the number of images, or fewer than the number of classes, raises a ``ConfigError``.
    """
    if num is None:
        return torch.arange(len(labels))
    classes = int((torch.bincount(labels) > 0).sum())
    if not classes <= num <= len(labels):
        raise ConfigError(
            f"The {option!r} must be between {classes} (one image of each class) and "
            f"{len(labels)} (all there are). Got {num}."
        )
    return draw(labels, num, seeded(seed, "data", option)).nonzero().squeeze(1)


def _quotas(counts: Tensor, num: int, *, spare: int) -> Tensor:
    """Share ``num`` among classes by the largest remainder method, within each class's bounds."""
    high = (counts - spare).clamp(min=0)
    low = torch.minimum(high, torch.ones_like(high))
    ideal = counts.double() * num / counts.sum()
    quotas = ideal.floor().long().clamp(min=low, max=high)
    num = min(max(num, int(low.sum())), int(high.sum()))
    while (missing := num - int(quotas.sum())) != 0:
        # One image at a time towards the ideal: at most as many steps as classes, unless rare
        # classes are at their bounds.
        gap = ideal - quotas
        if missing > 0:
            gap[quotas >= high] = -torch.inf
            quotas[gap.argmax()] += 1
        else:
            gap[quotas <= low] = torch.inf
            quotas[gap.argmin()] -= 1
    return quotas
