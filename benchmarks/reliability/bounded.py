"""Try inputs one after another in child processes with limits, and report which of them fail.

An input passes if it gives a value or one of the package's own errors, within 2 seconds of CPU time
and 500 MB beyond the memory of the warm process.
"""

import faulthandler
import json
import os
import resource
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from regrow.errors import RegrowError

SECONDS = 2.0
BYTES = 500 << 20
PATIENCE = 30  # seconds by the clock between checks of an input that is still running
WORKING = 0.05  # CPU seconds between two checks; with less, an input hangs, on any busy machine
MOST = 5 * SECONDS  # CPU seconds after which an input counts as endless
CHUNK = 100  # inputs per child


@dataclass
class Found:
    """The outcomes of many inputs."""

    ends: Counter[str] = field(default_factory=Counter)
    faults: list[dict[str, Any]] = field(default_factory=list)
    longest: float = 0.0
    largest: int = 0  # bytes beyond those at the start of a child


def use_all(name: str, *, num: int, use: Callable[[int], object]) -> Found:
    """Call ``use`` with each input's number, from 0 to ``num - 1``, and collect the outcomes."""
    found = Found()
    start = 0
    while start < num:
        start = _chunk(name, range(start, min(num, start + CHUNK)), use, found)
    return found


def _chunk(name: str, numbers: range, use: Callable[[int], object], found: Found) -> int:
    """Try some inputs in a child; return the number of the first that was not tried."""
    reader, writer = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if not child:
        os.close(reader)
        try:
            _serve(numbers, use, writer)
        finally:
            os._exit(0)
    os.close(writer)
    done = numbers.start
    with os.fdopen(reader, encoding="utf-8") as lines:
        for line in lines:
            value = json.loads(line)
            done = value["number"] + 1
            found.ends[value["end"]] += 1
            found.longest = max(found.longest, value["seconds"])
            found.largest = max(found.largest, value["bytes"])
            problem = value["problem"] or (
                f"took {value['seconds']:.1f} s" if value["seconds"] > SECONDS else ""
            )
            if problem:
                found.faults.append(value | {"of": name, "problem": problem})
    _, status = os.waitpid(child, 0)
    if status:  # the child was ended by the input after the last one that it reported
        code = os.waitstatus_to_exitcode(status)
        problem = f"its process ended with {code}"
        found.ends["lost"] += 1
        found.faults.append({"of": name, "number": done, "problem": problem})
        done += 1
    return done


def _serve(numbers: range, use: Callable[[int], object], writer: int) -> None:
    warnings.simplefilter("ignore")
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    before, _ = _memory()
    resource.setrlimit(resource.RLIMIT_AS, (before + BYTES, resource.RLIM_INFINITY))
    clock = _Clock()
    signal.signal(signal.SIGALRM, clock.look)
    _, resident = _memory()
    with os.fdopen(writer, "w", encoding="utf-8") as told:
        for number in numbers:
            began = time.process_time()
            clock.start()
            end, problem = "value", ""
            try:
                use(number)
            except RegrowError as error:
                end = "error"
                if len(str(error)) > 5000 or "Traceback" in str(error):
                    problem = f"a message of {len(str(error))} characters: {str(error)[:200]}"
            except BaseException:
                end, problem = "raised", traceback.format_exc()[-2500:]
            signal.alarm(0)
            seconds = time.process_time() - began
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - resident
            line = {"number": number, "end": end, "problem": problem, "seconds": seconds}
            told.write(json.dumps(line | {"bytes": max(0, peak)}) + "\n")
            told.flush()


class _Clock:
    """Ends an input that hangs, judged by CPU time, because the machine may be busy."""

    def start(self) -> None:
        """Start the clock for an input."""
        self.began = time.process_time()
        self._wait()

    def _wait(self) -> None:
        self.seen = time.process_time()
        signal.alarm(PATIENCE)
        faulthandler.dump_traceback_later(PATIENCE + 2, exit=True)  # ignores signals

    def look(self, number: int, frame: FrameType | None) -> None:
        """Go on waiting if the input uses CPU time, and not too much of it; otherwise raise."""
        now = time.process_time()
        if now - self.seen < WORKING or now - self.began > MOST:
            raise TimeoutError(
                f"not done after {PATIENCE} s or more, {now - self.began:.1f} s of CPU time"
            )
        self._wait()


def _memory() -> tuple[int, int]:
    """Return the bytes of this process's address space, and its resident bytes."""
    addressed, resident, *_ = map(int, Path("/proc/self/statm").read_text().split())
    page = os.sysconf("SC_PAGE_SIZE")
    return addressed * page, resident * page
