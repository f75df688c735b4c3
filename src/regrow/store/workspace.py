"""The folder of a job under way: its owner, and the checkpoint from which it continues."""

import fcntl
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regrow.core.digests import (
    canonical_json,
    digest_of,
    load_tensors,
    save_tensors,
    sealed,
    unsealed,
)
from regrow.errors import Damaged, StoreError

if TYPE_CHECKING:
    from torch import Tensor

CHECKPOINT = "checkpoint.safetensors"
TENSORS = "tensors"  # where a checkpoint's text has the digest of its tensors


class Workspace:
    """The folder of a job under way, held by this process; made by ``Store.claim``.

    What was damaged is moved to the folder ``aside``.
    """

    def __init__(self, folder: Path, *, aside: Path) -> None:
        self._folder = folder
        self._aside = aside
        self._checkpoint = folder / CHECKPOINT

    def save_checkpoint(self, tensors: Mapping[str, "Tensor"], meta: Mapping[str, Any]) -> None:
        """Replace the checkpoint; a crash leaves the old one or the new one, never half of one."""
        fresh = self._folder / "checkpoint.new"
        text = sealed({"meta": meta, TENSORS: digest_of(tensors)}, self._folder.name)
        save_tensors(fresh, tensors, meta=text)
        fresh.replace(self._checkpoint)

    def load_checkpoint(self) -> tuple[dict[str, "Tensor"], dict[str, Any]] | None:
        """Return what was saved last, or None; what was not saved so for this job is ``Damaged``.

        That is set aside, so that the job starts over.
        """
        if not os.path.lexists(self._checkpoint):
            return None
        try:
            tensors, text = load_tensors(self._checkpoint)
            value = unsealed(text.encode(), self._folder.name)
            if value[TENSORS] != digest_of(tensors):
                raise ValueError("its tensors are not those that were saved")
        except ValueError as error:
            moved = move_aside(self._checkpoint, self._aside / f"checkpoint-{self._folder.name}")
            raise Damaged(
                f"The checkpoint {self._checkpoint} is damaged: {error}. It was moved to {moved}."
            ) from error
        meta: dict[str, Any] = value["meta"]
        return tensors, meta

    def drop_checkpoint(self) -> None:
        """Forget the checkpoint, so that the job starts over."""
        self._checkpoint.unlink(missing_ok=True)

    def progress(self, progress: Mapping[str, Any]) -> None:
        """Say how far the job is; not synced to disk, for a crash takes it to the last one said."""
        fresh = self._folder / "progress.new"
        fresh.write_text(canonical_json(progress), encoding="ascii")
        fresh.replace(self._folder / "progress.json")


def move_aside(path: Path, place: Path) -> Path:
    """Move a file or folder out of the way, to ``place`` with the first number that is free."""
    place.parent.mkdir(exist_ok=True)
    number = 1
    while os.path.lexists(moved := place.with_name(f"{place.name}-{number}")):
        number += 1
    path.rename(moved)
    return moved


def lock_in(folder: Path) -> int | None:
    """Make a folder and take its lock; None when another living process holds it."""
    path = folder / "lock"
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:
            continue  # its last holder removed the folder between the two lines
        except OSError as error:
            raise StoreError(f"Cannot write {path}: {error.strerror or error}.") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return None
        if is_same_file(lock, path):
            return lock
        os.close(lock)  # locked a file that its last holder removed meanwhile


def is_locked(folder: Path) -> bool:
    """Tell whether a living process works in a folder."""
    try:
        lock = os.open(folder / "lock", os.O_RDONLY | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def is_same_file(lock: int, path: Path) -> bool:
    """Tell whether an open lock is still the one at its place."""
    try:
        return os.path.samestat(os.fstat(lock), path.stat())
    except FileNotFoundError:
        return False
