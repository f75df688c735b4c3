"""Executors of jobs: this process, one job after another, or several of its threads.

Every job runs in the same way everywhere (``execute``), also in worker processes (``run.worker``).
"""

import os
import platform
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, Literal, Protocol

import torch

from regrow.core.disk import why
from regrow.core.distributed import ALONE, Ranks, lost, own_device
from regrow.core.energy import Counters, EnergyMeter, counters, metered
from regrow.core.global_rng import drawing
from regrow.core.machine import machine, versions
from regrow.core.seeds import derive
from regrow.core.source import Digests
from regrow.errors import (
    ClaimLost,
    CodeError,
    EditedFileError,
    Interrupted,
    RanksLost,
    RegrowError,
    StoreError,
    TrainingError,
)
from regrow.jobs.base import Context, Job, Notice, Outcome, Progress
from regrow.run.troubles import Trouble, trouble_of
from regrow.store import Store
from regrow.store.workspace import Workspace

# How long a thread may take to finish its step when the executor is closed.
CLOSE_SECONDS = 10.0
# Errors of the environment, not of the job, whose checkpoint is therefore kept.
ENVIRONMENT = (OSError, MemoryError, StoreError, EditedFileError)
LOG_SECONDS = 5.0  # between two progress lines of a job's log
SEVERAL_RANKS = Counters(unknown="several ranks trained it, which share counters")


@dataclass(frozen=True)
class Ended:
    """The end of the work on a job.

    Attributes:
        status: "reused": another run has done it; "held": another run is working on it; "stopped":
            on request, so that it can be resumed; "died": its process ended without reporting.
        message, traceback: the error; for "died", how the process ended and what it was doing.
        fault: "code": a user's function is wrong; "training": a training produced no usable
            numbers.
        trouble: whether the cause of a failure or death may be temporary (``run.troubles``).
    """

    status: Literal["done", "reused", "held", "failed", "stopped", "died"]
    seconds: float = 0.0
    message: str = ""
    traceback: str = ""
    fault: Literal["", "code", "training"] = ""
    trouble: Trouble = ""


Message = Progress | Notice | Ended
Deliver = Callable[[Job, Message], None]
_BY_NAME: dict[str, type[Message]] = {
    kind.__name__.lower(): kind for kind in (Progress, Notice, Ended)
}


def message_to_json(message: Message) -> tuple[str, dict[str, Any]]:
    """Return the name of a message's type, and its fields as JSON values.

    >>> message_to_json(Notice("slow"))
    ('notice', {'message': 'slow'})
    """
    return type(message).__name__.lower(), dict(vars(message))


