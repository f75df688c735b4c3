"""Run the jobs missing from a store: pass them to an executor, retry failures, emit events."""

import signal
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from types import FrameType

from regrow.core.distributed import current
from regrow.core.execution import RETRIES
from regrow.core.machine import num_cores
from regrow.core.source import expecting, read_digests
from regrow.errors import ConfigError, Damaged, Interrupted, RanksLost, StoreError
from regrow.jobs.base import Job, Notice, Progress, all_jobs
from regrow.run import events
from regrow.run.events import Event
from regrow.run.executors import Ended, Executor, Message, Platform, Settings, alone, here, threads
from regrow.run.gpu_sharing import num_sharing
from regrow.run.schedule import Schedule, ScheduledJob, Waiting
from regrow.run.torchrun import summon
from regrow.run.troubles import Tries
from regrow.run.worker import device_workers, worker_processes
from regrow.store import Store

THREADS = 4  # for digests, which are computed without holding the GIL
TELL_SECONDS = 0.25
TELLING = 1e-4  # share of the work: less, such as a pruning alone, says nothing about the rate
# Measured for at least this long before a rate is given: in less time, waiting dominates.
LEAST_SECONDS = 5.0
HELD_SECONDS = 0.2  # how often to check a job that another run is working on
# After so many trainings by a user's function have failed, or ended without finite numbers, its
# other jobs are not started, unless one of them succeeded.
FAULTS = 2
# A scheduler sends SIGKILL soon after SIGTERM, SLURM after 30 s: jobs that have not saved by then
# continue from their last checkpoints.
GRACE_SECONDS = 8.0
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


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


def run(
    jobs: Iterable[Job],
    store: Store,
    *,
    workers: int | None = None,
    on_event: Callable[[Event], None] | None = None,
    checkpoint_seconds: float = 120.0,
    device: str | Sequence[str] = "cpu",
    script_again: bool = True,
    stop_after: float | None = None,
    retries: int = RETRIES,
    on: Platform | None = None,
) -> Summary:
    """Run jobs and all jobs that they depend on, unless the store has their records.

    By default there is one worker process per core, so that a crash ends only its job; with
    ``workers=0``, jobs run in this process. On a GPU, workers are threads of this process that
    share the device, by default the number that is measured to be fastest; with several devices,
    each has a process with so many threads. Worker processes import the calling script, which may
    define parts of the jobs, unless ``script_again`` is false. As rank 0 of several
    (``run.torchrun``), this process runs one job at a time, and the other ranks train it together
    with this one. ``on`` makes the executor of jobs that run elsewhere, such as on Ray.

    If a job fails, the others go on, and the next run tries it again. Damaged results are moved
    aside and computed again. Temporary failures (a lost worker, a full disk) are retried up to
    ``retries`` times, after 1, 5, 25, ... seconds; if memory runs out, half as many jobs run at
    once from then on. Several runs can share a store: a run waits for jobs that another is running.
    At Ctrl-C, SIGTERM or SIGUSR1, or after ``stop_after`` seconds, every job saves a checkpoint and
    ``Interrupted`` is raised; a second signal stops at once.
    """
    if workers is not None and workers < 0:
        raise ConfigError(f"'workers' must be an int of at least 0. Got {workers!r}.")
    jobs, emit = tuple(jobs), on_event or (lambda _: None)
    store.tidy()
    _set_damaged_aside(all_jobs(jobs).values(), store, emit)
    _drop_bare(jobs, store)
    schedule = Schedule(jobs, store.snapshot().done)
    pending = [node.job for node in schedule.nodes.values()]
    devices = (device,) if isinstance(device, str) else tuple(device)
    read = read_digests()
    settings = Settings(device=devices[0], checkpoint_seconds=checkpoint_seconds, read=read)
    if on is not None:
        executor = on(pending, store, settings, workers)
    else:
        together = devices != ("cpu",) and not current().together
        if current().together:
            workers = 0
        elif workers is None:
            workers = num_sharing(pending, devices[0]) if together else num_cores()
        together = together and workers > 1
        settings = replace(settings, together=together, script_again=script_again)
        executor = _on_devices(devices, len(pending), workers, store, settings)
    try:
        limits = Limits(stop_after=stop_after, retries=retries)
        with expecting(read):
            return Coordinator(schedule, store, executor, emit, limits).run()
    finally:
        executor.close()


