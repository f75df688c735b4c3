"""Worker processes, which run one job after another; both ends of their pipes.

A worker that owns a GPU has several hands: threads that share it (``executors.threads``).

A worker receives bytes from its parent: ``STOP``, or a job's key and the job as JSON. It sends JSON
to its parent: ``READY`` once, and the messages of its jobs with their keys. A thread reads the
pipe. When the parent dies (even by kill -9), the pipe closes and the worker ends at once: a job
that it has not stored counts as not done, and its lock is released.
"""

import faulthandler
import json
import multiprocessing
import os
import queue
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from multiprocessing.resource_tracker import ensure_running
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from regrow.core.registry import load_file, loaded_files
from regrow.core.source import expecting
from regrow.errors import RegrowError
from regrow.jobs.as_json import job_from_json, job_to_json
from regrow.jobs.base import Job
from regrow.run.executors import (
    Deliver,
    Ended,
    Executor,
    Message,
    Settings,
    execute,
    half_of,
    message_from_json,
    message_to_json,
    one_thread,
    threads,
)
from regrow.run.troubles import MemoryKills, how_it_ended, trouble_of_end
from regrow.store import Store

STOP = b""
READY = "ready"
Send = Callable[[str, str, Mapping[str, Any]], None]  # a job's key, a message's name and fields
HAND_SECONDS = 0.05  # how long a new job may wait although a thread is free
WARNINGS = "PYTHONWARNINGS"  # read by Python when a process starts
NO_LEAKS = "ignore::UserWarning:multiprocessing.resource_tracker"
# Signals that only the parent handles, although the whole process group may get them: SLURM signals
# every process of a step, and an unhandled signal would end the process.
OF_THE_PARENT = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
TUNABLES = "GLIBC_TUNABLES"  # read by the C library when a process starts
ALLOCATOR = ":".join(
    f"glibc.malloc.{setting}"
    for setting in ("hugetlb=1", "mmap_max=0", f"trim_threshold={2**31 - 1}", f"top_pad={2**26}")
)


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The facts about the starting process that a worker needs."""

    store: Path
    files: tuple[Path, ...]  # of --with
    settings: Settings
    num_hands: int = 1
    last_words: Path | None = None  # file for its traceback if a signal ends it


def work(pipe: "Connection[bytes, bytes]", origin: Origin) -> None:
    """Serve as a worker until the pipe ends; the target of the process."""
    # The parent blocked them before the start, so that none arrives before they are ignored.
    for number in OF_THE_PARENT:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, OF_THE_PARENT)

    if origin.last_words is not None:
        faulthandler.enable(origin.last_words.open("w"), all_threads=False)

    def send(key: str, name: str, content: Mapping[str, Any]) -> None:
        try:
            pipe.send_bytes(json.dumps([key, name, content]).encode())
        except OSError:  # the parent is gone; not an error of the job that sends
            os._exit(1)

    with ExitStack() as stack:
        try:
            stack.enter_context(expecting(origin.settings.read))
            for file in origin.files:
                load_file(file)
            store = Store.open(origin.store, create=False)
        except RegrowError as error:
            send("", READY, {"error": str(error)})
            return
        _serve(pipe, origin, store, send)


def _serve(pipe: "Connection[bytes, bytes]", origin: Origin, store: Store, send: Send) -> NoReturn:
    """Run the jobs that arrive, until the process is ended."""
    stopping = threading.Event()
    jobs: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(pipe, jobs, stopping), daemon=True).start()
    send("", READY, {"error": ""})
    if origin.settings.together:
        _share(origin, store, jobs, send, stopping.is_set)
    with one_thread():
        while True:
            job = _unpack(jobs.get(), send)
            if job is not None:
                report = partial(_tell, send, job.key)
                settings = origin.settings
                report(execute(job, store, settings, report=report, stopping=stopping.is_set))


def _share(
    origin: Origin,
    store: Store,
    jobs: "queue.SimpleQueue[bytes]",
    send: Send,
    stopping: Callable[[], bool],
) -> NoReturn:
    """Run jobs in threads that share a device, until the process is ended."""
    hands = threads(origin.num_hands, store, origin.settings)
    while True:
        with suppress(queue.Empty):
            while hands.num_free:
                # If idle, wait for a job; else go on to the threads' messages.
                packed = jobs.get(block=hands.num_busy == 0)
                job = _unpack(packed, send)
                if job is not None:
                    hands.start(job)
        if stopping():
            hands.stop()
        hands.poll(lambda job, message: _tell(send, job.key, message), seconds=HAND_SECONDS)


def _tell(send: Send, key: str, message: Message) -> None:
    send(key, *message_to_json(message))


def _unpack(packed: bytes, send: Send) -> Job | None:
    """Read a job; if it cannot be read, report it as failed and return None."""
    key, text = json.loads(packed)
    try:
        return job_from_json(text, key=key)
    except Exception as error:
        message = f"A worker process cannot run this job: {error}"
        _tell(send, key, Ended("failed", message=message))
        return None


def _listen(
    pipe: "Connection[bytes, bytes]",
    jobs: "queue.SimpleQueue[bytes]",
    stopping: threading.Event,
) -> None:
    while True:
        try:
            received = pipe.recv_bytes()
        except (EOFError, OSError):
            os._exit(0)
        if received == STOP:
            stopping.set()
        else:
            jobs.put(received)


@contextmanager
def large_pages() -> Iterator[None]:
    """Make processes started inside keep the memory that they free, and allocate large pages.

    A training step frees and allocates the same feature maps again; by default the C library
    returns the memory to the system each time. With that default, steps of ResNet-56 took 1.25
    times as long, of PreResNet-164 1.1 times (bf16, one thread of a 2-core Xeon, torch 2.15, glibc
    2.36). Other C libraries do not read the variable; if the user has set it, it is left unchanged.
    """
    if TUNABLES in os.environ:
        yield
        return
    os.environ[TUNABLES] = ALLOCATOR
    try:
        yield
    finally:
        del os.environ[TUNABLES]


@contextmanager
def _hidden_script() -> Iterator[None]:
    """Make processes started inside not import the script that this one runs.

    Importing it would repeat its calls unless they are guarded by ``if __name__ == "__main__"``.
    """
    script = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script


@contextmanager
def _silent_tracker() -> Iterator[None]:
    """Silence leak warnings of multiprocessing's resource tracker, if it starts inside.

    A worker ends at once when its parent does, and leaves locks of libraries (such as progress
    bars) to the tracker, whose warning is of no use to a user.
    """
    before = os.environ.get(WARNINGS)
    os.environ[WARNINGS] = ",".join(filter(None, [before, NO_LEAKS]))
    try:
        yield
    finally:
        os.environ.pop(WARNINGS)
        if before is not None:
            os.environ[WARNINGS] = before


@contextmanager
def held_back(*signals: signal.Signals) -> Iterator[None]:
    """Block signals; processes that are started inside block them until they unblock them.

    Ctrl-C at a terminal goes to every process of the command, also to one that is still starting.
    """
    with _silent_tracker():
        ensure_running()  # starts the tracker's process now, because that unblocks signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def worker_processes(num: int, store: Store, settings: Settings) -> Executor:
    """Start worker processes that run jobs of a store."""
    return _Workers([_origin(store, settings)] * num)


def device_workers(
    devices: Sequence[str], num_hands: int, store: Store, settings: Settings
) -> Executor:
    """Start a worker process for each device, whose threads share it."""
    shared = replace(settings, together=True)
    return _Workers(
        [
            replace(_origin(store, replace(shared, device=device)), num_hands=num_hands)
            for device in devices
        ]
    )


def _origin(store: Store, settings: Settings) -> Origin:
    return Origin(store=store.root, files=loaded_files(), settings=settings)


class _Workers:
    """Worker processes; one that dies is replaced, unless their number has been reduced."""

    def __init__(self, origins: Sequence[Origin]) -> None:
        self._stopping = self._told = False
        self._most = sum(origin.num_hands for origin in origins)
        self._memory_kills = MemoryKills()
        self._workers = [_Worker(origin) for origin in origins]

    @property
    def num_free(self) -> int:
        idle = sum(worker.num_free for worker in self._workers)
        return min(idle, max(0, self._most - self.num_busy))

    @property
    def num_busy(self) -> int:
        return sum(len(worker.jobs) for worker in self._workers)

    def start(self, job: Job) -> None:
        max(self._workers, key=lambda worker: worker.num_free).start(job)

    def poll(self, deliver: Deliver, *, seconds: float) -> None:
        if self._stopping and not self._told:
            self._told = True
            for worker in self._workers:
                worker.send(STOP)
        by_pipe = {worker.pipe: worker for worker in self._workers}
        for pipe in wait(list(by_pipe), timeout=seconds):
            worker = by_pipe[pipe]  # type: ignore[index]  # only pipes were given
            try:
                message = worker.pipe.recv_bytes()
            except (EOFError, OSError):
                self._replace(worker, deliver)
            else:
                self._hear(worker, message, deliver)

    def narrow(self) -> int | None:
        fewer = half_of(self._most, self.num_busy)
        if fewer is not None:
            self._most = fewer
            self._close_surplus()
        return fewer

    def stop(self) -> None:
        self._stopping = True

    def close(self) -> None:
        for worker in self._workers:
            worker.close(kill=bool(worker.jobs) or not worker.ready)

    def _hear(self, worker: "_Worker", message: bytes, deliver: Deliver) -> None:
        key, name, content = json.loads(message)
        if name == READY:
            if content["error"]:
                raise RegrowError(content["error"])
            worker.ready = True
            return
        job, told = worker.jobs[key], message_from_json(name, content)
        if isinstance(told, Ended):
            del worker.jobs[key]
            self._close_surplus()
        deliver(job, told)

    def _replace(self, worker: "_Worker", deliver: Deliver) -> None:
        code = worker.close(kill=True)
        for_memory = code == -signal.SIGKILL and self._memory_kills.is_new()
        end = how_it_ended(code, killed_for_memory=for_memory)
        self._workers.remove(worker)
        if not worker.ready:
            raise RegrowError(
                f"A worker process did not start: it {end}. Its own message is above, if it had "
                f"one. A script that calls regrow.run, or registers parts of its own and calls "
                f"regrow.run_study or regrow.compare, needs `if __name__ == '__main__':` around "
                f"its calls; or use workers=0, which stays in this process."
            )
        if not self._stopping and self._num_hands < self._most:
            self._workers.append(_Worker(worker.origin))
        died = Ended(
            "died",
            message=f"Its worker process {end}",
            traceback=worker.traceback,
            trouble=trouble_of_end(code, killed_for_memory=for_memory),
        )
        for job in worker.jobs.values():
            deliver(job, died)

    @property
    def _num_hands(self) -> int:
        return sum(worker.origin.num_hands for worker in self._workers)

    def _close_surplus(self) -> None:
        """End idle workers beyond the maximum, to free memory."""
        for worker in [worker for worker in self._workers if not worker.jobs]:
            if self._num_hands - worker.origin.num_hands >= self._most:
                self._workers.remove(worker)
                worker.close(kill=not worker.ready)


class _Worker:
    """One worker process, seen from its parent."""

    def __init__(self, origin: Origin) -> None:
        # Not a fork, which would copy locks held by torch's threads.
        context = multiprocessing.get_context("spawn")
        self.pipe: Connection[bytes, bytes]
        self.pipe, worker_end = context.Pipe()
        self.origin = origin
        self.jobs: dict[str, Job] = {}
        self.ready = False
        self.traceback = ""  # set on closing: its traceback if a signal ended it
        self._last_words = tempfile.NamedTemporaryFile("r", errors="replace")  # noqa: SIM115  # closed in close()
        origin = replace(origin, last_words=Path(self._last_words.name))
        self.process: SpawnProcess = context.Process(target=work, args=(worker_end, origin))
        try:
            # Signals are blocked, so that none ends the worker before it ignores them.
            script = nullcontext() if origin.settings.script_again else _hidden_script()
            with held_back(*OF_THE_PARENT), large_pages(), script:
                self.process.start()
        finally:
            worker_end.close()

    @property
    def num_free(self) -> int:
        return self.origin.num_hands - len(self.jobs) if self.ready else 0

    def start(self, job: Job) -> None:
        text = job_to_json(job)
        self.jobs[job.key] = job
        self.send(json.dumps([job.key, text]).encode())

    def send(self, message: bytes) -> None:
        with suppress(OSError):  # it died; the next poll notices the closed pipe
            self.pipe.send_bytes(message)

    def close(self, *, kill: bool) -> int:
        """End the process and return its exit code, below 0 for a signal."""
        if kill:
            self.process.kill()
        self.pipe.close()
        self.process.join(timeout=5.0)  # it ends within milliseconds of its pipe closing
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        code = self.process.exitcode or 0
        self.process.close()
        with self._last_words as file:
            self.traceback = file.read()
        return code
