"""Show a run: live on a terminal, a plain line per finished job in a pipe. Reads events only.

with display() as show:
    run(jobs, store, on_event=show)
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

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

SUMMARY_SECONDS = 30.0
MAX_LINES = 16  # of running jobs: more workers than that do not fit a terminal


@contextmanager
def display(console: Console | None = None) -> Iterator[Callable[[Event], None]]:
    """Yield what shows events, for ``run(..., on_event=...)``; by default on standard error."""
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield _Plain(console)
        return
    screen = _Screen(console)
    with Live(console=console, get_renderable=screen.render, refresh_per_second=4, transient=True):
        yield screen


class _Plain:
    """Lines for a log file: each finished job once, and where the run stands now and then."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._next_summary = time.monotonic() + SUMMARY_SECONDS

    def __call__(self, event: Event) -> None:
        if isinstance(event, RunProgress):
            if time.monotonic() >= self._next_summary:
                self._next_summary = time.monotonic() + SUMMARY_SECONDS
                _say(self._console, describe(event))
        elif isinstance(event, JobDone) and not event.reused:
            _say(self._console, f"done {event.label} ({clock(event.seconds)})")
        else:
            _say_trouble(self._console, event)


class _Screen:
    """The whole run in one line, and one line for each running job."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._run: RunProgress | None = None
        self._jobs: dict[str, JobStarted | JobProgress] = {}

    def __call__(self, event: Event) -> None:
        if isinstance(event, RunProgress):
            self._run = event
        elif isinstance(event, JobStarted | JobProgress):
            self._jobs[event.key] = event
        elif isinstance(event, JobDone | JobFailed):
            self._jobs.pop(event.key, None)
        _say_trouble(self._console, event)

    def render(self) -> RenderableType:
        """Draw the present state; called by the refreshing thread."""
        if self._run is None:
            return Text("starting ...")
        jobs = list(self._jobs.values())  # a copy: events come in while this thread draws
        table = Table.grid(padding=(0, 2))
        for event in jobs[:MAX_LINES]:
            table.add_row(*_job_row(event))
        if len(jobs) > MAX_LINES:
            table.add_row(Text(f"and {len(jobs) - MAX_LINES} more"))
        bar = ProgressBar(total=1.0, completed=self._run.share, width=40)
        return Group(bar, Text(describe(self._run)), table)


def _job_row(event: JobStarted | JobProgress) -> tuple[RenderableType, ...]:
    if isinstance(event, JobStarted):
        return Text(event.label), ProgressBar(total=1.0, completed=0, width=20), Text(), Text()
    eta = "" if event.eta_seconds is None else f"ETA {clock(event.eta_seconds)}"
    bar = ProgressBar(total=1.0, completed=event.fraction, width=20)
    return Text(event.label), bar, Text(event.note), Text(eta)


def _say_trouble(console: Console, event: Event) -> None:
    if isinstance(event, JobFailed):
        _say(console, f"FAILED {event.label}: {event.message}")
    elif isinstance(event, JobBlocked):
        _say(console, f"blocked {event.label}: needs {event.because}, which failed")
    elif isinstance(event, JobWarning):
        _say(console, f"warning {event.label}: {event.message}")


def _say(console: Console, line: str) -> None:
    # As it is: labels and messages may hold what rich would take for markup, or wrap.
    console.print(Text(line), soft_wrap=True)


def describe(run: RunProgress) -> str:
    """Word where a run stands.

    Jobs done and the rate, the share of the work by FLOPs, and the time left.
    """
    parts = [f"{run.jobs_done}/{run.jobs_total} jobs", f"{100 * run.share:.0f} % of the work"]
    if run.jobs_per_minute:
        parts.append(f"{run.jobs_per_minute:.1f} jobs/min")
    for count, word in ((run.failed, "failed"), (run.blocked, "blocked"), (run.held, "elsewhere")):
        if count:
            parts.append(f"{count} {word}")
    parts.append(f"{clock(run.seconds)} so far")
    if run.eta_seconds is not None:
        parts.append(f"ETA {clock(run.eta_seconds)}")
    return ", ".join(parts)


def clock(seconds: float) -> str:
    """Write a duration for people.

    >>> clock(7.2), clock(83), clock(4000)
    ('0:07', '1:23', '1:06:40')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
