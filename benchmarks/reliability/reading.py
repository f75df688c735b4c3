"""Measure the CPU time and peak memory of commands that read thousands of finished jobs.

    uv run python benchmarks/reliability/reading.py --jobs 10000 [--rows] [--out reading.json]

CPU time is that of the command, less that of starting Python or importing PyTorch alone. It is used
because other programs on the machine affect it little.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import fabricate

REGROW = ("-m", "regrow")
START, TORCH = ("-c", "pass"), ("-c", "import torch")
RESULTS = "import regrow; regrow.results('store', 'study.yaml')"
COMMANDS = {  # name -> arguments of Python, and those of the start to subtract
    "status": ((*REGROW, "status", "study.yaml", "--store", "store"), START),
    "store verify": ((*REGROW, "store", "verify", "--store", "store"), START),
    "report": ((*REGROW, "report", "study.yaml", "--store", "store", "--out", "out"), TORCH),
    "report --html": (
        (*REGROW, "report", "study.yaml", "--store", "store", "--out", "page", "--html"),
        TORCH,
    ),
    "compare-runs of stores": ((*REGROW, "compare-runs", "store", "store"), TORCH),
    "compare-runs of reports": ((*REGROW, "compare-runs", "out", "page"), TORCH),
    "regrow.results": (("-c", RESULTS), TORCH),
    "lint": ((*REGROW, "lint", "study.yaml", "--store", "store"), TORCH),
}


@dataclass(frozen=True)
class Taken:
    """The CPU time, wall-clock time (seconds) and peak memory of a process, and its exit code."""

    cpu: float
    seconds: float
    peak_mb: float
    code: int


def taken(arguments: tuple[str, ...], folder: Path) -> Taken:
    """Run Python with these arguments, and measure it."""
    began = time.monotonic()
    with (folder / "log").open("w") as log:
        child = subprocess.Popen([sys.executable, *arguments], cwd=folder, stdout=log, stderr=log)
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    return Taken(
        cpu=used.ru_utime + used.ru_stime,
        seconds=time.monotonic() - began,
        peak_mb=used.ru_maxrss / 1024,
        code=child.returncode,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--rows", action="store_true", help="many rows, of five seeds each")
    parser.add_argument("--only", nargs="+", choices=[*COMMANDS], help="only these commands")
    parser.add_argument("--repeat", type=int, default=1, help="times to run; the fastest counts")
    parser.add_argument("--folder", type=Path, help="a filled folder, or one to fill")
    parser.add_argument("--out", type=Path, help="file for the results as JSON")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.folder or Path(scratch)
        if not (folder / "store").exists():
            folder.mkdir(parents=True, exist_ok=True)
            print(f"{fabricate.fill(folder, given.jobs, rows=given.rows):,} jobs")
        found = {}
        bases = {base: taken(base, folder) for base in (START, TORCH)}
        for name, (arguments, base) in COMMANDS.items():
            if given.only and name not in given.only:
                continue
            each = [taken(arguments, folder) for _ in range(given.repeat)]
            least = min(each, key=lambda one: one.cpu)
            past = least.cpu - bases[base].cpu
            print(
                f"{name:24} {past:6.2f} s of CPU time beyond {base[1]!r:14} "
                f"({least.seconds:6.2f} s in all), {least.peak_mb:5.0f} MB, exit {least.code}",
                flush=True,
            )
            found[name] = {**asdict(least), "past_imports": past}
    if given.out is not None:
        given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
