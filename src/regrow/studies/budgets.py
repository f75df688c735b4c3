"""Training budgets: an axis of an experiment, the epochs of the unpruned network's training.

    budgets: [2, 4, 8, 16]        # epochs
    budgets: [0.25x, 0.5x, 1x]    # or factors of the recipe's own

Each budget becomes an experiment whose recipe has that many epochs. Settings that are shares of
training scale with it: drops, ``warmup_share``, budgets of arms, ``epoch_share``. Settings in
epochs or updates do not (see ``fixed``), and must fit into every budget.
"""

import re
from collections.abc import Iterator, Sequence
from math import floor
from typing import Any

from regrow.core.durations import MOST_AMOUNT, epochs_in_words
from regrow.core.validation import as_list, is_int, refuse_twice
from regrow.errors import ConfigError, short
from regrow.jobs.arms import OF_FLOPS
from regrow.train import Recipe

FACTOR = re.compile(r"([0-9]{1,9}(?:\.[0-9]*)?|\.[0-9]+)x")
MOST_BUDGETS = 100
MISSED = 0.1  # relative error of a share in whole epochs, above which it is reported


def read_budgets(value: Any, own: int | None, *, of: str = "the recipe") -> tuple[int, ...]:
    """Return budgets as epochs, in the order given; factors multiply the ``own`` epochs.

    ``of`` says in messages what has these epochs.

    >>> read_budgets([20, "0.5x"], 160)
    (20, 80)
    """
    given = as_list(value)
    if not 0 < len(given) <= MOST_BUDGETS:
        raise ConfigError(
            f"The 'budgets' must be from 1 to {MOST_BUDGETS}, such as [2, 4, 8]. Got {len(given)}."
        )
    budgets = [_epochs(entry, own, of) for entry in given]
    refuse_twice("budgets", [epochs_in_words(epochs) for epochs in budgets], "leave one out")
    return tuple(budgets)


def split_budgets(value: str) -> list[int | str]:
    """Split the value of ``--budgets`` into entries as in a study file, not yet checked.

    >>> split_budgets("2, 4,0.5x")
    [2, 4, '0.5x']
    """
    entries = [entry.strip() for entry in value.split(",") if entry.strip()]
    return [int(e) if e.isascii() and e.isdigit() and len(e) < 19 else e for e in entries]


def _epochs(entry: Any, own: int | None, of: str) -> int:
    if is_int(entry, least=1) and entry <= MOST_AMOUNT:
        return entry
    matched = FACTOR.fullmatch(entry) if isinstance(entry, str) else None
    epochs = floor(float(matched[1]) * (own or 0) + 1e-9) if matched else 0
    if not 1 <= epochs <= MOST_AMOUNT:
        found = "is not given" if own is None else f"has {epochs_in_words(own)}"
        raise ConfigError(
            f"Each of the 'budgets' must be a number of epochs, an int from 1 to {MOST_AMOUNT:,}, "
            f"or a multiple of that of {of}, such as 0.5x, in the same range. Got {short(entry)}"
            f"{f', and {of} {found}' if matched else ''}."
        )
    return epochs


def at_budget(recipe: Recipe, budget: int) -> Recipe:
    """Return the recipe with ``budget`` epochs; refuse a warm-up that would not end within them."""
    if recipe.warmup_epochs >= budget:
        raise ConfigError(
            f"the recipe warms up for {epochs_in_words(recipe.warmup_epochs)}, which does not "
            "shrink with the budget. Give it a 'warmup_share' in place of 'warmup_epochs', or "
            "leave the budget out."
        )
    return recipe.lasting(budget)


Axis = Sequence[Any]  # experiments that differ only in their budget


def fixed(axis: Axis) -> Iterator[tuple[str, str]]:
    """Yield the settings that do not scale with the budget, each with a remedy.

    >>> from regrow.studies.study import Study
    >>> study = Study.from_json({"data": "digits", "models": "resnet-20", "budgets": [4, 8],
    ...                          "arms": ["unpruned", {"name": "fine-tune", "epochs": 2}]})
    >>> [*fixed(study.experiments)]
    [('the arm fine-tune trains 2 epochs', 'a share')]
    """
    for same in zip(*(experiment.arms for experiment in axis), strict=True):
        arm, *others = same
        name = f"the arm {arm.name}"
        if arm.budget.kind == "epochs":
            yield f"{name} trains {epochs_in_words(int(arm.budget.amount))}", "a share"
        if arm.epoch is not None and {arm.epoch} == {other.epoch for other in others}:
            yield f"{name} rewinds to epoch {arm.epoch}", "an epoch_share"
        entered = arm.schedule_epoch
        if entered and {entered} == {other.schedule_epoch for other in others}:
            yield f"{name} enters its schedule at epoch {entered}", "a schedule_share"
    recipe = axis[0].recipe
    if isinstance(recipe, Recipe):  # the user's own training function has none
        if recipe.warmup_epochs:
            words = epochs_in_words(recipe.warmup_epochs)
            yield f"the recipe warms up for {words}", "a warmup_share"
        if recipe.warmup_steps:
            yield f"the recipe warms up for {recipe.warmup_steps} updates", "a warmup_share"
    for use in axis[0].uses:
        if use.source is not None and use.source.recipe is not None:
            words = epochs_in_words(use.source.recipe.epochs)
            yield f"the network that {use.label} follows trains {words}", "no recipe of its own"


def rounded(axis: Axis) -> Iterator[str]:
    """Describe the arms whose budget is noticeably different after rounding to whole epochs."""
    for arms in zip(*(experiment.arms for experiment in axis), strict=True):
        budget, bases = arms[0].budget, [experiment.budget for experiment in axis]
        if all(arm.budget.rounding == "updates" for arm in arms):
            continue
        if budget.kind == "share":
            trained = {base: arm.epochs(base, 1.0) for base, arm in zip(bases, arms, strict=True)}
            share = budget.amount
            off = [b for b in bases if abs(trained[b] - share * b) > MISSED * share * b]
            if off:
                found = " and ".join(f"{trained[base]} of {base}" for base in off)
                yield f"{arms[0].name} trains {found} epochs, not {100 * share:g} %"
        elif budget.kind in OF_FLOPS and (few := [base for base in bases if base * MISSED < 1]):
            yield (
                f"{arms[0].name} spends equal FLOPs rounded down to whole epochs, up to one less: "
                f"at {epochs_in_words(min(few))} that can be {100 / (1 + min(few)):.0f} % of them"
            )


def last_rates(axis: Axis) -> tuple[float, ...]:
    """Return the recipe's distinct last learning rates over the budgets, if any arm uses them."""
    needed = any(arm.needs_last_lr for arm in axis[0].arms)
    rates = [experiment.recipe.last_lr() for experiment in axis if needed]
    return tuple(dict.fromkeys(rates))
