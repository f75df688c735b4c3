"""Run a command with several ranks: ``torchrun --nproc-per-node 2 -m regrow run study.yaml``.

Rank 0 runs the command. The other ranks wait for a training, run it in lockstep with rank 0
(``train.distributed``), and wait for the next. They write nothing, and print only errors. Jobs
without training, such as a pruning, are run by rank 0 alone.
"""

import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from regrow.core.distributed import ALONE, Ranks, current, join, launched, leave, own_device
from regrow.core.registry import load_file, loaded_files
from regrow.core.source import expecting
from regrow.errors import RanksLost, RegrowError
from regrow.jobs.as_json import job_from_json, job_to_json
from regrow.jobs.base import Context, Job
from regrow.run.executors import Settings, exact_floats, one_thread, own_randomness


@dataclass(frozen=True, kw_only=True)
class _Order:
    """A training for all ranks, with what they need to run it."""

    files: tuple[Path, ...]  # of --with
    settings: Settings
    job: str  # as JSON, which can be read only after loading the files
    key: str


def take_part(lead: Callable[[], None], complain: Callable[[str], None]) -> None:
    """Join the other ranks; rank 0 calls ``lead``, the others follow it until it ends."""
    if not launched():
        lead()
        return
    ranks = join()
    if not ranks.first:
        _follow(ranks, complain)
        return
    try:
        lead()
    finally:
        with suppress(RanksLost):  # rank 0 has finished its work anyway
            ranks.share(_no_more)
            leave()


def summon(job: Job, settings: Settings) -> Ranks:
    """Let the other ranks start a training together with this one; return the ranks of the job."""
    ranks = current()
    if not (ranks.together and job.setting is not None):
        return ALONE
    text = job_to_json(job)
    order = _Order(files=loaded_files(), settings=settings, job=text, key=job.key)
    ranks.share(lambda: order)
    return ranks


def _no_more() -> _Order | None:
    return None


def _follow(ranks: Ranks, complain: Callable[[str], None]) -> None:
    """Run the trainings that rank 0 sends; an error of this rank alone ends it and so all ranks."""
    asked_to_stop: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        asked_to_stop.append(number)

    # Launchers signal every rank; all stop together, after the current step.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, note)
    try:
        while (order := ranks.share(_no_more)) is not None:
            with expecting(order.settings.read):
                _do(order, ranks, stopping=lambda: bool(asked_to_stop))
        leave()
    except Exception as error:
        text = str(error) if isinstance(error, RanksLost) else f"{type(error).__name__}: {error}"
        complain(f"rank {ranks.rank}: {text}")
        sys.stderr.flush()
        os._exit(1)  # connections to waiting ranks cannot be closed in an orderly way


def _do(order: _Order, ranks: Ranks, *, stopping: Callable[[], bool]) -> None:
    for file in order.files:
        load_file(file)
    job = job_from_json(order.job, key=order.key)
    context = Context(
        job,
        None,
        None,
        ranks=ranks,
        device=own_device(order.settings.device),
        stopping=stopping,
    )
    try:
        with one_thread(), exact_floats(), own_randomness(job, order.settings):
            job.run(context)
    except RanksLost:
        raise
    except RegrowError:
        return  # raised on all ranks, and reported by rank 0
