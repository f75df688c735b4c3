"""The data folder: downloads, decoded arrays, and remembered digests of large files.

A cache is a convenience: what cannot be written there is done without. An entry that does not fit
its digest is set aside, with a notice (``altered_entries``), and rebuilt. Entries are written
beside their place and renamed, so that a reader finds all or nothing.
"""

import contextlib
import fcntl
import hashlib
import json
import mmap
import os
import tempfile
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from regrow.core.bounds import check_plain
from regrow.core.digests import read_file, sealed, unsealed
from regrow.data.spec import DataSpec
from regrow.errors import DataError

if TYPE_CHECKING:
    from typing_extensions import Buffer

CHUNK_BYTES = 1 << 20
DIGEST_BYTES = 32  # after the array in its file, where who reads arrays does not look

_NOTICES: ContextVar[list[str] | None] = ContextVar("notices", default=None)


@contextlib.contextmanager
def altered_entries() -> Iterator[list[str]]:
    """Collect a notice for each entry that is found altered inside."""
    notices: list[str] = []
    token = _NOTICES.set(notices)
    try:
        yield notices
    finally:
        _NOTICES.reset(token)


def data_root(spec: DataSpec) -> Path:
    """Return the folder of downloads and caches: option, ``REGROW_DATA``, or the user's cache."""
    folder = spec.root or os.environ.get("REGROW_DATA") or "~/.cache/regrow/data"
    return Path(folder).expanduser().absolute()


def digest(*parts: object) -> str:
    """Digest JSON values: SHA-256, 32 hexadecimal digits."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def file_digest(path: Path, *, root: Path) -> str:
    """Return the SHA-256 of a file, remembered by path, size and time of change."""
    memory = root / "digests.json"
    check_plain(path)
    stat = path.stat()
    key = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
    digests = _read_digests(memory)
    if key in digests:
        return digests[key]
    sha = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(CHUNK_BYTES):
            sha.update(block)
    # Read again: another process may have added its own meanwhile. One lost entry costs a re-hash.
    text = sealed(_read_digests(memory) | {key: sha.hexdigest()}, memory.name)
    with contextlib.suppress(OSError):
        _replace(memory, lambda temporary: temporary.write_text(text))
    return sha.hexdigest()


def decoded(
    name: str, make: Callable[[], NDArray[np.uint8]], *, root: Path, num: int
) -> NDArray[np.uint8]:
    """Return a decoded array [num, C, H, W] from the cache, else make and keep it.

    Read by memory map, so that worker processes share one copy. While one process decodes, others
    that want the same wait for it.
    """
    path = root / "decoded" / f"{name}.npy"
    with _locked(path):
        cached = _read_array(path, num=num)
        if cached is not None:
            return cached
        array = make()
        with contextlib.suppress(OSError):
            _replace(path, lambda temporary: _write_array(temporary, array, name=path.name))
        stored = _read_array(path, num=num)
    return array if stored is None else stored


def remembered(path: Path, make: Callable[[], Any]) -> Any:
    """Return a JSON value of the cache, else make and keep it; JSON mappings have text keys."""
    with _locked(path):
        try:
            return unsealed(read_file(path), path.name)["value"]
        except OSError:  # absent
            value = make()
        except ValueError:
            _set_aside(path)
            value = make()
        text = sealed({"value": value}, path.name)
        with contextlib.suppress(OSError):
            _replace(path, lambda temporary: temporary.write_text(text))
    return value


def kept_file(path: Path, write: Callable[[Path], None], *, sound: Callable[[Path], bool]) -> Path:
    """Return a file of the cache, written where it is not ``sound``.

    A cache that refuses it is a ``DataError``.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path):
            if not (path.is_file() and sound(path)):
                if path.is_file():
                    _set_aside(path)
                _replace(path, write)
    except OSError as error:
        raise DataError(
            f"Cannot write {path}, which streaming needs ({error.strerror}). Set REGROW_DATA or "
            "the option 'root' to a writable folder with room for the encoded images."
        ) from error
    return path


def _read_digests(path: Path) -> dict[str, str]:
    try:
        return unsealed(read_file(path), path.name)
    except OSError:  # absent: hash anew
        return {}
    except ValueError:
        _set_aside(path)
        return {}


def _read_array(path: Path, *, num: int) -> NDArray[np.uint8] | None:
    try:
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ) as file:
            content = memoryview(file)
            with content[:-DIGEST_BYTES] as array_bytes, content[-DIGEST_BYTES:] as stored_digest:
                fits = _array_digest(path.name, array_bytes) == stored_digest
            content.release()
        if not fits:
            raise ValueError("its digest is another")
        # Copy on write: torch wants writable memory, and the file must stay as it is.
        array = np.load(path, mmap_mode="c", allow_pickle=False)
    except OSError:  # absent
        return None
    except (ValueError, EOFError):  # altered, cut short, or not an array
        _set_aside(path)
        return None
    shaped = array.ndim == 4 and array.shape[1] in (1, 3) and array.shape[2] == array.shape[3]
    return array if array.dtype == np.uint8 and shaped and len(array) == num else None


def _set_aside(path: Path) -> None:
    """Move an altered entry away, and say so to who collects notices."""
    aside = path.with_name(f"{path.name}.damaged")
    with contextlib.suppress(OSError):
        path.replace(aside)
    notices = _NOTICES.get()
    if notices is not None:
        notices.append(
            f"The cache entry {path} does not match its digest; it was moved to {aside.name} and "
            "rebuilt."
        )


def _write_array(path: Path, array: NDArray[np.uint8], *, name: str) -> None:
    with path.open("w+b") as stream:
        np.save(stream, array, allow_pickle=False)
        stream.flush()
        with mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ) as file:
            digest = _array_digest(name, file)
        stream.write(digest)
        stream.flush()
        os.fsync(stream.fileno())


def _array_digest(name: str, content: "Buffer") -> bytes:
    sha = hashlib.sha256(f"{name}\n".encode())
    sha.update(content)
    return sha.digest()


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock beside a cache entry; without a writable cache there is nothing to guard."""
    lock = path.with_suffix(".lock")
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        stream = lock.open("w")
    except OSError:
        yield
        return
    with stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
