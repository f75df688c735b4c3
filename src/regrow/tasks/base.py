"""Define tasks: the loss, the metric, and the arguments that models get from a data set.

A file given by ``--with`` can add a task, which a data set or a study's ``task`` then names::

    register_task(
        "ordinal", metric=CLOSE, objective="cross-entropy", tally=off_by_one, conclude=share,
        model_arguments=of_arrays, baseline=share_of_most_frequent,
    )
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, get_args

from regrow.core.registry import Registry, calling_file, canonical
from regrow.errors import ConfigError, TrainingError
from regrow.tasks.metric import Metric

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from regrow.cost import Cost
    from regrow.data import Dataset, DataSpec
    from regrow.models import ModelSpec
    from regrow.train import Precision, Recipe
    from regrow.train.stepping import Stepping

Inputs = Literal["images", "rows of numbers", "sequences of tokens"]
Targets = Literal["a class", "a class for each token", "numbers", "boxes"]
Tally = Callable[[Any, "Tensor"], "Tensor"]
Conclude = Callable[[Sequence[float]], tuple[float, float | None]]


class Head(Protocol):
    """Interface of what builds, trains and scores networks for a task on networks of another task.

    A study names it by its noun (``detector: small``), beside the ``backbone`` it is built on.
    """

    noun: ClassVar[str]  # what is built, and the key of its settings in a study: ``detector``
    title: ClassVar[str]  # its name in a table
    recipe: ClassVar[str]  # the name of its default recipe

    @classmethod
    def read(cls, value: Any) -> "Head":
        """Read its settings in a study, or the defaults if None."""

    def to_json(self) -> dict[str, Any]:
        """Return its settings."""

    def check_recipe(self, recipe: "Recipe") -> None:
        """Raise a ``ConfigError`` for a recipe that it cannot be trained with."""

    def around(
        self,
        net: "nn.Module",
        *,
        num_classes: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        seed: int = 0,
        trained: "Mapping[str, Tensor] | None" = None,
    ) -> "nn.Module":
        """Build on a network; all other layers are initialised, or copied from ``trained``."""

    def backbone(self, state: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
        """Extract the state of the backbone from the whole state."""

    def settle_(self, net: "nn.Module", dataset: "Dataset") -> None:
        """Prepare an untrained network to be built on, in place."""

    def training(
        self,
        model: "nn.Module",
        dataset: "Dataset",
        recipe: "Recipe",
        *,
        seed: int,
        device: "torch.device | str",
    ) -> "Stepping":
        """Return its training, before the first step."""

    def score(
        self, model: "nn.Module", dataset: "Dataset", *, precision: "Precision"
    ) -> dict[str, Any]:
        """Return the scores on the test split for a record, with ``num_test``."""

    def cost(self, model: "nn.Module") -> "Cost":
        """Count parameters and operations."""

    def shown(self, recipe: "Recipe", num_train: int) -> int:
        """Count the examples of one epoch."""

    def planned_flops(self, model: "ModelSpec", num_classes: int) -> int:
        """Count the FLOPs per example, on the unpruned network."""

    def seconds(
        self, model: "ModelSpec", data: "DataSpec", recipe: "Recipe", *, measured_for: float
    ) -> tuple[float, float]:
        """Measure the seconds per training example and per test example."""


@dataclass(frozen=True, kw_only=True)
class Details:
    """A table of further scores: ``values`` extracts them from a record, by column, unscaled."""

    name: str
    title: str
    about: str
    values: Callable[[Mapping[str, Any]], Mapping[str, float | None]]


@dataclass(frozen=True, kw_only=True)
class Task:
    """A learning problem on a data set: examples, objective and metric.

    Attributes:
        metric: the score of networks.
        model_arguments: a data set -> the arguments that a model's factory gets from it.
        objective: the name of the default loss of recipes.
        tally: outputs and targets of a batch -> float64 [k], sums over its examples. They are added
            up over batches, in a fixed order, so that the score does not depend on the number of
            ranks.
        conclude: these sums over a whole split -> the score, unscaled, and its standard error over
            the examples, or None if it follows from the count or is not known.
        baseline: a data set -> the score of the metric's baseline on its test split, unscaled.
        inputs: the kinds of examples that it accepts (see ``inputs_of``); by default any.
        targets: the kinds of targets that it accepts (see ``targets_of``); by default any.
        head: the class that builds on networks of another task; its losses and scores replace
            ``objective``, ``tally`` and ``conclude``.
        measured_baseline: the scores of a head's network before its training -> the baseline.
        details: further scores for a table.
        about: a one-line description.
    """

    name: str
    metric: Metric
    model_arguments: "Callable[[Dataset], Mapping[str, int]]"
    objective: str
    tally: Tally | None
    conclude: Conclude | None
    baseline: "Callable[[Dataset], float | None]"
    inputs: tuple[Inputs, ...] = get_args(Inputs)
    targets: tuple[Targets, ...] = get_args(Targets)
    head: type[Head] | None = None
    measured_baseline: Callable[[Mapping[str, Any]], float] | None = None
    details: Details | None = None
    about: str = ""

    def fits(self, dataset: "Dataset") -> bool:
        """Return whether the task accepts the inputs and targets of a data set."""
        return inputs_of(dataset) in self.inputs and targets_of(dataset) in self.targets


TASKS: Registry[Task] = Registry(
    "task", "regrow.tasks", register="register_task", modules=("regrow.detection.task",)
)


def register_task(
    name: str,
    *,
    metric: Metric,
    model_arguments: "Callable[[Dataset], Mapping[str, int]]",
    objective: str = "",
    tally: Tally | None = None,
    conclude: Conclude | None = None,
    baseline: "Callable[[Dataset], float | None]" = lambda dataset: None,
    inputs: tuple[Inputs, ...] = get_args(Inputs),
    targets: tuple[Targets, ...] = get_args(Targets),
    head: type[Head] | None = None,
    measured_baseline: Callable[[Mapping[str, Any]], float] | None = None,
    details: Details | None = None,
    about: str = "",
) -> Task:
    """Register a task under a name, and return it."""
    task = Task(
        name=canonical(name),
        metric=metric,
        model_arguments=model_arguments,
        objective=objective,
        tally=tally,
        conclude=conclude,
        baseline=baseline,
        inputs=inputs,
        targets=targets,
        head=head,
        measured_baseline=measured_baseline,
        details=details,
        about=about,
    )
    TASKS.add(name, task, origin=calling_file())
    return task


def task_of(dataset: "Dataset") -> Task:
    """Return the task of a data set."""
    return TASKS.get(dataset.task)


def inputs_of(dataset: "Dataset") -> Inputs:
    """Return the kind of a data set's examples."""
    if dataset.of_images:
        return "images"
    return "rows of numbers" if dataset.vocabulary is None else "sequences of tokens"


