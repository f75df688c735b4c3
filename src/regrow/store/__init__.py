"""The store of results: every file that a run leaves behind."""

from regrow.store.store import Snapshot, Store

__all__ = ["Snapshot", "Store"]
