"""The JSON schema of study files, for editors: generated from the keys and values of studies.

    regrow schema --out study.schema.json

and in the first line of a study::

    # yaml-language-server: $schema=study.schema.json

Whatever the schema rejects, the loader rejects too. Rules between several keys (a penalty's
strength without a penalty, a rate without its optimiser) are checked by the loader only.
"""

import inspect
import json
from collections.abc import Iterable, Mapping
from typing import Any, get_args

from regrow.core.json_schema import (
    NOTHING,
    TEXT,
    Schema,
    a_choice,
    an_object,
    any_of,
    asking,
    described,
    of_fields,
    of_type,
    one_or_list,
    spelled,
    with_bounds,
)
from regrow.core.registry import Registry
from regrow.data.spec import AUGMENTATIONS, DATASETS, DataSpec
from regrow.jobs.arm_keys import ARM_KEYS
from regrow.jobs.arms import (
    ARMS,
    DEFAULT_ARMS,
    OWN_SCHEDULES,
    RATES,
    Arm,
    Budget,
    BudgetKind,
    Rounding,
)
from regrow.jobs.trials import KEYS as TRIAL_KEYS
from regrow.jobs.trials import MOST_TRIALS, TUNE
from regrow.models import MODELS, ORIGIN, ModelEntry, ModelSpec, annotations, resolve
from regrow.pruning.amounts import AMOUNTS, MOST_ROUNDS
from regrow.pruning.costs import COST_TARGETS, CostShare
from regrow.pruning.method import (
    ADAPTED,
    ALLOCATIONS,
    CRITERIA,
    METHODS,
    SCOPES,
    checked_sparsity,
)
from regrow.pruning.normalise import NORMALISATIONS
from regrow.studies.budgets import FACTOR, MOST_BUDGETS
from regrow.studies.experiment import MOST_SEEDS, read_seeds
from regrow.studies.keys import (
    AXES,
    KEYS,
    METHOD_KEYS,
    METRIC_KEYS,
    MODEL_KEYS,
    OWN_KEYS,
    OWN_MODEL_KEYS,
    RIVAL_KEYS,
    SOURCE_KEYS,
    SOURCE_METHOD_KEYS,
)
from regrow.studies.study import MOST_NAME_BYTES, TRAIN, read_margin
from regrow.studies.transfers import TRANSFERS, head_keys
from regrow.tasks import TASKS
from regrow.train import AUTO, RECIPES, EngineName, Precision, Recipe
from regrow.train.function import UNITS as BUDGET_UNITS
from regrow.train.objective import OBJECTIVES
from regrow.train.objective import PASSED as PASSED_TO_OBJECTIVE
from regrow.train.optimiser import OF_RECIPE, OPTIMISERS
from regrow.train.optimiser import PASSED as PASSED_TO_OPTIMISER
from regrow.train.schedules import SCHEDULES

DRAFT = "http://json-schema.org/draft-07/schema#"  # the draft that editors support best
ABOUT = "A study of regrow: see `regrow schema --help`"
OF_STUDY = ("name", "title", "margin", "reference")  # keys of the study, never of an experiment


def schema() -> Schema:
    """Return the JSON schema of a study file."""
    return {
        "$schema": DRAFT,
        "title": ABOUT,
        "type": "object",
        "properties": {key: {"description": text} for key, text in KEYS.items()},
        "if": {"required": ["experiments"]},
        "then": _several(),
        "else": _by_kind(_of_study(), whole=True),
        "definitions": _definitions(),
    }


def _definitions() -> dict[str, Schema]:
    named: Mapping[str, Registry[Any]] = {
        "arm_name": ARMS,
        "criterion": CRITERIA,
        "allocation": ALLOCATIONS,
        "method_name": METHODS,
        "task": TASKS,
        "data_name": DATASETS,
    }
    return {
        **{name: spelled(registry.names()) for name, registry in named.items()},
        **{
            name: any_of(spelled(named[name].names()), _adapted(*ADAPTED))
            for name in ("criterion", "allocation", "method_name")
        },
        "model_name": any_of(
            spelled(MODELS.names()), {"type": "string", "pattern": rf"^\s*({ORIGIN})\s*$"}
        ),
        "data": _data(),
        "model": _model(),
        "method": _method(),
        "arm": _arm(),
        "recipe": _recipe(),
        "seeds": _seeds(),
    }


