"""Norm, ReLU and convolution on bfloat16 maps, forward and backward, as in ``units``.

The convolutions are PyTorch's, which multiplies bfloat16 in tiles (AMX) if the processor can. So
the map between ReLU and convolution is written, and kept for the backward pass; all else is as in
``units``: a channel's statistics are computed once, the output of a chain is written into a wider
map in place, and gradients are added to a wider map in one pass, except for their ``Missing`` part.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from regrow.train.maps import Map, room
from regrow.train.units import Chain, Missing, Remembered, norm_gradients, step_of, straighten

SHORT = torch.bfloat16


class ShortStep(NamedTuple):
    """Data for a unit's backward pass: those of ``units``, and its convolution's input."""

    of_norm: Remembered
    read: Tensor
    near: Tensor  # the convolution's kernel, in bfloat16

    @property
    def x(self) -> Map:
        """The input of the unit."""
        return self.of_norm.x

    @property
    def weight(self) -> Tensor:
        """The weight of the convolution."""
        return self.of_norm.weight


def forward(chain: Chain, x: Map, moments: Any, out: Map) -> tuple[list[ShortStep], Any]:
    """Write the output of a chain of units; return what backward needs and the output's moments."""
    from regrow.models import streams

    steps = []
    for unit in chain:
        of_norm = step_of(unit, x, moments)
        y = Map.empty(x.size, x.channels, SHORT)
        streams.rectify(x.address, x.rows, of_norm.lines.data_ptr(), y.address)
        near = unit.conv.weight.to(SHORT, memory_format=torch.channels_last)
        read = y.tensor()
        made = F.conv2d(read, near, padding=unit.conv.padding)
        steps.append(ShortStep(of_norm, read, near))
        x = out if unit is chain[-1] else Map.empty(x.size, made.shape[1], SHORT)
        moments = place(made, x)
    return steps, moments


def backward(
    steps: list[ShortStep], grad: Map, line: Missing | None, to: Map
) -> tuple[list[Tensor], Missing]:
    """Add the gradient of the units' input to the map ``to``, as in ``units``."""
    from regrow.models import streams

    gradients: list[Tensor] = []
    for step in reversed(steps):
        assert line is not None
        straight = Map.empty(grad.size, grad.channels, SHORT)
        straighten(grad, line, straight)
        of_read, of_weight, _ = torch.ops.aten.convolution_backward(
            *(straight.tensor(), step.read, step.near, None),
            *([1, 1], _around(step), [1, 1], False, [0, 0], 1, [True, True, False]),
        )
        of_read = of_read.contiguous(memory_format=torch.channels_last)
        adding = step is steps[0]
        of_x = to if adding else Map.empty(step.x.size, step.x.channels, SHORT)
        sums = np.zeros((2, step.x.channels))
        streams.back(
            step.x.address,
            step.x.rows,
            step.of_norm.lines.data_ptr(),
            of_read.data_ptr(),
            of_x.address,
            adding,
            sums,
            room(4 * step.of_norm.lines.shape[1]).data_ptr(),
        )
        found, line = norm_gradients(step.of_norm, sums)
        gradients = [*found, of_weight.float(), *gradients]
        grad = of_x
    assert line is not None
    return gradients, line


def place(x: Tensor, to: Map) -> Any:
    """Copy a tensor to a map, and return its moments."""
    from regrow.models import streams
    from regrow.models.winograd import padded

    moments = np.empty((3, to.channels))
    x = x.contiguous(memory_format=torch.channels_last)
    scratch = room(4 * padded(to.channels)).data_ptr()
    streams.place(x.data_ptr(), to.address, to.rows, scratch, moments)
    return moments


def _around(step: ShortStep) -> list[int]:
    """Return the padding that keeps a map's size."""
    return [num // 2 for num in step.near.shape[2:]]
