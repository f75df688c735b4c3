"""3x3 convolutions in float32 on a CPU in fewer multiplications than PyTorch's.

``regrow/models/winograd.py`` has the arithmetic. Their results are those of a convolution but for
rounding: of single results some 1e-5 of the largest, where PyTorch's own is off by 1e-6.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

LAST = torch.channels_last
FEWEST_CHANNELS = 8
FEWEST_PIXELS = 3  # of a map's side
_memory = threading.local()  # that kernels work in, one a thread


@contextmanager
def fast_convolutions(model: nn.Module) -> Iterator[None]:
    """Let a network's 3x3 convolutions be computed so where that is faster.

    For a forward pass in float32; the modules stay what they are.
    """
    modules = (module for module in model.modules() if isinstance(module, nn.Conv2d))
    convs = [module for module in modules if _applies(module)]
    for conv in convs:
        vars(conv)["forward"] = partial(_convolved, conv)
    try:
        yield
    finally:
        for conv in convs:
            del vars(conv)["forward"]


def _applies(module: nn.Conv2d) -> bool:
    return (
        type(module) is nn.Conv2d  # no other kind, which may compute something else
        and module.kernel_size == (3, 3)
        and module.stride == (1, 1)
        and module.padding == (1, 1)
        and module.dilation == (1, 1)
        and module.groups == 1
        and module.padding_mode == "zeros"
        and min(module.in_channels, module.out_channels) >= FEWEST_CHANNELS
        and "forward" not in vars(module)
    )


def _convolved(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Return what a convolution returns."""
    weight, bias = conv.weight, conv.bias
    if not (
        x.dim() == 4
        and x.shape[1] == conv.in_channels
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and min(x.shape[2:]) >= FEWEST_PIXELS
        and len(x) > 0
        and x.is_contiguous(memory_format=LAST)
        and not torch.is_autocast_enabled("cpu")
    ):
        return type(conv).forward(conv, x)
    y: Tensor = _TiledConvolution.apply(x, weight)
    return y if bias is None else y + bias[:, None, None]


class _TiledConvolution(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        # [inputs, 3, 3, outputs]: the outputs are what lies side by side.
        return _apply(x, weight.permute(1, 2, 3, 0), turned=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        grad = grad.contiguous(memory_format=LAST)
        of_x = of_weight = None
        if ctx.needs_input_grad[0]:
            of_x = _apply(grad, weight.permute(0, 2, 3, 1), turned=True)
        if ctx.needs_input_grad[1]:
            of_weight = _gradient_of_weight(x, grad)
        return of_x, of_weight


def _apply(x: Tensor, weight: Tensor, *, turned: bool) -> Tensor:
    """Convolve a map by a weight ``[inputs, 3, 3, outputs]``."""
    from regrow.models import winograd

    inputs, outputs = weight.shape[0], weight.shape[-1]
    shape = _shape(x)
    lanes = winograd.padded(outputs)
    near = F.pad(weight, (0, lanes - outputs)).contiguous()
    changed = torch.empty(winograd.PLACES * inputs * lanes)
    winograd.change_kernel(near.data_ptr(), (inputs, lanes), turned, changed.data_ptr())
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
