"""Events of a run, as values: all that a display needs."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class JobStarted:
    """This run has started a job."""

    key: str
    label: str
    kind: str


@dataclass(frozen=True, kw_only=True)
class JobProgress:
    """The progress of a running job; at most four times a second."""

    key: str
    label: str
    fraction: float
    note: str
    seconds: float  # in this run
    eta_seconds: float | None


@dataclass(frozen=True, kw_only=True)
class JobDone:
    """A job's record is in the store; ``reused`` if another run has stored it meanwhile."""

    key: str
    label: str
    seconds: float
    reused: bool


@dataclass(frozen=True, kw_only=True)
class JobFailed:
    """A job has failed; its traceback is in the store."""

    key: str
    label: str
    message: str
    log: str = ""  # path of its log file, if there is one


@dataclass(frozen=True, kw_only=True)
class JobBlocked:
    """A job cannot run, because one that it depends on failed.

    Or it is not started (``by_code``), because the user's function that trains it has failed.
    """

    key: str
    label: str
    because: str  # label of the job that failed
    by_code: bool = False


@dataclass(frozen=True, kw_only=True)
class JobWarning:
    """A message to the user about a job, which continues."""

    key: str
    label: str
    message: str


@dataclass(frozen=True, kw_only=True)
class SeedDone:
    """All jobs of one more seed are done; ``text`` summarises the results so far."""

    text: str


@dataclass(frozen=True, kw_only=True)
class RunProgress:
    """The progress of the whole run; at most four times a second, and at its end."""

    jobs_done: int  # including those reused
    jobs_total: int
    reused: int  # already in the store
    failed: int
    blocked: int
    running: int
    held: int  # being run by another run, whose records this one waits for
    flops_done: float
    flops_total: float
    share: float  # of the work, by FLOPs where they are known, in [0, 1]
    seconds: float
    jobs_per_minute: float
    flops_per_second: float
    eta_seconds: float | None


JobEvent = JobStarted | JobProgress | JobDone | JobFailed | JobBlocked | JobWarning
Event = JobEvent | SeedDone | RunProgress
