"""Training variants on a CPU, each in its own process that waits for its turn."""

import multiprocessing
import signal
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from multiprocessing.connection import Connection

import torch

from regrow.bench.material import Subject
from regrow.bench.measuring import OURS, matrix_products, our_steps, our_training, rate
from regrow.bench.plain import plain_steps
from regrow.models import build
from regrow.run import num_cores
from regrow.run.executors import one_thread
from regrow.run.precision import HOPELESS, is_native, measured
from regrow.run.worker import held_back, large_pages
from regrow.train import Precision

TRAINING = "training"
PLAIN_ALL_THREADS = "plain, all threads"
WARM_UP_STEPS = 2  # caches and the allocator


class Process:
    """A process that trains in one way, for a given number of seconds per turn."""

    def __init__(self, way: str, subject: Subject) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, remote = context.Pipe()
        self._process = context.Process(target=_serve, args=(remote, way, subject))
        with large_pages() if way in OURS else nullcontext():
            self._process.start()
        remote.close()  # so that the pipe closes when the process ends
        self._ready = False
        self._busy = False

    def wait(self) -> None:
        """Wait until it has started and warmed up."""
        if not self._ready:
            self._pipe.recv()
            self._ready = True

    def begin(self, work: str, seconds: float) -> None:
        """Start a turn: of ``TRAINING``, or of matrix products in a precision."""
        self.wait()
        self._busy = True
        self._pipe.send((work, seconds))

    def result(self) -> float:
        """Return the rate of the turn, when it has ended."""
        images_per_second = float(self._pipe.recv())
        self._busy = False
        return images_per_second

    def close(self) -> None:
        """End the process: cleanly if it waits for a turn, otherwise by killing it."""
        if self._ready and not self._busy:
            self._pipe.send((TRAINING, 0.0))
        else:
            self._process.kill()
        self._process.join()


def together(processes: list[Process], seconds: float, *, work: str = TRAINING) -> float:
    """Return the total rate of several processes that take their turn at the same time."""
    for process in processes:
        process.begin(work, seconds)
    return sum(process.result() for process in processes)


def hopeless() -> dict[str, str]:
    """Return the precision that is too slow on this processor to measure, and why, if any."""
    if is_native() or measured().times < HOPELESS:
        return {}
    return {"bf16": f"{measured()}, {measured().times:.0f} times as long"}


class CpuWays:
    """The plain loop with one thread and with all, ours alone, and ours on every core."""

    def __init__(self, subject: Subject, precision: Precision | None = None) -> None:
        self.num_together = num_cores()
        self.left_out = hopeless() if precision is None else {}
        self._kept = [
            way
            for way, how in OURS.items()
            if how.precision not in self.left_out and precision in (None, how.precision)
        ]
        self.ways: dict[str, Callable[[float], float]] = {}
        self._processes: list[Process] = []
        self._by_way: dict[str, list[Process]] = {}
        try:
            with held_back(signal.SIGINT):  # inherited by these processes: Ctrl-C is not for them
                self._start(subject)
            for process in self._processes:  # before any turn, so that no turn is disturbed
                process.wait()
        except BaseException:
            self.close()
            raise

    def peaks(self, seconds: float) -> dict[str, float]:
        """Return the FLOPs per second of matrix products on all cores, by precision."""
        processes = next(iter(self._by_way.values()))
        precisions = dict.fromkeys(OURS[way].precision for way in self._by_way)
        return {kind: together(processes, seconds, work=kind) for kind in precisions}

    def close(self) -> None:
        """End every process."""
        for process in self._processes:
            process.close()

    def _start(self, subject: Subject) -> None:
        for kind in ("plain", PLAIN_ALL_THREADS):
            self._add(kind, self._start_processes(kind, subject, num=1))
        for kind in self._kept:
            self._by_way[kind] = self._start_processes(kind, subject, num=self.num_together)
            self._add(kind, self._by_way[kind][:1])
        for kind, processes in self._by_way.items():
            self._add(f"{kind} together", processes)

    def _start_processes(self, kind: str, subject: Subject, *, num: int) -> list[Process]:
        processes = [Process(kind, subject) for _ in range(num)]
        self._processes += processes
        return processes

    def _add(self, way: str, processes: list[Process]) -> None:
        self.ways[way] = lambda seconds: together(processes, seconds)


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
        work, seconds = turn
        if work == TRAINING:
            pipe.send(rate(steps, seconds=seconds))
        else:
            precision: Precision = "bf16" if work == "bf16" else "fp32"
            pipe.send(rate(matrix_products(precision), seconds=seconds))
    # Ends a DataLoader's workers before the interpreter does.
    steps.close()  # type: ignore[attr-defined]


def _steps(way: str, subject: Subject) -> Iterator[float]:
    if way == "plain":
        dataset = subject.dataset()
        torch.manual_seed(0)
        return (float(n) for n in plain_steps(build(subject.model(dataset)), dataset))
    return our_steps(our_training(subject, way))
