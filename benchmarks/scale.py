"""Time planning, status and report over many jobs, to see how their cost grows.

    python benchmarks/scale.py [--jobs 10000] [--seeds 5] [--folder FOLDER]

Fills a store with made-up records of a study (through the store, as a run would) and times the
steps that a user waits for. Prints CPU and wall seconds of each step.
"""

import argparse
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from regrow.core.seeds import derive
from regrow.jobs.base import Job, all_jobs
from regrow.report import write
from regrow.report.collect import collect
from regrow.run.estimate import estimate
from regrow.store import Store
from regrow.studies.study import Study

PER_CUT = 3 * 7  # jobs per sparsity and seed: three methods, each with a cut and six arms


def make_study(jobs: int, seeds: int) -> Study:
    """Make a study of about ``jobs`` jobs: three methods, all arms, and enough sparsities."""
    cuts = math.ceil(jobs / (PER_CUT * seeds))
    return Study.from_json(
        {
            "name": "scale",
            "data": {"name": "digits", "subset": 200},
            "models": {"name": "vgg", "plan": [8, "M", 16]},
            "methods": [
                {"name": name, "sparsity": [i / (cuts + 1) for i in range(1, cuts + 1)]}
                for name in ("l1-filter", "network-slimming", "magnitude")
            ],
            "seeds": seeds,
            "recipe": {"name": "cifar", "epochs": 2},
        }
    )


def made_up(job: Job) -> dict[str, Any]:
    """Return a record as a run would store it, with numbers drawn from the job's key."""
    noise = derive(0, job.key) / 2**64
    identity = {"kind": job.kind, "spec": job.spec, "inputs": [j.key for j in job.inputs]}
    cost = {"parameters": 1000, "macs": 20_000, "flops": 42_000}
    timing = {"timing": {"seconds": 0.1}}
    pruning = job.pruning
    if pruning is not None and pruning.key == job.key:
        unit: dict[str, Any] = {
            "unit": pruning.method.unit,
            "sparsity": pruning.sparsity,
            "widths": {},
            "guarded": [],
        }
        return {**unit, "before": cost, "after": cost, "architecture": {}, **identity, **timing}
    history = [{"epoch": epoch, "lr": 0.1, "loss": 1.0} for epoch in range(2)]
    measured = {"accuracy": 0.9 + 0.1 * noise, "loss": 0.3, "num_test": 359, "history": history}
    amounts = {"epochs": 2, "samples": 400, "training_flops": 5e7, "ratio": 1.0, "capped": False}
    return {**measured, **cost, **amounts, **identity, **timing}


@contextmanager
def timed(what: str, say: Callable[[str], None]) -> Iterator[None]:
    cpu, wall = time.process_time(), time.perf_counter()
    yield
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    say(f"{what:44} {cpu:7.2f} s CPU {wall:7.2f} s wall")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to put the store (default: temporary)")
    given = parser.parse_args()
    console = Console(highlight=False)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        measure(make_study(given.jobs, given.seeds), Path(folder), console.print)


def measure(study: Study, folder: Path, say: Callable[[str], None]) -> None:
    make_study(1, 1).cells()  # not timed: imports, data and the first trace, whatever the size
    with timed("expand the study, with all keys", say):
        nodes = all_jobs(study.jobs())
    say(f"{len(nodes):,} jobs")
    with timed("plan, with calibration", say):
        estimate(study.jobs(), frozenset(), workers=2)
    with timed("fill the store (fsync for each record)", say):
        store = Store.open(folder / "store")
        for key, job in nodes.items():
            store.commit(key, made_up(job))
    with timed("status: sweep of the store", say):
        snapshot = store.snapshot()
    with timed("plan, all done", say):
        estimate(study.jobs(), snapshot.done, workers=2, store=store)
    with timed("report: collect the runs", say):
        runs, failures = collect(study, store)
    with timed("report: tables, tests, text, files", say):
        write(
            runs,
            folder / "report",
            title="Scale",
            command="scale",
            machine="here",
            date="today",
            failures=failures,
            draw=False,
        )


if __name__ == "__main__":
    main()
