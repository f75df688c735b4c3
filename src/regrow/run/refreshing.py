"""Work done during a run: rewriting the page, and a summary of results after each seed."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence

from regrow.run.events import Event, JobDone, JobFailed, SeedDone

LEAST_SECONDS = 15.0
SHARE = 0.05  # maximum share of the run's time for writing


class Refreshing:
    """Pass each event on, and call ``write`` after a job if enough time has passed.

    ``write`` receives the least number of seconds until its next call.
    """

    def __init__(self, write: Callable[[int], None], *, before: Callable[[Event], None]) -> None:
        self._write = write
        self._before = before
        self._wait = LEAST_SECONDS
        self._next = time.monotonic()

    def __call__(self, event: Event) -> None:
        """Pass the event on, and write if it is time to."""
        self._before(event)
        if not isinstance(event, JobDone | JobFailed) or time.monotonic() < self._next:
            return
        started = time.monotonic()
        self._write(round(self._wait))
        took = time.monotonic() - started
        self._wait = max(LEAST_SECONDS, took / SHARE)
        self._next = time.monotonic() + self._wait


class SeedBySeed:
    """Pass each event on, and emit a summary when all jobs of a seed, but not of all, are done.

    ``waiting`` has the keys of each seed's unfinished jobs; ``known`` returns the summary of the
    seeds that are complete.
    """

    def __init__(
        self,
        waiting: Mapping[int, Collection[str]],
        known: Callable[[Sequence[int]], str],
        *,
        before: Callable[[Event], None],
    ) -> None:
        self._waiting = {seed: set(keys) for seed, keys in waiting.items()}
        self._known = known
        self._before = before

    def __call__(self, event: Event) -> None:
        """Pass the event on, and emit a summary if it completes a seed."""
        self._before(event)
        if not isinstance(event, JobDone):
            return
        completed = [seed for seed, keys in self._waiting.items() if keys == {event.key}]
        for keys in self._waiting.values():
            keys.discard(event.key)
        done = [seed for seed, keys in self._waiting.items() if not keys]
        if completed and len(done) < len(self._waiting):
            self._before(SeedDone(text=self._known(done)))
