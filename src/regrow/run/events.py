"""Events of a run, as values; a display needs nothing else."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class JobStarted:
    """A job is being worked on by this run."""

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
    """A job's record is in the store; ``reused`` when another run put it there meanwhile."""

    key: str
    label: str
    seconds: float
    reused: bool


@dataclass(frozen=True, kw_only=True)
class JobFailed:
    """A job could not be done; its traceback is in the store."""

    key: str
    label: str
    message: str
    log: str = ""  # the file that tells more, if there is one


@dataclass(frozen=True, kw_only=True)
class JobBlocked:
    """A job cannot be done, because one that it needs failed.

    Or it is not started (``by_code``), because the same function of the user's own failed there.
    """

    key: str
    label: str
    because: str  # label of the job that failed
    by_code: bool = False


@dataclass(frozen=True, kw_only=True)
class JobWarning:
    """Something about a job that its user should know; it continues."""

    key: str
    label: str
    message: str


@dataclass(frozen=True, kw_only=True)
class SeedDone:
    """All jobs of one more seed are done; ``text`` says what is known by now."""

    text: str


@dataclass(frozen=True, kw_only=True)
class RunProgress:
    """The progress of the whole run; at most four times a second, and at its end."""

    jobs_done: int  # with those reused
    jobs_total: int
    reused: int  # were in the store already
    failed: int
    blocked: int
    running: int
    held: int  # another run works on them, this one waits for their records
    flops_done: float
    flops_total: float
    share: float  # of the work, by FLOPs where they are known, in [0, 1]
    seconds: float
    jobs_per_minute: float
    flops_per_second: float
    eta_seconds: float | None


JobEvent = JobStarted | JobProgress | JobDone | JobFailed | JobBlocked | JobWarning
Event = JobEvent | SeedDone | RunProgress
