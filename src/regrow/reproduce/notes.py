"""Notes for the reader of a table: those of its study file, and those that follow from its values.

Notes that apply to several tables follow from their networks, methods and recipes: a paper gives a
text for each condition (``CONDITIONS``) that needs a note.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from regrow.core.units import UNITS
from regrow.errors import ConfigError, unknown
from regrow.studies.experiment import Experiment

Holds = Callable[[Experiment], bool]


def notes_of(
    value: Mapping[str, Any], experiments: Iterable[Experiment], notes: Mapping[str, str]
) -> list[str]:
    """Return the notes of a study file, its paper's notes that apply, and the cells left out."""
    studied = list(experiments)
    for name in notes:
        if name not in CONDITIONS:
            raise ConfigError(f"paper.yaml, notes: {unknown('condition', name, CONDITIONS)}")
    follow = (text for name, text in notes.items() if any(map(CONDITIONS[name], studied)))
    return [*value.get("notes", []), *follow, *map(_why_absent, value.get("absent", []))]


def _why_absent(absent: Mapping[str, Any]) -> str:
    labels = " / ".join(str(value) for name, value in absent.items() if name != "why")
    return f"Not run, {labels}: {absent['why']}."


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
    random_start = any(arm.start == "random" for arm in experiment.arms)
    by_inputs = experiment.model.arguments.get("init_fan") == "in"
    return random_start and by_inputs and _is_sparse(experiment)


def _is_sparse(experiment: Experiment) -> bool:
    return any(UNITS.get(method.unit).unstructured for method in _methods(experiment))


def _methods(experiment: Experiment) -> Iterator[Any]:
    return (use.method for use in experiment.uses)


CONDITIONS: Mapping[str, Holds] = {
    "always": lambda experiment: True,
    "plain-momentum": _plain_momentum,
    "average-pool-shortcuts": _blocks_gradients,
    "layers-may-empty": _may_empty_layers,
    "sparse-equal-flops": _stretches_sparse,
    "sparse-fan-in": _changes_fan,
}
