"""Norm, ReLU and convolution as one operation on maps, forward and backward, in float32 on a CPU.

The map between ReLU and convolution is never written: it is computed while the convolution reads
it, and again in the backward pass.

The gradient of a norm's input x is factor * g + line, where g is the gradient of the ReLU's input,
and the line, linear in x, depends on sums of g over the whole batch. So a gradient is passed on in
two parts: a map, and the ``Missing`` line.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from regrow.models.fused import addresses
from regrow.train import tiled
from regrow.train.maps import Map, room


class NormedConvolution(NamedTuple):
    """Norm, ReLU and convolution, applied in this order."""

    norm: nn.BatchNorm2d
    relu: nn.Module
    conv: nn.Conv2d


Chain = tuple[NormedConvolution, ...]  # what a layer or block computes of the stream


class Remembered(NamedTuple):
    """Data for a unit's backward pass: its input, and the statistics of its norm."""

    x: Map
    saved: Any  # float64 [4, channels], as of ``kernels.statistics``
    lines: Tensor  # factor, offset and mean: whole vectors of channels
    weight: Tensor  # of the convolution


class Missing(NamedTuple):
    """The missing part of a gradient: slope * map + constant."""

    x: Map
    slope: Any  # float64 [channels]
    constant: Any

    def rows(self) -> Tensor:
        """Return slopes and constants for kernels."""
        return in_vectors(np.stack([self.slope, self.constant]))


def forward(
    chain: Chain, x: Map, moments: Any, out: Map, *, added: Map | None = None
) -> tuple[list[Remembered], Any]:
    """Write the output of a chain of units; return what backward needs and the output's moments."""
    steps = []
    for unit in chain:
        step = step_of(unit, x, moments)
        last = unit is chain[-1]
        y = out if last else Map.empty(x.size, unit.conv.out_channels)
        moments = _convolve(step, y, added if last else None)
        steps.append(step)
        x = y
    return steps, moments


def step_of(unit: NormedConvolution, x: Map, moments: Any) -> Remembered:
    """Return what a unit's backward pass needs, and update its norm's running statistics."""
    from regrow.models import kernels

    norm, saved = unit.norm, np.empty((4, x.channels))
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    moments = np.ascontiguousarray(moments)
    kernels.statistics(x.pixels, moments, addresses(norm), norm.eps, norm.momentum, saved)
    return Remembered(x, saved, in_vectors(saved[[2, 3, 0]]), unit.conv.weight)


def _convolve(step: Remembered, y: Map, added: Map | None) -> Any:
    """Write a convolution of relu(norm(map)), and return its moments."""
    from regrow.models import pointwise
    from regrow.models.vectors import LANES
    from regrow.models.winograd import padded

    moments = np.empty((3, y.channels))
    if step.weight.shape[2:] != (1, 1):
        tiled.convolve(step.x, step.weight, y, lines=step.lines)
        find_moments(y, moments)
        return moments
    outputs, inputs = step.weight.shape[:2]
    lanes = padded(outputs)
    weight = step.weight.new_zeros(lanes, inputs)
    weight[:outputs] = step.weight.flatten(1)
    vectors = weight.view(-1, LANES, inputs).transpose(1, 2).contiguous()
    pointwise.convolve(
        step.x.address,
        step.x.rows,
        step.lines.data_ptr(),
        vectors.data_ptr(),
        0 if added is None else added.address,
        y.address,
        (outputs, y.between),
        room(pointwise.room_of(inputs, outputs)).data_ptr(),
        moments,
    )
    return moments


