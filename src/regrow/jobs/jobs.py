"""The three jobs of every study: train a network, prune it, retrain what is left.

A job is a frozen value; its key digests its kind, its version, its spec and the keys of its inputs.
Change what a job means: raise its version.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from regrow.core.seeds import derive
from regrow.core.units import HELD, Unit
from regrow.cost import Cost, Counted, count, measure
from regrow.data import Dataset, DataSpec
from regrow.data.normalisation import IMAGENET
from regrow.errors import ConfigError, TraceError
from regrow.jobs.arms import Arm
from regrow.jobs.base import AFTER, Context, Job, Outcome, advance, state_of
from regrow.models import ModelSpec, build, initialise_
from regrow.pruning.method import METHODS, REPAIRS, Method
from regrow.pruning.probe import Probe
from regrow.pruning.select import select
from regrow.pruning.stages import Pattern, pattern_of, stages_of
from regrow.surgery import prove, sensitivities, trace
from regrow.surgery.architecture import Architecture
from regrow.surgery.mask import Mask, apply_, filter_dim, holder, over_weights
from regrow.train import NO_TREATMENT, Recipe, Training, Treatment, evaluate


@dataclass(frozen=True, kw_only=True)
class Material:
    """The images of a job: how to load them, the identity of their content, their shape."""

    spec: DataSpec
    content: str  # fingerprint, the same wherever the files lie
    channels: int
    size: int
    classes: int
    num_train: int
    num_test: int
    num_most_frequent: int | None = None  # test images of the most frequent class, where counted
    notices: tuple[str, ...] = ()  # for people: no part of any key

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one example."""
        return (1, self.channels, self.size, self.size)

    @property
    def chance(self) -> float | None:
        """What always naming the most frequent class of the test set scores, in percent."""
        if self.num_most_frequent is None:
            return None
        return 100 * self.num_most_frequent / self.num_test


@dataclass(frozen=True, kw_only=True)
class Treated:
    """What a method does during a training, and how strongly."""

    method: str
    strength: float | None = None
    sparsity: float | None = None  # where it depends on that
    code: str | None = None  # digest of a file from outside this package

    def to_json(self) -> dict[str, Any]:
        """Return what was asked for."""
        revision = METHODS.get(self.method).treatment_revision
        return without_none(
            method=self.method,
            strength=self.strength,
            sparsity=self.sparsity,
            revision=revision if revision > 1 else None,
            code=self.code,
        )

    def treatment(self) -> Treatment:
        """Make the treatment."""
        make = METHODS.get(self.method).treatment
        assert make is not None
        return make(self.strength or 0.0, self.sparsity or 0.0)


SCORED_BY = ("precision", "channels_last")  # of a recipe, what is used beside a training


