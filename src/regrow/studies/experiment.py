"""One experiment of a study: a network, a data set, and everything that is compared on them.

Read from the mappings and lists of a study file, and checked: what cannot be meant is a
``ConfigError`` that says where it stands and what is known there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from regrow.core.choice import Choice
from regrow.core.validation import is_int, is_number
from regrow.data.spec import AUGMENTATIONS, DataSpec
from regrow.errors import ConfigError, short, unknown
from regrow.jobs.arms import ARMS, DEFAULT_ARMS, PRUNED, UNPRUNED, WINNING_TICKET, Arm, Budget
from regrow.models import MODELS, ModelSpec, resolve
from regrow.pruning.method import (
    ALLOCATIONS,
    CRITERIA,
    METHODS,
    Method,
)
from regrow.studies.cuts import AMOUNTS, Cut, cost_names, read_cuts
from regrow.studies.yaml_file import as_list, entry_of, mapping, refuse_twice, text
from regrow.tasks.base import TASKS
from regrow.train import Recipe, make_objective

MOST_SEEDS = 10_000
AXES = ("data", "models", "methods", "arms", "seeds", "recipe", "task")

_METHOD_KEYS = (
    *("name", "label", *AMOUNTS),
    *("strength", "criterion", "allocation", "scope"),
    *("pretrained", "lr", "rounds", "ticket", "from"),
)
_SOURCE_KEYS = ("model", "data", "method", "recipe")
_SOURCE_METHOD_KEYS = (
    *("name", "strength", "criterion", "allocation", "scope"),
    *("pretrained", "lr"),
)
_ARM_KEYS = (
    *("name", "like", "start", "epoch", "schedule", "drop_at", "schedule_epoch", "lr"),
    *("treatment", "strength"),
    *("epochs", "share", "budget", "cap", "objective"),
)


@dataclass(frozen=True, kw_only=True)
class MethodUse:
    """A method as a study uses it: with its own parts replaced where the study says so.

    ``cuts`` of rounds follow one another: each prunes what the arm ``ticket`` made of the one
    before. ``pretrained``: what the method trains goes on from the unpruned network, at its own
    rate ``lr`` if given. ``source``: where a method that follows a pattern takes it from.
    """

    method: Method
    label: str
    cuts: tuple[Cut, ...]
    strength: float | None = None
    pretrained: bool = False
    lr: float | None = None
    ticket: Arm | None = None
    source: "Source | None" = None


@dataclass(frozen=True, kw_only=True)
class Source:
    """The pruned networks that a pattern is taken from, of all seeds; None: as in the row."""

    use: MethodUse
    data: DataSpec | None = None
    data_label: str = ""
    model: ModelSpec | None = None
    model_label: str = ""
    recipe: Recipe | None = None

    @property
    def label(self) -> str:
        """The network and the data set in a table, as far as they are not the row's own."""
        return ", ".join(filter(None, (self.model_label, self.data_label)))


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One data set, one model, and everything that is compared on them."""

    data: DataSpec
    data_label: str
    model: ModelSpec
    model_label: str
    uses: tuple[MethodUse, ...]
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    recipe: Recipe


def read_experiments(value: Mapping[str, Any]) -> list[Experiment]:
    """Read what stands under the keys ``AXES``: an experiment for each data set and model."""
    for key in ("data", "models"):
        if key not in value:
            raise ConfigError(f"{key!r} is missing. Name at least one.")
    _check_names(value)
    arms = tuple(
        _arm(entry) for entry in as_list(value.get("arms", [a.name for a in DEFAULT_ARMS]))
    )
    seeds = _seeds(value.get("seeds", 5))
    recipe = _recipe(value.get("recipe", "cifar"))
    for arm in arms:
        if (arm.epoch or 0) >= recipe.epochs:
            raise ConfigError(
                f"The arm {arm.name!r} rewinds to epoch {arm.epoch}, and the recipe has "
                f"{recipe.epochs}. Rewind to an earlier one."
            )
        if arm.schedule == "last-rate" and arm.lr is None and recipe.ends_at_zero:
            raise ConfigError(
                f"The arm {arm.name!r} trains at the recipe's last learning rate, and the schedule "
                f"{recipe.schedule!r} falls to almost zero. Give the arm an 'lr', or 'schedule: "
                "full'."
            )
        trained = arm.budget.epochs(recipe.epochs, 1.0)
        if trained and arm.first_epoch >= trained:
            raise ConfigError(
                f"The arm {arm.name!r} enters its schedule of {trained} epochs at epoch "
                f"{arm.first_epoch}, where nothing of it is left. Enter it earlier."
            )
    data = [_of_task(_data(entry), value.get("task")) for entry in as_list(value["data"])]
    uses = tuple(_use(entry, arms) for entry in as_list(value.get("methods", [])))
    models = [_model(entry) for entry in as_list(value["models"])]
    for key, found in (("data", data), ("models", models), ("arms", arms)):
        if not found:
            raise ConfigError(f"{key!r} must name at least one. Got an empty list.")
    if not uses and UNPRUNED not in arms:
        raise ConfigError(
            "Nothing is asked for: without 'methods' there is only the arm 'unpruned', and 'arms' "
            "does not name it."
        )
    refuse_twice("methods", [use.label for use in uses], "give one of them another 'label'")
    refuse_twice("arms", [arm.name for arm in arms], "give one of them another 'name'")
    refuse_twice("data", [label for _, label in data], "give one of them another 'label'")
    refuse_twice("models", [label for _, label in models], "give one of them another 'label'")
    return [
        Experiment(
            data=data_spec,
            data_label=data_label,
            model=model,
            model_label=model_label,
            uses=uses,
            arms=arms,
            seeds=seeds,
            recipe=recipe,
        )
        for data_spec, data_label in data
        for model, model_label in models
    ]


def _check_names(value: Mapping[str, Any]) -> None:
    """Refuse unknown models and methods before the code behind known ones is imported."""
    for entry in as_list(value["models"]):
        given = entry if isinstance(entry, Mapping) else {"name": entry}
        if "name" in given:
            MODELS.key(given["name"])
    for entry in as_list(value.get("methods", [])):
        given = entry_of(entry, "methods", _method_keys())
        METHODS.key(given["name"])
        for key, registry in (("criterion", CRITERIA), ("allocation", ALLOCATIONS)):
            if key in given:
                registry.key(given[key])


def _data(entry: Any) -> tuple[DataSpec, str]:
    given = dict(entry) if isinstance(entry, Mapping) else {"name": entry}
    label = given.pop("label", None)
    spec = DataSpec.from_json(given)
    if label is None:
        label = Path(spec.location).name if spec.location else spec.name
        label += f" ({spec.subset:,} images)" if spec.subset else ""
    return spec, text(label, "label")


def _of_task(data: tuple[DataSpec, str], task: Any) -> tuple[DataSpec, str]:
    """Let data be of the study's task where they say none themselves."""
    spec, label = data
    if task is None or spec.task is not None:
        return data
    return replace(spec, task=TASKS.key(task)), label


