"""List the files below a folder, without hidden files and those of the operating system."""

import os
from collections.abc import Iterator
from pathlib import Path

from regrow.errors import DataError

JUNK_FOLDERS = frozenset({"__MACOSX", "@eaDir"})  # of macOS's archives and Synology's drives
JUNK_FILES = frozenset({"thumbs.db", "desktop.ini"})  # of Windows


def folders_in(root: Path) -> list[Path]:
    """Return the folders in a folder, sorted; none if there is no such folder."""
    if not root.is_dir():
        return []
    return sorted(path for path in root.iterdir() if path.is_dir() and not is_junk(path.name))


def files_below(root: Path) -> list[Path]:
    """Return all files at any depth, sorted; links to folders are followed, cycles are not."""
    return sorted(_walk(root, frozenset()))


def is_junk(name: str) -> bool:
    """Return whether a name is hidden, or belongs to the operating system, not to a data set."""
    return name.startswith(".") or name in JUNK_FOLDERS or name.lower() in JUNK_FILES


def in_words(path: Path | str) -> str:
    """Return a path or name as valid UTF-8 text, with other bytes as escapes."""
    return str(path).encode("utf-8", "backslashreplace").decode("utf-8")


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # such as a link to itself; reading it then raises an error
        return False


def _walk(folder: Path, outside: frozenset[Path]) -> Iterator[Path]:
    """Yield the files below; ``outside`` are the targets of the links followed to get here."""
    try:
        with os.scandir(folder) as entries:
            listed = [entry for entry in entries if not is_junk(entry.name)]
    except OSError as error:
        raise DataError(
            f"{folder}: the folder cannot be read ({error.strerror}). Give read permission, or "
            "move it away."
        ) from error
    for entry in listed:
        path = folder / entry.name
        if not _is_folder(entry):
            yield path
        elif not entry.is_symlink():
            yield from _walk(path, outside)
        elif (real := path.resolve()) not in {*outside, *(folder.resolve() / ".x").parents}:
            yield from _walk(path, outside | {real})
