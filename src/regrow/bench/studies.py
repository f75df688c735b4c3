"""Jobs per minute of a small complete study, and the time that is not spent on training."""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from regrow.bench.material import DIGITS_PLAN
from regrow.jobs.base import Job
from regrow.run import Event, JobStarted, num_cores, run
from regrow.store import Store
from regrow.studies.study import Study
from regrow.train import Training


@dataclass(frozen=True, kw_only=True)
class StudySpeed:
    """The measured speed of a study of the quickstart's trainings."""

    jobs: int
    workers: int
    start_seconds: float  # until the first job had started; spent once per run
    seconds: float  # from then on
    jobs_per_minute: float
    step_ms: float  # of a training in this process
    outside: float  # share of a job that is not steps of training, in this process

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    def text(self) -> str:
        """Return the values as lines of text."""
        return "\n".join(
            [
                f"{'trainings':24}{self.jobs:>10}",
                f"{'workers':24}{self.workers:>10}",
                f"{'start of workers':24}{self.start_seconds:>10.2f} s, once",
                f"{'trainings a minute':24}{self.jobs_per_minute:>10.1f}",
                f"{'a training step':24}{self.step_ms:>10.2f} ms",
                f"{'outside of training':24}{self.outside:>10.1%} of a job",
            ]
        )


def measure_study(*, num_jobs: int, device: str = "cpu", workers: int | None = None) -> StudySpeed:
    """Run the quickstart's training with ``num_jobs`` seeds, and one more seed on its own."""
    jobs = _trainings(num_jobs + 1)
    workers = num_cores() if workers is None and device == "cpu" else workers
    alone, step_ms = _outside(jobs[-1:], device)
    first: list[float] = []

    def note(event: Event) -> None:
        if isinstance(event, JobStarted) and not first:
            first.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        store = Store.open(Path(folder))
        started = time.perf_counter()
        run(jobs[:-1], store, workers=workers, device=device, on_event=note)
        ended = time.perf_counter()
    return StudySpeed(
        jobs=num_jobs,
        workers=workers or 0,
        start_seconds=first[0] - started,
        seconds=ended - first[0],
        jobs_per_minute=60 * num_jobs / (ended - first[0]),
        step_ms=step_ms,
        outside=alone,
    )


def _trainings(num: int) -> list[Job]:
    study = Study.from_json(
        {
            "name": "bench",
            "data": "digits",
            "models": [{"name": "vgg", "plan": DIGITS_PLAN}],
            "methods": [{"name": "l1-filter", "sparsity": 0.5}],
            "arms": ["unpruned"],
            "seeds": num,
            "recipe": {"name": "cifar", "epochs": 12, "lr": 0.05},
        }
    )
    return list(study.jobs())


def _outside(jobs: Sequence[Job], device: str) -> tuple[float, float]:
    """Return the share of the time outside training steps, and the milliseconds of a step."""
    steps: list[float] = []
    with tempfile.TemporaryDirectory() as folder, _timed_steps(steps.append):
        store = Store.open(Path(folder))
        started = time.perf_counter()
        run(jobs, store, workers=0, device=device)
        seconds = time.perf_counter() - started
    return 1 - sum(steps) / seconds, 1000 * sum(steps) / len(steps)


@contextmanager
def _timed_steps(note: Callable[[float], None]) -> Iterator[None]:
    """Time every training step, by replacing ``Training.step``, which itself has no timing."""
    step = Training.step

    def timed(self: Training) -> None:
        started = time.perf_counter()
        step(self)
        note(time.perf_counter() - started)

    Training.step = timed  # type: ignore[method-assign]
    try:
        yield
    finally:
        Training.step = step  # type: ignore[method-assign]