def _model(entry: Any) -> tuple[ModelSpec, str]:
    given = dict(entry) if isinstance(entry, Mapping) else {"name": entry}
    name, label = given.pop("name", None), given.pop("label", None)
    if name is None:
        raise ConfigError(f"models: an entry needs a 'name'. Got {entry!r}.")
    spec = ModelSpec(MODELS.key(name), given)
    resolve(spec, reserved=MODELS.get(spec.name).told)
    if label is None:
        options = ", ".join(f"{key} {value}" for key, value in given.items())
        label = f"{spec.name} ({options})" if options else spec.name
    return spec, text(label, "label")


def _recipe(value: Any) -> Recipe:
    recipe = Recipe.from_json(value)
    if recipe.augmentation is not None and recipe.augmentation not in AUGMENTATIONS:
        raise ConfigError(f"Recipe: {unknown('augmentation', recipe.augmentation, AUGMENTATIONS)}")
    if recipe.objective is not None and make_objective(recipe.objective).needs_teacher:
        raise ConfigError(
            f"Recipe: the objective {recipe.objective.name!r} learns from the unpruned network, "
            "which this recipe trains. Give it to an arm: {name: distilled, objective: ...}."
        )
    return recipe


def _seeds(value: Any) -> tuple[int, ...]:
    if is_int(value, least=MOST_SEEDS + 1) or (isinstance(value, list) and len(value) > MOST_SEEDS):
        raise ConfigError(f"The 'seeds' must be at most {MOST_SEEDS:,}. Got {short(value)}.")
    if is_int(value, least=1):
        return tuple(range(value))
    good = isinstance(value, list) and all(is_int(seed, least=0) for seed in value)
    if not good or not value:
        raise ConfigError(
            "The 'seeds' must be how many (an int of at least 1) or a list of at least one seed. "
            f"Got {value!r}."
        )
    refuse_twice("seeds", [str(s) for s in value], "leave one out")
    return tuple(value)


