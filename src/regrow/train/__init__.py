"""The one training loop: recipes, the training step, exact resume, and evaluation."""

from typing import TYPE_CHECKING

from regrow.core.lazy import exports
from regrow.train.objective import CROSS_ENTROPY, Objective, make_objective, register_objective
from regrow.train.optimiser import register_optimiser
from regrow.train.recipe import AUTO, RECIPES, Computing, EngineName, Precision, Recipe, named
from regrow.train.schedules import register_schedule
from regrow.train.treatment import NO_TREATMENT, MaskUpdates, Moment, Treatment

if TYPE_CHECKING:
    from regrow.train.evaluation import Evaluation, evaluate
    from regrow.train.stepping import Stepping
    from regrow.train.training import Training, fit

__all__ = [
    "AUTO",
    "CROSS_ENTROPY",
    "NO_TREATMENT",
    "RECIPES",
    "Computing",
    "EngineName",
    "Evaluation",
    "MaskUpdates",
    "Moment",
    "Objective",
    "Precision",
    "Recipe",
    "Stepping",
    "Training",
    "Treatment",
    "evaluate",
    "fit",
    "make_objective",
    "named",
    "register_objective",
    "register_optimiser",
    "register_schedule",
]
# These need PyTorch, which takes seconds to import; a study file is read without it.
__getattr__ = exports(
    "regrow.train",
    {
        "evaluation": ("Evaluation", "evaluate"),
        "stepping": ("Stepping",),
        "training": ("Training", "fit"),
    },
)
