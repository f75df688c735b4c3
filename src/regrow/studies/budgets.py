"""Training budgets: an axis of an experiment, the epochs of the unpruned network's training.

    budgets: [2, 4, 8, 16]        # epochs
    budgets: [0.25x, 0.5x, 1x]    # or factors of the recipe's own

Each budget is an experiment of its own, whose recipe lasts so long. What is stated as a share
follows: drops, a warm-up by share, budgets of arms. What is stated in epochs or updates stays as it
is stated.
"""

import re
from math import floor
from typing import Any

from regrow.core.validation import as_list, is_int, refuse_twice
from regrow.errors import ConfigError, short
from regrow.train import Recipe

FACTOR = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)x")
MOST_BUDGETS = 100


def read_budgets(value: Any, recipe: Recipe) -> tuple[int, ...]:
    """Read budgets as epochs, in the order given.

    >>> read_budgets([20, "0.5x"], Recipe(epochs=160))
    (20, 80)
    """
    given = as_list(value)
    if not 0 < len(given) <= MOST_BUDGETS:
        raise ConfigError(
            f"The 'budgets' must be from 1 to {MOST_BUDGETS}, such as [2, 4, 8]. Got {len(given)}."
        )
    budgets = [_epochs(entry, recipe) for entry in given]
    refuse_twice("budgets", [f"{epochs} epochs" for epochs in budgets], "leave one out")
    return tuple(budgets)


def _epochs(entry: Any, recipe: Recipe) -> int:
    if is_int(entry, least=1):
        return entry
    matched = FACTOR.fullmatch(entry) if isinstance(entry, str) else None
    epochs = floor(float(matched[1]) * recipe.epochs + 1e-9) if matched else 0
    if epochs < 1:
        few = f", and the recipe has {recipe.epochs}" if matched else ""
        raise ConfigError(
            "Each of the 'budgets' must be a number of epochs, an int of at least 1, or a factor "
            f"of the recipe's, such as 0.5x, that leaves at least one. Got {short(entry)}{few}."
        )
    return epochs
