"""The cells of an experiment's table, and the graph of jobs that fills them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, lru_cache, partial
from math import ceil
from typing import Any

import torch
from torch import nn

from regrow.core.choice import Choice
from regrow.core.durations import epochs_in_words
from regrow.core.texts import ended
from regrow.core.units import UNITS
from regrow.data import DataSpec, load
from regrow.errors import ConfigError, RegrowError, TraceError, short
from regrow.jobs.arms import UNPRUNED, Arm
from regrow.jobs.prune import Prune, structure_only
from regrow.jobs.retrain import Retrain
from regrow.jobs.train import Train, Treated
from regrow.models import MODELS, ModelSpec, build, example_input
from regrow.pruning.amounts import Cut
from regrow.pruning.costs import COST_TARGETS, CostShare
from regrow.pruning.dry_run import try_out
from regrow.pruning.method import ALLOCATIONS, CHOICES, CRITERIA, METHODS, REPAIRS, Method
from regrow.pruning.select import allocated, groups_in_scope, layers_of
from regrow.pruning.stages import stages_of
from regrow.pruning.targets import check_reachable
from regrow.studies.experiment import Experiment, MethodUse, Source
from regrow.surgery import Trace
from regrow.surgery.architecture import traced
from regrow.surgery.tape import call
from regrow.tasks import TASKS
from regrow.train import make_objective
from regrow.train.material import Material, material_of
from regrow.train.optimiser import make_optimiser

AnyJob = Train | Prune | Retrain


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One seed of one row of the table, and the job that fills it.

    ``subject`` names the network that the arm trains, if it is not the row's pruned network.
    """

    experiment: Experiment
    use: MethodUse | None  # None: the unpruned network
    cut: Cut | None
    arm: Arm
    seed: int
    job: AnyJob
    subject: str = ""
    under: "Cell | None" = None  # the backbone's cell whose network this one is built on

    @property
    def place(self) -> tuple[str, str, str, str, str, str, int]:
        """Its labels and seed in the table, which identify a result."""
        experiment, use, cut = self.experiment, self.use, self.cut
        return (
            experiment.data_label,
            experiment.model_label,
            epochs_in_words(experiment.budget),
            use.label if use else "",
            cut.label if cut else "",
            self.arm.name,
            self.seed,
        )


@cache
def material(spec: DataSpec) -> Material:
    """Read the description of a data set, once per process."""
    return material_of(spec)


def expanded(experiment: Experiment) -> Iterator[Cell]:
    """Yield the cells of an experiment, in report order; refuse settings that cannot work."""
    if experiment.backbone is not None:
        yield from _built(experiment, experiment.backbone)
        return
    data = material(experiment.data)
    if (head := TASKS.get(data.task).head) is not None:
        raise ConfigError(
            f"The data set {data.spec.name!r} is learnt by a {head.noun}, which is built on other "
            "networks. Give the study a 'backbone'."
        )
    model = data.model(experiment.model)
    _check_augmentation(experiment, data)
    _check_warmup(experiment, data)
    make_optimiser(experiment.recipe)  # tries a step
    _check_objectives(experiment, model, data)
    _check_tuned(experiment, data)
    for use in experiment.uses:
        _check_use(use, model, data)
    if model.is_published:
        _check_published(experiment)
    uses = [_in_network(use, model, data) for use in experiment.uses]
    plain = {job.seed: job for job in _trainings(experiment, data, model)}
    if UNPRUNED in experiment.arms:
        for seed, job in plain.items():
            yield Cell(experiment=experiment, use=None, cut=None, arm=UNPRUNED, seed=seed, job=job)
    for use in uses:
        chosen: dict[int, Prune] = {}  # by seed; with rounds, those of the previous round
        source = None if use.source is None else _source(experiment, use.source, model, data)
        parents: dict[int, Train] = {}
        for cut in use.cuts:
            guides = () if source is None else source.prunings(cut)
            if not parents or use.method.each_sparsity:
                parents = {seed: _parent(experiment, plain[seed], use, cut) for seed in plain}
            prune = _pruner(experiment, use, cut, model)
            for seed, trained in parents.items():
                before = chosen.get(seed)
                ticket = None
                if before is not None and use.ticket is not None:
                    ticket = _retrain(experiment, trained, before, use.ticket)
                chosen[seed] = replace(prune(ticket or trained), guides=guides)
            alike = None  # one pruning for every seed, whatever its weights
            if _gives_architecture(use, cut):
                by_structure = _pruner(experiment, use, cut, model, by_structure=True)
                alike = by_structure(next(iter(parents.values())))
            for arm in (arm for arm in experiment.arms if arm != UNPRUNED):
                for seed, trained in parents.items():
                    given = alike if arm.start == "random" else None
                    yield Cell(
                        experiment=experiment,
                        use=use,
                        cut=cut,
                        arm=arm,
                        seed=seed,
                        job=_retrain(experiment, trained, given or chosen[seed], arm),
                    )


