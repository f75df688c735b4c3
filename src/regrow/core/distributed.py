"""Several processes (ranks) that train one network together, started by ``torchrun``.

All ranks run the same job in lockstep. Only rank 0 reads and writes results and prints; it sends
what it reads to the others (``share``). Before ranks wait for each other's gradients, they check
that none has met a problem (``agree``), so that an error is raised on all ranks.
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

# Environment variables that torchrun (and similar launchers) set for each process.
LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# A rank that ends is noticed at once, because its connections close. A late rank is waited for:
# rank 0 may be reconstructing weights, or waiting for another run's job.
PATIENCE = timedelta(days=7)


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """The rank of this process and the number of ranks; by default a single process."""

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
        """Call ``make`` on rank 0, and return its result or raise its error on every rank."""
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
        """Raise any rank's problem on every rank; if several have one, that of the lowest rank."""
        if self.together and self.most(int(problem is not None)):
            problems: list[RegrowError | None] = [None] * self.size
            _answered(lambda: dist.all_gather_object(problems, problem))
            problem = next(filter(None, problems))
        if problem is not None:
            raise problem

    @contextmanager
    def agreeing(self) -> Iterator[None]:
        """Run the block on each rank; if it failed on any of them, raise on all."""
        problem: RegrowError | None = None
        try:
            yield
        except RegrowError as error:
            problem = error
        self.agree(problem)

    def most(self, number: int) -> int:
        """Return the maximum of ``number`` over all ranks."""
        if not self.together:
            return number
        box = torch.tensor(number)
        _answered(lambda: dist.all_reduce(box, dist.ReduceOp.MAX))
        return int(box)

    def add_(self, tensor: Tensor) -> None:
        """Sum a tensor over all ranks, in place, on its device."""
        if self.together:
            _answered(lambda: dist.all_reduce(tensor))


ALONE = Ranks()


def launched(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether this process was started as one of several ranks."""
    return all(environment.get(name) for name in LAUNCHED) and environment["WORLD_SIZE"] != "1"


def join() -> Ranks:
    """Join the process group; returns when all ranks have joined."""
    # Imported before the group exists, because the default arguments of this module's functions
    # capture the current group. Imported later (as wrapping a network in DistributedDataParallel
    # does), they keep the group and its threads alive beyond `leave`, and a thread that needs the
    # interpreter during its shutdown aborts the process.
    import_module("torch.distributed.nn.functional")
    # Small messages and CPUs use gloo, GPUs nccl, unless ranks share a GPU, which nccl refuses.
    gpus, local = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpus >= local else "gloo", timeout=PATIENCE)
    return current()


def current() -> Ranks:
    """Return this process's rank in its group; ``ALONE`` without a group."""
    if not (dist.is_available() and dist.is_initialized()):
        return ALONE
    return Ranks(rank=dist.get_rank(), size=dist.get_world_size())


def leave() -> None:
    """Leave the process group, together with the other ranks."""
    # A barrier, because closing connections while another rank still communicates may abort.
    current().most(0)
    gc.collect()  # an unreferenced network wrapped for several ranks would keep the group alive
    dist.destroy_process_group()


def own_device(device: str) -> str:
    """Return this rank's device: ``cuda`` becomes its own GPU, such as ``cuda:1``."""
    if device != "cuda" or not current().together:
        return device
    return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"


def _answered(speak: Callable[[], object]) -> None:
    """Communicate with the other ranks; raise ``RanksLost`` if that fails, e.g. one has ended."""
    try:
        speak()
    except RuntimeError as error:
        raise lost(error) from error


def lost(error: Exception) -> RanksLost:
    """Return the error that the ranks cannot continue, because one of them failed."""
    reason = shorten(str(error).partition("\n")[0], 160)
    return RanksLost(
        f"The ranks cannot continue: another ended, or this one failed ({type(error).__name__}: "
        f"{reason}). Saved results and checkpoints are kept."
    )