def message_from_json(name: str, content: Mapping[str, Any]) -> Message:
    """Return the message with this type name and these fields."""
    return _BY_NAME[name](**content)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings that all jobs of a run share.

    Attributes:
        read: the ``read_digests`` of the process that made the jobs and so their keys.
    """

    device: str
    checkpoint_seconds: float
    together: bool = False  # several jobs at once in one process
    script_again: bool = True  # worker processes import the script that started them
    read: Digests = field(default_factory=dict)


Summon = Callable[[Job, Settings], Ranks]


def alone(job: Job, settings: Settings) -> Ranks:
    """Return that this process runs a job alone, without other ranks."""
    return ALONE


def execute(
    job: Job,
    store: Store,
    settings: Settings,
    *,
    report: Callable[[Progress | Notice], None],
    stopping: Callable[[], bool],
    summon: Summon = alone,
) -> Ended:
    """Run a job and store its result or its failure; return how it ended.

    Errors of the job are returned, not raised. ``summon`` lets other ranks run the job too, and
    returns the ranks that do. With several ranks, an error that is not a ``RegrowError`` is raised
    as ``RanksLost``, because the other ranks may be waiting for this one anywhere.
    """
    try:
        with store.claim(job.key) as workspace:
            if workspace is None:
                return Ended("held")
            if store.has(job.key):
                return Ended("reused")
            store.forgive(job.key)
            log = JobLog(job, store, report, device=settings.device)
            ended = _do(
                job,
                store,
                workspace,
                settings=settings,
                report=log.report,
                stopping=stopping,
                summon=summon,
            )
            log.end(ended)
            return ended
    except (StoreError, OSError) as error:  # the store itself cannot be written
        return Ended("failed", message=why(error, store.root), trouble=trouble_of(error))


def _do(
    job: Job,
    store: Store,
    workspace: Workspace,
    *,
    settings: Settings,
    report: Callable[[Progress | Notice], None],
    stopping: Callable[[], bool],
    summon: Summon,
) -> Ended:
    report(Progress(0.0))
    ranks = summon(job, settings)
    meter = EnergyMeter(SEVERAL_RANKS if ranks.together else counters(settings.device))
    context = Context(
        job,
        store,
        workspace,
        ranks=ranks,
        device=own_device(settings.device),
        checkpoint_seconds=settings.checkpoint_seconds,
        report=report,
        stopping=stopping,
        meter=meter,
    )
    try:
        with metered(meter), own_randomness(job, settings):
            outcome = job.run(context)
        record = _record(job, outcome, context, device=settings.device)
        store.commit(job.key, record, outcome.tensors, parts=outcome.parts)
    except RanksLost:
        raise
    except Interrupted:
        return Ended("stopped", context.seconds)
    except ClaimLost:
        return Ended("held")
    except Exception as error:
        if workspace.is_lost():  # it may have failed because another process took its files
            return Ended("held")
        if ranks.together and not isinstance(error, RegrowError):
            raise lost(error) from error
        return _failed(job, error, store=store, workspace=workspace)
    return Ended("done", context.seconds)


class JobLog:
    """Writes a job's messages to its log in the store, and passes them on to the run."""

    def __init__(
        self, job: Job, store: Store, tell: Callable[[Progress | Notice], None], *, device: str
    ) -> None:
        self._key = job.key
        self._store = store
        self._tell = tell
        self._note = ""
        self._next = 0.0
        self._resumed = False
        place = f"{platform.node()}, process {os.getpid()}, on {device}"
        self._add(f"{job.label}: started by {place}; {versions()}")

    def report(self, message: Progress | Notice) -> None:
        """Pass a job's message on, and log notices, resuming and, now and then, progress."""
        if isinstance(message, Notice):
            self._add(message.message)
        elif message.resumed_at and not self._resumed:
            self._resumed = True
            self._add(f"resumed at {message.resumed_at:.0%}")
        elif message.note != self._note and time.monotonic() >= self._next:
            self._note = message.note
            self._next = time.monotonic() + LOG_SECONDS
            share = f" ({message.fraction:.0%})" if message.fraction else ""  # 0: not known
            self._add(f"{message.note}{share}")
        self._tell(message)

    def end(self, ended: Ended) -> None:
        """Log how it ended, for a failure with message and traceback."""
        parts = [f"{ended.status} after {ended.seconds:.1f} s", ended.message, ended.traceback]
        self._add("\n".join(filter(None, parts)) if ended.message else parts[0])

    def _add(self, text: str) -> None:
        self._store.log(self._key, text)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread and flush denormals to zero, as every job does.

    So results are bitwise equal. One thread per training and one process per core is also the
    fastest use of a CPU here.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(before)


