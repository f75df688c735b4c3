"""Convolutions in float32 on a CPU in less time than PyTorch's.

Those of 3x3 in fewer multiplications (``regrow/models/winograd.py`` has the arithmetic), over small
maps and of 1x1 as products of matrices. Their results are those of a convolution but for rounding:
single results are off by some 1e-5 of the largest, where PyTorch's own are by 1e-6.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from regrow.train.small_maps import computed_by, product

LAST = torch.channels_last
FEWEST_CHANNELS = 8
TILED_PIXELS = 3  # of a map's side, at least; smaller maps are products of matrices
_memory = threading.local()  # that kernels work in, one a thread


@contextmanager
def fast_convolutions(model: nn.Module) -> Iterator[None]:
    """Let a network's convolutions be computed so where that is faster.

    For a forward pass in float32; the modules stay what they are.
    """
    with computed_by(_convolved, model, _applies):
        yield


def _applies(module: nn.Conv2d) -> bool:
    return (
        module.stride == (1, 1)
        and module.dilation == (1, 1)
        and module.groups == 1
        and module.padding_mode == "zeros"
        and (module.kernel_size, module.padding) in (((3, 3), (1, 1)), ((1, 1), (0, 0)))
        and min(module.in_channels, module.out_channels) >= FEWEST_CHANNELS
    )


def _convolved(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Return what a convolution returns."""
    weight, bias = conv.weight, conv.bias
    if not (
        x.dim() == 4
        and x.shape[1] == conv.in_channels
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and x.numel() > 0
        and x.is_contiguous(memory_format=LAST)
        and not torch.is_autocast_enabled("cpu")
    ):
        return type(conv).forward(conv, x)
    if conv.kernel_size == (1, 1):
        return F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)
    if max(x.shape[2:]) < TILED_PIXELS:
        return product(conv, x)
    y: Tensor = _TiledConvolution.apply(x, weight)
    return y if bias is None else y + bias[:, None, None]


class _TiledConvolution(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        from regrow.models import winograd

        ctx.save_for_backward(x, weight)
        outputs, inputs = weight.shape[:2]
        near = weight.permute(0, 2, 3, 1).contiguous()
        kernel = torch.empty(inputs, 3, 3, winograd.padded(outputs))
        winograd.turn_over(near.data_ptr(), (outputs, inputs), kernel.data_ptr())
        return _apply(x, kernel, outputs, turned=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        from regrow.models import winograd

        x, weight = ctx.saved_tensors
        grad = grad.contiguous(memory_format=LAST)
        of_x = of_weight = None
        if ctx.needs_input_grad[0]:
            inputs = weight.shape[1]
            kernel = F.pad(weight.permute(0, 2, 3, 1), (0, winograd.padded(inputs) - inputs))
            of_x = _apply(grad, kernel.contiguous(), inputs, turned=True)
        if ctx.needs_input_grad[1]:
            of_weight = _gradient_of_weight(x, grad)
        return of_x, of_weight


def _apply(x: Tensor, kernel: Tensor, outputs: int, *, turned: bool) -> Tensor:
    """Convolve a map by a kernel ``[inputs, 3, 3, outputs]``, outputs as whole vectors."""
    from regrow.models import winograd

    inputs, lanes = kernel.shape[0], kernel.shape[-1]
    shape = _shape(x)
    changed = torch.empty(winograd.PLACES * inputs * lanes)
    winograd.change_kernel(kernel.data_ptr(), (inputs, lanes), turned, changed.data_ptr())
    y = torch.empty((len(x), outputs, *x.shape[2:]), memory_format=LAST)
    strips = winograd.strips_of(shape, outputs)
    room = _room(winograd.room_of(shape, outputs, strips))
    winograd.convolve(
        x.data_ptr(), shape, changed.data_ptr(), y.data_ptr(), outputs, strips, room.data_ptr()
    )
    return y


def _gradient_of_weight(x: Tensor, grad: Tensor) -> Tensor:
    from regrow.models import winograd

    shape, inputs, outputs = _shape(x), x.shape[1], grad.shape[1]
    lanes = winograd.padded(inputs)
    sums = torch.empty(winograd.PLACES * winograd.padded(outputs) * lanes)
    found = torch.empty(outputs, 3, 3, lanes)
    strips = winograd.strips_of(shape, outputs)
    room = _room(winograd.room_of(shape, outputs, strips))
    winograd.kernel_gradient(
        x.data_ptr(),
        shape,
        grad.data_ptr(),
        outputs,
        strips,
        room.data_ptr(),
        sums.data_ptr(),
        found.data_ptr(),
    )
    return found[..., :inputs].permute(0, 3, 1, 2)


def _shape(x: Tensor) -> tuple[int, int, int, int]:
    images, channels, height, width = x.shape
    return images, height, width, channels


def _room(num: int) -> Tensor:
    """Return room for so many numbers, kept from call to call."""
    room: Tensor | None = getattr(_memory, "room", None)
    if room is None or len(room) < num:
        room = _memory.room = torch.zeros(num)  # a block's last rows are computed with, not read
    return room
