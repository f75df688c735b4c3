"""Whatever byte of a store is changed: it is told, or changes nothing that a table shows."""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from commands import STUDY
from regrow.core.digests import sealed
from regrow.errors import Damaged
from regrow.jobs.base import Job, all_jobs
from regrow.jobs.prune import Prune
from regrow.report.collect import results_of
from regrow.store import Store
from regrow.studies.study import Study


def filled(root: Path) -> tuple[Study, Store]:
    """Make a store of a study, each record and tensor its own."""
    study, store = Study.from_json(STUDY), Store.open(root)
    for number, job in enumerate(all_jobs(study.jobs()).values()):
        cost = {"parameters": 1000 + number, "macs": 20_000, "flops": 42_000}
        found: dict[str, Any] = {"guarded": ["a"], "unit": "channel", "before": cost, "after": cost}
        if not isinstance(job, Prune):
            found = {"accuracy": 0.5 + number / 1000, "loss": 1 / (1 + number), "epochs": 2}
            found |= {**cost, "samples": 400, "training_flops": 5e7}
        record = {**found, "spec": job.spec, "inputs": [each.key for each in job.inputs]}
        tensors = {"w": torch.randn(9, generator=torch.Generator().manual_seed(number))}
        store.commit(job.key, {**record, "timing": {"seconds": number / 7}}, tensors)
    return study, store


def changed(content: bytes, rng: random.Random) -> bytes:
    """Change one byte: a digit to another, a bit, or all of it."""
    digits = [place for place, byte in enumerate(content) if 48 <= byte < 58]
    place = rng.choice(digits) if digits and rng.random() < 0.5 else rng.randrange(len(content))
    if 48 <= content[place] < 58 and rng.random() < 0.8:
        byte = rng.choice([digit for digit in range(48, 58) if digit != content[place]])
    else:
        byte = content[place] ^ rng.choice([1 << bit for bit in range(8)])
    return content[:place] + bytes([byte]) + content[place + 1 :]


def damages(files: list[Path], num: int) -> Iterator[Path]:
    """Change one byte of one file at a time, and put it back."""
    rng = random.Random(num)
    for _ in range(num):
        file = rng.choice(files)
        content = file.read_bytes()
        file.write_bytes(changed(content, rng))
        yield file
        file.write_bytes(content)


