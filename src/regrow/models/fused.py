"""Batch norm and ReLU as one operation, where that is what a training step waits for.

A network says ``rectified(norm, relu, x)`` for ``relu(norm(x))``. In bfloat16 training on a CPU
the two, with what is added between them or branches off before them, are one operation of few
passes over memory (``kernels``); anywhere else they are the two modules, called one after another.
Both give the same numbers, but for the rounding of single results.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

LONG = 256  # elements a row, at least, for the vector unit


def rectified(
    norm: nn.Module, relu: nn.Module, x: Tensor, *, added: Tensor | None = None
) -> Tensor:
    """Return ``relu(norm(x))``, or ``relu(norm(x) + added)``."""
    if _fusable(norm, relu, x) and (added is None or _alike(added, x)):
        y: Tensor = _fused(norm, x, added, passing=False)
        return y
    y = norm(x)
    result: Tensor = relu(y if added is None else y + added)
    return result


def branched(norm: nn.Module, relu: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``relu(norm(x))``, and x for what else reads it."""
    if _fusable(norm, relu, x):
        both: tuple[Tensor, Tensor] = _fused(norm, x, None, passing=True)
        return both
    return relu(norm(x)), x


def _fusable(norm: nn.Module, relu: nn.Module, x: Tensor) -> bool:
    """Tell whether these are a plain norm and ReLU in training, on a map that the kernels read."""
    return (
        x.dtype == torch.bfloat16
        and x.device.type == "cpu"
        and torch.is_grad_enabled()
        and type(norm) is nn.BatchNorm2d
        and norm.affine
        and norm.weight.dtype == torch.float32  # as under autocast
        and type(relu) is nn.ReLU
        and norm.training
        and norm.track_running_stats
        and norm.momentum is not None
        and "forward" not in vars(norm)  # which ranks that train together replace
        and not any(map(_has_hooks, (norm, relu)))
        and x.dim() == 4
        and x.numel() > x.shape[1]  # of one value there is no variance, which the norm says
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def _has_hooks(module: nn.Module) -> bool:
    kinds = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks
    return any(map(bool, kinds))


def _alike(added: Tensor, x: Tensor) -> bool:
    return (
        added.dtype == x.dtype
        and added.shape == x.shape
        and added.is_contiguous(memory_format=torch.channels_last)
    )


def _fused(norm: nn.Module, x: Tensor, added: Tensor | None, *, passing: bool) -> Any:
    assert isinstance(norm, nn.BatchNorm2d)
    return _NormRelu.apply(x, norm.weight, norm.bias, added, norm, passing)


class _NormRelu(Function):
    """relu(norm(x) + added), and x itself where it is passed on."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        added: Tensor | None,
        norm: nn.BatchNorm2d,
        passing: bool,
    ) -> Any:
        from regrow import kernels

        saved = np.empty((4, x.shape[1]))
        y, shape = torch.empty_like(x), _rows(x)
        assert norm.num_batches_tracked is not None
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.num_batches_tracked.add_(1)
        own = tuple(t.detach().numpy() for t in (weight, bias, norm.running_mean, norm.running_var))
        rest = own, norm.eps, norm.momentum, _map(y, shape), saved
        if added is None:
            kernels.norm_relu(_map(x, shape), *rest)
        else:
            kernels.norm_add_relu(_map(x, shape), _map(added, shape), *rest)
        ctx.save_for_backward(x, *(() if added is None else (y,)))
        ctx.saved = saved
        return (y, x.view_as(x)) if passing else y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, passed: Tensor | None = None) -> Any:
        from regrow import kernels

        x, *above = ctx.saved_tensors
        shape = _rows(x)
        maps = [_map(t, shape) for t in (x, *above, grad)]
        of_weight, of_bias = torch.empty(x.shape[1]), torch.empty(x.shape[1])
        own = of_weight.numpy(), of_bias.numpy()
        out, out_added = torch.empty_like(x), torch.empty_like(x) if above else None
        written = _map(out, shape)
        if out_added is not None:
            kernels.norm_add_relu_backward(*maps, ctx.saved, written, _map(out_added, shape), *own)
        elif passed is not None:
            kernels.norm_relu_backward_passed(*maps, _map(passed, shape), ctx.saved, written, *own)
        else:
            kernels.norm_relu_backward(*maps, ctx.saved, written, *own)
        return out, of_weight, of_bias, out_added, None, None


def _rows(x: Tensor) -> tuple[int, int]:
    """Return the shape of a map as rows of at least ``LONG`` elements, where that divides it."""
    channels, num = x.shape[1], x.numel() // x.shape[1]
    repeats = 1
    while channels * repeats < LONG and num % (2 * repeats) == 0:
        repeats *= 2
    return num // repeats, channels * repeats


def _map(x: Tensor, shape: tuple[int, int]) -> Any:
    """View a map's memory as rows of raw bfloat16; a gradient of another layout is copied."""
    pixels = x.detach().permute(0, 2, 3, 1).contiguous()
    return pixels.view(shape).view(torch.uint16).numpy()