def backward(
    steps: list[Remembered], grad: Map, line: Missing | None, to: Map
) -> tuple[list[Tensor], Missing]:
    """Add the gradient of the units' input to the map ``to``, except for its missing line.

    ``grad`` is the gradient of their output, and ``line`` what is missing of it. Returns the
    gradients of their parameters, and the missing line of the input's gradient.
    """
    gradients: list[Tensor] = []
    for step in reversed(steps):
        adding = step is steps[0]
        of_x = to if adding else Map.empty(step.x.size, step.x.channels)
        sums = np.zeros((2, step.lines.shape[1]))
        behind = tiled.Behind(step.x, step.lines, adding, sums)
        if step.weight.shape[2:] == (1, 1):
            of_weight = _gradients_of_product(step, grad, line, of_x, behind)
        else:
            if line is not None:
                whole = grad.channels == grad.between
                straight = grad if whole else Map.empty(grad.size, grad.channels)
                straighten(grad, line, straight)
                grad = straight
            of_weight = tiled.gradient_of_weight(step.x, grad, lines=step.lines)
            tiled.gradient_of_map(grad, step.weight, of_x, behind=behind)
        of_norm, line = norm_gradients(step, sums)
        gradients = [*of_norm, of_weight, *gradients]
        grad = of_x
    assert line is not None
    return gradients, line


def _gradients_of_product(
    step: Remembered, grad: Map, line: Missing | None, of_x: Map, behind: tiled.Behind
) -> Tensor:
    """Write the gradient of the map ``behind`` a 1x1 convolution; return that of its weight."""
    from regrow.models import pointwise
    from regrow.models.vectors import LANES
    from regrow.models.winograd import padded

    outputs, inputs = step.weight.shape[:2]
    lanes, rows = padded(inputs), padded(outputs)
    weight = step.weight.new_zeros(outputs, lanes)
    weight[:, :inputs] = step.weight.flatten(1)
    vectors = weight.view(outputs, -1, LANES).transpose(0, 1).contiguous()
    of_weight = torch.empty(lanes // LANES, rows, LANES)
    missing = None if line is None else line.rows()
    pointwise.gradients(
        step.x.address,
        step.x.rows,
        step.lines.data_ptr(),
        vectors.data_ptr(),
        grad.address,
        (outputs, grad.between),
        (0, 0) if line is None or missing is None else (line.x.address, missing.data_ptr()),
        of_x.address,
        behind.adding,
        of_weight.data_ptr(),
        behind.sums,
        room(pointwise.room_of(inputs, outputs)).data_ptr(),
    )
    found = of_weight[:, :outputs].transpose(0, 1).flatten(1)[:, :inputs]
    return found.contiguous().view_as(step.weight)


def norm_gradients(step: Remembered, sums: Any) -> tuple[list[Tensor], Missing]:
    """Return the gradients of a norm's parameters, and the missing part of its input's gradient."""
    from regrow.models import kernels

    channels = step.x.channels
    of_weight, of_bias = torch.empty(channels), torch.empty(channels)
    slope, constant = kernels.line(
        step.x.pixels, sums[0], sums[1], step.saved, of_weight.numpy(), of_bias.numpy()
    )
    return [of_weight, of_bias], Missing(step.x, slope, constant)


def straighten(grad: Map, line: Missing, out: Map) -> None:
    """Write a gradient with its missing part added, in float32 or bfloat16."""
    if out.data.dtype == torch.float32:  # the kernels of the other type are then not compiled
        from regrow.models.pointwise import straighten as write
    else:
        from regrow.models.streams import straighten as write
    assert grad.between == line.x.between
    rows = line.rows()
    write(grad.address, line.x.address, rows.data_ptr(), grad.rows, out.address, out.between)


def find_moments(x: Map, moments: Any) -> None:
    """Write the moments of a map: ``[3, channels]``, as ``kernels.statistics`` wants them."""
    from regrow.models import pointwise
    from regrow.models.winograd import padded

    num = 3 * padded(x.channels)
    pointwise.moments(x.address, x.rows, room(num).data_ptr(), moments)


def place(x: Tensor, to: Map) -> Any:
    """Copy a tensor to a map, and return its moments."""
    to.tensor().copy_(x)
    moments = np.empty((3, to.channels))
    find_moments(to, moments)
    return moments


def in_vectors(rows: Any) -> Tensor:
    """Return rows of channels as float32, padded with zeros to whole vectors."""
    from regrow.models.winograd import padded

    found = torch.zeros(len(rows), padded(rows.shape[1]))
    found.numpy()[:, : rows.shape[1]] = rows
    return found
