"""Work done during a run: rewriting the page, and a summary after each seed."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence

from regrow.run.events import Event, JobDone, JobFailed, SeedDone

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


class SeedBySeed:
    """Hand each event on, and say what is known when all jobs of a seed are done, but the last.

    ``waiting`` has the keys of the jobs that each seed still waits for; ``known`` words what the
    seeds that are complete show.
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
        """Hand the event on, and what a seed shows that it completes."""
        self._before(event)
        if not isinstance(event, JobDone):
            return
        completed = [seed for seed, keys in self._waiting.items() if keys == {event.key}]
        for keys in self._waiting.values():
            keys.discard(event.key)
        done = [seed for seed, keys in self._waiting.items() if not keys]
        if completed and len(done) < len(self._waiting):
            self._before(SeedDone(text=self._known(done)))
