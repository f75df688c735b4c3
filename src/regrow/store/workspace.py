"""The folder of a job under way: its owner, and the checkpoint from which it continues."""

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
)
from regrow.core.leases import Lease
from regrow.core.processes import fresh_name
from regrow.errors import ClaimLost, Damaged

if TYPE_CHECKING:
    from torch import Tensor

CHECKPOINT, PROGRESS = "checkpoint.safetensors", "progress.json"
TENSORS = "tensors"  # where a checkpoint's text has the digest of its tensors
# What this version, its libraries and earlier versions write here before a rename.
_UNFINISHED = re.compile(r"\..+\.new|\.lock-.+|\.tmp.+|scratch-.+")


class Workspace:
    """The folder of a job under way, held by this process; made by ``Store.claim``.

    What was damaged is moved to the folder ``aside``. Files are written under names of this process
    alone, so that one that was taken for dead, and wakes, writes into no other's.
    """

    def __init__(self, folder: Path, lease: Lease, *, aside: Path) -> None:
        self._folder = folder
        self._lease = lease
        self._aside = aside
        self._checkpoint = folder / CHECKPOINT

    def save_checkpoint(self, tensors: Mapping[str, "Tensor"], meta: Mapping[str, Any]) -> None:
        """Replace the checkpoint; a crash leaves the old one or the new one, never half of one.

        ``ClaimLost`` when another process has taken the job over.
        """
        fresh = self._folder / fresh_name(CHECKPOINT)
        text = sealed({"meta": meta, TENSORS: digest_of(tensors)}, self._folder.name)
        try:
            save_tensors(fresh, tensors, meta=text)
            self.check()
            fresh.replace(self._checkpoint)
        except (OSError, SafetensorError):
            self.check()  # the reason, if there is nothing left to write to
            raise
        finally:
            remove(fresh)

    def is_lost(self) -> bool:
        """Tell whether another process has taken the job over."""
        return self._lease.is_lost()

    def check(self) -> None:
        """Raise ``ClaimLost`` when another process has taken the job over."""
        if self.is_lost():
            raise ClaimLost(
                f"Another process took over the job {self._folder.name}, because this one was "
                "silent for too long."
            )

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
        fresh = self._folder / fresh_name(PROGRESS)
        try:
            fresh.write_text(canonical_json(progress), encoding="ascii")
            fresh.replace(self._folder / PROGRESS)
        except OSError:  # a full disk ends no job here: what must be kept is said elsewhere
            remove(fresh)

    def sweep(self) -> None:
        """Remove what earlier holders left of what they were writing, and nothing else.

        Whoever shares the store may have put anything here, or a link to anywhere in its place.
        """
        for entry in self._folder.iterdir():
            if _UNFINISHED.fullmatch(entry.name) and not self.is_lost():
                remove(entry)

    def empty(self) -> None:
        """Remove the checkpoint and what is said of the job: it is over."""
        self.drop_checkpoint()
        (self._folder / PROGRESS).unlink(missing_ok=True)


def move_aside(path: Path, place: Path) -> Path:
    """Move a file or folder out of the way, to ``place`` with the first number that is free."""
    place.parent.mkdir(exist_ok=True)
    number = 1
    while os.path.lexists(moved := place.with_name(f"{place.name}-{number}")):
        number += 1
    path.rename(moved)
    return moved


def remove(path: Path) -> None:
    """Remove a file or folder, as far as it is still there and may be removed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()
