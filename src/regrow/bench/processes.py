"""Ways to train on a CPU, each in a process of its own that waits for its turn."""

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import chain
from multiprocessing.connection import Connection

import torch

from regrow.bench.material import Subject
from regrow.bench.measuring import matrix_products, our_steps, our_training, rate
from regrow.bench.plain import plain_steps
from regrow.models import build
from regrow.run import num_cores
from regrow.run.execute import large_pages, one_thread
from regrow.train import Precision

TRAINING = "training"
PLAIN_ALL_THREADS = "plain, all threads"
WARM_UP_STEPS = 2  # caches and the allocator


class Process:
    """A process that trains in one way for as many seconds as it is told."""

    def __init__(self, way: str, subject: Subject) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, way, subject))
        ours = way in ("fp32", "bf16")
        with large_pages() if ours else nullcontext():
            self._process.start()
        other.close()  # so that the end of the process is the end of the pipe
        self._ready = False

    def wait(self) -> None:
        """Wait until it has started and warmed up."""
        if not self._ready:
            self._pipe.recv()
            self._ready = True

    def begin(self, what: str, seconds: float) -> None:
        """Start a turn: of ``TRAINING``, or of matrix products in a precision."""
        self.wait()
        self._pipe.send((what, seconds))

    def result(self) -> float:
        """Return the rate of the turn, when it has ended."""
        return float(self._pipe.recv())

    def close(self) -> None:
        """End the process."""
        self.wait()
        self._pipe.send((TRAINING, 0.0))
        self._process.join()


def together(processes: list[Process], seconds: float, *, what: str = TRAINING) -> float:
    """Return the rate of several processes that take their turn at the same time."""
    for process in processes:
        process.begin(what, seconds)
    return sum(process.result() for process in processes)


class CpuWays:
    """The plain loop with one thread and with all, ours alone, and ours on every core."""

    def __init__(self, subject: Subject) -> None:
        cores = num_cores()
        self.gang = cores
        kinds = ["plain", PLAIN_ALL_THREADS, "fp32", "bf16"]
        self._single = {kind: Process(kind, subject) for kind in kinds}
        self._more = {
            kind: [Process(kind, subject) for _ in range(cores - 1)] for kind in ("fp32", "bf16")
        }
        self.ways: dict[str, Callable[[float], float]] = {
            kind: lambda seconds, one=process: together([one], seconds)  # type: ignore[misc]
            for kind, process in self._single.items()
        }
        for kind, more in self._more.items():
            crew = [self._single[kind], *more]
            self.ways[f"{kind} together"] = lambda seconds, crew=crew: together(crew, seconds)  # type: ignore[misc]

        for process in self._all():  # before any takes its turn, so that none is disturbed
            process.wait()

    def peaks(self, seconds: float) -> dict[str, float]:
        """Return the FLOPs a second of matrix products on all cores, by precision."""
        crew = [self._single["fp32"], *self._more["fp32"]]
        return {kind: together(crew, seconds, what=kind) for kind in ("fp32", "bf16")}

    def close(self) -> None:
        """End every process."""
        for process in self._all():
            process.close()

    def _all(self) -> list[Process]:
        return [*self._single.values(), *chain(*self._more.values())]


def _serve(pipe: "Connection[object, tuple[str, float]]", way: str, subject: Subject) -> None:
    if way == PLAIN_ALL_THREADS:
        _take_turns(pipe, _steps("plain", subject))
    else:
        with one_thread():
            _take_turns(pipe, _steps(way, subject))


def _take_turns(pipe: "Connection[object, tuple[str, float]]", steps: Iterator[float]) -> None:
    for _ in range(WARM_UP_STEPS):
        next(steps)
    pipe.send("ready")
    while (turn := pipe.recv())[1]:
        what, seconds = turn
        if what == TRAINING:
            pipe.send(rate(steps, seconds=seconds))
        else:
            precision: Precision = "bf16" if what == "bf16" else "fp32"
            pipe.send(rate(matrix_products(precision), seconds=seconds))
    # Ends a DataLoader's workers before the interpreter does.
    steps.close()  # type: ignore[attr-defined]


def _steps(way: str, subject: Subject) -> Iterator[float]:
    if way == "plain":
        dataset = subject.dataset()
        torch.manual_seed(0)
        return (float(n) for n in plain_steps(build(subject.model(dataset)), dataset))
    return our_steps(our_training(subject, "bf16" if way == "bf16" else "fp32"))
