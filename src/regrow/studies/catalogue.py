"""The names that a study may use, with a line of description each."""

from collections.abc import Callable
from dataclasses import fields

from regrow.core.choice import Choice
from regrow.core.units import UNITS
from regrow.cost import measure
from regrow.data import DATASETS
from regrow.jobs.arms import ARMS, Arm, Budget
from regrow.models import MODELS, ModelSpec, build
from regrow.pruning.costs import COST_TARGETS
from regrow.pruning.method import ADAPTED, ALL, ALLOCATIONS, CRITERIA, METHODS, SCOPES, Method
from regrow.pruning.normalise import NORMALISATIONS
from regrow.tasks import TASKS
from regrow.train import RECIPES, Recipe
from regrow.train.objective import OBJECTIVES
from regrow.train.optimiser import OPTIMISERS
from regrow.train.schedules import SCHEDULES

STARTS = {
    "inherited": "the weights that are left after pruning",
    "random": "a new random initialisation of the small network",
    "initial": "the unpruned network's initial weights, cut in the same way",
    "redrawn": "another random initialisation of the unpruned network, cut in the same way",
    "rewound": "the unpruned network's weights after some epochs, cut in the same way",
}


def catalogue(*, sizes: bool = False) -> dict[str, dict[str, str]]:
    """Return kind -> name -> one line of description, in the order of a study file's keys.

    ``sizes`` adds the parameters and MACs of models, which takes seconds.
    """
    return {
        "data": {name: _first_line(DATASETS.get(name).read) for name in DATASETS.names()},
        "tasks": {name: TASKS.get(name).about for name in TASKS.names()},
        "models": {name: _model(name, size=sizes) for name in MODELS.names()},
        "methods": {
            **{name: _method(METHODS.get(name)) for name in METHODS.names()},
            **{f"{prefix}:{rest}": about for prefix, (rest, about) in ADAPTED.items()},
        },
        "criteria": {name: _first_line(CRITERIA.get(name)) for name in CRITERIA.names()},
        "allocations": {n: _first_line(ALLOCATIONS.get(n).function) for n in ALLOCATIONS.names()},
        "scopes": {str(name): about for name, about in SCOPES.items()},
        "normalisations": {name: _first_line(f) for name, f in NORMALISATIONS.items()},
        "units": {name: UNITS.get(name).about for name in UNITS.names()},
        "costs": {n: _first_line(COST_TARGETS.get(n).function) for n in COST_TARGETS.names()},
        "arms": {name: _arm(ARMS.get(name)) for name in ARMS.names()},
        "recipes": {name: _recipe(recipe) for name, recipe in RECIPES.items()},
        "objectives": {
            n: _first_line(OBJECTIVES.get(n).objective.losses) for n in OBJECTIVES.names()
        },
        "optimisers": {
            name: _first_line(OPTIMISERS.get(name).update) for name in OPTIMISERS.names()
        },
        "schedules": {name: _first_line(SCHEDULES.get(name).factor) for name in SCHEDULES.names()},
    }


def _first_line(function: Callable[..., object]) -> str:
    return (function.__doc__ or "").strip().partition("\n")[0]


def _model(name: str, *, size: bool) -> str:
    entry = MODELS.get(name)
    parts = (f"Family {entry.family}", _size(name) if size else "", entry.reference)
    return ". ".join(filter(None, parts))


def _size(name: str) -> str:
    """Describe an image model's cost, without allocating its weights; empty for other models."""
    import torch

    classes, pixels = (1000, 224) if name.startswith("imagenet-") else (10, 32)
    data = {"classes": classes, "in_channels": 3, "input_size": pixels}
    if {*MODELS.get(name).from_data} != {*data}:
        return ""
    try:
        with torch.device("meta"):
            cost = measure(build(ModelSpec(name, data)), torch.zeros(1, 3, pixels, pixels))
    except Exception:  # it has required arguments, or a user's code fails
        return ""
    return (
        f"{cost.parameters:,} parameters, {cost.macs:,} MACs for 3x{pixels}x{pixels}, "
        f"{classes} classes"
    )


def _method(method: Method) -> str:
    text = f"{method.criterion} x {method.allocation}, removes {method.unit}s"
    if UNITS.get(method.unit).left_out is not None:
        text += f" ({'all' if method.scope == ALL else ', '.join(method.scope)})"
    if method.follows is not None:
        text += f", uses the widths found by {method.follows} (or by another method: from)"
    return f"{text}; targets {', '.join(method.targets)}" if method.targets else text


def _arm(arm: Arm) -> str:
    if arm.name == "unpruned":
        return "The network before pruning, measured"
    if arm.budget.kind == "none":
        return "The network right after pruning, measured"
    loss = f", with {arm.objective.name}" if arm.objective is not None else ""
    loss += f", with the treatment of {arm.treatment}" if arm.treatment is not None else ""
    return f"Trains {STARTS[arm.start]}, for {_budget(arm.budget)}{_schedule(arm)}{loss}"


def _schedule(arm: Arm) -> str:
    if arm.schedule == "last-rate":
        return ", at the last learning rate"
    if arm.schedule_epoch is not None:
        return f", on the schedule from epoch {arm.schedule_epoch}"
    return ", on the whole schedule" if arm.start == "inherited" else ""


def _budget(budget: Budget) -> str:
    cap = f" (at most {budget.cap:g}x the epochs)" if budget.cap else ""
    if budget.kind == "pipeline":
        share = 100 * (budget.amount or 0)
        return f"the FLOPs of the unpruned network's training and {share:g} % of its epochs{cap}"
    if budget.kind == "share":
        return f"{100 * (budget.amount or 0):g} % of the epochs"
    if budget.kind == "epochs":
        return f"{budget.amount:g} epochs"
    return f"{budget.kind.replace('-', ' ').replace('flops', 'FLOPs')}{cap}"


def _recipe(recipe: Recipe) -> str:
    """Describe a recipe: epochs, batch, rate, and the fields that differ from their defaults."""
    changed = [
        f"{field.name} {_value(getattr(recipe, field.name))}"
        for field in fields(Recipe)
        if field.name not in ("epochs", "batch", "lr")
        and getattr(recipe, field.name) != field.default
    ]
    parts = [f"{recipe.epochs} epochs", f"batch {recipe.batch}", f"lr {recipe.lr:g}", *changed]
    return ", ".join(parts)


def _value(value: object) -> str:
    if isinstance(value, tuple):
        return "/".join(f"{part:g}" for part in value)
    if isinstance(value, Choice):
        arguments = " ".join(f"{name} {_value(given)}" for name, given in value.arguments.items())
        return f"{value.name} ({arguments})" if arguments else value.name
    return f"{value:g}" if isinstance(value, float) else str(value)
