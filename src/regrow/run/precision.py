"""Resolve ``precision: auto``, to bf16 if the processor supports it and it is faster, else fp32.

Also resolves ``engine: auto`` in fp32. Job keys contain both, so a store keeps what was decided in
its first run: another machine then finds the same jobs.
"""

import platform
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from datetime import date
from functools import cache
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import nn

from regrow.errors import ConfigError, StoreError
from regrow.jobs.base import Job, all_jobs
from regrow.run.executors import one_thread
from regrow.store import Store
from regrow.train import Computing, EngineName, Precision
from regrow.train.safe_convolutions import safe_convolutions

PAYS = 0.9  # bf16 must take at most this share of fp32's time to be worth its rounding errors
HOPELESS = 3.0  # multiple of fp32's time, in a step of two images, above which no more is measured
FEW, MANY = 2, 32  # images per step
ROUNDS = 3
# In fp32 on a CPU with AVX2: shown to be equivalent to "exact" (docs/results/speed).
ENGINE: EngineName = "fused"
NAME = "precision"  # name of the decision in the store


@dataclass(frozen=True)
class PrecisionSpeed:
    """Seconds of a training step of a small network, on one thread."""

    fp32: float
    bf16: float

    @property
    def times(self) -> float:
        """The time that bf16 takes, as a multiple of fp32's."""
        return self.bf16 / self.fp32

    def __str__(self) -> str:
        milliseconds = f"{1000 * self.fp32:.3g} ms in fp32 and {1000 * self.bf16:.3g} ms in bf16"
        return f"a step of a small network took {milliseconds}"


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The precision and engine that ``auto`` was resolved to in a store, and the reason."""

    precision: Precision
    why: str
    machine: str
    date: str
    engine: EngineName = "exact"

    @classmethod
    def from_json(cls, value: Any) -> "Decision":
        """Read the decision that a store keeps."""
        names = [*cls.__dataclass_fields__]
        if not isinstance(value, dict) or sorted({"engine": "exact"} | value) != sorted(names):
            raise StoreError(f"The store's {NAME}.json must have {', '.join(names)}. Remove it.")
        if value["precision"] not in get_args(Precision):
            raise StoreError(
                f"The precision of the store's {NAME}.json must be one of "
                f"{', '.join(get_args(Precision))}. Got {value['precision']!r}. Remove it."
            )
        if value.get("engine", "exact") not in get_args(EngineName):
            raise StoreError(
                f"The engine of the store's {NAME}.json must be one of "
                f"{', '.join(get_args(EngineName))}. Got {value['engine']!r}. Remove it."
            )
        return cls(**value)

    def __str__(self) -> str:
        return f"{self.words}, which 'auto' became on {self.date}: {self.why} ({self.machine})"

    @property
    def words(self) -> str:
        """The precision in words, with the engine unless that is PyTorch's own operations."""
        return self.precision + ("" if self.engine == "exact" else f" by {self.engine} kernels")


class PrecisionChoice:
    """Resolves ``auto`` for one command, on first use.

    The decision is that of the store, if there is one; fp32, if the store has results from when
    fp32 was the default; else made by a measurement, which read-only commands (``measure=False``)
    skip.
    """

    def __init__(self, store: Store | None, *, device: str = "cpu", measure: bool = True) -> None:
        self.decision: Decision | None = None
        self._store = store
        self._device = device
        self._measure = measure

    def __call__(self) -> Computing:
        """Return the precision and engine, deciding at the first call."""
        if self.decision is None:
            self.decision = self._decide()
        return Computing(precision=self.decision.precision, engine=self.decision.engine)

    def keep(self, store: Store) -> None:
        """Store the decision, if one was made, for later commands on this store."""
        if self.decision is None:
            return
        decision = Decision.from_json(store.decide(NAME, asdict(self.decision)))
        if decision.words != self.decision.words:
            raise StoreError(
                f"Another command has just decided that 'auto' is {decision.words} in this "
                "store. Run the same command again."
            )

    def _decide(self) -> Decision:
        stored = None if self._store is None else self._store.decided(NAME)
        if stored is not None:
            return Decision.from_json(stored)
        if self._store is not None and self._store.keys():
            return _decision("fp32", "the store had results before, when fp32 was the default")
        if not self._measure:
            return _decision("fp32", "nothing is done yet")
        return decide(self._device)