@pytest.mark.parametrize(
    "num", [12, pytest.param(2000, marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_no_changed_byte_reaches_a_table(num: int, tmp_path: Path) -> None:
    study, store = filled(tmp_path / "store")
    jobs: dict[str, Job] = all_jobs(study.jobs())
    sound = {run_of(run): run for run in results_of(study, store).runs}
    for file in damages(sorted(store.root.glob("records/*/*/*")), num):
        job = jobs[file.parent.name]
        assert store.problem(job.key, job.spec) is not None, file
        if file.name == "tensors.safetensors":
            with pytest.raises(Damaged, match=file.name):
                store.tensors(job.key)
            continue
        found = results_of(study, store)
        assert [each.label for each in found.failures] == [job.label]
        for run in found.runs:
            assert run.status == "missing" or run == sound[run_of(run)]
        assert any(run.status == "missing" for run in found.runs)


def run_of(run: object) -> tuple[object, ...]:
    """Name a row."""
    names = ("data", "model", "method", "sparsity", "target", "arm", "seed")
    return tuple(getattr(run, name) for name in names)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("accuracy", "high", "its 'accuracy' must be a number. Got 'high'"),
        ("accuracy", 10**400, "its 'accuracy' must be a number"),
        ("training_flops", [1], "its 'training_flops' must be a number. Got [1]"),
        ("history", {"a": 1}, "its 'history' must be a list"),
        ("history", [{"lr": 0.1}], "its 'history' must be a list of epochs"),
        ("history", [{"lr": 0.1, "loss": "low"}], "its 'history' must be a list of epochs"),
        ("timing", {"seconds": "x"}, "its 'timing' must be a mapping with the seconds"),
        ("timing", {"energy": {"joules": "x"}}, "its 'timing' must be a mapping with the seconds"),
        ("validation", {"loss": 1}, "its 'validation' has no number 'accuracy'"),
        ("cost", {"machine": "m"}, "its 'cost' has no number 'share'"),
        ("guarded", [1], "its 'guarded' must be a list of names"),
        ("unlike", "w", "its 'unlike' must be a list of names"),
        ("widths", {"a": "b"}, "its 'widths' must be a mapping of whole numbers"),
        ("widths", {"a": 10**400}, "its 'widths' must be a mapping of whole numbers"),
        ("architecture", {"cuts": [{"a": {}}]}, "its 'architecture' must be a mapping with cuts"),
        ("capped", 1, "its 'capped' must be true or false"),
        ("samples", None, "it has no 'samples'"),
        ("macs", None, "it has no 'macs'"),
    ],
)
def test_a_record_that_no_job_writes_is_told_although_it_is_sealed(
    field: str, value: Any, words: str, tmp_path: Path
) -> None:
    study, store = filled(tmp_path / "store")
    job = study.jobs()[-1]
    file = store.record_file(job.key)
    record = json.loads(file.read_text())
    del record["timing"]["digest"]
    file.write_text(sealed(record | {field: value}, job.key, under="timing"))
    found = results_of(study, store)
    assert found.runs[-1].status == "missing"
    assert [words in failure.message for failure in found.failures] == [True]


@pytest.mark.parametrize("swap", ["records", "tensors", "folders"])
def test_swapped_files_are_told(swap: str, tmp_path: Path) -> None:
    study, store = filled(tmp_path / "store")
    jobs = list(all_jobs(study.jobs()).values())
    folders = [store.root / "records" / job.key[:2] / job.key for job in jobs[:2]]
    name = {"records": "record.json", "tensors": "tensors.safetensors", "folders": ""}[swap]
    aside = tmp_path / "aside"
    (folders[0] / name).rename(aside)
    (folders[1] / name).rename(folders[0] / name)
    aside.rename(folders[1] / name)
    for job in jobs[:2]:
        assert store.problem(job.key, job.spec) is not None


@pytest.mark.parametrize("num", [40, pytest.param(500, marks=pytest.mark.slow)])
def test_no_changed_byte_of_a_checkpoint_is_taken(num: int, tmp_path: Path) -> None:
    store, key = Store.open(tmp_path), "ab12"
    tensors = {"w": torch.randn(300), "mask": torch.tensor([True, False])}
    with store.claim(key) as workspace:
        assert workspace is not None
        file = store.root / "running" / key / "checkpoint.safetensors"
        for _ in range(num):
            workspace.save_checkpoint(tensors, {"steps_done": 7, "history": [0.5]})
            file.write_bytes(changed(file.read_bytes(), random.Random(num)))
            with pytest.raises(Damaged, match="was moved to"):
                workspace.load_checkpoint()
            num += 1


STRAY: dict[str, Callable[[Path, str], object]] = {
    "a file in records": lambda root, _: (root / "records" / "stray").write_text("x"),
    "a file among keys": lambda root, key: (root / "records" / key[:2] / f"{key[:2]}x").touch(),
    "a file in running": lambda root, _: (root / "running" / "stray").write_text("x"),
    "an empty failure": lambda root, key: (root / "failed" / f"{key}.json").write_text("{}"),
    "a folder as failure": lambda root, key: (root / "failed" / f"{key}.json").mkdir(),
    "a link to itself": lambda root, _: (root / "records" / "zz").symlink_to("zz"),
}  # fmt: skip
RECORDS = {
    "deep": b"[" * 200_000,
    "empty": b"",
    "text": b'{"accuracy":"high"}',
    "null": b'{"accuracy":null,"spec":null}',
    "nan": b'{"accuracy":NaN,"timing":{"digest":7}}',
    "endless number": b'{"accuracy":' + b"9" * 10_000 + b"}",
    "no text": bytes(range(256)),
    "timing": b'{"timing":[]}',
}


@pytest.mark.parametrize("name", STRAY)
def test_stray_files_are_no_results(name: str, tmp_path: Path) -> None:
    study, store = filled(tmp_path / "store")
    before = [run.score for run in results_of(study, store).runs]
    STRAY[name](store.root, study.jobs()[0].key)
    assert [run.score for run in results_of(study, store).runs] == before
    store.tidy()


@pytest.mark.parametrize("name", RECORDS)
def test_what_is_no_record_counts_as_missing(name: str, tmp_path: Path) -> None:
    study, store = filled(tmp_path / "store")
    job = study.jobs()[-1]
    (store.root / "records" / job.key[:2] / job.key / "record.json").write_bytes(RECORDS[name])
    found = results_of(study, store)
    assert found.runs[-1].status == "missing"
    assert [failure.label for failure in found.failures] == [job.label]
    moved = store.set_aside(job.key, job.spec)
    assert moved is not None
    assert (moved / "record.json").read_bytes() == RECORDS[name]
    assert store.status(job.key) == "missing"