def _on_devices(
    devices: Sequence[str], num_jobs: int, workers: int, store: Store, settings: Settings
) -> Executor:
    """Return an executor with so many workers, on several devices so many for each."""
    if len(devices) > 1 and workers > 0 and num_jobs > 0:
        each = min(workers, -(-num_jobs // len(devices)))
        return device_workers(devices, each, store, settings)
    num = min(workers, num_jobs)
    single = num == 1 and devices != ("cpu",)  # a separate thread would gain nothing
    return assemble(0 if single else num, store, settings)


def assemble(num_workers: int, store: Store, settings: Settings) -> Executor:
    """Return an executor of so many workers; with none, one that uses this process.

    Workers are threads if jobs share a device (``settings.together``), else processes.
    """
    if num_workers == 0:
        return here(store, settings, summon=summon if current().together else alone)
    if settings.together:
        return threads(num_workers, store, settings)
    return worker_processes(num_workers, store, settings)


def _drop_bare(jobs: Iterable[Job], store: Store) -> None:
    """Remove the records of unfinished jobs' inputs that lack their tensors, so that they rerun."""
    done = set(store.snapshot().done)
    waiting = [job for job in all_jobs(jobs).values() if job.key not in done]
    while waiting:
        for before in waiting.pop().inputs:
            if before.key in done and store.is_bare(before.key):
                done.discard(before.key)
                store.drop(before.key)
                waiting.append(before)


def _set_damaged_aside(jobs: Iterable[Job], store: Store, emit: Callable[[Event], None]) -> None:
    """Move damaged results of jobs aside, with a warning for each, so that the jobs run again."""
    snapshot = store.snapshot()
    stored = [job for job in jobs if job.key in snapshot.done | snapshot.failed]
    with ThreadPoolExecutor(THREADS) as pool:
        problems = pool.map(lambda job: store.problem(job.key, job.spec), stored)
        for job, problem in zip(stored, problems, strict=True):
            if problem is not None and (moved := store.set_aside(job.key, job.spec)) is not None:
                message = f"{problem} It was moved to {moved}."
                emit(events.JobWarning(key=job.key, label=job.label, message=message))


@dataclass
class SteadyRate:
    """The rate of work since the first progress.

    The time before, such as for start-up and compilation, says nothing about the remaining time.

    >>> rate = SteadyRate()
    >>> [rate.rate(now=now, done=done) for now, done in ((60, 0), (90, 1), (92, 2), (100, 6))]
    [None, None, None, 0.5]
    """

    _since: float | None = None
    _done: float = 0.0

    def rate(self, *, now: float, done: float, least: float = 0.0) -> float | None:
        """Return the work per second; None until it was measured for long enough.

        ``least``: more than this must be done before it counts as the first progress.
        """
        if self._since is None:
            if done > least:
                self._since, self._done = now, done
            return None
        seconds = now - self._since
        moved = done - self._done
        return moved / seconds if seconds >= LEAST_SECONDS and moved > 0 else None


@dataclass
class _UnderWay:
    started: float
    fraction: float = 0.0
    resumed_at: float = 0.0
    steady: SteadyRate = field(default_factory=SteadyRate)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """A run's time limit in seconds, and how often a job is retried."""

    stop_after: float | None = None
    retries: int = RETRIES


NO_LIMITS = Limits()


class Coordinator:
    """One run of a schedule by an executor."""

    def __init__(
        self,
        schedule: Schedule,
        store: Store,
        executor: Executor,
        emit: Callable[[Event], None],
        limits: Limits = NO_LIMITS,
    ) -> None:
        self._limits = limits
        self._schedule = schedule
        self._store = store
        self._executor = executor
        self._emit = emit
        self._started = time.monotonic()
        self._first_job: float | None = None
        self._under_way: dict[str, _UnderWay] = {}
        self._held: list[ScheduledJob] = []
        self._faults: dict[Hashable, int] = {}  # by the user's training function
        self._works = {node.job.trained_by for node in schedule.reused if node.job.flops}
        self._waiting = Waiting(store)
        self._waits_told: dict[str, str] = {}  # reported waits of other runs' jobs
        self._tries: dict[str, Tries] = {}
        self._narrowed = 0.0
        self._done: list[str] = []
        self._reused = [node.job.label for node in schedule.reused]
        self._failed: list[str] = []
        self._blocked: list[str] = []
        self._work_reused = sum(node.work for node in schedule.reused)
        self._work_total = self._work_reused + sum(n.work for n in schedule.nodes.values())
        self._work_closed = self._work_reused
        self._work_own = 0.0  # done by this run, which the rate is computed from
        self._steady = SteadyRate()
        self._stops = 0
        self._stopped_by: int = signal.SIGINT
        self._stopped_why = ""
        self._next_tell = self._next_look = 0.0

    def run(self) -> Summary:
        """Run all jobs that can run; raise ``Interrupted`` if stopped before that."""
        with self._signals(), self._time_limit(), closing(self._waiting):
            while self._schedule.num_open and not self._stops:
                for node in self._waiting.due():
                    self._schedule.put_back(node)
                self._hand_out()
                self._executor.poll(self._hear, seconds=TELL_SECONDS)
                self._look_after_held()
                self._tell()
            while self._stops == 1 and self._executor.num_busy:
                self._executor.poll(self._hear, seconds=TELL_SECONDS)
        self._tell(last=True)
        if self._schedule.num_open:
            raise Interrupted(
                f"Stopped{self._stopped_why}: {self._num_done} of {self._num_total} jobs are done. "
                "The others continue from their checkpoints, or start over.",
                by=self._stopped_by,
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
        num_free = self._executor.num_free
        num_workers = num_free + self._executor.num_busy
        for _ in range(num_free):
            node = self._schedule.take(num_workers)
            if node is None:
                return
            self._waiting.let_go(node.key)
            self._executor.start(node.job)

    def _hear(self, job: Job, message: Message) -> None:
        node = self._schedule.nodes[job.key]
        if isinstance(message, Progress):
            self._progress(node, message)
        elif isinstance(message, Notice):
            self._emit(events.JobWarning(key=node.key, label=job.label, message=message.message))
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
            self._emit(events.JobStarted(key=node.key, label=job.label, kind=job.kind))
            return
        known.fraction, known.resumed_at = progress.fraction, progress.resumed_at
        seconds = now - known.started
        rate = known.steady.rate(now=now, done=known.fraction - known.resumed_at)
        self._emit(
            events.JobProgress(
                key=node.key,
                label=job.label,
                fraction=progress.fraction,
                note=progress.note,
                seconds=seconds,
                eta_seconds=None if rate is None else (1 - known.fraction) / rate,
            )
        )

    def _ended(self, node: ScheduledJob, ended: Ended) -> None:
        under_way = self._under_way.pop(node.key, None)
        if ended.status == "held":
            self._held.append(node)
        elif ended.status == "stopped":
            self._schedule.put_back(node)
            self._stops = max(self._stops, 1)  # another rank may have been asked to stop
        elif ended.status in ("failed", "died"):
            self._tell_log(node, ended)
            if not self._try_again(node, ended, under_way):
                self._give_up(node, ended)
        else:
            if ended.status == "done" and under_way:
                self._work_own += node.work * (1 - under_way.resumed_at)
            self._finish(node, seconds=ended.seconds, reused=ended.status == "reused")

    def _finish(self, node: ScheduledJob, *, seconds: float, reused: bool) -> None:
        self._schedule.finish(node)
        if node.job.flops:
            self._works.add(node.job.trained_by)
        self._work_closed += node.work
        (self._reused if reused else self._done).append(node.job.label)
        label = node.job.label
        self._emit(events.JobDone(key=node.key, label=label, seconds=seconds, reused=reused))

    def _fail(self, node: ScheduledJob, message: str, *, fault: str = "") -> None:
        label = node.job.label
        self._failed.append(label)
        self._work_closed += node.work
        log = self._store.log_file(node.key)
        where = str(log) if log.exists() else ""
        self._emit(events.JobFailed(key=node.key, label=label, message=message, log=where))
        self._block(self._schedule.fail(node), because=label)
        function = node.job.trained_by
        if fault and function is not None and function not in self._works:
            # A measurement without training is the least that the function must do: if that fails,
            # once is enough.
            many = FAULTS if fault == "code" and not node.job.flops else 1
            faults = self._faults.get(function, 0) + many
            self._faults[function] = faults
            if faults >= FAULTS:
                self._block(self._schedule.give_up(function), because=label, by_code=True)

    def _block(
        self, blocked: Iterable[ScheduledJob], *, because: str, by_code: bool = False
    ) -> None:
        for later in blocked:
            self._blocked.append(later.job.label)
            self._work_closed += later.work
            label = later.job.label
            self._emit(
                events.JobBlocked(key=later.key, label=label, because=because, by_code=by_code)
            )

    def _tell_log(self, node: ScheduledJob, ended: Ended) -> None:
        if ended.status == "died":  # the job could not log its end itself
            text = "\n".join(filter(None, (ended.message, ended.traceback)))
            self._store.log(node.key, text)

    def _try_again(self, node: ScheduledJob, ended: Ended, under_way: _UnderWay | None) -> bool:
        """Retry a job, if the cause of its end may be temporary; return whether it is retried."""
        if ended.trouble == "memory" and self._with_fewer(node, ended, under_way):
            return True
        tries = self._tries.setdefault(node.key, Tries())
        wait = tries.wait_after(
            ended.trouble,
            died=ended.status == "died",
            resumed_at=0.0 if under_way is None else under_way.resumed_at,
            retries=self._limits.retries,
        )
        if wait is None:
            return False
        told = ended.message.rstrip(".")
        share = 0.0 if under_way is None else under_way.fraction
        self._waiting.add(node, seconds=wait, share=share, because=told)
        when = f"again in {wait:g} s" if wait else "the job once more"
        self._warn(node, f"{told}; trying {when}.")
        return True

    def _with_fewer(self, node: ScheduledJob, ended: Ended, under_way: _UnderWay | None) -> bool:
        """Continue with half as many jobs at once; return False if there was only one."""
        if under_way is None or under_way.started >= self._narrowed:
            fewer = self._executor.narrow()
            if fewer is None:
                return False
            self._narrowed = time.monotonic()
            told = ended.message.rstrip(".")
            self._warn(node, f"{told}; memory ran out, so {fewer} at once from now on.")
        self._waiting.hold(node, seconds=0.0, share=0.0, because="memory ran out")
        self._schedule.put_back(node)  # also if it began before the last reduction
        return True

    def _warn(self, node: ScheduledJob, message: str) -> None:
        self._store.log(node.key, message)
        self._emit(events.JobWarning(key=node.key, label=node.job.label, message=message))

    def _give_up(self, node: ScheduledJob, ended: Ended) -> None:
        message = ended.message
        if ended.status == "died":
            times = self._tries[node.key].count
            often = f", {times} times" if times > 1 else ""
            message += f"{often}. What it saved is kept; the next run continues from there."
        if ended.status == "died" or ended.trouble:  # final, so other runs need not retry it
            spec, trace = node.job.spec, ended.traceback
            try:
                self._store.fail(node.key, spec, message=message, traceback=trace)
            except StoreError as error:
                message += f" ({error})" if ended.status == "died" else ""
        self._fail(node, message, fault=ended.fault)

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
            elif status == "running":
                self._held.append(node)
                self._tell_of_wait(node)
            elif status == "failed" and not (failure := self._failure(node)).get("may_pass"):
                self._fail(node, str(failure.get("message", "It failed in another run.")))
            else:  # the other run was stopped or killed, or met a temporary failure
                with self._store.claim(node.key):
                    pass  # removes a silent holder's lease, which workers have not watched
                self._schedule.put_back(node)

    def _failure(self, node: ScheduledJob) -> Mapping[str, object]:
        try:
            return self._store.failure(node.key) or {}
        except Damaged as error:
            return {"message": f"It failed in another run. {error}"}

    def _tell_of_wait(self, node: ScheduledJob) -> None:
        """Warn, once for each wait, that another run is waiting to retry a job."""
        progress = self._store.progress(node.key)
        note = str(progress.get("note"))
        if progress.get("waits") and self._waits_told.get(node.key) != note:
            self._waits_told[node.key] = note
            message = f"In another run it {note}"
            self._emit(events.JobWarning(key=node.key, label=node.job.label, message=message))

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
        own = self._work_own + done_here
        rate = own / seconds if seconds > 0 else 0.0
        left = max(0.0, self._work_total - finished)
        # The jobs of the longest chain run one after another, however many workers there are.
        width = max(1, len(self._under_way))
        steady = self._steady.rate(now=now, done=own, least=TELLING * self._work_total)
        eta = None if steady is None else max(left, chain * width) / steady
        self._emit(
            events.RunProgress(
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
        """Let Ctrl-C, SIGTERM and SIGUSR1 stop the run after jobs have saved, a second one at once.

        After SIGTERM, a timer acts as the second signal, before the scheduler sends SIGKILL.
        """
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread may set handlers, so those in place stay
            return
        before = [signal.signal(number, self._on_signal) for number in STOPPING]
        try:
            yield
        except RanksLost:
            # Launchers now send signals to every rank; this one has yet to report the error.
            before = [signal.SIG_IGN for _ in STOPPING]
            raise
        finally:
            for number, handler in zip(STOPPING, before, strict=True):
                signal.signal(number, handler)
            if self._stopped_by == signal.SIGTERM:
                signal.setitimer(signal.ITIMER_REAL, 0)
                signal.signal(signal.SIGALRM, signal.SIG_DFL)

    @contextmanager
    def _time_limit(self) -> Iterator[None]:
        """Stop the run, letting jobs save, when its time limit is reached."""
        seconds = self._limits.stop_after
        if seconds is None:
            yield
            return
        timer = threading.Timer(max(seconds, 0.0), self._on_time)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _on_time(self) -> None:
        if not self._stops:
            self._stops = 1
            self._stopped_why = " at its time limit"
            self._executor.stop()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._stops += 1
        self._executor.stop()
        if self._stops == 1:
            self._stopped_by = number
            if number == signal.SIGTERM:
                signal.signal(signal.SIGALRM, self._on_signal)
                signal.setitimer(signal.ITIMER_REAL, GRACE_SECONDS)
        else:
            # A rank that stops within a step is lost to the others, which wait for it there.
            kind = RanksLost if current().together else Interrupted
            raise kind(
                "Stopped at once: unfinished jobs continue from their last checkpoints; those that "
                "have none, such as trainings by your own function, start over.",
                by=self._stopped_by,
            )
