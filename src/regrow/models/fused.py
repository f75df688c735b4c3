"""Fuse batch norm and ReLU into one operation where they limit the speed of training.

A network calls ``rectified(norm, relu, x)`` instead of ``relu(norm(x))``. In training on a CPU, in
bfloat16 or, within ``fused_in_float32``, in float32, the two are one operation with few passes over
memory (``kernels``), together with a term added between them or a branch before them; otherwise the
two modules are called one after the other. ``summed(x, added)`` is a sum that also computes the
moments for the next norm. The results are the same either way, except for rounding.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from regrow.models.layers import FunctionalReLU

LAST = torch.channels_last
LONG = 256  # elements per row, at least, to keep the vector unit busy
_allowed = threading.local()  # whether this thread fuses in float32 too
# A mode that intercepts calls of PyTorch (``train.safe_convolutions``) is called for each access to
# a tensor, 6,387 times in a step of PreResNet-164 (2026-11-27). It ignores norms.
unwatched = torch._C.DisableTorchFunction


@contextmanager
def fused_in_float32() -> Iterator[None]:
    """Fuse norm and ReLU in float32 too, which rounds differently from the modules."""
    before = getattr(_allowed, "float32", False)
    _allowed.float32 = True
    try:
        yield
    finally:
        _allowed.float32 = before


def rectified(
    norm: nn.Module, relu: nn.Module, x: Tensor, *, added: Tensor | None = None
) -> Tensor:
    """Return ``relu(norm(x))``, or ``relu(norm(x) + added)``."""
    with unwatched():
        if fusable(norm, relu, x) and (added is None or _alike(added, x)):
            y: Tensor = _fused(norm, x, added, passing=False)
            return y
    y = norm(x)
    result: Tensor = relu(y if added is None else y + added)
    return result


def branched(norm: nn.Module, relu: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``relu(norm(x))``, and x for its other readers."""
    with unwatched():
        if fusable(norm, relu, x):
            outputs: tuple[Tensor, Tensor] = _fused(norm, x, None, passing=True)
            return outputs
    return relu(norm(x)), x


def summed(x: Tensor, added: Tensor) -> Tensor:
    """Return ``x + added``; if fused, the next norm finds its moments with the result."""
    with unwatched():
        if _readable(x) and _alike(added, x):
            moments = np.empty((3, x.shape[1]))
            out: Tensor = _SumWithMoments.apply(x, added, moments)
            out.moments = out._version, moments  # type: ignore[attr-defined]
            return out
    return x + added


def fusable(norm: nn.Module, relu: nn.Module, x: Tensor) -> bool:
    """Return whether these are a plain norm and ReLU in training, on a map that kernels support."""
    return (
        _readable(x)
        and x.numel() > x.shape[1]  # one value has no variance: the norm raises the error
        and type(norm) is nn.BatchNorm2d
        and norm.affine
        and norm.training
        and norm.track_running_stats
        and norm.momentum is not None
        and all(map(_is_vector, _own(norm)))
        and type(relu) in (nn.ReLU, FunctionalReLU)
        and "forward" not in vars(norm)  # replaced for training on several ranks
        and not any(map(has_hooks, (norm, relu)))
    )


def _readable(x: Tensor) -> bool:
    """Return whether this is a map in training that the kernels support."""
    return (
        (x.dtype == torch.bfloat16 or (x.dtype == torch.float32 and _is_fused_in_float32()))
        and x.device.type == "cpu"
        and torch.is_grad_enabled()
        and x.dim() == 4
        and x.numel() > 0
        and x.is_contiguous(memory_format=LAST)
    )


def _is_fused_in_float32() -> bool:
    return getattr(_allowed, "float32", False) and not torch.is_autocast_enabled("cpu")


def _is_vector(x: Tensor) -> bool:
    """Return whether this is contiguous and float32, the type of parameters under autocast."""
    return x.dtype == torch.float32 and x.is_contiguous()


def has_hooks(module: nn.Module) -> bool:
    """Return whether a module has hooks."""
    kinds = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks
    return any(map(bool, kinds))


def _alike(added: Tensor, x: Tensor) -> bool:
    return (
        added.dtype == x.dtype
        and added.device == x.device
        and added.shape == x.shape
        and added.is_contiguous(memory_format=LAST)
    )


def _fused(norm: nn.Module, x: Tensor, added: Tensor | None, *, passing: bool) -> Any:
    assert isinstance(norm, nn.BatchNorm2d)
    return _NormRelu.apply(x, norm.weight, norm.bias, added, norm, passing)


class _NormRelu(Function):
    """relu(norm(x) + added), and x itself if ``passing``."""

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
        from regrow.models.kernels import kernels_of

        saved, y = np.empty((4, x.shape[1])), torch.empty_like(x)
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked.add_(1)
        kernels_of(x.dtype).norm_relu(
            x.data_ptr(),
            _address(added),
            _rows(x),
            moments_of(x),
            addresses(norm),
            norm.eps,
            norm.momentum,
            y.data_ptr(),
            saved,
        )
        ctx.save_for_backward(x, *(() if added is None else (y,)))
        ctx.saved = saved
        return (y, x.view_as(x)) if passing else y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, passed: Tensor | None = None) -> Any:
        from regrow.models.kernels import kernels_of

        x, *above = ctx.saved_tensors
        y = above[0] if above else None
        grad = grad.contiguous(memory_format=LAST)  # it may be a view of a larger map
        passed = None if passed is None else passed.contiguous(memory_format=LAST)
        of_weight, of_bias = torch.empty(x.shape[1]), torch.empty(x.shape[1])
        out, out_added = torch.empty_like(x), None if y is None else torch.empty_like(x)
        kernels_of(x.dtype).norm_relu_backward(
            x.data_ptr(),
            _address(y),
            grad.data_ptr(),
            _address(passed),
            _rows(x),
            ctx.saved,
            out.data_ptr(),
            _address(out_added),
            of_weight.data_ptr(),
            of_bias.data_ptr(),
        )
        return out, of_weight, of_bias, out_added, None, None


class _SumWithMoments(Function):
    """x + added; also writes the moments that a norm of the sum needs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, added: Tensor, moments: Any) -> Tensor:
        from regrow.models.kernels import kernels_of

        out = torch.empty_like(x)
        add = kernels_of(x.dtype).add
        add(x.data_ptr(), added.data_ptr(), _rows(x), out.data_ptr(), moments)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad, grad, None


def addresses(norm: nn.BatchNorm2d) -> tuple[int, ...]:
    """Return the addresses of a norm's weight, bias, running mean and running variance."""
    return tuple(map(Tensor.data_ptr, _own(norm)))


def _own(norm: nn.BatchNorm2d) -> tuple[Tensor, ...]:
    return norm.weight, norm.bias, norm.running_mean, norm.running_var  # type: ignore[return-value]


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def moments_of(x: Tensor) -> Any:
    """Return a map's moments from ``summed``, or no rows if there are none or it was modified."""
    version, moments = getattr(x, "moments", (None, None))
    return moments if version == x._version else np.empty((0, x.shape[1]))


def _rows(x: Tensor) -> tuple[int, int]:
    """Return a map's shape (rows, elements per row), with rows of at least ``LONG`` if possible."""
    channels, num = x.shape[1], x.numel() // x.shape[1]
    repeats = 1
    while channels * repeats < LONG and num % (2 * repeats) == 0:
        repeats *= 2
    return num // repeats, channels * repeats
