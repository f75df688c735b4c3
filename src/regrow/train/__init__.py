"""The one training loop: what a recipe is, one step, exact resume, and evaluation."""

from regrow.train.evaluation import Evaluation, evaluate
from regrow.train.recipe import AUTO, RECIPES, Precision, Recipe, Schedule, named
from regrow.train.stepping import Stepping
from regrow.train.training import Training, fit
from regrow.train.treatment import NO_TREATMENT, Treatment

__all__ = [
    "AUTO",
    "NO_TREATMENT",
    "RECIPES",
    "Evaluation",
    "Precision",
    "Recipe",
    "Schedule",
    "Stepping",
    "Training",
    "Treatment",
    "evaluate",
    "fit",
    "named",
]
