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

Some methods take more: ``{name: lottery, rounds: 14, sparsity: 0.2, ticket: late}`` prunes what
an arm, such as ``{name: late, start: rewound, epoch: 5}``, made of the round before
(``winning-ticket`` unless said); ``{name: soft-filter, sparsity: 0.3, pretrained: true, lr: 0.01}``
trains on from the unpruned network at another rate; ``{name: sparse-structure, target: zeros}``
drops the blocks whose factor training brought to zero; ``{name: guided-pruning, sparsity: 0.5,
from: {model: vgg-16, data: cifar10}}`` builds a network after what another method left of others
(``from`` may name its ``model``, ``data``, ``method`` and ``recipe``; they are the row's own unless
said).

``experiments`` lists several of these in one study; what an experiment does not say, it takes from
the study's top level.

A model with ``weights: torchvision`` is not trained but taken as it is published, on data of the
same thousand classes (on other data it is trained on from those weights).
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from torch import nn

from regrow.arms import UNPRUNED, Arm
from regrow.checks import is_number
from regrow.data import DataSpec, fingerprint, load
from regrow.errors import ConfigError, TraceError
from regrow.experiment import (
    AXES,
    Cut,
    Experiment,
    MethodUse,
    Source,
    mapping,
    read_experiments,
    text,
)
from regrow.jobs import Material, Prune, Retrain, Train, Treated, structure_only
from regrow.models import MODELS, ModelSpec, build
from regrow.prune import ALLOCATIONS, CRITERIA, METHODS, REPAIRS, groups_in_scope
from regrow.stages import stages_of
from regrow.surgery import Trace, trace
from regrow.train import AUTO, Precision
from regrow.work import Job

DEFAULT_MARGIN = 0.3  # points of accuracy: about two standard deviations of the paper's rows
KEYS = ("name", "title", *AXES, "margin", "experiments")
Read = TypeVar("Read")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One seed of one row of the table, and the job that fills it."""

    experiment: Experiment
    use: MethodUse | None  # None: the unpruned network
    cut: Cut | None
    arm: Arm
    seed: int
    job: Job

    @property
    def place(self) -> tuple[str, str, str, str, str, int]:
        """Where it stands in the table: two results at one place could not be told apart."""
        own, use, cut = self.experiment, self.use, self.cut
        return (
            own.data_label,
            own.model_label,
            use.label if use else "",
            cut.label if cut else "",
            self.arm.name,
            self.seed,
        )


@dataclass(frozen=True, kw_only=True)
class Study:
    """What is asked: models x data sets x methods x sparsities x arms x seeds, and recipes."""

    name: str
    title: str
    experiments: tuple[Experiment, ...]
    margin: float = DEFAULT_MARGIN

    def __post_init__(self) -> None:
        known: dict[tuple[str, str], Experiment] = {}
        for one in self.experiments:
            other = known.setdefault((one.data_label, one.model_label), one)
            differs = [
                a for a in ("data", "model", "recipe") if getattr(one, a) != getattr(other, a)
            ]
            if differs:
                raise ConfigError(
                    f"Two experiments call their network {one.model_label!r} on "
                    f"{one.data_label!r}, but differ in the {' and the '.join(differs)}: a table "
                    "could not tell them apart. Give the model or the data of one of them another "
                    "'label'."
                )

    @classmethod
    def load(cls, path: str | Path, *, precision: Precision = "fp32") -> "Study":
        """Read a study file; a ``ConfigError`` says where it is wrong.

        ``precision`` is what recipes have that say ``auto``, or nothing.
        """
        return read_file(
            path,
            lambda value, name: cls.from_json(decided(value, lambda: precision), name=name),
        )

    @classmethod
    def from_json(cls, value: Any, *, name: str = "study") -> "Study":
        """Check a study given as mappings and lists."""
        top = mapping(value, "A study", KEYS)
        shared = {key: top[key] for key in AXES if key in top}
        if "experiments" in top:
            experiments = _listed_experiments(top["experiments"], shared)
        else:
            experiments = read_experiments(shared)
        return cls(
            name=file_name(top.get("name", name)),
            title=text(top.get("title", top.get("name", name)), "title"),
            experiments=tuple(experiments),
            margin=read_margin(top),
        )

    def cells(self) -> list[Cell]:
        """Expand into the rows of the table, one cell a seed, in report order.

        Looks at the data (to know its shape and the identity of its content) and traces each
        network once, so that what cannot work is refused before anything is trained. What several
        experiments ask for alike stands there once.
        """
        cells: dict[Any, Cell] = {}
        for experiment in self.experiments:
            for cell in _cells(experiment):
                if cells.setdefault(cell.place, cell).job.key != cell.job.key:
                    *place, seed = cell.place
                    raise ConfigError(
                        f"Two experiments mean different things by the row '{' / '.join(place)}' "
                        f"(seed {seed}). Give the method of one of them another 'label', or its "
                        "arm another 'name'."
                    )
        return list(cells.values())

    def jobs(self) -> tuple[Job, ...]:
        """Return the jobs that fill the cells; what they stand on is in their ``inputs``."""
        return tuple({cell.job.key: cell.job for cell in self.cells()}.values())


# Reading ------------------------------------------------------------------------------------------


def decided(value: Any, precision: Callable[[], Precision]) -> Any:
    """Return a study, as a file has it, whose recipes say a precision: where they do not, this.

    ``precision`` is asked only if a recipe does not say, or says ``auto``.
    """
    if not isinstance(value, Mapping):
        return value
    found = _decided(value, precision)
    whole = {} if "backbone" in value else {"name": "cifar"}  # what a study has that gives none
    if "recipe" not in value:
        found["recipe"] = _decided_recipe(whole, precision)
    if isinstance(value.get("backbone"), Mapping):
        found["backbone"] = decided(value["backbone"], precision)
    return found


def _decided(value: Any, precision: Callable[[], Precision]) -> Any:
    if isinstance(value, list):
        return [_decided(entry, precision) for entry in value]
    if not isinstance(value, Mapping):
        return value
    return {
        key: _decided_recipe(entry, precision) if key == "recipe" else _decided(entry, precision)
        for key, entry in value.items()
    }


def _decided_recipe(value: Any, precision: Callable[[], Precision]) -> Any:
    recipe = {"name": value} if isinstance(value, str) else value
    if not isinstance(recipe, Mapping) or recipe.get("precision", AUTO) != AUTO:
        return value
    return {**recipe, "precision": precision()}


def read_file(path: str | Path, parse: Callable[[Any, str], Read]) -> Read:
    """Read a study file of any kind: ``parse`` takes its content and the file's bare name.

    What is wrong is a ``ConfigError`` that names the file.
    """
    file = Path(path)
    try:
        content = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"Cannot read the study '{path}': {reason}. Give the path of a YAML file."
        ) from error
    try:
        value = yaml.load(content, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"The study '{path}' is not YAML: {error}") from error
    try:
        return parse(value, file.stem)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


class _Loader(yaml.SafeLoader):
    """YAML as people mean it: 1e-3 is a number, and a key that stands twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = []
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":  # <<: *anchor
                continue
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands here twice", key_node.start_mark
                )
            seen.append(key)
        return super().construct_mapping(node, deep=deep)


