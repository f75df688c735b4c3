"""Every file that a run leaves behind, and the index over them.

    store.json                             the version of this layout
    records/ab/<key>/record.json           what a finished job found, with its whole spec
    records/ab/<key>/tensors.safetensors   its weights, masks, ... (absent when it has none)
    running/<key>/lock                     held (flock) by the process that works on the job
    running/<key>/checkpoint.safetensors   tensors and state of a job under way, in one file
    running/<key>/progress.json            how far it is, for people
    failed/<key>.json                      spec, message and traceback of the last failure

A record is complete or absent: it is written under ``running/<key>``, synced, and moved to its
place by one rename; the first writer wins. A lock dies with its process, the checkpoint stays for
the next one that claims the job. Records are canonical JSON without times, except below the key
"timing", so that the same job gives the same bytes wherever and however often it is run.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from safetensors import SafetensorError, safe_open

from regrow.errors import StoreError

if TYPE_CHECKING:  # torch takes a second to import, and `regrow status` does not need it
    from torch import Tensor

FORMAT = 1
Status = Literal["done", "failed", "running", "missing"]


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The keys of a store by what is known of them, from one sweep; no key stands in two sets."""

    done: frozenset[str]
    failed: frozenset[str]
    running: frozenset[str]
    paused: frozenset[str]  # nobody works on it, and a checkpoint waits to be resumed


