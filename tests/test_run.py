"""The run: same records however it is run, stopped, killed or shared; failure is data."""

import hashlib
import io
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from rich.console import Console

from regrow.core import registry
from regrow.core.durations import clock
from regrow.errors import ConfigError, Interrupted, RanksLost, RegrowError, TrainingError
from regrow.jobs.base import Context, Defaults, Outcome
from regrow.run import (
    Event,
    JobBlocked,
    JobDone,
    JobFailed,
    JobProgress,
    JobStarted,
    JobWarning,
    RunProgress,
    run,
)
from regrow.run.display import _Screen, describe, display
from regrow.run.schedule import Schedule, ScheduledJob
from regrow.run.troubles import how_it_ended
from regrow.store import Store


@dataclass(frozen=True, kw_only=True)
class Walk(Defaults):
    """A job that walks at random, from where its inputs ended; every step can be resumed."""

    name: str
    steps: int = 5
    inputs: "tuple[Walk, ...]" = ()
    flops: float = 0.0
    seed: int = 0
    seconds: float = 0.0  # for each step; not part of what it is
    trace: Path | None = None  # where it says that it was started; not part of what it is
    trouble: str = ""

    kind = "walk"

    @property
    def key(self) -> str:
        parts = [self.name, str(self.steps), *(before.key for before in self.inputs)]
        return hashlib.sha256("/".join(parts).encode()).hexdigest()

    @property
    def label(self) -> str:
        return self.name

    @property
    def spec(self) -> dict[str, Any]:
        return {"name": self.name, "steps": self.steps}

    def run(self, context: Context) -> Outcome:
        if self.trace is not None:
            with self.trace.open("a") as file:
                file.write(f"{self.name} {os.getpid()}\n")
        self._stumble()
        place = torch.zeros(64)
        for before in self.inputs:
            assert context.record(before)["end"] == pytest.approx(
                float(context.tensors(before)["place"].sum())
            )
            place += context.tensors(before)["place"]
        step = 0
        if saved := context.load_checkpoint():
            place, step = saved[0]["place"], saved[1]["step"]
        while step < self.steps:
            generator = torch.Generator().manual_seed(step)
            place = (place + torch.randn(64, generator=generator) @ torch.ones(64, 64)).sin()
            place += torch.rand(64)  # the global random state, as a user's dropout would draw from
            step += 1
            time.sleep(self.seconds)
            if context.checkpoint_due():
                context.save_checkpoint({"place": place}, {"step": step})
            context.tick(step / self.steps, f"step {step}")
        record = {"end": float(place.sum()), "threads": torch.get_num_threads()}
        return Outcome(record, {"place": place, "luck": torch.rand(3)})

    def _stumble(self) -> None:
        if self.trouble == "diverge":
            raise TrainingError("The loss is not finite in epoch 3. Lower the learning rate.")
        if self.trouble == "bug":
            raise ZeroDivisionError("oops")
        if self.trouble == "lose":
            raise RanksLost("The ranks cannot continue.")
        if self.trouble.startswith("SIG"):
            os.kill(os.getpid(), signal.Signals[self.trouble])
        if self.trouble == "die once" and num_starts(self.trace, self.name) == 1:
            os.kill(os.getpid(), signal.SIGKILL)


def num_starts(trace: Path | None, name: str = "") -> int:
    """Count how often jobs were started, or one of them."""
    if trace is None or not trace.exists():
        return 0
    return sum(line.startswith(name) for line in trace.read_text().splitlines())


def diamond(**common: Any) -> list[Walk]:
    """Make a small study: two parents, arms on each, and one job that needs all."""
    parents = [Walk(name=f"parent {i}", **common) for i in range(2)]
    arms = [Walk(name=f"arm {i}", inputs=(parents[i % 2],), **common) for i in range(4)]
    return [*arms, Walk(name="last", inputs=(*arms, parents[0]), **common)]


def results(store: Store) -> dict[str, tuple[dict[str, Any], bytes]]:
    """Return what must be the same however it came about: all but the times."""
    found = {}
    for key in store.snapshot().done:
        folder = store.root / "records" / key[:2] / key
        record = json.loads((folder / "record.json").read_text())
        assert record.pop("timing")["seconds"] >= 0
        found[key] = (record, (folder / "tensors.safetensors").read_bytes())
    return found


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "a \"b\" 'c'")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    store = Store.open(tmp_path_factory.mktemp("undisturbed"))
    run(diamond(), store, workers=0)
    return results(store)


