"""Lead a run: hand out jobs, hear of them, tell the user, stop in good order."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from regrow.core.distributed import current
from regrow.errors import Damaged, Interrupted, RanksLost, StoreError
from regrow.jobs.base import Notice, Progress
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
from regrow.run.execute import Ended, Message
from regrow.run.executors import Crew
from regrow.run.schedule import Schedule, ScheduledJob
from regrow.store import Store

TELL_SECONDS = 0.25
HELD_SECONDS = 0.2  # how often to look for the record of a job that another run works on
ATTEMPTS = 2  # a worker that dies may be bad luck (memory taken by others); twice is the job


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The outcome of a run, with the labels of its jobs."""

    done: tuple[str, ...]
    reused: tuple[str, ...]
    failed: tuple[str, ...]
    blocked: tuple[str, ...]
    seconds: float

    @property
    def complete(self) -> bool:
        """True if every requested job is in the store."""
        return not self.failed and not self.blocked


@dataclass
class _UnderWay:
    started: float
    fraction: float = 0.0
    resumed_at: float = 0.0


class Conductor:
    """One run of a schedule by a crew."""

    def __init__(
        self,
        schedule: Schedule,
        store: Store,
        crew: Crew,
        emit: Callable[[Event], None],
    ) -> None:
        self._schedule = schedule
        self._store = store
        self._crew = crew
        self._emit = emit
        self._started = time.monotonic()
        self._first_job: float | None = None
        self._under_way: dict[str, _UnderWay] = {}
        self._held: list[ScheduledJob] = []
        self._deaths: dict[str, int] = {}
        self._done: list[str] = []
        self._reused = [node.job.label for node in schedule.reused]
        self._failed: list[str] = []
        self._blocked: list[str] = []
        self._work_reused = sum(node.work for node in schedule.reused)
        self._work_total = self._work_reused + sum(n.work for n in schedule.nodes.values())
        self._work_closed = self._work_reused
        self._work_own = 0.0  # done by this run: what a rate may be taken from
        self._stops = 0
        self._next_tell = self._next_look = 0.0

    def conduct(self) -> Summary:
        """Do all that can be done; ``Interrupted`` when asked to stop before that."""
        with self._signals():
            while self._schedule.num_open and not self._stops:
                self._hand_out()
                self._crew.poll(self._hear, seconds=TELL_SECONDS)
                self._look_after_held()
                self._tell()
            while self._stops == 1 and self._crew.num_busy:
                self._crew.poll(self._hear, seconds=TELL_SECONDS)
        self._tell(last=True)
        if self._schedule.num_open:
            raise Interrupted(
                f"Stopped: {self._num_done} of {self._num_total} jobs are done, what was under way "
                f"is kept. The same command resumes."
            )
        return Summary(
            done=tuple(self._done),
            reused=tuple(self._reused),
            failed=tuple(self._failed),
            blocked=tuple(self._blocked),
            seconds=time.monotonic() - self._started,
        )

    @property
    def _num_done(self) -> int:
        return len(self._done) + len(self._reused)

    @property
    def _num_total(self) -> int:
        return len(self._schedule.nodes) + len(self._schedule.reused)

    def _hand_out(self) -> None:
        for _ in range(self._crew.num_free):
            node = self._schedule.take()
            if node is None:
                return
            self._crew.start(node)

    def _hear(self, node: ScheduledJob, message: Message) -> None:
        if isinstance(message, Progress):
            self._progress(node, message)
        elif isinstance(message, Notice):
            self._emit(JobWarning(key=node.key, label=node.job.label, message=message.message))
        else:
            self._ended(node, message)
        self._tell()

    def _progress(self, node: ScheduledJob, progress: Progress) -> None:
        now = time.monotonic()
        job = node.job
        known = self._under_way.get(node.key)
        if known is None:
            self._first_job = self._first_job or now
            self._under_way[node.key] = _UnderWay(started=now)
            self._emit(JobStarted(key=node.key, label=job.label, kind=job.kind))
            return
        known.fraction, known.resumed_at = progress.fraction, progress.resumed_at
        seconds = now - known.started
        done_here = known.fraction - known.resumed_at
        self._emit(
            JobProgress(
                key=node.key,
                label=job.label,
                fraction=progress.fraction,
                note=progress.note,
                seconds=seconds,
                eta_seconds=seconds * (1 - known.fraction) / done_here if done_here > 0 else None,
            )
        )

    def _ended(self, node: ScheduledJob, ended: Ended) -> None:
        under_way = self._under_way.pop(node.key, None)
        if ended.status == "held":
            self._held.append(node)
        elif ended.status == "stopped":
            self._schedule.put_back(node)
            self._stops = max(self._stops, 1)  # where another rank was asked to, not this one
        elif ended.status == "died":
            self._died(node, ended)
        elif ended.status == "failed":
            self._fail(node, ended.message)
        else:
            if ended.status == "done" and under_way:
                self._work_own += node.work * (1 - under_way.resumed_at)
            self._finish(node, seconds=ended.seconds, reused=ended.status == "reused")

    def _finish(self, node: ScheduledJob, *, seconds: float, reused: bool) -> None:
        self._schedule.finish(node)
        self._work_closed += node.work
        (self._reused if reused else self._done).append(node.job.label)
        label = node.job.label
        self._emit(JobDone(key=node.key, label=label, seconds=seconds, reused=reused))

    def _fail(self, node: ScheduledJob, message: str) -> None:
        label = node.job.label
        self._failed.append(label)
        self._work_closed += node.work
        self._emit(JobFailed(key=node.key, label=label, message=message))
        for later in self._schedule.fail(node):
            self._blocked.append(later.job.label)
            self._work_closed += later.work
            self._emit(JobBlocked(key=later.key, label=later.job.label, because=label))

    def _died(self, node: ScheduledJob, ended: Ended) -> None:
        self._deaths[node.key] = self._deaths.get(node.key, 0) + 1
        if self._deaths[node.key] < ATTEMPTS:
            self._schedule.put_back(node)
            message = f"{ended.message}; the job is tried once more."
            self._emit(JobWarning(key=node.key, label=node.job.label, message=message))
            return
        message = (
            f"{ended.message}, {ATTEMPTS} times. What it saved is kept, the next run goes on from "
            "there."
        )
        try:
            self._store.fail(node.key, node.job.spec, message=message, traceback=ended.traceback)
        except StoreError as error:
            message = f"{message} ({error})"
        self._fail(node, message)

    def _look_after_held(self) -> None:
        now = time.monotonic()
        if not self._held or now < self._next_look:
            return
        self._next_look = now + HELD_SECONDS
        held, self._held = self._held, []
        for node in held:
            status = self._store.status(node.key)
            if status == "done":
                self._finish(node, seconds=0.0, reused=True)
            elif status == "failed":
                self._fail(node, self._failure(node))
            elif status == "running":
                self._held.append(node)
            else:  # the other run was stopped or killed
                self._schedule.put_back(node)

    def _failure(self, node: ScheduledJob) -> str:
        try:
            failure = self._store.failure(node.key) or {}
        except Damaged as error:
            return f"It failed in another run. {error}"
        return str(failure.get("message", "It failed in another run."))

    def _tell(self, *, last: bool = False) -> None:
        now = time.monotonic()
        if now < self._next_tell and not last:
            return
        self._next_tell = now + TELL_SECONDS
        seconds = now - (self._first_job or now)
        partial = done_here = 0.0
        chain = 0.0
        for key, known in self._under_way.items():
            node = self._schedule.nodes[key]
            partial += node.work * known.fraction
            done_here += node.work * (known.fraction - known.resumed_at)
            chain = max(chain, node.chain - node.work * known.fraction)
        finished = self._work_closed + partial
        rate = (self._work_own + done_here) / seconds if seconds > 0 else 0.0
        left = max(0.0, self._work_total - finished)
        # The longest chain goes through one worker at a time, however many there are.
        width = max(1, len(self._under_way))
        eta = max(left, chain * width) / rate if rate > 0 else None
        self._emit(
            RunProgress(
                jobs_done=self._num_done,
                jobs_total=self._num_total,
                reused=len(self._reused),
                failed=len(self._failed),
                blocked=len(self._blocked),
                running=len(self._under_way),
                held=len(self._held),
                flops_done=finished,
                flops_total=self._work_total,
                share=min(1.0, finished / self._work_total) if self._work_total else 1.0,
                seconds=now - self._started,
                jobs_per_minute=60 * len(self._done) / seconds if seconds > 0 else 0.0,
                flops_per_second=rate,
                eta_seconds=eta if left else 0.0,
            )
        )

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Let Ctrl-C and SIGTERM stop the run in good order, and a second one at once."""
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread may set handlers; its own way of stopping holds
            return
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = [signal.signal(number, self._on_signal) for number in numbers]
        try:
            yield
        except RanksLost:
            # Launchers now tell every rank to end; this one has yet to say why.
            before = [signal.SIG_IGN for _ in numbers]
            raise
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._stops += 1
        self._crew.stop()
        if self._stops > 1:
            # A rank that breaks off within a step is lost to the others, who wait for it there.
            kind = RanksLost if current().together else Interrupted
            raise kind(
                "Stopped at once: what was under way goes on from its last checkpoint in the next "
                "run of the same command."
            )
