"""Convolutions in float32 on a CPU in less time than PyTorch's.

Those of 3x3 in fewer multiplications (``regrow/models/winograd.py`` has the arithmetic), over small
maps and of 1x1 as products of matrices. Their results are those of a convolution but for rounding:
single results are off by some 1e-5 of the largest, where PyTorch's own are by 1e-6.
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
TILED_PIXELS = 3  # of a map's side, at least; smaller maps are products of matrices


@contextmanager
def fast_convolutions(model: nn.Module) -> Iterator[None]:
    """Let a network's convolutions be computed so where that is faster.

    For a forward pass in float32; the modules stay what they are.
    """
    with computed_by(_convolved, plain_convolutions(model, is_fast)):
        yield


def is_fast(module: nn.Conv2d) -> bool:
    """Tell whether a convolution is computed here, if its map allows that."""
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