def test_run_does_every_job_and_those_it_stands_on(store: Store) -> None:
    events: list[Event] = []
    summary = run(diamond(), store, workers=0, on_event=events.append)
    assert summary.complete
    assert len(summary.done) == 7
    assert not summary.reused
    started = [event.label for event in events if isinstance(event, JobStarted)]
    assert sorted(started) == sorted(e.label for e in events if isinstance(e, JobDone))
    assert started.index("parent 0") < started.index("arm 0") < started.index("last")
    last = events[-1]
    assert isinstance(last, RunProgress)
    assert (last.jobs_done, last.jobs_total, last.share) == (7, 7, 1.0)
    assert last.eta_seconds == 0.0
    record = store.record(diamond()[0].key, spec=diamond()[0].spec)
    assert record["kind"] == "walk"
    assert record["inputs"] == [diamond()[0].inputs[0].key]
    assert not list((store.root / "running").iterdir())


def test_second_run_does_nothing(store: Store, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    run(diamond(trace=trace), store, workers=0)
    summary = run(diamond(trace=trace), store, workers=0)
    assert len(summary.reused) == 7
    assert not summary.done
    assert num_starts(trace) == 7


def test_missing_inputs_of_what_is_done_are_needed_and_it_is_not_done_again(store: Store) -> None:
    parent = Walk(name="parent")
    child = Walk(name="child", inputs=(parent,))
    run([child], store, workers=0)
    assert set(Schedule([child], store.snapshot().done - {parent.key}).nodes) == {parent.key}


def test_workers_give_the_same_bytes_as_this_process(
    store: Store, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    trace = tmp_path / "trace"
    summary = run(diamond(trace=trace, seconds=0.02), store, workers=2)
    assert summary.complete
    assert results(store) == undisturbed
    processes = {line.rsplit(" ", 1)[1] for line in trace.read_text().splitlines()}
    assert len(processes) <= 2  # started once each, not once per job
    assert str(os.getpid()) not in processes


def test_result_does_not_depend_on_what_ran_before(store: Store, tmp_path: Path) -> None:
    jobs = [Walk(name=f"job {i}") for i in range(3)]
    other = Store.open(tmp_path / "other")
    run(jobs, store, workers=0)
    torch.manual_seed(17)
    for job in jobs[::-1]:
        run([job], other, workers=0)
    assert results(store) == results(other)


def test_run_leaves_threads_and_random_state_of_the_caller_alone(store: Store) -> None:
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    run([Walk(name="job")], store, workers=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_failing_job_leaves_the_others_running(store: Store, workers: int) -> None:
    bad = Walk(name="bad", trouble="diverge")
    bug = Walk(name="bug", trouble="bug")
    needs = Walk(name="needs", inputs=(bad,))
    deeper = Walk(name="deeper", inputs=(needs, bug))
    good = [Walk(name=f"good {i}") for i in range(3)]
    events: list[Event] = []
    summary = run([bad, bug, deeper, *good], store, workers=workers, on_event=events.append)
    assert sorted(summary.done) == ["good 0", "good 1", "good 2"]
    assert sorted(summary.failed) == ["bad", "bug"]
    assert sorted(summary.blocked) == ["deeper", "needs"]
    assert not summary.complete
    messages = {event.label: event.message for event in events if isinstance(event, JobFailed)}
    assert messages["bad"] == "The loss is not finite in epoch 3. Lower the learning rate."
    assert messages["bug"] == "ZeroDivisionError: oops"
    assert len([event for event in events if isinstance(event, JobBlocked)]) == 2
    failure = store.failure(bug.key)
    assert failure is not None
    assert "in _stumble" in failure["traceback"]
    assert failure["spec"] == bug.spec


def test_failed_job_is_tried_again_by_the_next_run(store: Store) -> None:
    assert run([Walk(name="job", trouble="bug")], store, workers=0).failed == ("job",)
    assert run([Walk(name="job")], store, workers=0).done == ("job",)
    assert store.failure(Walk(name="job").key) is None


def test_worker_that_dies_twice_fails_its_job_only(store: Store, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    jobs = [
        Walk(name="fatal", trouble="SIGSEGV", trace=trace),
        Walk(name="bug", trouble="bug"),
        Walk(name="good", trace=trace),
    ]
    events: list[Event] = []
    summary = run(jobs, store, workers=2, on_event=events.append)
    assert summary.done == ("good",)
    assert sorted(summary.failed) == ["bug", "fatal"]
    warnings = {event.label: event.message for event in events if isinstance(event, JobWarning)}
    assert [*warnings] == ["fatal"]
    assert "crashed with SIGSEGV" in warnings["fatal"]
    assert num_starts(trace, "fatal") == 2
    failure = store.failure(jobs[0].key)
    assert failure is not None
    assert "crashed with SIGSEGV" in failure["message"]
    assert ", 2 times. What it saved is kept" in failure["message"]
    assert "_stumble" in failure["traceback"], "where it was when it crashed"


def test_single_worker_that_is_killed_does_not_end_the_command(
    store: Store, tmp_path: Path
) -> None:
    events: list[Event] = []
    job = Walk(name="unlucky", trouble="die once", trace=tmp_path / "trace")
    assert run([job], store, workers=1, on_event=events.append).done == ("unlucky",)
    (warning,) = [event.message for event in events if isinstance(event, JobWarning)]
    assert "killed with SIGKILL, perhaps because memory ran out" in warning


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGBUS", "SIGILL", "SIGFPE"])
def test_crash_is_not_called_a_lack_of_memory(name: str) -> None:
    told = how_it_ended(-signal.Signals[name])
    assert told.startswith(f"crashed with {name}, which is a fault in compiled code")
    assert "memory ran out" not in told


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (-signal.SIGKILL, "was killed with SIGKILL, perhaps because memory ran out"),
        (-signal.SIGTERM, "was ended by SIGTERM"),
        (-200, "was ended by signal 200"),
        (0, "ended without a message (exit code 0)"),
    ],
)
def test_other_ends_are_named(code: int, told: str) -> None:
    assert how_it_ended(code).startswith(told)


@pytest.mark.slow
def test_kill_of_a_worker_resumes_its_job_from_the_checkpoint(store: Store, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    common: dict[str, Any] = {"steps": 60, "seconds": 0.01, "trace": trace}
    jobs = [Walk(name="one", **common), Walk(name="two", **common)]
    resumed: list[float] = []

    def kill_once(event: Event) -> None:
        if isinstance(event, JobProgress) and event.label == "one":
            if event.fraction > 0.3 and num_starts(trace, "one") == 1:
                pid = next(s for s in trace.read_text().splitlines() if s.startswith("one "))
                os.kill(int(pid.split()[1]), signal.SIGKILL)
            elif num_starts(trace, "one") == 2:
                resumed.append(event.fraction)

    summary = run(jobs, store, workers=2, on_event=kill_once, checkpoint_seconds=0.02)
    assert summary.complete
    assert resumed[0] > 0.1
    alone = Store.open(tmp_path / "alone")
    run(jobs, alone, workers=0)
    assert results(store) == results(alone)


@pytest.mark.parametrize(("workers", "number"), [(0, signal.SIGTERM), (2, signal.SIGINT)])
def test_signal_saves_what_is_under_way_and_the_next_run_goes_on(
    store: Store, tmp_path: Path, workers: int, number: int
) -> None:
    jobs = [Walk(name=f"job {i}", steps=1000, seconds=0.01) for i in range(2)]
    same = [Walk(name=f"job {i}", steps=1000) for i in range(2)]
    handler = signal.getsignal(number)
    interrupt = once(lambda: os.kill(os.getpid(), number))
    moving: set[str] = set()

    def stop(event: Event) -> None:
        if isinstance(event, JobProgress) and event.fraction > 0.01:
            moving.add(event.key)
        if len(moving) == max(1, workers):
            interrupt()

    with pytest.raises(Interrupted, match="0 of 2 jobs are done"):
        run(jobs, store, workers=workers, on_event=stop, checkpoint_seconds=1000)
    assert signal.getsignal(number) is handler
    assert store.snapshot().paused == moving
    fractions: dict[str, float] = {}

    def first(event: Event) -> None:
        if isinstance(event, JobProgress):
            fractions.setdefault(event.key, event.fraction)

    assert run(same, store, workers=0, on_event=first).complete
    assert all(fractions[key] > 0.01 for key in moving)
    alone = Store.open(tmp_path / "alone")
    run(same, alone, workers=0)
    assert results(store) == results(alone)


def once(action: Callable[[], None]) -> Callable[[], None]:
    done = threading.Event()

    def act() -> None:
        if not done.is_set():
            done.set()
            action()

    return act


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_second_signal_stops_at_once(store: Store, workers: int) -> None:
    jobs = [Walk(name=f"job {i}", steps=3, seconds=30) for i in range(2)]

    def twice() -> None:
        for delay in (0.3, 0.8):
            threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT)).start()

    interrupt = once(twice)

    def stop(event: Event) -> None:
        if isinstance(event, JobStarted):
            interrupt()

    start = time.monotonic()
    with pytest.raises(Interrupted):
        run(jobs[: 1 if workers == 0 else 2], store, workers=workers, on_event=stop)
    assert time.monotonic() - start < 20
    assert not store.snapshot().running


def test_a_lost_rank_is_not_silenced_by_the_launcher_before_it_says_why(store: Store) -> None:
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    try:
        with pytest.raises(RanksLost, match="cannot continue"):
            run([Walk(name="job", trouble="lose")], store, workers=0)
        # What launchers send to the ranks that are left.
        assert [signal.getsignal(number) for number in numbers] == [signal.SIG_IGN] * 2
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
    assert not store.snapshot().failed


def test_signals_are_held_back_from_the_first_process_that_is_started() -> None:
    code = """if True:
        import signal
        from multiprocessing import get_context
        from regrow.run.worker import held_back
        with held_back(signal.SIGINT, signal.SIGTERM):
            process = get_context("spawn").Process(target=print)
            process.start()
            print(*sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())))
        process.join()
        print(*sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert [line for line in done.stdout.split("\n") if line] == ["2 15"]


def test_damaged_checkpoint_is_given_up_with_a_warning(store: Store, tmp_path: Path) -> None:
    job = Walk(name="job")
    folder = store.root / "running" / job.key
    folder.mkdir()
    (folder / "checkpoint.safetensors").write_bytes(b"\x40\0\0\0\0\0\0\0{")
    events: list[Event] = []
    assert run([job], store, workers=0, on_event=events.append).complete
    warning = next(event for event in events if isinstance(event, JobWarning))
    assert "The job starts over. The checkpoint" in warning.message
    alone = Store.open(tmp_path / "alone")
    run([job], alone, workers=0)
    assert results(store) == results(alone)


def test_what_is_damaged_is_named_set_aside_and_done_anew(store: Store, tmp_path: Path) -> None:
    parent, other = Walk(name="parent"), Walk(name="other")
    child = Walk(name="child", inputs=(parent,))
    store.commit(parent.key, {"spec": {"name": "somebody else"}}, {})
    store.fail(other.key, other.spec, message="no luck")
    (store.root / "failed" / f"{other.key}.json").write_text("{}")
    events: list[Event] = []
    assert run([child, other], store, workers=0, on_event=events.append).complete
    warnings = {e.label: e.message for e in events if isinstance(e, JobWarning)}
    assert "belongs to another job: its 'spec.name'" in warnings["parent"]
    assert f"moved to {store.root / 'damaged' / parent.key}-1" in warnings["parent"]
    assert "it has no digest" in warnings["other"]
    assert json.loads((store.root / "damaged" / f"failed-{other.key}-1").read_text()) == {}
    alone = Store.open(tmp_path / "alone")
    run([child, other], alone, workers=0)
    assert results(store) == results(alone)


def test_damaged_tensors_are_done_anew_and_what_stands_on_them_is_not(store: Store) -> None:
    parent = Walk(name="parent")
    child = Walk(name="child", inputs=(parent,))
    run([child], store, workers=0)
    before = results(store)
    file = store.root / "records" / parent.key[:2] / parent.key / "tensors.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x55")
    assert run([child], store, workers=0).done == ("parent",)
    assert results(store) == before


def test_workers_must_be_a_count(store: Store) -> None:
    with pytest.raises(ConfigError, match=r"'workers' must be an int of at least 0\. Got -1"):
        run([], store, workers=-1)


def test_nothing_to_do_is_done_at_once(store: Store) -> None:
    assert run([], store).complete


# --- other processes ----------------------------------------------------------------------------

STUDY = """
import sys
from pathlib import Path
from statistics import fmean
sys.path.insert(0, sys.argv[1])
from test_run import diamond
from regrow.run import run
from regrow.store import Store

if __name__ == "__main__":
    store, trace, workers, steps, seconds = sys.argv[2:]
    jobs = diamond(steps=int(steps), seconds=float(seconds), trace=Path(trace))
    summary = run(jobs, Store.open(store), workers=int(workers), checkpoint_seconds=0.03)
    print(len(summary.done), len(summary.reused), flush=True)
"""


def start_study(
    folder: Path, store: Store, *, steps: int, seconds: float, workers: int = 2
) -> subprocess.Popen[str]:
    script = folder / "study.py"
    script.write_text(STUDY)
    here = str(Path(__file__).parent)
    command = [sys.executable, script, here, store.root, folder / "trace", workers, steps, seconds]
    return subprocess.Popen(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_two_runs_share_one_store_and_do_each_job_once(
    store: Store, tmp_path: Path, workers: int
) -> None:
    runs = [start_study(tmp_path, store, steps=20, seconds=0.02, workers=workers) for _ in "ab"]
    outputs = [process.communicate(timeout=120)[0].split() for process in runs]
    assert [int(done) + int(reused) for done, reused in outputs] == [7, 7]
    assert sum(int(done) for done, _ in outputs) == 7
    lines = (tmp_path / "trace").read_text().splitlines()
    assert len(lines) == len({line.rsplit(" ", 1)[0] for line in lines}) == 7


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_workers_end_when_their_parent_is_killed(store: Store, tmp_path: Path) -> None:
    with start_study(tmp_path, store, steps=1000, seconds=0.05) as parent:
        trace = tmp_path / "trace"
        wait_until(lambda: num_starts(trace) == 2)
        workers = [int(line.rsplit(" ", 1)[1]) for line in trace.read_text().splitlines()]
        assert all(alive(pid) for pid in workers)
        parent.kill()
    wait_until(lambda: not any(alive(pid) for pid in workers), seconds=2)
    wait_until(lambda: not store.snapshot().running, seconds=1)


def wait_until(condition: Callable[[], bool], *, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


@pytest.mark.slow
def test_study_killed_at_random_moments_ends_in_the_same_bytes(
    store: Store, tmp_path: Path
) -> None:
    moments = random.Random(0)
    trace = tmp_path / "trace"
    for _ in range(5):
        begun = num_starts(trace)
        process = start_study(tmp_path, store, steps=100, seconds=0.01)
        while num_starts(trace) == begun:
            time.sleep(0.02)
        time.sleep(moments.uniform(0, 1.0))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    with start_study(tmp_path, store, steps=100, seconds=0) as process:
        output = process.communicate(timeout=120)[0].split()
    assert sum(map(int, output)) == 7
    alone = Store.open(tmp_path / "alone")
    run(diamond(steps=100), alone, workers=0)
    assert results(store) == results(alone)
    assert not list((store.root / "running").iterdir())


STUCK = (
    """
if __name__ == "__mp_main__":  # what a worker makes of the main module
    raise SystemExit(3)
"""
    + STUDY
)


def test_worker_that_cannot_start_is_a_clear_error(store: Store, tmp_path: Path) -> None:
    script = tmp_path / "stuck.py"
    script.write_text(STUCK)
    here = str(Path(__file__).parent)
    command = [sys.executable, script, here, store.root, tmp_path / "trace", 2, 1, 0]
    ended = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert RegrowError.__name__ in ended.stderr
    assert "did not start: it ended without a message (exit code 3)" in ended.stderr
    assert "needs `if __name__ == '__main__':`" in ended.stderr


USER_FILE = """
from dataclasses import dataclass
from regrow.jobs.base import Outcome, Defaults

@dataclass(frozen=True)
class Mine(Defaults):
    key: str
    kind = label = "mine"
    inputs = ()
    spec = {}
    flops = 0.0

    def run(self, context):
        return Outcome({"mine": True})
"""


def test_workers_know_the_files_that_the_user_gave(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_LOADED", [])
    file = tmp_path / "mine.py"
    file.write_text(USER_FILE)
    registry.load_file(file)
    loaded = [m for name, m in sys.modules.items() if name.endswith("_mine")]
    mine = next(m.Mine for m in loaded if hasattr(m, "Mine"))
    jobs = [mine("aa"), mine("bb")]
    assert len(run(jobs, store, workers=1).done) == 2


@pytest.mark.slow
def test_file_that_the_user_gave_and_removed_is_a_clear_error(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_LOADED", [tmp_path / "gone.py"])
    with pytest.raises(RegrowError, match=r"--with .*gone\.py: no such file"):
        run([Walk(name="one"), Walk(name="two")], store, workers=2)


# --- order and cost -----------------------------------------------------------------------------


def order(jobs: list[Walk]) -> list[str]:
    schedule = Schedule(jobs, ())
    names = []
    while (node := schedule.take()) is not None:
        names.append(node.job.label)
        schedule.finish(node)
    assert schedule.num_open == 0
    return names


def test_longest_chain_of_work_goes_first() -> None:
    short = Walk(name="short", flops=1)
    long = Walk(name="long", flops=5)
    parent = Walk(name="parent", flops=2)
    prune = Walk(name="prune", inputs=(parent,))
    arm = Walk(name="arm", flops=4, inputs=(prune,))
    assert order([short, long, arm]) == ["parent", "long", "prune", "arm", "short"]


def test_jobs_of_unknown_cost_go_by_length_of_chain_then_as_given() -> None:
    first, second = Walk(name="first"), Walk(name="second")
    end = Walk(name="end", inputs=(Walk(name="begin"),))
    assert order([first, second, end]) == ["begin", "first", "second", "end"]


def arms_of(seed: int, *inputs: Walk) -> list[Walk]:
    """Make a short, a long and a middling training of one seed."""
    costs = {"fine-tune": 1, "scratch-b": 8, "scratch-e": 4}
    return [
        Walk(name=f"{arm} {seed}", flops=flops, seed=seed, inputs=inputs)
        for arm, flops in costs.items()
    ]


def test_all_arms_of_a_seed_go_before_those_of_the_next_in_the_order_of_the_study() -> None:
    pruned = Walk(name="pruned", seed=7)
    plain = {seed: Walk(name=f"plain {seed}", flops=2, seed=seed) for seed in (7, 3)}
    jobs = [pruned, *(job for seed in plain for job in (*arms_of(seed, plain[seed]), plain[seed]))]
    in_turn = [
        f"{arm} {seed}"
        for seed in (7, 3)
        for arm in ("plain", "scratch-b", "scratch-e", "fine-tune")
    ]
    assert order(jobs) == [*in_turn[:3], "pruned", *in_turn[3:]]


def test_what_several_seeds_need_goes_with_the_first_of_them() -> None:
    cut = Walk(name="cut", seed=5)
    jobs = [job for seed in (0, 1) for job in arms_of(seed, cut)]
    assert order(jobs)[:2] == ["cut", "scratch-b 0"]


def ends(jobs: list[Walk], workers: int, *, longest_first: bool = False) -> dict[str, float]:
    """Return when each job ends, if each takes as long as its FLOPs."""
    schedule = Schedule(jobs, ())
    of_all = 10**9 if longest_first else workers  # no chain is shorter than its share of the work
    under_way: list[tuple[float, int, ScheduledJob]] = []
    now, ended = 0.0, {}
    while schedule.num_open:
        while len(under_way) < workers and (node := schedule.take(of_all)) is not None:
            under_way.append((now + node.job.flops, node.index, node))
        under_way.sort()
        now, _, node = under_way.pop(0)
        ended[node.job.label] = now
        schedule.finish(node)
    return ended


def test_the_last_seed_does_not_keep_the_other_workers_waiting() -> None:
    jobs = [
        job
        for seed in range(3)
        for job in arms_of(seed, Walk(name=f"plain {seed}", flops=8, seed=seed))
    ]
    ended = ends(jobs, workers=2)
    # 63 FLOPs take two workers 31.5 at the least; strictly seed by seed they take 37.
    assert max(ended.values()) == 33
    of_seed = [max(end for name, end in ended.items() if name.endswith(str(s))) for s in range(3)]
    assert of_seed[0] < of_seed[1] < of_seed[2]
    assert of_seed[0] < 22


def test_simulated_comparisons_show_their_first_seed_early_and_end_no_later() -> None:
    drawn = random.Random(0)
    longer, first = [], []
    for seeds, given, cells, workers in itertools.product(
        (2, 3, 5, 10), (True, False), (1, 4), (1, 2, 4, 8, 16)
    ):
        sizes = [10_000 ** drawn.uniform(0.5, 1.0) for _ in range(cells)]
        jobs = [job for seed in range(seeds) for job in compared(seed, sizes, given=given)]
        ended = ends(jobs, workers)
        last = max(ended.values())
        longer.append(last / max(ends(jobs, workers, longest_first=True).values()))
        first.append(max(end for name, end in ended.items() if name.endswith(" 0")) / last)
    print(f"{fmean(longer):.3f} times as long, at most {max(longer):.3f}; first {fmean(first):.2f}")
    assert fmean(longer) < 1.015
    assert max(longer) < 1.15
    assert fmean(first) < 0.6


def compared(seed: int, sizes: list[float], *, given: bool) -> list[Walk]:
    """Make the jobs of one seed of a comparison: networks that cost so much, cut to half."""
    jobs = []
    for place, size in enumerate(sizes):
        plain = Walk(name=f"unpruned {place} {seed}", flops=size, seed=seed)
        before = () if given else (plain,)
        cut = Walk(name=f"cut {place} {seed}", seed=seed, inputs=before)
        shares = {"fine-tune": 0.125, "scratch-e": 0.5, "scratch-b": 1.0, "uniform": 0.5}
        jobs += [
            *before,
            *(
                Walk(name=f"{arm} {place} {seed}", flops=share * size, seed=seed, inputs=(cut,))
                for arm, share in shares.items()
            ),
        ]
    return jobs


def test_a_short_training_completes_its_seed_before_a_long_one_of_the_last_seed() -> None:
    ended = ends([job for seed in range(2) for job in arms_of(seed)], workers=2)
    assert max(ended[f"{arm} 0"] for arm in ("fine-tune", "scratch-e", "scratch-b")) == 8
    assert max(ended.values()) == 13  # 26 FLOPs


def test_with_workers_for_everything_the_longest_chain_decides() -> None:
    jobs = [job for seed in range(3) for job in arms_of(seed)]
    assert max(ends(jobs, workers=8).values()) == 8


def test_a_job_that_is_put_back_is_handed_out_again_once() -> None:
    first, second = Walk(name="first", flops=3), Walk(name="second", flops=2, seed=1)
    schedule = Schedule([first, second], ())
    node = schedule.take()
    assert node is not None
    schedule.put_back(node)
    assert [schedule.take(), schedule.take(), schedule.take()] == [
        node,
        schedule.nodes[second.key],
        None,
    ]


def test_long_chains_do_not_exhaust_the_stack(store: Store) -> None:
    job = Link(index=0)
    for index in range(1, 5000):
        job = Link(index=index, inputs=(job,))
    assert len(Schedule([job], ()).nodes) == 5000


@dataclass(frozen=True, kw_only=True)
class Link(Defaults):
    """A job that costs nothing, so that what is left is the cost of running it."""

    index: int
    inputs: "tuple[Link, ...]" = ()
    flops: float = 1.0
    kind = "link"

    @property
    def key(self) -> str:
        return f"{self.index * 2654435761 % 2**32:08x}"

    @property
    def label(self) -> str:
        return str(self.index)

    @property
    def spec(self) -> dict[str, Any]:
        return {"index": self.index}

    def run(self, context: Context) -> Outcome:
        return Outcome({})


def fan(num: int) -> list[Link]:
    """Make a study of ``num`` jobs: one parent to every nine arms."""
    parents = [Link(index=i) for i in range(num // 10)]
    arms = [Link(index=i, inputs=(parents[i % len(parents)],)) for i in range(num // 10, num)]
    return [*parents, *arms]


def test_schedule_makes_as_many_calls_per_job_for_any_number_of_jobs() -> None:
    def calls_per_job(num: int) -> float:
        jobs, calls = fan(num), 0

        def count(*_: object) -> None:
            nonlocal calls
            calls += 1

        before = sys.getprofile()
        sys.setprofile(count)
        try:
            schedule = Schedule(jobs, ())
            while (node := schedule.take()) is not None:
                schedule.finish(node)
        finally:
            sys.setprofile(before)
        return calls / num

    assert calls_per_job(2_000) < 1.5 * calls_per_job(100)


@pytest.mark.slow
def test_run_costs_the_same_per_job_from_ten_to_two_thousand_jobs(tmp_path: Path) -> None:
    def seconds_per_job(num: int) -> float:
        times: list[float] = []

        def note_time(event: Event) -> None:
            if isinstance(event, JobStarted | JobDone):  # so without the start of the workers
                times.append(time.perf_counter())

        store = Store.open(tmp_path / str(num))
        run(fan(num), store, workers=2, on_event=note_time)
        assert len(store.keys()) == num
        return (times[-1] - times[0]) / num

    small, large = seconds_per_job(100), seconds_per_job(2000)
    assert large < 2 * small + 1e-3
    assert large < 0.02  # about 1 ms here; the syncs of a slow disk cost more


# --- display ------------------------------------------------------------------------------------


def test_pipe_gets_a_line_per_finished_job_and_one_per_trouble(store: Store) -> None:
    out = io.StringIO()
    jobs = [Walk(name="[good] job"), Walk(name="bad", trouble="diverge")]
    jobs.append(Walk(name="after", inputs=(jobs[1],)))
    with display(Console(file=out, width=40)) as show:
        run(jobs, store, workers=0, on_event=show)
    assert out.getvalue().startswith("3 jobs to do\n")
    lines = [re.sub(r" \(log: .*\.log\)$", "", line) for line in out.getvalue().splitlines()]
    assert sorted(lines) == [
        "3 jobs to do",
        "FAILED bad: The loss is not finite in epoch 3. Lower the learning rate.",
        "blocked after: needs bad, which failed",
        "done [good] job (0:00)",
    ]


def test_pipe_is_told_how_far_running_jobs_are(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("regrow.run.display.SUMMARY_SECONDS", (0.0,))
    monkeypatch.setattr("regrow.run.coordinator.LEAST_SECONDS", 0.1)
    out = io.StringIO()
    with display(Console(file=out, width=40)) as show:
        jobs = [Walk(name="long", steps=40, seconds=0.02)]
        run(jobs, store, workers=0, on_event=show)
    first, *lines, last = out.getvalue().splitlines()
    assert (first, last[:9]) == ("1 job to do", "done long")
    assert any(
        re.search(r"0/1 jobs, [1-9]\d* % .*ETA.*; running: long \([1-9]", line) for line in lines
    )


def test_no_time_left_is_said_before_a_rate_is_known(store: Store) -> None:
    seen: list[Event] = []
    run([Walk(name="short", steps=40, seconds=0.02)], store, workers=0, on_event=seen.append)
    told = [e for e in seen if isinstance(e, JobProgress | RunProgress)]
    assert {e.eta_seconds for e in told} <= {None, 0.0}


def test_terminal_shows_the_run_and_its_running_jobs(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("regrow.run.coordinator.LEAST_SECONDS", 0.1)
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100)
    with display(console) as show:
        run([Walk(name="a job", steps=40, seconds=0.02)], store, workers=0, on_event=show)
    assert "0/1 jobs" in out.getvalue()
    assert "a job" in out.getvalue()
    assert "ETA" in out.getvalue()


@pytest.mark.parametrize("seconds", [75, 80_000, 900_000])
def test_terminal_of_80_columns_shows_when_long_labels_are_done(
    store: Store, seconds: float
) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=80, height=30, color_system=None)
    label = "imagenet-resnet-34 (width 0.25) network-slimming resnet-34-a scratch-b seed 1"
    screen = _Screen(console)
    screen(
        RunProgress(
            jobs_done=1137,
            jobs_total=20_000,
            reused=2,
            failed=11,
            blocked=103,
            running=2,
            held=3,
            flops_done=1e9,
            flops_total=4e9,
            share=0.25,
            seconds=seconds,
            jobs_per_minute=104.0,
            flops_per_second=1e7,
            eta_seconds=seconds,
        )
    )
    for number in range(2):
        screen(
            JobProgress(
                key=str(number),
                label=f"{label}{number}",
                fraction=0.3,
                note="epoch 103 of 160, accuracy 87.65 %, loss 0.1234",
                seconds=seconds,
                eta_seconds=seconds,
            )
        )
    console.print(screen.render())
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    rows = [line for line in lines if "seed 1" in line]
    assert len(rows) == 2  # a line each, its two ends kept
    assert all("imagenet-resnet" in row and "epoch" in row and len(row) <= 80 for row in rows)
    assert all(f"ETA {clock(seconds)}" in row for row in rows)
    assert f"ETA {clock(seconds)}" in lines[1]
    assert all(len(line) <= 80 for line in lines)


def test_position_of_a_run_is_told_in_words() -> None:
    progress = RunProgress(
        jobs_done=7,
        jobs_total=20,
        reused=2,
        failed=1,
        blocked=0,
        running=2,
        held=3,
        flops_done=1e9,
        flops_total=4e9,
        share=0.25,
        seconds=75,
        jobs_per_minute=4.0,
        flops_per_second=1e7,
        eta_seconds=300,
    )
    assert describe(progress) == (
        "7/20 jobs, 25 % of the work, ETA 5:00, 1:15 so far, 4.0 jobs/min, 1 failed, 3 elsewhere"
    )