def targets_of(dataset: "Dataset") -> Targets:
    """Return the kind of a data set's targets."""
    if dataset.has_boxes:
        return "boxes"
    labels = dataset.train.labels
    if labels.is_floating_point():
        return "numbers"
    return "a class" if labels.dim() == 1 else "a class for each token"


def check_task(dataset: "Dataset") -> None:
    """Raise a ``ConfigError`` that names the fitting tasks, if a data set's task does not fit it.

    Models for images take other arguments than models for other examples, so a task for one of
    them does not fit the other.
    """
    task = task_of(dataset)
    if task.fits(dataset):
        return
    fitting = [name for name in TASKS.names() if TASKS.get(name).fits(dataset)]
    raise ConfigError(
        f"The task {task.name!r} predicts {' or '.join(task.targets)}, from "
        f"{' or '.join(task.inputs)}. The data set {dataset.spec.name!r} has "
        f"{targets_of(dataset)}, of {inputs_of(dataset)}. Tasks for it: "
        f"{', '.join(fitting) or 'none is registered'}."
    )


def logits_of(outputs: Any) -> "Tensor":
    """Return a network's output tensor, or the ``logits`` in its output mapping (transformers).

    Any other output raises a ``TrainingError``.
    """
    from torch import Tensor

    if isinstance(outputs, Mapping) and "logits" in outputs:
        outputs = outputs["logits"]
    if not isinstance(outputs, Tensor):
        raise TrainingError(
            f"The network must return a tensor of logits, or an output that has 'logits'. Got "
            f"{type(outputs).__name__}."
        )
    return outputs


def of_images(dataset: "Dataset") -> dict[str, int]:
    """Return the arguments for an image model: number of classes, channels and image size."""
    return {
        "classes": len(dataset.classes),
        "in_channels": dataset.channels,
        "input_size": dataset.size,
    }


def of_arrays(dataset: "Dataset") -> dict[str, int]:
    """Return the arguments for other models: ``outputs`` per example or token, and the input size.

    The latter is ``vocabulary`` and ``length`` for sequences of tokens, else ``features``.
    """
    shape, targets = dataset.shape, dataset.train.labels
    outputs = len(dataset.classes) or targets[0].numel()
    if dataset.vocabulary is not None:
        return {"vocabulary": dataset.vocabulary, "length": shape[-1], "outputs": outputs}
    features = 1
    for size in shape:
        features *= size
    return {"features": features, "outputs": outputs}
