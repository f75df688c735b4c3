"""A worker process: started once, does one job after another.

It talks over one pipe. From its parent come bytes: ``STOP``, or a pickled job. To its parent go
``Ready`` once, and the messages of its jobs. A thread listens to the pipe; when the parent is gone
(even by kill -9) the pipe ends, and the worker ends at once: what it had not stored it had not
done, and its lock is free.
"""

import faulthandler
import os
import pickle
import queue
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from regrow.core.registry import load_file
from regrow.errors import RegrowError
from regrow.jobs.base import Job
from regrow.run.execute import Ended, Settings, execute, one_thread
from regrow.store import Store

STOP = b""


@dataclass(frozen=True)
class Ready:
    """The worker has started; with an error when it has not."""

    error: str = ""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The facts about the starting process that a worker needs."""

    store: Path
    files: tuple[Path, ...]  # what the user gave with --with
    settings: Settings
    last_words: Path | None = None  # where it writes what it did when a signal ends it


def work(pipe: "Connection[object, bytes]", origin: Origin) -> None:
    """Serve as a worker until the pipe ends; the target of the process."""
    # The parent alone decides what Ctrl-C and SIGTERM mean, also when the whole group gets them.
    # It blocked both before the start, so that none comes in between.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM))

    if origin.last_words is not None:
        faulthandler.enable(origin.last_words.open("w"), all_threads=False)

    def send(message: object) -> None:
        try:
            pipe.send(message)
        except OSError:  # the parent is gone; not an error of the job that speaks
            os._exit(1)

    try:
        for file in origin.files:
            load_file(file)
        store = Store.open(origin.store, create=False)
    except RegrowError as error:
        send(Ready(str(error)))
        return
    stopping = threading.Event()
    jobs: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(pipe, jobs, stopping), daemon=True).start()
    send(Ready())
    with one_thread():
        while True:
            send(_do(jobs.get(), store, origin.settings, send, stopping.is_set))


def _do(
    packed: bytes,
    store: Store,
    settings: Settings,
    send: Callable[[object], None],
    stopping: Callable[[], bool],
) -> Ended:
    try:
        job: Job = pickle.loads(packed)
    except Exception as error:
        return Ended("failed", message=f"Cannot send this job to a worker process: {error}")
    return execute(job, store, settings, report=send, stopping=stopping)


def _listen(
    pipe: "Connection[object, bytes]",
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