def _built(experiment: Experiment, backbone: Experiment) -> Iterator[Cell]:
    """Yield the cells of the heads built on a backbone's networks, in report order."""
    beneath = {(cell.cut, cell.arm.name, cell.seed): cell for cell in expanded(backbone)}
    data = _data_of_head(experiment, backbone)
    plain = {seed: beneath[None, UNPRUNED.name, seed] for seed in experiment.seeds}
    whole = {
        seed: _on(experiment, data, under.job, seed, label=UNPRUNED.name)
        for seed, under in plain.items()
    }
    pairs = list(zip(experiment.transfers, experiment.arms, strict=True))
    if any(transfer.unpruned for transfer, _ in pairs):
        for seed, job in whole.items():
            under, arm = plain[seed], UNPRUNED
            yield Cell(
                experiment=experiment, use=None, cut=None, arm=arm, seed=seed, job=job, under=under
            )
    cuts = [(use, cut) for use in experiment.uses for cut in use.cuts]
    for use, cut in cuts:
        prune = _pruner(experiment, use, cut, next(iter(whole.values())).model)
        for transfer, arm in (pair for pair in pairs if not pair[0].unpruned):
            for seed in experiment.seeds:
                under = plain[seed] if transfer.further else beneath[cut, transfer.needs, seed]
                label = f"{use.label} {cut.label} {arm.name}"
                if transfer.further:
                    last = arm.recipe(experiment.recipe, experiment.recipe.length)
                    pruned = prune(whole[seed])
                    job = replace(_on(experiment, data, pruned, seed, label=label), recipe=last)
                else:
                    job = _on(experiment, data, under.job, seed, label=label)
                yield Cell(
                    experiment=experiment,
                    use=use,
                    cut=cut,
                    arm=arm,
                    seed=seed,
                    job=job,
                    under=under,
                )


def _on(experiment: Experiment, data: Material, job: AnyJob, seed: int, *, label: str) -> Train:
    """Return the training of a head on a job's network, or of a pruned network that has a head."""
    return Train(
        data=data,
        model=job.model,
        recipe=experiment.recipe,
        seed=seed,
        initial=job,
        head=experiment.head,
        label=f"{experiment.title} {label} seed {seed}",
    )


def _data_of_head(experiment: Experiment, backbone: Experiment) -> Material:
    """Read the head's data; refuse data that it cannot learn, or a backbone without colour."""
    assert experiment.head is not None
    noun, channels = (
        experiment.head.noun,
        dict(material(backbone.data).model_arguments).get("in_channels"),
    )
    if channels != 3:
        raise ConfigError(
            f"A {noun} needs a classifier of colour images, and the 'backbone' has "
            f"{channels or 'no'} channel(s). Name another data set."
        )
    data = material(experiment.data)
    head = TASKS.get(data.task).head
    if head is None or head.noun != noun:
        raise ConfigError(
            f"The data set {data.spec.name!r} is of the task {data.task}, which a {noun} does not "
            "learn. Name one that it does."
        )
    return data


@dataclass(frozen=True, kw_only=True)
class _Guides:
    """The networks, one per seed, that a method follows once another method has pruned them."""

    experiment: Experiment
    use: MethodUse
    plain: tuple[Train, ...]

    def prunings(self, cut: Cut) -> tuple[Prune, ...]:
        """Return their prunings at one cut: the same jobs as those of such rows in a study."""
        prune = _pruner(self.experiment, self.use, cut, self.plain[0].model)
        return tuple(
            prune(_parent(self.experiment, trained, self.use, cut)) for trained in self.plain
        )


