"""One experiment of a study: a network, a data set, and everything that is compared on them.

Read from the mappings and lists of a study file, and checked: an invalid value raises a
``ConfigError`` that names the place and the valid values.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regrow.core.durations import epochs_in_words
from regrow.core.validation import (
    as_list,
    entry_of,
    is_int,
    is_number,
    mapping,
    refuse_twice,
    text,
)
from regrow.data.spec import AUGMENTATIONS, OF_ROWS, DataSpec
from regrow.errors import ConfigError, short, unknown
from regrow.jobs.arms import (
    ARMS,
    DEFAULT_ARMS,
    PRUNED,
    UNPRUNED,
    WINNING_TICKET,
    Arm,
    Rounding,
    read_arm,
    registered_arm,
)
from regrow.jobs.trials import TUNE, read_trials
from regrow.models import MODELS, ModelSpec, is_origin, resolve
from regrow.models.origins import read_checkpoint
from regrow.pruning.amounts import Cut, cost_names, read_cuts
from regrow.pruning.method import (
    ALLOCATIONS,
    CRITERIA,
    METHODS,
    Method,
    checked_multiple,
    criterion_key,
    is_adapted,
)
from regrow.studies.budgets import at_budget, read_budgets
from regrow.studies.keys import METHOD_KEYS, SOURCE_KEYS, SOURCE_METHOD_KEYS
from regrow.tasks.base import TASKS, Head
from regrow.train import Recipe, make_objective

if TYPE_CHECKING:
    from regrow.studies.transfers import Transfer

OWN_ARGUMENT = ("torchvision", "random")  # 'weights' passed to registered models as an argument
MOST_SEEDS = 10_000


@dataclass(frozen=True, kw_only=True)
class MethodUse:
    """A method with the parts that a study replaces, and how much it removes.

    With rounds, each of the ``cuts`` prunes the network that the arm ``ticket`` trained after the
    previous one. ``pretrained``: the method's own training starts from the trained unpruned
    network; ``lr`` is its learning rate, if not the recipe's. ``source``: the networks whose
    pattern the method follows.
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
    """The pruned networks, of all seeds, that a pattern is taken from; None means as in the row."""

    use: MethodUse
    data: DataSpec | None = None
    data_label: str = ""
    model: ModelSpec | None = None
    model_label: str = ""
    recipe: Recipe | None = None

    @property
    def label(self) -> str:
        """The labels of the network and the data set, where they are not the row's own."""
        return ", ".join(filter(None, (self.model_label, self.data_label)))


class Titled:
    """Gives an experiment the labels that its jobs begin with, distinct within a study."""

    model_label: str
    on: str
    budget: int | None

    @property
    def network(self) -> str:
        """The network's label, with that of the data set if the study has several."""
        return " / ".join(filter(None, (self.on, self.model_label)))

    @property
    def title(self) -> str:
        """The network's label, with the data set and the budget if there are several."""
        return " for ".join(filter(None, (self.network, epochs_in_words(self.budget))))


@dataclass(frozen=True, kw_only=True)
class Experiment(Titled):
    """One data set, one model, and everything that is compared on them.

    ``on``: the label of the data set, if the study has several. ``budget``: the recipe's epochs, if
    the study has several training budgets. With a ``backbone``,
    the ``head`` is built on the networks of the backbone's arms, one arm for each of the
    ``transfers``.
    """

    data: DataSpec
    data_label: str
    model: ModelSpec
    model_label: str
    uses: tuple[MethodUse, ...]
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    recipe: Recipe
    backbone: "Experiment | None" = None
    head: Head | None = None
    transfers: "tuple[Transfer, ...]" = ()
    on: str = ""
    budget: int | None = None


