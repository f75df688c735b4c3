"""Use inputs one after another in children with limits, and say which of them were not borne.

An input is borne if it gives a value or one of the package's own errors, in at most 2 seconds of a
processor and 500 MB beyond what the warm process has.
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
PATIENCE = 30  # seconds of the clock until one is looked at, and again where it works on
WORKING = 0.05  # seconds of a processor in that time: less is waiting, on however busy a machine
MOST = 5 * SECONDS  # of a processor, until an input counts as one that never ends
CHUNK = 100  # inputs a child


@dataclass
class Found:
    """What became of many inputs."""

    ends: Counter[str] = field(default_factory=Counter)
    faults: list[dict[str, Any]] = field(default_factory=list)
    longest: float = 0.0
    largest: int = 0  # bytes beyond those at the start of a child


def use_all(name: str, *, num: int, use: Callable[[int], object]) -> Found:
    """Call ``use`` with each number below ``num``, which names an input; collect what happened."""
    found = Found()
    start = 0
    while start < num:
        start = _chunk(name, range(start, min(num, start + CHUNK)), use, found)
    return found


def _chunk(name: str, numbers: range, use: Callable[[int], object], found: Found) -> int:
    """Use some inputs in a child; return the number of the first that was not."""
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
    if status:  # the input after those that were told of ended the child
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
    """Ends an input that hangs, by its own processor time where others hold the machine."""

    def start(self) -> None:
        """Begin with an input."""
        self.began = time.process_time()
        self._wait()

    def _wait(self) -> None:
        self.seen = time.process_time()
        signal.alarm(PATIENCE)
        faulthandler.dump_traceback_later(PATIENCE + 2, exit=True)  # of what heeds no signal

    def look(self, number: int, frame: FrameType | None) -> None:
        """Wait on for an input that works and has not worked for long; raise else."""
        now = time.process_time()
        if now - self.seen < WORKING or now - self.began > MOST:
            raise TimeoutError(
                f"not done after {PATIENCE} s or more, {now - self.began:.1f} s of a processor"
            )
        self._wait()


def _memory() -> tuple[int, int]:
    """Return the bytes of this process: addressed, and resident."""
    addressed, resident, *_ = map(int, Path("/proc/self/statm").read_text().split())
    page = os.sysconf("SC_PAGE_SIZE")
    return addressed * page, resident * page
