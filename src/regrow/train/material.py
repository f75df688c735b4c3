"""The data of a job, and the setting that its speed depends on.

PyTorch, which takes seconds to import, is imported only where data are looked at.
"""

from dataclasses import dataclass
from typing import Protocol

from regrow.data.cache import altered_entries
from regrow.data.spec import IMAGE_TASK, DataSpec
from regrow.errors import ConfigError
from regrow.models import MODELS, ModelSpec
from regrow.models.inputs import Inputs
from regrow.tasks import TASKS, Metric, check_task, task_of
from regrow.train.recipe import Recipe

OF_A_STEP = ("batch", "precision", "engine", "channels_last", "optimiser", "ema", "clip")


class ScoredOn(Protocol):
    """The test set that a job's network is scored on, as far as a report asks."""

    @property
    def metric(self) -> Metric:
        """The metric that networks are scored by."""

    @property
    def task(self) -> str | None:
        """The name of what is learnt; None where a function of one's own knows it alone."""

    @property
    def num_test(self) -> int | None:
        """The number of its examples, if it is known."""

    @property
    def chance(self) -> float | None:
        """The score of the metric's baseline, as reports show it, if it is known."""


@dataclass(frozen=True, kw_only=True)
class Material:
    """The examples of a job: how to load them, the identity of their content, their shape.

    ``model_arguments``: arguments of models that these data fix. ``inputs``: the text of an
    example, where that is more than one tensor of ``shape``, or is of tokens. ``baseline``: what
    the baseline of the task's metric scores on the test set, unscaled, where it is known.
    """

    spec: DataSpec
    content: str  # fingerprint, the same wherever the files lie
    shape: tuple[int, ...]  # of one example, [1, ...]
    model_arguments: tuple[tuple[str, int], ...]
    num_train: int
    num_test: int
    task: str = IMAGE_TASK
    baseline: float | None = None
    inputs: str | None = None
    notices: tuple[str, ...] = ()  # for people: no part of any key

    @property
    def classes(self) -> int:
        """The number of classes that models of images are built with; 0 if with none."""
        return dict(self.model_arguments).get("classes", 0)

    @property
    def metric(self) -> Metric:
        """The metric that networks are scored by."""
        return TASKS.get(self.task).metric

    @property
    def chance(self) -> float | None:
        """The score of the metric's baseline, as reports show it."""
        return None if self.baseline is None else self.metric.reported(self.baseline)

    def model(self, model: ModelSpec) -> ModelSpec:
        """Return a model for these data; one that takes other arguments is a ``ConfigError``.

        A network by its origin takes what it has arguments for, and is tried later.
        """
        arguments, entry = dict(self.model_arguments), MODELS.get(model.name)
        names = entry.from_data
        if set(names) != set(arguments) and not entry.outside:
            fitting = [n for n in MODELS.names() if set(MODELS.get(n).from_data) == set(arguments)]
            raise ConfigError(
                f"The model {model.name!r} takes {', '.join(names)} from its data, and the data "
                f"set {self.spec.name!r} (task {self.task}) gives {', '.join(arguments)}. Models "
                f"for it: {', '.join(fitting) or 'none is registered'}."
            )
        several = self.inputs is not None and len(Inputs.read(self.inputs.split()).inputs) > 1
        return model.with_data(arguments, inputs=self.inputs if entry.outside or several else None)


def material_of(spec: DataSpec) -> Material:
    """Look at a data set: its shape, its size, the identity of its content, its task."""
    if spec.task is not None:
        TASKS.key(spec.task)  # what is unknown is said before data are read
    from regrow.data import fingerprint, load  # imports PyTorch

    with altered_entries() as altered:
        dataset = load(spec)
        check_task(dataset)
        content = fingerprint(spec)
    task = task_of(dataset)
    code = TASKS.code(task.name)
    return Material(
        spec=spec,
        content="-".join(filter(None, (content, code))),
        shape=(1, *dataset.shape),
        model_arguments=tuple(task.model_arguments(dataset).items()),
        num_train=len(dataset.train),
        num_test=len(dataset.test),
        task=task.name,
        baseline=task.baseline(dataset),
        inputs=dataset.inputs,
        notices=(*dataset.notices, *altered),
    )


@dataclass(frozen=True)
class Setting:
    """The network, data and recipe that the speed of a training depends on."""

    model: ModelSpec
    data: Material
    recipe: Recipe

    @classmethod
    def of(cls, model: ModelSpec, data: Material, recipe: Recipe) -> "Setting":
        """Keep of a recipe what a step's time and memory depend on."""
        speed = Recipe(**{name: getattr(recipe, name) for name in OF_A_STEP})
        return cls(model, data, speed)