def read_experiments(value: Mapping[str, Any]) -> list[Experiment]:
    """Read the values of the keys ``AXES``: an experiment for each data set, model and budget."""
    for key in ("data", "models"):
        if key not in value:
            raise ConfigError(f"{key!r} is missing. Name at least one.")
    _check_names(value)
    named = as_list(value.get("arms", [arm.name for arm in DEFAULT_ARMS]))
    arms = tuple(arm for entry in named for arm in _arms(entry))
    seeds = read_seeds(value.get("seeds", 5))
    recipe = _recipe(value.get("recipe", "cifar"))
    lengths = read_lengths(value, recipe, arms)
    task = None if value.get("task") is None else TASKS.key(value["task"])
    data = [_of_task(read_data(entry), task) for entry in as_list(value["data"])]
    uses = tuple(read_use(entry, arms) for entry in as_list(value.get("methods", [])))
    models = [_model(entry) for entry in as_list(value["models"])]
    for key, values in (("data", data), ("models", models), ("arms", arms)):
        if not values:
            raise ConfigError(f"{key!r} must name at least one. Got an empty list.")
    if not uses and UNPRUNED not in arms:
        raise ConfigError(
            "There is nothing to run: without 'methods' there is only the arm 'unpruned', and "
            "'arms' does not name it."
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
            uses=tuple(_within(use, lasting, value.get("rounding", "epochs")) for use in uses),
            arms=arms_then,
            seeds=seeds,
            recipe=lasting,
            budget=budget,
        )
        for data_spec, data_label in data
        for model, model_label in models
        for budget, lasting, arms_then in lengths
    ]


def read_lengths(
    value: Mapping[str, Any], recipe: Recipe, arms: Sequence[Arm]
) -> list[tuple[int | None, Recipe, tuple[Arm, ...]]]:
    """Return the recipe and the arms at each of the ``budgets``, or once with the budget None."""
    budgets = read_budgets(value["budgets"], recipe.epochs) if "budgets" in value else (None,)
    rounding = value.get("rounding", "epochs")
    return [(b, *_lasting(b, recipe, arms, rounding)) for b in budgets]


def _lasting(
    budget: int | None, recipe: Recipe, arms: Sequence[Arm], rounding: Rounding
) -> tuple[Recipe, tuple[Arm, ...]]:
    """Return the recipe and the arms at one budget; refuse settings that do not fit into it."""
    try:
        lasting = recipe if budget is None else at_budget(recipe, budget)
        resolved = tuple(arm.rounded(rounding, lasting).within(lasting) for arm in arms)
        for arm in resolved:
            check_arm(arm, lasting)
    except ConfigError as error:
        at = "" if budget is None else f"At a budget of {epochs_in_words(budget)}: "
        raise ConfigError(f"{at}{error}") from error
    return lasting, resolved


def _within(use: MethodUse, recipe: Recipe, rounding: Rounding) -> MethodUse:
    return replace(use, ticket=use.ticket and use.ticket.rounded(rounding, recipe).within(recipe))


def check_arm(arm: Arm, recipe: Recipe) -> None:
    """Refuse an arm that cannot be trained by a recipe's schedule."""
    arm = arm.within(recipe)
    if (arm.epoch or 0) >= recipe.epochs:
        raise ConfigError(
            f"The arm {arm.name!r} rewinds to epoch {arm.epoch}, and the recipe has "
            f"{recipe.epochs}. Rewind to an earlier one, or to an 'epoch_share'."
        )
    if arm.needs_last_lr and recipe.no_last_lr:
        raise ConfigError(
            f"The arm {arm.name!r} trains at the recipe's last learning rate, and the schedule "
            f"{recipe.schedule!r} has none: {recipe.no_last_lr}. Give the arm 'peak_rates' (0.01 "
            "is a hundredth of the recipe's highest), an 'lr', or 'schedule: full'."
        )
    trained = arm.budget.epochs(recipe.length, 1.0)
    if trained and arm.first_epoch >= trained:
        raise ConfigError(
            f"The arm {arm.name!r} enters its schedule of {trained:g} epochs at epoch "
            f"{arm.first_epoch}, when it is over. Enter it earlier."
        )


