"""A study: what is asked, read from YAML, checked at the edge, expanded into the graph of jobs.

    name: small
    data: {name: "hf:images/cifar10", subset: 5000}
    models: [resnet-20, {name: vgg-16, width: 0.25}]
    methods:
      - {name: l1-filter, sparsity: [0.3, 0.6]}
      - {name: network-slimming, sparsity: 0.5, strength: 1e-4}
    arms: [unpruned, pruned, fine-tune, scratch-e, {name: scratch-b, cap: 3}]
    seeds: 3
    recipe: {name: cifar, epochs: 20}

``experiments`` lists several of these in one study; what an experiment does not say, it takes from
the study's top level.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml

from regrow.arms import ARMS, PRUNED, UNPRUNED, Arm, Budget
from regrow.data import DataSpec, fingerprint, load
from regrow.errors import ConfigError, unknown
from regrow.jobs import Material, Penalty, Prune, Retrain, Train, structure_only
from regrow.models import FROM_DATA, MODELS, ModelSpec, build, resolve
from regrow.prune import (
    ALLOCATIONS,
    CRITERIA,
    METHODS,
    SCOPES,
    Method,
    checked_sparsity,
    groups_in_scope,
)
from regrow.surgery import trace
from regrow.train import Recipe
from regrow.work import Job

DEFAULT_MARGIN = 0.3  # points of accuracy: about two standard deviations of the paper's rows
AXES = ("data", "models", "methods", "arms", "seeds", "recipe")
KEYS = ("name", "title", *AXES, "margin", "experiments")


@dataclass(frozen=True, kw_only=True)
class Cut:
    """How much a method removes: a sparsity, or a target's share of each group in turn."""

    sparsity: float | None = None
    target: str | None = None
    shares: tuple[float, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class MethodUse:
    """A method as a study uses it: with its own parts replaced where the study says so."""

    method: Method
    label: str
    cuts: tuple[Cut, ...]
    strength: float | None = None


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


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One seed of one row of the table, and the job that fills it."""

    experiment: Experiment
    use: MethodUse | None  # None: the unpruned network
    cut: Cut | None
    arm: Arm
    seed: int
    job: Job


@dataclass(frozen=True, kw_only=True)
class Study:
    """What is asked: models x data sets x methods x sparsities x arms x seeds, and recipes."""

    name: str
    title: str
    experiments: tuple[Experiment, ...]
    margin: float = DEFAULT_MARGIN

    @classmethod
    def load(cls, path: str | Path) -> "Study":
        """Read a study file; a ``ConfigError`` says where it is wrong."""
        file = Path(path)
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise ConfigError(f"Cannot read the study '{path}': {reason}.") from error
        try:
            value = yaml.load(text, Loader=_Loader)
        except yaml.YAMLError as error:
            raise ConfigError(f"The study '{path}' is not YAML: {error}") from error
        try:
            return cls.from_json(value, name=file.stem)
        except ConfigError as error:
            raise type(error)(f"{path}: {error}") from error

    @classmethod
    def from_json(cls, value: Any, *, name: str = "study") -> "Study":
        """Check a study given as mappings and lists."""
        top = _mapping(value, "A study", KEYS)
        parts = top.get("experiments", [{}])
        if not isinstance(parts, list) or not parts:
            raise ConfigError(f"'experiments' must be a list of mappings. Got {parts!r}.")
        experiments: list[Experiment] = []
        for number, part in enumerate(parts, 1):
            where = f"experiments, number {number}" if "experiments" in top else "A study"
            own = _mapping(part, where, AXES)
            experiments += _experiments({**{k: top[k] for k in AXES if k in top}, **own}, where)
        margin = top.get("margin", DEFAULT_MARGIN)
        if not isinstance(margin, int | float) or isinstance(margin, bool) or margin <= 0:
            raise ConfigError(f"The 'margin' must be a number of points above 0. Got {margin!r}.")
        return cls(
            name=_text(top.get("name", name), "name"),
            title=_text(top.get("title", top.get("name", name)), "title"),
            experiments=tuple(experiments),
            margin=float(margin),
        )

    def cells(self) -> list[Cell]:
        """Expand into the rows of the table, one cell a seed, in report order.

        Looks at the data (to know its shape and the identity of its content) and traces each
        network once, so that what cannot work is refused before anything is trained.
        """
        cells: list[Cell] = []
        seen: set[tuple[str, str, int]] = set()
        for experiment in self.experiments:
            cells += _cells(experiment, seen)
        return cells

    def jobs(self) -> tuple[Job, ...]:
        """Return the jobs that fill the cells; what they stand on is in their ``inputs``."""
        return tuple({cell.job.key: cell.job for cell in self.cells()}.values())


# Reading ------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """YAML as people mean it: 1e-3 is a number, and a key that stands twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands here twice", node.start_mark
                )
        return super().construct_mapping(node, deep=deep)


