"""Float32 convolutions on a CPU that are faster than PyTorch's.

3x3 convolutions use fewer multiplications (the algorithm is in ``regrow/models/winograd.py``); 1x1
convolutions, and those on small maps, are matrix products. Results are those of a convolution up to
rounding: single values are off by some 1e-5 of the largest, PyTorch's own by 1e-6.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from regrow.train import tiled
from regrow.train.maps import Map
from regrow.train.small_maps import computed_by, plain_convolutions, product

LAST = torch.channels_last
FEWEST_CHANNELS = 8
TILED_PIXELS = 3  # least length of a map's longer side; smaller maps are matrix products


@contextmanager
def fast_convolutions(model: nn.Module) -> Iterator[None]:
    """Compute a network's convolutions in these ways while active, where that is faster.

    For forward passes in float32; the modules are not changed.
    """
    with computed_by(_convolved, plain_convolutions(model, is_fast)):
        yield


def is_fast(module: nn.Conv2d) -> bool:
    """Return whether a convolution can be computed here, if its input allows it."""
    return (
        module.stride == (1, 1)
        and module.dilation == (1, 1)
        and module.groups == 1
        and module.padding_mode == "zeros"
        and (module.kernel_size, module.padding) in (((3, 3), (1, 1)), ((1, 1), (0, 0)))
        and min(module.in_channels, module.out_channels) >= FEWEST_CHANNELS
    )


def _convolved(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Compute a convolution, by PyTorch if the input does not allow another way."""
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
        ctx.save_for_backward(x, weight)
        y = torch.empty((len(x), len(weight), *x.shape[2:]), memory_format=LAST)
        tiled.convolve(Map.of(x), weight, Map.of(y))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        of_y = Map.of(grad.contiguous(memory_format=LAST))
        of_x = of_weight = None
        if ctx.needs_input_grad[0]:
            of_x = torch.empty_like(x)
            tiled.gradient_of_map(of_y, weight, Map.of(of_x))
        if ctx.needs_input_grad[1]:
            of_weight = tiled.gradient_of_weight(Map.of(x), of_y)
        return of_x, of_weight
