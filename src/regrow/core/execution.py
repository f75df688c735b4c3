"""The devices and machines that run a command's jobs, and their limits: one value for all."""

import time
from dataclasses import dataclass, field

from regrow.core.durations import read_duration
from regrow.core.validation import is_int, is_number
from regrow.errors import ConfigError, short, unknown

RETRIES = 3  # of a job that failed for a reason that may be temporary
AT_LEAST_NONE = "an int of at least 0"


@dataclass(frozen=True, kw_only=True)
class Execution:
    """The devices and machines that run jobs, the number at once, and limits of time and retries.

    Every command that trains has options of the same names, as have ``run_study`` and ``compare``
    in Python.

    Attributes:
        workers: number of concurrent jobs; 0: in this process; None: one per core, or on a GPU the
            number that was measured to be fastest.
        device, devices: where networks run; ``devices="all"``: all GPUs of this machine.
        on, address: "ray", and the address of its cluster's head.
        checkpoint_seconds: seconds between two checkpoints of a training.
        stop_after: seconds from the creation of this value, or a text such as "1h30m".
        retries: how often a job is tried again after a failure that may be temporary.
    """

    workers: int | None = None
    device: str = "cpu"
    devices: str | None = None
    on: str | None = None
    address: str | None = None
    checkpoint_seconds: float = 60.0
    stop_after: float | str | None = None
    retries: int = RETRIES
    _began: float = field(default_factory=time.monotonic, init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        if isinstance(self.stop_after, str):
            object.__setattr__(self, "stop_after", read_duration(self.stop_after))
        stop_after = self.stop_after
        for name, is_good, wanted in (
            ("workers", self.workers is None or is_int(self.workers, least=0), AT_LEAST_NONE),
            ("retries", is_int(self.retries, least=0), AT_LEAST_NONE),
            ("checkpoint_seconds", _is_above_zero(self.checkpoint_seconds), "a number above 0"),
            ("stop_after", stop_after is None or _is_above_zero(stop_after), "seconds above 0"),
        ):
            if not is_good:
                raise ConfigError(f"{name!r} must be {wanted}. Got {short(getattr(self, name))}.")
        if self.devices not in (None, "all"):
            raise ConfigError(
                "--devices takes only 'all' (every GPU); name single GPUs with --device. "
                f"Got {str(self.devices)!r}."
            )
        if self.on not in (None, "ray"):
            raise ConfigError(unknown("platform", str(self.on), ["ray"]))
        if self.address is not None and self.on is None:
            raise ConfigError("--address names a Ray cluster: give --on ray too.")
        if self.on is not None and (self.devices or self.device not in ("cpu", "cuda")):
            raise ConfigError(
                "With --on ray, which assigns the GPUs, --device must be cpu or cuda. "
                f"Got {self.devices or self.device}."
            )

    @property
    def first(self) -> str:
        """The first of the devices, found without importing PyTorch."""
        return "cuda:0" if self.devices else self.device.partition(",")[0].strip()

    @property
    def seconds_left(self) -> float | None:
        """The seconds until the time limit; None without a limit."""
        if self.stop_after is None:
            return None
        return float(self.stop_after) - (time.monotonic() - self._began)

    def check_hours(self, hours: float | None) -> None:
        """Refuse ``hours``, estimated by this machine's speed, if other machines run the jobs."""
        if hours is not None and self.on is not None:
            raise ConfigError(
                "--hours is estimated from the speed of this machine, but --on ray runs on others. "
                "Leave one of the two out."
            )


def _is_above_zero(value: object) -> bool:
    return is_number(value) and value > 0
