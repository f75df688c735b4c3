"""Processes that write to a store, and the temporary file names that identify them.

A store may lie on a folder that several machines share. What a killed process left behind is
removed by a later one of the same machine, which can tell that the process is gone; what belongs
to another machine is left alone.
"""

import os
import platform
import re
from functools import cache
from itertools import count
from pathlib import Path

HOST_VARIABLE = "REGROW_HOST"  # stands in for this machine's identity, in tests
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_NUMBERS = count()
_NEW = re.compile(r"\.(?P<name>.+)\.(?P<holder>[0-9a-z]+-[0-9]+-[0-9]+-[0-9]+)\.[0-9]+\.new")


def host() -> str:
    """Return what no other running machine has: the identity of this start of its kernel."""
    given = os.environ.get(HOST_VARIABLE)
    if given:
        return _plain(given)
    try:
        return _BOOT.read_text(encoding="ascii").strip().replace("-", "")
    except OSError:  # not Linux
        return _plain(platform.node())


def this_process() -> str:
    """Name this process: its host, the space that its number counts in, its number and start."""
    return f"{host()}-{_space()}-{os.getpid()}-{_started(os.getpid())}"


def is_gone(process: str) -> bool:
    """Return whether a named process is known to have ended; of other hosts nothing is known."""
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
    """Return a hidden name beside a file's own, to write it under before it is renamed."""
    return f".{name}.{this_process()}.{next(_NUMBERS)}.new"


def is_temporary(name: str) -> bool:
    """Return whether a file's name is one that is written under before a rename.

    >>> is_temporary(fresh_name("store")), is_temporary(".store.123.new"), is_temporary("a.json")
    (True, True, False)
    """
    return name.startswith(".") and name.endswith(".new")


def is_litter(name: str) -> bool:
    """Return whether a temporary file is one that nobody is going to rename any more.

    >>> is_litter(fresh_name("store")), is_litter(".store.999999999.new"), is_litter("a.json")
    (False, True, False)
    """
    if not is_temporary(name):
        return False
    found = _NEW.fullmatch(name)
    if found is not None:
        return is_gone(found["holder"])
    number = name.split(".")[-2]  # as earlier versions named them, which knew one host
    return number.isdecimal() and is_gone(f"{host()}-{_space()}-{number}-")


def _plain(text: str) -> str:
    return (
        "".join(letter for letter in text.lower() if letter.isalnum() and letter.isascii()) or "x"
    )


@cache
def _space() -> int:
    """Number the space in which process numbers count: containers have their own."""
    try:
        return Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        return 0


def _started(process: int) -> int | None:
    """Return when a process started, in ticks of its kernel: it tells a number used again."""
    try:
        text = Path(f"/proc/{process}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    return int(text.rpartition(")")[2].split()[19])