_SCIENTIFIC = re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _SCIENTIFIC, list("-+0123456789"))


def _listed_experiments(parts: Any, shared: Mapping[str, Any]) -> list[Experiment]:
    if not isinstance(parts, list) or not parts:
        raise ConfigError(f"'experiments' must be a list of mappings. Got {parts!r}.")
    found: list[Experiment] = []
    for number, part in enumerate(parts, 1):
        own = mapping(part, f"experiments, number {number}", AXES)
        try:
            found += read_experiments({**shared, **own})
        except ConfigError as error:
            raise ConfigError(f"experiments, number {number}: {error}") from error
    return found


def read_margin(top: Mapping[str, Any]) -> float:
    """Check below how many points arms count as equivalent."""
    margin = top.get("margin", DEFAULT_MARGIN)
    if not is_number(margin) or margin <= 0:
        raise ConfigError(f"The 'margin' must be a number of points above 0. Got {margin!r}.")
    return float(margin)


def file_name(value: Any) -> str:
    """Check a study's name, under which its report is written."""
    name = text(value, "name")
    if "/" in name or "\\" in name or name.startswith("."):
        raise ConfigError(
            f"The 'name' of a study names a folder, so it can have no slash and no dot in front. "
            f"Got {name!r}; a 'title' is free."
        )
    return name


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
        num_most_frequent=int(torch.bincount(dataset.test.labels).max()),
        notices=dataset.notices,
    )


