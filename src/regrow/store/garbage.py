"""Find and remove what a store holds that no study of its user needs.

Records are small and stay: what goes are tensors, checkpoints and what dead processes left.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from regrow.core.processes import fresh_name, is_litter, is_temporary
from regrow.errors import StoreError
from regrow.store.store import TENSORS_FILE, Store
from regrow.store.workspace import CHECKPOINT, remove

# By the file system's own clock: longer than any file is written. Of another machine's process no
# more can be known.
OLD_SECONDS = 86_400.0


@dataclass(frozen=True, kw_only=True)
class Garbage:
    """The things that can go: tensors of records and checkpoints by key, litter by path."""

    tensors: tuple[str, ...]
    checkpoints: tuple[str, ...]
    litter: tuple[Path, ...]
    num_bytes: int


def find_garbage(store: Store, needed: Collection[str] | None) -> Garbage:
    """Find what jobs with other keys than the needed ones left; None: litter alone."""
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
    """Remove what was found; a ``StoreError`` while anybody works on the store."""
    running = store.snapshot().running
    if running:
        raise StoreError(
            f"{len(running)} jobs of {store.root} are running, and may need what would be removed. "
            "Stop them first (Ctrl-C lets them save), or wait for their end."
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
    """Return the time of the file system, which may be another machine's."""
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
