"""The job that trains a network, and functions that all jobs use to train and measure networks."""

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from regrow.cost import TRAINING_FACTOR, Cost, Counted, count, measure
from regrow.data import Dataset
from regrow.data.normalisation import IMAGENET
from regrow.errors import ConfigError, TrainingError
from regrow.jobs.base import Context, Job, Keyed, LossOf, Outcome, Records, state_of, without_none
from regrow.jobs.pace import Pace
from regrow.models import ModelSpec, build, example_input
from regrow.pruning.examples import moved
from regrow.pruning.method import METHODS
from regrow.store import MAIN, MASKS, after_epoch, joined, part_of
from regrow.surgery.architecture import Architecture
from regrow.surgery.mask import Mask
from regrow.tasks import Head, task_of
from regrow.train import NO_TREATMENT, Evaluation, Recipe, Stepping, Training, Treatment, evaluate
from regrow.train.material import Material, Setting

if TYPE_CHECKING:
    from regrow.jobs.prune import Prune
    from regrow.jobs.retrain import Retrain

SCORED_BY = ("precision", "engine", "channels_last")  # recipe fields that affect scoring


@dataclass(frozen=True, kw_only=True)
class Treated:
    """A method's treatment of a training, with its strength."""

    method: str
    strength: float | None = None
    sparsity: float | None = None  # if the treatment depends on it
    code: str | None = None  # digest of its file, if that is not part of this package

    @property
    def text(self) -> str:
        """Its display name, with its strength if it has one."""
        return self.method + (f" at strength {self.strength:g}" if self.strength else "")

    def to_json(self) -> dict[str, Any]:
        """Return it as part of a job's spec."""
        revision = METHODS.get(self.method).treatment_revision
        return without_none(
            method=self.method,
            strength=self.strength,
            sparsity=self.sparsity,
            revision=revision if revision > 1 else None,
            code=self.code,
        )

    def treatment(self, *, sparsity: float = 0.0) -> Treatment:
        """Make the treatment; ``sparsity`` is used if it has none itself."""
        make = METHODS.get(self.method).treatment
        assert make is not None
        return make(self.strength or 0.0, self.sparsity or sparsity)


