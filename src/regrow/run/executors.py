"""Executors of jobs: this process, its threads or worker processes, behind one interface."""

import multiprocessing
import pickle
import signal
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Protocol

import torch

from regrow.core.registry import loaded_files
from regrow.errors import RegrowError
from regrow.run.execute import (
    Ended,
    Message,
    Settings,
    exact_floats,
    execute,
    held_back,
    large_pages,
    one_thread,
)
from regrow.run.schedule import ScheduledJob
from regrow.run.torchrun import summon
from regrow.run.worker import STOP, Origin, Ready, work
from regrow.store import Store

# How long a thread may take to come to the end of its step, when all is to end.
CLOSE_SECONDS = 10.0

Deliver = Callable[[ScheduledJob, Message], None]


class Crew(Protocol):
    """Takes jobs while it has hands free, and tells what becomes of them."""

    @property
    def num_free(self) -> int:
        """The number of jobs that it would start at once."""

    @property
    def num_busy(self) -> int:
        """The number of jobs under way."""

    def start(self, node: ScheduledJob) -> None:
        """Begin a job; only while ``num_free``."""

    def poll(self, deliver: Deliver, *, seconds: float) -> None:
        """Wait for news, at most so long, and deliver it."""

    def stop(self) -> None:
        """Ask the jobs under way to save and stop; only notes it, so a signal handler may call."""

    def close(self) -> None:
        """End at once, whatever is under way; its checkpoints stay."""


def assemble(num_workers: int, store: Store, settings: Settings) -> Crew:
    """Return a crew of workers, or this process alone if there are to be none.

    Workers are threads where jobs share a device (``settings.together``), else processes.
    """
    if num_workers == 0:
        return _Here(store, settings)
    if settings.together:
        return _Threads(num_workers, store, settings)
    return _Workers(num_workers, store, settings)