def _source(experiment: Experiment, source: Source, model: ModelSpec, data: Material) -> _Guides:
    """Return the networks that a method follows, possibly of another model and data set."""
    followed = replace(
        experiment,
        data=source.data or experiment.data,
        model=source.model or experiment.model,
        model_label=source.model_label or experiment.model_label,
        on=source.data_label or experiment.on,
        recipe=source.recipe or experiment.recipe,
        budget=experiment.budget if source.recipe is None else source.recipe.epochs,
    )
    followed_data = material(followed.data)
    network = followed_data.model(followed.model)
    _check_use(source.use, network, followed_data)
    stages = [
        _count_stages(*pair) for pair in ((network, followed_data.shape), (model, data.shape))
    ]
    if stages[0] != stages[1]:
        sizes = followed_data.shape[-1], data.shape[-1]
        raise ConfigError(
            f"{followed.model.name} has {stages[0]} stages on images of {sizes[0]} pixels, and "
            f"{model.name}, which is to follow it, has {stages[1]} on images of {sizes[1]}. A "
            "stage is the layers with one size of feature map, and stages are matched in their "
            "order: take the pattern 'from' a network and images with as many stages."
        )
    plain = _trainings(followed, followed_data, network)
    return _Guides(
        experiment=followed, use=_in_network(source.use, network, followed_data), plain=plain
    )


def _parent(experiment: Experiment, plain: Train, use: MethodUse, cut: Cut) -> Train:
    """Return the training that a method prunes: the unpruned network's, or the method's own."""
    method = use.method
    if method.treatment is None:
        return plain
    treated = _treated(method, use.strength, plain.model)
    if method.each_sparsity:
        treated = replace(treated, sparsity=cut.sparsity)
    of = f" {cut.label}" if method.each_sparsity else ""
    return replace(
        plain,
        # Published weights are a start only with ``pretrained``, and then by way of ``initial``.
        model=plain.model.untrained() if plain.is_published else plain.model,
        recipe=plain.recipe if use.lr is None else replace(plain.recipe, lr=use.lr),
        treated=treated,
        initial=plain if use.pretrained else None,
        label=f"{experiment.title} for {use.label}{of} seed {plain.seed}",
    )


def _treated(method: Method, strength: float | None, model: ModelSpec) -> Treated:
    """Return a method's treatment, with its published strength unless another is given."""
    if strength is None and method.strength:
        strength = method.strength_for(MODELS.get(model.name).family)
    return Treated(method=method.name, strength=strength, code=METHODS.code(method.name))


def _trainings(experiment: Experiment, data: Material, model: ModelSpec) -> tuple[Train, ...]:
    """Return the trainings of the unpruned network, one per seed."""
    keep = tuple(sorted({arm.epoch for arm in experiment.arms if arm.epoch is not None}))
    code = MODELS.code(model.name)
    return tuple(
        Train(
            data=data,
            model=model,
            recipe=experiment.recipe,
            seed=seed,
            keep=keep,
            code=code,
            label=f"{experiment.title} unpruned seed {seed}",
        )
        for seed in experiment.seeds
    )


def _pruner(
    experiment: Experiment,
    use: MethodUse,
    cut: Cut,
    model: ModelSpec,
    *,
    by_structure: bool = False,
) -> Callable[[Train | Retrain], Prune]:
    """Return a function from a training to the job that prunes its network.

    ``by_structure``: prune to the same widths whatever the weights are, for all seeds.
    """
    # A treatment belongs to the training; without it the job can be sent to any worker.
    method = replace(use.method, treatment=None)
    if by_structure:
        method = structure_only(method)
    code = _code_of(method, cut, model)

    def prune(trained: Train | Retrain) -> Prune:
        parent = trained if method.trained or trained.head is not None else None
        network = experiment.network if parent is None else experiment.title
        label = f"{network} {use.label} {cut.label} prune"
        seed = 0 if by_structure else trained.seed
        return Prune(
            data=trained.data,
            # A method that prunes at initialisation does not use published weights.
            model=trained.model if method.trained else trained.model.untrained(),
            method=method,
            seed=seed,
            parent=parent,
            sparsity=cut.sparsity if cut.step is None else cut.step,
            shares=cut.shares,
            rounds=cut.rounds,
            multiple_of=cut.multiple_of,
            cost=cut.cost,
            code=code,
            label=label + ("" if by_structure else f" seed {seed}"),
        )

    return prune


