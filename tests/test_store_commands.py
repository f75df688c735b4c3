"""`regrow store`: what is damaged is told, nothing is lost or replaced, archives are bounded."""

import io
import json
import os
import struct
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from commands import Command
from regrow.core.digests import digest_of, digest_of_file, save_tensors
from regrow.core.processes import HOST_VARIABLE, fresh_name
from regrow.errors import Removed, StoreError
from regrow.run import run
from regrow.store import Store
from regrow.store.check import contrast, verify
from regrow.store.garbage import OLD_SECONDS, find_garbage, remove_garbage
from regrow.store.transfer import export_records, import_records
from regrow.studies.job_list import Planned
from test_run import Walk, diamond, num_starts, results

KEYS = [f"{letters}{'0' * 62}" for letters in ("ab", "cd", "ef")]


def filled(folder: Path, *, keys: list[str] = KEYS, extra: float = 0.0) -> Store:
    store = Store.open(folder)
    for number, key in enumerate(keys):
        record = {"kind": "train", "spec": {"seed": number}, "accuracy": number / 10 + extra}
        tensors = {"w": torch.full((3,), float(number))} if number else {}
        store.commit(key, {**record, "timing": {"seconds": extra}}, tensors)
    return store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return filled(tmp_path / "store")


def contents(store: Store) -> dict[str, bytes]:
    return {
        str(file.relative_to(store.root)): file.read_bytes()
        for file in sorted((store.root / "records").rglob("*"))
        if file.is_file()
    }


# Verify --------------------


