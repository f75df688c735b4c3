"""The study that compares a user's own methods with built-in ones and with controls.

It is an ordinary study, which ``regrow versus`` writes beside its report: methods at equal costs,
each retrained in several ways, and scratch training of equal FLOPs.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from regrow.core.units import UNITS
from regrow.errors import ConfigError, RegrowError
from regrow.jobs.arms import PRUNED, RETRAININGS, SCRATCH_B, UNPRUNED
from regrow.pruning.costs import COST_TARGETS
from regrow.pruning.method import METHODS, Method
from regrow.studies.lint import check_margin_of
from regrow.studies.study import Study
from regrow.studies.yaml_file import decided

MEASURED = (UNPRUNED, PRUNED)  # in every table
RETRAINED = (*RETRAININGS, SCRATCH_B)
VALIDATION = 0.1  # share of the training data on which the best retraining is chosen
# What a method is compared with unless others are named: published methods, then the controls.
CUT = ("l1-filter", "fpgm", "taylor", "random", "uniform", "width")
MASKED = ("magnitude", "lamp", "snip", "uniform-sparsification", "width")
SAME_SCOPE = ("random", "uniform")  # controls remove what the method itself removes


def default_rivals(own: Method) -> tuple[str, ...]:
    """Return the methods to compare with: published ones that remove the same units, and controls.

    >>> default_rivals(METHODS.get("fisher"))
    ('l1-filter', 'fpgm', 'taylor', 'random', 'uniform', 'width')
    """
    names = MASKED if UNITS.get(own.unit).unstructured else CUT
    return tuple(name for name in names if name != own.name)


def read_target(value: str) -> tuple[str, float]:
    """Read a cost and the share of it that is left.

    >>> read_target("macs:0.5")
    ('macs', 0.5)
    """
    name, colon, share = value.partition(":")
    try:
        return COST_TARGETS.key(name), float(share)
    except ValueError as error:
        got = "no share" if not colon else f"{share!r}"
        raise ConfigError(
            f"A target is a cost and the share of it that is left, such as macs:0.5. Got {got} in "
            f"{value!r}."
        ) from error


def study_of(
    own: Sequence[str],
    *,
    name: str,
    model: Any,
    data: Any,
    targets: Iterable[tuple[str, float]],
    rivals: Sequence[str],
    arms: Sequence[str] | None = None,
    seeds: int,
    recipe: Any,
) -> dict[str, Any]:
    """Return the study as a file has it; data without ``validation`` get a held-out share."""
    costs: dict[str, list[float]] = {}
    for cost, share in targets:
        costs.setdefault(cost, []).append(share)
    entry = dict(data) if isinstance(data, dict) else {"name": data}
    chosen = [arm.name for arm in RETRAINED] if arms is None else arms
    methods = [METHODS.key(method) for method in dict.fromkeys((*own, *rivals))]
    scope = [*METHODS.get(own[0]).scope]
    return {
        "name": name,
        "title": f"{', '.join(own)} against {', '.join(m for m in methods if m not in own)}",
        "reference": own[0],
        "data": {**entry, "validation": entry.get("validation", VALIDATION)},
        "models": model,
        "methods": [
            {"name": method, **({"scope": scope} if method in SAME_SCOPE else {}), **costs}
            for method in methods
        ],
        "arms": list(dict.fromkeys((*(arm.name for arm in MEASURED), *chosen))),
        "seeds": seeds,
        "recipe": recipe,
    }


def without_impossible(
    value: dict[str, Any], names: Iterable[str]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Remove from a study those of the named methods that cannot prune its network.

    Returns the remaining study, and the reason for each removed method.
    """
    reasons: dict[str, str] = {}
    for entry in [entry for entry in value["methods"] if entry["name"] in {*names}]:
        alone = {**value, "methods": [entry], "seeds": 1, "arms": [PRUNED.name], "reference": None}
        try:
            check(alone)
        except RegrowError as error:
            reasons[entry["name"]] = str(error)
    left = [entry for entry in value["methods"] if entry["name"] not in reasons]
    return {**value, "methods": left}, reasons


def check(value: dict[str, Any]) -> None:
    """Refuse a study that cannot work, before a file is written or anything is trained."""
    study = Study.from_json(decided(value, lambda: "fp32"))
    study.cells()
    check_margin_of(study)
