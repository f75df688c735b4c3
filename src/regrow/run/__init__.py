"""Run the jobs that are missing from a store, here or in worker processes.

    summary = run(study.jobs(), store, workers=2, on_event=show)

The path of a job: ``schedule`` says which is next, ``coordinator`` hands it to one of the
``executors`` or to a ``worker`` process, which stores what it finds; ``events`` tell of it,
``display`` shows.
"""

import torch

from regrow.core.machine import num_cores
from regrow.errors import ConfigError
from regrow.run.coordinator import Summary, run
from regrow.run.events import (
    Event,
    JobBlocked,
    JobDone,
    JobFailed,
    JobProgress,
    JobStarted,
    JobWarning,
    RunProgress,
)

__all__ = [
    "Event",
    "JobBlocked",
    "JobDone",
    "JobFailed",
    "JobProgress",
    "JobStarted",
    "JobWarning",
    "RunProgress",
    "Summary",
    "check_device",
    "num_cores",
    "run",
]


def check_device(device: str) -> None:
    """Refuse a device that this machine does not have, by using it."""
    if device == "cpu":
        return
    devices = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    try:
        torch.ones(1, device=torch.device(device)).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(
            f"Cannot compute on the device {device!r}: this machine does not have it, or PyTorch "
            f"cannot use it. Choose --device {' or '.join(devices)}."
        ) from error
