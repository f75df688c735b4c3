"""Do jobs, one after another in this process or at once in its threads.

Every job is done the same way wherever it runs (``execute``), also in worker processes
(``run.worker``). What does jobs is an ``Executor``.
"""

import os
import platform
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
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
from regrow.errors import (
    ClaimLost,
    CodeError,
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

# How long a thread may take to come to the end of its step, when all is to end.
CLOSE_SECONDS = 10.0
# The environment's fault, not the job's: what was computed so far is good and can be resumed.
ENVIRONMENT = (OSError, MemoryError, StoreError)
LOG_SECONDS = 5.0  # between two lines of a job's log on how far it is
SEVERAL_RANKS = Counters(unknown="several ranks trained it, which share counters")


@dataclass(frozen=True)
class Ended:
    """The end of the work on a job.

    "reused": another run had done it; "held": another run works on it; "stopped": on request, can
    be resumed; "died": its process ended before it could say so; then ``message`` says by what, and
    ``traceback`` what it did. ``fault``: a function of the user's own is wrong ("code"), or a
    training produced no usable numbers ("training"). ``trouble`` says what of a failure or death
    may pass.
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
    """Return the name of a message's kind, and its fields, as JSON may hold them.

    >>> message_to_json(Notice("slow"))
    ('notice', {'message': 'slow'})
    """
    return type(message).__name__.lower(), dict(vars(message))


def message_from_json(name: str, content: Mapping[str, Any]) -> Message:
    """Return the message that was written."""
    return _BY_NAME[name](**content)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings that all jobs of a run share."""

    device: str
    checkpoint_seconds: float
    together: bool = False  # several jobs at once in one process
    script_again: bool = True  # worker processes import the script that started them


Summon = Callable[[Job, Settings], Ranks]


def alone(job: Job, settings: Settings) -> Ranks:
    """Have no other ranks do a job."""
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
    """Do a job and store what it finds, or why it failed; never raises for the job's own sake.

    ``summon`` has other ranks do it too, and returns who does. What only one of them runs into, in
    code that is not ours, is ``RanksLost``: the others wait for it at some point nobody knows.
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
        if workspace.is_lost():  # it may have failed for want of what is no longer its own
            return Ended("held")
        if ranks.together and not isinstance(error, RegrowError):
            raise lost(error) from error
        return _failed(job, error, store=store, workspace=workspace)
    return Ended("done", context.seconds)


class JobLog:
    """The lines that a job leaves in the store's log of it, beside what is told to the run."""

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
        """Pass on what a job says, and keep what its log should have."""
        if isinstance(message, Notice):
            self._add(message.message)
        elif message.resumed_at and not self._resumed:
            self._resumed = True
            self._add(f"resumed at {message.resumed_at:.0%}")
        elif message.note != self._note and time.monotonic() >= self._next:
            self._note = message.note
            self._next = time.monotonic() + LOG_SECONDS
            share = f" ({message.fraction:.0%})" if message.fraction else ""  # 0: it is not known
            self._add(f"{message.note}{share}")
        self._tell(message)

    def end(self, ended: Ended) -> None:
        """Say how it ended; of a failure all that is known."""
        parts = [f"{ended.status} after {ended.seconds:.1f} s", ended.message, ended.traceback]
        self._add("\n".join(filter(None, parts)) if ended.message else parts[0])

    def _add(self, text: str) -> None:
        self._store.log(self._key, text)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread, without denormals, as every job does: so results are bitwise equal.

    One thread per training and one process per core is also the fastest use of a CPU here.
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
    """Compute float32 as float32 on a GPU: without TF32, which convolutions use by default."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def own_randomness(job: Job, settings: Settings) -> AbstractContextManager[None]:
    """Start every job from its own global random state, whatever ran before it in this process.

    A training beside others leaves that state to whoever's turn it is: it draws from it only within
    ``drawing``. Jobs that train nothing are short, so they have all their time in turn.
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
    except StoreError as second:  # a full disk: the caller still learns of both
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
    """Takes jobs while it has hands free, and tells what becomes of them."""

    @property
    def num_free(self) -> int:
        """The number of jobs that it would start at once."""

    @property
    def num_busy(self) -> int:
        """The number of jobs under way."""

    def start(self, job: Job) -> None:
        """Begin a job; only while ``num_free``."""

    def poll(self, deliver: Deliver, *, seconds: float) -> None:
        """Wait for news, at most so long, and deliver it."""

    def narrow(self) -> int | None:
        """Do half as many jobs at once from now on; returns how many, None if it was one."""

    def stop(self) -> None:
        """Ask the jobs under way to save and stop; only notes it, so a signal handler may call."""

    def close(self) -> None:
        """End at once, whatever is under way; its checkpoints stay."""


# Makes the executor of some jobs, for so many of them at once; None: as many as there is room for.
Platform = Callable[[Sequence[Job], Store, Settings, int | None], Executor]


def half_of(most: int, others: int) -> int | None:
    """Halve the jobs at once after one of them ended for want of memory; None if it was alone.

    >>> half_of(8, 7), half_of(8, 2), half_of(8, 0), half_of(1, 0)
    (4, 1, None, None)
    """
    together = min(most, others + 1)
    return None if together == 1 else together // 2


def here(store: Store, settings: Settings, *, summon: Summon = alone) -> Executor:
    """Return this process alone; as rank 0 of several, it has the others help (``summon``)."""
    return _Here(store, settings, summon)


def threads(num: int, store: Store, settings: Settings) -> Executor:
    """Return threads of this process, for jobs that share a device."""
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
    """Threads of this process that share one device, each with a stream of its own on a GPU.

    A replayed step costs little Python, so the interpreter's lock is no hindrance; on a CPU worker
    processes are what is fast.
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
            torch.cuda.empty_cache()  # what freed memory is kept for reuse; nothing without a GPU
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
        # Both are settings of the thread: its processor's handling of denormals, its CUDA stream.
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
        except BaseException as error:  # the thread goes on, as a process would be replaced
            return Ended("died", message=f"Its thread ended with {type(error).__name__}: {error}")


def _own_stream(device: str) -> AbstractContextManager[object]:
    if not device.startswith("cuda"):
        return nullcontext()
    return torch.cuda.stream(torch.cuda.Stream(device))  # type: ignore[no-untyped-call]
