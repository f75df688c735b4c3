"""Notes for the reader of a table: those of its study file, and those that follow from its values.

A remark that holds for several tables stands in each of them, because it is drawn from their
networks, methods and recipes rather than written beside one.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from regrow.core.units import UNITS
from regrow.studies.experiment import Experiment

Holds = Callable[[Experiment], bool]


def notes_of(value: Mapping[str, Any], experiments: Iterable[Experiment]) -> list[str]:
    """Return the notes of a study file, what its experiments call for, and what it leaves out."""
    asked = list(experiments)
    follow = (text for holds, text in FOLLOWING if any(map(holds, asked)))
    return [*value.get("notes", []), *follow, *map(_why_absent, value.get("absent", []))]


def _why_absent(one: Mapping[str, Any]) -> str:
    labels = " / ".join(str(value) for name, value in one.items() if name != "why")
    return f"Not run, {labels}: {one['why']}."


def _plain_momentum(experiment: Experiment) -> bool:
    return experiment.recipe.momentum > 0 and not experiment.recipe.nesterov


def _blocks_gradients(experiment: Experiment) -> bool:
    return bool(experiment.model.arguments.get("shortcut") == "average-pool")


def _may_empty_layers(experiment: Experiment) -> bool:
    return any(
        UNITS.get(method.unit).narrows and method.allocation == "global"
        for method in _methods(experiment)
    )


def _stretches_sparse(experiment: Experiment) -> bool:
    stretched = any(arm.budget.kind == "equal-flops" for arm in experiment.arms)
    return stretched and _is_sparse(experiment)


def _changes_fan(experiment: Experiment) -> bool:
    drawn = any(arm.start == "random" for arm in experiment.arms)
    by_inputs = experiment.model.arguments.get("init_fan") == "in"
    return drawn and by_inputs and _is_sparse(experiment)


def _is_sparse(experiment: Experiment) -> bool:
    return any(UNITS.get(method.unit).unstructured for method in _methods(experiment))


def _methods(experiment: Experiment) -> Iterator[Any]:
    return (use.method for use in experiment.uses)


FOLLOWING: tuple[tuple[Holds, str], ...] = (
    (
        _plain_momentum,
        "Plain momentum as in the official code; the paper's text says Nesterov.",
    ),
    (
        lambda experiment: True,
        "The last epoch is reported, and nothing is chosen on the test set.",
    ),
    (
        _blocks_gradients,
        "The shortcuts of these ResNets pass no gradient at the two transitions between stages, as "
        "in the official code.",
    ),
    (
        _may_empty_layers,
        "A layer that the global threshold would empty keeps the channel that scores highest; the "
        "report counts these layers. The paper does not say what it did.",
    ),
    (
        _stretches_sparse,
        "Scratch-b takes the FLOPs ratio of the non-zero weights, as the paper intends; the "
        "released script takes it before the mask is loaded.",
    ),
    (
        _changes_fan,
        "Unpruned networks are drawn by fan-in, and random starts under a mask by fan-out scaled "
        "by each layer's density, both as in the official code.",
    ),
)
