"""The store: complete or absent, claimed by one process, told clearly when it cannot be trusted."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from regrow.core.digests import canonical_json
from regrow.errors import Damaged, StoreError
from regrow.store import Store
from regrow.store.workspace import Workspace

KEY = "ab" + "0" * 62
OTHER = "cd" + "1" * 62


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def test_commit_then_record_and_tensors_return_what_was_stored(store: Store) -> None:
    tensors = {"weight": torch.randn(3, 4), "kept": torch.tensor([True, False])}
    assert store.commit(KEY, {"accuracy": 0.1 + 0.2, "spec": {"a": 1}}, tensors)
    assert store.has(KEY)
    assert store.keys() == (KEY,)
    assert store.status(KEY) == "done"
    assert store.record(KEY) == {"accuracy": 0.1 + 0.2, "spec": {"a": 1}}
    loaded = store.tensors(KEY)
    assert set(loaded) == {"weight", "kept"}
    for name, tensor in tensors.items():
        assert torch.equal(loaded[name], tensor)
        assert loaded[name].dtype == tensor.dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int64, torch.uint8, torch.float64])
def test_tensors_of_every_kind_survive(store: Store, dtype: torch.dtype) -> None:
    base = torch.arange(48).reshape(2, 3, 2, 4)
    tensors = {
        "plain": base.to(dtype),
        "channels-last": base.to(dtype).to(memory_format=torch.channels_last),
        "scalar": torch.tensor(3).to(dtype),
        "empty": torch.empty(0, 5).to(dtype),
    }
    tensors["view"] = tensors["plain"][1]
    tensors["same"] = tensors["plain"]
    store.commit(KEY, {}, tensors)
    loaded = store.tensors(KEY)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())


def test_record_without_tensors_has_none(store: Store) -> None:
    store.commit(KEY, {})
    assert store.tensors(KEY) == {}


def test_same_content_gives_same_bytes(tmp_path: Path) -> None:
    tensors = {name: torch.full((3,), float(i)) for i, name in enumerate("zebra")}
    for name, order in (("one", 1), ("two", -1)):
        record = dict(list({"b": [1.5, 1e-9], "a": {"y": 1, "x": None}}.items())[::order])
        Store.open(tmp_path / name).commit(KEY, record, dict(list(tensors.items())[::order]))
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")


def test_first_writer_wins(store: Store) -> None:
    assert store.commit(KEY, {"who": "first"}, {"x": torch.zeros(1)})
    assert not store.commit(KEY, {"who": "second"}, {"x": torch.ones(1)})
    assert store.record(KEY) == {"who": "first"}
    assert store.tensors(KEY)["x"].item() == 0


def test_commit_removes_checkpoint_and_failure(store: Store) -> None:
    with store.claim(KEY) as workspace:
        assert workspace is not None
        workspace.save_checkpoint({"x": torch.zeros(1)}, {})
        store.fail(KEY, {}, message="no luck")
        store.commit(KEY, {})
    assert store.failure(KEY) is None
    assert set(files_of(store.root)) == {"store.json", f"records/ab/{KEY}/record.json"}
    assert not list((store.root / "running").iterdir())


def test_record_of_another_spec_is_refused_and_names_the_difference(store: Store) -> None:
    store.commit(KEY, {"spec": {"recipe": {"epochs": 3, "drops": [1, 2]}, "seed": 0}})
    store.record(KEY, spec={"seed": 0, "recipe": {"drops": (1, 2), "epochs": 3}})
    with pytest.raises(StoreError, match=r"its 'spec\.recipe\.epochs' is 3, this study asks for 4"):
        store.record(KEY, spec={"recipe": {"epochs": 4, "drops": [1, 2]}, "seed": 0})


@pytest.mark.parametrize("damage", ["", '{"accuracy": 0.', "[1, 2]", "\xff\xfe"])
def test_damaged_record_names_the_file_and_what_to_do(store: Store, damage: str) -> None:
    store.commit(KEY, {"accuracy": 1.0})
    (store.root / "records" / "ab" / KEY / "record.json").write_text(damage, encoding="latin-1")
    with pytest.raises(
        StoreError, match=rf"{KEY}/record\.json is damaged: it .*runs its job again"
    ):
        store.record(KEY)


def test_damaged_tensors_name_the_file_and_what_to_do(store: Store) -> None:
    store.commit(KEY, {}, {"x": torch.zeros(100)})
    file = store.root / "records" / "ab" / KEY / "tensors.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(
        StoreError, match=r"tensors\.safetensors is damaged: it is not a file of tensors"
    ):
        store.tensors(KEY)


def test_missing_record_is_a_clear_error(store: Store) -> None:
    for read in (store.record, store.tensors):
        with pytest.raises(StoreError, match=f"has no record of job {KEY}"):
            read(KEY)


def test_number_that_is_not_finite_is_refused(store: Store) -> None:
    with pytest.raises(StoreError, match=f"record of job {KEY} has a number that is not finite"):
        store.commit(KEY, {"loss": float("nan")})
    assert not store.has(KEY)


def test_store_of_another_version_is_refused(tmp_path: Path) -> None:
    Store.open(tmp_path)
    (tmp_path / "store.json").write_text('{"format": 99}')
    for create in (True, False):
        with pytest.raises(StoreError, match=r"has format 99, this regrow reads format 1\. Use"):
            Store.open(tmp_path, create=create)


def test_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("do not touch")
    with pytest.raises(StoreError, match=r"not a store: it has no store.json but 'thesis.tex'"):
        Store.open(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("lost", [lambda file: file.write_text(""), Path.unlink])
@pytest.mark.parametrize("create", [True, False])
def test_how_to_restore_the_file_that_marks_a_store_is_told(
    lost: Any, create: bool, tmp_path: Path
) -> None:
    Store.open(tmp_path)
    lost(tmp_path / "store.json")
    with pytest.raises(
        StoreError, match=r'write {"format": 1} into its store\.json: its rec'
    ) as told:
        Store.open(tmp_path, create=create)
    (tmp_path / "store.json").write_text(str(told.value).split(" write ")[1].split(" into")[0])
    Store.open(tmp_path)


def test_absent_store_is_not_made_when_only_read(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"There is no store at .*Run a study first"):
        Store.open(tmp_path / "absent", create=False)
    assert not (tmp_path / "absent").exists()


def test_unwritable_folder_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"Cannot write the store .*--store"):
        Store.open(tmp_path / "file" / "store")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_folder_without_permission_is_a_clear_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError, match=r"Cannot write the store .*--store"):
        Store.open(tmp_path / "store")


def test_hostile_folder_name_works(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "a \"b\" 'c'" / "[bold]%s\n{x}")
    store.commit(KEY, {"a": 1}, {"x": torch.ones(2)})
    again = Store.open(store.root, create=False)
    assert again.keys() == (KEY,)
    assert torch.equal(again.tensors(KEY)["x"], torch.ones(2))


def test_checkpoint_returns_what_was_saved_last(store: Store) -> None:
    with store.claim(KEY) as workspace:
        assert workspace is not None
        assert workspace.load_checkpoint() is None
        for step in range(3):
            workspace.save_checkpoint({"x": torch.full((2,), step)}, {"step": step, "f": 0.1})
        saved = workspace.load_checkpoint()
    assert saved is not None
    tensors, meta = saved
    assert tensors["x"].tolist() == [2, 2]
    assert meta == {"step": 2, "f": 0.1}
    with store.claim(KEY) as workspace:  # it stays for the next one
        assert workspace is not None
        assert workspace.load_checkpoint() is not None


def test_checkpoint_may_hold_no_tensors(store: Store) -> None:
    with store.claim(KEY) as workspace:
        assert workspace is not None
        workspace.save_checkpoint({}, {"step": 1})
        assert workspace.load_checkpoint() == ({}, {"step": 1})


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_checkpoint_is_told(store: Store, keep: int) -> None:
    with store.claim(KEY) as workspace:
        assert workspace is not None
        workspace.save_checkpoint({"x": torch.zeros(100)}, {})
        file = store.root / "running" / KEY / "checkpoint.safetensors"
        file.write_bytes(file.read_bytes()[:keep])
        with pytest.raises(Damaged, match=r"checkpoint.* is damaged: .* was moved to .*damaged/"):
            workspace.load_checkpoint()
        assert workspace.load_checkpoint() is None


def test_claim_is_given_once_and_leaves_nothing_behind(store: Store) -> None:
    with store.claim(KEY) as first:
        assert isinstance(first, Workspace)
        first.progress({"fraction": 0.5, "note": ""})
        assert store.status(KEY) == "running"
        assert store.progress(KEY) == {"fraction": 0.5, "note": ""}
        with store.claim(KEY) as second:
            assert second is None
        with store.claim(OTHER) as other:
            assert other is not None
        assert store.status(KEY) == "running"
    assert store.status(KEY) == "missing"
    assert not list((store.root / "running").iterdir())


HOLD = """
import sys, time
from regrow.store import Store
import torch
with Store.open(sys.argv[1]).claim(sys.argv[2]) as workspace:
    workspace.save_checkpoint({"x": torch.ones(1)}, {"step": 7})
    print("held", flush=True)
    time.sleep(60)
