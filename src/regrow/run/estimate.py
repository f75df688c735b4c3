"""Estimate a study's remaining work: training FLOPs, and time on this machine.

Each network is timed for a few steps, whole and with half of its channels, on one thread as in a
worker, beside as many busy processes as the other workers would be. If a method has yet to choose
channels, each layer is assumed to lose the same share, and the network cut that way is timed too.
For other narrower networks, step times are interpolated on a line through the whole and the half
network. A cut is timed with its proof. If the store has records of the same network, their times
correct the estimate. The schedule is then simulated, so that idle workers at the end count too.
"""

import heapq
import os
import subprocess
import sys
import time
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from statistics import median

import torch
from torch import nn

from regrow.core.units import UNITS
from regrow.cost import TRAINING_FACTOR, measure
from regrow.data import Dataset, MemoryImages, load
from regrow.errors import TraceError
from regrow.jobs.base import Job, all_jobs
from regrow.jobs.prune import Prune
from regrow.jobs.train import model_cost
from regrow.models import ModelSpec, build, example_input
from regrow.pruning.method import METHODS
from regrow.pruning.select import select
from regrow.run.executors import one_thread
from regrow.run.schedule import Schedule, ScheduledJob
from regrow.store import Store
from regrow.surgery import Trace, shrink
from regrow.surgery.architecture import traced
from regrow.surgery.edit import Edit
from regrow.surgery.mask import Mask
from regrow.train import Recipe, Training, evaluate
from regrow.train.material import Material, Setting

ORDER = ("train", "prune", "retrain")  # order of job kinds in a plan; others follow
WARM_STEPS = 2
MIN_STEPS, MAX_STEPS = 3, 40
CALIBRATION_SECONDS = 1.0  # of timed steps for each network and width, unless 3 take longer
CALIBRATION_IMAGES = 256
# A worker's start is taken to cost as much as this process has used so far (imports, reading data,
# the first trace), but at most this, because this process may have done other work before.
MAX_START_SECONDS = 15.0
REPORT_SECONDS = 3.0  # mostly for figures
RECORDS_READ, RECORDS_NEEDED = 40, 3
# A job that took this much longer than expected also had to import libraries.
FIRST_RATIO, FIRST_SECONDS = 3.0, 2.0
# A process as busy as a worker: one thread, with more data than a core's cache holds. It ends when
# its pipe closes.
NEIGHBOUR = """
import sys, threading, os
import numpy as np
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
a = np.ones((1024, 1024), dtype=np.float32)
print(flush=True)
while True:
    a @ a
"""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The remaining work of a study.

    ``seconds`` is the elapsed time with the given number of workers, including their start and the
    report; ``compute_seconds`` is the sum over all processes.
    """

    jobs: int
    done: int
    by_kind: dict[str, tuple[int, int]]  # total, done
    training_flops: float
    seconds: float
    compute_seconds: float
    from_records: bool  # whether records of finished jobs corrected the calibration


def estimate(
    jobs: Sequence[Job],
    done: Collection[str],
    *,
    workers: int,
    store: Store | None = None,
    rates: "Rates | None" = None,
) -> Estimate:
    """Estimate the work of jobs, with all that they depend on, except those in ``done``.

    The records of finished jobs are read from ``store``, if given. Without ``rates`` (see
    ``measuring``), networks are timed here.
    """
    nodes = all_jobs(jobs)
    pending = [job for key, job in nodes.items() if key not in done]
    finished = [job for key, job in nodes.items() if key in done]
    workers = max(1, min(workers, len(pending)))
    with nullcontext(rates) if rates is not None else measuring(workers) as known:
        known.learn(finished, store)
        seconds = {job.key: known.of(job) for job in pending}
    # This process starts, then its workers start at the same time; at the end it writes the report.
    around = 2 * known.start_seconds + REPORT_SECONDS
    makespan = _makespan(Schedule(jobs, done), seconds, workers)
    compute_seconds = around + known.start_seconds * (workers - 1) + sum(seconds.values())
    return Estimate(
        jobs=len(nodes),
        done=len(finished),
        by_kind=_count_kinds(nodes, done),
        training_flops=sum(job.estimate_flops(known) for job in pending),
        seconds=around + makespan if pending else 0.0,
        compute_seconds=compute_seconds if pending else 0.0,
        from_records=known.from_records,
    )


@contextmanager
def measuring(workers: int) -> "Iterator[Rates]":
    """Yield this machine's ``Rates`` with so many busy workers; each network is timed once."""
    start = min(time.process_time(), MAX_START_SECONDS)
    with _neighbours(workers - 1), one_thread():
        yield Rates(start_seconds=start)


