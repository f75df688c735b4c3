"""Run the jobs that are missing from a store, here or in worker processes.

    summary = run(study.jobs(), store, workers=2, on_event=show)

``sound`` looks into what is stored already. The path of a job: ``schedule`` says which is next,
``conduct`` hands it to the ``crew``, a ``worker`` runs ``execute``, which stores what it finds;
``events`` tell of it, ``display`` shows.
"""

import os
from collections.abc import Callable, Iterable

import torch

from regrow.core.distributed import current
from regrow.errors import ConfigError
from regrow.jobs.base import Job, all_jobs
from regrow.run.coordinator import Conductor, Summary
from regrow.run.events import (
    Event,
    JobBlocked,
    JobDone,
    JobFailed,
    JobProgress,
    JobStarted,
    JobWarning,
    RunProgress,
)
from regrow.run.execute import Settings
from regrow.run.executors import assemble
from regrow.run.gpu_sharing import gang
from regrow.run.integrity import set_damaged_aside
from regrow.run.schedule import Schedule
from regrow.store import Store

__all__ = [
    "Event",
    "JobBlocked",
    "JobDone",
    "JobFailed",
    "JobProgress",
    "JobStarted",
    "JobWarning",
    "RunProgress",
    "Summary",
    "check_device",
    "run",
]


def run(
    jobs: Iterable[Job],
    store: Store,
    *,
    workers: int | None = None,
    on_event: Callable[[Event], None] | None = None,
    checkpoint_seconds: float = 120.0,
    device: str = "cpu",
) -> Summary:
    """Do jobs and all they stand on, as far as the store does not have them.

    By default there is one worker process per core, so that a crash ends no more than its job; with
    ``workers=0`` the work is done in this process. On a GPU, workers are threads of this process
    that share the device, by default as many as measuring finds to pay. As rank 0 of several
    (``run.team``), this
    process takes one job at a time, and the others train it with it. A job that fails leaves the
    others running, and is tried again by the next run. What is stored and damaged is set aside and
    done anew. Several runs may share one store: a job held
    by another is waited for. Ctrl-C or SIGTERM stops in good order - every job saves,
    ``Interrupted`` is raised - and a second one at once.
    """
    if workers is not None and workers < 0:
        raise ConfigError(f"'workers' must be an int of at least 0. Got {workers!r}.")
    jobs, emit = tuple(jobs), on_event or (lambda _: None)
    store.tidy()
    set_damaged_aside(all_jobs(jobs).values(), store, emit)
    schedule = Schedule(jobs, store.snapshot().done)
    together = device != "cpu" and not current().together
    if current().together:
        workers = 0
    elif workers is None:
        pending = (node.job for node in schedule.nodes.values())
        workers = gang(pending, device) if together else num_cores()
    settings = Settings(
        device=device, checkpoint_seconds=checkpoint_seconds, together=together and workers > 1
    )
    num = min(workers, len(schedule.nodes))
    alone = num == 1 and device != "cpu"  # a single thread beside this one would gain nothing
    crew = assemble(0 if alone else num, store, settings)
    try:
        return Conductor(schedule, store, crew, emit).conduct()
    finally:
        crew.close()


def num_cores() -> int:
    """Return how many cores this process may use, which may be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def check_device(device: str) -> None:
    """Refuse a device that this machine does not have, by using it."""
    if device == "cpu":
        return
    devices = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    try:
        torch.ones(1, device=torch.device(device)).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(
            f"Cannot train on the device {device!r}: this machine does not have it, or PyTorch "
            f"cannot use it. Choose --device {' or '.join(devices)}."
        ) from error
