"""Intercept the file operations of a run: count them, make a chosen one kill or fail, shift clocks.

``shim.c`` is compiled once, with the machine's C compiler (``cc``), and preloaded into this process
and all that it starts. It is controlled by a small file that all of them map into memory.
"""

import ctypes
import hashlib
import mmap
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

NOTHING, DIE, FAIL, SHORT, TORN = range(5)  # as in shim.c
LOG_BYTES = 1 << 20


class _Control(ctypes.Structure):
    _fields_ = (
        ("armed", ctypes.c_int),
        ("count", ctypes.c_int),
        ("hit", ctypes.c_int),
        ("at", ctypes.c_int),
        ("action", ctypes.c_int),
        ("error", ctypes.c_int),
        ("lasting", ctypes.c_int),
        ("reads", ctypes.c_int),
        ("jump", ctypes.c_int),
        ("logged", ctypes.c_int),
        ("prefix", ctypes.c_char * 4096),
        ("log", ctypes.c_char * LOG_BYTES),
    )


def preload() -> "Shim":
    """Restart this script with the shim preloaded, unless it already is; return its control."""
    if "REGROW_SHIM" not in os.environ:
        _start_again()
    return Shim(Path(os.environ["REGROW_SHIM"]))


def _start_again() -> NoReturn:
    control = tempfile.NamedTemporaryFile(prefix="regrow-shim-", delete=False)  # noqa: SIM115
    control.truncate(ctypes.sizeof(_Control))
    control.close()
    changed = {"LD_PRELOAD": str(_built()), "REGROW_SHIM": control.name, "OMP_NUM_THREADS": "1"}
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **changed})


def _built() -> Path:
    source = Path(__file__).with_name("shim.c")
    digest = hashlib.sha256(source.read_bytes()).hexdigest()[:16]
    built = Path(tempfile.gettempdir()) / f"regrow-shim-{os.getuid()}-{digest}.so"
    if not built.exists():
        fresh = built.with_suffix(f".{os.getpid()}")
        command = ["cc", "-O1", "-shared", "-fPIC", "-o", str(fresh), str(source), "-ldl"]
        subprocess.run(command, check=True)
        fresh.replace(built)
    return built


class Shim:
    """Control of the preloaded shim: what to do at which file operation, and what was done."""

    def __init__(self, file: Path) -> None:
        with file.open("r+b") as opened:
            self._control = _Control.from_buffer(mmap.mmap(opened.fileno(), 0))

    @contextmanager
    def armed(
        self,
        folder: Path,
        *,
        at: int = 0,
        action: int = NOTHING,
        error: int = 0,
        lasting: bool = False,
        reads: bool = False,
        jump: int = 0,
    ) -> Iterator[None]:
        """Watch operations below a folder, and apply ``action`` to number ``at`` (from 1).

        With ``jump``, clocks are ahead by so many seconds and behind by as many, in turn from
        operation to operation.
        """
        control = self._control
        control.armed = control.count = control.hit = control.logged = 0
        control.at, control.action, control.error = at, action, error
        control.lasting, control.reads, control.jump = int(lasting), int(reads), jump
        control.prefix = f"{folder}/".encode()
        control.armed = 1
        try:
            yield
        finally:
            control.armed = 0

    @property
    def count(self) -> int:
        """The number of operations since the shim was armed."""
        return int(self._control.count)

    @property
    def hit(self) -> int:
        """The number of operations that the action was applied to."""
        return int(self._control.hit)

    @property
    def log(self) -> list[str]:
        """The counted operations; with an action, only the first that it was applied to."""
        text = ctypes.string_at(
            ctypes.addressof(self._control) + _Control.log.offset, self._control.logged
        )
        return text.decode(errors="replace").splitlines()
