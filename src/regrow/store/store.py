"""The store: every file that a run writes, found by job key.

    store.json                             the version of this layout
    records/ab/<key>/record.json           the result of a finished job, with its full spec
    records/ab/<key>/tensors.safetensors   its weights, masks, ... (absent if it has none)
    records/ab/<key>/tensors.removed       marks tensors that were removed to save space
    running/<key>/lock/owner               the process that is running the job (``core.leases``)
    running/<key>/checkpoint.safetensors   tensors and state of an unfinished job, in one file
    running/<key>/progress.json            its progress, for display
    failed/<key>.json                      spec, message and traceback of the last failure
    logs/<key>.log                         the job's log, for people
    damaged/<name>-<number>                damaged files, moved aside

A record is complete or absent: it is written under ``running/<key>``, synced, and moved to its
place by one rename; the first writer wins. A lock expires with its process, or, if that is on
another machine, after a minute without a sign of life; the checkpoint stays for the next process
that claims the job. Records are canonical JSON. Times, machine and versions are only in the field
"timing", so that otherwise a job gives the same bytes wherever and however often it is run.

Each file contains a digest of its content and key (``core.digests``), which is checked on reading;
a mismatch is ``Damaged``. A record's digest covers its times, so it is in "timing" as well; the
digest of its tensors is the field "tensors". Tensors can have named parts: the main part, such as
weights, and others.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from safetensors import SafetensorError

from regrow.core.digests import (
    MOST_BYTES,
    canonical_json,
    digest_of,
    load_tensors,
    parsed,
    read_file,
    save_tensors,
    sealed,
    sync,
    unsealed,
    write_synced,
)
from regrow.core.disk import why
from regrow.core.leases import SilenceWatch, is_held, take
from regrow.core.processes import fresh_name, is_litter
from regrow.core.texts import visible
from regrow.core.validation import path_of
from regrow.errors import Damaged, Removed, StoreError, short
from regrow.store.workspace import (
    CHECKPOINT,
    Workspace,
    move_aside,
    names_in,
    remove,
    replace_text,
)

FORMAT = 1  # of the layout of files

if TYPE_CHECKING:  # torch takes a second to import, and `regrow status` does not need it
    from torch import Tensor

TIMING, TENSORS = "timing", "tensors"  # fields of a record with its digest and its tensors' digest
RECORD_FILE, TENSORS_FILE = "record.json", "tensors.safetensors"
REMOVED_FILE = "tensors.removed"  # replaces tensors that were removed to save space
MAIN = ""
REPAIRED = "repaired"  # part of a pruning: weights of the pruned network that a repair changed
MASKS = "masks"  # part of a training that changes masks: the final masks
_NAMED = re.compile(rf"({REPAIRED}|{MASKS}|after-epoch-[0-9]+)/")
Status = Literal["done", "failed", "running", "missing"]


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The keys of a store by state, from one scan; no key is in two sets.

    ``damaged`` maps keys to what is wrong with their files, if read; such jobs count as missing.
    """

    done: frozenset[str]
    failed: frozenset[str]
    running: frozenset[str]
    paused: frozenset[str]  # not running, with a checkpoint to resume from
    damaged: Mapping[str, str] = field(default_factory=dict)