def _adapted(*prefixes: str) -> Schema:
    """Return the schema of other libraries' method names, spelled as registries compare them."""
    spellings = [
        "".join(f"[{c}{c.upper()}]" if c.isalpha() else "[-_ ]" for c in prefix)
        for prefix in prefixes
    ]
    return {"type": "string", "pattern": rf"^\s*({'|'.join(spellings)})\s*:"}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/definitions/{name}"}


# A study, by its kind ----------------------------------------------------------------------


def _of_study() -> dict[str, Schema]:
    """Return the schemas of the keys of the whole study."""
    margin = with_bounds(float, lambda value: read_margin({"margin": value}))
    forms = {
        "name": {**TEXT, "pattern": r"^[^./\\][^/\\]*$", "maxLength": MOST_NAME_BYTES},
        "title": TEXT,
        "margin": margin,
        "reference": any_of(TEXT, NOTHING),
    }
    return {key: {"description": KEYS[key], **forms[key]} for key in OF_STUDY}


def _by_kind(shared: Mapping[str, Schema], *, whole: bool) -> Schema:
    """Return the schema of an experiment of any kind; all kinds have the keys ``shared``.

    An experiment that is not the ``whole`` study has no required keys, as it inherits them.
    """
    kinds = {
        "own": ({TRAIN}, _own(), (TRAIN, "metric", "models")),
        "transfer": ({"backbone", *head_keys()}, _transfer(), ("backbone", "data")),
        "plain": (set(), _plain(), ("data", "models")),
    }
    forms = {
        kind: an_object({**shared, **keys}, required=needed if whole else ())
        for kind, (_, keys, needed) in kinds.items()
    }
    if whole:
        forms["own"]["anyOf"] = [{"required": [key]} for key in ("budget", "budgets")]
    other = forms["plain"] if whole else any_of(*forms.values())
    for kind in ("transfer", "own"):
        marks = [{"required": [key]} for key in sorted(kinds[kind][0])]
        other = {"if": any_of(*marks), "then": forms[kind], "else": other}
    return other


def _several() -> Schema:
    """Return the schema of a study with a list of experiments.

    A key at the top level is checked only if some experiment lacks it, and so inherits it.
    """
    others = (key for key in (*KEYS, *OWN_KEYS, *head_keys()) if key not in OF_STUDY)
    beside: dict[str, Schema] = {key: {} for key in others}
    parts = {"type": "array", "minItems": 1, "items": _by_kind({}, whole=False)}
    whole = an_object({**beside, **_of_study(), "experiments": parts}, required=["experiments"])
    kinds = (_plain(), _transfer(), _own())
    whole["allOf"] = [
        {
            "if": {"properties": {"experiments": {"not": {"items": {"required": [key]}}}}},
            "then": {"properties": {key: any_of(*(kind[key] for kind in kinds if key in kind))}},
        }
        for key in AXES
    ]
    return whole


def _plain() -> dict[str, Schema]:
    """Return the schemas of the axes of a study of networks that are pruned and compared."""
    default = [arm.name for arm in DEFAULT_ARMS]
    forms = {
        "data": one_or_list(_ref("data"), minItems=1),
        "models": one_or_list(_ref("model"), minItems=1),
        "methods": one_or_list(_ref("method")),
        "arms": {**one_or_list(_ref("arm"), minItems=1), "default": default},
        "seeds": {**_ref("seeds"), "default": 5},
        "recipe": {**_ref("recipe"), "default": "cifar"},
        "budgets": one_or_list(_budget(), minItems=1, maxItems=MOST_BUDGETS),
        "rounding": {"enum": [*get_args(Rounding)], "default": "epochs"},
        "task": any_of(_ref("task"), NOTHING),
    }
    return described(forms, AXES)


