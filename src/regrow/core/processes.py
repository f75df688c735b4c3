"""Processes that write to a store, and the temporary file names that identify them.

Several machines can share a store. Files left by a killed process are removed by a later process of
the same machine, which can tell that it is dead; files of other machines are left alone.
"""

import os
import platform
import re
from functools import cache
from itertools import count
from pathlib import Path

HOST_VARIABLE = "REGROW_HOST"  # replaces this machine's identity, in tests
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_NUMBERS = count()
_NEW = re.compile(r"\.(?P<name>.+)\.(?P<holder>[0-9a-z]+-[0-9]+-[0-9]+-[0-9]+)\.[0-9]+\.new")


def host() -> str:
    """Return an identity that no other running machine has: the kernel's boot id."""
    given = os.environ.get(HOST_VARIABLE)
    if given:
        return _plain(given)
    try:
        return _BOOT.read_text(encoding="ascii").strip().replace("-", "")
    except OSError:  # not Linux
        return _plain(platform.node())


def this_process() -> str:
    """Return a unique name of this process: host, PID namespace, PID and start time."""
    return f"{host()}-{_space()}-{os.getpid()}-{_started(os.getpid())}"


def is_gone(process: str) -> bool:
    """Return whether a process has certainly ended; False for processes of other hosts."""
    *place, number, started = process.split("-")
    if place != [host(), str(_space())]:
        return False
    now = _started(int(number))
    if now is not None:
        return str(now) != started
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def fresh_name(name: str) -> str:
    """Return a unique hidden name, under which a file is written before it is renamed."""
    return f".{name}.{this_process()}.{next(_NUMBERS)}.new"


def is_temporary(name: str) -> bool:
    """Return whether a file's name is a temporary one, as ``fresh_name`` makes them.

    >>> is_temporary(fresh_name("store")), is_temporary(".store.123.new"), is_temporary("a.json")
    (True, True, False)
    """
    return name.startswith(".") and name.endswith(".new")


def is_litter(name: str) -> bool:
    """Return whether a file is a temporary one whose process has ended.

    >>> is_litter(fresh_name("store")), is_litter(".store.999999999.new"), is_litter("a.json")
    (False, True, False)
    """
    if not is_temporary(name):
        return False
    found = _NEW.fullmatch(name)
    if found is not None:
        return is_gone(found["holder"])
    number = name.split(".")[-2]  # the format of earlier versions, which supported one host
    return number.isdecimal() and is_gone(f"{host()}-{_space()}-{number}-")


def _plain(text: str) -> str:
    return (
        "".join(letter for letter in text.lower() if letter.isalnum() and letter.isascii()) or "x"
    )


@cache
def _space() -> int:
    """Return the number of the PID namespace, as each container has its own."""
    try:
        return Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        return 0


def _started(process: int) -> int | None:
    """Return a process's start time in kernel ticks, which distinguishes reused PIDs."""
    try:
        text = Path(f"/proc/{process}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    return int(text.rpartition(")")[2].split()[19])
