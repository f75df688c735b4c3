"""Measure whether ``--hours H`` ends within 0.8 H to 1.1 H.

    uv run python benchmarks/hours.py            # three tables by the clock, 8 minutes each
    uv run python benchmarks/hours.py --cpu      # on a machine that does other work

Each case runs in a process and a store of its own, by the command that a user types, and prints a
line. The ratio is that of the time it took, its start included, to the time it was given;
``expected`` is what was expected of the chosen budget, which is below H where budgets are few and
far apart. With ``--cpu`` both are of processor time, as two idle cores would pass it: what this
process computed, and what its workers did divided by their number. Beside it stands the load of
the machine.
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
CASES = {
    "quickstart": ["run", str(STUDIES / "quickstart.yaml")],
    "table-14": ["reproduce", "table-14", "--scale", "minutes"],
    "table-16": ["reproduce", "table-16", "--scale", "minutes"],
    "table-5": ["reproduce", "table-5", "--scale", "minutes"],
    "figure-8": ["reproduce", "figure-8", "--scale", "minutes"],
}
WORKERS = 2
TABLES = ("table-14", "table-16", "table-5")  # unless others are asked for
HOURS = 8 / 60
BEGAN = time.time() - time.process_time()  # of this process, about


@contextmanager
def processor_time() -> Iterator[None]:
    """Let rates be measured in processor time, beside no other process."""
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
    """Return the processor time so far, its workers' divided by their number."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + (children.ru_utime + children.ru_stime) / WORKERS


def measure(name: str, hours: float, *, cpu: bool) -> None:
    """Run a case, and print what it was given, expected, and took."""
    with tempfile.TemporaryDirectory() as folder:
        store, out = Path(folder) / "store", Path(folder) / "out"
        options = ["--hours", str(hours), "--store", str(store), "--out", str(out)]
        options += ["--workers", str(WORKERS)]
        with processor_time() if cpu else neither():
            done = CliRunner().invoke(app, [*CASES[name], *options])
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
    """Change nothing."""
    yield


def main() -> None:
    """Measure the cases asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hours", type=float, default=HOURS)
    parser.add_argument("--cpu", action="store_true", help="measure processor time")
    parser.add_argument("--case", action="append", choices=CASES, help="one of the cases")
    options = parser.parse_args()
    cases = options.case or TABLES
    if len(cases) == 1:
        measure(cases[0], options.hours, cpu=options.cpu)
        return
    more = ["--cpu"] if options.cpu else []
    for name in cases:
        asked = ["--hours", str(options.hours), "--case", name, *more]
        subprocess.run([sys.executable, __file__, *asked], check=True)


if __name__ == "__main__":
    main()