def _check_names(value: Mapping[str, Any]) -> None:
    """Refuse unknown models and methods before the code behind known ones is imported."""
    for entry in as_list(value["models"]):
        fields = entry if isinstance(entry, Mapping) else {"name": entry}
        if "name" in fields:
            MODELS.key(fields["name"])
    for entry in as_list(value.get("methods", [])):
        fields = entry_of(entry, "methods", _method_keys())
        METHODS.key(fields["name"])
        for key, registry in (("criterion", CRITERIA), ("allocation", ALLOCATIONS)):
            if key in fields:
                registry.key(fields[key])


def read_data(entry: Any) -> tuple[DataSpec, str]:
    """Read an entry of ``data``, and its label in tables."""
    fields = dict(entry) if isinstance(entry, Mapping) else {"name": entry}
    label = fields.pop("label", None)
    spec = DataSpec.from_json(fields)
    if label is None:
        label = Path(spec.location).name if spec.location else spec.name
        noun = "examples" if spec.name.partition(":")[0] in OF_ROWS else "images"
        label += f" ({spec.subset:,} {noun})" if spec.subset else ""
    return spec, text(label, "label")


def _of_task(data: tuple[DataSpec, str], task: str | None) -> tuple[DataSpec, str]:
    """Give data the study's task, unless they name a task themselves."""
    spec, label = data
    return data if task is None or spec.task is not None else (replace(spec, task=task), label)


def _model(entry: Any) -> tuple[ModelSpec, str]:
    """Read a model: registered or by its origin, possibly with the user's own trained weights."""
    fields = dict(entry) if isinstance(entry, Mapping) else {"name": entry}
    name, label = fields.pop("name", None), fields.pop("label", None)
    if name is None:
        raise ConfigError(f"models: an entry needs a 'name'. Got {entry!r}.")
    weights, epochs = fields.pop("weights", None), fields.pop("trained_epochs", None)
    key = MODELS.key(name)
    if weights in OWN_ARGUMENT and not is_origin(key):
        fields["weights"], weights = weights, None
    spec = ModelSpec(key, fields)
    resolve(spec, reserved=MODELS.get(spec.name).from_data)
    if weights is not None:
        spec = ModelSpec(key, fields, checkpoint=read_checkpoint(spec, weights, epochs=epochs))
    elif epochs is not None:
        raise ConfigError(f"models: 'trained_epochs' {epochs!r} need 'weights': give these too.")
    if label is None:
        options = ", ".join(f"{key} {value}" for key, value in fields.items())
        name = Path(spec.name).name if is_origin(spec.name) else spec.name
        label = f"{name} ({options})" if options else name
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


def _arms(entry: Any) -> tuple[Arm, ...]:
    """Read an arm; a tuned one becomes an arm for each trial."""
    tuned = isinstance(entry, Mapping) and TUNE in entry
    return read_trials(entry) if tuned else (read_arm(entry),)


def read_seeds(value: Any) -> tuple[int, ...]:
    """Read the number of seeds, or a list of them."""
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
    """Return the keys that a method may have: its own, and the registered costs."""
    return (*METHOD_KEYS, *cost_names())


