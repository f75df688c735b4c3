"""Who does the jobs: this process or worker processes, behind one interface."""

import multiprocessing
import pickle
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Protocol

from regrow.errors import RegrowError
from regrow.registry import loaded_files
from regrow.run.execute import Ended, Message, Settings, execute, one_thread
from regrow.run.schedule import Node
from regrow.run.worker import STOP, Origin, Ready, work
from regrow.store import Store

Deliver = Callable[[Node, Message], None]


class Crew(Protocol):
    """Takes jobs while it has hands free, and tells what becomes of them."""

    @property
    def num_free(self) -> int:
        """How many jobs it would start at once."""

    @property
    def num_busy(self) -> int:
        """How many jobs are under way."""

    def start(self, node: Node) -> None:
        """Begin a job; only while ``num_free``."""

    def poll(self, deliver: Deliver, *, seconds: float) -> None:
        """Wait for news, at most so long, and deliver it."""

    def stop(self) -> None:
        """Ask the jobs under way to save and stop; only notes it, so a signal handler may call."""

    def close(self) -> None:
        """End at once, whatever is under way; its checkpoints stay."""


def assemble(num_workers: int, store: Store, settings: Settings) -> Crew:
    """Return a crew of worker processes, or this process alone if there are to be none."""
    if num_workers == 0:
        return _Here(store, settings)
    return _Workers(num_workers, store, settings)


class _Here:
    """This process, one job at a time."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self._store = store
        self._settings = settings
        self._node: Node | None = None
        self._stopping = False

    @property
    def num_free(self) -> int:
        return 0 if self._node else 1

    @property
    def num_busy(self) -> int:
        return 1 - self.num_free

    def start(self, node: Node) -> None:
        self._node = node

    def poll(self, deliver: Deliver, *, seconds: float) -> None:
        node = self._node
        if node is None:
            time.sleep(seconds)
            return
        with one_thread():
            ended = execute(
                node.job,
                self._store,
                self._settings,
                report=lambda message: deliver(node, message),
                stopping=lambda: self._stopping,
            )
        self._node = None
        deliver(node, ended)

    def stop(self) -> None:
        self._stopping = True

    def close(self) -> None:
        self._stopping = True


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

    def start(self, node: Node) -> None:
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
        end = worker.close(kill=True)
        self._workers.remove(worker)
        if not worker.ready:
            raise RegrowError(
                f"A worker process did not start ({end}). Its own message is above, if it had "
                f"one. A script that calls regrow.run needs `if __name__ == '__main__':` around "
                f"its calls; or use workers=0, which stays in this process."
            )
        if not self._stopping:
            self._workers.append(_Worker(self._origin))
        if worker.node is not None:
            deliver(worker.node, Ended("died", message=end))


class _Worker:
    """One worker process, seen from its parent."""

    def __init__(self, origin: Origin) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would copy torch's locked threads
        self.pipe: Connection[bytes, object]
        self.pipe, theirs = context.Pipe()
        self.node: Node | None = None
        self.ready = False
        self.process: SpawnProcess = context.Process(target=work, args=(theirs, origin))
        # Inherited: Ctrl-C while the worker starts must not end it before it ignores the signal.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()

    def start(self, node: Node) -> None:
        self.node = node
        self.send(pickle.dumps(node.job))

    def send(self, message: bytes) -> None:
        with suppress(OSError):  # it died; the next poll finds the end of its pipe and tells
            self.pipe.send_bytes(message)

    def close(self, *, kill: bool) -> str:
        """End the process, and say how it ended."""
        if kill:
            self.process.kill()
        self.pipe.close()
        self.process.join(timeout=5.0)  # it ends when its pipe does, in milliseconds
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        code = self.process.exitcode or 0
        self.process.close()
        return f"killed by signal {-code}" if code < 0 else f"exit code {code}"