def _transfer() -> dict[str, Schema]:
    """Return the schemas of the keys of a study of heads that are built on a backbone."""
    plain = _plain()
    once = {key: form for key, form in plain.items() if key != "budgets"}
    arms = one_or_list({"enum": [*TRANSFERS]}, minItems=1)
    forms = {
        **{key: {} for key in head_keys()},
        **{key: plain[key] for key in ("seeds", "task", "budgets")},
        "data": one_or_list(_ref("data"), minItems=1, maxItems=1),
        "arms": {**arms, "default": [*TRANSFERS], "description": AXES["arms"]},
        "recipe": any_of(_name_of_recipe(), an_object(_recipe_fields())),
        "backbone": {**an_object(once), "description": KEYS["backbone"]},
    }
    of_backbone = ("models", "methods", "rounding")  # refused beside a backbone
    return {key: form for key, form in forms.items() if key not in of_backbone}


def _own() -> dict[str, Schema]:
    """Return the schemas of the keys of a study whose network the user's own function trains."""
    network = any_of(TEXT, an_object(described(_network_forms(), OWN_MODEL_KEYS)))
    whole = {"type": "integer", "minimum": 1}
    flops: Schema = {"type": "number", "exclusiveMinimum": 0}
    amounts: dict[str, Schema] = {**dict.fromkeys(BUDGET_UNITS, whole), "flops": flops}
    forms = {
        TRAIN: TEXT,
        "metric": any_of(TEXT, an_object(described(_metric_forms(), METRIC_KEYS))),
        "budget": any_of(whole, {**an_object(amounts), "minProperties": 1, "maxProperties": 1}),
        "budgets": one_or_list(_budget(), minItems=1, maxItems=MOST_BUDGETS),
        "models": one_or_list(network, minItems=1, maxItems=1),
        "methods": one_or_list(_ref("method")),
        "small": one_or_list(TEXT),
        "arms": one_or_list(_ref("arm"), minItems=1),
        "uniform": {"type": "boolean"},
        "rivals": one_or_list(any_of(TEXT, an_object(described(_network_forms(), RIVAL_KEYS)))),
        "examples": TEXT,
        "seeds": _ref("seeds"),
    }
    return described(forms, OWN_KEYS)


def _network_forms() -> dict[str, Schema]:
    return {
        "network": TEXT,
        "input": one_or_list(TEXT),
        "weights": any_of(TEXT, NOTHING),
        "set": {"type": "object"},
        "keep": one_or_list(TEXT),
        "label": TEXT,
        "budget": {"enum": ["equal-epochs", "equal-flops"]},
        "cap": any_of({"type": "number", "minimum": 1}, NOTHING),
        "vary": any_of(TEXT, NOTHING),
    }


def _metric_forms() -> dict[str, Schema]:
    number = any_of({"type": "number"}, NOTHING)
    return {
        "name": TEXT,
        "better": {"enum": ["higher", "lower", None]},
        "margin": any_of({"type": "number", "exclusiveMinimum": 0}, NOTHING),
        "num_test": any_of({"type": "integer", "minimum": 1}, NOTHING),
        "chance": number,
    }


# Data, models and seeds --------------------------------------------------------------------


def _data() -> Schema:
    options = of_fields(
        DataSpec,
        lambda **given: DataSpec(**{"name": DATASETS.names()[0], **given}),
        forms={"name": _ref("data_name")},
    )
    label = any_of(TEXT, NOTHING)
    return any_of(_ref("data_name"), an_object({**options, "label": label}, required=["name"]))


def _model() -> Schema:
    """Return the schema of a model; a registered one has the arguments of its factory."""
    forms = {
        "name": _ref("model_name"),
        "label": any_of(TEXT, NOTHING),
        "weights": any_of(TEXT, NOTHING),
        "trained_epochs": any_of({"type": "integer", "minimum": 1}, NOTHING),
    }
    keys = described(forms, MODEL_KEYS)
    alike: dict[str, list[str]] = {}  # names by the schema of their arguments
    for name in MODELS.names():
        arguments = _arguments(MODELS.get(name))
        alike.setdefault(json.dumps(arguments, sort_keys=True), []).append(name)
    return any_of(
        _ref("model_name"),
        {
            "type": "object",
            "properties": keys,
            "required": ["name"],
            "allOf": [
                {
                    "if": {"properties": {"name": spelled(names)}, "required": ["name"]},
                    "then": an_object({**json.loads(arguments), **keys}),
                }
                for arguments, names in alike.items()
            ],
        },
    )


