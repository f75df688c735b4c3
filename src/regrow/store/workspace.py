"""The working folder of an unfinished job, and how files of a store are replaced and listed."""

import errno
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from regrow.core.digests import (
    canonical_json,
    digest_of,
    load_tensors,
    save_tensors,
    sealed,
    unsealed,
    write_synced,
)
from regrow.core.disk import why
from regrow.core.leases import Lease
from regrow.core.processes import fresh_name
from regrow.errors import ClaimLost, Damaged, StoreError

if TYPE_CHECKING:
    from torch import Tensor

CHECKPOINT, PROGRESS = "checkpoint.safetensors", "progress.json"
TENSORS = "tensors"  # field of a checkpoint's metadata with the digest of its tensors
# Temporary names used here by this version, its libraries and earlier versions.
_UNFINISHED = re.compile(r"\..+\.new|\.lock-.+|\.tmp.+|scratch-.+")


class Workspace:
    """The working folder of a job that this process has claimed; made by ``Store.claim``.

    Damaged files are moved to the folder ``aside``. Files are written under names that are unique
    to this process, so that a process that was wrongly taken for dead does not overwrite another's.
    """

    def __init__(self, folder: Path, lease: Lease, *, aside: Path) -> None:
        self._folder = folder
        self._lease = lease
        self._aside = aside
        self._checkpoint = folder / CHECKPOINT

    def save_checkpoint(self, tensors: Mapping[str, "Tensor"], meta: Mapping[str, Any]) -> None:
        """Replace the checkpoint atomically: after a crash there is the old or the new one.

        Raises ``ClaimLost`` if another process has taken the job over.
        """
        fresh = self._folder / fresh_name(CHECKPOINT)
        text = sealed({"meta": meta, TENSORS: digest_of(tensors)}, self._folder.name)
        try:
            save_tensors(fresh, tensors, meta=text)
            self.check()
            fresh.replace(self._checkpoint)
        except (OSError, SafetensorError):
            self.check()  # if the job was taken over, that is the cause of the error
            raise
        finally:
            remove(fresh)

    def is_lost(self) -> bool:
        """Return whether another process has taken the job over."""
        return self._lease.is_lost()

    def check(self) -> None:
        """Raise ``ClaimLost`` if another process has taken the job over."""
        if self.is_lost():
            raise ClaimLost(
                f"Another process took over the job {self._folder.name}, because this one gave no "
                "sign of life for too long."
            )

    def load_checkpoint(self) -> tuple[dict[str, "Tensor"], dict[str, Any]] | None:
        """Return the last checkpoint's tensors and metadata, or None if there is none.

        A checkpoint that is not what this job saved is moved aside, so that the job can start over,
        and ``Damaged`` is raised.
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
        """Remove the checkpoint, so that the job starts over."""
        self._checkpoint.unlink(missing_ok=True)

    def progress(self, progress: Mapping[str, Any]) -> None:
        """Write the job's progress; not synced to disk, as it may be lost in a crash."""
        fresh = self._folder / fresh_name(PROGRESS)
        try:
            fresh.write_text(canonical_json(progress), encoding="ascii")
            fresh.replace(self._folder / PROGRESS)
        except OSError:  # e.g. a full disk: progress is for display, so the job goes on
            remove(fresh)

    def sweep(self) -> None:
        """Remove the temporary files of earlier holders, and nothing else.

        In a shared store, other users may have put any file or link here.
        """
        for entry in self._folder.iterdir():
            if _UNFINISHED.fullmatch(entry.name) and not self.is_lost():
                remove(entry)

    def empty(self) -> None:
        """Remove the job's checkpoint and progress."""
        self.drop_checkpoint()
        (self._folder / PROGRESS).unlink(missing_ok=True)


def move_aside(path: Path, place: Path) -> Path:
    """Move a file or folder to ``place`` with the first free number appended; return the path."""
    place.parent.mkdir(exist_ok=True)
    number = 1
    while os.path.lexists(moved := place.with_name(f"{place.name}-{number}")):
        number += 1
    path.rename(moved)
    return moved


def remove(path: Path) -> None:
    """Remove a file or folder if it exists; errors are ignored."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def replace_text(file: Path, text: str) -> None:
    """Replace a file by a text, completely or not at all."""
    fresh = file.with_name(fresh_name(file.stem))
    try:
        write_synced(fresh, text)
        fresh.replace(file)
    finally:
        remove(fresh)


def names_in(folder: Path, *, hidden: bool = False) -> list[str]:
    """Return the names in a folder: those that begin with a dot, or all others."""
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries if entry.name.startswith(".") == hidden]
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return []  # absent, or a file or link that the store did not create
        raise StoreError(f"Cannot read the store: {why(error)}.") from error
