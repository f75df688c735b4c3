"""Leases on folders: which process runs a job, also if several machines share a store.

    running/<key>/lock/owner    the job's holder, and a counter that it increments while it is alive

A lease is taken by renaming a complete folder to ``lock``, which fails if that exists, so only one
of several processes succeeds. A dead process of the same machine is detected at once, because its
lock (flock) on the file ended with it. Any other holder is judged by the counter alone: if it has
not changed for ``LEASE_SECONDS`` by the reader's own clock, the holder is dead, disconnected or
frozen, and its lease is moved aside. Clocks of different machines are never compared.

A holder that was wrongly taken for dead finds another's lease in place of its own, and gives up.
Until then it does no harm: the first record under a key wins, and all other files are written
completely before they are renamed.
"""

import errno
import fcntl
import json
import os
import platform
import shutil
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from regrow.core.disk import why
from regrow.core.processes import host, this_process
from regrow.errors import StoreError

LOCK, OWNER = "lock", "owner"
LEASE_VARIABLE = "REGROW_LEASE_SECONDS"
LEASE_SECONDS = 60.0
RENEWALS = 6  # within LEASE_SECONDS, so that several can be missed
WIDTH = 512  # fixed size of the owner file in bytes, because it is rewritten in place
ATTEMPTS = 10  # a folder that keeps changing through so many is in use by another process
_OCCUPIED = (errno.ENOTEMPTY, errno.EEXIST)
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)


def lease_seconds() -> float:
    """Return how long a holder may be silent before its job is taken over."""
    text = os.environ.get(LEASE_VARIABLE, "")
    try:
        seconds = float(text) if text else LEASE_SECONDS
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise StoreError(f"{LEASE_VARIABLE} must be a number of seconds above 0. Got {text!r}.")
    return seconds


class SilenceWatch:
    """A reader's memory of each owner file: its last content, and since when, by its own clock."""

    def __init__(self) -> None:
        self._seen: dict[Path, tuple[bytes, float]] = {}

    def is_silent(self, lock: Path, content: bytes) -> bool:
        """Return whether an owner file has not changed for the duration of a lease."""
        now = time.monotonic()
        seen = self._seen.get(lock)
        if seen is None or seen[0] != content:
            self._seen[lock] = (content, now)
            return False
        return now - seen[1] >= lease_seconds()


class Lease:
    """A job's lease, held by this process and renewed until it is released."""

    def __init__(self, folder: Path, handle: int) -> None:
        self._lock = folder / LOCK
        self._handle = handle
        self._count = 0
        self._lost = False
        self._busy = threading.Lock()
        self.token = f"{this_process()}-{os.urandom(4).hex()}"

    def is_lost(self) -> bool:
        """Return whether another process has taken the job over, by reading the owner file."""
        self._lost = self._lost or not self._is_mine()
        return self._lost

    def write(self) -> None:
        """Write the holder and an incremented counter to the owner file."""
        self._count += 1
        owner = {"host": platform.node(), "count": self._count, "token": self.token}
        os.pwrite(self._handle, json.dumps(owner).encode().ljust(WIDTH), 0)

    def renew(self) -> None:
        """Show that this process is alive, unless another process has taken the lease."""
        with self._busy:
            if self._handle < 0 or self.is_lost():
                return
            with suppress(OSError):  # a full or absent disk may be back at the next renewal
                self.write()
                os.fsync(self._handle)  # only then visible to other hosts

    def release(self) -> None:
        """Give up the lease, so that other processes can take the job."""
        _HEART.discard(self)
        with self._busy:
            if not self.is_lost():
                _move_away(self._lock, self.token)
            os.close(self._handle)
            self._handle = -1
        with suppress(OSError):  # not empty: it has a checkpoint, or another process's lease
            self._lock.parent.rmdir()

    def _is_mine(self) -> bool:
        try:
            return _token(_read(self._lock / OWNER)) == self.token
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            return error.errno != errno.ESTALE  # unreadable does not mean taken over


def take(folder: Path, watch: SilenceWatch) -> Lease | None:
    """Create a job's folder and take its lease; return None if another live process holds it."""
    lock = folder / LOCK
    if folder.is_symlink():  # to a foreign folder, where nothing may be written or removed
        raise StoreError(f"{folder} is a link, and must be a folder. Remove it.")
    try:
        for _ in range(ATTEMPTS):
            lease, is_held = _take_over(folder, watch) if lock.exists() else (None, False)
            if lease is None and not is_held:
                lease = _take_free(folder)
            if lease is not None:
                _HEART.add(lease)
                return lease
            if is_held:
                return None
    except OSError as error:
        raise StoreError(f"Cannot write {lock}: {why(error, lock)}.") from error
    return None


