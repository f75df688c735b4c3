"""Find how many trainings should share a GPU, by measuring before a run begins.

The networks of the paper are far too small to fill a GPU, so several are trained at once, each on
its own stream. The best number depends on the network and the device, so it is measured: it is
doubled as long as the total throughput increases. The trained weights do not depend on it.

The throughput counts trainings, not steps: each also has a start (building the network, recording
its step) and an evaluation, during which it leaves the device to the others. In short trainings
these take most of the time, so more of them should share than steps alone would suggest.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from statistics import median
from threading import Barrier, Thread
from typing import NamedTuple

import torch

from regrow.data import Dataset, MemoryImages, load
from regrow.jobs.base import Job
from regrow.jobs.retrain import Retrain
from regrow.jobs.train import Train
from regrow.models import ModelSpec, build
from regrow.train import Recipe, Training, evaluate

# Least gain from doubling, because each further training delays checkpoints and messages.
LEAST_GAIN = 0.10
# torch has 32 streams for a device and assigns them in turn; two trainings must not share one.
MOST = 32
# Of the free memory; the rest is for evaluation and for networks larger than the measured one.
MEMORY_SHARE = 0.7
MEASURED_SECONDS = 0.4
ENDLESS = 10**6  # epochs
MOST_EVALUATED = 2048  # test images in a timed evaluation; for more, the time is scaled up


def how_many(measure: Callable[[int], float], *, most: int) -> int:
    """Return the best number at once: doubled until the total rate gains less than a tenth.

    ``measure(k)`` returns the total rate of k at once; 0 if so many do not fit in memory.

    >>> how_many(lambda k: min(k, 5), most=32)
    8
    """
    best, rate = 1, measure(1)
    while best < most:
        more = min(2 * best, most)
        now = measure(more)
        if now < rate * (1 + LEAST_GAIN):
            break
        best, rate = more, now
    return best


class Sharing(NamedTuple):
    """A measurement of how many trainings should share a device.

    Attributes:
        job: the training to measure; None if one of the jobs cannot be measured, e.g. a detector.
        most: the largest number to try.
        steps: the number of steps of a training.
    """

    job: Job | None
    most: int
    steps: float

    @classmethod
    def of(cls, jobs: Iterable[Job]) -> "Sharing":
        """Prepare the measurement for jobs, by the one with the most FLOPs."""
        training_jobs = [job for job in jobs if job.flops > 0]
        if any(job.setting is None for job in training_jobs):
            return cls(None, 1, 0.0)
        largest = max(training_jobs, key=lambda job: job.flops, default=None)
        return cls(largest, min(MOST, len(training_jobs)), num_steps(training_jobs))

    def answer(self, device: str) -> int:
        """Measure on a device, and return the number; 1 if nothing can be measured."""
        setting = None if self.job is None else self.job.setting
        if setting is None:
            return 1
        trial = Trial(setting.model, load(setting.data.spec), setting.recipe, device=device)
        try:
            trial.warm_up()
            return how_many(
                lambda num: trainings_a_second(
                    num, trial.measure(num), steps=self.steps, start=trial.start, end=trial.end
                ),
                most=self.most,
            )
        finally:
            trial.close()


def num_sharing(jobs: Iterable[Job], device: str) -> int:
    """Measure how many trainings of the job with the most FLOPs should share a device."""
    return Sharing.of(jobs).answer(device)


def trainings_a_second(num: int, rate: float, *, steps: float, start: float, end: float) -> float:
    """Return the trainings finished per second if ``num`` run at once.

    ``rate`` is the total number of steps per second, and a training has ``steps``. ``start`` and
    ``end`` are the seconds of a training before its first step and after its last. Starts do not
    overlap, because recording is exclusive and building a network holds the GIL.

    >>> [round(trainings_a_second(n, 100.0, steps=10, start=0.1, end=0.1), 2) for n in (1, 2, 4)]
    [3.33, 5.0, 6.67]
    >>> [round(trainings_a_second(n, 100.0, steps=1e5, start=0.1, end=0.1), 5) for n in (1, 2, 4)]
    [0.001, 0.001, 0.001]
    """
    if not rate:
        return 0.0
    together = num / (start + end + steps * num / rate)
    return min(together, 1 / start) if start else together


def num_steps(jobs: Sequence[Job]) -> float:
    """Return the median number of steps of the trainings among jobs; ``ENDLESS`` without any."""
    known = []
    for job in jobs:
        if isinstance(job, Train | Retrain):
            epochs = job.recipe.length if isinstance(job, Train) else job.expected_epochs
            known.append(epochs * -(-job.data.num_train // job.recipe.batch))
    return median(known) if known else float(ENDLESS)


class Trial:
    """Clones of one training, which run in threads for a short time."""

    def __init__(
        self, model: ModelSpec, dataset: Dataset, recipe: Recipe, *, device: str = "cpu"
    ) -> None:
        self._model = model
        self._recipe = recipe.lasting(ENDLESS)
        self._dataset = dataset
        self._device = torch.device(device)
        self._clones: list[tuple[Training, AbstractContextManager[object]]] = []
        self._bytes_each = 0
        self.start = self.end = 0.0  # seconds of a training before its steps and after them

    def warm_up(self) -> None:
        """Start and evaluate a training, so that no timed one is the first in this process.

        If memory is too small for one, ``measure`` finds that again.
        """
        try:
            if self._add():
                self._time_end()
        except torch.OutOfMemoryError:
            pass
        self.close()
        self.start = 0.0

    def measure(self, num: int, *, seconds: float = MEASURED_SECONDS) -> float:
        """Return the total steps per second of so many clones; 0 if memory is too small."""
        try:
            while len(self._clones) < num:
                if not self._add():
                    return 0.0
        except torch.OutOfMemoryError:
            return 0.0
        return self._together(num, seconds)

    def close(self) -> None:
        """Free the memory."""
        self._clones.clear()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _add(self) -> bool:
        """Add a clone and record its step; return False if memory is too small."""
        cuda = self._device.type == "cuda"
        before = 0
        stream: AbstractContextManager[object] = nullcontext()
        if cuda:
            before = torch.cuda.memory_reserved(self._device)
            free, _ = torch.cuda.mem_get_info(self._device)
            if self._bytes_each > MEMORY_SHARE * free:
                return False
            stream = torch.cuda.stream(torch.cuda.Stream(self._device))  # type: ignore[no-untyped-call]
        began = time.perf_counter()
        with stream:
            training = Training(
                build(self._model), self._dataset, self._recipe, seed=0, device=self._device
            )
            training.step()
            self._wait()
        seconds = time.perf_counter() - began
        self.start = min(self.start, seconds) if self.start else seconds
        if training.notice is not None and self._clones and not self._clones[0][0].notice:
            return False  # the first could be recorded, so memory is too small for this one
        self._clones.append((training, stream))
        if cuda:
            used = torch.cuda.memory_reserved(self._device) - before
            self._bytes_each = max(self._bytes_each, used)
        return True

    def _together(self, num: int, seconds: float) -> float:
        counts = [0] * num
        begin = Barrier(num + 1)
        threads = [
            Thread(target=self._advance, args=(n, counts, begin, seconds)) for n in range(num)
        ]
        for thread in threads:
            thread.start()
        begin.wait()
        started = time.perf_counter()
        for thread in threads:
            thread.join()
        return sum(counts) / (time.perf_counter() - started)

    def _advance(self, n: int, counts: list[int], begin: Barrier, seconds: float) -> None:
        training, stream = self._clones[n]
        with stream:
            begin.wait()
            end = time.perf_counter() + seconds
            while time.perf_counter() < end:
                training.step()
                counts[n] += 1
            self._wait()

    def _time_end(self) -> None:
        """Time the second evaluation of a network."""
        training, stream = self._clones[0]
        test = self._dataset.test
        rows = torch.arange(min(len(test), MOST_EVALUATED))
        some = MemoryImages(test.batch(rows), test.labels[rows])
        with stream:
            for _ in range(2):
                began = time.perf_counter()
                evaluate(training.model, some, self._dataset, precision=self._recipe.precision)
                self._wait()
        self.end = (time.perf_counter() - began) * len(test) / len(rows)
        training.model.train()

    def _wait(self) -> None:
        """Wait until the device has finished this thread's work."""
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()
