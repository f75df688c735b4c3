"""Tasks as values: what a network takes from its data, its loss, and its metric.

A file given by ``--with`` adds one like any other; a data set, or a study's ``task``, names it::

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
    """A value that builds networks for a task on networks of another: trains, scores, counts them.

    A study names it by its noun (``detector: small``), beside the ``backbone`` it is built on.
    """

    noun: ClassVar[str]  # what is built, and the key of its settings in a study: ``detector``
    title: ClassVar[str]  # its name in a table
    recipe: ClassVar[str]  # the name of the recipe that it is trained by unless a study says more

    @classmethod
    def read(cls, value: Any) -> "Head":
        """Read what a study says of it; None: nothing."""

    def to_json(self) -> dict[str, Any]:
        """Return its settings."""

    def check_recipe(self, recipe: "Recipe") -> None:
        """Refuse a recipe that it cannot be trained with."""

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
        """Build on a network; all that is not the network's own is drawn, or as ``trained``."""

    def backbone(self, state: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
        """Pick the state of the network that it was built on out of the whole state."""

    def settle_(self, net: "nn.Module", dataset: "Dataset") -> None:
        """Make a network that was never trained fit to be built on."""

    def training(
        self,
        model: "nn.Module",
        dataset: "Dataset",
        recipe: "Recipe",
        *,
        seed: int,
        device: "torch.device | str",
    ) -> "Stepping":
        """Return its training, at the first step."""

    def score(
        self, model: "nn.Module", dataset: "Dataset", *, precision: "Precision"
    ) -> dict[str, Any]:
        """Return the scores on the test split for a record, with ``num_test``."""

    def cost(self, model: "nn.Module") -> "Cost":
        """Count parameters and operations."""

    def shown(self, recipe: "Recipe", num_train: int) -> int:
        """Count the examples that an epoch shows."""

    def planned_flops(self, model: "ModelSpec", num_classes: int) -> int:
        """Count the FLOPs of an example, on the whole network."""

    def seconds(
        self, model: "ModelSpec", data: "DataSpec", recipe: "Recipe", *, measured_for: float
    ) -> tuple[float, float]:
        """Measure the seconds of an example that is trained on, and of one that is tested."""


@dataclass(frozen=True, kw_only=True)
class Details:
    """A table of further scores: ``values`` picks them from a record, by column, unscaled."""

    name: str
    title: str
    about: str
    values: Callable[[Mapping[str, Any]], Mapping[str, float | None]]


@dataclass(frozen=True, kw_only=True)
class Task:
    """A learning problem on a data set: examples, objective and metric.

    Attributes:
        metric: what networks are scored by.
        model_arguments: a data set -> the arguments that a model's factory is given from it.
        objective: the name of the loss that a recipe has which names none.
        tally: outputs and targets of a batch -> float64 [k], sums over its examples. They are added
            up over batches, in one order, so that the score is the same on any number of ranks.
        conclude: those sums over a whole split -> the score, unscaled, and its standard error over
            the examples, None where it follows from the count or is not known.
        baseline: a data set -> what the metric's baseline scores on its test split, unscaled.
        inputs: what examples it takes (``inputs_of``), any unless given.
        targets: what is to be learnt of them (``targets_of``), anything unless given.
        head: the class of what is built on networks of another task; such a task has losses and
            scores of its own in place of ``objective``, ``tally`` and ``conclude``.
        measured_baseline: the scores of what a head built, before its training -> the baseline.
        details: further scores for a table.
        about: one line for people.
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
        """Tell whether a data set has what is learnt, of examples that it is learnt of."""
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
    """Return what is learnt of a data set."""
    return TASKS.get(dataset.task)


def inputs_of(dataset: "Dataset") -> Inputs:
    """Return what the examples of a data set are."""
    if dataset.of_images:
        return "images"
    return "rows of numbers" if dataset.vocabulary is None else "sequences of tokens"


def targets_of(dataset: "Dataset") -> Targets:
    """Return what a data set has for each example to learn."""
    if dataset.has_boxes:
        return "boxes"
    labels = dataset.train.labels
    if labels.is_floating_point():
        return "numbers"
    return "a class" if labels.dim() == 1 else "a class for each token"


def check_task(dataset: "Dataset") -> None:
    """Refuse a task that cannot be learnt of a data set; the ``ConfigError`` names those that can.

    Models for images take other arguments than models for other examples, so a task of one kind
    does not fit the other.
    """
    task = task_of(dataset)
    if task.fits(dataset):
        return
    fitting = [name for name in TASKS.names() if TASKS.get(name).fits(dataset)]
    raise ConfigError(
        f"The task {task.name!r} learns {' or '.join(task.targets)}, of "
        f"{' or '.join(task.inputs)}. The data set {dataset.spec.name!r} has "
        f"{targets_of(dataset)}, of {inputs_of(dataset)}. Tasks for it: "
        f"{', '.join(fitting) or 'none is registered'}."
    )


def logits_of(outputs: Any) -> "Tensor":
    """Return outputs that are a tensor, or the ``logits`` of an output of transformers.

    Others are a ``TrainingError``.
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
    """Tell a model of images how many classes there are, and the images' channels and size."""
    return {
        "classes": len(dataset.classes),
        "in_channels": dataset.channels,
        "input_size": dataset.size,
    }


def of_arrays(dataset: "Dataset") -> dict[str, int]:
    """Tell a model how many outputs an example (or token) has, and what inputs are.

    That is the ``vocabulary`` and the ``length`` of sequences of tokens, else ``features``.
    """
    shape, targets = dataset.shape, dataset.train.labels
    outputs = len(dataset.classes) or targets[0].numel()
    if dataset.vocabulary is not None:
        return {"vocabulary": dataset.vocabulary, "length": shape[-1], "outputs": outputs}
    features = 1
    for size in shape:
        features *= size
    return {"features": features, "outputs": outputs}