@dataclass(frozen=True, kw_only=True)
class Train(Keyed):
    """Train a network from its initial weights, or continue from a trained one (``initial``).

    Besides the final weights, its tensors have as parts the weights after each epoch in ``keep``,
    and the final masks if a treatment changed them. A network with published weights is only scored
    (``is_published``).

    With a ``head``, the trained network is built by the head on the network of the job ``initial``:
    a trained or retrained one of another task (``Train``, ``Retrain``), or one with this head, as
    pruned by a ``Prune``, which is trained further as a whole. Without ``initial``, the head is
    built on the untrained ``model``.
    """

    version: ClassVar[int] = 1
    pruning: ClassVar[None] = None
    data: Material
    model: ModelSpec
    recipe: Recipe
    seed: int
    treated: Treated | None = None
    initial: "Train | Retrain | Prune | None" = None
    keep: tuple[int, ...] = ()
    head: Head | None = None
    code: str | None = None  # digest of the model's file, if that is not part of this package
    label: str = "train"

    @property
    def kind(self) -> str:  # type: ignore[override]
        """The kind of work: ``train``, or with a head such as ``train-detector``."""
        return "train" if self.head is None else f"train-{self.head.noun}"

    @property
    def inputs(self) -> tuple[Job, ...]:
        """The job that it continues, if any, and the pruning of that job's network, if any."""
        before = () if self.initial is None else (self.initial, self.initial.pruning)
        return tuple({job.key: job for job in before if job is not None}.values())

    @property
    def is_published(self) -> bool:  # type: ignore[override]
        """True if the network has published weights, so that nothing is trained."""
        return self.model.is_published

    @property
    def scored_on(self) -> Material:  # type: ignore[override]
        """The data that it is trained and scored on."""
        return self.data

    @property
    def loss_of(self) -> LossOf:  # type: ignore[override]
        """Return "recipe" if that changes the task's loss, else "task"."""
        return "task" if self.recipe.has_plain_loss else "recipe"

    @cached_property
    def spec(self) -> dict[str, Any]:
        """The full specification, as JSON; for published weights, only how they are scored."""
        recipe = self.recipe.to_json()
        if self.is_published:
            recipe = {"epochs": 0} | {k: v for k, v in recipe.items() if k in SCORED_BY}
        built_on = self.head is not None and self.initial is not None  # its key contains the model
        return without_none(
            data=self.data.content,
            model=None if built_on else self.model.identity(),
            recipe=recipe,
            recipe_code=None if self.is_published else self.recipe.code(),
            seed=self.seed,
            code=None if built_on else self.code,
            penalty=self.treated and self.treated.to_json(),
            keep=list(self.keep) or None,
            **({} if self.head is None else {self.head.noun: self.head.to_json()}),
        )

    def recounted(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Return a record with costs recounted if the counter's first version counted otherwise.

        The training is the same, so the key is too.
        """
        recounts = self.head is None and "sparsity" not in record
        if not recounts or counted(self.model, self.data.shape).as_first:
            return dict(record)
        cost = model_cost(self.model, self.data.shape)
        flops = {"training_flops": cost.training_flops(record["samples"])}
        return {**record, **cost.to_json(), **flops}

    def network(self, records: Records) -> tuple[nn.Module, Architecture]:
        """Rebuild the finished job's network with its weights."""
        architecture = Architecture(model=self.model, shape=self.data.shape)
        network = architecture.build()
        network.load_state_dict(records.tensors(self))
        return network, architecture

    @cached_property
    def flops(self) -> float:
        """The planned FLOPs of the training."""
        if self.head is not None:
            flops_per_example = self.head.planned_flops(self.model, self.data.classes)
            return TRAINING_FACTOR * flops_per_example * self._num_shown(self.head)
        if self.is_published:
            return 0.0
        cost = model_cost(self.model, self.data.shape)
        return cost.training_flops(self.recipe.length * self.data.num_train)

    @property
    def setting(self) -> Setting | None:  # type: ignore[override]
        """The training whose steps it runs; None with a head."""
        return None if self.head is not None else Setting.of(self.model, self.data, self.recipe)

    @property
    def pace_group(self) -> Hashable:  # type: ignore[override]
        """The setting, because its trainings have one ratio of actual to estimated time."""
        return self.setting or self.kind

    def estimate(self, pace: Pace) -> float:
        """Return the seconds of training and scoring; published weights are only scored."""
        if self.head is not None:
            data, recipe, seconds = self.data.spec, self.recipe, pace.seconds
            trained, tested = self.head.seconds(self.model, data, recipe, measured_for=seconds)
            return self._num_shown(self.head) * trained + 2 * self.data.num_test * tested
        setting = Setting.of(self.model, self.data, self.recipe)
        return pace.training(setting, epochs=0 if self.is_published else self.recipe.length)

    def estimate_epochs(self, pace: Pace) -> float:
        """Return the epochs of its recipe; 0 for published weights."""
        return 0 if self.is_published else self.recipe.length

    def _num_shown(self, head: Head) -> int:
        return self.recipe.epochs * head.shown(self.recipe, self.data.num_train)

    def run(self, context: Context) -> Outcome:
        """Train, and evaluate once on the test set."""
        dataset = context.dataset(self.data.spec)
        if self.head is not None:
            return self._run_with_head(context, dataset, self.head)
        if self.initial is None:
            with context.ranks.agreeing():  # a rank may lack the file of published weights
                model = build(self.model, seed=self.seed)
        else:
            model = trained_network(self.model, context, self.initial)
        cost = model_cost(self.model, self.data.shape)
        if self.is_published:
            if self.model.checkpoint is None:
                _check_normalisation(dataset)
            model = model.to(context.device)
            return Outcome(
                result_of(context, model, dataset, recipe=self.recipe, cost=cost), state_of(model)
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
        states = advance(training, context, keep=self.keep)
        result = result_of(
            context, model, dataset, recipe=self.recipe, cost=cost, training=training
        )
        result |= masked_costs(training, self.model, self.data.shape)
        return Outcome(result, state_of(model), {**states, **masks_part(training)})

    def _run_with_head(self, context: Context, dataset: Dataset, head: Head) -> Outcome:
        """Train a network with a head; evaluate it and its untrained state on the test set."""
        start = self._built(context, dataset, head)
        training = head.training(
            start.model, dataset, self.recipe, seed=self.seed, device=context.device
        )
        advance(training, context)
        cost, precision = head.cost(training.model), self.recipe.precision
        scores = head.score(training.model, dataset, precision=precision)
        # Built again rather than scored at the start, because a resumed training no longer has it.
        before = self._built(context, dataset, head).model.to(context.device)
        untrained = head.score(before, dataset, precision=precision)
        return Outcome(
            {
                **scores,
                "before": {name: untrained[name] for name in scores if name != "num_test"},
                **cost.to_json(),
                "epochs": self.recipe.epochs,
                "samples": training.samples,
                "training_flops": cost.training_flops(training.samples),
                "history": training.history,
                "classes": list(dataset.classes),
                **start.to_json(),
            },
            state_of(training.model),
        )

    def _built(self, context: Context, dataset: Dataset, head: Head) -> "Built":
        """Build the network with its head, as it is before the first training step."""
        if self.initial is not None and self.initial.head is not None:
            return rebuilt(head, context, self.initial, num_classes=self.data.classes)
        if self.initial is None:
            architecture = Architecture(model=self.model, shape=self.data.shape)
            net, mean, std = build(self.model, seed=self.seed), IMAGENET.mean, IMAGENET.std
            head.settle_(net, dataset)
        else:
            net, architecture = self.initial.network(context)
            learnt = context.dataset(self.initial.data.spec)
            mean, std = learnt.mean, learnt.std
        num_classes = self.data.classes
        model = head.around(net, num_classes=num_classes, mean=mean, std=std, seed=self.seed)
        return Built(model, architecture, mean, std)


@dataclass(frozen=True)
class Built:
    """A network with a head, whose backbone expects images normalised by this mean and std."""

    model: nn.Module
    architecture: Architecture
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """Return its fields of a record."""
        return {
            "architecture": self.architecture.to_json(),
            "mean": list(self.mean),
            "std": list(self.std),
        }


def rebuilt(head: Head, records: Records, job: Job, *, num_classes: int) -> Built:
    """Rebuild the resulting network of a job with a head."""
    record = records.record(job)
    architecture = Architecture.from_json(record["architecture"])
    mean, std = tuple(record["mean"]), tuple(record["std"])
    model = head.around(architecture.build(), num_classes=num_classes, mean=mean, std=std)
    model.load_state_dict(records.tensors(job))
    return Built(model, architecture, mean, std)


def trained_network(
    model: ModelSpec, context: Context, job: Job, *, after: int | None = None
) -> nn.Module:
    """Rebuild the network of a training, as it was at its end or after so many epochs."""
    network = build(model.untrained())
    network.load_state_dict(context.tensors(job, MAIN if after is None else after_epoch(after)))
    return network


def _check_normalisation(dataset: Dataset) -> None:
    """Raise ``ConfigError`` for images not normalised as published weights expect."""
    if (dataset.mean, dataset.std) != (IMAGENET.mean, IMAGENET.std):
        raise ConfigError(
            f"Published weights expect images with the mean {IMAGENET.mean} and the std "
            f"{IMAGENET.std}. Those of {dataset.spec.name!r} are normalised by {dataset.mean} and "
            f"{dataset.std}: add 'normalisation: imagenet' to the data."
        )


def _scored(evaluation: Evaluation, dataset: Dataset) -> dict[str, float]:
    """Return a score under its metric's key, with its standard error if known, and the loss.

    Numbers that are not finite raise a ``TrainingError``: the most probable class of an output of
    nan is the first one, so that some of its answers would count as correct.
    """
    metric = task_of(dataset).metric
    if not (math.isfinite(evaluation.score) and math.isfinite(evaluation.loss)):
        raise TrainingError(
            f"The network cannot be scored: on {evaluation.num} {metric.example}s that it was not "
            f"trained on, its loss is {evaluation.loss} and its {metric.name} {evaluation.score:g}."
            " Its training diverged in the end (lower 'lr', or give a warm-up), or it computes "
            "numbers that are not finite in evaluation mode."
        )
    error = {} if evaluation.error is None else {metric.error_key: evaluation.error}
    return {metric.key: evaluation.score, **error, "loss": evaluation.loss}


def result_of(
    context: Context,
    model: nn.Module,
    dataset: Dataset,
    *,
    recipe: Recipe,
    cost: Cost,
    training: Training | None = None,
) -> dict[str, Any]:
    """Evaluate a network, and return its record with scores, costs and training effort."""
    score = partial(
        evaluate,
        model,
        dataset=dataset,
        precision=recipe.precision,
        engine=recipe.engine,
        channels_last=recipe.channels_last,
        ranks=context.ranks,
    )
    test = score(dataset.test)
    samples = training.samples if training is not None else 0
    record: dict[str, Any] = {
        **_scored(test, dataset),
        "num_test": test.num,
        **cost.to_json(),
        "epochs": training.epochs_in_all if training is not None else 0,
        "samples": samples,
        "training_flops": cost.training_flops(samples),
        "history": training.history if training is not None else [],
    }
    if dataset.validation is not None:
        held_out = score(dataset.validation)
        record["validation"] = _scored(held_out, dataset)
    return record


def advance(
    training: Stepping, context: Context, *, keep: tuple[int, ...] = ()
) -> dict[str, dict[str, Tensor]]:
    """Train to the end, resuming from the last checkpoint if there is one.

    Returns the weights after each number of epochs in ``keep``, as parts of the job's tensors.
    """
    parts = {after_epoch(epoch): epoch * training.steps_per_epoch for epoch in keep}
    states: dict[str, dict[str, Tensor]] = {}
    saved = context.load_checkpoint()
    if saved is not None:
        tensors, meta = saved
        states = {part: state for part in parts if (state := part_of(tensors, part))}
        training.restore(tensors, meta)
    epochs = training.recipe.epochs
    while not training.done:
        training.step()
        for part, steps in parts.items():
            if training.steps_done == steps:
                weights = state_of(training.model)
                states[part] = {name: value.clone() for name, value in weights.items()}
        if training.notice is not None:
            context.note(training.notice)
            training.notice = None
        if context.checkpoint_due():
            tensors, meta = training.state()
            context.save_checkpoint({**tensors, **joined(states)}, meta)
        context.tick(
            training.steps_done / training.num_steps,
            f"epoch {min(training.epoch + 1, epochs)}/{epochs}",
        )
    return states


def model_cost(model: ModelSpec, shape: tuple[int, ...]) -> Cost:
    """Return the cost of an unpruned network; cached."""
    return counted(model, shape).cost


@cache
def counted(model: ModelSpec, shape: tuple[int, ...]) -> Counted:
    """Count an unpruned network's operations; cached."""
    return count(build(model.untrained()), example_input(model, shape))


def masks_part(training: Training) -> dict[str, dict[str, Tensor]]:
    """Return a training's final masks, if they changed, as a part of its job's tensors."""
    return {} if training.passes is None else {MASKS: training.kept()}


def masked_costs(training: Training, spec: ModelSpec, shape: tuple[int, ...]) -> dict[str, Any]:
    """Return the costs, for the record, of a training whose masks changed; else an empty dict.

    The network's costs count its final masks. The training's costs count, in each pass, the weights
    that were not masked; all of them if gradients of masked weights were used, as in the count of
    Evci et al. (2020, arXiv:1911.11134, appendix H).
    """
    if training.passes is None:
        return {}
    mask = Mask(unit="weight", kept=training.kept())
    model, example = training.model, moved(example_input(spec, shape), training.device)
    dense = count(model, example)
    names = {id(parameter): name for name, parameter in model.named_parameters()}  # one for each
    absent = sum(
        2 * dense.by_parameter.get(names[id(model.get_parameter(name))], 0) * (1.0 - density)
        for name, density in training.passes.densities(training.samples).items()
    )
    return {
        **measure(model, example, mask).to_json(),
        "training_flops": TRAINING_FACTOR * training.samples * (dense.cost.flops - absent),
        "sparsity": mask.sparsity,
        "widths": mask.widths(),
    }