def _count_kinds(nodes: dict[str, Job], done: Collection[str]) -> dict[str, tuple[int, int]]:
    counts: dict[str, tuple[int, int]] = {}
    kinds = [*ORDER, *sorted({job.kind for job in nodes.values()} - {*ORDER})]
    for job in sorted(nodes.values(), key=lambda job: kinds.index(job.kind)):
        total, ready = counts.get(job.kind, (0, 0))
        counts[job.kind] = (total + 1, ready + (job.key in done))
    return counts


def _makespan(schedule: Schedule, seconds: Mapping[str, float], workers: int) -> float:
    """Simulate the schedule of a run, and return the time at which its last job ends."""
    now, free = 0.0, workers
    under_way: list[tuple[float, int, ScheduledJob]] = []
    while schedule.num_open:
        while free and (node := schedule.take(workers)) is not None:
            heapq.heappush(under_way, (now + seconds[node.key], node.index, node))
            free -= 1
        now, _, node = heapq.heappop(under_way)
        schedule.finish(node)
        free += 1
    return now


@dataclass(frozen=True)
class _Line:
    """Seconds as a linear function of the network's FLOPs for one image."""

    fixed: float
    per_flop: float

    def at(self, flops: float) -> float:
        return self.fixed + self.per_flop * flops

    @classmethod
    def through(cls, whole: tuple[float, float], half: tuple[float, float] | None) -> "_Line":
        """Fit a line to two points (FLOPs, seconds): not falling, nor negative at zero FLOPs."""
        flops, seconds = whole
        if half is None or half[0] >= flops:
            return cls(0.0, seconds / flops)
        slope = (seconds - half[1]) / (flops - half[0])
        slope = min(max(slope, 0.0), seconds / flops)
        return cls(seconds - slope * flops, slope)


@dataclass(frozen=True, kw_only=True)
class _Speed:
    """Seconds of a network on one thread: training step, scoring an image, cut, and its proof."""

    step: _Line
    image: _Line
    cut_seconds: float
    proof_seconds: float = 0.0