def _cells(experiment: Experiment) -> Iterable[Cell]:
    data = material(experiment.data)
    model = _fitted(experiment.model, data)
    for use in experiment.uses:
        _check_use(use, model, data)
    if model.is_published:
        _check_published(experiment)
    uses = [_in_network(use, model, data) for use in experiment.uses]
    plain = {seed: _train(experiment, data, model, seed) for seed in experiment.seeds}
    if UNPRUNED in experiment.arms:
        for seed, job in plain.items():
            yield Cell(experiment=experiment, use=None, cut=None, arm=UNPRUNED, seed=seed, job=job)
    for use in uses:
        chosen: dict[int, Prune] = {}  # by seed: of the round before, where there are rounds
        source = None if use.source is None else _source(experiment, use.source, model, data)
        for cut in use.cuts:
            guides = () if source is None else source.prunings(cut)
            parents = {seed: _parent(experiment, plain[seed], use, cut) for seed in plain}
            for seed, trained in parents.items():
                before = chosen.get(seed)
                ticket = None
                if before is not None and use.ticket is not None:
                    ticket = _retrain(experiment, trained, before, use.ticket)
                prune = _prune(experiment, ticket or trained, use, cut)
                chosen[seed] = replace(prune, guides=guides)
            for arm in (arm for arm in experiment.arms if arm != UNPRUNED):
                for seed, trained in parents.items():
                    prune = chosen[seed]
                    if arm.start == "random" and _gives_architecture(use, cut):
                        prune = _prune(experiment, trained, use, cut, by_structure=True)
                    yield Cell(
                        experiment=experiment,
                        use=use,
                        cut=cut,
                        arm=arm,
                        seed=seed,
                        job=_retrain(experiment, trained, prune, arm),
                    )


def _fitted(model: ModelSpec, data: Material) -> ModelSpec:
    """Return a model for the images and classes of a data set."""
    from_data = {"classes": data.classes, "in_channels": data.channels, "input_size": data.size}
    return ModelSpec(model.name, {**model.arguments, **from_data})


@dataclass(frozen=True, kw_only=True)
class _Pruned:
    """Networks pruned by another method, for what it prunes to follow: one a seed."""

    experiment: Experiment
    use: MethodUse
    plain: tuple[Train, ...]

    def prunings(self, cut: Cut) -> tuple[Prune, ...]:
        """Return those of one sparsity: the jobs of the rows that a study may have of them."""
        parents = [_parent(self.experiment, trained, self.use, cut) for trained in self.plain]
        return tuple(_prune(self.experiment, parent, self.use, cut) for parent in parents)


def _source(experiment: Experiment, source: Source, model: ModelSpec, data: Material) -> _Pruned:
    """Return the networks that a method follows, which may be of another model and data set."""
    other = replace(
        experiment,
        data=source.data or experiment.data,
        model=source.model or experiment.model,
        model_label=source.model_label or experiment.model_label,
        recipe=source.recipe or experiment.recipe,
    )
    theirs = material(other.data)
    network = _fitted(other.model, theirs)
    _check_use(source.use, network, theirs)
    stages = [_count_stages(*pair) for pair in ((network, theirs.shape), (model, data.shape))]
    if stages[0] != stages[1]:
        raise ConfigError(
            f"{other.model.name} has {stages[0]} stages on images of {theirs.size} pixels, and "
            f"{model.name}, which is to follow it, has {stages[1]} on images of {data.size}. A "
            "stage is the layers with one size of feature map, and stages are matched in their "
            "order: take the pattern 'from' a network and images with as many."
        )
    plain = tuple(_train(other, theirs, network, seed) for seed in other.seeds)
    return _Pruned(experiment=other, use=_in_network(source.use, network, theirs), plain=plain)


def _parent(experiment: Experiment, plain: Train, use: MethodUse, cut: Cut) -> Train:
    """Return the trained network that a method prunes: the unpruned one, or one of its own."""
    method = use.method
    if method.treatment is None:
        return plain
    strength = use.strength
    if strength is None and method.strength:
        strength = method.strength_for(MODELS.get(plain.model.name).family)
    treated = Treated(
        method=method.name,
        strength=strength,
        sparsity=cut.sparsity if method.each_sparsity else None,
        code=METHODS.code(method.name),
    )
    of = f" {cut.label}" if method.each_sparsity else ""
    return replace(
        plain,
        # It goes on from published weights where the method says so, by way of ``initial``.
        model=plain.model.untrained() if plain.taken else plain.model,
        recipe=plain.recipe if use.lr is None else replace(plain.recipe, lr=use.lr),
        treated=treated,
        initial=plain if use.pretrained else None,
        label=f"{experiment.model_label} for {use.label}{of} seed {plain.seed}",
    )


def _train(experiment: Experiment, data: Material, model: ModelSpec, seed: int) -> Train:
    return Train(
        data=data,
        model=model,
        recipe=experiment.recipe,
        seed=seed,
        keep=tuple(sorted({arm.epoch for arm in experiment.arms if arm.epoch is not None})),
        code=MODELS.code(model.name),
        label=f"{experiment.model_label} unpruned seed {seed}",
    )


