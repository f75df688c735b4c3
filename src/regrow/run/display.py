"""Show a run from its events: live on a terminal, else as a plain line per finished job.

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

from regrow.core.durations import clock
from regrow.core.texts import one_line, visible
from regrow.run import events
from regrow.run.events import Event

SUMMARY_SECONDS = (5.0, 10.0, 15.0, 30.0)  # between summary lines of a log; the last repeats
MOST_NAMED = 3  # running jobs named in such a line
BAR_WIDTH, ETA_WIDTH = 10, 14  # so that a line fits 80 columns: "ETA 1,234 days" is the longest
MAX_LINES = 16  # lines of running jobs, so that they fit a terminal


@contextmanager
def display(console: Console | None = None) -> Iterator[Callable[[Event], None]]:
    """Yield a function that shows events, for ``run(..., on_event=...)``, by default on stderr."""
    console = console or Console(stderr=True, emoji=False)
    if not console.is_terminal:
        yield _Plain(console)
        return
    screen = _Screen(console)
    with Live(console=console, get_renderable=screen.render, refresh_per_second=4, transient=True):
        yield screen


class _Plain:
    """Lines for a log file: one for each finished job, and the run's progress now and then."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._jobs: dict[str, _Running] = {}
        self._waits = iter(SUMMARY_SECONDS)
        self._next_summary: float | None = None
        self._begun = False
        self._lasting = _Lasting(console)

    def __call__(self, event: Event) -> None:
        self._lasting(event)
        _follow(self._jobs, event)
        self._begun |= bool(self._jobs)
        if isinstance(event, events.RunProgress):
            self._summarise(event)
        elif isinstance(event, events.JobDone) and not event.reused:
            _say(self._console, f"done {event.label} ({clock(event.seconds)})")

    def _summarise(self, run: events.RunProgress) -> None:
        now = time.monotonic()
        if self._next_summary is None:
            if left := run.jobs_total - run.jobs_done:
                before = f", {run.jobs_done} were done before" if run.jobs_done else ""
                _say(self._console, f"{left} {'job' if left == 1 else 'jobs'} to do{before}")
        elif now < self._next_summary or run.jobs_done == run.jobs_total:
            return
        else:
            waiting = [] if self._begun else ["the first jobs are starting"]
            _say(self._console, "; ".join([describe(run), *(self._running() or waiting)]))
        self._next_summary = now + next(self._waits, SUMMARY_SECONDS[-1])

    def _running(self) -> list[str]:
        """Name the running jobs with their progress."""
        parts = [f"{one_line(job.label)} ({_how_far(job)})" for job in self._jobs.values()]
        more = [f"{len(parts) - MOST_NAMED} more"] if len(parts) > MOST_NAMED else []
        return [f"running: {', '.join([*parts[:MOST_NAMED], *more])}"] if parts else []


_Running = events.JobStarted | events.JobProgress


def _follow(jobs: dict[str, _Running], event: Event) -> None:
    """Update the running jobs, each with its last event."""
    if isinstance(event, events.JobStarted | events.JobProgress):
        jobs[event.key] = event
    elif isinstance(event, events.JobDone | events.JobFailed):
        jobs.pop(event.key, None)


def _share_of(job: _Running) -> float:
    return job.fraction if isinstance(job, events.JobProgress) else 0.0


def _how_far(job: _Running) -> str:
    """Return the share of a job that is done, or its note if no share is known."""
    note = job.note if isinstance(job, events.JobProgress) else ""
    share = _share_of(job)
    return note if note and not share else f"{share:.0%}"