def read_use(entry: Any, arms: Sequence[Arm]) -> MethodUse:
    """Read the entry of a method, with how much it removes."""
    fields = entry_of(entry, "methods", _method_keys())
    name = METHODS.key(fields["name"])
    method = METHODS.get(name)
    where = f"The method {name!r}"
    changes: dict[str, Any] = {
        "criterion": criterion_key(fields.get("criterion", method.criterion)),
        "allocation": ALLOCATIONS.key(fields.get("allocation", method.allocation)),
    }
    if "criterion" in fields:
        changes["designed"] = method.designed and changes["criterion"] == method.criterion
    if changes["criterion"] != method.criterion:
        changes["choice"] = None  # it uses the scores of the method's own criterion
    if "scope" in fields:
        changes["scope"] = tuple(text(kind, "scope") for kind in as_list(fields["scope"]))
    if "normalise" in fields:
        changes["normalise"] = text(fields["normalise"], "normalise")
    strength = fields.get("strength")
    if strength is not None:
        if not method.strength:
            raise ConfigError(f"{where} has no penalty during training, so it takes no 'strength'.")
        if not is_number(strength) or strength < 0:
            raise ConfigError(f"{where}: 'strength' must be at least 0. Got {strength!r}.")
    pretrained, lr = fields.get("pretrained", False), fields.get("lr")
    if not isinstance(pretrained, bool):
        raise ConfigError(f"{where}: 'pretrained' must be true or false. Got {pretrained!r}.")
    if method.treatment is None and (pretrained or lr is not None):
        raise ConfigError(
            f"{where} does not change training, so it takes no 'pretrained' and no 'lr'."
        )
    if lr is not None and not (is_number(lr) and lr > 0):
        raise ConfigError(f"{where}: 'lr' must be a number above 0. Got {lr!r}.")
    if "ticket" in fields:
        text(fields["ticket"], "ticket")
    method = replace(method, **changes)
    multiple = _multiple(fields, method, where)
    cuts = tuple(replace(c, multiple_of=multiple) for c in read_cuts(fields, method, where))
    source = _source(fields, method, where)
    if method.each_sparsity and any(cut.shares is not None for cut in cuts):
        raise ConfigError(f"{where} trains for a 'sparsity', so it takes no 'target' or 'shares'.")
    return MethodUse(
        method=method,
        label=text(fields.get("label", _default_label(name, source)), "label"),
        cuts=cuts,
        strength=None if strength is None else float(strength),
        pretrained=pretrained,
        lr=None if lr is None else float(lr),
        ticket=_ticket(fields, arms, where) if cuts[0].step is not None else None,
        source=source,
    )


def _multiple(fields: Mapping[str, Any], method: Method, where: str) -> int:
    try:
        return checked_multiple(method, fields.get("multiple_of", 1))
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _default_label(name: str, source: Source | None) -> str:
    if is_adapted(name):  # without the folder of a file
        prefix, _, rest = name.partition(":")
        return f"{prefix}:{Path(rest).name}"
    return f"{name} from {source.label}" if source is not None and source.label else name


def _source(fields: Mapping[str, Any], method: Method, where: str) -> Source | None:
    """Read the networks whose pattern a method follows, if it follows any."""
    if method.follows is None:
        if "from" in fields:
            known = [name for name in METHODS.names() if METHODS.get(name).follows is not None]
            raise ConfigError(
                f"{where} follows no pattern of other networks, so it takes no 'from'. Methods "
                f"that do: {', '.join(known)}."
            )
        return None
    if "shares" in fields:
        raise ConfigError(
            f"{where} takes each layer's share from other networks, so it takes a 'sparsity' (of "
            "those) and no 'shares'."
        )
    try:
        source = mapping(fields.get("from", {}), "'from'", SOURCE_KEYS)
        entry = entry_of(source.get("method", method.follows), "'from': method", SOURCE_METHOD_KEYS)
        _check_source(METHODS.get(entry["name"]), method)
        use = read_use({**entry, "sparsity": fields["sparsity"]}, ())
        data, data_label = read_data(source["data"]) if "data" in source else (None, "")
        model, model_label = _model(source["model"]) if "model" in source else (None, "")
        recipe = _recipe(source["recipe"]) if "recipe" in source else None
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
    """Refuse a method whose pruned networks cannot give a pattern for another to follow."""
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


def _ticket(fields: Mapping[str, Any], arms: Sequence[Arm], where: str) -> Arm:
    """Return the arm that each round trains: one of the study's, or a registered one."""
    name = text(fields.get("ticket", WINNING_TICKET.name), "ticket")
    by_name = {arm.name: arm for arm in arms}
    ticket = by_name.get(name) or registered_arm(name)
    if ticket is None:
        raise ConfigError(f"{where}: 'ticket': {unknown('arm', name, {*by_name, *ARMS.names()})}")
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