class Workspace:
    """The folder of a job under way, held by this process; made by ``Store.claim``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._checkpoint = folder / "checkpoint.safetensors"

    def save_checkpoint(self, tensors: Mapping[str, "Tensor"], meta: Mapping[str, Any]) -> None:
        """Replace the checkpoint; a crash leaves the old one or the new one, never half of one."""
        fresh = self._folder / "checkpoint.new"
        _write_tensors(fresh, tensors, meta=meta)
        fresh.replace(self._checkpoint)

    def load_checkpoint(self) -> tuple[dict[str, "Tensor"], dict[str, Any]] | None:
        """Return what was saved last, or None; a damaged file is a ``StoreError``."""
        if not self._checkpoint.exists():
            return None
        try:
            with safe_open(self._checkpoint, framework="pt") as file:
                meta = json.loads(file.metadata()["meta"])
                return {name: file.get_tensor(name).clone() for name in file.keys()}, meta  # noqa: SIM118
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"The checkpoint {self._checkpoint} is damaged ({error}). Delete it; the job then "
                f"starts over."
            ) from error

    def drop_checkpoint(self) -> None:
        """Forget the checkpoint, so that the job starts over."""
        self._checkpoint.unlink(missing_ok=True)

    def progress(self, progress: Mapping[str, Any]) -> None:
        """Say how far the job is; not synced to disk, for a crash takes it to the last one said."""
        fresh = self._folder / "progress.new"
        fresh.write_text(canonical_json(progress), encoding="ascii")
        fresh.replace(self._folder / "progress.json")


class Store:
    """Key -> record and tensors, on a folder that any number of processes may share."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._records = root / "records"
        self._running = root / "running"
        self._failed = root / "failed"

    @classmethod
    def open(cls, path: str | Path, *, create: bool = True) -> "Store":
        """Open the store at a folder, making it if it is absent and ``create``.

        A ``StoreError`` when it cannot be read or written, or is of another version, or when the
        folder holds something else.
        """
        root = Path(path)
        try:
            if create:
                _create(root)
            _check_version(root)
        except OSError as error:
            raise StoreError(
                f"Cannot {'write' if create else 'read'} the store {root}: {_reason(error)}. "
                f"Choose another folder with --store."
            ) from error
        return cls(root)

    def has(self, key: str) -> bool:
        """Tell whether a job is done."""
        return self._record(key).exists()

    def keys(self) -> tuple[str, ...]:
        """Return the keys of all jobs that are done, sorted."""
        return tuple(sorted(_names_two_deep(self._records)))

    def status(self, key: str) -> Status:
        """Tell what is known of one job."""
        if self.has(key):
            return "done"
        if _is_locked(self._running / key):
            return "running"
        return "failed" if self._failure(key).exists() else "missing"

    def snapshot(self) -> Snapshot:
        """Sweep over the store once; cheap for tens of thousands of keys."""
        done = frozenset(_names_two_deep(self._records))
        claimed = frozenset(_names(self._running)) - done
        running = frozenset(key for key in claimed if _is_locked(self._running / key))
        failed = frozenset(name.removesuffix(".json") for name in _names(self._failed))
        failed = failed - done - running
        paused = frozenset(
            key
            for key in claimed - running - failed
            if (self._running / key / "checkpoint.safetensors").exists()
        )
        return Snapshot(done=done, failed=failed, running=running, paused=paused)

    def record(self, key: str, *, spec: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Read a record; given a ``spec``, make sure that it is the one the record stands for."""
        file = self._record(key) / "record.json"
        record = _read_json(file, remedy=f"Delete the folder {file.parent} and run again")
        if spec is not None:
            wanted = json.loads(canonical_json(spec))
            if record.get("spec") != wanted:
                raise StoreError(
                    f"The record {file} stands for another job: "
                    f"{_difference(record.get('spec'), wanted, at='spec')}. Delete the folder "
                    f"{file.parent} and run again, or choose another folder with --store."
                )
        return record

    def tensors(self, key: str, *, names: tuple[str, ...] | None = None) -> dict[str, "Tensor"]:
        """Read the tensors of a record, all or those named; the rest of the file is not touched."""
        with self._open_tensors(key) as file:
            wanted = self.tensor_names(key) if names is None else names
            return {name: file.get_tensor(name).clone() for name in wanted}

    def tensor_names(self, key: str) -> tuple[str, ...]:
        """Return the names of a record's tensors, without reading them."""
        with self._open_tensors(key) as file:
            return tuple(file.keys())

    def failure(self, key: str) -> dict[str, Any] | None:
        """Return spec, message and traceback of a job's last failure, or None."""
        return _read_if_there(self._failure(key))

    def progress(self, key: str) -> dict[str, Any] | None:
        """Return what a job under way last said of itself, or None."""
        return _read_if_there(self._running / key / "progress.json")

    @contextmanager
    def claim(self, key: str) -> Iterator[Workspace | None]:
        """Hold a job for this process; None when another living process holds it.

        On leaving, a checkpoint of an unfinished job stays; everything else under way is removed.
        """
        folder = self._running / key
        lock = _lock(folder)
        if lock is None:
            yield None
            return
        try:
            yield Workspace(folder)
        finally:
            unfinished = (folder / "checkpoint.safetensors").exists() and not self.has(key)
            # Not when the folder was removed and has a new owner already.
            if not unfinished and _is_same_file(lock, folder / "lock"):
                shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)

    def commit(
        self, key: str, record: Mapping[str, Any], tensors: Mapping[str, "Tensor"] | None = None
    ) -> bool:
        """Store a finished job, complete or not at all; False when somebody was faster."""
        text = _checked_json(key, record)
        scratch = self._running / key / f"scratch-{os.getpid()}-{os.urandom(4).hex()}"
        final = self._record(key)
        try:
            # Not in its final place yet, but on the same file system: there a rename is atomic.
            scratch.mkdir(parents=True)
            final.parent.mkdir(parents=True, exist_ok=True)
            _write_synced(scratch / "record.json", text)
            if tensors:
                _write_tensors(scratch / "tensors.safetensors", tensors)
            _sync(scratch)
            scratch.rename(final)
            _sync(final.parent)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(scratch, ignore_errors=True)
            if not self.has(key):
                raise StoreError(
                    f"Cannot write the record of job {key} to {final}: {_reason(error)}."
                ) from error
            return False
        self._failure(key).unlink(missing_ok=True)
        (self._running / key / "checkpoint.safetensors").unlink(missing_ok=True)
        return True

    def fail(self, key: str, spec: Mapping[str, Any], *, message: str, traceback: str = "") -> None:
        """Store why a job failed; replaces what an earlier failure of it left."""
        failure = {"key": key, "spec": spec, "message": message, "traceback": traceback}
        file = self._failure(key)
        fresh = self._failed / f".{key}.{os.getpid()}.new"
        try:
            _write_synced(fresh, canonical_json(failure))
            fresh.replace(file)
        except OSError as error:
            raise StoreError(
                f"Cannot write the failure of job {key} to {file}: {_reason(error)}."
            ) from error

    def forgive(self, key: str) -> None:
        """Forget a job's last failure, because it is being tried again."""
        self._failure(key).unlink(missing_ok=True)

    def tidy(self) -> None:
        """Remove what processes that were killed while committing left behind."""
        for key in _names(self._running):
            if self.has(key):
                with self.claim(key):
                    pass

    def _record(self, key: str) -> Path:
        return self._records / key[:2] / key

    def _failure(self, key: str) -> Path:
        return self._failed / f"{key}.json"

    @contextmanager
    def _open_tensors(self, key: str) -> Iterator[Any]:
        folder = self._record(key)
        file = folder / "tensors.safetensors"
        if not folder.exists():
            raise StoreError(f"The store {self.root} has no record of job {key}. Run it first.")
        if not file.exists():
            yield _NoTensors()
            return
        try:
            with safe_open(file, framework="pt") as opened:
                yield opened
        except (SafetensorError, OSError) as error:
            raise StoreError(
                f"The tensors {file} are damaged ({error}). Delete the folder {folder} and run "
                f"again."
            ) from error