_SCIENTIFIC = re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _SCIENTIFIC, list("-+0123456789"))


def _mapping(value: Any, where: str, known: Sequence[str]) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} must be a mapping of {', '.join(known)}. Got {value!r}.")
    for key in value:
        if key not in known:
            raise ConfigError(f"{where}: {unknown('key', str(key), known)}")
    return dict(value)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"The {where!r} must be a text. Got {value!r}.")
    return value


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _experiments(value: Mapping[str, Any], where: str) -> list[Experiment]:
    for key in ("data", "models"):
        if key not in value:
            raise ConfigError(f"{where}: {key!r} is missing. Name at least one.")
    uses = tuple(_use(entry) for entry in _list(value.get("methods", [])))
    arms = tuple(_arm(entry) for entry in _list(value.get("arms", list(ARMS.names()))))
    _refuse_twice([use.label for use in uses], "methods", "label")
    _refuse_twice([arm.name for arm in arms], "arms", "name")
    seeds = _seeds(value.get("seeds", 5))
    recipe = Recipe.from_json(value.get("recipe", "cifar"))
    data = [_data(entry) for entry in _list(value["data"])]
    models = [_model(entry) for entry in _list(value["models"])]
    if not data or not models:
        raise ConfigError(f"{where}: 'data' and 'models' must name at least one each.")
    _refuse_twice([label for _, label in data], "data", "label")
    _refuse_twice([label for _, label in models], "models", "label")
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


def _refuse_twice(names: Sequence[str], axis: str, field: str) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(
                f"{axis}: {name!r} stands there twice. Give one of them another {field!r}."
            )


def _data(entry: Any) -> tuple[DataSpec, str]:
    given = dict(entry) if isinstance(entry, Mapping) else {"name": entry}
    label = given.pop("label", None)
    spec = DataSpec.from_json(given)
    if label is None:
        label = Path(spec.location).name if spec.location else spec.name
        label += f" ({spec.subset:,} images)" if spec.subset else ""
    return spec, _text(label, "label")


def _model(entry: Any) -> tuple[ModelSpec, str]:
    given = dict(entry) if isinstance(entry, Mapping) else {"name": entry}
    name, label = given.pop("name", None), given.pop("label", None)
    if name is None:
        raise ConfigError(f"models: an entry needs a 'name'. Got {entry!r}.")
    spec = ModelSpec(MODELS.key(name), given)
    resolve(spec, reserved=FROM_DATA)
    if label is None:
        options = ", ".join(f"{key} {value}" for key, value in given.items())
        label = f"{spec.name} ({options})" if options else spec.name
    return spec, _text(label, "label")


def _seeds(value: Any) -> tuple[int, ...]:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return tuple(range(value))
    good = isinstance(value, list) and all(
        isinstance(s, int) and not isinstance(s, bool) and s >= 0 for s in value
    )
    if not good or not value:
        raise ConfigError(
            "The 'seeds' must be how many (an int of at least 1) or a list of at least one seed. "
            f"Got {value!r}."
        )
    _refuse_twice([str(s) for s in value], "seeds", "value")
    return tuple(value)


_USE_KEYS = ("name", "label", "sparsity", "target", "shares", "strength",
             "criterion", "allocation", "scope")  # fmt: skip