class Keyed:
    """Identity by content, for a job of any kind."""

    kind: ClassVar[str]
    version: ClassVar[int]

    @cached_property
    def key(self: Job) -> str:
        """Digest of all that the result depends on."""
        identity = {
            "kind": self.kind,
            "version": self.version,  # type: ignore[attr-defined]
            "spec": self.spec,
            "inputs": [job.key for job in self.inputs],
        }
        text = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Train(Keyed):
    """Train a network from its first weights, or on from a trained one (``initial``).

    Beside the last weights it leaves those after each epoch of ``keep``: see ``weights_of``. A
    network of published weights is taken as it is, and only scored (``taken``).
    """

    kind: ClassVar[str] = "train"
    version: ClassVar[int] = 1

    data: Material
    model: ModelSpec
    recipe: Recipe
    seed: int
    treated: Treated | None = None
    initial: "Train | None" = None
    keep: tuple[int, ...] = ()
    code: str | None = None  # digest of the model's file, where it is not part of this package
    label: str = "train"

    @property
    def inputs(self) -> tuple[Job, ...]:
        """The training that it goes on from, if any."""
        return () if self.initial is None else (self.initial,)

    @property
    def taken(self) -> bool:
        """Whether the network comes with published weights, so that no epoch is trained."""
        return self.model.is_published

    @cached_property
    def spec(self) -> dict[str, Any]:
        """All that was asked for; of a network that is taken, only how it is scored."""
        recipe = self.recipe.to_json()
        if self.taken:
            recipe = {"epochs": 0} | {k: v for k, v in recipe.items() if k in SCORED_BY}
        return without_none(
            data=self.data.content,
            model=self.model.identity(),
            recipe=recipe,
            seed=self.seed,
            code=self.code,
            penalty=self.treated and self.treated.to_json(),
            keep=list(self.keep) or None,
        )

    def recounted(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Return a record with the costs as they are counted now, if it is of the first counter.

        What was trained is the same, so the key is too.
        """
        if _counted(self.model, self.data.shape).as_first:
            return dict(record)
        cost = model_cost(self.model, self.data.shape)
        flops = {"training_flops": cost.training_flops(record["samples"])}
        return {**record, **cost.to_json(), **flops}

    @cached_property
    def flops(self) -> float:
        """FLOPs of the training."""
        if self.taken:
            return 0.0
        cost = model_cost(self.model, self.data.shape)
        return cost.training_flops(self.recipe.epochs * self.data.num_train)

    def run(self, context: Context) -> Outcome:
        """Train, and read the test set once."""
        dataset = context.dataset(self.data.spec)
        if self.initial is None:
            with context.ranks.agreeing():  # published weights may be at hand here, and not there
                model = build(self.model, seed=self.seed)
        else:
            model = _trained(self.model, context.tensors(self.initial))
        cost = model_cost(self.model, self.data.shape)
        if self.taken:
            _check_normalisation(dataset)
            model = model.to(context.device)
            return Outcome(
                _result(context, model, dataset, recipe=self.recipe, cost=cost), state_of(model)
            )
        training = Training(
            model,
            dataset,
            self.recipe,
            seed=self.seed,
            device=context.device,
            treatment=NO_TREATMENT if self.treated is None else self.treated.treatment(),
            ranks=context.ranks,
        )
        kept = advance(training, context, keep=self.keep)
        return Outcome(
            _result(context, model, dataset, recipe=self.recipe, cost=cost, training=training),
            {**state_of(model), **kept},
        )


@dataclass(frozen=True, kw_only=True)
class Prune(Keyed):
    """Choose what stays of a network: of a trained one, or (``parent`` None) as first drawn.

    A parent that was pruned before, and retrained under its mask, is pruned further: the sparsity
    is the share of what was left. With ``guides`` (prunings of one network, by seeds) it keeps of
    each stage what they kept on average; the sparsity is theirs.
    """

    kind: ClassVar[str] = "prune"
    version: ClassVar[int] = 1

    data: Material
    model: ModelSpec
    method: Method
    seed: int
    parent: "Train | Retrain | None" = None
    sparsity: float | None = None
    shares: tuple[float, ...] | None = None
    guides: "tuple[Prune, ...]" = ()
    code: str | None = None  # digest of the files that decide, where not part of this package
    label: str = "prune"

    @property
    def inputs(self) -> tuple[Job, ...]:
        """The trained network, if its weights matter, how it was pruned before, and the guides."""
        earlier = (self.parent.prune,) if isinstance(self.parent, Retrain) else ()
        return (*(() if self.parent is None else (self.parent,)), *earlier, *self.guides)

    @property
    def expected_kept(self) -> float:
        """The share of units that stays, over all rounds, as far as it was asked for."""
        kept = 1.0 - (self.sparsity or _mean(self.shares or (0.0,)))
        earlier = self.parent.prune.expected_kept if isinstance(self.parent, Retrain) else 1.0
        return kept * earlier

    @cached_property
    def spec(self) -> dict[str, Any]:
        """All that was asked for."""
        method = self.method
        return without_none(
            data=self.data.content,  # a criterion may look at images
            model=self.model.identity(),
            criterion=method.criterion,
            allocation=method.allocation if self.shares is None else None,
            unit=method.unit,
            scope=list(method.scope),
            sparsity=self.sparsity,
            shares=None if self.shares is None else list(self.shares),
            guides=len(self.guides) or None,
            repair=method.repair,
            seed=self.seed,
            code=self.code,
            counter=_counter(self.model, self.data.shape, method),
        )

    @property
    def flops(self) -> float:
        """Nothing is trained."""
        return 0.0

    def run(self, context: Context) -> Outcome:
        """Score, allocate, measure what is left, and mend its weights if the method does."""
        within = None
        if self.parent is None:
            model = build(self.model, seed=self.seed)
        else:
            model = _trained(self.model, context.tensors(self.parent))
        if isinstance(self.parent, Retrain):
            within = mask_of(context, self.parent.prune)
        found = trace(model, self.data.shape)
        dataset = context.dataset(self.data.spec)
        pattern = _pattern(context, self.guides) if self.guides else None
        mask = select(
            model,
            found,
            self.method,
            sparsity=self.sparsity,
            shares=self.shares,
            pattern=pattern,
            dataset=dataset,
            seed=self.seed,
            within=within,
        )
        before = model_cost(self.model, self.data.shape)
        architecture = Architecture(model=self.model, shape=self.data.shape)
        repaired: dict[str, Tensor] = {}
        if not mask.held:
            shown = _shown(self.model, self.data.shape, mask.unit, tuple(mask.kept))
            prove(model, mask, found, sensitivity=shown)
            architecture = architecture.then(mask)
            small = architecture.cut(model)
            after = measure(small, found.example)
            if self.method.repair is not None:
                probe = Probe(model, dataset, seed=self.seed)
                REPAIRS.get(self.method.repair)(small, mask, found, probe)
                repaired = {REPAIRED + name: value for name, value in state_of(small).items()}
        else:
            after = measure(model, found.example, mask)
        if after.caveats:
            context.note(f"Its costs and budgets leave out: {'; '.join(after.caveats)}.")
        record = {
            "unit": mask.unit,
            "sparsity": mask.sparsity,
            "widths": mask.widths(),
            "guarded": list(mask.guarded),
            "before": before.to_json(),
            "after": after.to_json(),
            "architecture": architecture.to_json(),
        }
        if pattern is not None:
            record["pattern"] = pattern.to_json()
        return Outcome(record, {**mask.kept, **repaired})


@dataclass(frozen=True, kw_only=True)
class Retrain(Keyed):
    """Train what a pruning left, under one arm."""

    kind: ClassVar[str] = "retrain"
    version: ClassVar[int] = 1

    prune: Prune
    arm: Arm
    recipe: Recipe
    seed: int
    parent: "Train | Retrain | None" = None  # whose weights are inherited, or rewound to
    label: str = "retrain"

    @property
    def inputs(self) -> tuple[Job, ...]:
        """The pruning, and the trained network where it starts from its weights."""
        return (self.prune, self.parent) if self.parent is not None else (self.prune,)

    @cached_property
    def spec(self) -> dict[str, Any]:
        """All that was asked for."""
        return without_none(
            data=self.prune.data.content,
            arm=self.arm.to_json(),
            recipe=self.recipe.to_json(),
            seed=self.seed,
            draw=SPARSE_DRAW if self.draws_sparse else None,
        )

    @property
    def draws_sparse(self) -> bool:
        """Whether it starts from convolutions drawn by the density of their masks."""
        return self.arm.start == "random" and self.prune.method.unit in HELD

    @cached_property
    def flops(self) -> float:
        """FLOPs of the training, guessed before the network is known."""
        data = self.prune.data
        cost = model_cost(self.prune.model, data.shape)
        return cost.training_flops(self.expected_epochs * data.num_train) / self.expected_ratio

    @property
    def expected_ratio(self) -> float:
        """FLOPs of the unpruned network over those of the pruned one, guessed from the sparsity.

        Cutting channels narrows a layer's inputs and its outputs, hence the square.
        """
        kept = max(self.prune.expected_kept, 0.02)
        return 1.0 / kept ** (2 if self.prune.method.unit == "channel" else 1)

    @property
    def expected_epochs(self) -> int:
        """Epochs of the arm, guessed likewise."""
        return self.arm.trained_epochs(self.recipe.epochs, self.expected_ratio)

    def run(self, context: Context) -> Outcome:
        """Build the start, train it for its budget, and read the test set once."""
        pruned = context.record(self.prune)
        mask = mask_of(context, self.prune)
        _, repaired = split_repaired(context.tensors(self.prune))
        before, after = Cost(**pruned["before"]), Cost(**pruned["after"])
        ratio = flops_ratio(before, after, self.arm)
        data = self.prune.data
        dataset = context.dataset(data.spec)
        model = self._start(context, mask)
        if repaired and self.arm.start == "inherited":
            model.load_state_dict(repaired)
        epochs = self.arm.budget.epochs(self.recipe.epochs, ratio)
        record: dict[str, Any] = {"ratio": ratio, "capped": self.arm.budget.is_capped(ratio)}
        if epochs == 0:
            model = model.to(context.device)
            return Outcome(
                record | _result(context, model, dataset, recipe=self.recipe, cost=after)
            )
        recipe = self.arm.recipe(self.recipe, epochs)
        training = Training(
            model,
            dataset,
            recipe,
            seed=self.seed,
            device=context.device,
            hold=holder(mask) if mask.held else None,
            first_epoch=self.arm.first_epoch,
            ranks=context.ranks,
        )
        advance(training, context)
        record |= _result(context, model, dataset, recipe=recipe, cost=after, training=training)
        return Outcome(record, state_of(model))

    def _start(self, context: Context, mask: Mask) -> nn.Module:
        """Build the network that the arm starts from, cut or held by the mask."""
        spec, start = self.prune.model, self.arm.start
        if self.parent is not None:
            model = _trained(spec, context.tensors(self.parent), after=self.arm.epoch)
        elif start == "redrawn":
            model = build(spec.untrained(), seed=derive(self.seed, "redrawn"))
        else:
            model = build(spec if start == "initial" else spec.untrained(), seed=self.seed)
        if not mask.held:
            cut = Architecture(model=spec, shape=self.prune.data.shape, cuts=(mask,))
            model = cut.cut(model)
        if start == "random":
            initialise_(model, seed=self.seed)
            if self.draws_sparse:
                _draw_sparse_(model, mask, seed=self.seed)
        if mask.held:
            apply_(model, mask)
        return model


def flops_ratio(before: Cost, after: Cost, arm: Arm) -> float:
    """Divide the unpruned network's FLOPs by the pruned one's."""
    if not after.flops and arm.budget.kind == "equal-flops":
        raise ConfigError(
            f"The arm {arm.name!r} trains for equal FLOPs, and nothing that the pruned network "
            f"computes can be counted ({'; '.join(after.caveats) or 'it has no layers'}). Give the "
            "arm a budget of epochs."
        )
    return before.flops / max(after.flops, 1)


REPAIRED = "repaired/"  # before the names of a cut network's mended weights, in a pruning's tensors


def split_repaired(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Part a pruning's tensors into kept units by group, and the mended weights (or nothing)."""
    kept = {name: value for name, value in tensors.items() if not name.startswith(REPAIRED)}
    repaired = {n.removeprefix(REPAIRED): v for n, v in tensors.items() if n not in kept}
    return kept, repaired


def mask_of(context: Context, prune: Prune) -> Mask:
    """Return what a pruning kept."""
    kept, _ = split_repaired(context.tensors(prune))
    return Mask(unit=context.record(prune)["unit"], kept=kept)


def _pattern(context: Context, guides: tuple[Prune, ...]) -> Pattern:
    """Average what prunings of one network kept in each of its stages."""
    model = build(guides[0].model.untrained())
    found = trace(model, guides[0].data.shape)
    return pattern_of([mask_of(context, guide) for guide in guides], stages_of(model, found))


def weights_of(tensors: Mapping[str, Tensor], *, after: int | None = None) -> dict[str, Tensor]:
    """Return the last weights of a training's tensors, or those it kept after so many epochs."""
    if after is None:
        return {name: value for name, value in tensors.items() if not name.startswith(AFTER)}
    prefix = f"{AFTER}{after}/"
    return {n.removeprefix(prefix): v for n, v in tensors.items() if n.startswith(prefix)}


def _trained(
    model: ModelSpec, tensors: Mapping[str, Tensor], *, after: int | None = None
) -> nn.Module:
    network = build(model.untrained())
    network.load_state_dict(weights_of(tensors, after=after))
    return network


def model_cost(model: ModelSpec, shape: tuple[int, ...]) -> Cost:
    """Measure an unpruned network, once."""
    return _counted(model, shape).cost


@cache
def _counted(model: ModelSpec, shape: tuple[int, ...]) -> Counted:
    return count(build(model.untrained()), torch.zeros(shape))


@cache
def _has_views(model: ModelSpec, shape: tuple[int, ...]) -> bool:
    try:
        return bool(trace(build(model.untrained()), shape).views)
    except TraceError:  # which the pruning itself will say
        return False


def _counter(model: ModelSpec, shape: tuple[int, ...], method: Method) -> int | None:
    """Return 2 where costs are not what the first counter counted, and None elsewhere.

    So results whose costs, and budgets of equal FLOPs, were always counted so keep their keys.
    Where views are cut, the norm behind a selection counts at the width that is selected from.
    """
    counted = _counted(model, shape)
    same = counted.as_first and (counted.own_weights or method.unit not in HELD)
    if same and method.unit == "channel" and "view" in method.scope:
        same = not _has_views(model, shape)
    return None if same else 2


SPARSE_DRAW = 2  # how many rules there have been for it; the first had an n of at least 1


@cache
def _shown(
    model: ModelSpec, shape: tuple[int, ...], unit: Unit, groups: tuple[str, ...]
) -> Mapping[str, float]:
    """Measure how much groups of an uncut network do to its output, once."""
    net = build(model.untrained())
    return sensitivities(net, trace(net, shape), groups, unit=unit)


def _draw_sparse_(model: nn.Module, mask: Mask, *, seed: int) -> None:
    """Draw masked convolutions N(0, 2 / n), n = weights kept / input channels, in place.

    The fan-out rule scaled by each layer's density, as the paper's section 4.3 does for scratch
    training under an unstructured mask. Of filters that are held at zero the others count. Where
    nothing is kept there is no n, and the draw, which the mask holds at zero, does not matter.
    Masked linear layers stay as the network's own rule drew them.
    """
    generator = torch.Generator().manual_seed(derive(seed, "sparse-init"))
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, kept in over_weights(mask, model).kept.items():
            weight = parameters[name]
            if weight.dim() == 2:
                continue
            inputs = weight.shape[1 - filter_dim(model.get_submodule(name.rpartition(".")[0]))]
            fan = int(kept.sum()) / inputs or 1.0
            weight.copy_(torch.randn(weight.shape, generator=generator) * math.sqrt(2.0 / fan))


def _check_normalisation(dataset: Dataset) -> None:
    """Refuse images that published weights were not made for: all would be scored too low."""
    if (dataset.mean, dataset.std) != (IMAGENET.mean, IMAGENET.std):
        raise ConfigError(
            f"Published weights expect images with the mean {IMAGENET.mean} and the std "
            f"{IMAGENET.std}. Those of {dataset.spec.name!r} are normalised by {dataset.mean} and "
            f"{dataset.std}: add 'normalisation: imagenet' to the data."
        )


def _result(
    context: Context,
    model: nn.Module,
    dataset: Dataset,
    *,
    recipe: Recipe,
    cost: Cost,
    training: Training | None = None,
) -> dict[str, Any]:
    """Measure a network that has been trained (or not), and say what that took."""
    score = partial(
        evaluate,
        model,
        dataset=dataset,
        precision=recipe.precision,
        channels_last=recipe.channels_last,
        ranks=context.ranks,
    )
    test = score(dataset.test)
    samples = training.samples if training is not None else 0
    record: dict[str, Any] = {
        "accuracy": test.accuracy,
        "loss": test.loss,
        "num_test": test.num,
        **cost.to_json(),
        "epochs": recipe.epochs - training.first_epoch if training is not None else 0,
        "samples": samples,
        "training_flops": cost.training_flops(samples),
        "history": training.history if training is not None else [],
    }
    if dataset.validation is not None:
        held_out = score(dataset.validation)
        record["validation"] = {"accuracy": held_out.accuracy, "loss": held_out.loss}
    return record


def _mean(values: tuple[float, ...]) -> float:
    return sum(values) / len(values)


def without_none(**fields: Any) -> dict[str, Any]:
    """Leave out of a spec what was not given, so that a field added later changes no key."""
    return {name: value for name, value in fields.items() if value is not None}


def structure_only(method: Method) -> Method:
    """Return the method that keeps the first units of each layer: the same widths, no weights."""
    return replace(method, criterion="first", trained=False, repair=None)