class _Here:
    """This process, one job at a time; as rank 0 of several, it has the others help."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self._store = store
        self._settings = settings
        self._node: ScheduledJob | None = None
        self._stopping = False

    @property
    def num_free(self) -> int:
        return 0 if self._node else 1

    @property
    def num_busy(self) -> int:
        return 1 - self.num_free

    def start(self, node: ScheduledJob) -> None:
        self._node = node

    def poll(self, deliver: Deliver, *, seconds: float) -> None:
        node = self._node
        if node is None:
            time.sleep(seconds)
            return
        with one_thread(), exact_floats():
            ended = execute(
                node.job,
                self._store,
                self._settings,
                report=lambda message: deliver(node, message),
                stopping=lambda: self._stopping,
                summon=summon,
            )
        self._node = None
        deliver(node, ended)

    def stop(self) -> None:
        self._stopping = True

    def close(self) -> None:
        self._stopping = True


class _Threads:
    """Threads of this process that share one device, each with a stream of its own on a GPU.

    A replayed step costs little Python, so the interpreter's lock is no hindrance; on a CPU worker
    processes are what is fast.
    """

    def __init__(self, num: int, store: Store, settings: Settings) -> None:
        self._store = store
        self._settings = settings
        self._num = num
        self._num_busy = 0
        self._stopping = False
        self._jobs: SimpleQueue[ScheduledJob | None] = SimpleQueue()
        self._news: SimpleQueue[tuple[ScheduledJob, Message]] = SimpleQueue()
        self._whole_process = ExitStack()
        self._whole_process.enter_context(one_thread())
        self._whole_process.enter_context(exact_floats())
        self._threads = [
            Thread(target=self._serve, name=f"training-{n}", daemon=True) for n in range(num)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def num_free(self) -> int:
        return self._num - self._num_busy

    @property
    def num_busy(self) -> int:
        return self._num_busy

    def start(self, node: ScheduledJob) -> None:
        self._num_busy += 1
        self._jobs.put(node)

    def poll(self, deliver: Deliver, *, seconds: float) -> None:
        with suppress(Empty):
            news = self._news.get(timeout=seconds)
            while True:
                if isinstance(news[1], Ended):
                    self._num_busy -= 1
                deliver(*news)
                news = self._news.get_nowait()

    def stop(self) -> None:
        self._stopping = True

    def close(self) -> None:
        self._stopping = True
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join(timeout=CLOSE_SECONDS)
        self._whole_process.close()

    def _serve(self) -> None:
        # Both are settings of the thread: its processor's handling of denormals, its CUDA stream.
        with one_thread(), _own_stream(self._settings.device):
            while (node := self._jobs.get()) is not None:
                self._news.put((node, self._do(node)))

    def _do(self, node: ScheduledJob) -> Ended:
        try:
            return execute(
                node.job,
                self._store,
                self._settings,
                report=lambda message: self._news.put((node, message)),
                stopping=lambda: self._stopping,
            )
        except BaseException as error:  # the thread goes on, as a process would be replaced
            return Ended("died", message=f"Its thread ended with {type(error).__name__}: {error}")


def _own_stream(device: str) -> AbstractContextManager[object]:
    if not device.startswith("cuda"):
        return nullcontext()
    return torch.cuda.stream(torch.cuda.Stream(device))  # type: ignore[no-untyped-call]


class _Workers:
    """Worker processes, started once; one that dies is replaced."""

    def __init__(self, num: int, store: Store, settings: Settings) -> None:
        self._origin = Origin(store=store.root, files=loaded_files(), settings=settings)
        self._stopping = self._told = False
        self._workers = [_Worker(self._origin) for _ in range(num)]

    @property
    def num_free(self) -> int:
        return sum(worker.ready and worker.node is None for worker in self._workers)

    @property
    def num_busy(self) -> int:
        return sum(worker.node is not None for worker in self._workers)

    def start(self, node: ScheduledJob) -> None:
        next(w for w in self._workers if w.ready and w.node is None).start(node)

    def poll(self, deliver: Deliver, *, seconds: float) -> None:
        if self._stopping and not self._told:
            self._told = True
            for worker in self._workers:
                worker.send(STOP)
        by_pipe = {worker.pipe: worker for worker in self._workers}
        for pipe in wait(list(by_pipe), timeout=seconds):
            worker = by_pipe[pipe]  # type: ignore[index]  # only pipes were given
            try:
                message = worker.pipe.recv()
            except (EOFError, OSError):
                self._replace(worker, deliver)
            else:
                self._hear(worker, message, deliver)

    def stop(self) -> None:
        self._stopping = True

    def close(self) -> None:
        for worker in self._workers:
            worker.close(kill=worker.node is not None or not worker.ready)

    def _hear(self, worker: "_Worker", message: object, deliver: Deliver) -> None:
        if isinstance(message, Ready):
            if message.error:
                raise RegrowError(message.error)
            worker.ready = True
            return
        node = worker.node
        assert node is not None
        if isinstance(message, Ended):
            worker.node = None
        deliver(node, message)  # type: ignore[arg-type]  # workers send nothing else

    def _replace(self, worker: "_Worker", deliver: Deliver) -> None:
        end = how_it_ended(worker.close(kill=True))
        self._workers.remove(worker)
        if not worker.ready:
            raise RegrowError(
                f"A worker process did not start: it {end}. Its own message is above, if it had "
                f"one. A script that calls regrow.run needs `if __name__ == '__main__':` around "
                f"its calls; or use workers=0, which stays in this process."
            )
        if not self._stopping:
            self._workers.append(_Worker(self._origin))
        if worker.node is not None:
            deliver(
                worker.node,
                Ended("died", message=f"Its worker process {end}", traceback=worker.traceback()),
            )


class _Worker:
    """One worker process, seen from its parent."""

    def __init__(self, origin: Origin) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would copy torch's locked threads
        self.pipe: Connection[bytes, object]
        self.pipe, worker_end = context.Pipe()
        self.node: ScheduledJob | None = None
        self.ready = False
        self._last_words = tempfile.NamedTemporaryFile("r", errors="replace")  # noqa: SIM115  # as long as this is
        origin = replace(origin, last_words=Path(self._last_words.name))
        self.process: SpawnProcess = context.Process(target=work, args=(worker_end, origin))
        try:
            # Neither must end the worker before it ignores them.
            with held_back(signal.SIGINT, signal.SIGTERM), large_pages():
                self.process.start()
        finally:
            worker_end.close()

    def start(self, node: ScheduledJob) -> None:
        self.node = node
        self.send(pickle.dumps(node.job))

    def send(self, message: bytes) -> None:
        with suppress(OSError):  # it died; the next poll finds the end of its pipe and tells
            self.pipe.send_bytes(message)

    def traceback(self) -> str:
        """Return what it did when a signal ended it, as far as it could still write that down."""
        self._last_words.seek(0)
        return self._last_words.read()

    def close(self, *, kill: bool) -> int:
        """End the process, and return its exit code; below 0 a signal's number."""
        if kill:
            self.process.kill()
        self.pipe.close()
        self.process.join(timeout=5.0)  # it ends when its pipe does, in milliseconds
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        code = self.process.exitcode or 0
        self.process.close()
        return code


# What compiled code raises against itself, or the processor against it.
CRASHES = ("SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGSEGV", "SIGSYS", "SIGTRAP")


def how_it_ended(code: int) -> str:
    """Word how a process ended, and by what, from its exit code.

    >>> how_it_ended(3)
    'ended without a word (exit code 3)'
    >>> how_it_ended(-15)
    'was ended by SIGTERM'
    """
    if code >= 0:
        return f"ended without a word (exit code {code})"
    known = {int(number): number.name for number in signal.Signals}
    name = known.get(-code, f"signal {-code}")
    if name in CRASHES:
        return (
            f"crashed with {name}, which is a fault in compiled code such as PyTorch's rather than "
            "a lack of memory"
        )
    if name == "SIGKILL":
        return "was killed with SIGKILL, perhaps because memory ran out (then try fewer workers)"
    return f"was ended by {name}"
