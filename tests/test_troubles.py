"""Troubles of a run: what may pass is tried again, what lacks memory gets room, time is kept."""

import errno
import os
import re
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from commands import Command, write_study
from regrow.core.durations import read_duration
from regrow.errors import ConfigError, DataError, Interrupted, StoreError
from regrow.jobs.base import Context, Job, Outcome, Progress
from regrow.run import Event, JobFailed, JobWarning, coordinator, run, troubles
from regrow.run.executors import Deliver, Ended, Settings, half_of, threads
from regrow.run.schedule import Schedule, Waiting
from regrow.run.troubles import trouble_of
from regrow.run.worker import worker_processes
from regrow.store import Store
from regrow.studies.study import Study
from test_run import Walk, num_starts, once, results


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(troubles, "FIRST_WAIT", 0.01)


def caused(error: Exception, by: BaseException) -> Exception:
    error.__cause__ = by
    return error


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("error", "trouble"),
    [
        (FULL, "passing"),
        (caused(StoreError("Cannot write the record."), FULL), "passing"),
        (StoreError("I/O error: No space left on device (os error 28)"), "passing"),
        (caused(DataError("Cannot read."), OSError(errno.EIO, "Input/output error")), "passing"),
        (OSError(errno.ESTALE, "Stale file handle"), "passing"),
        (FileNotFoundError(errno.ENOENT, "No such file"), ""),
        (PermissionError(errno.EACCES, "Permission denied"), ""),
        (ZeroDivisionError("oops"), ""),
        (RuntimeError("shapes differ"), ""),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), "memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), "memory"),
        (MemoryError(), "memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "memory"),
    ],
)
def test_what_may_pass_is_told_by_its_cause(error: Exception, trouble: str) -> None:
    assert trouble_of(error) == trouble


@dataclass(frozen=True, kw_only=True)
class Stumbling(Walk):
    """A walk that ends in an error as often as a file says."""

    errors: tuple[Exception, ...] = ()

    def run(self, context: Context) -> Outcome:
        number = num_starts(self.trace, self.name)
        if number < len(self.errors):
            assert self.trace is not None
            with self.trace.open("a") as file:
                file.write(f"{self.name}\n")
            raise self.errors[number]
        return super().run(context)


def warnings_of(job: Job, store: Store, **options: Any) -> tuple[Any, list[str]]:
    seen: list[Event] = []
    summary = run([job], store, workers=0, on_event=seen.append, **options)
    return summary, [event.message for event in seen if isinstance(event, JobWarning)]


def test_what_passes_is_tried_again_and_leaves_nothing(store: Store, tmp_path: Path) -> None:
    job = Stumbling(name="job", errors=(FULL, FULL), trace=tmp_path / "trace")
    summary, told = warnings_of(job, store)
    assert summary.done == ("job",)
    assert [text.rpartition("; ")[2] for text in told] == [
        f"trying again in {wait} s." for wait in (0.01, 0.05)
    ]
    assert all(text.startswith("OSError: No space left on device (") for text in told)
    assert store.failure(job.key) is None


@pytest.mark.parametrize(
    ("error", "retries", "starts"),
    [(FULL, 3, 4), (FULL, 0, 1), (ValueError("no"), 3, 1), (MemoryError(), 3, 1)],
)
def test_what_does_not_pass_fails(
    store: Store, tmp_path: Path, error: Exception, retries: int, starts: int
) -> None:
    trace = tmp_path / "trace"
    job = Stumbling(name="job", errors=(error,) * 9, trace=trace)
    summary, _ = warnings_of(job, store, retries=retries)
    assert summary.failed == ("job",)
    assert num_starts(trace) == starts


def test_job_that_gets_on_is_not_given_up(store: Store) -> None:
    """A worker that is killed again and again, each time after a checkpoint, ends its job."""
    kills = 6
    job = Walk(name="job", steps=200, seconds=0.005)

    class Executor:
        """Workers of which each first one to have saved is lost."""

        num_busy = 0
        count = 0

        def __init__(self) -> None:
            self._jobs: list[Job] = []

        @property
        def num_free(self) -> int:
            return 1 - len(self._jobs)

        def start(self, job: Job) -> None:
            self._jobs.append(job)

        def poll(self, deliver: Deliver, *, seconds: float) -> None:
            if not self._jobs:
                time.sleep(0.001)
                return
            job = self._jobs.pop()
            at = self.count / 10
            deliver(job, Progress(0.0))
            deliver(job, Progress(at + 0.1, resumed_at=at))
            self.count += 1
            lost = Ended("died", message="It was killed", trouble="passing")
            deliver(job, lost if self.count <= kills else Ended("done"))

        def narrow(self) -> int | None:
            return None

        def stop(self) -> None:
            pass

        def close(self) -> None:
            pass

    schedule = Schedule([job], ())
    ended = coordinator.Coordinator(schedule, store, Executor(), lambda _: None).run()
    assert ended.done == ("job",)