def _use(entry: Any) -> MethodUse:
    given = _mapping({"name": entry} if isinstance(entry, str) else entry, "methods", _USE_KEYS)
    if "name" not in given:
        raise ConfigError(f"methods: an entry needs a 'name'. Got {entry!r}.")
    name = METHODS.key(given["name"])
    method = METHODS.get(name)
    where = f"The method {name!r}"
    changes: dict[str, Any] = {}
    for part, registry in (("criterion", CRITERIA), ("allocation", ALLOCATIONS)):
        if part in given:
            changes[part] = registry.key(given[part])
    if "scope" in given:
        changes["scope"] = tuple(_list(given["scope"]))
        for kind in changes["scope"]:
            if kind not in SCOPES:
                raise ConfigError(f"{where}: {unknown('scope', str(kind), SCOPES)}")
    strength = given.get("strength")
    if strength is not None:
        if method.penalty is None:
            raise ConfigError(f"{where} has no penalty during training, so it takes no 'strength'.")
        if not isinstance(strength, int | float) or isinstance(strength, bool) or strength < 0:
            raise ConfigError(f"{where}: 'strength' must be at least 0. Got {strength!r}.")
    return MethodUse(
        method=replace(method, **changes),
        label=_text(given.get("label", name), "label"),
        cuts=_cuts(given, method, where),
        strength=None if strength is None else float(strength),
    )


def _cuts(given: Mapping[str, Any], method: Method, where: str) -> tuple[Cut, ...]:
    cuts = [Cut(sparsity=_sparsity(s, where)) for s in _list(given.get("sparsity", []))]
    for name in _list(given.get("target", [])):
        key = str(name).lower()
        if key not in method.targets:
            raise ConfigError(f"{where}: {unknown('target', str(name), method.targets)}")
        cuts.append(Cut(target=key, shares=method.targets[key].shares))
    if "shares" in given:
        shares = tuple(_sparsity(s, where) for s in _list(given["shares"]))
        cuts.append(Cut(target="shares", shares=shares))
    if not cuts:
        known = f", or a 'target' ({', '.join(method.targets)})" if method.targets else ""
        raise ConfigError(f"{where} needs a 'sparsity' in [0, 1), or several{known}.")
    return tuple(cuts)


def _sparsity(value: Any, where: str) -> float:
    try:
        return checked_sparsity(value)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


_ARM_KEYS = ("name", "like", "start", "schedule", "lr", "epochs", "share", "budget", "cap")


def _arm(entry: Any) -> Arm:
    """Read an arm: a name, or a name with what differs (from itself, or from ``like``)."""
    given = _mapping({"name": entry} if isinstance(entry, str) else entry, "arms", _ARM_KEYS)
    if "name" not in given:
        raise ConfigError(f"arms: an entry needs a 'name'. Got {entry!r}.")
    name = _text(given["name"], "name")
    if "like" not in given and "start" in given and name not in ARMS.names():
        base = Arm(name=name, start=given["start"], budget=Budget(kind="equal-epochs"))
    else:
        base = ARMS.get(given.get("like", name))
    if base in (UNPRUNED, PRUNED) and set(given) - {"name", "like"}:
        raise ConfigError(f"The arm {base.name!r} is measured, not trained: it takes no options.")
    changes = {key: given[key] for key in ("start", "schedule", "lr") if key in given}
    return replace(
        base,
        name=ARMS.key(name) if name in ARMS.names() else name,
        budget=_budget(given, base),
        **changes,
    )


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


# Expanding ----------------------------------------------------------------------------------------


@cache
def material(spec: DataSpec) -> Material:
    """Look at a data set: its shape, its size, the identity of its content."""
    dataset = load(spec)
    return Material(
        spec=spec,
        content=fingerprint(spec),
        channels=dataset.channels,
        size=dataset.size,
        classes=len(dataset.classes),
        num_train=len(dataset.train),
        num_test=len(dataset.test),
    )