class _Screen:
    """The whole run in one line, and one line for each running job."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._run: events.RunProgress | None = None
        self._jobs: dict[str, _Running] = {}
        self._lasting = _Lasting(console)

    def __call__(self, event: Event) -> None:
        self._lasting(event)
        if isinstance(event, events.RunProgress):
            self._run = event
        _follow(self._jobs, event)

    def render(self) -> RenderableType:
        """Draw the current state; called by the refreshing thread."""
        if self._run is None:
            return Text("starting ...")
        jobs = list(self._jobs.values())  # a copy, because events arrive while this thread draws
        table = Table.grid(padding=(0, 2))
        for event in jobs[:MAX_LINES]:
            table.add_row(*_job_row(event, self._console.width))
        if len(jobs) > MAX_LINES:
            table.add_row(Text(f"and {len(jobs) - MAX_LINES} more"))
        bar = Table.grid()  # ends its line, which a bar alone does not
        bar.add_row(ProgressBar(total=1.0, completed=self._run.share, width=40))
        return Group(bar, Text(describe(self._run)), table)


def _job_row(event: _Running, width: int) -> tuple[RenderableType, ...]:
    """Draw a running job in one line of the terminal: label, progress bar, ETA and note."""
    note, eta = "", ""
    if isinstance(event, events.JobProgress):
        note = event.note
        eta = "" if event.eta_seconds is None else f"ETA {clock(event.eta_seconds)}"
    room = width - BAR_WIDTH - ETA_WIDTH - 6  # for the label and the note; 6: between columns
    label = _shortened(one_line(event.label), room * 2 // 3)
    return (
        Text(label, no_wrap=True),
        ProgressBar(total=1.0, completed=_share_of(event), width=BAR_WIDTH),
        Text(eta, no_wrap=True),
        Text(_shortened(note, room // 3), no_wrap=True),
    )


def _shortened(text: str, width: int) -> str:
    """Shorten the middle of a text, because labels begin with the network and end with the seed."""
    if len(text) <= width:
        return text
    head = max((width - 3) // 2, 1)
    return f"{text[:head]}...{text[min(head + 3 - width, -1) :]}"


class _Lasting:
    """Permanent lines: failures and warnings, each message once, and the summary after a seed."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._failed: dict[str, str] = {}  # message -> the job that it came from first
        self._blocked: list[events.JobBlocked] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, events.JobBlocked):
            self._blocked.append(event)
            return
        if self._blocked:
            _say(self._console, _blocked_line(self._blocked))
            self._blocked = []
        if isinstance(event, events.JobFailed):
            first = self._failed.setdefault(event.message, event.label)
            again = f"the same failure as in {first}"
            more = f" (log: {event.log})" if event.log else ""
            told = event.message if first == event.label else again
            _say(self._console, f"FAILED {event.label}: {told}{more}")
        elif isinstance(event, events.JobWarning):
            _say(self._console, f"warning {event.label}: {event.message}")
        elif isinstance(event, events.SeedDone):
            _say(self._console, event.text)


def _blocked_line(blocked: list[events.JobBlocked]) -> str:
    """Describe the jobs that cannot run because of one failure."""
    first = blocked[0]
    names = ", ".join(one_line(event.label) for event in blocked[:MOST_NAMED])
    more = f" and {len(blocked) - MOST_NAMED} more" if len(blocked) > MOST_NAMED else ""
    if any(event.by_code for event in blocked):
        return (
            f"not started, because the same function failed for {first.because}: {names}{more}. "
            "Fix it, and run the same command again"
        )
    verb = "needs" if len(blocked) == 1 else "need"
    return f"blocked {names}{more}: {verb} {first.because}, which failed"


def _say(console: Console, line: str) -> None:
    # As plain text, not wrapped: labels and messages may contain what rich takes for markup.
    console.print(Text(visible(line)), soft_wrap=True)


def describe(run: events.RunProgress) -> str:
    """Describe a run's progress in one line.

    Jobs done, the share of the work by FLOPs, the time left (early in the line, so that a narrow
    terminal shows it), the rate, and the numbers of failed, blocked and held jobs.
    """
    parts = [f"{run.jobs_done}/{run.jobs_total} jobs", f"{100 * run.share:.0f} % of the work"]
    if run.eta_seconds is not None:
        parts.append(f"ETA {clock(run.eta_seconds)}")
    parts.append(f"{clock(run.seconds)} so far")
    if run.jobs_per_minute:
        parts.append(f"{run.jobs_per_minute:.1f} jobs/min")
    for count, word in ((run.failed, "failed"), (run.blocked, "blocked"), (run.held, "elsewhere")):
        if count:
            parts.append(f"{count} {word}")
    return ", ".join(parts)