def _code_of(method: Method, cut: Cut, model: ModelSpec) -> str | None:
    """Digest the files behind a pruning that are not part of this package."""
    codes = [CRITERIA.code(method.criterion), MODELS.code(model.name), UNITS.code(method.unit)]
    if cut.cost is not None:
        codes.append(COST_TARGETS.code(cut.cost.name))
    if cut.shares is None:
        codes.append(ALLOCATIONS.code(method.allocation))
    if method.repair is not None:
        codes.append(REPAIRS.code(method.repair))
    if method.choice is not None:
        codes.append(CHOICES.code(method.choice))
    return "-".join(sorted({code for code in codes if code is not None})) or None


def _retrain(experiment: Experiment, trained: Train, prune: Prune, arm: Arm) -> Retrain:
    """Return the job of an arm, with the jobs that it depends on.

    A random start of given widths needs no trained network, unless it learns from its outputs.
    Inherited weights come from the network that was pruned, rewound ones from the first training.
    """
    starts = {"inherited": prune.parent or trained, "rewound": trained}
    seed = trained.seed
    pruned_network = prune.label.rpartition(" prune")[0].removeprefix(
        experiment.title if prune.parent is not None else experiment.network
    )
    return Retrain(
        prune=prune,
        arm=arm,
        recipe=experiment.recipe,
        seed=seed,
        parent=starts.get(arm.start),
        treated=None
        if arm.treatment is None
        else _treated(METHODS.get(arm.treatment), arm.strength, prune.model),
        teacher=trained if arm.needs_teacher else None,
        label=f"{experiment.title}{pruned_network} {arm.name} seed {seed}",
    )


def _in_network(use: MethodUse, model: ModelSpec, data: Material) -> MethodUse:
    """Remove ``normed-linear`` from a method's scope if the network has no such groups.

    It was added to the scope of network slimming later; results without it keep their keys.
    """
    scope = use.method.scope
    if "normed-linear" in scope and len(scope) > 1:
        less = tuple(kind for kind in scope if kind != "normed-linear")
        name, unit = use.method.name, use.method.unit
        counts = [_count_groups(model, data.shape, unit, kinds, name) for kinds in (less, scope)]
        if counts[0] == counts[1]:
            return replace(use, method=replace(use.method, scope=less))
    return use


def _check_augmentation(experiment: Experiment, data: Material) -> None:
    """Refuse image augmentation of data that are not images, and mixup of tokens."""
    recipe, arguments = experiment.recipe, dict(data.model_arguments).keys()
    of_images = {"in_channels", "input_size"} <= arguments
    settings = {
        "augmentation": recipe.augmentation if recipe.augmentation != "none" else None,
        "cutout": recipe.cutout,
        "alternating_flip": recipe.alternating_flip or None,
        "mixup": recipe.mixup if "vocabulary" in arguments else None,
    }
    for option, value in settings.items():
        if value is not None and not of_images:
            raise ConfigError(
                f"The recipe's {option} {value!r} is for images, and {experiment.data_label!r} has "
                "none. Leave it out."
            )


def _check_warmup(experiment: Experiment, data: Material) -> None:
    """Refuse a training budget within which a warm-up of so many updates would not end."""
    recipe = experiment.recipe
    updates = recipe.num_steps(ceil(data.num_train / recipe.batch))
    if experiment.budget is not None and recipe.warmup_steps >= updates:
        raise ConfigError(
            f"At a budget of {epochs_in_words(experiment.budget)}: the recipe warms up for "
            f"{recipe.warmup_steps:,} updates, and {experiment.data_label!r} gives {updates:,}. "
            "Give it a 'warmup_share' in place of 'warmup_steps', or leave the budget out."
        )


def _check_tuned(experiment: Experiment, data: Material) -> None:
    """Refuse to tune arms without a validation split, as the test set would choose the trial."""
    tuned = [arm.trial_of for arm in experiment.arms if arm.trial_of is not None]
    if tuned and load(data.spec).validation is None:
        raise ConfigError(
            f"The arm {tuned[0]!r} is tuned, and {experiment.data_label!r} has no validation split "
            "to choose on. Give the data 'validation', the share of training examples that is held "
            "out, such as 0.1."
        )


