"""Find and remove files of a store that none of the given studies needs.

Records are small and are kept. Removed are tensors, checkpoints and the temporary files of dead
processes.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from regrow.core.processes import fresh_name, is_litter, is_temporary
from regrow.errors import StoreError
from regrow.store.store import TENSORS_FILE, Store
from regrow.store.workspace import CHECKPOINT, remove

# Longer than writing any file takes, by the file system's own clock. Whether a process of another
# machine is alive cannot be checked.
OLD_SECONDS = 86_400.0


@dataclass(frozen=True, kw_only=True)
class Garbage:
    """The removable files: tensors and checkpoints by key, leftover temporary files by path."""

    tensors: tuple[str, ...]
    checkpoints: tuple[str, ...]
    litter: tuple[Path, ...]
    num_bytes: int


def find_garbage(store: Store, needed: Collection[str] | None) -> Garbage:
    """Find tensors and checkpoints of jobs that are not ``needed``, and leftover temporary files.

    With ``needed=None``, only leftover temporary files.
    """
    snapshot = store.snapshot()
    done = snapshot.done if needed is not None else frozenset()
    paused = snapshot.paused | snapshot.failed if needed is not None else frozenset()
    tensors = {key: _tensors(store, key) for key in sorted(done - frozenset(needed or ()))}
    tensors = {key: file for key, file in tensors.items() if file.is_file()}
    checkpoints = {key: _checkpoint(store, key) for key in sorted(paused - frozenset(needed or ()))}
    checkpoints = {key: file for key, file in checkpoints.items() if file.is_file()}
    litter = tuple(_litter(store))
    files = (*tensors.values(), *checkpoints.values(), *litter)
    return Garbage(
        tensors=tuple(tensors),
        checkpoints=tuple(checkpoints),
        litter=litter,
        num_bytes=sum(file.lstat().st_size for file in files),
    )


def remove_garbage(store: Store, garbage: Garbage) -> None:
    """Remove what was found; raise ``StoreError`` while any job of the store is running."""
    running = store.snapshot().running
    if running:
        raise StoreError(
            f"{len(running)} jobs of {store.root} are running, and may need what would be removed. "
            "Stop them first (Ctrl-C lets them save), or wait until they finish."
        )
    for key in garbage.tensors:
        store.strip(key)
    for key in garbage.checkpoints:
        with store.claim(key) as workspace:
            if workspace is not None:
                workspace.drop_checkpoint()
    for path in garbage.litter:
        remove(path)


def _litter(store: Store) -> Iterator[Path]:
    now = _now(store)
    for pattern in ("*", "failed/*", "running/*/*"):
        for path in sorted(store.root.glob(pattern)):
            if is_temporary(path.name):
                old = now - path.lstat().st_mtime > OLD_SECONDS
                if old or is_litter(path.name):
                    yield path


def _now(store: Store) -> float:
    """Return the time by the file system's clock, which may be another machine's; 0 if unknown."""
    probe = store.root / fresh_name("clock")
    try:
        probe.touch()
        return probe.stat().st_mtime
    except OSError:
        return 0.0
    finally:
        remove(probe)


def _tensors(store: Store, key: str) -> Path:
    return store.record_file(key).with_name(TENSORS_FILE)


def _checkpoint(store: Store, key: str) -> Path:
    return store.root / "running" / key / CHECKPOINT
