"""The energy that a job takes, by counters of the machine, where these can be read.

Linux counts what processor packages take, and memory where it has a counter of its own
(``/sys/class/powercap``, RAPL); NVIDIA's library counts what a GPU takes (the extra ``energy``).
Such counters are of a whole machine and a whole GPU, so a job gets a share of what they count while
it runs: of the processor by its part of the processor's time, a way that Scaphandre takes too; both
divided by the number of jobs that share this process at that moment. Work of other programs on a
GPU cannot be told apart, and is counted in. ``whole_joules`` is what the counters counted without
any division.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

POWERCAP = Path("/sys/class/powercap")
STAT = Path("/proc/stat")
READ = ("package", "dram")  # zones that add up; "core" lies within a package, "psys" around all
MOST_WATTS = 500.0  # of a zone: sets after how long its counter may have gone round
UNREAD = "unknown"


@dataclass(frozen=True, kw_only=True)
class Energy:
    """The joules of a job, and what the counters counted as a whole; or why they are unknown."""

    joules: float = 0.0
    whole_joules: float = 0.0
    counters: tuple[str, ...] = ()
    unknown: str = ""

    @classmethod
    def from_json(cls, value: Any) -> "Energy":
        """Read what ``to_json`` wrote; what has none of it was not measured."""
        if not isinstance(value, Mapping) or UNREAD in value or "joules" not in value:
            why = value.get(UNREAD, "") if isinstance(value, Mapping) else ""
            return cls(unknown=why or "it was not measured")
        return cls(
            joules=value["joules"],
            whole_joules=value["whole_joules"],
            counters=tuple(value["counters"]),
        )

    def to_json(self) -> dict[str, Any]:
        """Return it as a record keeps it."""
        if self.unknown:
            return {UNREAD: self.unknown}
        return {
            "joules": round(self.joules, 3),
            "whole_joules": round(self.whole_joules, 3),
            "counters": list(self.counters),
        }

    def __add__(self, other: "Energy") -> "Energy":
        """Add up; unknown where one of them is."""
        if self.unknown or other.unknown:
            return Energy(unknown=self.unknown or other.unknown)
        return Energy(
            joules=self.joules + other.joules,
            whole_joules=self.whole_joules + other.whole_joules,
            counters=tuple(dict.fromkeys((*self.counters, *other.counters))),
        )


class Counter(Protocol):
    """A counter of energy that only grows, but for going round."""

    @property
    def name(self) -> str:
        """Its name for people."""

    @property
    def of_gpu(self) -> bool:
        """True if it is of a GPU, whose work no processor time tells apart."""

    @property
    def most_seconds(self) -> float:
        """The seconds between two readings that leave no doubt how often it went round."""

    def read(self) -> float:
        """Return what it stands at, in joules."""

    def between(self, before: float, after: float) -> float:
        """Return the joules from one reading to the next."""


@dataclass(frozen=True, kw_only=True)
class Zone:
    """A zone of Linux's powercap."""

    name: str
    file: Path
    range_joules: float
    of_gpu: bool = False

    @property
    def most_seconds(self) -> float:
        """The seconds that it takes to go round at the most power there can be."""
        return self.range_joules / MOST_WATTS

    def read(self) -> float:
        """Return what it stands at, in joules."""
        return int(self.file.read_text()) / 1e6

    def between(self, before: float, after: float) -> float:
        """Return the joules in between; it begins at zero again when it is full."""
        return (after - before) % self.range_joules


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """The counter of an NVIDIA GPU; in millijoules since its driver was loaded."""

    name: str
    millijoules: Callable[[], int]
    of_gpu: bool = True
    most_seconds: float = float("inf")

    def read(self) -> float:
        """Return what it stands at, in joules."""
        return self.millijoules() / 1e3

    def between(self, before: float, after: float) -> float:
        """Return the joules in between."""
        return after - before


@dataclass(frozen=True, kw_only=True)
class Counters:
    """The counters of a machine for one device; or why there are none."""

    found: tuple[Counter, ...] = ()
    unknown: str = ""


@cache
def counters(device: str) -> Counters:
    """Find the counters for jobs on a device: the processor's, and those of a GPU it names."""
    try:
        zones, why = rapl_zones(POWERCAP), ""
    except OSError as error:
        zones, why = (), unreadable(error)
    if device == "cpu":
        return Counters(found=zones, unknown="" if zones else why or no_zones(POWERCAP))
    if not device.startswith("cuda"):
        return Counters(unknown=f"no counter is known of the device {device}")
    gpu, why = _gpu(device)
    return Counters(unknown=why) if gpu is None else Counters(found=(*zones, gpu))


def no_zones(folder: Path) -> str:
    """Word that a machine has no counters of its processor."""
    return f"this machine has no energy counters in {folder}"


def unreadable(error: OSError) -> str:
    """Word that a counter is there and may not be read."""
    return (
        f"{error.filename} cannot be read ({error.strerror}); its owner, root, may allow it: "
        f"chmod a+r"
    )


