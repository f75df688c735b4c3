"""Check a whole store for damage, list what it contains, and compare two stores.

Nothing here imports PyTorch: tensors are checked as raw bytes, at disk speed.
"""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from regrow.core.digests import digest_of_file, parsed, read_file, unsealed
from regrow.core.machine import num_cores
from regrow.errors import short
from regrow.store.store import RECORD_FILE, REMOVED_FILE, TENSORS, TENSORS_FILE, TIMING, Store
from regrow.store.workspace import CHECKPOINT

MOST_THREADS = 8


@dataclass(frozen=True, kw_only=True)
class Checked:
    """The result of checking a whole store: how much was read, and which files are damaged."""

    records: int
    num_bytes: int
    damaged: Mapping[str, str]  # file, or folder of a record -> what is wrong


@dataclass(frozen=True, kw_only=True)
class StoredJob:
    """One record of a store, for display."""

    key: str
    kind: str
    num_bytes: int
    saved: str  # local time, to the second
    has_tensors: bool


@dataclass(frozen=True, kw_only=True)
class StoreContrast:
    """The difference of two stores: keys in only one, and keys whose records differ in content."""

    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    other: tuple[str, ...]
    same: int


def verify(store: Store) -> Checked:
    """Check each record, its tensors, failures, checkpoints and decisions against their digests."""
    keys = store.keys()
    looks: list[tuple[Path, Callable[[Path], int]]] = [
        *((store.record_file(key).parent, _look_at_record) for key in keys),
        *((file, _look_at_text) for file in sorted((store.root / "failed").glob("*.json"))),
        *((file, _look_at_text) for file in sorted(store.root.glob("*.json"))),
        *(
            (file, _look_at_checkpoint)
            for file in sorted(store.root.glob(f"running/*/{CHECKPOINT}"))
        ),
    ]
    with ThreadPoolExecutor(min(MOST_THREADS, num_cores())) as pool:
        found = [*pool.map(lambda look: _outcome(*look), looks)]
    outcomes = [(str(file), outcome) for (file, _), outcome in zip(looks, found, strict=True)]
    return Checked(
        records=len(keys),
        num_bytes=sum(size for _, size in outcomes if isinstance(size, int)),
        damaged={file: why for file, why in outcomes if isinstance(why, str)},
    )


def check_record(folder: Path, key: str) -> dict[str, Any]:
    """Return the record in a folder; raise ``ValueError`` if it or its tensors are damaged."""
    record = unsealed(read_file(folder / RECORD_FILE), key, under=TIMING)
    digest, file = record.get(TENSORS), folder / TENSORS_FILE
    if digest is None and file.exists():
        raise ValueError("it has tensors that its record does not mention")
    if digest is not None and not file.exists() and not (folder / REMOVED_FILE).exists():
        raise ValueError("its tensors are missing")
    if digest is not None and file.exists() and digest_of_file(file)[0] != digest:
        raise ValueError("its tensors are not those that were stored with it")
    return record


def stored_jobs(store: Store) -> Iterator[StoredJob]:
    """Yield the records of a store, by key; an unreadable one gets the kind "damaged"."""
    done = store.keys()
    for key in done:
        file = store.record_file(key)
        try:
            kind = str(parsed(read_file(file)).get("kind", ""))
        except (OSError, ValueError):
            kind = "damaged"
        try:
            sizes = {entry.name: entry.lstat().st_size for entry in file.parent.iterdir()}
        except FileNotFoundError:
            continue  # it was removed meanwhile
        except OSError:
            kind, sizes = "damaged", {}
        saved = datetime.fromtimestamp(file.parent.lstat().st_mtime).astimezone()
        yield StoredJob(
            key=key,
            kind=kind,
            num_bytes=sum(sizes.values()),
            saved=saved.isoformat(sep=" ", timespec="seconds")[:19],
            has_tensors=TENSORS_FILE in sizes,
        )


def contrast(a: Store, b: Store) -> StoreContrast:
    """Compare two stores by key and content, ignoring times, machines and versions."""
    keys_a, keys_b = set(a.keys()), set(b.keys())
    both = sorted(keys_a & keys_b)
    other = tuple(key for key in both if _content(a, key) != _content(b, key))
    return StoreContrast(
        only_a=tuple(sorted(keys_a - keys_b)),
        only_b=tuple(sorted(keys_b - keys_a)),
        other=other,
        same=len(both) - len(other),
    )


def content_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record without its "timing" field, but with the digest of its tensors."""
    return {name: value for name, value in record.items() if name != TIMING}


def _content(store: Store, key: str) -> dict[str, Any] | str:
    try:
        return content_of(unsealed(read_file(store.record_file(key)), key, under=TIMING))
    except (OSError, ValueError) as error:
        return f"{store.root}: {short(error)}"  # never equal to the other store's content


def _outcome(file: Path, look: Callable[[Path], int]) -> int | str:
    try:
        return look(file)
    except FileNotFoundError as error:
        gone = look is not _look_at_record  # a running job removed or replaced it
        return 0 if gone else f"it is missing ({short(error)})"
    except ValueError as error:
        return str(error)
    except OSError as error:
        return f"it cannot be read ({error.strerror or error})"


def _look_at_record(folder: Path) -> int:
    check_record(folder, folder.name)
    return sum(entry.stat().st_size for entry in folder.iterdir())


def _look_at_text(file: Path) -> int:
    if file.name == "store.json":
        parsed(read_file(file))
    else:
        unsealed(read_file(file), file.stem)
    return file.stat().st_size


def _look_at_checkpoint(file: Path) -> int:
    digest, text = digest_of_file(file)
    if unsealed(text.encode(), file.parent.name)[TENSORS] != digest:
        raise ValueError("its tensors are not those that were saved")
    return file.stat().st_size
