"""Failures of jobs: which are temporary, so that a job is retried, and which lack memory."""

import errno
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

# "passing": temporary, such as a lost process, a full disk or a file server that does not answer.
# "memory": fewer jobs at once may help. "": caused by the job, which would fail again.
Trouble = Literal["", "passing", "memory"]
FIRST_WAIT = 1.0  # seconds; five times as long for each further retry
ATTEMPTS = 2  # of a job in which compiled code crashed: a second crash is attributed to the job
PASSING = frozenset(
    getattr(errno, name)
    for name in (
        *("EAGAIN", "EBUSY", "ECONNRESET", "EDQUOT", "EHOSTDOWN", "EHOSTUNREACH", "EIO", "EMFILE"),
        *("ENETDOWN", "ENETUNREACH", "ENFILE", "ENOLCK", "ENOSPC", "EREMOTEIO", "ESTALE"),
        "ETIMEDOUT",
    )
    if hasattr(errno, name)  # some exist on Linux only
)
NO_MEMORY = re.compile(r"out of memory|can't allocate memory|_ALLOC_FAILED")
_OS_ERROR = re.compile(r"\(os error (\d+)\)")  # in messages of the safetensors library
# Signals that report faults in compiled code.
CRASHES = ("SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGSEGV", "SIGSYS", "SIGTRAP")


def trouble_of(error: BaseException) -> Trouble:
    """Return whether the error that ended a job may be temporary, or a lack of memory.

    >>> trouble_of(OSError(errno.ENOSPC, "No space left on device")), trouble_of(ValueError("no"))
    ('passing', '')
    """
    numbers = set()
    for cause in _causes(error):
        if isinstance(cause, MemoryError | torch.OutOfMemoryError):
            return "memory"
        if isinstance(cause, RuntimeError) and NO_MEMORY.search(str(cause)):
            return "memory"
        numbers |= {int(number) for number in _OS_ERROR.findall(str(cause))}
        if isinstance(cause, OSError) and cause.errno is not None:
            numbers.add(cause.errno)
    if errno.ENOMEM in numbers:
        return "memory"
    return "passing" if numbers & PASSING else ""


def trouble_of_end(code: int, *, killed_for_memory: bool) -> Trouble:
    """Return, from an exit code, whether the end of a process may have a temporary cause.

    >>> trouble_of_end(-9, killed_for_memory=True), trouble_of_end(-9, killed_for_memory=False)
    ('memory', 'passing')
    >>> trouble_of_end(-11, killed_for_memory=False), trouble_of_end(3, killed_for_memory=False)
    ('', '')
    """
    if code >= 0 or name_of(-code) in CRASHES:
        return ""
    return "memory" if killed_for_memory and -code == signal.SIGKILL else "passing"


@dataclass
class Tries:
    """The attempts of a job since it last made progress."""

    count: int = 0
    at: float = 0.0  # the share of the job from which it was last resumed

    def wait_after(
        self, trouble: Trouble, *, died: bool, resumed_at: float, retries: int
    ) -> float | None:
        """Return the seconds to wait before the next attempt; None if the job is not retried.

        >>> tries = Tries()
        >>> [tries.wait_after("passing", died=False, resumed_at=0, retries=3) for _ in range(4)]
        [1.0, 5.0, 25.0, None]
        """
        if resumed_at > self.at:
            self.count, self.at = 0, resumed_at  # it has made progress
        self.count += 1
        # If the kernel killed the only job for lack of memory, other programs may have used it.
        if trouble == "passing" or (trouble == "memory" and died):
            return FIRST_WAIT * 5 ** (self.count - 1) if self.count <= retries else None
        return 0.0 if died and not trouble and self.count < ATTEMPTS else None


def name_of(number: int) -> str:
    """Return a signal's name, or ``signal N`` for an unknown one."""
    known = {int(known): known.name for known in signal.Signals}
    return known.get(number, f"signal {number}")


def how_it_ended(code: int, *, killed_for_memory: bool = False) -> str:
    """Describe how a process ended, from its exit code.

    >>> how_it_ended(3)
    'ended without a message (exit code 3)'
    >>> how_it_ended(-15)
    'was ended by SIGTERM'
    """
    if code >= 0:
        return f"ended without a message (exit code {code})"
    name = name_of(-code)
    if name in CRASHES:
        return (
            f"crashed with {name}, which is a fault in compiled code, such as PyTorch's, rather "
            "than a lack of memory"
        )
    if name == "SIGKILL":
        if killed_for_memory:
            return "was killed by the system, because memory ran out"
        return "was killed with SIGKILL, perhaps because memory ran out (then try fewer workers)"
    return f"was ended by {name}"


class MemoryKills:
    """The kernel's count of processes of this machine that it killed for lack of memory."""

    def __init__(self) -> None:
        self._before = _memory_kills()

    def is_new(self) -> bool:
        """Return whether the count has increased since the last call."""
        before, self._before = self._before, _memory_kills()
        return self._before > before


def _memory_kills() -> int:
    try:
        text = Path("/proc/vmstat").read_text(encoding="ascii")
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("oom_kill "))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__
