"""Measure whether commands with ``--hours H`` take 0.8 H to 1.1 H.

    uv run python benchmarks/hours.py            # three tables by the clock, 17 minutes in all
    uv run python benchmarks/hours.py --cpu      # on a machine that does other work
    uv run python benchmarks/hours.py --scale small --data cifar10=hf:PATH --case table-14

Each case runs in its own process and store, by the command that a user types, and prints a line. A
case is given about half of the time that its full recipes take on two cores. The first ratio is
the time taken, including the start, over the time given; the second is over the ``expected`` time
of the chosen budget, which is well below H if the possible budgets are few and far apart. With
``--cpu``, CPU time replaces time by the clock, as on two idle cores: this process's, plus its
workers' divided by their number. The line ends with the load of the machine.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from typer.testing import CliRunner

from regrow.cli.main import app
from regrow.run import estimate

STUDIES = Path(__file__).parents[1] / "src" / "regrow" / "cli"
MINUTES = {"table-6": 8.0, "table-4": 5.0, "table-8": 4.0}  # given to each case, by default
OTHERS = 8.0  # minutes given to any other case
WORKERS = 2
BEGAN = time.time() - time.process_time()  # approximate start of this process


@contextmanager
def processor_time() -> Iterator[None]:
    """Measure rates in CPU time, and without the busy processes that simulate other workers."""
    clock, neighbours = time.perf_counter, estimate._neighbours

    @contextmanager
    def nobody(num: int) -> Iterator[None]:
        yield

    time.perf_counter, estimate._neighbours = time.process_time, nobody  # type: ignore[assignment]
    try:
        yield
    finally:
        time.perf_counter, estimate._neighbours = clock, neighbours  # type: ignore[assignment]


def spent() -> float:
    """Return the CPU time so far of this process, plus its workers' divided by their number."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + (children.ru_utime + children.ru_stime) / WORKERS


def command(name: str, scale: str, data: list[str]) -> list[str]:
    """Return the command that a user types for a case."""
    if name == "quickstart":
        return ["run", str(STUDIES / "quickstart.yaml")]
    return [
        "reproduce",
        name,
        "--scale",
        scale,
        *(part for one in data for part in ("--data", one)),
    ]


def measure(asked: list[str], name: str, hours: float, *, cpu: bool) -> None:
    """Run a command, and print the time that it was given, was expected to take, and took."""
    with tempfile.TemporaryDirectory() as folder:
        store, out = Path(folder) / "store", Path(folder) / "out"
        options = ["--hours", str(hours), "--store", str(store), "--out", str(out)]
        options += ["--workers", str(WORKERS)]
        with processor_time() if cpu else neither():
            done = CliRunner().invoke(app, [*asked, *options])
        took = spent() if cpu else time.time() - BEGAN
        if done.exit_code:
            print(f"{name}: {done.output[-500:]} {done.exception}", flush=True)
            return
        fit = json.loads(next(store.glob("hours-*.json")).read_text())
    given = 3600 * hours
    print(
        f"{name}: {fit['epochs']} of {fit['of']} epochs, {len(fit['left_out'])} networks left out; "
        f"given {given:.0f} s, expected {fit['seconds']:.0f} s, took {took:.0f} s: "
        f"{took / given:.2f} of the hours, {took / fit['seconds']:.2f} of what was expected; "
        f"load {os.getloadavg()[0]:.1f}",
        flush=True,
    )


@contextmanager
def neither() -> Iterator[None]:
    """Do nothing, in place of ``processor_time``."""
    yield


def main() -> None:
    """Measure the cases named on the command line, or those of ``MINUTES``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, help="time given to each case")
    parser.add_argument("--cpu", action="store_true", help="measure CPU time")
    parser.add_argument("--case", action="append", help="a table or figure, or quickstart")
    parser.add_argument("--scale", default="minutes", help="scale of tables and figures")
    parser.add_argument("--data", action="append", default=[], help="data of tables and figures")
    options = parser.parse_args()
    cases = options.case or list(MINUTES)
    if len(cases) == 1:
        (name,) = cases
        hours = (options.minutes or MINUTES.get(name, OTHERS)) / 60
        measure(command(name, options.scale, options.data), name, hours, cpu=options.cpu)
        return
    same = ["--scale", options.scale, *(["--cpu"] if options.cpu else [])]
    same += [part for one in options.data for part in ("--data", one)]
    same += [] if options.minutes is None else ["--minutes", str(options.minutes)]
    for name in cases:  # each in a new process, as for a user
        subprocess.run([sys.executable, __file__, *same, "--case", name], check=True)


if __name__ == "__main__":
    main()
