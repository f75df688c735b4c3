"""Rates of training steps and of matrix products, and the overhead of a step around its core."""

import statistics
import time
from collections.abc import Callable, Iterator

import torch

from regrow.bench.material import BATCH, Subject
from regrow.models import build
from regrow.train import Computing, Precision, Recipe, Training
from regrow.train.step import descend, forward, normalised

ENDLESS = 10**6  # epochs
OURS = {
    "fp32": Computing(precision="fp32"),
    "fused": Computing(precision="fp32", engine="fused"),
    "bf16": Computing(precision="bf16"),
}
# Products of this size reach the peak of a device; a larger one takes a CPU too long.
MATRIX = {"cpu": 1024, "cuda": 8192}
SHARE_BLOCKS = 5
STEPS_A_BLOCK = 3


def synchronise(device: str) -> None:
    """Wait until a device has finished its work."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def rate(steps: Iterator[float], *, seconds: float, device: str = "cpu") -> float:
    """Return the sum of what ``steps`` yield, per second, measured over ``seconds``."""
    started, total = time.perf_counter(), 0.0
    while time.perf_counter() - started < seconds:
        total += next(steps)
    synchronise(device)
    return total / (time.perf_counter() - started)


def matrix_products(precision: Precision, device: str = "cpu") -> Iterator[float]:
    """Multiply matrices without end; yield the FLOPs of each product."""
    size = MATRIX["cuda" if device.startswith("cuda") else "cpu"]
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    left, right = torch.randn(2, size, size, device=device).to(dtype)
    while True:
        for _ in range(4):
            torch.mm(left, right)
        synchronise(device)
        yield 8.0 * size**3


def recipe(way: str) -> Recipe:
    """Return the recipe of all measurements, computed in one of the ways in ``OURS``."""
    how = OURS[way]
    return Recipe(epochs=ENDLESS, batch=BATCH, lr=0.01, precision=how.precision, engine=how.engine)


def our_training(subject: Subject, way: str, device: str = "cpu") -> Training:
    """Make a training of this package."""
    dataset = subject.dataset()
    model = build(subject.model(dataset))
    return Training(model, dataset, recipe(way), seed=0, device=device)


def our_steps(training: Training) -> Iterator[float]:
    """Train without end; yield the number of images of each step."""
    before = 0
    while True:
        training.step()
        yield training.samples - before
        before = training.samples


def share_around_the_core(subject: Subject, way: str) -> float:
    """Return the share of a step's CPU time outside forward, backward and update.

    Steps and cores (steps without gathering, augmenting, normalising and bookkeeping) are timed in
    alternating blocks; the medians are compared.
    """
    training = our_training(subject, way)
    core = _core(training)
    times: dict[Callable[[], object], list[float]] = {training.step: [], core: []}
    for block in range(SHARE_BLOCKS + 1):
        for function, seconds in times.items():
            started = time.process_time()
            for _ in range(STEPS_A_BLOCK):
                function()
            if block:  # the first warms up
                seconds.append(time.process_time() - started)
    step, inner = (statistics.median(seconds) for seconds in times.values())
    return max(0.0, 1.0 - inner / step)


def _core(training: Training) -> Callable[[], object]:
    parts = training.parts
    indices = torch.arange(min(BATCH, len(parts.images)))
    pixels = normalised(
        parts.images.batch(indices), parts.normalisation, channels_last=parts.channels_last
    )
    labels = parts.labels[indices]

    def core() -> None:
        recipe = parts.recipe
        outputs = forward(parts.model, pixels, recipe.precision, engine=recipe.engine)
        loss = parts.objective.mean(outputs, labels)
        for parameter in parts.parameters:
            parameter.grad = None
        loss.backward()  # type: ignore[no-untyped-call]
        descend(parts, parts.recipe.lr)

    return core