class _NoTensors:
    """Stand in for the tensors file of a record that has none."""

    def keys(self) -> tuple[str, ...]:
        return ()

    def get_tensor(self, name: str) -> "Tensor":
        raise KeyError(name)


def canonical_json(value: object) -> str:
    """Write JSON the one way: sorted keys, no spaces, floats by repr, ASCII, numbers finite.

    >>> canonical_json({"b": (1, 0.1), "a": None})
    '{"a":null,"b":[1,0.1]}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _checked_json(key: str, record: Mapping[str, Any]) -> str:
    try:
        return canonical_json(record)
    except ValueError as error:
        raise StoreError(
            f"The record of job {key} holds a number that is not finite, which JSON cannot: "
            f"{error}."
        ) from error


def _create(root: Path) -> None:
    root.mkdir(parents=True, exist_ok=True)
    if not (root / "store.json").exists():
        foreign = sorted(name for name in _names(root) if name != "store.json")
        if foreign:
            raise StoreError(
                f"The folder {root} is not a store: it has no store.json but {foreign[0]!r}. "
                f"Choose an empty or a new folder with --store."
            )
        fresh = root / f".store.{os.getpid()}.new"
        _write_synced(fresh, canonical_json({"format": FORMAT}))
        fresh.replace(root / "store.json")
    _check_version(root)
    for name in ("records", "running", "failed"):
        (root / name).mkdir(exist_ok=True)
        if not os.access(root / name, os.W_OK):
            raise PermissionError(13, "no permission to write", str(root / name))


def _check_version(root: Path) -> None:
    file = root / "store.json"
    if not file.exists():
        raise StoreError(f"There is no store at {root}. Run a study first, or give --store.")
    found = _read_json(file, remedy="Choose another folder with --store").get("format")
    if found != FORMAT:
        raise StoreError(
            f"The store {root} has format {found!r}, this regrow reads format {FORMAT}. Use the "
            f"regrow that wrote it, or choose another folder with --store."
        )


def _lock(folder: Path) -> int | None:
    path = folder / "lock"
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:
            continue  # its last holder removed the folder between the two lines
        except OSError as error:
            raise StoreError(f"Cannot write {path}: {_reason(error)}.") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return None
        if _is_same_file(lock, path):
            return lock
        os.close(lock)  # locked a file that its last holder removed meanwhile


def _is_locked(folder: Path) -> bool:
    try:
        lock = os.open(folder / "lock", os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def _is_same_file(lock: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(lock), path.stat())
    except FileNotFoundError:
        return False


def _write_tensors(
    path: Path, tensors: Mapping[str, "Tensor"], *, meta: Mapping[str, Any] | None = None
) -> None:
    from safetensors.torch import save_file

    # One metadata entry only: the order of several is not deterministic in the file.
    header = None if meta is None else {"meta": canonical_json(meta)}
    save_file(_separate(tensors), path, metadata=header)
    _sync(path)


def _separate(tensors: Mapping[str, "Tensor"]) -> dict[str, "Tensor"]:
    """Bring tensors to the CPU, contiguous, no two on one storage: all that the format can hold."""
    separate: dict[str, Tensor] = {}
    storages = set()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        if tensor.untyped_storage().data_ptr() in storages:
            tensor = tensor.clone()
        storages.add(tensor.untyped_storage().data_ptr())
        separate[name] = tensor
    return separate


def _write_synced(path: Path, text: str) -> None:
    with path.open("w", encoding="ascii") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _read_json(file: Path, *, remedy: str) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise StoreError(f"There is no {file}. Run the job first.") from error
    except (OSError, ValueError) as error:
        raise StoreError(f"Cannot read {file}: {error}. {remedy}.") from error
    if not isinstance(value, dict):
        raise StoreError(f"Cannot read {file}: not a JSON object. {remedy}.")
    return value


def _read_if_there(file: Path) -> dict[str, Any] | None:
    try:
        return _read_json(file, remedy=f"Delete {file}")
    except StoreError:
        if file.exists():
            raise
        return None  # absent, or removed this moment by the process that works on the job


def _difference(found: object, wanted: object, *, at: str) -> str:
    """Word the first place where two JSON values differ."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for name in sorted({*found, *wanted}):
            if found.get(name) != wanted.get(name):
                return _difference(found.get(name), wanted.get(name), at=f"{at}.{name}")
    return f"its {at!r} is {found!r}, this study asks for {wanted!r}"


def _names(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries if not entry.name.startswith(".")]
    except FileNotFoundError:
        return []


def _names_two_deep(folder: Path) -> Iterator[str]:
    for name in _names(folder):
        yield from _names(folder / name)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror} ({error.filename})" if error.filename else error.strerror
    return str(error)
