"""Estimate what a study has still to compute: training FLOPs, and time on this machine.

Each network is timed for a few steps, whole and with half of its channels, on one thread as a
worker has it; a line through the two tells what a step of any narrower network takes. Channels that
a method has yet to choose are guessed: FLOPs go with the square of the share that is kept.
"""

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import nn

from regrow.architecture import Architecture
from regrow.cost import measure
from regrow.data import Dataset, load
from regrow.errors import TraceError
from regrow.jobs import Material, Prune, Retrain, Train, model_cost
from regrow.models import ModelSpec, build
from regrow.prune import METHODS, select
from regrow.surgery import trace
from regrow.train import Recipe, Training
from regrow.work import Job

WARM_STEPS = 2
TIMED_STEPS = 5
# Building, tracing, cutting and storing a network, measured on the networks of the paper.
JOB_SECONDS = 0.3


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What is left of a study; ``seconds`` is for the given number of workers."""

    jobs: int
    done: int
    by_kind: dict[str, tuple[int, int]]  # in all, done
    training_flops: float
    seconds: float


@dataclass(frozen=True)
class _Speed:
    """Seconds of one training step by the network's FLOPs for one image."""

    fixed: float
    per_flop: float

    def step(self, flops: float) -> float:
        return self.fixed + self.per_flop * flops


def estimate(jobs: Sequence[Job], done: Collection[str], *, workers: int) -> Estimate:
    """Estimate the jobs (with all they stand on) whose keys are not done."""
    nodes = all_jobs(jobs)
    pending = [job for key, job in nodes.items() if key not in done]
    speeds: dict[tuple[ModelSpec, Material, Recipe], _Speed] = {}
    seconds = [_seconds(job, speeds) for job in pending]
    # No schedule beats its longest chain, nor the work shared evenly.
    chain = _longest_chain(pending, seconds)
    return Estimate(
        jobs=len(nodes),
        done=len(nodes) - len(pending),
        by_kind=_count_kinds(nodes, done),
        training_flops=sum(job.flops for job in pending),
        seconds=max(sum(seconds) / max(workers, 1), chain),
    )


def all_jobs(jobs: Sequence[Job]) -> dict[str, Job]:
    """Return jobs with all that they stand on, by key."""
    nodes: dict[str, Job] = {}
    waiting = list(jobs)
    while waiting:
        job = waiting.pop()
        if job.key not in nodes:
            nodes[job.key] = job
            waiting += job.inputs
    return nodes


def _count_kinds(nodes: dict[str, Job], done: Collection[str]) -> dict[str, tuple[int, int]]:
    counts: dict[str, tuple[int, int]] = {}
    kinds = [Train.kind, Prune.kind, Retrain.kind]
    for job in sorted(nodes.values(), key=lambda job: kinds.index(job.kind)):
        total, ready = counts.get(job.kind, (0, 0))
        counts[job.kind] = (total + 1, ready + (job.key in done))
    return counts


def _longest_chain(pending: Sequence[Job], seconds: Sequence[float]) -> float:
    own = {job.key: took for job, took in zip(pending, seconds, strict=True)}
    ends: dict[str, float] = {}

    def end(job: Job) -> float:
        if job.key not in ends:
            before = max((end(stage) for stage in job.inputs), default=0.0)
            ends[job.key] = before + own.get(job.key, 0.0)
        return ends[job.key]

    return max((end(job) for job in pending), default=0.0)


def _seconds(job: Job, speeds: dict[tuple[ModelSpec, Material, Recipe], _Speed]) -> float:
    if isinstance(job, Train):
        data, model, base, epochs = job.data, job.model, job.recipe, job.recipe.epochs
    elif isinstance(job, Retrain):
        data, model, base = job.prune.data, job.prune.model, job.recipe
        epochs = job.expected_epochs
    else:
        return JOB_SECONDS
    recipe = Recipe(batch=base.batch, precision=base.precision, channels_last=base.channels_last)
    if (model, data, recipe) not in speeds:
        speeds[model, data, recipe] = _measure(model, data, recipe)
    speed = speeds[model, data, recipe]
    flops = model_cost(model, data.shape).flops
    if isinstance(job, Retrain) and job.prune.method.unit == "channel":
        flops = round(flops / job.expected_ratio)  # weights held at zero take as long as any
    steps = epochs * -(-data.num_train // base.batch)
    # Evaluating is the forward third of a step.
    evaluations = data.num_test / base.batch / 3
    return JOB_SECONDS + (steps + evaluations) * speed.step(flops)


def _measure(model: ModelSpec, data: Material, recipe: Recipe) -> _Speed:
    """Time a network, whole and half as wide."""
    dataset = load(data.spec)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        whole = build(model)
        flops = model_cost(model, data.shape).flops
        seconds = _time_steps(whole, dataset, recipe)
        half = _half(model, data)
        if half is None:
            return _Speed(0.0, seconds / flops)
        half_flops = measure(half, torch.zeros(data.shape)).flops
        slope = (seconds - _time_steps(half, dataset, recipe)) / max(flops - half_flops, 1)
        slope = min(max(slope, 0.0), seconds / flops)
        return _Speed(seconds - slope * flops, slope)
    finally:
        torch.set_num_threads(threads)


def _half(model: ModelSpec, data: Material) -> nn.Module | None:
    network = build(model)
    try:
        found = trace(network, data.shape)
        mask = select(network, found, METHODS.get("uniform"), sparsity=0.5)
    except TraceError:
        return None
    return Architecture(model=model, shape=data.shape, cuts=(mask,)).cut(network)


def _time_steps(network: nn.Module, dataset: Dataset, recipe: Recipe) -> float:
    training = Training(network, dataset, recipe, seed=0)
    times = []
    for _ in range(min(WARM_STEPS + TIMED_STEPS, training.num_steps)):
        began = time.perf_counter()
        training.step()
        times.append(time.perf_counter() - began)
    return median(times[WARM_STEPS:] or times)
