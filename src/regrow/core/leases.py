"""Leases on folders: which process works on a job, also where several machines share them.

    running/<key>/lock/owner    who holds the job, and a number that goes up while it lives

A lease is taken by renaming a folder that is complete: over one that is there this fails, so of
several that try, one has it. A process of the same machine that died is told at once, because its
lock (flock) on the file died with it. Any other holder is judged by the number alone: where it has
not changed for ``LEASE_SECONDS`` of the reader's own clock, the holder is dead, cut off or frozen,
and its lease is moved out of the way. Clocks of different machines are never compared.

Who was taken for dead and was not finds another's lease in the place of its own, and gives up. What
it does until then harms nobody: records are stored under their content's key, the first one wins,
and all else is written complete and renamed.
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
RENEWALS = 6  # in that time: several may be missed
WIDTH = 512  # bytes of the file, always: it is rewritten in place
ATTEMPTS = 10  # a folder that changes that often under one's hands is somebody's
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
    """A reader's own memory of what holders wrote, and since when by its own clock."""

    def __init__(self) -> None:
        self._seen: dict[Path, tuple[bytes, float]] = {}

    def is_silent(self, lock: Path, content: bytes) -> bool:
        """Return whether a holder's file has not changed for as long as a lease lasts."""
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
        """Tell, by a look, whether another process has taken the job over."""
        self._lost = self._lost or not self._is_mine()
        return self._lost

    def write(self) -> None:
        """Say who holds it, with a number that was not there before."""
        self._count += 1
        owner = {"host": platform.node(), "count": self._count, "token": self.token}
        os.pwrite(self._handle, json.dumps(owner).encode().ljust(WIDTH), 0)

    def renew(self) -> None:
        """Show that this process lives, unless the lease is another's by now."""
        with self._busy:
            if self._handle < 0 or self.is_lost():
                return
            with suppress(OSError):  # a full or absent disk: it may be back the next time
                self.write()
                os.fsync(self._handle)  # other hosts see it only then

    def release(self) -> None:
        """Let others have the job."""
        _HEART.discard(self)
        with self._busy:
            if not self.is_lost():
                _move_away(self._lock, self.token)
            os.close(self._handle)
            self._handle = -1
        with suppress(OSError):  # not empty: a checkpoint waits, or somebody was faster
            self._lock.parent.rmdir()

    def _is_mine(self) -> bool:
        try:
            return _token(_read(self._lock / OWNER)) == self.token
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            return error.errno != errno.ESTALE  # what cannot be read now is not another's yet


def take(folder: Path, watch: SilenceWatch) -> Lease | None:
    """Make a job's folder and take its lease; None when another living process holds it."""
    lock = folder / LOCK
    if folder.is_symlink():  # to a folder of somebody's, where nothing is to be written or removed
        raise StoreError(f"{folder} is a link, which the folder of a job never is. Remove it.")
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
    """Return whether a living process works in a folder, as far as its holder's machine is known."""
    lock = folder / LOCK
    try:
        handle = os.open(lock / OWNER, os.O_RDONLY | os.O_NONBLOCK)  # a pipe must not hold it up
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
    """Take the lease of a folder that has none; None when there is one now."""
    folder.mkdir(parents=True, exist_ok=True)
    fresh = folder / f".{LOCK}-{os.urandom(8).hex()}"
    try:
        fresh.mkdir()
        handle = os.open(fresh / OWNER, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    except FileNotFoundError:
        return None  # its last holder removed the folder between the lines
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
    """Take a lease that is there from a holder that is gone; else tell whether it is held."""
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
    """Remove the lock file of an earlier version, if nobody holds it."""
    with suppress(FileNotFoundError):
        handle = os.open(folder / LOCK, os.O_RDWR)
        try:
            if _locked(handle, fcntl.LOCK_EX):
                (folder / LOCK).unlink()
        finally:
            os.close(handle)


def _move_away(lock: Path, token: str) -> None:
    """Remove a lease by one rename, if it is still the one with this token."""
    aside = lock.with_name(f".{LOCK}-{os.urandom(8).hex()}")
    with suppress(FileNotFoundError):
        lock.rename(aside)
        if _token(_read(aside / OWNER)) != token:
            with suppress(OSError):  # somebody has it by now, and the other finds that out
                aside.rename(lock)
                return
        shutil.rmtree(aside, ignore_errors=True)


def _locked(handle: int, kind: int) -> bool:
    """Lock an open file; False when another process has, or where there are no such locks."""
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
    """Return whether an open file is still the one at its place."""
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
    except ValueError:  # nothing of it has reached this host yet
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
        lease_seconds()  # one that cannot be meant is said here, not in the thread
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
            with suppress(StoreError):  # said where a lease is taken; the others go on
                pause = lease_seconds() / RENEWALS
            time.sleep(pause)
            with self._changing:
                leases = tuple(self._leases)
            for lease in leases:
                lease.renew()


_HEART = _Heart()