def _method_keys() -> tuple[str, ...]:
    """Return what may be said of a method: its own keys, and the costs that are registered."""
    return (*_METHOD_KEYS, *cost_names())


def _use(entry: Any, arms: Sequence[Arm]) -> MethodUse:
    given = entry_of(entry, "methods", _method_keys())
    name = METHODS.key(given["name"])
    method = METHODS.get(name)
    where = f"The method {name!r}"
    changes: dict[str, Any] = {
        "criterion": CRITERIA.key(given.get("criterion", method.criterion)),
        "allocation": ALLOCATIONS.key(given.get("allocation", method.allocation)),
    }
    if "scope" in given:
        changes["scope"] = tuple(text(kind, "scope") for kind in as_list(given["scope"]))
    strength = given.get("strength")
    if strength is not None:
        if not method.strength:
            raise ConfigError(f"{where} has no penalty during training, so it takes no 'strength'.")
        if not is_number(strength) or strength < 0:
            raise ConfigError(f"{where}: 'strength' must be at least 0. Got {strength!r}.")
    pretrained, lr = given.get("pretrained", False), given.get("lr")
    if not isinstance(pretrained, bool):
        raise ConfigError(f"{where}: 'pretrained' must be true or false. Got {pretrained!r}.")
    if method.treatment is None and (pretrained or lr is not None):
        raise ConfigError(
            f"{where} does nothing while a network trains, so it takes no 'pretrained' and no 'lr'."
        )
    if lr is not None and not (is_number(lr) and lr > 0):
        raise ConfigError(f"{where}: 'lr' must be a number above 0. Got {lr!r}.")
    method = replace(method, **changes)
    cuts = read_cuts(given, method, where)
    source = _source(given, method, where)
    if method.each_sparsity and any(cut.shares is not None for cut in cuts):
        raise ConfigError(f"{where} trains for a 'sparsity', so it takes no 'target' or 'shares'.")
    return MethodUse(
        method=method,
        label=text(given.get("label", _default_label(name, source)), "label"),
        cuts=cuts,
        strength=None if strength is None else float(strength),
        pretrained=pretrained,
        lr=None if lr is None else float(lr),
        ticket=_ticket(given, arms, where) if cuts[0].step is not None else None,
        source=source,
    )


def _default_label(name: str, source: Source | None) -> str:
    return f"{name} from {source.label}" if source is not None and source.label else name


def _source(given: Mapping[str, Any], method: Method, where: str) -> Source | None:
    """Read where a method that follows a pattern takes it from."""
    if method.follows is None:
        if "from" in given:
            known = [name for name in METHODS.names() if METHODS.get(name).follows is not None]
            raise ConfigError(
                f"{where} follows no pattern of other networks, so it takes no 'from'. Methods "
                f"that do: {', '.join(known)}."
            )
        return None
    if "shares" in given:
        raise ConfigError(
            f"{where} takes each layer's share from other networks, so it takes a 'sparsity' (of "
            "those) and no 'shares'."
        )
    try:
        own = mapping(given.get("from", {}), "'from'", _SOURCE_KEYS)
        entry = entry_of(own.get("method", method.follows), "'from': method", _SOURCE_METHOD_KEYS)
        _check_source(METHODS.get(entry["name"]), method)
        use = _use({**entry, "sparsity": given["sparsity"]}, ())
        data, data_label = _data(own["data"]) if "data" in own else (None, "")
        model, model_label = _model(own["model"]) if "model" in own else (None, "")
        recipe = _recipe(own["recipe"]) if "recipe" in own else None
    except ConfigError as error:
        raise ConfigError(f"{where}, what it follows: {error}") from error
    return Source(
        use=use,
        data=data,
        data_label=data_label,
        model=model,
        model_label=model_label,
        recipe=recipe,
    )


def _check_source(source: Method, method: Method) -> None:
    """Refuse a method whose networks cannot show another how much to keep of each stage."""
    if source.follows is not None or source.rounds > 1:
        how = "follows others itself" if source.follows is not None else "prunes in rounds"
        raise ConfigError(
            f"The method {source.name!r} {how}. Name one that prunes trained networks at once."
        )
    if source.unit != method.unit:
        raise ConfigError(
            f"The method {source.name!r} removes {source.unit}s, and {method.name} removes "
            f"{method.unit}s. Name one that removes {method.unit}s."
        )


