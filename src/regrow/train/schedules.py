"""Schedules: the factor of the recipe's learning rate at each step of a training.

Some change between epochs, as in the paper's code; others, registered ``by_step``, change at each
update. All are functions of the place in the training, so a budget stretches them with it. A file
given by ``--with`` can add one::

    @register_schedule("square-root", by_step=True)
    def square_root(step: int, num: int) -> float:
        return (1 - step / num) ** 0.5

A schedule that also takes ``end`` gets the recipe's ``end_factor``.
"""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from regrow.core.registry import Registry
from regrow.core.validation import is_number
from regrow.errors import ConfigError

if TYPE_CHECKING:
    from regrow.train.recipe import Recipe

PEAK = 0.3  # one-cycle: the share of training before the highest rate
FIRST, LAST = 1 / 25, 1 / 25e4  # and its first and last rate; all as in PyTorch's OneCycleLR


F = TypeVar("F", bound=Callable[..., float])


@dataclass(frozen=True, kw_only=True)
class LearningRateSchedule:
    """A learning-rate factor, as a function of the place in a training.

    Attributes:
        factor: (recipe, epoch) -> the factor in an epoch, counted from 0 (a fraction of epochs if
            the recipe's ``length`` is not whole); or if ``by_step``, (step, num) -> the factor at
            one of ``num`` updates after the warm-up.
    """

    factor: Callable[..., float]
    by_step: bool = False

    @property
    def takes_end(self) -> bool:
        """True if a recipe may set the factor at its end."""
        return self.by_step and "end" in inspect.signature(self.factor).parameters


SCHEDULES: Registry[LearningRateSchedule] = Registry(
    "schedule", "regrow.train", register="register_schedule"
)


def register_schedule(name: str, *, by_step: bool = False) -> Callable[[F], F]:
    """Register a function under a name that a recipe or an arm may use as its ``schedule``."""

    def register(factor: F) -> F:
        SCHEDULES.add(name, LearningRateSchedule(factor=factor, by_step=by_step), origin=factor)
        return factor

    return register


@register_schedule("drops")
def drops(recipe: "Recipe", epoch: float) -> float:
    """Multiply by ``drop_factor`` at each share of ``drop_at``, rounded down to a whole epoch."""
    num_drops = sum(epoch >= _mark(share, recipe) for share in recipe.drop_at)
    return float(recipe.drop_factor**num_drops)


def drops_before_end(recipe: "Recipe") -> list[float]:
    """Return the shares of ``drop_at`` at which the rate does drop before training ends."""
    return [share for share in recipe.drop_at if _mark(share, recipe) < recipe.length]


@register_schedule("every")
def every(recipe: "Recipe", epoch: float) -> float:
    """Multiply by ``drop_factor`` once in each ``drop_every`` share of training."""
    # If the epochs are not a multiple, the last ones have one more drop, as in the paper's code:
    # 106 epochs drop at 35, 70 and 105.
    return float(recipe.drop_factor ** (epoch // _mark(recipe.drop_every, recipe)))


@register_schedule("constant")
def constant(recipe: "Recipe", epoch: float) -> float:
    """Stay at the recipe's rate."""
    return 1.0


@register_schedule("cosine")
def cosine(recipe: "Recipe", epoch: float) -> float:
    """Fall to zero as (1 + cos(pi t)) / 2, t = epoch / epochs (SGDR, arXiv:1608.03983)."""
    return _cosine(epoch / recipe.length)


@register_schedule("cosine-by-step", by_step=True)
def cosine_by_step(step: int, num: int, *, end: float = 0.0) -> float:
    """Fall to zero as (1 + cos(pi t)) / 2, t = step / steps (SGDR, arXiv:1608.03983).

    Or to ``end``, as end + (1 - end) * that.
    """
    return end + (1 - end) * _cosine(step / num)


@register_schedule("linear", by_step=True)
def linear(step: int, num: int, *, end: float = 0.0) -> float:
    """Fall to zero as 1 - t, t = step / steps; with a warm-up, a triangle (arXiv:1810.04805).

    Or to ``end``, as end + (1 - end) * (1 - t).
    """
    return end + (1 - end) * (1 - step / num)


@register_schedule("one-cycle", by_step=True)
def one_cycle(step: int, num: int) -> float:
    """Rise from 1/25 over 30 % of training, then fall to 1/250,000, both along a cosine.

    The momentum stays as it is. Reference: Smith and Topin, Super-Convergence, 2018,
    arXiv:1708.07120; the numbers are those of PyTorch's ``OneCycleLR``.
    """
    peak, last = PEAK * num - 1, num - 1
    if 0 < peak >= step:
        return FIRST + (1 - FIRST) * (1 - _cosine(step / peak))
    return LAST + (1 - LAST) * _cosine((step - peak) / (last - peak))


def factor(recipe: "Recipe", *, epoch: int, place: int, steps: int) -> float:
    """Return the factor at update ``place`` of an epoch of ``steps`` updates.

    A warm-up of W updates rises as (step + 1) / W (Goyal et al., 2017, arXiv:1706.02677), from the
    recipe's ``warmup_start`` on; schedules by step cover the updates after it.
    """
    step, num = epoch * steps + place, recipe.num_steps(steps)
    warmup = warmup_steps(recipe, num)
    schedule = SCHEDULES.get(recipe.schedule)
    if not schedule.by_step:
        value = schedule.factor(recipe, epoch if recipe.last_epoch == 1 else step / steps)
    elif step < warmup:
        value = 1.0
    else:
        end = {"end": recipe.end_factor} if schedule.takes_end else {}
        value = schedule.factor(step - warmup, num - warmup, **end)
    if not (is_number(value) and value >= 0):
        raise ConfigError(
            f"The schedule {recipe.schedule!r} must return a number of at least 0, by which the "
            f"learning rate is multiplied. Got {value!r} for epoch {epoch}, update {place}."
        )
    if epoch < recipe.warmup_epochs:
        value *= recipe.warmup_factor
    if step >= warmup:
        return value
    return value * (recipe.warmup_start + (1 - recipe.warmup_start) * (step + 1) / warmup)


def warmup_steps(recipe: "Recipe", num: int) -> int:
    """Return how many of a training's updates warm up by step; at least one follows them."""
    num_warmup = recipe.warmup_steps or round(recipe.warmup_share * num)
    return min(num_warmup, num - 1)


def _cosine(share: float) -> float:
    return (1 + math.cos(math.pi * share)) / 2


def _mark(share: float, recipe: "Recipe") -> float:
    """Return the epoch at which a share of training is over; rounded down in whole epochs."""
    if recipe.last_epoch != 1:
        return share * recipe.length - 1e-9
    # The small term, because 0.29 * 100 is 28.999999999999996. Not before epoch 1, because
    # otherwise a training of a single epoch would begin at the rate of the last.
    return max(1, math.floor(share * recipe.epochs + 1e-9))
