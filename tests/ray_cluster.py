"""A Ray cluster of several nodes on this machine, each with its own raylet, folder and ports."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from commands import environment

OBJECT_STORE_BYTES = 80 << 20
START_SECONDS = 180.0
START_ATTEMPTS = 4
HOST = "127.0.0.1"


def _ray(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "ray.scripts.scripts", *arguments]


def variables() -> dict[str, str]:
    """Return the environment variables of all processes that connect to the cluster."""
    return environment() | {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}


@dataclass(eq=False)
class Node:
    """One node: the process that was started, its folder, and its descendants."""

    process: "subprocess.Popen[bytes]"
    folder: Path
    _started: dict[int, str] = field(default_factory=dict)

    def processes(self) -> dict[int, str]:
        """Return the commands of this node's processes, by process id."""
        all_there_are = _processes()
        found = {self.process.pid}
        while more := {p for p, known in all_there_are.items() if known.parent in found} - found:
            found |= more
        self._started |= {pid: all_there_are[pid].started for pid in found if pid in all_there_are}
        return {
            pid: known.command
            for pid, known in all_there_are.items()
            if self._started.get(pid) == known.started  # process ids are reused
        }

    def pids(self, name: str) -> list[int]:
        """Return the ids of this node's processes whose command contains ``name``."""
        return [pid for pid, command in self.processes().items() if name in command]

    def kill(self) -> None:
        """Kill all processes at once, as when a machine loses power."""
        for _ in range(2):  # twice, for processes that were started meanwhile
            for pid in self.processes():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.process.wait()


@dataclass(eq=False)
class Cluster:
    """Nodes of one cluster, the first of which is the head."""

    folder: Path
    port: int
    nodes: list[Node] = field(default_factory=list)
    _num_started: int = 0

    @property
    def address(self) -> str:
        """Host and port of the head."""
        return f"{HOST}:{self.port}"

    def start_node(self, *, cpus: int = 1) -> Node:
        """Start a node, and wait until it has joined the cluster.

        Ray gives a node 30 seconds to join, which may be too short on a busy machine, so there are
        several attempts.
        """
        for _ in range(START_ATTEMPTS - 1):
            with suppress(AssertionError):
                return self._start_node(cpus)
            self.nodes.pop().kill()
        return self._start_node(cpus)

    def _start_node(self, cpus: int) -> Node:
        number = self._num_started
        self._num_started += 1
        folder = self.folder / str(number)
        folder.mkdir()
        is_head = not self.nodes
        where = ["--head", f"--port={self.port}"] if is_head else [f"--address={self.address}"]
        options = [
            f"--node-ip-address={HOST}",
            f"--num-cpus={cpus}",
            f"--object-store-memory={OBJECT_STORE_BYTES}",
            f"--temp-dir={folder}",
            "--disable-usage-stats",
            "--block",
        ]
        options += ["--include-dashboard=false"] if is_head else []
        with (self.folder / f"log-{number}").open("wb") as log:
            process = subprocess.Popen(
                _ray("start", *where, *options),
                env=variables(),
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        node = Node(process, folder)
        self.nodes.append(node)
        deadline = time.monotonic() + START_SECONDS
        while "Ray runtime started" not in (self.folder / f"log-{number}").read_text():
            assert process.poll() is None, (self.folder / f"log-{number}").read_text()
            assert time.monotonic() < deadline, "the node did not start"
            time.sleep(0.2)
        return node

    def close(self) -> None:
        """Kill all nodes."""
        for node in self.nodes:
            node.kill()


@contextmanager
def cluster(*, nodes: int, cpus: int = 1) -> Iterator[Cluster]:
    """Start a cluster, and kill it at the end; its folder has a short path, as sockets need."""
    folder = Path(tempfile.mkdtemp(prefix="rc", dir="/tmp"))
    started = Cluster(folder, _free_port())
    try:
        for _ in range(nodes):
            started.start_node(cpus=cpus)
        yield started
    finally:
        started.close()
        shutil.rmtree(folder, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind((HOST, 0))
        number: int = found.getsockname()[1]
    return number


@dataclass(frozen=True)
class _Process:
    parent: int
    started: str
    command: str


def _processes() -> dict[int, _Process]:
    """Return all processes of this machine by their ids, without zombies."""
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        with suppress(OSError, ValueError, IndexError):
            state, parent, *rest = (folder / "stat").read_text().rpartition(")")[2].split()
            words = (folder / "cmdline").read_bytes().split(b"\0")
            command = b" ".join(words).decode(errors="replace")
            if state != "Z":
                found[int(folder.name)] = _Process(int(parent), rest[17], command)
    return found
