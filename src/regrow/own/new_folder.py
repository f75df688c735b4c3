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
    """Give a scratch folder beside a new one, which takes its name when all is written."""
    path = Path(folder)
    check_new(path)
    with scratch_beside(path) as scratch:
        yield scratch
        _open_to_others(scratch)
        scratch.rename(path)


@contextmanager
def added_to(folder: str | Path) -> Iterator[Path]:
    """Give a scratch folder beside one that may exist, and move its files there at the end."""
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
    """Give a scratch folder on the file system of a path; what is left in it goes at the end."""
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
    """Refuse a folder that is there already, unless it is empty, and one that cannot be made."""
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
    """Give a temporary folder and its files, which are their owner's alone, the usual rights."""
    mask = _umask()
    for file in scratch.iterdir():
        file.chmod(0o666 & ~mask)
    scratch.chmod(0o777 & ~mask)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