def _prune(
    experiment: Experiment,
    trained: Train | Retrain,
    use: MethodUse,
    cut: Cut,
    *,
    by_structure: bool = False,
) -> Prune:
    # A treatment belongs to the training; without it the job can be sent to any worker.
    method = replace(use.method, treatment=None)
    if by_structure:
        method = structure_only(method)
    first = trained.prune if isinstance(trained, Retrain) else trained
    seed = 0 if by_structure else trained.seed
    codes = [CRITERIA.code(method.criterion), MODELS.code(first.model.name)]
    if cut.shares is None:
        codes.append(ALLOCATIONS.code(method.allocation))
    if method.repair is not None:
        codes.append(REPAIRS.code(method.repair))
    label = f"{experiment.model_label} {use.label} {cut.label} prune"
    return Prune(
        data=first.data,
        # A network as first drawn has no published weights.
        model=first.model if method.trained else first.model.untrained(),
        method=method,
        seed=seed,
        parent=trained if method.trained else None,
        sparsity=cut.sparsity if cut.step is None else cut.step,
        shares=cut.shares,
        code="-".join(sorted({code for code in codes if code is not None})) or None,
        label=label + ("" if by_structure else f" seed {seed}"),
    )


def _retrain(experiment: Experiment, trained: Train, prune: Prune, arm: Arm) -> Retrain:
    """Hang an arm on what it needs.

    A random start of given widths needs no trained network. Weights are inherited from the network
    that was pruned, and rewound to those of the training that came first.
    """
    starts = {"inherited": prune.parent or trained, "rewound": trained}
    seed = trained.seed
    what = prune.label.rpartition(" prune")[0]
    return Retrain(
        prune=prune,
        arm=arm,
        recipe=experiment.recipe,
        seed=seed,
        parent=starts.get(arm.start),
        label=f"{what} {arm.name} seed {seed}",
    )


def _in_network(use: MethodUse, model: ModelSpec, data: Material) -> MethodUse:
    """Leave out of a method's scope the normed linear layers that a network does not have.

    They came to the scope of network slimming later; results without them keep their keys.
    """
    scope = use.method.scope
    if "normed-linear" in scope and len(scope) > 1:
        less = tuple(kind for kind in scope if kind != "normed-linear")
        name, unit = use.method.name, use.method.unit
        counts = [_count_groups(model, data.shape, unit, kinds, name) for kinds in (less, scope)]
        if counts[0] == counts[1]:
            return replace(use, method=replace(use.method, scope=less))
    return use


def _check_published(experiment: Experiment) -> None:
    """Refuse arms that need what published weights were before they were trained."""
    tickets = [use.ticket for use in experiment.uses if use.ticket is not None]
    for arm in (*experiment.arms, *tickets):
        if arm != UNPRUNED and arm.start in ("initial", "rewound"):
            raise ConfigError(
                f"The arm {arm.name!r} starts from what {experiment.model_label!r} was before or "
                "while it was trained, which is not known of published weights. Leave the arm out, "
                "or leave out 'weights', so that the network is trained here."
            )


def _gives_architecture(use: MethodUse, cut: Cut) -> bool:
    """Tell whether the widths (or the blocks given) alone are the architecture.

    Not so for single weights, nor for streams and views, whose positions other layers share.
    """
    private = {"conv", "normed-conv", "linear", "normed-linear"}
    by_width = use.method.unit == "channel" and set(use.method.scope) <= private
    return cut.shares is not None and (by_width or use.method.unit == "block")


def _check_use(use: MethodUse, model: ModelSpec, data: Material) -> None:
    """Refuse what cannot work before anything is trained."""
    count = _count_groups(model, data.shape, use.method.unit, use.method.scope, use.method.name)
    for cut in use.cuts:
        target = use.method.targets.get(cut.target or "")
        if target is not None and target.model not in ("", model.name):
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
    method = replace(METHODS.get(name), unit=unit, scope=scope)
    try:
        return len(groups_in_scope(*_traced(model, shape), method))
    except TraceError as error:
        raise TraceError(f"{model.name}: {error}") from error


@cache
def _count_stages(model: ModelSpec, shape: tuple[int, ...]) -> int:
    return len(set(stages_of(*_traced(model, shape)).values()))


@lru_cache(maxsize=1)
def _traced(model: ModelSpec, shape: tuple[int, ...]) -> tuple[nn.Module, Trace]:
    network = build(model.untrained())
    return network, trace(network, torch.zeros(shape))