def _check_objectives(experiment: Experiment, model: ModelSpec, data: Material) -> None:
    """Refuse objectives that cannot be computed from the network's outputs for these data."""
    choices = (experiment.recipe.objective, *(arm.objective for arm in experiment.arms))
    if MODELS.get(model.name).outside:  # its outputs are unknown, so try the task's objective too
        choices = (*choices, Choice(TASKS.get(data.task).objective))
    for choice in filter(None, choices):
        _try_objective(choice, model, data)


@cache
def _try_objective(choice: Choice, model: ModelSpec, data: Material) -> None:
    network, _ = _traced(model, data.shape)
    target = load(data.spec).train.labels[:1]
    try:
        with torch.no_grad():
            outputs = call(network.eval(), example_input(model, data.shape))
            make_objective(choice).mean(outputs, target, teacher=outputs)
    except Exception as error:
        kind = "" if isinstance(error, RegrowError) else f"{type(error).__name__}: "
        raise ConfigError(
            f"The objective {choice.name!r} was tried on the outputs of {model.name} for an "
            f"example of {data.spec.name!r} (task {data.task}), and fails: "
            f"{kind}{ended(short(error))} The task's own objective is "
            f"{TASKS.get(data.task).objective!r}."
        ) from error


def _check_published(experiment: Experiment) -> None:
    """Refuse settings that need the network's training, which published weights do not include."""
    if experiment.budget is not None:
        raise ConfigError(
            f"The 'budgets' are epochs of the unpruned network's training, and "
            f"{experiment.model_label!r} comes with trained 'weights'. Leave one of them out."
        )
    tickets = [use.ticket for use in experiment.uses if use.ticket is not None]
    for arm in (*experiment.arms, *tickets):
        if arm != UNPRUNED and arm.start in ("initial", "rewound"):
            raise ConfigError(
                f"The arm {arm.name!r} starts from weights that {experiment.model_label!r} had "
                "before or during its training, which are unknown for 'weights'. Leave it out, "
                "or leave out 'weights', so that the network is trained here."
            )


def _gives_architecture(use: MethodUse, cut: Cut) -> bool:
    """Return whether each group's share alone determines the architecture, whatever the scores."""
    unit = UNITS.get(use.method.unit)
    return cut.shares is not None and unit.given_by_shares(use.method.scope)


def _check_use(use: MethodUse, model: ModelSpec, data: Material) -> None:
    """Refuse methods and amounts that do not fit the network, before anything is trained."""
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
        if cut.cost is not None:
            _check_cost(model, data.shape, replace(use.method, treatment=None), cut.cost)
    _try_own_code(use, model, data)


def _check_cost(model: ModelSpec, shape: tuple[int, ...], method: Method, cost: CostShare) -> None:
    """Refuse a cost that no sparsity reaches with this network's structure."""
    layers = layers_of(*_traced(model, shape), method)
    try:
        check_reachable(layers, partial(allocated, method), cost)
    except ConfigError as error:
        raise ConfigError(f"{model.name}, {method.name}: {error}") from error


def _try_own_code(use: MethodUse, model: ModelSpec, data: Material) -> None:
    """Try a user's own criterion and allocation, which would otherwise first run in pruning."""
    method, cut = use.method, use.cuts[0]
    codes = (CRITERIA.code(method.criterion), ALLOCATIONS.code(method.allocation))
    if any(codes):
        sparsity = cut.sparsity if cut.step is None else cut.step
        _tried(model, data, (method.unit, method.scope, method.name), (sparsity, cut.shares), codes)


@cache
def _tried(model: ModelSpec, data: Material, part: Any, cut: Any, _codes: Any) -> None:
    unit, scope, name = part
    sparsity, shares = cut
    method = replace(METHODS.get(name), unit=unit, scope=scope)
    network, trace = _traced(model, data.shape)
    try_out(
        method, network, trace, dataset=load(data.spec), sparsity=sparsity or 0.5, shares=shares
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
    return network, traced(network, model, shape)
