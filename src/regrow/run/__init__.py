"""Run the jobs that are missing from a store, in this process, in workers or on a cluster.

    summary = run(study.jobs(), store, workers=2, on_event=show)

The path of a job: ``schedule`` chooses the next one, ``coordinator`` passes it to one of the
``executors`` or to a ``worker`` process, which runs it and stores its result; ``events`` report
its progress, ``display`` shows it.
"""

from collections.abc import Callable, Iterable

import torch

from regrow.core.execution import Execution
from regrow.core.machine import num_cores
from regrow.errors import ConfigError
from regrow.jobs.base import Job
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
from regrow.store import Store

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
    "check_machines",
    "devices_of",
    "num_cores",
    "run",
    "run_as",
]


def run_as(
    execution: Execution,
    jobs: Iterable[Job],
    store: Store,
    *,
    on_event: Callable[[Event], None] | None = None,
    script_again: bool = True,
) -> Summary:
    """Run jobs where, and within the limits, that a user's ``execution`` asks for; see ``run``."""
    platform = None
    if execution.on is not None:
        from regrow.run.on_ray import on_ray  # here, as it would shadow the module of this name

        platform = on_ray(execution.address)
    return run(
        jobs,
        store,
        workers=execution.workers,
        on_event=on_event,
        checkpoint_seconds=execution.checkpoint_seconds,
        device=_devices(execution) if platform is None else execution.device,
        script_again=script_again,
        stop_after=execution.seconds_left,
        retries=execution.retries,
        on=platform,
    )


def check_machines(execution: Execution) -> None:
    """Raise ``ConfigError`` for a device that this machine does not have; clusters check theirs."""
    if execution.on is None:
        for name in _devices(execution):
            check_device(name)


def _devices(execution: Execution) -> tuple[str, ...]:
    return devices_of(execution.device, every=execution.devices is not None)


def devices_of(text: str, *, every: bool = False) -> tuple[str, ...]:
    """Return the devices named in a text; with ``every``, all GPUs of this machine.

    >>> devices_of("cuda:0, cuda:1"), devices_of("cpu")
    (('cuda:0', 'cuda:1'), ('cpu',))
    """
    if every:
        devices = tuple(f"cuda:{number}" for number in range(torch.cuda.device_count()))
        if not devices:
            raise ConfigError("--devices all: PyTorch finds no GPU on this machine.")
        return devices
    names = tuple(name.strip() for name in text.split(","))
    if len(set(names)) < len(names) or (len(names) > 1 and not all(map(_numbered, names))):
        raise ConfigError(
            f"--device {text}: name one device, or several GPUs by their numbers, each once: "
            "cuda:0,cuda:1."
        )
    return names


def _numbered(device: str) -> bool:
    kind, _, number = device.partition(":")
    return kind == "cuda" and number.isdigit()


def check_device(device: str) -> None:
    """Raise ``ConfigError`` if a small computation on a device fails."""
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