# Other runs --------------------


def test_second_run_waits_for_what_the_first_tries_again(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(troubles, "FIRST_WAIT", 1.0)
    trace = tmp_path / "trace"
    job = Stumbling(name="job", errors=(FULL,), trace=trace)
    waits, first = threading.Event(), []

    def hear(event: Event) -> None:
        if isinstance(event, JobWarning):
            waits.set()

    def run_first() -> None:
        first.append(run([job], store, workers=0, on_event=hear))

    thread = threading.Thread(target=run_first)
    thread.start()
    try:
        assert waits.wait(60)
        assert store.snapshot().running == {job.key}
        progress = Store.open(store.root).progress(job.key)
        summary, told = warnings_of(job, Store.open(store.root))
    finally:
        thread.join()
    assert first[0].done + summary.done == ("job",)
    assert first[0].reused + summary.reused == ("job",)
    assert num_starts(trace) == 2
    assert progress["waits"] is True
    who = rf"process {os.getpid()} on \S+: OSError: No space left on device"
    assert re.match(rf"waits until \d\d:\d\d:\d\d to be tried again by {who}", progress["note"])
    assert told == [f"In another run it {progress['note']}"]
    assert not any((store.root / "running").iterdir())


@pytest.mark.parametrize("may_pass", [True, False])
def test_run_that_waited_tries_itself_what_may_pass(store: Store, may_pass: bool) -> None:
    """As where the other run was killed before it could try again."""
    job = Walk(name="job")
    with store.claim(job.key):
        found: list[tuple[Any, list[str]]] = []
        other = Store.open(store.root)
        thread = threading.Thread(target=lambda: found.append(warnings_of(job, other)))
        thread.start()
        time.sleep(0.5)
        store.fail(job.key, job.spec, message="the disk is full", may_pass=may_pass)
    thread.join()
    summary, _ = found[0]
    assert summary.done == (("job",) if may_pass else ())
    assert summary.failed == (() if may_pass else ("job",))


@pytest.mark.parametrize("retries", [0, 2])
def test_failure_that_was_given_up_is_final_for_other_runs(
    store: Store, tmp_path: Path, retries: int
) -> None:
    seen = []

    @dataclass(frozen=True, kw_only=True)
    class Looking(Stumbling):
        def run(self, context: Context) -> Outcome:
            seen.append(store.failure(self.key))
            return super().run(context)

    job = Looking(name="job", errors=(FULL,) * 9, trace=tmp_path / "trace")
    assert run([job], store, workers=0, retries=retries).failed == ("job",)
    failure = store.failure(job.key)
    assert failure is not None
    assert "may_pass" not in failure
    assert "raise self.errors" in failure["traceback"]
    assert len(seen) == retries + 1


def test_status_says_who_tries_a_job_again(command: Command, tmp_path: Path) -> None:
    study = Study.load(write_study(tmp_path))
    store = Store.open("regrow-store")
    job = study.jobs()[0]
    node = Schedule([job], ()).nodes[job.key]
    waiting = Waiting(store)
    waiting.add(node, seconds=5.0, share=0.4, because="OSError: Input/output error")
    try:
        told = command("status", "study.yaml")
        assert f"waiting {job.label}: 40% waits until " in told.out
        assert f"by process {os.getpid()} on " in told.out
        assert "OSError: Input/output error" in told.out
        assert not [*waiting.due()]
    finally:
        waiting.close()
    assert "waiting" not in command("status", "study.yaml").out


# Memory --------------------


def test_half_as_many_go_on_where_memory_runs_out(store: Store, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    errors = (torch.OutOfMemoryError("CUDA out of memory."),)
    hungry = Stumbling(name="hungry", errors=errors, trace=trace)
    others = [Walk(name=f"job {n}", steps=20, seconds=0.01) for n in range(5)]
    settings = Settings(device="cpu", checkpoint_seconds=100.0, together=True)
    executor = threads(4, store, settings)
    seen: list[Event] = []
    try:
        schedule = Schedule([hungry, *others], ())
        ended = coordinator.Coordinator(schedule, store, executor, seen.append).run()
        assert executor.num_free == 2
    finally:
        executor.close()
    assert len(ended.done) == 6
    (told,) = [event.message for event in seen if isinstance(event, JobWarning)]
    assert told.endswith("CUDA out of memory; memory ran out, so 2 at once from now on.")


def test_workers_that_are_too_many_end(store: Store) -> None:
    executor = worker_processes(2, store, Settings(device="cpu", checkpoint_seconds=100.0))
    try:
        deadline = time.monotonic() + 60
        while executor.num_free < 2:
            executor.poll(lambda job, message: None, seconds=0.1)
            assert time.monotonic() < deadline
        executor.start(Walk(name="job", steps=2))  # the other has just ended for want of memory
        assert executor.narrow() == 1
        assert executor.num_free == 0
        ended: list[Job] = []
        while not ended:
            executor.poll(
                lambda job, message: ended.append(job) if isinstance(message, Ended) else None,
                seconds=0.1,
            )
        assert executor.num_free == 1
        assert executor.narrow() is None
    finally:
        executor.close()


@pytest.mark.parametrize(
    ("most", "others", "left"), [(8, 7, 4), (3, 2, 1), (8, 1, 1), (8, 0, None)]
)
def test_half_is_of_those_that_ran_together(most: int, others: int, left: int | None) -> None:
    assert half_of(most, others) == left


def test_kernel_that_killed_for_memory_is_told_from_a_kill(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    counts = iter([3, 3, 4, 4])
    monkeypatch.setattr(troubles, "_memory_kills", lambda: next(counts))
    kills = troubles.MemoryKills()
    assert [kills.is_new() for _ in range(3)] == [False, True, False]
    assert troubles.how_it_ended(-9, killed_for_memory=True) == (
        "was killed by the system, because memory ran out"
    )


# Time and signals --------------------


@pytest.mark.parametrize("text", ["", "0", "-1", "9x", "m", "1:2:3:4", "1e3", "nan", "9 m"])
def test_duration_that_cannot_be_meant_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="A duration is a number of seconds, or one with units"):
        read_duration(text)


@pytest.mark.parametrize("workers", [0, 1])
def test_run_stops_in_good_order_when_its_time_is_over(store: Store, workers: int) -> None:
    job = Walk(name="job", steps=100_000, seconds=0.001)
    with pytest.raises(Interrupted, match="at its time limit: 0 of 1") as e:
        run([job], store, workers=workers, stop_after=4.0 if workers else 0.3)
    assert e.value.by == signal.SIGINT
    assert store.snapshot().paused == {job.key} or workers


def interrupted_by(number: int, store: Store, job: Job) -> Interrupted:
    interrupt = once(lambda: os.kill(os.getpid(), number))
    before = signal.getsignal(number), signal.getsignal(signal.SIGALRM)
    with pytest.raises(Interrupted) as stopped:
        run([job], store, workers=0, on_event=lambda _: threading.Timer(0.2, interrupt).start())
    assert (signal.getsignal(number), signal.getsignal(signal.SIGALRM)) == before
    return stopped.value


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_signals_of_schedulers_stop_in_good_order_and_are_told(store: Store, number: int) -> None:
    job = Walk(name="job", steps=10_000, seconds=0.002)
    assert interrupted_by(number, store, job).by == number
    assert store.snapshot().paused == {job.key}


def test_job_that_does_not_save_in_time_is_broken_off_after_sigterm(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coordinator, "GRACE_SECONDS", 0.3)
    started = time.monotonic()
    error = interrupted_by(signal.SIGTERM, store, Walk(name="job", steps=2, seconds=30))
    assert time.monotonic() - started < 10
    assert error.by == signal.SIGTERM


def test_command_ends_with_the_code_of_what_stopped_it(command: Command, tmp_path: Path) -> None:
    write_study(tmp_path, recipe={"epochs": 1000, "batch": 20, "lr": 0.05, "precision": "fp32"})
    ended = command("run", "study.yaml", "--workers", "0", "--stop-after", "0.5s")
    assert ended.code == 130
    assert "Stopped at its time limit: 0 of" in ended.err
    assert "The same command resumes: regrow run study.yaml --workers 0" in ended.err
    assert command("run", "study.yaml", "--stop-after", "soon").code == 2


# Logs --------------------


def test_job_leaves_a_log_that_a_failure_names(store: Store, tmp_path: Path) -> None:
    good, bad = Walk(name="good"), Walk(name="b\x1bad", trouble="bug")
    failed: list[JobFailed] = []

    def note(event: Event) -> None:
        if isinstance(event, JobFailed):
            failed.append(event)

    run([good, bad], store, workers=0, on_event=note)
    text = store.log_file(good.key).read_text()
    assert re.search(r"good: started by .*, process \d+, on cpu; Python .* torch", text)
    assert "step 1 (20%)" in text
    assert re.search(r"done after \d", text)
    (event,) = failed
    assert Path(event.log) == store.log_file(bad.key)
    text = store.log_file(bad.key).read_text()
    assert "failed after" in text
    assert "ZeroDivisionError: oops" in text
    assert "_stumble" in text, "the traceback"
    assert "\x1b" not in text


def test_log_that_cannot_be_written_ends_no_job(store: Store) -> None:
    (store.root / "logs").write_text("in the way")
    assert run([Walk(name="job")], store, workers=0).done == ("job",)
    assert results(store)