class Store:
    """A folder of results by key (record and tensors), shared by any number of processes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._records = root / "records"
        self._running = root / "running"
        self._failed = root / "failed"
        self._aside = root / "damaged"
        self._logs = root / "logs"
        self._watch = SilenceWatch()

    @classmethod
    def open(cls, path: str | Path, *, create: bool = True) -> "Store":
        """Open the store in a folder; with ``create``, create it if it does not exist.

        Raises ``StoreError`` if it cannot be read or written, has another version, or if the folder
        contains something else.
        """
        root = path_of(path, "The store")
        if any("\ud800" <= letter <= "\udfff" for letter in str(root)):
            raise StoreError(f"{root} is not UTF-8, as tensors need. Choose another --store.")
        try:
            if create:
                _create(root)
            _check_version(root)
        except OSError as error:
            raise StoreError(
                f"Cannot {'write' if create else 'read'} the store {root}: {why(error, root)}. "
                f"Choose another folder with --store."
            ) from error
        return cls(root)

    def has(self, key: str) -> bool:
        """Return whether a job is done, without reading its record."""
        return (self._record(key) / RECORD_FILE).exists()

    def record_file(self, key: str) -> Path:
        """Return the path of a job's record, whether or not it exists."""
        return self._record(key) / RECORD_FILE

    def keys(self) -> tuple[str, ...]:
        """Return the keys of all jobs that are done, sorted."""
        return tuple(sorted(_keys(self._records)))

    def status(self, key: str) -> Status:
        """Return a job's state from its files' existence and its lock, without reading results."""
        if self.has(key):
            return "done"
        if is_held(self._running / key, self._watch):
            return "running"
        return "failed" if self._failure(key).exists() else "missing"

    def snapshot(self, specs: Mapping[str, Mapping[str, Any]] | None = None) -> Snapshot:
        """Scan the store once for the state of every job; cheap for tens of thousands of keys.

        With ``specs`` (by key), records and failures of these jobs are also read and checked, but
        not their tensors.
        """
        done = frozenset(_keys(self._records))
        claimed = frozenset(names_in(self._running)) - done
        running = frozenset(k for k in claimed if is_held(self._running / k, self._watch))
        failed = frozenset(name.removesuffix(".json") for name in names_in(self._failed))
        failed = failed - done - running
        paused = frozenset(
            key for key in claimed - running - failed if (self._running / key / CHECKPOINT).exists()
        )
        damaged = {}
        for key, spec in (specs or {}).items():
            try:
                if key in done:
                    self.record(key, spec=spec)
                elif key in failed:
                    self.failure(key)
            except Damaged as error:
                damaged[key] = str(error)
        return Snapshot(
            done=done - damaged.keys(),
            failed=failed - damaged.keys(),
            running=running,
            paused=paused,
            damaged=damaged,
        )

    def record(self, key: str, *, spec: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Read a job's record.

        Raises ``Damaged`` if it is not what was stored under this key (and, if given, for this
        ``spec``), and ``StoreError`` if there is none.
        """
        record = self._checked_record(key, spec)
        record.pop(TENSORS, None)
        return record

    def tensors(self, key: str, part: str = MAIN) -> dict[str, "Tensor"]:
        """Read one part of a record's tensors (see ``part_of``); empty if it has none.

        Raises ``Damaged`` if they are not those stored with the record, ``Removed`` if removed.
        """
        return part_of(self._all_tensors(key), part)

    def _all_tensors(self, key: str) -> dict[str, "Tensor"]:
        digest = self._checked_record(key).get(TENSORS)
        file = self._record(key) / TENSORS_FILE
        exists = os.path.lexists(file)
        if not exists and digest is not None and self.is_bare(key):
            raise Removed(
                f"The tensors of job {key} were removed from the store {self.root}. `regrow run` "
                "computes them again for a study whose unfinished jobs need them."
            )
        try:
            if exists != (digest is not None):
                raise ValueError("its record does not mention it" if exists else "it is missing")
            if not exists:
                return {}
            tensors, _ = load_tensors(file)
            if digest_of(tensors) != digest:
                raise ValueError("its tensors are not those that were stored with its record")
        except ValueError as error:
            raise _damaged(file, error) from error
        except OSError as error:
            raise _unreadable(file, error) from error
        return tensors

    def failure(self, key: str) -> dict[str, Any] | None:
        """Return the spec, message and traceback of a job's last failure, or None."""
        file = self._failure(key)
        try:
            return unsealed(read_file(file), key)
        except FileNotFoundError:
            if not file.is_symlink():
                return None
            raise _damaged(file, "it is a broken link") from None
        except ValueError as error:
            raise _damaged(file, error) from error
        except OSError as error:
            raise _unreadable(file, error) from error

    def progress(self, key: str) -> dict[str, Any]:
        """Return the last reported progress of a running job, for display; empty if unreadable."""
        try:
            progress = parsed(read_file(self._running / key / "progress.json"))
        except (OSError, ValueError):  # absent, or just removed by the process that runs the job
            return {}
        share, note = progress.get("fraction"), progress.get("note")
        good = isinstance(share, float | int) and 0 <= share <= 1 and isinstance(note, str)
        return progress if good else {}

    def problem(self, key: str, spec: Mapping[str, Any]) -> str | None:
        """Check everything stored of a job, tensors too; return what is damaged, or None."""
        try:
            if os.path.lexists(self._record(key)):
                self.record(key, spec=spec)
                with suppress(Removed):
                    self.tensors(key)
            else:
                self.failure(key)
        except Damaged as error:
            return str(error)
        return None

    def is_bare(self, key: str) -> bool:
        """Return whether the tensors of a finished job were removed to save space."""
        folder = self._record(key)
        return (folder / REMOVED_FILE).exists() and not (folder / TENSORS_FILE).exists()

    def strip(self, key: str) -> None:
        """Remove the tensors of a finished job; its record stays, with their digest."""
        replace_text(self._record(key) / REMOVED_FILE, "")
        (self._record(key) / TENSORS_FILE).unlink(missing_ok=True)

    def drop(self, key: str) -> None:
        """Remove the record of a finished job, so that it is run again."""
        aside = self._running / key / fresh_name("dropped")
        with self.claim(key) as workspace:
            if workspace is not None and self.has(key):
                self._record(key).rename(aside)
                shutil.rmtree(aside, ignore_errors=True)

    def adopt(self, key: str, folder: Path) -> bool:
        """Move the complete record in a folder into the store; return False if there is one."""
        final = self._record(key)
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            folder.rename(final)
            sync(final.parent)
        except OSError as error:
            if self.has(key):
                return False
            raise StoreError(
                f"Cannot write the record of job {key} to {final}: {why(error)}."
            ) from error
        return True

    def set_aside(self, key: str, spec: Mapping[str, Any]) -> Path | None:
        """Move a job's damaged record or failure to ``damaged/``, so that the job can run again.

        Returns the new place, or None if it is sound by now or another process is running the job.
        """
        with self.claim(key) as workspace:
            if workspace is None or self.problem(key, spec) is None:
                return None
            record = self._record(key)
            of_record = os.path.lexists(record)
            name = key if of_record else f"failed-{key}"
            try:
                return move_aside(record if of_record else self._failure(key), self._aside / name)
            except OSError as error:
                raise StoreError(
                    f"Cannot move damaged files of job {key} to {self._aside}: {why(error)}."
                ) from error

    @contextmanager
    def claim(self, key: str) -> Iterator[Workspace | None]:
        """Claim a job for this process; yield None if another live process holds it.

        On exit, the checkpoint of an unfinished job stays; its other temporary files are removed.
        """
        folder = self._running / key
        lease = take(folder, self._watch)
        if lease is None:
            yield None
            return
        workspace = Workspace(folder, lease, aside=self._aside)
        try:
            # Listing a folder refreshes it on NFS, so records written by other hosts are seen.
            names_in(self._records / key[:2])
            workspace.sweep()
            yield workspace
        finally:
            if not lease.is_lost() and (self.has(key) or not (folder / CHECKPOINT).exists()):
                workspace.empty()
            lease.release()

    def commit(
        self,
        key: str,
        record: Mapping[str, Any],
        tensors: Mapping[str, "Tensor"] | None = None,
        *,
        parts: "Mapping[str, Mapping[str, Tensor]] | None" = None,
    ) -> bool:
        """Store a finished job, completely or not at all; return False if a record exists.

        ``tensors`` are the main part; ``parts`` are the other parts, by name.
        """
        separate = {**(tensors or {}), **joined(parts or {})}
        known = {TENSORS: digest_of(separate)} if separate else {}
        text = _sealed_record(key, {**record, **known})
        scratch = self._running / key / fresh_name("record")
        final = self._record(key)
        try:
            # Written on the same file system as its final place, because there a rename is atomic.
            scratch.mkdir(parents=True)
            final.parent.mkdir(parents=True, exist_ok=True)
            write_synced(scratch / RECORD_FILE, text)
            if separate:
                save_tensors(scratch / TENSORS_FILE, separate)
            sync(scratch)
            scratch.rename(final)
            sync(final.parent)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(scratch, ignore_errors=True)
            if not self.has(key):
                raise StoreError(
                    f"Cannot write the record of job {key} to {final}: {why(error, final)}."
                ) from error
            return False
        with suppress(OSError):  # the record is stored; ``tidy`` removes these files otherwise
            self._failure(key).unlink(missing_ok=True)
            (self._running / key / CHECKPOINT).unlink(missing_ok=True)
        return True

    def fail(
        self,
        key: str,
        spec: Mapping[str, Any],
        *,
        message: str,
        traceback: str = "",
        may_pass: bool = False,
    ) -> None:
        """Store why a job failed, replacing an earlier failure; ``may_pass``: others may retry."""
        failure: dict[str, Any] = {"key": key, "spec": spec, "message": message}
        failure |= {"traceback": traceback} | ({"may_pass": True} if may_pass else {})
        file = self._failure(key)
        try:
            replace_text(file, sealed(failure, key))
        except OSError as error:
            raise StoreError(
                f"Cannot write the failure of job {key} to {file}: {why(error, file)}."
            ) from error

    def log(self, key: str, text: str) -> None:
        """Append a timestamped text to a job's log; write errors are ignored."""
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        with suppress(OSError):
            self._logs.mkdir(exist_ok=True)
            with self.log_file(key).open("a", encoding="utf-8", errors="replace") as file:
                file.write(f"{now} {visible(text)}\n")

    def log_file(self, key: str) -> Path:
        """Return the path of a job's log, whether or not it exists."""
        return self._logs / f"{_plain(key)}.log"

    def forgive(self, key: str) -> None:
        """Remove a job's last failure, because the job is being tried again."""
        self._failure(key).unlink(missing_ok=True)

    def decided(self, name: str) -> Any:
        """Return the decision stored under a name for the whole store, or None."""
        file = self.root / f"{name}.json"
        try:
            return unsealed(read_file(file), name) if file.exists() else None
        except (OSError, ValueError) as error:
            raise StoreError(
                f"Cannot read {file}: {error}. Remove it, and it will be decided again."
            ) from error

    def decide(self, name: str, value: Mapping[str, Any]) -> Any:
        """Store a decision unless there is one under its name; return the stored one."""
        file = self.root / f"{name}.json"
        fresh = self.root / fresh_name(name)
        try:
            write_synced(fresh, sealed(dict(value), name))
            with suppress(FileExistsError):  # if several processes decide at once, the first wins
                os.link(fresh, file)
        except OSError as error:
            raise StoreError(f"Cannot write {file}: {why(error, file)}.") from error
        finally:
            remove(fresh)
        return self.decided(name)

    def tidy(self) -> None:
        """Remove files left by processes of this host that were killed while writing."""
        for folder in (self.root, self._failed):
            for name in names_in(folder, hidden=True):
                if is_litter(name):
                    remove(folder / name)
        for name in names_in(self._failed):
            key = name.removesuffix(".json")
            if key.isalnum() and self.has(key):
                with suppress(OSError):  # a folder, which the store did not create
                    (self._failed / name).unlink(missing_ok=True)
        for key in filter(str.isalnum, names_in(self._running)):
            folder = self._running / key
            ours = folder.is_dir() and not folder.is_symlink()
            if ours and (self.has(key) or not (folder / CHECKPOINT).exists()):
                with self.claim(key):
                    pass

    def _checked_record(self, key: str, spec: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Read and check a record, including the digest of its tensors."""
        file = self._record(key) / RECORD_FILE
        try:
            record = unsealed(read_file(file), key, under=TIMING)
            if spec is not None:
                _compare(record.get("spec"), spec)
        except FileNotFoundError as error:
            if os.path.lexists(file.parent):
                raise _damaged(file, "it is missing") from error
            raise StoreError(f"The store {self.root} has no record of job {key}.") from error
        except ValueError as error:
            raise _damaged(file, error) from error
        except OSError as error:
            raise _unreadable(file, error) from error
        return record

    def _record(self, key: str) -> Path:
        return self._records / key[:2] / _plain(key)

    def _failure(self, key: str) -> Path:
        return self._failed / f"{_plain(key)}.json"


def after_epoch(epoch: int) -> str:
    """Return the name of the part with a training's weights after a number of epochs.

    >>> after_epoch(3)
    'after-epoch-3'
    """
    return f"after-epoch-{epoch}"


def joined(parts: "Mapping[str, Mapping[str, Tensor]]") -> "dict[str, Tensor]":
    """Return the tensors of named parts under the names they have in a file: ``part/name``."""
    return {
        f"{part}/{name}": value
        for part, tensors in parts.items()
        for name, value in tensors.items()
    }


def part_of(tensors: "Mapping[str, Tensor]", part: str = MAIN) -> "dict[str, Tensor]":
    """Return one part of a file's tensors, without the part's prefix; empty if there is none."""
    if part == MAIN:
        return {name: value for name, value in tensors.items() if not _NAMED.match(name)}
    prefix = f"{part}/"
    return {n.removeprefix(prefix): value for n, value in tensors.items() if n.startswith(prefix)}


def _plain(key: str) -> str:
    """Return the key; raise ``StoreError`` if it could lead to a path outside the store."""
    if not key.isalnum():
        raise StoreError(f"The key of a job must be letters and digits. Got {key[:100]!r}.")
    return key


def _damaged(file: Path, why: object) -> Damaged:
    return Damaged(
        f"{file} is damaged: {why}. It counts as missing; `regrow run` moves it aside and runs "
        f"its job again."
    )


def _unreadable(file: Path, error: OSError) -> StoreError:
    return StoreError(
        f"Cannot read {file}: {why(error)}. Make it readable, or move it out of the store."
    )


def _sealed_record(key: str, record: Mapping[str, Any]) -> str:
    try:
        text = sealed(record, key, under=TIMING)
    except ValueError as error:
        raise StoreError(
            f"The record of job {key} has a number that is not finite, which JSON does not allow: "
            f"{error}."
        ) from error
    if len(text) > MOST_BYTES:
        raise StoreError(f"The record of job {key} is longer than {MOST_BYTES:,} bytes.")
    return text


def _compare(stored: object, spec: Mapping[str, Any]) -> None:
    if stored == spec:
        return
    wanted = json.loads(canonical_json(spec))
    if stored != wanted:
        raise ValueError(f"it belongs to another job: {_difference(stored, wanted, at='spec')}")


def _create(root: Path) -> None:
    """Create a store in a folder, unless it is one; refuse a folder of something else."""
    root.mkdir(parents=True, exist_ok=True)
    if not (root / "store.json").exists():
        foreign = sorted(names_in(root))
        if foreign:
            raise StoreError(
                f"The folder {root} is not a store: it has no store.json but {foreign[0]!r}. "
                f"Choose an empty or a new folder with --store{_or_restore(root)}."
            )
        replace_text(root / "store.json", canonical_json({"format": FORMAT}))
    _check_version(root)
    for name in ("records", "running", "failed"):
        (root / name).mkdir(exist_ok=True)
        if not os.access(root / name, os.W_OK):
            raise PermissionError(13, "no permission to write", str(root / name))


def _check_version(root: Path) -> None:
    """Raise a ``StoreError`` if a folder is not a store of this format."""
    file = root / "store.json"
    if not file.exists():
        remedy = f"Run a study first, or give --store{_or_restore(root)}"
        raise StoreError(f"There is no store at {root}. {remedy}.")
    try:
        version = parsed(read_file(file)).get("format")
    except ValueError as error:
        raise StoreError(
            f"{file} is damaged: {error}. Choose another folder with --store{_or_restore(root)}."
        ) from error
    if version != FORMAT:
        raise StoreError(
            f"The store {root} has format {version!r}, this regrow reads format {FORMAT}. Use the "
            f"version of regrow that wrote it, or choose another folder with --store."
        )


def _or_restore(root: Path) -> str:
    """Return how to go on with the records of a store whose ``store.json`` is lost, if any."""
    content = f'{{"format": {FORMAT}}}'
    lost = f", or write {content} into its store.json: its records are checked when they are read"
    return lost if (root / "records").is_dir() else ""


def _difference(stored: object, wanted: object, *, at: str) -> str:
    """Describe the first difference between two JSON values."""
    if isinstance(stored, dict) and isinstance(wanted, dict):
        for name in sorted({*stored, *wanted}):
            if stored.get(name) != wanted.get(name):
                return _difference(stored.get(name), wanted.get(name), at=f"{at}.{name}")
    return f"its {at!r} is {short(stored)}, this study asks for {short(wanted)}"


def _keys(records: Path) -> Iterator[str]:
    for start in names_in(records):
        yield from (name for name in names_in(records / start) if name[:2] == start)
