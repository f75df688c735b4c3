"""One training on several ranks: each takes its share of every batch, all take the same step.

The result does not depend on the number of ranks, except for the order of sums and the draws of
dropout: gradients are those of the whole batch, and batch norms use its statistics. A job therefore
has one key, and a training may be resumed with another number of ranks.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from inspect import signature
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules._functions import SyncBatchNorm
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from regrow.core.distributed import Ranks
from regrow.core.global_rng import drawing
from regrow.core.seeds import derive
from regrow.train.engine import Eager, Epoch
from regrow.train.step import Batch, Parts, update

# If a batch has fewer per rank, every rank takes all of it: a norm cannot train on one image, and
# the order of images must not depend on the number of ranks. Only an epoch's last batch can be one.
LEAST_IMAGES = 2
# The option to send rank 0's buffers before each forward pass; its name depends on torch's version.
_OPTIONS = signature(DistributedDataParallel.__init__).parameters
_NAME = next(name for name in ("forward_sync_buffers", "broadcast_buffers") if name in _OPTIONS)
KEEP_BUFFERS: Mapping[str, Any] = {_NAME: False}


def share_of(bounds: tuple[int, int], ranks: Ranks) -> tuple[int, int]:
    """Return the bounds of a rank's share of a batch; all of a batch that is too small to share.

    >>> [share_of((100, 110), Ranks(rank=rank, size=4)) for rank in range(4)]
    [(100, 102), (102, 105), (105, 107), (107, 110)]
    >>> share_of((100, 107), Ranks(rank=3, size=4))
    (100, 107)
    """
    start, num = bounds[0], bounds[1] - bounds[0]
    if num < LEAST_IMAGES * ranks.size:
        return bounds
    return tuple(start + num * rank // ranks.size for rank in (ranks.rank, ranks.rank + 1))  # type: ignore[return-value]


class InStep:
    """An engine that takes each step together with the other ranks."""

    def __init__(self, parts: Parts, ranks: Ranks) -> None:
        # Gradients are averaged during the backward pass. Buffers are equal on all ranks anyway.
        # Static: the same parameters get gradients in every step, though perhaps not all of them.
        network = DistributedDataParallel(parts.model, static_graph=True, **KEEP_BUFFERS)
        self._parts = replace(parts, network=network)
        self._ranks = ranks
        self._shares = [share_of(bounds, ranks) for bounds in parts.bounds]
        self._eager = Eager(self._parts, bounds=self._shares)

    def begin(self, epoch: Epoch) -> None:
        """Set the epoch whose steps are taken next."""
        self._eager.begin(epoch)

    def step(self, place: int, *, seed: int) -> None:
        """Gather a share, make sure that all ranks have theirs, and update by the whole batch."""
        batch = self._fetch(place)
        parts, size, moment = self._parts, self._ranks.size, self._eager.moment(place)
        alike = self._shares[place] == parts.bounds[place]
        count = parts.objective.count(batch.labels)
        # This rank's part of the mean over the batch - times the number of ranks, because gradients
        # are averaged.
        whole = count if alike else self._sum(count, place)
        weight = 1.0 if alike else count * size / whole
        if not (alike or self._ranks.first):
            seed = derive(seed, "rank", self._ranks.rank)
        norms = nullcontext() if alike else over_ranks(parts.model, self._ranks)
        with norms:
            loss = update(
                parts,
                batch,
                self._eager.numbers(place),
                moment=moment,
                random=drawing(seed, device=parts.device),
                weight=weight,
                change_masks=parts.changes_masks(moment),
            )
        loss *= weight / size
        self._ranks.add_(loss)
        parts.losses[place] = loss
        if parts.counts is not None:
            parts.counts[place] = whole

    def _sum(self, count: int | Tensor, place: int) -> int | Tensor:
        """Return the number of loss terms in the whole batch; for images, without communication."""
        if not isinstance(count, Tensor):
            start, end = self._parts.bounds[place]
            return end - start
        total = count.clone()
        self._ranks.add_(total)
        return total.clamp(min=1)

    def _fetch(self, place: int) -> Batch:
        with self._ranks.agreeing():  # a read error may occur on one rank alone
            return self._eager.fetch(place)


# Norms --------------------------------------------------------------------------------------------


@contextmanager
def over_ranks(model: nn.Module, ranks: Ranks) -> Iterator[None]:
    """Make training batch norms use statistics over the images of all ranks while active.

    The modules keep their types, so methods that look for batch norms find them.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    for norm in norms:
        vars(norm)["forward"] = partial(_normed, norm, ranks)
    try:
        yield
    finally:
        for norm in norms:
            del vars(norm)["forward"]


def _normed(norm: _BatchNorm, ranks: Ranks, x: Tensor) -> Tensor:
    """Apply a batch norm; in training, with the statistics of all ranks' batches."""
    if not norm.training:
        return type(norm).forward(norm, x)
    factor = _update_factor(norm)
    if x.device.type == "cuda":
        result: Tensor = SyncBatchNorm.apply(
            x,
            norm.weight,
            norm.bias,
            norm.running_mean,
            norm.running_var,
            norm.eps,
            factor,
            dist.group.WORLD,
            ranks.size,
        )
        return result
    dims = [dim for dim in range(x.ndim) if dim != 1]
    shape = [-1 if dim == 1 else 1 for dim in range(x.ndim)]
    values = x.float()
    count = ranks_sum(x.new_full((1,), x.numel() / x.shape[1], dtype=torch.float32), ranks)
    mean = ranks_sum(values.sum(dims), ranks) / count  # [C]
    centred = values - mean.view(shape)
    var = ranks_sum(centred.square().sum(dims), ranks) / count
    if norm.running_mean is not None and norm.running_var is not None:
        with torch.no_grad():
            norm.running_mean.lerp_(mean, factor)
            norm.running_var.lerp_(var * count / (count - 1), factor)
    result = centred * torch.rsqrt(var + norm.eps).view(shape)
    if norm.affine:
        result = result * norm.weight.view(shape) + norm.bias.view(shape)
    return result.to(x.dtype)


def _update_factor(norm: _BatchNorm) -> float:
    """Count a batch, and return the share of the running statistics that it replaces."""
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if norm.momentum is None:
            return 1.0 / float(norm.num_batches_tracked)
    return norm.momentum or 0.0


def ranks_sum(tensor: Tensor, ranks: Ranks) -> Tensor:
    """Return the sum of a tensor over all ranks; its gradient is the sum of theirs."""
    result: Tensor = _SumOverRanks.apply(tensor, ranks)
    return result


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        total = tensor.clone()
        ranks.add_(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = gradients[0].clone()
        ctx.ranks.add_(total)
        return total, None
