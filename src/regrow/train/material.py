"""The data of a job, and the setting that its speed depends on.

PyTorch, which takes seconds to import, is imported only when data are read.
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
    """Properties, needed by reports, of the test set that a job's network is scored on."""

    @property
    def metric(self) -> Metric:
        """The metric that networks are scored by."""

    @property
    def task(self) -> str | None:
        """The name of the task; None if only a user's training function knows it."""

    @property
    def num_test(self) -> int | None:
        """The number of its examples, if it is known."""

    @property
    def chance(self) -> float | None:
        """The score of the metric's baseline, as reports show it, if it is known."""


@dataclass(frozen=True, kw_only=True)
class Material:
    """The examples of a job: how to load them, the identity of their content, their shape.

    ``model_arguments``: arguments of models that the data determine. ``inputs``: an example's
    inputs as text, if it has more than one tensor of ``shape``, or tokens. ``baseline``: the
    unscaled score of the metric's baseline on the test set, if it is known.
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
    notices: tuple[str, ...] = ()  # for users; not part of any key

    @property
    def classes(self) -> int:
        """The number of classes that models of images are built with; 0 if there are none."""
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

        A network given by its origin takes those arguments that it has, and is tried later.
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
    """Load a data set and return its shape, its size, the identity of its content and its task."""
    if spec.task is not None:
        TASKS.key(spec.task)  # an unknown task is refused before data are read
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
        """Make a setting with only those fields of a recipe that affect a step's time or memory."""
        speed = Recipe(**{name: getattr(recipe, name) for name in OF_A_STEP})
        return cls(model, data, speed)
