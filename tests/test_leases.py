"""Leases: one holder at a time, told dead by its lock here and by its silence elsewhere."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from regrow.core import leases, processes
from regrow.core.leases import LEASE_VARIABLE, Lease, SilenceWatch, is_held, take
from regrow.core.processes import HOST_VARIABLE, fresh_name, is_litter, this_process
from regrow.errors import ClaimLost, StoreError
from regrow.run import run
from regrow.run.executors import Settings, execute
from regrow.store import Store
from test_run import Walk

KEY = "ab" + "0" * 62


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


@contextmanager
def on_host(name: str) -> Iterator[None]:
    """Be another machine for a moment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(HOST_VARIABLE, name)
        yield


class Clock:
    """A clock of a reader's own, moved by hand."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        patch.setattr("regrow.core.leases.time.monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def taken(folder: Path, host: str) -> Lease:
    with on_host(host):
        lease = take(folder, SilenceWatch())
    assert lease is not None
    return lease


def test_holder_of_another_host_is_judged_by_its_silence_on_the_readers_clock(
    tmp_path: Path, clock: Clock
) -> None:
    folder, watch = tmp_path / "job", SilenceWatch()
    lease = taken(folder, "first")
    owner = folder / "lock" / "owner"
    with on_host("second"):
        for skew in (-300, 300, 0):  # what the other host's clock says is nothing to us
            os.utime(owner, (time.time() + skew, time.time() + skew))
            assert is_held(folder, watch)
            assert take(folder, watch) is None
            clock.now += leases.LEASE_SECONDS / 4
        lease.renew()
        assert is_held(folder, watch), "it has just been heard of"
        clock.now += leases.LEASE_SECONDS - 1
        assert take(folder, watch) is None
        clock.now += 1
        assert not is_held(folder, watch)
        assert take(folder, SilenceWatch()) is None, "who looks for the first time cannot know"
        other = take(folder, watch)
        assert other is not None
    assert lease.is_lost()
    assert not other.is_lost()
    lease.renew()
    lease.release()  # neither harms the one that holds it now
    assert not other.is_lost()
    with on_host("second"):
        other.release()
    assert not folder.exists()


def test_holder_of_this_host_that_died_is_told_at_once(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from regrow.core.leases import SilenceWatch, take;"
    )
    code += "take(Path(sys.argv[1]), SilenceWatch()); import os; os._exit(9)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "job")], check=False)
    assert (tmp_path / "job" / "lock" / "owner").exists()
    assert not is_held(tmp_path / "job", SilenceWatch())
    lease = take(tmp_path / "job", SilenceWatch())
    assert lease is not None
    assert not lease.is_lost()
    lease.release()


def test_who_judged_an_earlier_holder_takes_nothing_from_the_present_one(tmp_path: Path) -> None:
    folder = tmp_path / "job"
    first = taken(folder, "first")
    leases._move_away(folder / "lock", first.token)
    second = taken(folder, "second")
    leases._move_away(folder / "lock", first.token)  # by a third, who was slow
    assert not second.is_lost()
    assert [entry.name for entry in folder.iterdir()] == ["lock"]
    second.release()


def test_without_locks_of_the_file_system_silence_tells(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(handle: int, kind: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("regrow.core.leases.fcntl.flock", no_locks)
    watch = SilenceWatch()
    lease = take(tmp_path / "job", watch)
    assert lease is not None
    assert take(tmp_path / "job", watch) is None
    clock.now += leases.LEASE_SECONDS
    again = take(tmp_path / "job", watch)
    assert again is not None
    assert lease.is_lost()
    again.release()
    lease.release()


def test_lock_file_of_an_earlier_version_is_no_hindrance(store: Store) -> None:
    folder = store.root / "running" / KEY
    folder.mkdir()
    (folder / "lock").touch()
    with store.claim(KEY) as workspace:
        assert workspace is not None
    assert not folder.exists()


def test_length_of_a_lease_that_cannot_be_meant_is_refused(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LEASE_VARIABLE, "a minute")
    with (
        pytest.raises(StoreError, match=r"must be a number of seconds above 0. Got 'a minute'"),
        store.claim(KEY),
    ):
        pass


FROZEN = """
import sys, time
import torch
from regrow.errors import ClaimLost
from regrow.store import Store
store, key = Store.open(sys.argv[1]), sys.argv[2]
with store.claim(key) as workspace:
    workspace.save_checkpoint({"x": torch.ones(1)}, {"step": 7})
    print("held", flush=True)
    sys.stdin.readline()
    try:
        workspace.save_checkpoint({"x": torch.zeros(1)}, {"step": 8})
    except ClaimLost:
        print("lost", flush=True)
    sys.stdin.readline()
    print(store.commit(key, {"who": "frozen"}), flush=True)
