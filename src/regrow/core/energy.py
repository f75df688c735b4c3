"""The energy that a job uses, measured by the machine's counters where they can be read.

Linux counts the energy of processor packages, and of memory if it has a separate counter
(``/sys/class/powercap``, RAPL); NVIDIA's library counts that of a GPU (the extra ``energy``).
The counters cover the whole machine and the whole GPU, so a job is assigned a share of what they
count while it runs: of the processor in proportion to its processor time, as Scaphandre does; both
divided by the number of jobs that run in this process at that moment. Other programs' work on a
GPU cannot be separated, and is included. ``whole_joules`` is the undivided energy.
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
READ = ("package", "dram")  # disjoint zones; "core" is part of a package, "psys" includes both
MOST_WATTS = 500.0  # maximum power of a zone: sets how soon its counter may wrap around
UNREAD = "unknown"


@dataclass(frozen=True, kw_only=True)
class Energy:
    """The joules of a job, and the undivided ones of the counters; or why they are unknown."""

    joules: float = 0.0
    whole_joules: float = 0.0
    counters: tuple[str, ...] = ()
    unknown: str = ""

    @classmethod
    def from_json(cls, value: Any) -> "Energy":
        """Read what ``to_json`` returned; anything else counts as not measured."""
        if not isinstance(value, Mapping) or UNREAD in value or "joules" not in value:
            why = value.get(UNREAD, "") if isinstance(value, Mapping) else ""
            return cls(unknown=why or "it was not measured")
        return cls(
            joules=value["joules"],
            whole_joules=value["whole_joules"],
            counters=tuple(value["counters"]),
        )

    def to_json(self) -> dict[str, Any]:
        """Return it as stored in a record."""
        if self.unknown:
            return {UNREAD: self.unknown}
        return {
            "joules": round(self.joules, 3),
            "whole_joules": round(self.whole_joules, 3),
            "counters": list(self.counters),
        }

    def __add__(self, other: "Energy") -> "Energy":
        """Return the sum; unknown if either is unknown."""
        if self.unknown or other.unknown:
            return Energy(unknown=self.unknown or other.unknown)
        return Energy(
            joules=self.joules + other.joules,
            whole_joules=self.whole_joules + other.whole_joules,
            counters=tuple(dict.fromkeys((*self.counters, *other.counters))),
        )


class Counter(Protocol):
    """An energy counter, which increases until it wraps around."""

    @property
    def name(self) -> str:
        """Its display name."""

    @property
    def of_gpu(self) -> bool:
        """True if it counts a GPU, whose energy is not divided by processor time."""

    @property
    def most_seconds(self) -> float:
        """The most seconds between two readings within which it wraps around at most once."""

    def read(self) -> float:
        """Return its current value, in joules."""

    def between(self, before: float, after: float) -> float:
        """Return the joules between two readings."""


@dataclass(frozen=True, kw_only=True)
class Zone:
    """A zone of Linux's powercap."""

    name: str
    file: Path
    range_joules: float
    of_gpu: bool = False

    @property
    def most_seconds(self) -> float:
        """The seconds in which it wraps around at maximum power."""
        return self.range_joules / MOST_WATTS

    def read(self) -> float:
        """Return its current value, in joules."""
        return int(self.file.read_text()) / 1e6

    def between(self, before: float, after: float) -> float:
        """Return the joules between two readings, allowing for one wrap-around."""
        return (after - before) % self.range_joules


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """The energy counter of an NVIDIA GPU: millijoules since its driver was loaded."""

    name: str
    millijoules: Callable[[], int]
    of_gpu: bool = True
    most_seconds: float = float("inf")

    def read(self) -> float:
        """Return its current value, in joules."""
        return self.millijoules() / 1e3

    def between(self, before: float, after: float) -> float:
        """Return the joules between two readings."""
        return after - before


@dataclass(frozen=True, kw_only=True)
class Counters:
    """The energy counters for jobs on one device; or why there are none."""

    found: tuple[Counter, ...] = ()
    unknown: str = ""


@cache
def counters(device: str) -> Counters:
    """Find the counters for jobs on a device: the processor's, and the GPU's if it is one."""
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
    """Return the message that a machine has no energy counters of its processor."""
    return f"this machine has no energy counters in {folder}"


def unreadable(error: OSError) -> str:
    """Return the message that a counter exists but may not be read."""
    return (
        f"{error.filename} cannot be read ({error.strerror}); its owner, root, can allow it: "
        f"chmod a+r"
    )


def rapl_zones(folder: Path) -> tuple[Zone, ...]:
    """Return the zones of packages and memory; raise ``OSError`` if one cannot be read."""
    zones = []
    for place in sorted(folder.glob("intel-rapl:*")):  # so named for AMD processors too
        name = (place / "name").read_text().strip()
        if name.partition("-")[0] in READ:
            above = place.name.split(":")[1]
            label = name if name.startswith("package") else f"{name} of package-{above}"
            largest = int((place / "max_energy_range_uj").read_text()) / 1e6
            zone = Zone(name=label, file=place / "energy_uj", range_joules=largest)
            zone.read()  # fails here rather than after a training
            zones.append(zone)
    return tuple(zones)


def _gpu(device: str) -> tuple[Gpu | None, str]:
    """Return the counter of a GPU, by PyTorch's device name, or None and the reason."""
    try:
        import pynvml
    except ImportError:
        return None, (
            "NVIDIA's library, which reads the energy of GPUs, is missing: pip install "
            "'regrow[energy]'"
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
        return None, f"NVIDIA's library cannot read the energy of {properties.name}: {error}"
    return Gpu(name=properties.name, millijoules=millijoules), ""


@dataclass(frozen=True)
class ProcessorTime:
    """Processor seconds used by this process, and by all processes of the machine."""

    own: float
    all: float


def processor_time() -> ProcessorTime:
    """Return the processor time; if the machine's is not known, it is taken as this process's."""
    own = time.process_time()
    try:
        fields = STAT.read_text().split("\n", 1)[0].split()[1:]
        # user nice system idle iowait irq softirq steal: all but idle, iowait and steal
        ticks = sum(int(fields[i]) for i in (0, 1, 2, 5, 6))
        return ProcessorTime(own, ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, IndexError, ValueError):
        return ProcessorTime(own, own)


@dataclass(frozen=True)
class _Reading:
    at: float
    used: ProcessorTime
    values: tuple[float, ...]  # of the counters


_RUNNING: "list[EnergyMeter]" = []  # in this process; each gets an equal share of its energy
_LOCK = Lock()


class EnergyMeter:
    """Adds up the energy of one job, from reading to reading."""

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
        """Add the energy used before the job was resumed, which may be unknown."""
        self._total = self._total + earlier

    def read(self) -> None:
        """Read the counters, and add this job's share of the energy since the last reading."""
        with _LOCK:
            self._read()

    def _read(self) -> None:
        if self._total.unknown:
            return
        try:
            now = _Reading(
                self._clock(), self._used(), tuple(counter.read() for counter in self._counters)
            )
        except Exception as error:  # e.g. of a driver; no reason to stop a training
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
                    unknown=f"{counter.name} may have wrapped around more than once in "
                    f"{seconds:.0f} s without a reading"
                )
            taken = counter.between(first, last)
            whole += taken
            joules += taken / jobs * (1.0 if counter.of_gpu else part)
        return Energy(joules=joules, whole_joules=whole)


@contextmanager
def metered(meter: EnergyMeter) -> Iterator[EnergyMeter]:
    """Measure the energy of the block; concurrent jobs of a process share its part equally."""
    with _LOCK:
        for other in _RUNNING:  # so that the number of jobs is constant between two readings
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
