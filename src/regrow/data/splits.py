"""Seeded, stratified draws: which images are for testing, validation and training."""

import torch
from torch import Tensor

from regrow.errors import ConfigError
from regrow.seeds import seeded


def draw(labels: Tensor, num: int, generator: torch.Generator, *, spare: int = 0) -> Tensor:
    """Draw images with every class in proportion; return a bool tensor [N], true where drawn.

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
    """Return the sorted indices of a subset; all of them where ``num`` is None.

    More than there are, or fewer than there are classes, is a ``ConfigError``.
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
    """Share ``num`` among classes by the largest remainder, within what each can give."""
    high = (counts - spare).clamp(min=0)
    low = torch.minimum(high, torch.ones_like(high))
    ideal = counts.double() * num / counts.sum()
    quotas = ideal.floor().long().clamp(min=low, max=high)
    num = min(max(num, int(low.sum())), int(high.sum()))
    while (missing := num - int(quotas.sum())) != 0:
        # Towards the ideal, one image at a time: at most as many steps as there are classes,
        # unless rare classes are at their bounds.
        gap = ideal - quotas
        if missing > 0:
            gap[quotas >= high] = -torch.inf
            quotas[gap.argmax()] += 1
        else:
            gap[quotas <= low] = torch.inf
            quotas[gap.argmin()] -= 1
    return quotas
