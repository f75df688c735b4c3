"""Writing something anew while a run goes on, now and then, as its jobs are done."""

import time
from collections.abc import Callable

from regrow.run.events import Event, JobDone, JobFailed

LEAST_SECONDS = 15.0
SHARE = 0.05  # of the run's time, that writing may take


class Refreshing:
    """Hand each event on, and call ``write`` after a job where enough time has passed.

    ``write`` is told in how many seconds, at the least, it will be called again.
    """

    def __init__(self, write: Callable[[int], None], *, before: Callable[[Event], None]) -> None:
        self._write = write
        self._before = before
        self._wait = LEAST_SECONDS
        self._next = time.monotonic()

    def __call__(self, event: Event) -> None:
        """Hand the event on, and write where it is time to."""
        self._before(event)
        if not isinstance(event, JobDone | JobFailed) or time.monotonic() < self._next:
            return
        started = time.monotonic()
        self._write(round(self._wait))
        took = time.monotonic() - started
        self._wait = max(LEAST_SECONDS, took / SHARE)
        self._next = time.monotonic() + self._wait