@contextmanager
def exact_floats() -> Iterator[None]:
    """Compute float32 exactly on a GPU: without TF32, which convolutions use by default."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def own_randomness(job: Job, settings: Settings) -> AbstractContextManager[None]:
    """Run a job with its own global random state, whatever ran before it in this process.

    A training in a thread beside others needs none: it draws from the global generators only within
    ``drawing``. Jobs that train nothing are short, so they hold the generators' lock throughout.
    """
    if settings.together and job.flops > 0:
        return nullcontext()
    return drawing(derive(0, "job", job.key))


def _record(job: Job, outcome: Outcome, context: Context, *, device: str) -> dict[str, Any]:
    timing: Mapping[str, Any] = outcome.record.get("timing", {})
    return {
        **outcome.record,
        "kind": job.kind,
        "spec": job.spec,
        "inputs": [before.key for before in job.inputs],
        "timing": {
            **timing,
            "seconds": round(context.seconds, 3),
            "energy": context.meter.total.to_json(),
            "machine": machine() if device == "cpu" else f"{_name_of(device)}, {machine()}",
            "versions": versions(),
        },
    }


def _name_of(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def _failed(job: Job, error: Exception, *, store: Store, workspace: Workspace) -> Ended:
    told = why(error, store.root) if isinstance(error, OSError) else f"{error}"
    message = told if isinstance(error, RegrowError) else f"{type(error).__name__}: {told}"
    trouble, trace = trouble_of(error), _traceback(error)
    if not (isinstance(error, ENVIRONMENT) or trouble):
        workspace.drop_checkpoint()
    try:
        store.fail(job.key, job.spec, message=message, traceback=trace, may_pass=bool(trouble))
    except StoreError as second:  # e.g. a full disk: both errors are reported
        message = f"{message} ({second})"
    return Ended(
        "failed",
        message=message,
        traceback=trace,
        fault=_fault_of(error),
        trouble=trouble,
    )


def _fault_of(error: Exception) -> Literal["", "code", "training"]:
    if isinstance(error, CodeError):
        return "code"
    return "training" if isinstance(error, TrainingError) else ""


def _traceback(error: Exception) -> str:
    return "".join(traceback.format_exception(error))


class Executor(Protocol):
    """Runs jobs while it has free workers, and delivers their messages."""

    @property
    def num_free(self) -> int:
        """The number of further jobs that it can start now."""

    @property
    def num_busy(self) -> int:
        """The number of running jobs."""

    def start(self, job: Job) -> None:
        """Start a job; only if ``num_free`` is above 0."""

    def poll(self, deliver: Deliver, *, seconds: float) -> None:
        """Wait for messages, for at most so many seconds, and deliver them."""

    def narrow(self) -> int | None:
        """Run half as many jobs at once from now on; return how many, or None if it was one."""

    def stop(self) -> None:
        """Ask running jobs to save and stop; only sets a flag, so safe in a signal handler."""

    def close(self) -> None:
        """End at once, even with jobs running; their checkpoints stay."""


# Makes an executor of jobs with so many workers; None: as many as there is room for.
Platform = Callable[[Sequence[Job], Store, Settings, int | None], Executor]


def half_of(most: int, others: int) -> int | None:
    """Return half the number of concurrent jobs, after one ran out of memory; None if it was alone.

    >>> half_of(8, 7), half_of(8, 2), half_of(8, 0), half_of(1, 0)
    (4, 1, None, None)
    """
    together = min(most, others + 1)
    return None if together == 1 else together // 2


def here(store: Store, settings: Settings, *, summon: Summon = alone) -> Executor:
    """Return an executor in this process; as rank 0, it calls on the other ranks (``summon``)."""
    return _Here(store, settings, summon)


def threads(num: int, store: Store, settings: Settings) -> Executor:
    """Return an executor of threads of this process, for jobs that share a device."""
    return _Threads(num, store, settings)


class _Here:
    """This process, one job at a time."""

    def __init__(self, store: Store, settings: Settings, summon: Summon) -> None:
        self._store = store
        self._settings = settings
        self._summon = summon
        self._job: Job | None = None
        self._stopping = False

    @property
    def num_free(self) -> int:
        return 0 if self._job else 1

    @property
    def num_busy(self) -> int:
        return 1 - self.num_free

    def start(self, job: Job) -> None:
        self._job = job

    def poll(self, deliver: Deliver, *, seconds: float) -> None:
        job = self._job
        if job is None:
            time.sleep(seconds)
            return
        with one_thread(), exact_floats():
            ended = execute(
                job,
                self._store,
                self._settings,
                report=lambda message: deliver(job, message),
                stopping=lambda: self._stopping,
                summon=self._summon,
            )
        self._job = None
        deliver(job, ended)

    def narrow(self) -> int | None:
        return None

    def stop(self) -> None:
        self._stopping = True

    def close(self) -> None:
        self._stopping = True


class _Threads:
    """Threads of this process that share one device, on a GPU each with its own stream.

    A replayed CUDA graph needs little Python, so the GIL is no bottleneck; on a CPU, worker
    processes are faster.
    """

    def __init__(self, num: int, store: Store, settings: Settings) -> None:
        self._store = store
        self._settings = settings
        self._most = num
        self._num_busy = 0
        self._stopping = False
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._news: SimpleQueue[tuple[Job, Message]] = SimpleQueue()
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
        return max(0, self._most - self._num_busy)

    @property
    def num_busy(self) -> int:
        return self._num_busy

    def start(self, job: Job) -> None:
        self._num_busy += 1
        self._jobs.put(job)

    def poll(self, deliver: Deliver, *, seconds: float) -> None:
        with suppress(Empty):
            news = self._news.get(timeout=seconds)
            while True:
                if isinstance(news[1], Ended):
                    self._num_busy -= 1
                deliver(*news)
                news = self._news.get_nowait()

    def narrow(self) -> int | None:
        fewer = half_of(self._most, self._num_busy)
        if fewer is not None:
            self._most = fewer
            torch.cuda.empty_cache()  # returns cached memory to the device; no-op without a GPU
        return fewer

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
        # Both are per thread: flushing denormals, and the CUDA stream.
        with one_thread(), _own_stream(self._settings.device):
            while (job := self._jobs.get()) is not None:
                self._news.put((job, self._do(job)))

    def _do(self, job: Job) -> Ended:
        try:
            return execute(
                job,
                self._store,
                self._settings,
                report=lambda message: self._news.put((job, message)),
                stopping=lambda: self._stopping,
            )
        except BaseException as error:  # so that the thread goes on with the next job
            return Ended("died", message=f"Its thread ended with {type(error).__name__}: {error}")


def _own_stream(device: str) -> AbstractContextManager[object]:
    if not device.startswith("cuda"):
        return nullcontext()
    return torch.cuda.stream(torch.cuda.Stream(device))  # type: ignore[no-untyped-call]
