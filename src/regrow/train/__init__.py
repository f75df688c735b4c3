"""The one training loop: what a recipe is, one step, exact resume, and evaluation."""

from regrow.train.evaluation import Evaluation, evaluate
from regrow.train.recipe import RECIPES, Precision, Recipe, Schedule, named
from regrow.train.training import Training, fit

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