def _arguments(entry: ModelEntry) -> dict[str, Schema]:
    """Return the schemas of the arguments that a study may give a registered model."""
    hints = annotations(entry.factory)

    def make(**arguments: Any) -> None:
        resolve(ModelSpec(entry.name, arguments), reserved=entry.from_data)

    return {
        name: with_bounds(hints.get(name, Any), asking(make, name))
        for name, parameter in inspect.signature(entry.factory).parameters.items()
        if name not in entry.from_data
        and parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    }


def _seeds() -> Schema:
    one = with_bounds(int, lambda value: read_seeds([value]))
    number = {**with_bounds(int, read_seeds), "maximum": MOST_SEEDS}
    listed = {"type": "array", "items": one, "uniqueItems": True, "minItems": 1}
    return any_of(number, {**listed, "maxItems": MOST_SEEDS})


def _budget() -> Schema:
    """Return the schema of a training budget: epochs, or a factor of the recipe's."""
    factor = {"type": "string", "pattern": f"^({FACTOR.pattern})$"}
    return any_of({"type": "integer", "minimum": 1}, factor)


# Recipes and arms --------------------------------------------------------------------------


def _recipe() -> Schema:
    teachers = {n for n in OBJECTIVES.names() if OBJECTIVES.get(n).objective.needs_teacher}
    fields = _recipe_fields()
    fields["augmentation"] = any_of({"enum": [*AUGMENTATIONS]}, NOTHING)
    names = [name for name in OBJECTIVES.names() if name not in teachers]
    fields["objective"] = any_of(_objective(names), NOTHING)
    return any_of(_name_of_recipe(), an_object(fields))


def _name_of_recipe() -> Schema:
    return {"enum": [*RECIPES]}


def _recipe_fields() -> dict[str, Schema]:
    """Return the schemas of a recipe's fields, and of the name of the recipe that they change."""
    forms: dict[str, Schema] = {
        "schedule": {"enum": [*SCHEDULES.names()]},
        "precision": {"enum": [*get_args(Precision), AUTO], "default": AUTO},
        "engine": {"enum": [*get_args(EngineName), AUTO], "default": AUTO},
        "objective": any_of(_objective(OBJECTIVES.names()), NOTHING),
        "optimiser": any_of(_optimiser(), NOTHING),
    }
    given = of_fields(Recipe, Recipe, forms=forms)
    del given["last_epoch"]  # follows from the budgets of arms
    return {"name": _name_of_recipe(), **given}


def _objective(names: Iterable[str]) -> Schema:
    losses = {name: OBJECTIVES.get(name).objective.losses for name in names}
    return a_choice({name: _given(f, PASSED_TO_OBJECTIVE) for name, f in losses.items()})


def _optimiser() -> Schema:
    reserved = (*PASSED_TO_OPTIMISER, *OF_RECIPE)
    updates = {name: OPTIMISERS.get(name).update for name in OPTIMISERS.names()}
    return a_choice({name: _given(f, reserved) for name, f in updates.items()})


def _given(function: Any, reserved: Iterable[str]) -> dict[str, Any]:
    """Return the arguments of a function that a study may give, with their defaults."""
    parameters = inspect.signature(function).parameters.items()
    return {name: p.default for name, p in parameters if name not in {*reserved}}


