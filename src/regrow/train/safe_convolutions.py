"""Convolutions that PyTorch must not be handed as they are.

On an x86 processor without AVX-512, the gradient of the weights of some 1x1 convolutions in float32
writes beyond its memory (``jit_avx2_1x1_convolution_bwd_weights_t`` of oneDNN 3.13, in torch 2.15):
of one without padding and groups, whose stride divides the map, that reads fewer than 8 channels,
with the images or the weights in channels-last. The process dies, or computes on with what was
overwritten. ``benchmarks/convolution_faults.py`` searches for such convolutions.
"""

import os
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)
FEWEST_INPUTS = 8  # floats in a register of AVX2: such a convolution reads a pixel into one
CAPS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")  # the user's, on what oneDNN may use


@contextmanager
def safe_convolutions() -> Iterator[None]:
    """Let convolutions whose gradients would write beyond their memory skip pixels first.

    For forward passes. All others, and all whose weights get no gradient, are left alone.
    """
    if not _is_hit():
        yield
        return
    with _Skipping():
        yield


@cache
def _is_hit() -> bool:
    """Tell whether oneDNN computes without AVX-512 here."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    allowed = [os.environ[name].upper() for name in CAPS if name in os.environ]
    capped = any("AVX512" not in isa and isa not in ("ALL", "DEFAULT") for isa in allowed)
    return capped or torch.backends.cpu.get_cpu_capability() != "AVX512"


class _Skipping(TorchFunctionMode):
    """Takes the pixels that a convolution reads, and has it read all of these."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func in CONVOLUTIONS:
            return _convolved(func, *args, **(kwargs or {}))
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
    """Return what a convolution of ``CONVOLUTIONS`` returns, whose arguments these are."""
    kernel, pixels = weight.shape[2:], input.shape[2 - weight.dim() :]
    steps = (stride,) * len(kernel) if isinstance(stride, int) else (*stride,)
    if (
        max(steps) > 1
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
    """Tell whether the channels of a pixel may lie side by side, as in channels-last."""
    return x.stride(-1) >= x.stride(channels) * x.shape[channels]
