"""Do one job, the same way in this process and in a worker."""

import os
import signal
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from multiprocessing.resource_tracker import ensure_running
from typing import Any, Literal

import torch

from regrow.core.distributed import ALONE, Ranks, lost, own_device
from regrow.core.global_rng import drawing
from regrow.core.seeds import derive
from regrow.errors import Interrupted, RanksLost, RegrowError, StoreError
from regrow.jobs.base import Context, Job, Notice, Outcome, Progress
from regrow.store import Store
from regrow.store.workspace import Workspace

# The environment's fault, not the job's: what was computed so far is good and can be resumed.
ENVIRONMENT = (OSError, MemoryError, StoreError)

TUNABLES = "GLIBC_TUNABLES"  # read by the C library when a process starts
ALLOCATOR = ":".join(
    f"glibc.malloc.{setting}"
    for setting in ("hugetlb=1", "mmap_max=0", f"trim_threshold={2**31 - 1}", f"top_pad={2**26}")
)


@dataclass(frozen=True)
class Ended:
    """The end of the work on a job.

    "reused": another run had done it; "held": another run works on it; "stopped": on request, can
    be resumed; "died": its process ended before it could say so; then ``message`` says by what, and
    ``traceback`` what it did.
    """

    status: Literal["done", "reused", "held", "failed", "stopped", "died"]
    seconds: float = 0.0
    message: str = ""
    traceback: str = ""


Message = Progress | Notice | Ended


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings that all jobs of a run share."""

    device: str
    checkpoint_seconds: float
    together: bool = False  # several jobs at once in one process


def execute(
    job: Job,
    store: Store,
    settings: Settings,
    *,
    report: Callable[[Progress | Notice], None],
    stopping: Callable[[], bool],
    summon: Callable[[Job, Settings], Ranks] = lambda job, settings: ALONE,
) -> Ended:
    """Do a job and store what it finds, or why it failed; never raises for the job's own sake.

    ``summon`` has other ranks do it too, and returns who does. What only one of them runs into, in
    code that is not ours, is ``RanksLost``: the others wait for it at some point nobody knows.
    """
    with store.claim(job.key) as workspace:
        if workspace is None:
            return Ended("held")
        if store.has(job.key):
            return Ended("reused")
        store.forgive(job.key)
        report(Progress(0.0))
        ranks = summon(job, settings)
        context = Context(
            job,
            store,
            workspace,
            ranks=ranks,
            device=own_device(settings.device),
            checkpoint_seconds=settings.checkpoint_seconds,
            report=report,
            stopping=stopping,
        )
        try:
            with own_randomness(job, settings):
                outcome = job.run(context)
            record = _record(job, outcome, context.seconds)
            store.commit(job.key, record, outcome.tensors, parts=outcome.parts)
        except RanksLost:
            raise
        except Interrupted:
            return Ended("stopped", context.seconds)
        except Exception as error:
            if ranks.together and not isinstance(error, RegrowError):
                raise lost(error) from error
            return _failed(job, error, store=store, workspace=workspace)
        return Ended("done", context.seconds)


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
def large_pages() -> Iterator[None]:
    """Let processes that are started inside keep the memory they free, and take it in large pages.

    A step of these networks frees and takes the same maps again; by default the C library gives
    them back to the system each time. Steps of ResNet-56 took 1.25 times as long so, of
    PreResNet-164 1.1 times (bf16, one thread of a 2-core Xeon, torch 2.15, glibc 2.36). Other C
    libraries do not read the variable; one that the user has set stays.
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
def held_back(*signals: signal.Signals) -> Iterator[None]:
    """Hold signals back; processes that are started inside hold them back until they say otherwise.

    Ctrl-C at a terminal goes to every process of the command, also to one that is still starting.
    """
    ensure_running()  # a process of multiprocessing's own, whose start would let signals through
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


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


def _record(job: Job, outcome: Outcome, seconds: float) -> dict[str, Any]:
    timing: Mapping[str, Any] = outcome.record.get("timing", {})
    return {
        **outcome.record,
        "kind": job.kind,
        "spec": job.spec,
        "inputs": [before.key for before in job.inputs],
        "timing": {**timing, "seconds": round(seconds, 3)},
    }


def _failed(job: Job, error: Exception, *, store: Store, workspace: Workspace) -> Ended:
    message = str(error) if isinstance(error, RegrowError) else f"{type(error).__name__}: {error}"
    if not isinstance(error, ENVIRONMENT):
        workspace.drop_checkpoint()
    try:
        store.fail(job.key, job.spec, message=message, traceback=_traceback(error))
    except StoreError as second:  # a full disk: the caller still learns of both
        message = f"{message} ({second})"
    return Ended("failed", message=message)


def _traceback(error: Exception) -> str:
    return "".join(traceback.format_exception(error))