@cache
def decide(device: str = "cpu") -> Decision:
    """Decide by what the device supports natively and, on a CPU, by timing a few steps."""
    if device != "cpu":
        if not torch.cuda.is_available():
            raise ConfigError(
                f"The precision 'auto' is decided by the device {device!r}, which this machine "
                "does not have. Choose --device cpu, or, if other machines run the jobs, give the "
                "recipe 'precision: bf16' or 'fp32'."
            )
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        name = torch.cuda.get_device_name(device)
        return _decision("bf16" if native else "fp32", f"{name} computes it", machine=name)
    if not is_native():
        return _in_fp32("this processor does not compute bfloat16")
    speed = measured()
    pays = speed.times < PAYS
    return _decision("bf16", str(speed)) if pays else _in_fp32(str(speed))


def _in_fp32(why: str) -> Decision:
    decision = _decision("fp32", why)
    return replace(decision, engine=ENGINE) if has_vectors() else decision


def has_vectors() -> bool:
    """Return whether the fused float32 kernels support this processor."""
    return torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


def is_native() -> bool:
    """Return whether this processor computes in bfloat16, and PyTorch may use that."""
    known = torch.cpu.get_capabilities()
    computes = any(bool(value) and name.endswith("bf16") for name, value in known.items())
    return computes and torch.backends.cpu.get_cpu_capability() not in ("AVX2", "DEFAULT")


@cache
def measured() -> PrecisionSpeed:
    """Time a few training steps in both precisions, for up to a second; fewer if bf16 is slow."""
    with one_thread():
        few = _timed(FEW, rounds=2)
        return few if few.times > HOPELESS else _timed(MANY, rounds=ROUNDS)


def slow_bf16(jobs: Iterable[Job], device: str = "cpu") -> str | None:
    """Return a warning if jobs use bf16 and the processor does not support it; else None."""
    recipes = (getattr(job, "recipe", None) for job in all_jobs(jobs).values())
    wants_bf16 = any(recipe is not None and recipe.precision == "bf16" for recipe in recipes)
    if not wants_bf16 or device != "cpu" or is_native():
        return None
    speed = measured()
    if speed.times <= 1:
        return None
    return (
        f"This processor does not compute bfloat16, so 'precision: bf16' is slow here: {speed}, "
        f"{speed.times:.0f} times as long. With 'precision: fp32' the same study would be about "
        "that much faster, but share no results with this one."
    )


def _timed(images: int, *, rounds: int) -> PrecisionSpeed:
    """Return the shortest time of a step in each precision, timed in turns."""
    steps = {precision: _stepper(precision, images) for precision in get_args(Precision)}
    times: dict[str, list[float]] = {precision: [] for precision in steps}
    for _ in range(rounds):
        for precision, step in steps.items():
            began = time.perf_counter()
            step()
            times[precision].append(time.perf_counter() - began)
    return PrecisionSpeed(**{precision: min(taken) for precision, taken in times.items()})


def _stepper(precision: Precision, images: int) -> Callable[[], None]:
    """Return a function that runs a training step of typical middle layers for 32x32 images."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(32, 64, 3, padding=1, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3, padding=1, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    ).to(memory_format=torch.channels_last)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, 0.0, 0.05, generator=generator)
    x = torch.randn(images, 32, 16, 16, generator=generator)
    x = x.contiguous(memory_format=torch.channels_last)
    labels = torch.arange(images)

    def step() -> None:
        of_precision = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
        with of_precision, safe_convolutions():
            logits = model(x)
        F.cross_entropy(logits.float(), labels).backward()  # type: ignore[no-untyped-call]

    return step


def _decision(precision: Precision, why: str, *, machine: str = "") -> Decision:
    processor = torch.cpu.get_capabilities().get("cpu_name") or platform.processor()
    where = machine or f"{processor}, {torch.backends.cpu.get_cpu_capability()}"
    return Decision(precision=precision, why=why, machine=where, date=date.today().isoformat())
