"""Limits on the memory that reading a file may take, checked before it is allocated."""

import errno
import math
import os
import resource
import stat
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from regrow.errors import short

if TYPE_CHECKING:
    from numpy.typing import NDArray

NO_FILE = "it is a folder, a pipe or a device"
LONGEST_HEAD = 10_000  # characters, as numpy allows


def free_memory() -> int:
    """Return how many bytes this process can still allocate, by the machine's and its own limit."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        facts = dict(line.split(":", 1) for line in lines)
        free = 1024 * int(facts["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):  # not Linux
        pass
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return free
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        taken = pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        taken = 0
    return max(0, min(free, limit - taken))


def check_room(wanted: float, what: str) -> None:
    """Raise ``ValueError`` if ``wanted`` bytes are more than the free memory."""
    free = free_memory()
    if wanted > free:
        raise ValueError(
            f"{what} would take {wanted / 1e9:.3g} GB of memory, and {free / 1e9:.1f} GB are free"
        )


def check_plain(path: Path) -> None:
    """Raise ``OSError`` unless it is a regular file: opening a pipe, for example, may block."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, NO_FILE, str(path))


def read_whole(path: Path, *, times: float = 1.0) -> bytes:
    """Read an untrusted file whose processing will take ``times`` its size in memory.

    Raises ``OSError`` also if it is a pipe (which may block forever), a device (which may never
    end), or too large for the free memory.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        state = os.fstat(handle)
        if stat.S_ISDIR(state.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(state.st_mode):
            raise OSError(errno.EINVAL, NO_FILE, str(path))
        try:
            check_room(times * state.st_size, "its content")
        except ValueError as error:
            raise OSError(errno.EFBIG, str(error), str(path)) from error
        with open(handle, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(handle)


def check_archive(path: Path) -> None:
    """Raise ``ValueError`` if a zip archive expands to more than the free memory."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as file:
            unfolded = sum(entry.file_size for entry in file.infolist())
    except Exception as error:  # zipfile raises many types on damaged bytes
        raise ValueError(short(error)) from error
    check_room(unfolded, "its content")


def read_npz(path: Path) -> "dict[str, NDArray[Any]]":
    """Read the arrays of an ``.npz`` file by name; raise ``ValueError`` if it is invalid.

    Each header is compared with the size of its data before these are read; object arrays are
    refused.
    """
    import numpy as np

    check_plain(path)
    try:
        with zipfile.ZipFile(path) as file:
            check_room(sum(entry.file_size for entry in file.infolist()), "its content")
            for entry in file.infolist():
                with file.open(entry) as opened:
                    _check_head(opened, entry)  # type: ignore[arg-type]
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except OSError:
        raise
    except Exception as error:  # zipfile, zlib and numpy raise many types on damaged bytes
        raise ValueError(short(error) or type(error).__name__) from error


def _check_head(opened: BinaryIO, entry: zipfile.ZipInfo) -> None:
    """Raise ``ValueError`` if an array's header does not match the size of its data."""
    from numpy.lib import format as npy

    version = npy.read_magic(opened)
    reader = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
    if reader is None:
        raise ValueError(f"{entry.filename} has the unknown version {version} of numpy's format")
    shape, _, kind = reader(opened, max_header_size=LONGEST_HEAD)
    if kind.hasobject:
        raise ValueError(f"{entry.filename} holds objects, which could run code")
    wanted = math.prod(shape) * kind.itemsize
    if any(side < 0 for side in shape) or wanted != entry.file_size - opened.tell():
        raise ValueError(
            f"{entry.filename} declares {short(shape)} values of {kind}, but its size differs"
        )
