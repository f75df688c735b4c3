"""A study killed at any moment, and started again, ends in the same bytes as one left alone."""

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from commands import STUDY, Command, command_line, environment, spawn, write_study

RESULTS = ("rows.csv", "runs.csv", "verdicts.csv", "rows.parquet")
RUN = ("run", "study.yaml", "--checkpoint-seconds", "0.2", "--workers")


def write(folder: Path, *, epochs: int, seeds: int) -> None:
    """Write a study of all arms whose trainings take long enough to be killed half-way."""
    arms = ["unpruned", "pruned", "fine-tune", "scratch-e", "winning-ticket", "random-init"]
    write_study(
        folder,
        data={"name": "digits", "subset": 400, "test_subset": 100},
        models={"name": "vgg", "plan": [8, 8, "M", 16, 16], "label": "small"},
        arms=[*arms, {"name": "scratch-b", "cap": 2}],
        seeds=seeds,
        # Not "auto", which is measured, and may end differently in each store.
        recipe=STUDY["recipe"] | {"epochs": epochs, "batch": 20, "lr": 0.05},
    )


def start(folder: Path, store: str, *, log: str = "log") -> subprocess.Popen[bytes]:
    with (folder / log).open("wb") as file:
        return subprocess.Popen(
            command_line(*RUN, "2", "--store", store, "--out", f"out-{store}"),
            cwd=folder,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=file,
            start_new_session=True,  # a group of its own, for kill -9 of all of it
        )


def wait_until_at_work(process: "subprocess.Popen[bytes]", running: Path) -> None:
    """Wait until a job is under way; imports take most of a short run."""
    deadline = time.monotonic() + 120
    while not any(running.glob("*/lock")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)


def same_results(folder: Path, *stores: str) -> bool:
    first, *others = stores
    return all(
        (folder / f"out-{first}" / name).read_bytes()
        == (folder / f"out-{other}" / name).read_bytes()
        for name in RESULTS
        for other in others
    )


def kill_and_restart(folder: Path, *, times: int, seed: int, longest: float) -> None:
    """Kill a run so often with all its workers, each time a random while after its work began."""
    draw = random.Random(seed)
    running = folder / "killed" / "running"
    for _ in range(times):
        process = start(folder, "killed")
        try:
            wait_until_at_work(process, running)
            time.sleep(draw.uniform(0.0, longest))
            assert process.poll() is None, "it was done before it could be killed"
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.mark.parametrize(
    ("times", "epochs", "seeds", "longest"),
    [
        pytest.param(1, 3, 1, 2.0, id="once"),
        pytest.param(5, 8, 2, 8.0, id="five-times", marks=pytest.mark.slow),
    ],
)
def test_killed_study_ends_in_the_same_bytes(
    command: Command, tmp_path: Path, times: int, epochs: int, seeds: int, longest: float
) -> None:
    write(tmp_path, epochs=epochs, seeds=seeds)
    kill_and_restart(tmp_path, times=times, seed=7, longest=longest)
    for store in ("killed", "undisturbed"):
        assert command(*RUN, "0", "--store", store, "--out", f"out-{store}").code == 0
    assert same_results(tmp_path, "undisturbed", "killed")
    assert not any((tmp_path / "killed" / "running").iterdir())


@pytest.mark.slow
def test_two_runs_at_once_share_the_work(tmp_path: Path) -> None:
    write(tmp_path, epochs=4, seeds=1)
    logs = ("first.log", "second.log")
    both = [start(tmp_path, "shared", log=log) for log in logs]
    assert [process.wait(timeout=300) for process in both] == [0, 0]
    lines = [line for log in logs for line in (tmp_path / log).read_text().splitlines()]
    done = [line.rpartition(" (")[0] for line in lines if line.startswith("done ")]
    assert len(done) == len(set(done))
    shown = spawn("status", "study.yaml", "--store", "shared", cwd=tmp_path)
    assert f"{len(done)} of {len(done)} jobs done" in shown.out
    assert start(tmp_path, "alone").wait(timeout=300) == 0
    assert same_results(tmp_path, "alone", "shared")