@pytest.mark.parametrize(
    "dtype",
    [torch.bool, torch.uint8, torch.int64, torch.float16, torch.bfloat16, torch.float64],
)
def test_file_has_the_digest_of_its_tensors_without_pytorch(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    tensors = {"b": torch.arange(6).reshape(2, 3).to(dtype), "a/x": torch.tensor(1).to(dtype)}
    tensors["none"] = torch.empty(0, 4).to(dtype)
    save_tensors(tmp_path / "file", tensors, meta="text")
    assert digest_of_file(tmp_path / "file") == (digest_of(tensors), "text")


def test_sound_store_is_told_so(command: Command, store: Store) -> None:
    with store.claim("aa") as workspace:
        assert workspace is not None
        workspace.save_checkpoint({"x": torch.ones(2)}, {"step": 1})
    store.fail("bb", {}, message="no luck")
    store.decide("plan-x", {"a": 1})
    result = command("store", "verify", "--store", store.root)
    assert result.code == 0
    assert result.out.startswith("3 records, ")
    assert "all sound" in result.out


@pytest.mark.parametrize(
    "name",
    [
        f"records/cd/{KEYS[1]}/record.json",
        f"records/cd/{KEYS[1]}/tensors.safetensors",
        "running/aa/checkpoint.safetensors",
        "failed/bb.json",
        "plan-x.json",
    ],
)
def test_changed_byte_of_any_file_is_found(command: Command, store: Store, name: str) -> None:
    with store.claim("aa") as workspace:
        assert workspace is not None
        workspace.save_checkpoint({"x": torch.ones(2)}, {"step": 1})
    store.fail("bb", {}, message="no luck")
    store.decide("plan-x", {"a": 1})
    file = store.root / name
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    found = verify(store)
    told = str(file.parent if name.startswith("records") else file)
    assert [*found.damaged] == [told]
    result = command("store", "verify", "--store", store.root, "--json")
    assert result.code == 1
    assert json.loads(result.out)["damaged"][0]["file"] == told


def test_absent_tensors_and_absent_records_are_found(store: Store) -> None:
    store.record_file(KEYS[1]).with_name("tensors.safetensors").unlink()
    store.record_file(KEYS[2]).unlink()
    assert sorted(verify(store).damaged) == [str(store.record_file(key).parent) for key in KEYS[1:]]


def test_store_commands_need_no_pytorch(store: Store) -> None:
    code = "from regrow.cli.main import main; import sys, atexit;"
    code += "atexit.register(lambda: print('torch' in sys.modules)); main()"
    for arguments in (["verify"], ["list"], ["gc"]):
        command = [sys.executable, "-c", code, "store", *arguments, "--store", str(store.root)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout.endswith("False\n")


# List and diff --------------------


def test_list_shows_kind_label_size_and_time(command: Command, store: Store) -> None:
    for name, key in (("one", KEYS[0]), ("two", KEYS[1])):
        plan = Planned(name=name, title=name, labels={key: f"job {name}"}, specs={})
        store.decide(f"plan-{ord(name[0]):032x}", vars(plan))
    listed = json.loads(command("store", "list", "--store", store.root, "--json").out)
    assert [job["key"] for job in listed] == KEYS
    assert [job["label"] for job in listed] == ["job one", "job two", None]
    assert [job["has_tensors"] for job in listed] == [False, True, True]
    assert "job two" in command("store", "list", "--store", store.root).out
    for options, keys in (
        (["--study", "two"], [KEYS[1]]),
        (["--label", "ONE"], [KEYS[0]]),
        (["--kind", "prune"], []),
    ):
        some = command("store", "list", "--store", store.root, "--json", *options)
        assert [job["key"] for job in json.loads(some.out)] == keys


def test_diff_knows_what_times_are(command: Command, store: Store, tmp_path: Path) -> None:
    other = filled(tmp_path / "other", keys=KEYS[:2])
    third = filled(tmp_path / "third", keys=KEYS[1:], extra=0.5)
    assert contrast(store, other).same == 2
    assert contrast(store, other).only_a == (KEYS[2],)
    assert contrast(other, store).only_b == (KEYS[2],)
    assert contrast(store, third).other == tuple(KEYS[1:])
    told = command("store", "diff", store.root, third.root).out
    assert "Same key, different content: 2" in told


# Garbage --------------------


def test_garbage_is_listed_first_and_records_stay(command: Command, store: Store) -> None:
    before = contents(store)
    with store.claim("aa") as workspace:
        assert workspace is not None
        workspace.save_checkpoint({"x": torch.ones(2)}, {"step": 1})
    garbage = find_garbage(store, {KEYS[1]})
    assert (garbage.tensors, garbage.checkpoints) == ((KEYS[2],), ("aa",))
    assert garbage.num_bytes > 0
    assert contents(store) == before
    remove_garbage(store, garbage)
    assert set(before) - set(contents(store)) == {f"records/ef/{KEYS[2]}/tensors.safetensors"}
    assert store.record(KEYS[2])["accuracy"] == 0.2
    with pytest.raises(Removed, match=r"tensors of job ef0.* were removed"):
        store.tensors(KEYS[2])
    assert not verify(store).damaged
    assert not store.snapshot().paused
    assert not any(find_garbage(store, {KEYS[1]}).tensors)


def test_gc_without_a_study_removes_litter_alone(
    command: Command, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(HOST_VARIABLE, "other")
    young, old = store.root / fresh_name("store"), store.root / fresh_name("plan")
    monkeypatch.delenv(HOST_VARIABLE)
    living = store.root / fresh_name("store")
    for path in (young, old, living):
        path.touch()
    stamp = young.stat().st_mtime - OLD_SECONDS - 60
    os.utime(old, (stamp, stamp))
    before = contents(store)
    assert "would be removed" in command("store", "gc", "--store", store.root).out
    assert old.exists()
    assert "1 file of 0 B removed" in command("store", "gc", "--store", store.root, "--yes").out
    assert (young.exists(), old.exists(), living.exists()) == (True, False, True)
    assert contents(store) == before


def test_nothing_is_removed_while_jobs_run(store: Store) -> None:
    garbage = find_garbage(store, set())
    with store.claim("aa"), pytest.raises(StoreError, match=r"1 jobs of .* are running"):
        remove_garbage(store, garbage)
    assert not verify(store).damaged


def test_removed_tensors_are_computed_again_only_where_they_are_needed(tmp_path: Path) -> None:
    store, trace = Store.open(tmp_path / "store"), tmp_path / "trace"
    jobs = diamond(trace=trace)
    run(jobs, store, workers=0)
    undisturbed = results(store)
    remove_garbage(store, find_garbage(store, set()))
    starts = num_starts(trace)
    run(jobs, store, workers=0)
    assert num_starts(trace) == starts, "all results are there"
    child = Walk(name="child", inputs=(jobs[0].inputs[0],), trace=trace)
    assert run([child], store, workers=0).done == ("parent 0", "child")
    key = jobs[0].inputs[0].key
    folder = store.record_file(key).parent
    assert (folder / "tensors.safetensors").read_bytes() == undisturbed[key][1]


# Export and import --------------------


@pytest.mark.parametrize("name", ["folder", "archive.tar"])
@pytest.mark.parametrize("tensors", [True, False])
def test_export_and_import_carry_records_as_they_are(
    command: Command, store: Store, tmp_path: Path, name: str, tensors: bool
) -> None:
    plan = Planned(name="one", title="one", labels={KEYS[0]: "job one"}, specs={})
    store.decide(f"plan-{1:032x}", vars(plan))
    to = tmp_path / name
    options = [] if tensors else ["--no-tensors"]
    assert command("store", "export", "--to", to, "--store", store.root, *options).code == 0
    assert command("store", "export", "--to", to, "--store", store.root).code == 2, "it is there"
    done = command("store", "import", to, "--store", tmp_path / "new")
    assert done.out == "3 records imported, 0 already present.\n"
    new = Store.open(tmp_path / "new", create=False)
    assert not verify(new).damaged
    assert contrast(store, new).same == 3
    assert new.is_bare(KEYS[1]) == (not tensors)
    if tensors:
        assert contents(new) == contents(store)
    assert "job one" in command("store", "list", "--store", new.root).out
    again = command("store", "import", to, "--store", tmp_path / "new")
    assert again.out == "0 records imported, 3 already present.\n"
    assert not list(new.root.glob(".*"))
    assert not list((new.root / "running").iterdir())


def test_archives_of_equal_records_are_equal(store: Store, tmp_path: Path) -> None:
    for name in ("a.tar", "b.tar"):
        export_records(store, KEYS, tmp_path / name)
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


def test_other_result_under_a_known_key_is_refused_and_stays(
    command: Command, store: Store, tmp_path: Path
) -> None:
    other = filled(tmp_path / "other", extra=0.5)
    before = contents(other)
    done = command("store", "import", store.root, "--store", other.root)
    assert done.code == 1
    assert "3 refused" in done.out
    assert "has a different result under this key, which is kept" in done.out
    assert contents(other) == before


def test_damaged_record_is_refused_and_the_others_are_taken(store: Store, tmp_path: Path) -> None:
    file = store.record_file(KEYS[1]).with_name("tensors.safetensors")
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    new = Store.open(tmp_path / "new")
    taken = import_records(new, store.root)
    assert taken.new == [KEYS[0], KEYS[2]]
    assert "not those that were stored with it" in taken.refused[KEYS[1]]


def archive_with(path: Path, *members: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w") as archive:
        for member in members:
            archive.addfile(member, io.BytesIO(b"x" * min(member.size, 10)))
    return path


def member(
    name: str, *, kind: bytes = tarfile.REGTYPE, size: int = 1, to: str = ""
) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, to
    info.size = size if kind == tarfile.REGTYPE else 0
    return info


RECORD = f"records/ab/{KEYS[0]}/record.json"


@pytest.mark.parametrize(
    "bad",
    [
        [member("../escape.json")],
        [member("/etc/passwd")],
        [member(f"records/ab/../../{KEYS[0]}/record.json")],
        [member("records/ab/cd00/record.json")],
        [member("precision.json")],
        [member(RECORD, kind=tarfile.SYMTYPE, to="/etc/passwd")],
        [member(RECORD, kind=tarfile.LNKTYPE, to="store.json")],
        [member(RECORD, kind=tarfile.FIFOTYPE)],
        [member(RECORD, kind=tarfile.DIRTYPE)],
        [member(RECORD), member(RECORD)],
    ],
)
def test_archive_with_what_no_export_has_is_refused_whole(
    store: Store, tmp_path: Path, bad: list[tarfile.TarInfo]
) -> None:
    before = set(tmp_path.rglob("*"))
    source = archive_with(tmp_path / "bad.tar", *bad)
    with pytest.raises(StoreError, match="The archive is refused"):
        import_records(store, source)
    assert set(tmp_path.rglob("*")) == before | {source}


def sparse(name: str) -> bytes:
    """Write a head that stands for gigabytes of zeros (of the kind S of GNU tar)."""
    head = bytearray(tarfile.TarInfo(name).tobuf(format=tarfile.GNU_FORMAT))
    head[156:157] = tarfile.GNUTYPE_SPARSE
    head[483:495] = b"77777777777\0"
    return with_sum(head)


def backwards(name: str) -> bytes:
    """Write a head after which the next one is itself."""
    pax = tarfile.TarInfo(name)
    pax.pax_headers = {"size": "-1024"}
    return pax.tobuf(format=tarfile.PAX_FORMAT)


def with_sum(head: bytearray) -> bytes:
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head[:512])
    return bytes(head)


def no_number(name: str) -> bytes:
    """Write a head of a sparse file whose size is a word."""
    pax = tarfile.TarInfo(name)
    pax.pax_headers = {"GNU.sparse.size": "x"}
    return pax.tobuf(format=tarfile.PAX_FORMAT)


@pytest.mark.parametrize("head", [sparse, backwards, no_number])
def test_archive_that_would_never_end_is_refused(
    store: Store, tmp_path: Path, head: Callable[[str], bytes]
) -> None:
    source = tmp_path / "bad.tar"
    source.write_bytes(head(RECORD.replace("record.json", "tensors.safetensors")) + bytes(1024))
    with pytest.raises(StoreError, match=r"The archive is refused|neither a store nor a tar"):
        import_records(store, source)
    assert not list(store.root.glob(".*"))


def test_folder_with_what_is_no_record_is_taken_but_for_that(store: Store, tmp_path: Path) -> None:
    for name, make in (("ff", Path.touch), ("ee", lambda path: path.symlink_to("nowhere"))):
        make(store.root / "records" / KEYS[0][:2] / f"{KEYS[0][:2]}{name}")
    taken = import_records(Store.open(tmp_path / "new"), store.root)
    assert sorted(taken.new) == sorted(KEYS)
    assert ["cannot be read" in why for why in taken.refused.values()] == [True, True]


def test_list_tells_what_is_no_record(store: Store, command: Command) -> None:
    (store.root / "records" / KEYS[0][:2] / f"{KEYS[0][:2]}ff").write_text("a file")
    file = store.record_file(KEYS[1]).with_name("tensors.safetensors")
    file.unlink()
    file.symlink_to("nowhere")
    jobs = json.loads(command("store", "list", "--store", store.root, "--json").out)
    assert [job["kind"] for job in jobs].count("damaged") == 1
    assert len(jobs) == len(KEYS) + 1


@pytest.mark.parametrize("content", [b"", b"no tar", struct.pack("<Q", 1) * 200])
def test_file_that_is_no_archive_is_refused(store: Store, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.tar").write_bytes(content)
    with pytest.raises(StoreError):
        import_records(store, tmp_path / "bad.tar")
    assert not list(store.root.glob(".*"))


def test_links_in_a_folder_are_refused(store: Store, tmp_path: Path) -> None:
    folder = store.record_file(KEYS[1]).parent
    (folder / "tensors.safetensors").rename(tmp_path / "elsewhere")
    (folder / "tensors.safetensors").symlink_to(tmp_path / "elsewhere")
    taken = import_records(Store.open(tmp_path / "new"), store.root)
    assert "not a plain file" in taken.refused[KEYS[1]]