def rapl_zones(folder: Path) -> tuple[Zone, ...]:
    """Return the zones of packages and memory that can be read; an ``OSError`` where one cannot."""
    zones = []
    for place in sorted(folder.glob("intel-rapl:*")):  # of AMD's processors too
        name = (place / "name").read_text().strip()
        if name.partition("-")[0] in READ:
            above = place.name.split(":")[1]
            label = name if name.startswith("package") else f"{name} of package-{above}"
            largest = int((place / "max_energy_range_uj").read_text()) / 1e6
            zone = Zone(name=label, file=place / "energy_uj", range_joules=largest)
            zone.read()  # is refused here rather than after a training
            zones.append(zone)
    return tuple(zones)


def _gpu(device: str) -> tuple[Gpu | None, str]:
    """Return the counter of a GPU as PyTorch numbers it, or why there is none."""
    try:
        import pynvml
    except ImportError:
        return None, (
            "the energy of a GPU is read by NVIDIA's library: pip install 'regrow[energy]'"
        )
    import torch

    properties = torch.cuda.get_device_properties(torch.device(device))
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{properties.uuid}")

        def millijoules() -> int:
            return int(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle))

        millijoules()
    except pynvml.NVMLError as error:
        return None, f"NVIDIA's library reads no energy of {properties.name}: {error}"
    return Gpu(name=properties.name, millijoules=millijoules), ""


@dataclass(frozen=True)
class ProcessorTime:
    """Seconds of processors in use: by this process, and by all programs of the machine."""

    own: float
    all: float


def processor_time() -> ProcessorTime:
    """Read them; of a machine that does not say it, this process is taken for all there is."""
    own = time.process_time()
    try:
        fields = STAT.read_text().split("\n", 1)[0].split()[1:]
        # user nice system idle iowait irq softirq steal: without those that wait
        ticks = sum(int(fields[i]) for i in (0, 1, 2, 5, 6))
        return ProcessorTime(own, ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, IndexError, ValueError):
        return ProcessorTime(own, own)


@dataclass(frozen=True)
class _Reading:
    at: float
    used: ProcessorTime
    values: tuple[float, ...]  # of the counters


_RUNNING: "list[EnergyMeter]" = []  # of this process, whose share in it is one over their number
_LOCK = Lock()


class EnergyMeter:
    """Adds up what one job takes, from reading to reading."""

    def __init__(
        self,
        known: Counters,
        *,
        clock: Callable[[], float] = time.monotonic,
        used: Callable[[], ProcessorTime] = processor_time,
    ) -> None:
        self._counters = known.found
        self._clock = clock
        self._used = used
        self._total = Energy(
            counters=tuple(counter.name for counter in known.found), unknown=known.unknown
        )
        self._last: _Reading | None = None

    @property
    def total(self) -> Energy:
        """The sum so far."""
        return self._total

    def add(self, earlier: Energy) -> None:
        """Count what the job took before it was resumed, which may be unknown."""
        self._total = self._total + earlier

    def read(self) -> None:
        """Read the counters, and give this job its share of what was taken since."""
        with _LOCK:
            self._read()

    def _read(self) -> None:
        if self._total.unknown:
            return
        try:
            now = _Reading(
                self._clock(), self._used(), tuple(counter.read() for counter in self._counters)
            )
        except Exception as error:  # of a driver, too, which is no reason to stop a training
            self._total = Energy(unknown=f"a counter failed: {error}")
            return
        if self._last is not None:
            self._total = self._total + self._between(self._last, now)
        self._last = now

    def _between(self, before: "_Reading", after: "_Reading") -> Energy:
        own, every = after.used.own - before.used.own, after.used.all - before.used.all
        part = min(1.0, own / every) if every > 0 else float(own > 0)
        seconds, jobs = after.at - before.at, max(1, len(_RUNNING))
        joules = whole = 0.0
        pairs = zip(before.values, after.values, strict=True)
        for counter, (first, last) in zip(self._counters, pairs, strict=True):
            if seconds > counter.most_seconds:
                return Energy(
                    unknown=f"{counter.name} may have gone round more than once in "
                    f"{seconds:.0f} s without a reading"
                )
            taken = counter.between(first, last)
            whole += taken
            joules += taken / jobs * (1.0 if counter.of_gpu else part)
        return Energy(joules=joules, whole_joules=whole)


@contextmanager
def metered(meter: EnergyMeter) -> Iterator[EnergyMeter]:
    """Measure what is done inside; jobs at once in one process share its part evenly."""
    with _LOCK:
        for other in _RUNNING:  # so that in each interval the number of jobs is one
            other._read()
        _RUNNING.append(meter)
        meter._read()
    try:
        yield meter
    finally:
        with _LOCK:
            for other in _RUNNING:
                other._read()
            _RUNNING.remove(meter)
