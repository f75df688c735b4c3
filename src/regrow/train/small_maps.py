"""Convolutions over maps of few pixels, as matrix products.

PyTorch's own convolutions on a CPU are made for large maps: in bfloat16 over 4x4 pixels of 512
channels, their weight gradients take six times as long as a matrix product.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_input

from regrow.models.fused import unwatched

# Most pixels of a convolution's output. Times in ms as a convolution -> as a product, 3x3 kernels,
# a batch of 64 (one thread of a 2-core Xeon with AMX, torch 2.15, medians of 9, 2026-11-22):
#
#   channels, map    forward         weight gradient
#   512, 2x2         11.5 -> 1.6     30.3 -> 1.7
#   512, 4x4         11.7 -> 5.6     38.0 -> 6.7
#   64, 4x4          0.12 -> 0.20    0.53 -> 0.27
#   64, 8x8          0.24 -> 0.64    0.77 -> 1.02
#
# The gradient of the input stays a convolution: 13.1 -> 22.9 for 512 channels of 4x4.
PIXELS = 16


@contextmanager
def as_products(model: nn.Module) -> Iterator[None]:
    """Compute a network's convolutions on small maps as products in bfloat16, while active.

    For forward passes under autocast; the modules are not changed.
    """
    with computed_by(_convolved, plain_convolutions(model, _applies)):
        yield


def plain_convolutions(
    model: nn.Module, applies: Callable[[nn.Conv2d], bool]
) -> list[tuple[nn.Conv2d]]:
    """Return a network's convolutions of class ``nn.Conv2d`` itself that meet a condition."""
    modules = (module for module in model.modules() if type(module) is nn.Conv2d)
    return [(module,) for module in modules if applies(module)]


@contextmanager
def computed_by(
    compute: Callable[..., Tensor], modules: Iterable[tuple[Any, ...]]
) -> Iterator[None]:
    """Compute modules by a function while active, unless their ``forward`` is already replaced.

    ``modules``: each with the function's further arguments, which come before the module's input.
    """
    chosen = [each for each in modules if "forward" not in vars(each[0])]
    for module, *others in chosen:
        vars(module)["forward"] = partial(compute, module, *others)
    try:
        yield
    finally:
        for module, *_ in chosen:
            del vars(module)["forward"]


def _applies(module: nn.Conv2d) -> bool:
    return (
        module.kernel_size != (1, 1)
        and module.groups == 1
        and module.dilation == (1, 1)
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
    )


def _convolved(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Compute a convolution, as a product if its output is small."""
    with unwatched():
        if x.dim() == 4 and 0 < _pixels(conv, x) <= PIXELS and len(x) > 0:
            return product(conv, x.bfloat16())
    return type(conv).forward(conv, x)


def product(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Compute a convolution as a matrix product, in the type of the map."""
    y: Tensor = _MatrixConvolution.apply(x, conv.weight, conv.bias, conv.stride, conv.padding)
    return y


def _pixels(conv: nn.Conv2d, x: Tensor) -> int:
    """Return the number of pixels of a convolution's output; 0 if the input is too small."""
    height, width = (
        (x.shape[dim + 2] + 2 * int(conv.padding[dim]) - conv.kernel_size[dim]) // conv.stride[dim]
        + 1
        for dim in (0, 1)
    )
    return height * width if min(height, width) > 0 else 0


class _MatrixConvolution(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, int],
        padding: tuple[int, int],
    ) -> Tensor:
        near = weight.to(x.dtype).contiguous(memory_format=torch.channels_last)
        windows = _windows(x, tuple(near.shape[2:]), stride, padding)
        rows, matrix = windows.flatten(0, 2), _matrix(near)
        y = rows @ matrix.t() if bias is None else torch.addmm(bias.to(x.dtype), rows, matrix.t())
        ctx.save_for_backward(rows, near)
        ctx.of_x = x.shape, stride, padding
        return y.view(*windows.shape[:3], -1).permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        rows, weight = ctx.saved_tensors
        shape, stride, padding = ctx.of_x
        grads = grad.permute(0, 2, 3, 1).flatten(0, 2)
        num_out, num_in, height, width = weight.shape
        of_weight = (grads.t() @ rows).float().view(num_out, height, width, num_in)
        of_x = None
        if ctx.needs_input_grad[0] and weight.dtype == torch.bfloat16:
            of_x = conv2d_input(shape, weight, grad, stride, padding)  # type: ignore[no-untyped-call]
        elif ctx.needs_input_grad[0]:
            seen = grads @ _matrix(weight)
            seen = seen.view(len(grad), *grad.shape[2:], height, width, num_in)
            of_x = _sum_of_windows(seen, shape, stride, padding)
        of_bias = grads.sum(0, dtype=torch.float32) if ctx.needs_input_grad[2] else None
        return of_x, of_weight.permute(0, 3, 1, 2), of_bias, None, None


def _matrix(weight: Tensor) -> Tensor:
    """Return a kernel as ``[outputs, rows * columns * inputs]``."""
    return weight.permute(0, 2, 3, 1).flatten(1)


def _windows(
    x: Tensor, kernel: tuple[int, ...], stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    """Return the input patch at each output pixel: ``[images, height, width, patch]``."""
    pixels = x.permute(0, 2, 3, 1).contiguous()
    down, across = padding
    if down or across:
        pixels = F.pad(pixels, (0, 0, across, across, down, down))
    num, height, width, channels = pixels.shape
    per_image, per_row, per_pixel, _ = pixels.stride()
    # The pixels of a kernel's row are adjacent in memory, as one piece.
    shape = (
        num,
        (height - kernel[0]) // stride[0] + 1,
        (width - kernel[1]) // stride[1] + 1,
        kernel[0],
        kernel[1] * channels,
    )
    steps = per_image, per_row * stride[0], per_pixel * stride[1], per_row, 1
    return pixels.as_strided(shape, steps).flatten(3)


def _sum_of_windows(
    seen: Tensor, shape: Sequence[int], stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    """Return the gradient of a map from those of its ``_windows``.

    ``seen``: ``[images, height, width, rows, columns, channels]``.
    """
    num, channels, height, width = shape
    down, across = padding
    total = seen.new_zeros(num, height + 2 * down, width + 2 * across, channels)
    for row in range(seen.shape[3]):
        for column in range(seen.shape[4]):
            rows = slice(row, row + stride[0] * seen.shape[1], stride[0])
            columns = slice(column, column + stride[1] * seen.shape[2], stride[1])
            total[:, rows, columns] += seen[:, :, :, row, column]
    inner = total[:, down : down + height, across : across + width]
    return inner.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
