"""The one training loop: what a recipe is, one step, exact resume, and evaluation."""

from regrow.train.recipe import RECIPES, Precision, Recipe, Schedule, named
from regrow.train.training import Evaluation, Training, evaluate, fit

__all__ = [
    "RECIPES",
    "Evaluation",
    "Precision",
    "Recipe",
    "Schedule",
    "Training",
    "evaluate",
    "fit",
    "named",
]
