"""Tasks as values: what a network is told of its data, which loss it descends, how it is scored.

A file given by ``--with`` adds one like any other; a data set, or a study's ``task``, names it::

    register_task(
        "ordinal", metric=CLOSE, objective="cross-entropy", tally=off_by_one, conclude=share,
        tell=of_arrays, baseline=share_of_most_frequent,
    )
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from regrow.core.registry import Registry, calling_file, canonical
from regrow.errors import ConfigError
from regrow.tasks.metric import Metric

if TYPE_CHECKING:
    from torch import Tensor

    from regrow.data import Dataset

Inputs = Literal["images", "rows of numbers", "sequences of tokens"]
Targets = Literal["a class", "a class for each token", "numbers"]
Tally = Callable[[Any, "Tensor"], "Tensor"]
Conclude = Callable[[Sequence[float]], tuple[float, float | None]]


@dataclass(frozen=True, kw_only=True)
class Task:
    """A learning problem on a data set: examples, objective and metric.

    Attributes:
        metric: what networks are scored by.
        objective: the name of the loss that a recipe has which names none.
        tell: a data set -> the arguments that a model's factory is given from it.
        tally: outputs and targets of a batch -> float64 [k], sums over its examples. They are added
            up over batches, in one order, so that the score is the same on any number of ranks.
        conclude: those sums over a whole split -> the score, unscaled, and its standard error over
            the examples, None where it follows from the count or is not known.
        baseline: a data set -> what the metric's baseline scores on its test split, unscaled.
        inputs: what examples it takes (``inputs_of``), any unless given.
        targets: what is to be learnt of them (``targets_of``), anything unless given.
        about: one line for people.
    """

    name: str
    metric: Metric
    objective: str
    tell: "Callable[[Dataset], Mapping[str, int]]"
    tally: Tally
    conclude: Conclude
    baseline: "Callable[[Dataset], float | None]"
    inputs: tuple[Inputs, ...] = get_args(Inputs)
    targets: tuple[Targets, ...] = get_args(Targets)
    about: str = ""

    def fits(self, dataset: "Dataset") -> bool:
        """Tell whether a data set has what is learnt, of examples that it is learnt of."""
        return inputs_of(dataset) in self.inputs and targets_of(dataset) in self.targets


TASKS: Registry[Task] = Registry("task", "regrow.tasks", register="register_task")


def register_task(
    name: str,
    *,
    metric: Metric,
    objective: str,
    tell: "Callable[[Dataset], Mapping[str, int]]",
    tally: Tally,
    conclude: Conclude,
    baseline: "Callable[[Dataset], float | None]" = lambda dataset: None,
    inputs: tuple[Inputs, ...] = get_args(Inputs),
    targets: tuple[Targets, ...] = get_args(Targets),
    about: str = "",
) -> Task:
    """Register a task under a name, and return it."""
    task = Task(
        name=canonical(name),
        metric=metric,
        objective=objective,
        tell=tell,
        tally=tally,
        conclude=conclude,
        baseline=baseline,
        inputs=inputs,
        targets=targets,
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
    labels = dataset.train.labels
    if labels.is_floating_point():
        return "numbers"
    return "a class" if labels.dim() == 1 else "a class for each token"


def check_task(dataset: "Dataset") -> None:
    """Refuse a task that cannot be learnt of a data set; the ``ConfigError`` names those that can.

    A model is told other things for images than for other examples, so a task of either is not
    one of the other.
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