def _cells(experiment: Experiment, seen: set[tuple[str, str, int]]) -> Iterable[Cell]:
    data = material(experiment.data)
    model = ModelSpec(
        experiment.model.name,
        {
            **experiment.model.arguments,
            "classes": data.classes,
            "in_channels": data.channels,
            "input_size": data.size,
        },
    )
    for use in experiment.uses:
        _check_use(use, model, data)
    plain = {seed: _train(experiment, data, model, seed, None) for seed in experiment.seeds}
    if UNPRUNED in experiment.arms:
        for seed, job in plain.items():
            row = (experiment.data_label, experiment.model_label, seed)
            if row not in seen:  # further experiments on the same network share its row
                seen.add(row)
                yield Cell(
                    experiment=experiment, use=None, cut=None, arm=UNPRUNED, seed=seed, job=job
                )
    for use in experiment.uses:
        trained = plain
        if use.method.penalty is not None:
            trained = {s: _train(experiment, data, model, s, use) for s in experiment.seeds}
        for cut in use.cuts:
            for arm in experiment.arms:
                if arm == UNPRUNED:
                    continue
                for seed in experiment.seeds:
                    yield Cell(
                        experiment=experiment,
                        use=use,
                        cut=cut,
                        arm=arm,
                        seed=seed,
                        job=_retrain(experiment, trained[seed], use, cut, arm),
                    )


def _train(
    experiment: Experiment, data: Material, model: ModelSpec, seed: int, use: MethodUse | None
) -> Train:
    penalty = None
    if use is not None:
        family = MODELS.get(model.name).family
        strength = use.strength
        penalty = Penalty(
            method=use.method.name,
            strength=use.method.strength_for(family) if strength is None else strength,
            code=METHODS.code(use.method.name),
        )
    return Train(
        data=data,
        model=model,
        recipe=experiment.recipe,
        seed=seed,
        penalty=penalty,
        code=MODELS.code(model.name),
        label=f"{experiment.model_label} {f'for {use.label}' if use else 'unpruned'} seed {seed}",
    )


def _retrain(experiment: Experiment, trained: Train, use: MethodUse, cut: Cut, arm: Arm) -> Retrain:
    """Hang an arm on what it needs: a random start of given widths needs no trained network."""
    seed, method = trained.seed, use.method
    how_much = cut.target or f"{cut.sparsity:g}"
    label = f"{experiment.model_label} {use.label} {how_much}"
    by_structure = cut.shares is not None and arm.start == "random"
    if by_structure:
        method = structure_only(method)
    prune = Prune(
        data=trained.data,
        model=trained.model,
        method=method,
        seed=0 if by_structure else seed,
        parent=trained if method.trained else None,
        sparsity=cut.sparsity,
        shares=cut.shares,
        code=CRITERIA.code(method.criterion),
        label=f"{label} prune" + ("" if by_structure else f" seed {seed}"),
    )
    return Retrain(
        prune=prune,
        arm=arm,
        recipe=experiment.recipe,
        seed=seed,
        parent=trained if arm.start == "inherited" else None,
        label=f"{label} {arm.name} seed {seed}",
    )


def _check_use(use: MethodUse, model: ModelSpec, data: Material) -> None:
    """Refuse what cannot work before anything is trained."""
    count = _count_groups(model, data.shape, use.method.unit, use.method.scope, use.method.name)
    for cut in use.cuts:
        target = use.method.targets.get(cut.target or "")
        if target is not None and target.model != model.name:
            raise ConfigError(
                f"The target {cut.target!r} of {use.method.name} is made for {target.model}. "
                f"Got the model {model.name}."
            )
        if cut.shares is not None and len(cut.shares) != count:
            raise ConfigError(
                f"{use.label}: {cut.target!r} gives {len(cut.shares)} shares, and {model.name} has "
                f"{count} groups in the scope {', '.join(use.method.scope)}."
            )


@cache
def _count_groups(
    model: ModelSpec, shape: tuple[int, ...], unit: Any, scope: Any, name: str
) -> int:
    network = build(model)
    method = replace(METHODS.get(name), unit=unit, scope=scope)
    return len(groups_in_scope(network, trace(network, torch.zeros(shape)), method))