def _ticket(given: Mapping[str, Any], arms: Sequence[Arm], where: str) -> Arm:
    """Return the arm that each round trains: one of the study's, or a registered one."""
    name = text(given.get("ticket", WINNING_TICKET.name), "ticket")
    own = {arm.name: arm for arm in arms}
    ticket = own.get(name) or _registered_arm(name)
    if ticket is None:
        raise ConfigError(f"{where}: 'ticket': {unknown('arm', name, {*own, *ARMS.names()})}")
    if ticket.start not in ("inherited", "initial", "rewound"):
        raise ConfigError(
            f"{where}: each round's 'ticket' must start from inherited, initial or rewound "
            f"weights. {name!r} starts from {ticket.start} ones."
        )
    if ticket in (UNPRUNED, PRUNED) or ticket.budget.kind == "none":
        raise ConfigError(
            f"{where}: each round trains its 'ticket', and the arm {name!r} trains nothing. Name "
            "one that does."
        )
    return ticket


def _arm(entry: Any) -> Arm:
    """Read an arm: a registered name, or a name with what differs from itself or from ``like``."""
    given = entry_of(entry, "arms", _ARM_KEYS)
    name = text(given["name"], "name")
    known = _registered_arm(name)
    if known is not None:
        base = known
        for key in ("like", "start"):
            if key in given:
                raise ConfigError(
                    f"The arm {known.name!r} is what it is called; with {key!r} it needs another "
                    "'name'."
                )
    elif "start" in given and "like" not in given:
        budget, epoch = Budget(kind="equal-epochs"), given.get("epoch")
        base = Arm(name=name, start=given["start"], budget=budget, epoch=epoch)
    else:
        base = ARMS.get(given.get("like", name))
    if base in (UNPRUNED, PRUNED) and set(given) - {"name"}:
        raise ConfigError(f"The arm {base.name!r} is measured, not trained: it takes no options.")
    if isinstance(given.get("drop_at"), list):
        given["drop_at"] = tuple(given["drop_at"])
    fields = (
        *("start", "epoch", "schedule", "drop_at", "schedule_epoch", "lr"),
        *("treatment", "strength"),
    )
    _check_treatment(given)
    if given.get("objective") is not None:
        base = replace(base, objective=Choice.from_json(given["objective"]))
    return replace(
        base,
        name=base.name if known is not None else name,
        budget=_budget(given, base),
        **{key: given[key] for key in fields if key in given},
    )


def _check_treatment(given: Mapping[str, Any]) -> None:
    """Refuse an arm's treatment that is none of a method's, or that takes no strength."""
    if given.get("treatment") is None:
        return
    where, name = f"The arm {given['name']!r}", text(given["treatment"], "treatment")
    method = METHODS.get(name)
    if method.treatment is None:
        known = [each for each in METHODS.names() if METHODS.get(each).treatment is not None]
        raise ConfigError(
            f"{where}: the method {name!r} does nothing while a network trains, so it is no "
            f"'treatment'. Methods that do: {', '.join(known)}."
        )
    if given.get("strength") is not None and not method.strength:
        raise ConfigError(f"{where}: the treatment {name!r} takes no 'strength'.")


def _registered_arm(name: str) -> Arm | None:
    try:
        return ARMS.get(name)
    except ConfigError:
        return None


def _budget(given: Mapping[str, Any], base: Arm) -> Budget:
    asked = [key for key in ("epochs", "share", "budget") if key in given]
    if len(asked) > 1:
        raise ConfigError(f"The arm {given['name']!r}: give one of {' and '.join(asked)}.")
    budget = base.budget
    if "epochs" in given:
        budget = Budget(kind="epochs", amount=given["epochs"])
    elif "share" in given:
        budget = Budget(kind="share", amount=given["share"])
    elif "budget" in given:
        budget = Budget(kind=given["budget"])
    if "cap" in given:
        if budget.kind != "equal-flops":
            raise ConfigError(
                f"The arm {given['name']!r}: only a budget of equal FLOPs can have a 'cap'."
            )
        budget = replace(budget, cap=given["cap"])
    return budget
