"""A disk that fails or is full: files are whole or absent, and the message says what to do."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from commands import Command, write_study
from regrow.core.disk import filling, why, write_whole
from regrow.store import Store

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_told_with_the_room_that_is_left(tmp_path: Path) -> None:
    words = why(FULL, tmp_path / "not" / "there.json")
    assert words.startswith(f"No space left on device ({tmp_path}/not/there.json, ")
    assert words.endswith(" free)")
    assert "free" not in why(PermissionError(errno.EACCES, "Permission denied", "x"))


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    write_whole(file, "old\n")

    def fail() -> None:
        with filling(tmp_path) as fresh:
            (fresh / "rows.csv").write_text("half of")
            raise FULL

    with pytest.raises(OSError, match="No space"):
        fail()
    assert file.read_text() == "old\n"
    assert [path.name for path in tmp_path.iterdir()] == ["rows.csv"]


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    child = os.fork()
    if not child:
        with filling(tmp_path) as fresh:
            (fresh / "rows.csv").write_text("half of")
            os._exit(0)
    os.waitpid(child, 0)
    assert [path.name for path in tmp_path.iterdir()] != []
    write_whole(tmp_path / "rows.csv", "new\n")
    assert [path.name for path in tmp_path.iterdir()] == ["rows.csv"]


@pytest.mark.parametrize("place", ["tidy", "snapshot"])
def test_an_error_of_the_disk_ends_a_command_in_one_message(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), "store/running")

    monkeypatch.chdir(tmp_path)
    write_study(tmp_path)
    monkeypatch.setattr(Store, place, fail)
    done = command("run", "study.yaml", "--workers", "0")
    assert done.code == 2
    assert "operation: Input/output error (store/running). Finished jobs are kept." in done.text


def test_a_job_is_done_although_what_was_before_it_cannot_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.open(tmp_path / "store")
    store.fail("ab12", {}, message="no memory")

    def fail(self: Path, **_: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(self))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", fail)
        assert store.commit("ab12", {"accuracy": 0.5})
    assert store.status("ab12") == "done"
    assert [*(store.root / "failed").iterdir()]
    store.tidy()
    assert not [*(store.root / "failed").iterdir()]


def test_a_report_that_cannot_be_written_leaves_the_last_one(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_study(tmp_path)
    assert command("run", "study.yaml", "--workers", "0", "--out", "out").code == 0
    before = {file.name: file.read_bytes() for file in Path("out").iterdir()}

    def fail(self: Path, *_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fail)
        done = command("report", "study.yaml", "--out", "out")
    assert done.code == 2
    assert "Cannot write the report to 'out': No space left on device (out, " in done.text
    assert "Make room there, or name a folder that you may write to." in done.text
    assert {file.name: file.read_bytes() for file in Path("out").iterdir()} == before


def test_a_path_without_end_does_not_hide_the_reason() -> None:
    error = OSError(errno.ENAMETOOLONG, "File name too long", "x" * 5000)
    assert why(error) == "File name too long"
