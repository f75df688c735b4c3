"""The data folder: downloads, decoded arrays, and cached digests of large files.

If the cache cannot be written, regrow works without it. An entry that does not match its digest is
moved aside, with a notice (``altered_entries``), and rebuilt. Entries are written to a temporary
file and renamed, so that readers never see half of one.
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
DIGEST_BYTES = 32  # appended to the array's file, where ``np.load`` ignores it

_NOTICES: ContextVar[list[str] | None] = ContextVar("notices", default=None)


@contextlib.contextmanager
def altered_entries() -> Iterator[list[str]]:
    """Collect a notice for each altered entry that is found within the ``with`` block."""
    notices: list[str] = []
    token = _NOTICES.set(notices)
    try:
        yield notices
    finally:
        _NOTICES.reset(token)


def data_root(spec: DataSpec) -> Path:
    """Return the data folder: the option ``root``, else ``REGROW_DATA``, else the user's cache."""
    folder = spec.root or os.environ.get("REGROW_DATA") or "~/.cache/regrow/data"
    return Path(folder).expanduser().absolute()


def digest(*parts: object) -> str:
    """Return a digest of JSON values: the first 32 hexadecimal digits of SHA-256."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def file_digest(path: Path, *, root: Path) -> str:
    """Return the SHA-256 of a file, cached by path, size and modification time."""
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
    # Read again, as another process may have added entries. A lost one only has to be hashed again.
    text = sealed(_read_digests(memory) | {key: sha.hexdigest()}, memory.name)
    with contextlib.suppress(OSError):
        _replace(memory, lambda temporary: temporary.write_text(text))
    return sha.hexdigest()


def decoded(
    name: str, make: Callable[[], NDArray[np.uint8]], *, root: Path, num: int
) -> NDArray[np.uint8]:
    """Return a decoded array [num, C, H, W] from the cache; if absent, make and store it.

    The array is memory-mapped, so that worker processes share one copy. While one process decodes,
    others that need the same array wait for it.
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
    """Return a JSON value from the cache, or make and store it; mappings must have text keys."""
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
    """Return a file of the cache, written first if it is absent or not ``sound``.

    A cache that cannot be written raises a ``DataError``.
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
    except OSError:  # absent
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
        # Copy on write: torch needs writable memory, and the file must not change.
        array = np.load(path, mmap_mode="c", allow_pickle=False)
    except OSError:  # absent
        return None
    except (ValueError, EOFError):  # altered, cut short, or not an array
        _set_aside(path)
        return None
    shaped = array.ndim == 4 and array.shape[1] in (1, 3) and array.shape[2] == array.shape[3]
    return array if array.dtype == np.uint8 and shaped and len(array) == num else None


def _set_aside(path: Path) -> None:
    """Move an altered entry aside, and add a notice if notices are collected."""
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
    """Hold a lock file beside a cache entry; does nothing if the cache is not writable."""
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