def _arm() -> Schema:
    treating = [name for name in METHODS.names() if METHODS.get(name).treatment is not None]
    rate = with_bounds(float, lambda v: _an_arm(lr=v))
    said: dict[str, Schema] = {
        "name": TEXT,
        "schedule": {"enum": [*OWN_SCHEDULES, *SCHEDULES.names()]},
        "treatment": any_of(spelled(treating), NOTHING),
        "objective": any_of(_objective(OBJECTIVES.names()), NOTHING),
    }
    of_arm = of_fields(Arm, _an_arm, names=ARM_KEYS, forms=said)
    forms = {
        **{key: {k: v for k, v in form.items() if k != "default"} for key, form in of_arm.items()},
        "like": _ref("arm_name"),
        "epochs": with_bounds(int, lambda v: Budget(kind="epochs", amount=v)),
        "share": with_bounds(float, lambda v: Budget(kind="share", amount=v)),
        "budget": of_type(BudgetKind),
        "cap": any_of(with_bounds(float, lambda v: Budget(kind="equal-flops", cap=v)), NOTHING),
    }
    rates: Schema = {"type": "array", "items": rate, "uniqueItems": True, "minItems": 2}
    tune: dict[str, Schema] = {
        **{key: {**rates, "maxItems": MOST_TRIALS} for key in RATES},
        "trials": {"type": "integer", "minimum": 1},
        "on": {"const": "validation"},
    }
    tuning = {
        **an_object(described(tune, TRIAL_KEYS)),
        "oneOf": [{"required": [rate]} for rate in RATES],
        "description": "a rate that is tuned: a trial for each number",
    }
    entry = an_object({**described(forms, ARM_KEYS), TUNE: tuning}, required=["name"])
    known = {"properties": {"name": _ref("arm_name")}}
    entry["anyOf"] = [known, {"required": ["start"]}, {"required": ["like"]}]
    return any_of(_ref("arm_name"), entry)


def _an_arm(**given: Any) -> Arm:
    """Make an arm with the field whose bounds are probed, and the fields that it requires."""
    about = {
        "start": "rewound" if {"epoch", "epoch_share"} & {*given} else "inherited",
        "schedule": "drops" if "drop_at" in given else "full",
        "treatment": "given" if "strength" in given else None,
    }
    return Arm(**{"name": "asked", "budget": Budget(kind="equal-epochs"), **about, **given})


# Methods -----------------------------------------------------------------------------------


def _method() -> Schema:
    """Return the schema of a method, which needs an amount unless its allocation has only one."""
    source: dict[str, Schema] = {
        "model": _ref("model"),
        "data": _ref("data"),
        "recipe": _ref("recipe"),
        "method": _source_method(),
    }
    forms = {**_amounts(), **_parts(), "from": an_object(described(source, SOURCE_KEYS))}
    costs = {name: f"at most this share of the {name} is left" for name in COST_TARGETS.known()}
    entry = an_object(described(forms, {**METHOD_KEYS, **costs}), required=["name"])
    fixed = {name for name in ALLOCATIONS.names() if ALLOCATIONS.get(name).sparsity is not None}
    without = [name for name in METHODS.names() if METHODS.get(name).allocation in fixed]
    alone = [*([spelled(without)] if without else []), _adapted("mask-file")]
    entry["anyOf"] = [
        *({"required": [key]} for key in (*AMOUNTS, *costs, "allocation")),
        *({"properties": {"name": name}} for name in alone),
    ]
    return any_of(*alone, entry)


def _amounts() -> dict[str, Schema]:
    sparsity = with_bounds(float, checked_sparsity)
    share = with_bounds(float, lambda value: CostShare("macs", value))
    return {
        "sparsity": one_or_list(sparsity),
        "target": one_or_list(TEXT),
        "shares": one_or_list({"type": "number", "minimum": 0, "maximum": 1}),
        "rounds": {"type": "integer", "minimum": 1, "maximum": MOST_ROUNDS},
        "multiple_of": {"type": "integer", "minimum": 1},
        "ticket": TEXT,
        **{name: one_or_list(share) for name in COST_TARGETS.known()},
    }


def _parts() -> dict[str, Schema]:
    """Return the schemas of a method's keys besides its amount."""
    kinds: Schema = {"enum": [*SCOPES]}
    return {
        "name": _ref("method_name"),
        "label": TEXT,
        "strength": any_of({"type": "number", "minimum": 0}, NOTHING),
        "criterion": _ref("criterion"),
        "allocation": _ref("allocation"),
        "scope": one_or_list(kinds, minItems=1),
        "normalise": {"enum": [*NORMALISATIONS]},
        "pretrained": {"type": "boolean"},
        "lr": any_of({"type": "number", "exclusiveMinimum": 0}, NOTHING),
    }


def _source_method() -> Schema:
    keys = described(_parts(), SOURCE_METHOD_KEYS)
    return any_of(_ref("method_name"), an_object(keys, required=["name"]))
