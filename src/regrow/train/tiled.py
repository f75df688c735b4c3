"""3x3 convolutions of maps by ``regrow/models/winograd.py``, and their gradients."""

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from regrow.train.maps import Map, room

NO_SUMS = np.zeros((0, 0))


class Behind(NamedTuple):
    """The map whose norm and ReLU a gradient is passed back through."""

    x: Map
    lines: Tensor  # of its norm: factor, offset and mean
    adding: bool  # whether to add to what is there, instead of overwriting it
    sums: Any  # float64 [2, channels]: of the gradient g of the ReLU's input, and of g * (x - mean)


def convolve(x: Map, weight: Tensor, y: Map, *, lines: Tensor | None = None) -> None:
    """Write the convolution of a map, or of relu(norm(map)) if ``lines`` of a norm are given."""
    from regrow.models import winograd

    outputs, inputs = weight.shape[:2]
    near = weight.permute(0, 2, 3, 1).contiguous()
    kernel = torch.empty(inputs, 3, 3, winograd.padded(outputs))
    winograd.turn_over(near.data_ptr(), (outputs, inputs), kernel.data_ptr())
    _apply(x, kernel, y, turned=False, lines=lines)


def gradient_of_map(grad: Map, weight: Tensor, of_x: Map, *, behind: Behind | None = None) -> None:
    """Write the gradient of a convolution's input, or of the map ``behind`` its norm and ReLU."""
    from regrow.models import winograd

    inputs = weight.shape[1]
    kernel = F.pad(weight.permute(0, 2, 3, 1), (0, winograd.padded(inputs) - inputs))
    _apply(grad, kernel.contiguous(), of_x, turned=True, behind=behind)


def gradient_of_weight(x: Map, grad: Map, *, lines: Tensor | None = None) -> Tensor:
    """Return the gradient of a kernel ``[outputs, inputs, 3, 3]``."""
    from regrow.models import winograd

    lanes, outputs = winograd.padded(x.channels), grad.channels
    sums = torch.empty(winograd.PLACES * winograd.padded(outputs) * lanes)
    found = torch.empty(outputs, 3, 3, lanes)
    strips = winograd.strips_of(x.shape, outputs)
    winograd.kernel_gradient(
        x.address,
        x.shape,
        _address(lines),
        grad.address,
        outputs,
        strips,
        room(winograd.room_of(x.shape, outputs, strips)).data_ptr(),
        sums.data_ptr(),
        found.data_ptr(),
    )
    return found[..., : x.channels].permute(0, 3, 1, 2)


def _apply(
    x: Map,
    kernel: Tensor,
    y: Map,
    *,
    turned: bool,
    lines: Tensor | None = None,
    behind: Behind | None = None,
) -> None:
    """Convolve a map by a kernel ``[inputs, 3, 3, outputs]``, outputs padded to whole vectors."""
    from regrow.models import winograd

    inputs, lanes = kernel.shape[0], kernel.shape[-1]
    changed = torch.empty(winograd.PLACES * inputs * lanes)
    winograd.change_kernel(kernel.data_ptr(), (inputs, lanes), turned, changed.data_ptr())
    strips = winograd.strips_of(x.shape, y.channels)
    of_behind, sums = (0, 0, 0), NO_SUMS
    if behind is not None:
        assert behind.x.between == y.between
        of_behind = behind.x.address, behind.lines.data_ptr(), int(behind.adding)
        sums = behind.sums
    winograd.convolve(
        x.address,
        x.shape,
        _address(lines),
        changed.data_ptr(),
        y.address,
        (y.channels, y.between),
        of_behind,
        sums,
        strips,
        room(winograd.room_of(x.shape, y.channels, strips)).data_ptr(),
    )


def _address(lines: Tensor | None) -> int:
    return 0 if lines is None else lines.data_ptr()
