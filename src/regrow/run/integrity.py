"""The check of a store before a run: damaged files of its jobs are set aside."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from regrow.jobs.base import Job
from regrow.run.events import Event, JobWarning
from regrow.store import Store

THREADS = 4  # digests are computed without the interpreter's lock


def set_damaged_aside(jobs: Iterable[Job], store: Store, emit: Callable[[Event], None]) -> None:
    """Move what is damaged of some jobs out of their way, so that it is done anew; tell of each."""
    snapshot = store.snapshot()
    stored = [job for job in jobs if job.key in snapshot.done | snapshot.failed]
    with ThreadPoolExecutor(THREADS) as pool:
        problems = pool.map(lambda job: store.problem(job.key, job.spec), stored)
        for job, problem in zip(stored, problems, strict=True):
            if problem is not None and (moved := store.set_aside(job.key, job.spec)) is not None:
                message = f"{problem} It was moved to {moved}."
                emit(JobWarning(key=job.key, label=job.label, message=message))