"""


def test_claim_dies_with_its_process_and_the_checkpoint_stays(store: Store) -> None:
    command = [sys.executable, "-c", HOLD, str(store.root), KEY]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with store.claim(KEY) as workspace:
            assert workspace is None
        assert store.snapshot().running == {KEY}
        holder.send_signal(signal.SIGKILL)
    assert store.status(KEY) == "missing"
    assert store.snapshot().paused == {KEY}
    with store.claim(KEY) as workspace:
        assert workspace is not None
        assert workspace.load_checkpoint() == ({"x": torch.ones(1)}, {"step": 7})


def test_damaged_failure_names_the_file_and_what_to_do(store: Store) -> None:
    store.fail(KEY, {}, message="no luck")
    (store.root / "failed" / f"{KEY}.json").write_text("{")
    with pytest.raises(StoreError, match=rf"{KEY}\.json is damaged: it is not JSON"):
        store.failure(KEY)


def test_importing_the_store_does_not_import_torch() -> None:
    check = "import regrow.store, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0


def test_failure_is_kept_as_data_until_forgiven(store: Store) -> None:
    assert store.failure(KEY) is None
    store.fail(KEY, {"seed": 1}, message="diverged", traceback="line 1")
    store.fail(KEY, {"seed": 1}, message="diverged again", traceback="line 2")
    failure = store.failure(KEY)
    assert failure == {
        "key": KEY,
        "spec": {"seed": 1},
        "message": "diverged again",
        "traceback": "line 2",
    }
    assert store.status(KEY) == "failed"
    assert store.snapshot().failed == {KEY}
    store.forgive(KEY)
    assert store.status(KEY) == "missing"


def test_tidy_removes_what_a_kill_while_committing_left(store: Store) -> None:
    leftover = store.root / "running" / KEY / "scratch-1-x"
    leftover.mkdir(parents=True)
    (leftover / "record.json").write_text("{")
    assert not store.has(KEY)
    store.commit(KEY, {})
    store.tidy()
    assert not list((store.root / "running").iterdir())
    assert store.has(KEY)


def test_a_path_that_is_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="not UTF-8"):
        Store.open(tmp_path / "\udcff")


def test_canonical_json_refuses_what_json_cannot_hold() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"x": float("inf")})
    assert canonical_json({"x": 1e-5, "a": [True, None, "\u00e9"]}) == (
        '{"a":[true,null,"\\u00e9"],"x":1e-05}'
    )


def test_status_of_ten_thousand_jobs_is_cheap(store: Store) -> None:
    keys = [f"{index * 2654435761 % 2**32:08x}" for index in range(10_000)]
    for key in keys[::2]:  # as commit leaves them, without 5,000 syncs
        folder = store.root / "records" / key[:2] / key
        folder.mkdir(parents=True)
        (folder / "record.json").write_text("{}")
    start = time.process_time()
    snapshot = store.snapshot()
    sweep_seconds = time.process_time() - start
    start = time.process_time()
    found = [store.has(key) for key in keys]
    has_seconds = time.process_time() - start
    assert snapshot.done == set(keys[::2]) == set(store.keys())
    assert sum(found) == 5_000
    # About 0.02 s and 0.1 s here; ten times that for slow disks, and no listing per job fits in.
    assert sweep_seconds < 0.5
    assert has_seconds < 1.5


def test_record_on_disk_is_canonical_json(store: Store) -> None:
    store.commit(KEY, {"b": 1, "a": 0.1})
    text = (store.root / "records" / "ab" / KEY / "record.json").read_text()
    digest = json.loads(text)["timing"]["digest"]
    assert text == f'{{"a":0.1,"b":1,"timing":{{"digest":"{digest}"}}}}'
