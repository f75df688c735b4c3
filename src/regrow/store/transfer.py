"""Export records from a store, as a folder that is itself a store or as a tar, and import them.

Imported files are checked first: names, file types and digests. Existing records are never
replaced, and a record that differs from the existing one with its key is refused.
"""

import io
import re
import shutil
import tarfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from regrow.core.digests import MOST_BYTES
from regrow.core.disk import why
from regrow.core.processes import fresh_name
from regrow.errors import StoreError, short
from regrow.store.check import check_record, content_of
from regrow.store.store import RECORD_FILE, REMOVED_FILE, TENSORS_FILE, Store
from regrow.store.workspace import remove

FILES = (RECORD_FILE, TENSORS_FILE, REMOVED_FILE)
MEMBER = re.compile(
    r"store\.json|plan-[0-9a-f]{32}\.json"
    rf"|records/([0-9a-z]{{2}})/(\1[0-9a-z]*)/({'|'.join(map(re.escape, FILES))})"
)


@dataclass
class Taken:
    """The keys that were imported, already present, or refused (with the reason)."""

    new: list[str] = field(default_factory=list)
    known: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)


def export_records(
    store: Store, keys: Iterable[str], to: Path, *, plans: Iterable[Path] = (), tensors: bool = True
) -> int:
    """Write records to a new folder or tar file; return the number of records.

    ``plans`` are the files of the store that contain the jobs' display names.
    """
    if to.exists():
        raise StoreError(f"'{to}' already exists. Name a new folder or a new .tar file.")
    fresh = to.with_name(fresh_name(to.name))
    try:
        with ExitStack() as opened:
            if to.suffix == ".tar":
                archive = opened.enter_context(tarfile.open(fresh, "w"))
                put: Callable[[Path | None, str], None] = partial(_add, archive)
            else:
                Store.open(fresh)
                put = partial(_copy_into, fresh)
            put(store.root / "store.json", "store.json")
            for plan in plans:
                put(plan, plan.name)
            num = 0
            for key in keys:
                num += 1
                for name, file in _files(store.record_file(key).parent, tensors=tensors).items():
                    put(file, f"records/{key[:2]}/{key}/{name}")
        fresh.rename(to)
    except OSError as error:
        raise StoreError(f"Cannot write '{to}': {error.strerror or error}.") from error
    finally:
        remove(fresh)
    return num


def import_records(store: Store, source: Path) -> Taken:
    """Import all undamaged records of an exported folder or tar that the store does not have."""
    taken = Taken()
    with _as_folder(store, source) as folder:
        for record in sorted((folder / "records").glob("*/*")):
            key = record.name
            try:
                _take(store, record, key, taken)
            except ValueError as error:
                taken.refused[key] = str(error)
        for plan in sorted(folder.glob("plan-*.json")):
            _take_plan(store, folder, plan.stem)
    return taken


def _take(store: Store, folder: Path, key: str, taken: Taken) -> None:
    try:
        inside = [entry.name for entry in folder.iterdir()]
        for name in inside:
            _check_name(f"records/{folder.parent.name}/{key}/{name}")
            if (folder / name).is_symlink() or not (folder / name).is_file():
                raise ValueError(f"{name} is not a plain file")
        record = check_record(folder, key)
    except OSError as error:
        raise ValueError(f"it cannot be read ({why(error)})") from error
    if store.has(key):
        if content_of(check_record(store.record_file(key).parent, key)) != content_of(record):
            raise ValueError("the store has a different result under this key, which is kept")
        taken.known.append(key)
        return
    with store.claim(key) as workspace:
        if workspace is None:
            raise ValueError("a process is running this job")
        fresh = store.root / "running" / key / fresh_name("record")
        fresh.mkdir()
        for name in inside:
            _copy(folder / name, fresh / name)
        check_record(fresh, key)  # the copy too, because the source may have changed meanwhile
        (taken.new if store.adopt(key, fresh) else taken.known).append(key)


def _take_plan(store: Store, folder: Path, name: str) -> None:
    with suppress(StoreError):  # display names only, so a missing name is better than a wrong one
        plan = Store(folder).decided(name)
        if plan is not None:
            store.decide(name, plan)


@contextmanager
def _as_folder(store: Store, source: Path) -> Iterator[Path]:
    """Yield a folder with the files to import; a tar is checked and unpacked into one first."""
    if source.is_dir():
        Store.open(source, create=False)
        yield source
        return
    fresh = store.root / fresh_name("import")
    try:
        fresh.mkdir()
        with tarfile.open(source, "r:") as archive:  # uncompressed only, against zip bombs
            for member in _checked(archive):
                content = archive.extractfile(member)
                assert content is not None
                place = fresh / member.name
                place.parent.mkdir(parents=True, exist_ok=True)
                with place.open("wb") as file:
                    shutil.copyfileobj(content, file)
        Store.open(fresh, create=False)
        yield fresh
    except (tarfile.TarError, ValueError) as error:  # ValueError: a malformed number in a header
        raise StoreError(
            f"'{source}' is neither a store nor a tar file as `regrow store export` writes it: "
            f"{short(error)}."
        ) from error
    except OSError as error:
        raise StoreError(f"Cannot read '{source}': {error.strerror or error}.") from error
    finally:
        remove(fresh)


def _checked(archive: tarfile.TarFile) -> list[tarfile.TarInfo]:
    """Return the members of an archive, or refuse it if an export cannot have written it.

    Refused are links, devices, paths outside the store, duplicate members (including hard links to
    themselves) and sparse files, which could expand to any size.
    """
    seen: dict[str, tarfile.TarInfo] = {}
    for member in archive:
        try:
            _check_name(member.name)
        except ValueError as error:
            raise StoreError(f"The archive is refused: {error}.") from error
        small = not member.name.endswith(TENSORS_FILE)
        plain = member.isreg() and not member.issparse() and member.size >= 0
        if not plain or member.name in seen or (small and member.size > MOST_BYTES):
            raise StoreError(
                f"The archive is refused: its member {member.name[:200]!r} is a duplicate, too "
                "long, or not a regular file."
            )
        seen[member.name] = member
    return [*seen.values()]


def _check_name(name: str) -> None:
    if not MEMBER.fullmatch(name):
        raise ValueError(f"{name[:200]!r} is not a file of an exported store")


def _files(folder: Path, *, tensors: bool) -> dict[str, Path | None]:
    """Return the files of a record by name; None stands for an empty file."""
    found: dict[str, Path | None] = {RECORD_FILE: folder / RECORD_FILE}
    if (folder / TENSORS_FILE).exists() and tensors:
        found[TENSORS_FILE] = folder / TENSORS_FILE
    elif (folder / TENSORS_FILE).exists() or (folder / REMOVED_FILE).exists():
        found[REMOVED_FILE] = None
    return found


def _copy_into(folder: Path, file: Path | None, name: str) -> None:
    _copy(file, folder / name)


def _copy(file: Path | None, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    if file is None:
        to.touch()
    else:
        shutil.copyfile(file, to)


def _add(archive: tarfile.TarFile, file: Path | None, name: str) -> None:
    """Add a file without owner and time, so that equal records give identical archives."""
    member = tarfile.TarInfo(name)
    if file is None:
        archive.addfile(member, io.BytesIO())
        return
    with file.open("rb") as content:
        member.size = file.stat().st_size
        archive.addfile(member, content)
