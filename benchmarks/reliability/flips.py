"""Change one byte of one file of a store at a time: it must be detected, or have no effect.

    uv run python benchmarks/reliability/flips.py --rounds 2000 --out flips.json

The files are records, tensors, the plan, the precision decision, the store's own file, and
checkpoints. After each change the study is reported: its rows must be those of the unchanged store;
or the file is named as damaged, and the rows that depend on it are missing; or the command ends
with one message. Every 20th time the study is also run again, and must give the rows of the
unchanged store.
"""

import os
import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import rounds
from rounds import Ground, Tally

from regrow.errors import Damaged, RegrowError
from regrow.jobs.base import all_jobs
from regrow.report.collect import results_of
from regrow.report.rows import Run
from regrow.run import run
from regrow.run.precision import PrecisionChoice
from regrow.store import Store
from regrow.studies.job_list import recall
from regrow.studies.study import Study

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
OFTEN = 20


def row_of(found: Run) -> tuple[Any, ...]:
    return (found.arm, found.method, found.sparsity, found.seed)


def wrongs(
    study: Study, store: Store, sound: dict[Any, Run], *, file: Path, tally: Tally
) -> Iterator[str]:
    """Yield what is wrong with the handling of a changed file."""
    planned = recall(store, study_file(store))
    if planned is not None and planned.specs != SPECS:
        yield "a changed plan was used"
    found_out = planned is None
    try:
        precision = PrecisionChoice(store, measure=False)()
    except RegrowError:
        precision, found_out = "fp32", True
    if precision != "fp32" and file.name == "precision.json":
        yield f"the precision became {precision}"
    results = results_of(study, Store.open(store.root, create=False))
    damaged = [failure.message for failure in results.failures]
    for found in results.runs:
        if found.done and found != sound[row_of(found)]:
            yield f"the row {row_of(found)} differs"
        if not found.done and not damaged:
            yield f"the row {row_of(found)} is missing without a reason"
    if file.suffix == ".safetensors" and file.parent.parent.parent.name == "records":
        try:
            store.tensors(file.parent.name)
        except Damaged:
            found_out = True
        else:
            yield "changed tensors were read without an error"
    tally.count("told" if found_out or damaged else "harmless")


def study_file(store: Store) -> Path:
    return store.root.parent.parent / "study.yaml"


SPECS: dict[str, Any] = {}


def checkpoints(folder: Path, rng: random.Random, num: int, tally: Tally) -> None:
    """Change a byte of a checkpoint and load it: it must be reported damaged, or be unchanged."""
    import torch

    from test_damage import changed

    store, key = Store.open(folder), "ab12"
    tensors = {"w": torch.randn(300), "mask": torch.tensor([True, False])}
    for number in range(num):
        with store.claim(key) as workspace:
            assert workspace is not None
            workspace.save_checkpoint(tensors, {"steps_done": 7, "history": [0.5]})
            file = folder / "running" / key / "checkpoint.safetensors"
            file.write_bytes(changed(file.read_bytes(), rng))
            try:
                loaded = workspace.load_checkpoint()
            except Damaged:
                tally.count("told")
            else:
                tally.count("harmless")
                if loaded is None or not torch.equal(loaded[0]["w"], tensors["w"]):
                    tally.fault(f"checkpoint {number}", "a changed checkpoint was loaded")
            workspace.drop_checkpoint()
        tally.rounds += 1


def main() -> int:
    parser = rounds.options(__doc__ or "", rounds=2000)
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    rng = random.Random(given.seed)
    tally = Tally("flips")
    rounds.warm()
    rounds.without_figures()
    from test_damage import changed

    with tempfile.TemporaryDirectory() as temporary:
        ground = Ground((given.folder or Path(temporary)) / "ground", seeds=2)
        root = ground.round / "store"
        store = Store.open(root)
        study = Study.load(ground.folder / "study.yaml")
        jobs = study.jobs()
        SPECS.update({key: job.spec for key, job in all_jobs(jobs).items()})
        decision = {"precision": "fp32", "why": "it pays", "machine": "m", "date": "2026-01-01"}
        store.decide("precision", decision)
        sound = {row_of(found): found for found in results_of(study, store).runs}
        files = sorted(path for path in root.rglob("*") if path.is_file())
        for number in range(given.rounds - given.rounds // 5):
            file = rng.choice(files)
            content = file.read_bytes()
            file.write_bytes(changed(content, rng))
            where = f"{number} ({file.relative_to(root)})"
            try:
                problems = [*wrongs(study, store, sound, file=file, tally=tally)]
                if problems:
                    tally.fault(where, "; ".join(problems))
                if number % OFTEN == 0:
                    run(jobs, Store.open(root), workers=0)
                    results = results_of(study, store)
                    again = {row_of(found): found for found in results.runs}
                    if again != sound:
                        tally.fault(where, "its rows differ after the next run")
            except RegrowError:
                tally.count("told in one message")
            except Exception as error:
                tally.fault(where, f"{type(error).__name__}: {error}")
            tally.rounds += 1
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        checkpoints(ground.folder / "checkpoints", rng, given.rounds // 5, tally)
    return tally.close(given.out, files=len(files), seed=given.seed)


if __name__ == "__main__":
    raise SystemExit(main())
