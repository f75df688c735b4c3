"""The store of results: every file that a run leaves behind."""

from regrow.store.store import (
    MAIN,
    MASKS,
    REPAIRED,
    TIMING,
    Snapshot,
    Store,
    after_epoch,
    joined,
    part_of,
)

__all__ = [
    "MAIN",
    "MASKS",
    "REPAIRED",
    "TIMING",
    "Snapshot",
    "Store",
    "after_epoch",
    "joined",
    "part_of",
]