def is_held(folder: Path, watch: SilenceWatch) -> bool:
    """Return whether a live process holds a folder; other hosts' processes until they are silent.

    Unreadable owner files count as held.
    """
    lock = folder / LOCK
    try:
        handle = os.open(lock / OWNER, os.O_RDONLY | os.O_NONBLOCK)  # or opening a pipe would block
    except OSError as error:
        return error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)
    try:
        content = os.pread(handle, WIDTH, 0)
        if _is_of_this_host(content) and _locked(handle, fcntl.LOCK_SH):
            return False
    except OSError:
        return True
    finally:
        os.close(handle)
    return not watch.is_silent(lock, content)


def _take_free(folder: Path) -> Lease | None:
    """Take the lease of a folder that has none; return None if another process was faster."""
    folder.mkdir(parents=True, exist_ok=True)
    fresh = folder / f".{LOCK}-{os.urandom(8).hex()}"
    try:
        fresh.mkdir()
        handle = os.open(fresh / OWNER, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    except FileNotFoundError:
        return None  # its last holder removed the folder meanwhile
    lease = Lease(folder, handle)
    try:
        lease.write()
        _locked(handle, fcntl.LOCK_EX)
        fresh.rename(folder / LOCK)
    except OSError as error:
        os.close(handle)
        shutil.rmtree(fresh, ignore_errors=True)
        if error.errno == errno.ENOTDIR:  # a file: the lock of an earlier version
            _remove_old_lock(folder)
            return None
        if error.errno in _OCCUPIED or isinstance(error, FileNotFoundError):
            return None
        raise
    return lease


def _take_over(folder: Path, watch: SilenceWatch) -> tuple[Lease | None, bool]:
    """Take an existing lease if its holder is dead; return the lease, and whether it is held."""
    lock = folder / LOCK
    try:
        handle = os.open(lock / OWNER, os.O_RDWR | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return None, False
    keep = False
    try:
        content = os.pread(handle, WIDTH, 0)
        if _is_of_this_host(content) and _locked(handle, fcntl.LOCK_EX):
            if not _is_at(handle, lock / OWNER):
                return None, False  # its holder released it meanwhile
            lease = Lease(folder, handle)
            lease.write()
            keep = True
            return lease, False
        if not watch.is_silent(lock, content):
            return None, True
    finally:
        if not keep:
            os.close(handle)
    _move_away(lock, _token(content))
    return None, False


def _remove_old_lock(folder: Path) -> None:
    """Remove the lock file of an earlier version, if no process holds it."""
    with suppress(FileNotFoundError):
        handle = os.open(folder / LOCK, os.O_RDWR)
        try:
            if _locked(handle, fcntl.LOCK_EX):
                (folder / LOCK).unlink()
        finally:
            os.close(handle)


def _move_away(lock: Path, token: str) -> None:
    """Remove a lease atomically, by a rename, if it still has this token."""
    aside = lock.with_name(f".{LOCK}-{os.urandom(8).hex()}")
    with suppress(FileNotFoundError):
        lock.rename(aside)
        if _token(_read(aside / OWNER)) != token:
            with suppress(OSError):  # if it was taken again meanwhile, the other holder notices
                aside.rename(lock)
                return
        shutil.rmtree(aside, ignore_errors=True)


def _locked(handle: int, kind: int) -> bool:
    """Lock an open file; return False if another process holds it, or locks are not supported."""
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return False
        raise
    return True


def _is_at(handle: int, path: Path) -> bool:
    """Return whether an open file is still the one at this path."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _read(path: Path) -> bytes:
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return os.pread(handle, WIDTH, 0)
    finally:
        os.close(handle)


def _token(content: bytes) -> str:
    try:
        owner: Any = json.loads(content)
    except ValueError:  # its content is not visible on this host yet
        return ""
    token = owner.get("token") if isinstance(owner, dict) else None
    return token if isinstance(token, str) else ""


def _is_of_this_host(content: bytes) -> bool:
    return _token(content).split("-")[0] == host()


class _Heart:
    """The thread that renews all leases of this process."""

    def __init__(self) -> None:
        self._leases: set[Lease] = set()
        self._changing = threading.Lock()
        self._thread: threading.Thread | None = None

    def add(self, lease: Lease) -> None:
        lease_seconds()  # raises an invalid setting here rather than in the thread
        with self._changing:
            self._leases.add(lease)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._beat, name="leases", daemon=True)
                self._thread.start()

    def discard(self, lease: Lease) -> None:
        with self._changing:
            self._leases.discard(lease)

    def _beat(self) -> None:
        while True:
            pause = LEASE_SECONDS / RENEWALS
            with suppress(StoreError):  # raised where a lease is taken; other leases go on
                pause = lease_seconds() / RENEWALS
            time.sleep(pause)
            with self._changing:
                leases = tuple(self._leases)
            for lease in leases:
                lease.renew()


_HEART = _Heart()
