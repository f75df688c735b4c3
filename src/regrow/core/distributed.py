"""Several processes that train one network together, started by ``torchrun``.

Every rank does the same job in step. Rank 0 alone reads and writes results and speaks: what it
reads, the others get from it (``share``). Before ranks wait for each other's gradients they make
sure that none of them has run into a problem (``agree``), so that an error is raised on all.
"""

import gc
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from textwrap import shorten
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from regrow.errors import RanksLost, RegrowError, StoreError

T = TypeVar("T")

# What torchrun (and launchers like it) tells each process that it starts.
LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# A rank that ends is noticed at once, by its connections. One that is late is waited for: rank 0
# may be solving for a network's weights anew, or wait for another run's job.
PATIENCE = timedelta(days=7)


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process among those that train together; alone unless there are several."""

    rank: int = 0
    size: int = 1

    @property
    def together(self) -> bool:
        """True if there is more than one rank."""
        return self.size > 1

    @property
    def first(self) -> bool:
        """True for rank 0, which reads, writes and reports for all."""
        return self.rank == 0

    def share(self, make: Callable[[], T]) -> T:
        """Return what rank 0 makes, on every rank; what it raises instead is raised on every."""
        if not self.together:
            return make()
        box: list[Any] = [None]
        if self.first:
            try:
                box = [(make(), None)]
            except RegrowError as error:
                box = [(None, error)]
            except OSError as error:  # a full disk
                box = [(None, StoreError(f"{type(error).__name__}: {error}"))]
        _answered(lambda: dist.broadcast_object_list(box, src=0, device=torch.device("cpu")))
        value, problem = box[0]
        if problem is not None:
            raise problem
        shared: T = value
        return shared

    def agree(self, problem: RegrowError | None) -> None:
        """Raise the problem of any rank on every rank; of several, that of the lowest."""
        if self.together and self.most(int(problem is not None)):
            problems: list[RegrowError | None] = [None] * self.size
            _answered(lambda: dist.all_gather_object(problems, problem))
            problem = next(filter(None, problems))
        if problem is not None:
            raise problem

    @contextmanager
    def agreeing(self) -> Iterator[None]:
        """Do something on each rank, and agree afterwards that it went well."""
        problem: RegrowError | None = None
        try:
            yield
        except RegrowError as error:
            problem = error
        self.agree(problem)

    def most(self, number: int) -> int:
        """Return the greatest of the numbers that the ranks give."""
        if not self.together:
            return number
        box = torch.tensor(number)
        _answered(lambda: dist.all_reduce(box, dist.ReduceOp.MAX))
        return int(box)

    def add_(self, tensor: Tensor) -> None:
        """Make a tensor the sum of those of all ranks, in place, on its device."""
        if self.together:
            _answered(lambda: dist.all_reduce(tensor))


ALONE = Ranks()


def launched(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether this process was started as one of several ranks."""
    return all(environment.get(name) for name in LAUNCHED) and environment["WORLD_SIZE"] != "1"


def join() -> Ranks:
    """Meet the other ranks; returns when all are there."""
    # Before there is a group, because this module's functions have the group of that moment for a
    # default: imported later, as wrapping a network for several ranks does, they keep the group and
    # its threads beyond `leave`, and a thread that wants the interpreter while that ends aborts.
    import_module("torch.distributed.nn.functional")
    # Small messages and CPUs speak gloo, GPUs nccl - unless two ranks have to share one, which nccl
    # refuses.
    gpus, local = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpus >= local else "gloo", timeout=PATIENCE)
    return current()


def current() -> Ranks:
    """Return this process's place among those that it has joined."""
    if not (dist.is_available() and dist.is_initialized()):
        return ALONE
    return Ranks(rank=dist.get_rank(), size=dist.get_world_size())


def leave() -> None:
    """Part from the other ranks, in good order: together."""
    # Who tears its connections down while another still speaks may abort.
    current().most(0)
    gc.collect()  # a network that was wrapped for several ranks holds the group, and may be garbage
    dist.destroy_process_group()


def own_device(device: str) -> str:
    """Return the device that this rank takes where ``cuda`` is asked for: each its own."""
    if device != "cuda" or not current().together:
        return device
    return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"


def _answered(speak: Callable[[], object]) -> None:
    """Speak to the other ranks; if one has ended, nothing more can be done here."""
    try:
        speak()
    except RuntimeError as error:
        raise lost(error) from error


def lost(error: Exception) -> RanksLost:
    """Word that ranks cannot continue together, because of what happened to one of them."""
    reason = shorten(str(error).partition("\n")[0], 160)
    return RanksLost(
        f"The ranks cannot continue: another ended, or this one failed ({type(error).__name__}: "
        f"{reason}). What was saved is kept."
    )
