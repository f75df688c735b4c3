"""Schedules: the learning rate as a factor of the recipe's, for each step of a training.

Those of ``BY_EPOCH`` change between epochs, as in the paper's code; those of ``BY_STEP`` change at
each update. All are functions of the place in the training, so a budget stretches them with it.
"""

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from regrow.train.recipe import Recipe

PEAK = 0.3  # one-cycle: the share of training before the highest rate
FIRST, LAST = 1 / 25, 1 / 25e4  # and its first and last rate; all as in PyTorch's OneCycleLR


def drops(recipe: "Recipe", epoch: int) -> float:
    """Multiply by ``drop_factor`` at each share of ``drop_at``, rounded down to a whole epoch."""
    gone = sum(epoch >= _whole(share, recipe.epochs) for share in recipe.drop_at)
    return float(recipe.drop_factor**gone)


def every(recipe: "Recipe", epoch: int) -> float:
    """Multiply by ``drop_factor`` once in each ``drop_every`` share of training."""
    # Where the epochs are no multiple, the last ones see one drop more, as in the paper's
    # code: 106 epochs drop at 35, 70 and 105.
    return float(recipe.drop_factor ** (epoch // _whole(recipe.drop_every, recipe.epochs)))


def constant(recipe: "Recipe", epoch: int) -> float:
    """Stay at the recipe's rate."""
    return 1.0


def cosine(recipe: "Recipe", epoch: int) -> float:
    """Fall to zero as (1 + cos(pi t)) / 2, t = epoch / epochs (SGDR, arXiv:1608.03983)."""
    return _cosine(epoch / recipe.epochs)


def cosine_by_step(step: int, num: int) -> float:
    """Fall to zero as (1 + cos(pi t)) / 2, t = step / steps (SGDR, arXiv:1608.03983)."""
    return _cosine(step / num)


def linear(step: int, num: int) -> float:
    """Fall to zero as 1 - t, t = step / steps; with a warm-up, a triangle (arXiv:1810.04805)."""
    return 1 - step / num


def one_cycle(step: int, num: int) -> float:
    """Rise from 1/25 over 30 % of training, then fall to 1/250,000, both along a cosine.

    The momentum stays as it is. Reference: Smith and Topin, Super-Convergence, 2018,
    arXiv:1708.07120; the numbers are those of PyTorch's ``OneCycleLR``.
    """
    peak, last = PEAK * num - 1, num - 1
    if 0 < peak >= step:
        return FIRST + (1 - FIRST) * (1 - _cosine(step / peak))
    return LAST + (1 - LAST) * _cosine((step - peak) / (last - peak))


BY_EPOCH: Mapping[str, "Callable[[Recipe, int], float]"] = {
    "drops": drops,
    "every": every,
    "constant": constant,
    "cosine": cosine,
}
BY_STEP: Mapping[str, Callable[[int, int], float]] = {
    "cosine-by-step": cosine_by_step,
    "linear": linear,
    "one-cycle": one_cycle,
}

SCHEDULES: Mapping[str, Callable[..., float]] = {**BY_EPOCH, **BY_STEP}


def factor(recipe: "Recipe", *, epoch: int, place: int, steps: int) -> float:
    """Return the factor for the update at a place of an epoch of so many steps.

    A warm-up of W updates rises as (step + 1) / W (Goyal et al., 2017, arXiv:1706.02677); schedules
    by step cover what is left after it.
    """
    step, num = epoch * steps + place, recipe.epochs * steps
    warmup = warmup_steps(recipe, num)
    by_step = BY_STEP.get(recipe.schedule)
    if by_step is None:
        value = BY_EPOCH[recipe.schedule](recipe, epoch)
    else:
        value = by_step(step - warmup, num - warmup) if step >= warmup else 1.0
    if epoch < recipe.warmup_epochs:
        value *= recipe.warmup_factor
    return value * (step + 1) / warmup if step < warmup else value


def warmup_steps(recipe: "Recipe", num: int) -> int:
    """Return how many of a training's updates warm up by step; at least one is left after them."""
    num_warmup = recipe.warmup_steps or round(recipe.warmup_share * num)
    return min(num_warmup, num - 1)


def _cosine(share: float) -> float:
    return (1 + math.cos(math.pi * share)) / 2


def _whole(share: float, epochs: int) -> int:
    # The small term, because 0.29 * 100 is 28.999999999999996. Not before epoch 1, because a
    # training of a single epoch would else begin at the rate of the last.
    return max(1, math.floor(share * epochs + 1e-9))
