"""Files and folders that are written completely or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from regrow.core.disk import why
from regrow.errors import ConfigError, StoreError


@contextmanager
def new_folder(folder: str | Path) -> Iterator[Path]:
    """Yield a scratch folder beside a new one; it gets that name when everything is written."""
    path = Path(folder)
    check_new(path)
    with scratch_beside(path) as scratch:
        yield scratch
        _open_to_others(scratch)
        scratch.rename(path)


@contextmanager
def added_to(folder: str | Path) -> Iterator[Path]:
    """Yield a scratch folder beside one that may exist, and move its files there at the end."""
    path = Path(folder)
    if not (path.is_dir() and any(path.iterdir())):
        with new_folder(path) as scratch:
            yield scratch
        return
    with scratch_beside(path) as scratch:
        yield scratch
        _open_to_others(scratch)
        for file in sorted(scratch.iterdir()):
            file.replace(path / file.name)


@contextmanager
def scratch_beside(path: Path) -> Iterator[Path]:
    """Yield a scratch folder on the file system of a path; it is removed at the end."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        yield scratch
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def check_new(path: Path) -> None:
    """Refuse a path that exists, unless it is an empty folder, and one that cannot be written."""
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise ConfigError(
            f"'{path}' exists already and is not overwritten. Name another folder, or move it."
        )
    existing = next(parent for parent in path.absolute().parents if parent.exists())
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=existing):
            pass
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> StoreError:
    return StoreError(
        f"Cannot write '{path}': {why(error, path)}. Name a folder that you may write to."
    )


def _open_to_others(scratch: Path) -> None:
    """Give a temporary folder and its files, private to their owner, the usual permissions."""
    mask = _umask()
    for file in scratch.iterdir():
        file.chmod(0o666 & ~mask)
    scratch.chmod(0o777 & ~mask)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
