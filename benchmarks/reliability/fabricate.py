"""Fill a store with invented records of a study's jobs, with valid digests, without training.

    uv run python benchmarks/reliability/fabricate.py FOLDER --jobs 10000 [--rows]

writes ``study.yaml`` and ``store/`` into a folder, for ``status``, ``report`` and ``store verify``:
one row of thousands of seeds, or with ``--rows`` eight networks, four methods and five seeds.
"""

import argparse
import copy
import random
from pathlib import Path
from typing import Any

import rounds
import yaml

from regrow.jobs.base import Job, all_jobs
from regrow.jobs.prune import Prune
from regrow.store import Store
from regrow.studies.job_list import Planned, remember
from regrow.studies.study import Study

NETWORKS = range(4, 20, 2)  # channels
METHODS = ("l1-filter", "random", "uniform", "fpgm")
ARMS = ("unpruned", "pruned", "fine-tune", "lr-rewind", "scratch-e", "scratch-b")
SEEDS = 5


def study_of(num_jobs: int, *, rows: bool = False) -> dict[str, Any]:
    """Return a study of about ``num_jobs`` jobs: the small one with more seeds or more rows."""
    value = copy.deepcopy(rounds.STUDY) | {"seeds": 1}
    if not rows:
        per_seed = len(all_jobs(Study.from_json(value).jobs()))
        return value | {"seeds": max(1, round(num_jobs / per_seed))}
    of_each = max(1, round(num_jobs / (SEEDS * len(ARMS) * len(METHODS) * len(NETWORKS))))
    sparsities = [round((i + 1) / (of_each + 1), 6) for i in range(of_each)]
    return value | {
        "models": [
            {"name": "vgg", "plan": [width, "M", width], "label": f"VGG of {width} channels"}
            for width in NETWORKS
        ],
        "methods": [{"name": name, "sparsity": sparsities} for name in METHODS],
        "arms": [*ARMS],
        "seeds": SEEDS,
    }


def record_of(job: Job, number: int) -> dict[str, Any]:
    """Invent a job's record."""
    rng = random.Random(number)
    whole = {"parameters": 1000, "macs": 20_000, "flops": 42_000}
    left = 1.0 if job.pruning is None else 1 - 0.8 * (getattr(job.pruning, "sparsity", 0) or 0)
    after = {name: int(left * value) for name, value in whole.items()}
    found: dict[str, Any] = {"guarded": [], "unit": "channel", "before": whole, "after": after}
    if not isinstance(job, Prune):
        found = {"accuracy": 0.5 + 0.4 * rng.random(), "loss": rng.random(), "epochs": 2, **after}
        found |= {"parameters": after["parameters"] + number % 7, "training_flops": 5e7}
        found |= {"samples": 120, "history": []}
    timing = {"seconds": rng.random(), "machine": "none", "versions": "none"}
    inputs = [before.key for before in job.inputs]
    return {**found, "kind": job.kind, "spec": job.spec, "inputs": inputs, "timing": timing}


def fill(folder: Path, num_jobs: int, *, rows: bool = False, tensors: int = 0) -> int:
    """Write a study and a store with all its records; return their number.

    ``tensors`` is the number of values in the tensor file of each record.
    """
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    value = study_of(num_jobs, rows=rows)
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(value), encoding="utf-8")
    store = Store.open(folder / "store")
    study = Study.load(file)
    jobs = all_jobs(study.jobs())
    remember(store, file, Planned.of(study.name, study.title, jobs))
    for number, job in enumerate(jobs.values()):
        weights = {"w": torch.full((tensors,), float(number))} if tensors else None
        store.commit(job.key, record_of(job, number), weights)
    return len(jobs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--rows", action="store_true", help="many rows, of five seeds each")
    parser.add_argument("--tensors", type=int, default=0, help="values in each tensor file")
    given = parser.parse_args()
    number = fill(given.folder, given.jobs, rows=given.rows, tensors=given.tensors)
    print(f"{number:,} jobs in {given.folder}")


if __name__ == "__main__":
    main()