@dataclass
class Rates:
    """Estimates of jobs' times, from a calibration of their networks and from records."""

    start_seconds: float = 0.0  # of a process before its first job
    store: Store | None = None
    from_records: bool = False
    _finished: Mapping[str, Job] = field(default_factory=dict)
    _speeds: dict[Setting, _Speed] = field(default_factory=dict)
    _factors: dict[Hashable, float] = field(default_factory=dict)
    _traces: dict[tuple[ModelSpec, tuple[int, ...]], tuple[nn.Module, Trace]] = field(
        default_factory=dict
    )
    _ratios: dict[object, float] = field(default_factory=dict)
    _guesses: dict[tuple[ModelSpec, tuple[int, ...], float], Mask] = field(default_factory=dict)
    _times: dict[tuple[Setting, float], tuple[float, float]] = field(default_factory=dict)

    def learn(self, finished: Sequence[Job], store: Store | None) -> None:
        """Use the records of these finished jobs, and no others."""
        self._finished, self.store = {job.key: job for job in finished}, store
        self._factors, self.from_records = {}, False

    @property
    def seconds(self) -> float:
        """The maximum time of a timed trial, in seconds."""
        return CALIBRATION_SECONDS

    def of(self, job: Job) -> float:
        """Return a job's seconds, corrected by the records of its group."""
        group = job.pace_group
        return job.estimate(self) * (1.0 if group is None else self._factor(group))

    def cutting(self, model: ModelSpec, data: Material) -> float:
        """Return the seconds of choosing and cutting units."""
        return self._speed(Setting(model, data, Recipe())).cut_seconds

    def pruning(self, model: ModelSpec, data: Material) -> float:
        """Return the seconds of choosing and cutting units, and of proving the cut."""
        speed = self._speed(Setting(model, data, Recipe()))
        return speed.cut_seconds + speed.proof_seconds

    def training(
        self, setting: Setting, *, epochs: float, ratio: float = 1.0, taught: bool = False
    ) -> float:
        """Return the seconds of a training and of scoring its network."""
        data = setting.data
        step, image = self._times_of(setting, ratio)
        if taught:  # a teacher costs one forward pass of the unpruned network
            step += self._times_of(setting, 1.0)[0] / TRAINING_FACTOR
        steps = epochs * -(-data.num_train // setting.recipe.batch)
        return steps * step + data.num_test * image

    def _times_of(self, setting: Setting, ratio: float) -> tuple[float, float]:
        """Return the seconds of a training step and of scoring an image, at 1/ratio of the FLOPs.

        Narrow layers take more time than their share of the FLOPs, and how much more depends on
        which layers are narrow. So a guess of the pruned network is timed, if there is one and its
        steps are short.
        """
        shape = setting.data.shape
        guess = self._guesses.get((setting.model, shape, ratio))
        speed, flops = self._speed(setting), model_cost(setting.model, shape).flops / ratio
        if guess is None or MIN_STEPS * speed.step.at(flops) > CALIBRATION_SECONDS:
            return speed.step.at(flops), speed.image.at(flops)
        if (setting, ratio) not in self._times:
            network, groups = self._trace(setting.model, shape)
            narrow = shrink(network, guess, groups)
            self._times[setting, ratio] = _time(narrow, load(setting.data.spec), setting.recipe)
        return self._times[setting, ratio]

    def _speed(self, setting: Setting) -> _Speed:
        if setting not in self._speeds:
            same = (s for s in self._speeds if (s.model, s.data) == (setting.model, setting.data))
            if setting.recipe == Recipe() and (known := next(same, None)):
                return self._speeds[known]  # a cut takes the same time whatever the recipe
            self._speeds[setting] = _calibrate(setting)
        return self._speeds[setting]

    def _factor(self, group: Hashable) -> float:
        """Return actual over calibrated seconds of this group's jobs; 1 if too few are known."""
        if group not in self._factors:
            jobs = [job for job in self._finished.values() if job.pace_group == group]
            ratios = [] if self.store is None else self._compare(jobs, self.store)
            self._factors[group] = median(ratios) if len(ratios) >= RECORDS_NEEDED else 1.0
            self.from_records |= len(ratios) >= RECORDS_NEEDED
        return self._factors[group]

    def _compare(self, jobs: Sequence[Job], store: Store) -> list[float]:
        """Return actual over calibrated seconds of jobs, without slow ones, such as first jobs."""
        ratios = []
        for job in jobs[:: len(jobs) // RECORDS_READ + 1]:
            expected, took = job.estimate(self), store.record(job.key)["timing"]["seconds"]
            if took < FIRST_RATIO * expected or took < expected + FIRST_SECONDS:
                ratios.append(took / expected)
        return ratios

    def ratio(self, prune: Prune) -> float:
        """Return the unpruned network's FLOPs over the pruned one's, from a record or guessed."""
        how = prune.method
        share = prune.expected_kept
        key = (prune.model, prune.data.shape, how.unit, how.scope, share, prune.shares)
        if key not in self._ratios:  # also of a recorded cut: its network may serve as a guess
            self._ratios[key] = self._uniform_ratio(prune)
        if self.store is not None and prune.key in self._finished:
            record = self.store.record(prune.key)
            return float(record["before"]["flops"] / max(record["after"]["flops"], 1))
        return self._ratios[key]

    def _uniform_ratio(self, prune: Prune) -> float:
        share = prune.expected_kept
        if prune.cost is not None:
            return 1.0 / prune.cost.share
        if not UNITS.get(prune.method.unit).narrows:
            return 1.0 / max(share, 0.01)
        key = (prune.model, prune.data.shape)
        try:
            network, groups = self._trace(*key)
            method = replace(METHODS.get("uniform"), scope=prune.method.scope)
            mask = select(
                network, groups, method, sparsity=prune.sparsity, shares=prune.shares, seed=0
            )
            after = measure(shrink(network, mask, groups), groups.example)
        except TraceError:
            return 1.0 / max(share, 0.1) ** 2  # layers lose both inputs and outputs
        ratio = model_cost(prune.model, prune.data.shape).flops / max(after.flops, 1)
        self._guesses[prune.model, prune.data.shape, ratio] = mask
        return ratio

    def _trace(self, model: ModelSpec, shape: tuple[int, ...]) -> tuple[nn.Module, Trace]:
        """Return an untrained network and its trace; cached."""
        if (model, shape) not in self._traces:
            network = build(model.untrained())
            self._traces[model, shape] = network, traced(network, model, shape)
        return self._traces[model, shape]


def _calibrate(setting: Setting) -> _Speed:
    """Time a network at full and at half width."""
    dataset = load(setting.data.spec)
    shape = setting.data.shape
    example = example_input(setting.model, shape)
    whole = build(setting.model.untrained())
    flops = model_cost(setting.model, shape).flops
    with suppress(TraceError):
        traced(whole, setting.model, shape)  # usually cached by then, so not timed with the cut
    began = time.perf_counter()
    mask = _half(whole, setting.model, shape)
    half = None if mask is None else shrink(whole, mask, traced(whole, setting.model, shape))
    cut_seconds = time.perf_counter() - began
    proof_seconds = 0.0 if mask is None else _time_proof(whole, mask, setting.model, shape)
    step, image = _time(whole, dataset, setting.recipe)
    half_step = half_image = None
    if half is not None:
        half_flops = measure(half, example).flops
        seconds, image_seconds = _time(half, dataset, setting.recipe)
        half_step, half_image = (half_flops, seconds), (half_flops, image_seconds)
    return _Speed(
        step=_Line.through((flops, step), half_step),
        image=_Line.through((flops, image), half_image),
        cut_seconds=cut_seconds,
        proof_seconds=proof_seconds,
    )


def _half(network: nn.Module, model: ModelSpec, shape: tuple[int, ...]) -> Mask | None:
    """Choose half of each group's channels; return None if the network cannot be traced."""
    try:
        return select(network, traced(network, model, shape), METHODS.get("uniform"), sparsity=0.5)
    except TraceError:
        return None


def _time_proof(network: nn.Module, mask: Mask, model: ModelSpec, shape: tuple[int, ...]) -> float:
    """Return the seconds of proving a cut, without the sensitivities, which are measured once."""
    began = time.perf_counter()
    with suppress(TraceError):
        edit = Edit(model=model, shape=shape, mask=mask)
        edit.prove(network, traced(network, model, shape), sensitivity=lambda: None)
    return time.perf_counter() - began


def _time(network: nn.Module, dataset: Dataset, recipe: Recipe) -> tuple[float, float]:
    """Return the seconds of a training step and of scoring one image."""
    training = Training(network, dataset, recipe, seed=0)
    times: list[float] = []
    while len(times) < MAX_STEPS + WARM_STEPS and not training.done:
        began = time.perf_counter()
        training.step()
        times.append(time.perf_counter() - began)
        timed = times[WARM_STEPS:]
        if len(timed) >= MIN_STEPS and sum(timed) > CALIBRATION_SECONDS:
            break
    rows = torch.arange(min(len(dataset.test), CALIBRATION_IMAGES))
    some = MemoryImages(dataset.test.batch(rows), dataset.test.labels[rows])
    layout = {name: getattr(recipe, name) for name in ("precision", "engine", "channels_last")}
    began = time.perf_counter()
    evaluate(network, some, dataset, **layout)
    return median(times[WARM_STEPS:] or times), (time.perf_counter() - began) / len(rows)


@contextmanager
def _neighbours(num: int) -> Iterator[None]:
    """Keep other cores as busy as workers would, as cores share caches, memory and power."""
    command = [sys.executable, "-c", NEIGHBOUR]
    started = [
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
        for _ in range(num)
    ]
    try:
        for process in started:
            assert process.stdout is not None
            process.stdout.readline()
        yield
    finally:
        for process in started:
            process.kill()
            process.communicate()
