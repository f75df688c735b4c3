"""Replacements for convolutions that PyTorch computes wrongly.

On an x86 processor without AVX-512, the weight gradient of some float32 1x1 convolutions writes
beyond its memory (``jit_avx2_1x1_convolution_bwd_weights_t`` of oneDNN 3.13, in torch 2.15). They
have no padding or groups, a stride that divides the map, fewer than 8 input channels, and images or
weights in channels-last. The process crashes, or continues with corrupted memory.

On a processor with AMX, some strided bfloat16 convolutions compute with memory that is not theirs:
69 of 27,507 products in 9,169 cases are wrong (torch 2.15, 2026-11-26). They write or read maps one
pixel wide, or have a kernel as long as its stride (4x4 or 8x8, as in patch embeddings, with errors
as large as the result). They are computed in float32.

``benchmarks/convolution_faults.py`` searches for both.
"""

import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)
TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
FEWEST_INPUTS = 8  # floats in an AVX2 register, into which such a convolution reads a pixel
CAPS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")  # a user's limits on what oneDNN may use


@contextmanager
def safe_convolutions(*, short: bool = False) -> Iterator[None]:
    """Compute convolutions that would access memory beyond theirs in another way, while active.

    For forward passes, inside of their autocast context, or ``short`` if they enter one that
    computes in bfloat16. Convolutions whose gradients would write beyond their memory subsample the
    input first; those that would read beyond it are computed in float32. All others are left alone.
    """
    if not (_is_hit() or (_has_tiles() and (short or torch.is_autocast_enabled("cpu")))):
        yield
        return
    with _OtherWay():
        yield


@cache
def _is_hit() -> bool:
    """Return whether oneDNN computes without AVX-512 here."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    allowed = [os.environ[name].upper() for name in CAPS if name in os.environ]
    capped = any("AVX512" not in isa and isa not in ("ALL", "DEFAULT") for isa in allowed)
    return capped or torch.backends.cpu.get_cpu_capability() != "AVX512"


@cache
def _has_tiles() -> bool:
    """Return whether oneDNN may compute in bfloat16 with AMX here."""
    return bool(torch.cpu._is_amx_tile_supported())


class _OtherWay(TorchFunctionMode):
    """Intercepts convolutions, and computes unsafe ones in another way."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func in CONVOLUTIONS:
            return _convolved(func, *args, **(kwargs or {}))
        if func in TRANSPOSED and _has_tiles() and _in_bfloat16(args, kwargs or {}):
            return _in_float32(func, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _convolved(
    func: Callable[..., Tensor],
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """Compute a convolution safely: ``func`` is one of ``CONVOLUTIONS``, the rest its arguments."""
    kernel, pixels = weight.shape[2:], input.shape[2 - weight.dim() :]
    steps = (stride,) * len(kernel) if isinstance(stride, int) else (*stride,)
    if (
        max(steps) > 1
        and max(kernel) > 1
        and _has_tiles()
        and _in_bfloat16((input, weight))
        and (
            any(k > 2 and step >= k for k, step in zip(kernel, steps, strict=True))
            or _width(input, kernel[-1], steps[-1], padding, dilation) <= 1
        )
    ):
        return _in_float32(func, input, weight, bias, stride, padding, dilation, groups)
    if (
        _is_hit()
        and max(steps) > 1
        and max(kernel) == 1
        and weight.shape[1] < FEWEST_INPUTS
        and groups == 1
        and padding in ("valid", 0, (0,) * len(kernel), [0] * len(kernel))
        and not any(num % step for num, step in zip(pixels, steps, strict=True))
        and weight.dtype == input.dtype == torch.float32
        and weight.device.type == "cpu"
        and weight.requires_grad
        and torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and any(_may_be_last(x, 1 - weight.dim()) for x in (input, weight))
    ):
        read: tuple[Any, ...] = (..., *(slice(None, None, step) for step in steps))
        input, stride = input[read], 1
    return func(input, weight, bias, stride, padding, dilation, groups)


def _may_be_last(x: Tensor, channels: int) -> bool:
    """Return whether a pixel's channels may be adjacent in memory, as in channels-last."""
    return x.stride(-1) >= x.stride(channels) * x.shape[channels]


def _in_bfloat16(args: Sequence[Any], kwargs: Mapping[str, Any] | None = None) -> bool:
    """Return whether a call computes in bfloat16 on the CPU."""
    tensors = [x for x in (*args, *(kwargs or {}).values()) if isinstance(x, Tensor)]
    if any(x.device.type != "cpu" for x in tensors):
        return False
    if torch.is_autocast_enabled("cpu"):
        return torch.get_autocast_dtype("cpu") == torch.bfloat16
    return any(x.dtype == torch.bfloat16 for x in tensors)


def _width(
    input: Tensor,
    kernel: int,
    step: int,
    padding: str | int | Sequence[int],
    dilation: int | Sequence[int],
) -> int:
    """Return the width, in pixels, of a strided convolution's output."""
    around = 0 if isinstance(padding, str) else padding if isinstance(padding, int) else padding[-1]
    apart = dilation if isinstance(dilation, int) else dilation[-1]
    return (input.shape[-1] + 2 * around - apart * (kernel - 1) - 1) // step + 1


def _in_float32(func: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    """Compute a function in float32, and return its result in bfloat16."""
    with torch.autocast("cpu", enabled=False):
        result = func(*map(_widened, args), **{k: _widened(v) for k, v in kwargs.items()})
    return result.bfloat16()


def _widened(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) else value
