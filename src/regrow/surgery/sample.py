"""A few numbers of what a network computes, by which it is noticed that its code has changed."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from regrow.core.seeds import seeded
from regrow.errors import TraceError
from regrow.surgery.alive import called, drawn_like
from regrow.surgery.cut import duplicate
from regrow.surgery.tape import eagerly, is_dense, output_tensors

NUDGE, STEADY = 1e-5, 1e-3  # a change of the inputs, and the largest one that may come of it
FAR = 1e-2  # a difference, relative to the largest number, that no other machine's rounding makes

Sample = list[list[float]]


def sample(model: nn.Module, example: Any) -> Sample | None:
    """Return the mean and the mean magnitude of each output, on drawn inputs like an example.

    None if the network does not run on them, or if they vary: it draws random numbers, say.
    """
    inputs = drawn_like(example, seeded(0, "sample"))
    try:
        copy = duplicate(model).cpu()
        with eagerly():
            first, second = (_summary(copy, x) for x in (inputs, tree_map(_nudged, inputs)))
    except (TraceError, RuntimeError):  # of the network, or because the CPU is not for it
        return None
    return first if first and distance(first, second) <= STEADY else None


def is_sample(value: object) -> bool:
    """Return whether a value is of the form of a sample."""
    return isinstance(value, list) and all(
        isinstance(row, list) and len(row) == 2 and all(isinstance(x, float) for x in row)
        for row in value
    )


def distance(one: Sample, other: Sample) -> float:
    """Return the largest difference of two samples, relative to the largest number of an output."""
    if len(one) != len(other):
        return math.inf
    return max(
        abs(a - b) / max(x[1], y[1], torch.finfo(torch.float32).tiny)
        for x, y in zip(one, other, strict=True)
        for a, b in zip(x, y, strict=True)
    )


def _summary(model: nn.Module, inputs: Any) -> Sample:
    """Return the mean and the mean magnitude of each output; nothing if one is not finite."""
    found: Sequence[Tensor] = [
        x.double()
        for x in output_tensors(called(model, inputs))
        if is_dense(x) and x.is_floating_point() and x.numel()
    ]
    rows = [[float(x.mean()), float(x.abs().mean())] for x in found]
    return rows if all(map(math.isfinite, tree_leaves(rows))) else []


def _nudged(leaf: Any) -> Any:
    return leaf * (1 + NUDGE) if is_dense(leaf) and leaf.is_floating_point() else leaf
