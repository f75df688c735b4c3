"""A forecast of a smaller network's speed-up, from timing the unpruned one alone.

Each operation of the unpruned network is timed. Its time beyond the cost of launching such an
operation is proportional to its work: its multiply-accumulates or, if it has none, the numbers that
it reads and writes. Convolutions work on blocks of channels, so a partial block counts as a whole
one. The time that Python takes between operations does not change.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn

from regrow.cost.operations import name_of, products, tensors_in
from regrow.surgery.dispatch import OperationMode
from regrow.surgery.tape import call, evaluating, uncompiled

STARTS = 20  # runs of tiny operations, of which the fastest counts
RUNS = 5  # runs of the network, of which the fastest counts
MOST_BETWEEN = 50e-6  # seconds of Python per operation; more is other load on the machine
BLOCKS = {"AVX512": 16, "AVX2": 8}  # channels that oneDNN computes together


@dataclass(frozen=True)
class Work:
    """One operation: its name, its amount of work, and the seconds that it took."""

    name: str
    amount: float
    seconds: float
    is_view: bool


def forecast(
    before: nn.Module, after: nn.Module, inputs: Any, *, seconds: float | None = None
) -> float:
    """Return the expected speed-up of a smaller network on a CPU.

    ``seconds`` is the shortest time of the unpruned network without the timing of its operations;
    if it is not given, the time between operations counts as zero.
    """
    runs = [_watched(before, inputs) for _ in range(RUNS)]
    old = min(runs, key=lambda works: sum(work.seconds for work in works))
    taken = [work.seconds for work in old]
    new = _watched(after, inputs)
    starts, ratios = _starts(), _ratios(old, new)
    left = 0.0
    for time_taken, work, ratio in zip(taken, old, ratios, strict=True):
        start = starts.get(work.name, starts["add"])
        goes = 0.0 if work.is_view else max(time_taken - start, 0.0)
        left += time_taken - goes * (1.0 - ratio)
    num = sum(not work.is_view for work in old)
    between = min(max((seconds or 0.0) - sum(taken), 0.0), num * MOST_BETWEEN)
    return (sum(taken) + between) / (left + between) if left + between > 0.0 else 1.0


def _starts() -> dict[str, float]:
    """Return the seconds to launch an operation, by name: its time on tiny tensors."""
    watch, x, weight = _Watch(), torch.zeros(1, 8), torch.zeros(8, 8)
    with torch.no_grad(), watch:
        for _ in range(STARTS):
            torch.add(x, x)
            torch.addmm(x[0], x, weight)
            torch.mm(x, weight)
            torch.conv2d(x[..., None, None], weight[..., None, None])
    names = dict.fromkeys(work.name for work in watch.works)
    return {name: min(w.seconds for w in watch.works if w.name == name) for name in names}


def _ratios(old: Sequence[Work], new: Sequence[Work]) -> list[float]:
    """Return the remaining share of each operation's work: singly, or by name if they differ."""
    if [work.name for work in old] == [work.name for work in new]:
        pairs = zip(old, new, strict=True)
        return [b.amount / a.amount if a.amount else 1.0 for a, b in pairs]
    totals = [_totals(works) for works in (old, new)]
    return [
        totals[1].get(work.name, 0.0) / totals[0][work.name] if totals[0][work.name] else 1.0
        for work in old
    ]


def _totals(works: Sequence[Work]) -> Mapping[str, float]:
    totals: dict[str, float] = {}
    for work in works:
        totals[work.name] = totals.get(work.name, 0.0) + work.amount
    return totals


def _watched(network: nn.Module, inputs: Any) -> list[Work]:
    watch = _Watch()
    with evaluating(network), torch.no_grad(), uncompiled(), watch:
        call(network, inputs)
    return watch.works


class _Watch(OperationMode):
    """Times each ATen operation, and measures its work."""

    def __init__(self) -> None:
        super().__init__()
        self.works: list[Work] = []

    def run(self, operation: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        began = time.perf_counter()
        result = operation(*args, **kwargs)
        seconds = time.perf_counter() - began
        self.works.append(
            Work(name_of(operation), _amount(operation, args, result), seconds, operation.is_view)
        )
        return result


def _amount(func: Any, args: tuple[Any, ...], result: Any) -> float:
    multiplications = products(func, args, result)
    if multiplications:
        return sum(product.macs for product in multiplications) * _filling(func, args)
    return float(sum(x.numel() for x in (*tensors_in(args), *tensors_in([result]))))


def _filling(func: Any, args: tuple[Any, ...]) -> float:
    """Return the factor by which a convolution computes more, in whole blocks of channels."""
    if "convolution" not in name_of(func) or not isinstance(args[1], Tensor) or args[1].dim() < 3:
        return 1.0
    block = BLOCKS.get(torch.backends.cpu.get_cpu_capability(), 1)
    factor = 1.0
    for size in args[1].shape[:2]:
        if size >= block:  # narrower ones have kernels of their own
            factor *= ceil(size / block) * block / size
    return factor