"""


def test_frozen_holder_that_wakes_harms_nobody(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {**os.environ, HOST_VARIABLE: "first", LEASE_VARIABLE: "0.6"}
    monkeypatch.setenv(HOST_VARIABLE, "second")
    monkeypatch.setenv(LEASE_VARIABLE, "0.6")
    command = [sys.executable, "-c", FROZEN, str(store.root), KEY]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as holder:  # type: ignore[call-overload]
        assert holder.stdout.readline() == "held\n"
        for _ in range(4):  # it lives, however long one looks
            assert store.status(KEY) == "running"
            time.sleep(0.3)
        holder.send_signal(signal.SIGSTOP)
        deadline = time.monotonic() + 20
        while store.status(KEY) == "running":
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert store.snapshot().paused == {KEY}
        with store.claim(KEY) as workspace:
            assert workspace is not None
            assert workspace.load_checkpoint() == ({"x": torch.ones(1)}, {"step": 7})
            holder.send_signal(signal.SIGCONT)
            print(file=holder.stdin, flush=True)
            assert holder.stdout.readline() == "lost\n"
            workspace.check()
            assert workspace.load_checkpoint() == ({"x": torch.ones(1)}, {"step": 7})
            assert store.commit(KEY, {"who": "taker"})
        print(file=holder.stdin, flush=True)
        assert holder.stdout.readline() == "False\n"
    assert store.record(KEY) == {"who": "taker"}
    store.tidy()
    assert not list((store.root / "running").iterdir())


def test_job_that_was_taken_over_is_waited_for_and_has_not_failed(store: Store) -> None:
    job = Walk(name="job", steps=3)
    settings = Settings(device="cpu", checkpoint_seconds=0.0)

    def take_away(_: object) -> None:
        leases._move_away(store.root / "running" / job.key / "lock", _token(store, job.key))

    ended = execute(job, store, settings, report=take_away, stopping=lambda: False)
    assert ended.status == "held"
    assert store.status(job.key) == "missing"


def _token(store: Store, key: str) -> str:
    owner = store.root / "running" / key / "lock" / "owner"
    return leases._token(leases._read(owner)) if owner.exists() else ""


def test_checkpoint_of_a_lost_job_is_refused(store: Store) -> None:
    with store.claim(KEY) as workspace:
        assert workspace is not None
        leases._move_away(store.root / "running" / KEY / "lock", _token(store, KEY))
        with pytest.raises(ClaimLost, match="took over the job"):
            workspace.save_checkpoint({}, {})


# Litter --------------------


def of_dead_process(name: str) -> str:
    code = f"from regrow.core.processes import fresh_name; print(fresh_name({name!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_litter_of_dead_processes_is_swept_and_no_other(store: Store) -> None:
    dead = of_dead_process("store")
    with on_host("other"):
        foreign = fresh_name("store")
    living = fresh_name("store")
    for folder in (store.root, store.root / "failed"):
        for name in (dead, foreign, living, ".store.999999999.new", ".keep"):
            (folder / name).touch()
    store.tidy()
    for folder in (store.root, store.root / "failed"):
        kept = {entry.name for entry in folder.iterdir() if entry.name.startswith(".")}
        assert kept == {foreign, living, ".keep"}


def test_number_of_a_process_that_is_used_again_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    name = fresh_name("store")
    assert not is_litter(name)
    began = processes._started(os.getpid())
    monkeypatch.setattr(processes, "_started", lambda _: (began or 0) + 1)
    assert this_process() not in name
    assert is_litter(name)


def test_what_a_killed_writer_left_is_removed_by_the_next_holder(store: Store) -> None:
    folder = store.root / "running" / KEY
    (folder / of_dead_process("record")).mkdir(parents=True)
    (folder / of_dead_process("checkpoint.safetensors")).write_text("half")
    (folder / ".lock-0").mkdir()
    with store.claim(KEY) as workspace:
        assert workspace is not None
        assert [entry.name for entry in folder.iterdir()] == ["lock"]
        workspace.save_checkpoint({"x": torch.ones(1)}, {})
    (folder / of_dead_process("record")).mkdir(parents=True)
    assert {entry.name for entry in folder.iterdir()} > {"checkpoint.safetensors"}
    with store.claim(KEY) as workspace:
        assert {entry.name for entry in folder.iterdir()} == {"lock", "checkpoint.safetensors"}


def test_what_others_put_into_the_folder_of_a_job_stays(store: Store) -> None:
    folder = store.root / "running" / KEY
    for name in ("letter.txt", ".profile", "new", ".ssh"):
        (folder / name).mkdir(parents=True)
    store.tidy()
    with store.claim(KEY):
        pass
    assert {entry.name for entry in folder.iterdir()} == {"letter.txt", ".profile", "new", ".ssh"}


def test_a_link_in_the_place_of_a_job_is_not_followed(store: Store, tmp_path: Path) -> None:
    home = tmp_path / "home"
    for name in (".lock-0", "letter.txt", "progress.json"):
        (home / name).mkdir(parents=True)
    (store.root / "running" / KEY).symlink_to(home)
    store.tidy()
    with pytest.raises(StoreError, match="is a link"), store.claim(KEY):
        pass
    assert len([*home.iterdir()]) == 3


def test_a_pipe_in_the_place_of_a_lock_holds_nobody_up(store: Store) -> None:
    lock = store.root / "running" / KEY / "lock"
    lock.mkdir(parents=True)
    os.mkfifo(lock / "owner")
    assert store.status(KEY) == "running"  # whose, cannot be told
    with pytest.raises(StoreError, match="Cannot write"), store.claim(KEY):
        pass


def test_job_of_a_host_that_is_gone_is_done_by_a_run_that_waited(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LEASE_VARIABLE, "0.5")
    job = Walk(name="job")
    folder = store.root / "running" / job.key
    lost = taken(folder, "gone")
    leases._HEART.discard(lost)  # its machine has no power
    started = time.monotonic()
    assert run([job], store, workers=1).done == ("job",)
    assert time.monotonic() - started > 0.5
    assert not list((store.root / "running").iterdir())
