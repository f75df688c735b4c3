"""Atomic writes of report files, and messages for disk errors."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from regrow.core.processes import fresh_name, is_litter

FULL = (errno.ENOSPC, errno.EDQUOT)
LONGEST_PATH = 1000  # characters in a message: a longer path would hide the rest of it
# Errors whose cause is the disk or the system's settings, not the program.
ENVIRONMENT = (
    *FULL,
    *(errno.EIO, errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG, errno.ESTALE, errno.ENODEV),
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOTCONN, errno.ETIMEDOUT, errno.EBUSY),
    *(errno.ENAMETOOLONG, errno.ELOOP),
)


def why(error: Exception, place: Path | None = None) -> str:
    """Describe an error with its file and, if the disk is full, the space that is left.

    >>> why(PermissionError(errno.EACCES, "Permission denied", "store/x.json"))
    'Permission denied (store/x.json)'
    """
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    file = error.filename2 or error.filename
    where = Path(os.fsdecode(file)) if isinstance(file, str | bytes) else place
    facts = [] if where is None or len(str(where)) > LONGEST_PATH else [str(where)]
    if error.errno in FULL:
        facts += _room(where or Path())
    in_the_way = isinstance(error, FileExistsError | NotADirectoryError)
    told = "a file is in the place of a folder" if in_the_way else error.strerror
    return f"{told} ({', '.join(facts)})" if facts else told


def is_file(path: Path) -> bool:
    """Return whether a path is a file; False if the system refuses the path, e.g. as too long.

    >>> is_file(Path("x" * 5000))
    False
    """
    try:
        return path.is_file()
    except OSError:
        return False


def is_folder(path: Path) -> bool:
    """Return whether a path is a folder; False if the system refuses the path, e.g. as too long.

    >>> is_folder(Path("x" * 5000))
    False
    """
    try:
        return path.is_dir()
    except OSError:
        return False


def _room(place: Path) -> list[str]:
    """Describe the free space on the disk of a path, which need not exist."""
    for folder in (place, *place.absolute().parents):
        with suppress(OSError):
            room = os.statvfs(folder)
            free = room.f_bavail * room.f_frsize
            words = f"{free / 1e9:.1f} GB free" if free >= 1e9 else f"{free / 1e6:.0f} MB free"
            crowded = room.f_files and not room.f_favail
            return [words, "no room for more files"] if crowded else [words]
    return []


@contextmanager
def filling(folder: Path) -> Iterator[Path]:
    """Yield a scratch folder in ``folder`` (created if absent); move its files there on success.

    On an error no file is moved. Scratch folders of killed processes are removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(".*.new"):
        if is_litter(left.name):
            shutil.rmtree(left, ignore_errors=True)
    scratch = folder / fresh_name("report")
    scratch.mkdir()
    try:
        yield scratch
        for file in sorted(scratch.iterdir()):
            file.replace(folder / file.name)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write_whole(path: Path, text: str) -> None:
    """Write a text to a file atomically, creating its folder if absent."""
    with filling(path.parent) as fresh:
        (fresh / path.name).write_text(text, encoding="utf-8", newline="\n")
