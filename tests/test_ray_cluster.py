"""Studies on a real Ray cluster, of one node or two, which lose a worker, a node or the command."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

import pytest

from commands import command_line, write_study
from ray_cluster import Cluster, cluster, variables

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra ray")
TIMEOUT = 400
QUICKSTART_TIMEOUT = 3000  # of 220 jobs


def write(folder: Path, *, epochs: int = 6) -> None:
    """Write a study of trainings of a second or so."""
    write_study(
        folder,
        data={"name": "digits", "subset": 400, "test_subset": 100},
        models={"name": "vgg", "plan": [8, 8, "M", 16, 16], "label": "small"},
        methods=[{"name": "l1-filter", "sparsity": 0.5}],
        arms=["unpruned", "fine-tune", "scratch-e", {"name": "scratch-b", "cap": 2}],
        recipe={"epochs": epochs, "batch": 20, "lr": 0.05, "precision": "fp32"},
    )


def start(folder: Path, store: str, *options: str, **changed: str) -> "subprocess.Popen[bytes]":
    """Start a run, in a group of its own, with some variables changed."""
    with (folder / f"log-{store}").open("ab") as log:
        return subprocess.Popen(
            command_line(
                *("run", "study.yaml", "--store", store, "--out", f"out-{store}"),
                *("--checkpoint-seconds", "0.2"),
                *options,
            ),
            cwd=folder,
            env=variables() | changed,
            stdout=subprocess.DEVNULL,
            stderr=log,
            start_new_session=True,
        )


def finish(
    process: "subprocess.Popen[bytes]", folder: Path, store: str, *, timeout: float = TIMEOUT
) -> None:
    """Wait for a run, which must end well."""
    assert process.wait(timeout) == 0, (folder / f"log-{store}").read_text()


def wait_for_records(
    process: "subprocess.Popen[bytes]", store: Path, number: int, *, timeout: float = TIMEOUT
) -> None:
    """Wait until some jobs are done and one is under way."""
    deadline = time.monotonic() + timeout
    while not (
        len(list(store.glob("records/*/*"))) >= number and any(store.glob("running/*/lock"))
    ):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)


def rows(folder: Path, store: str) -> bytes:
    return (folder / f"out-{store}" / "rows.csv").read_bytes()


def litter(store: Path) -> list[str]:
    """Return what a finished run should not have left in its store."""
    hidden = [path.name for path in store.rglob(".*")]
    return [path.name for path in (store / "running").iterdir()] + hidden


def test_rows_are_those_of_a_run_without_ray(tmp_path: Path) -> None:
    write_study(
        tmp_path,
        methods=[{"name": "l1-filter", "sparsity": 0.5}],
        arms=["unpruned", "scratch-e"],
        seeds=1,
    )
    runs = {"alone": ("--workers", "0"), "ray": ("--on", "ray", "--address", "local")}
    for store, options in runs.items():
        finish(start(tmp_path, store, *options), tmp_path, store)
    assert rows(tmp_path, "ray") == rows(tmp_path, "alone")
    assert litter(tmp_path / "ray") == []


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the study and its results without Ray."""
    found = tmp_path_factory.mktemp("ray")
    write(found)
    finish(start(found, "alone", "--workers", "1"), found, "alone")
    return found


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[Cluster]:
    with cluster(nodes=2) as started:
        yield started


def nobody(nodes: Cluster, driver: "subprocess.Popen[bytes]") -> None:
    """Kill nothing."""


def worker(nodes: Cluster, driver: "subprocess.Popen[bytes]") -> None:
    """Kill a process that does a job."""
    busy = [
        pid
        for node in nodes.nodes
        for pid, command in node.processes().items()
        if command.startswith("ray::") and not command.startswith(("ray::IDLE", "ray::R", "ray::D"))
    ]
    if busy:
        os.kill(random.choice(busy), signal.SIGKILL)


def raylet(nodes: Cluster, driver: "subprocess.Popen[bytes]") -> None:
    """Kill the heart of the last node."""
    for pid in nodes.nodes[-1].pids("raylet/raylet"):
        os.kill(pid, signal.SIGKILL)


def machine(nodes: Cluster, driver: "subprocess.Popen[bytes]") -> None:
    """Kill the last node as a whole."""
    nodes.nodes[-1].kill()


def command(nodes: Cluster, driver: "subprocess.Popen[bytes]") -> None:
    """Kill the command."""
    driver.kill()


def stop(nodes: Cluster, driver: "subprocess.Popen[bytes]") -> None:
    """Ask the command to stop, as a scheduler does."""
    driver.terminate()


@pytest.mark.slow
@pytest.mark.parametrize("kill", [nobody, worker, command, stop, raylet, machine])
def test_rows_are_the_same_whatever_is_lost(
    folder: Path,
    two_nodes: Cluster,
    kill: Callable[[Cluster, "subprocess.Popen[bytes]"], None],
) -> None:
    store = kill.__name__
    options = ("--on", "ray", "--address", two_nodes.address)
    driver = start(folder, store, *options)
    wait_for_records(driver, folder / store, 2)
    kill(two_nodes, driver)
    ended = driver.wait(TIMEOUT)
    assert ended == {"command": -signal.SIGKILL, "stop": 128 + signal.SIGTERM}.get(store, 0)
    if kill in (raylet, machine):
        two_nodes.nodes.pop().kill()
        two_nodes.start_node()
    if ended:
        finish(start(folder, store, *options), folder, store)
    assert rows(folder, store) == rows(folder, "alone")
    assert litter(folder / store) == []


@pytest.mark.slow
def test_a_token_that_the_cluster_does_not_have_ends_in_a_message(
    tmp_path: Path, two_nodes: Cluster
) -> None:
    write(tmp_path)
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4}
    driver = start(tmp_path, "x", "--on", "ray", "--address", two_nodes.address, **token)
    assert driver.wait(TIMEOUT) == 2
    told = (tmp_path / "log-x").read_text()
    text = f"The Ray cluster at {two_nodes.address} accepts tasks, but none"
    assert text in " ".join(told.split())
    assert "RAY_AUTH_MODE=token is set here" in " ".join(told.split())
    assert "Traceback" not in told


@pytest.mark.slow
def test_quickstart_is_the_same_on_two_nodes_and_on_what_is_left_of_them(tmp_path: Path) -> None:
    study = (files("regrow.cli") / "quickstart.yaml").read_text(encoding="utf-8")
    (tmp_path / "study.yaml").write_text(study, encoding="utf-8")
    finish(
        start(tmp_path, "alone", "--workers", "1"), tmp_path, "alone", timeout=QUICKSTART_TIMEOUT
    )
    number = len(list((tmp_path / "alone").glob("records/*/*")))
    with cluster(nodes=2) as nodes:
        for store in ("whole", "halved"):
            driver = start(tmp_path, store, "--on", "ray", "--address", nodes.address)
            if store == "halved":
                wait_for_records(driver, tmp_path / store, number // 2, timeout=QUICKSTART_TIMEOUT)
                machine(nodes, driver)
            finish(driver, tmp_path, store, timeout=QUICKSTART_TIMEOUT)
            assert len(list((tmp_path / store).glob("records/*/*"))) == number
            assert rows(tmp_path, store) == rows(tmp_path, "alone")
            assert litter(tmp_path / store) == []
