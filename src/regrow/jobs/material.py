"""The data of a job: how to load them, what identifies their content, and what is learnt."""

from collections.abc import Iterable
from dataclasses import dataclass

from regrow.data import DataSpec, fingerprint, load
from regrow.data.cache import altered_entries
from regrow.data.loading import IMAGE_TASK
from regrow.errors import ConfigError
from regrow.jobs.base import Job, all_jobs
from regrow.models import MODELS, ModelSpec
from regrow.tasks import TASKS, Metric, task_of


@dataclass(frozen=True, kw_only=True)
class Material:
    """The examples of a job: how to load them, the identity of their content, their shape.

    ``told``: what a model's factory is given of them, by argument. ``baseline``: what the baseline
    of the task's metric scores on the test set, unscaled, where it is known.
    """

    spec: DataSpec
    content: str  # fingerprint, the same wherever the files lie
    shape: tuple[int, ...]  # of one example, [1, ...]
    told: tuple[tuple[str, int], ...]
    num_train: int
    num_test: int
    task: str = IMAGE_TASK
    baseline: float | None = None
    notices: tuple[str, ...] = ()  # for people: no part of any key

    @property
    def classes(self) -> int:
        """The number of classes that a model of images is told; 0 if it is told none."""
        return dict(self.told).get("classes", 0)

    @property
    def metric(self) -> Metric:
        """The metric that networks are scored by."""
        return TASKS.get(self.task).metric

    @property
    def chance(self) -> float | None:
        """The score of the metric's baseline, as reports show it."""
        return None if self.baseline is None else self.metric.reported(self.baseline)

    def model(self, model: ModelSpec) -> ModelSpec:
        """Return a model for these data; one that is told other things is a ``ConfigError``."""
        told, wanted = dict(self.told), MODELS.get(model.name).told
        if set(wanted) != set(told):
            fitting = [n for n in MODELS.names() if set(MODELS.get(n).told) == set(told)]
            raise ConfigError(
                f"The model {model.name!r} is told {', '.join(wanted)}, and the data set "
                f"{self.spec.name!r} (task {self.task}) tells {', '.join(told)}. Models for it: "
                f"{', '.join(fitting) or 'none is registered'}."
            )
        return ModelSpec(model.name, {**model.arguments, **told})


def material_of(spec: DataSpec) -> Material:
    """Look at a data set: its shape, its size, the identity of its content, its task."""
    if spec.task is not None:
        TASKS.key(spec.task)  # what is unknown is said before data are read
    with altered_entries() as altered:
        dataset, content = load(spec), fingerprint(spec)
    task = task_of(dataset)
    code = TASKS.code(task.name)
    return Material(
        spec=spec,
        content="-".join(filter(None, (content, code))),
        shape=(1, *dataset.shape),
        told=tuple(task.tell(dataset).items()),
        num_train=len(dataset.train),
        num_test=len(dataset.test),
        task=task.name,
        baseline=task.baseline(dataset),
        notices=(*dataset.notices, *altered),
    )


def notices(jobs: Iterable[Job]) -> tuple[str, ...]:
    """Return what people should know of the data that jobs look at, each once."""
    data = (getattr(job, "data", None) for job in all_jobs(jobs).values())
    return tuple(dict.fromkeys(text for each in data for text in getattr(each, "notices", ())))
