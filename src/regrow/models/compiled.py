"""Compile loops over feature maps with numba, and read memory by address.

Kernels are compiled on first use (some seconds), and cached on disk if possible. A kernel does a
whole operation in one call, and takes maps and vectors as addresses, because calls and their
preparation cost as much as the arithmetic on small maps.
"""

from typing import Any

import llvmlite.binding
import numpy as np
import torch
from numba import carray, config, njit, types  # type: ignore[attr-defined]
from numba.extending import intrinsic

ADDRESS = "int64"
OPTIONS: dict[str, Any] = {
    "nogil": True,
    "error_model": "numpy",
    "fastmath": {"contract", "nsz"},
}
# The features of x86 processors with AVX2 but without AVX-512.
AVX2 = "+avx,+avx2,+fma,+bmi,+bmi2,+f16c,+lzcnt,+movbe,+popcnt,+sse4.1,+sse4.2"

_OWN = llvmlite.binding.get_host_cpu_features()
if config.CPU_FEATURES is None and config.CPU_NAME is None and _OWN.get("avx512f"):  # type: ignore[attr-defined]
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "DEFAULT"):
        # By default the compiler uses 256-bit vectors only, which suits processors of 2017: with
        # them these kernels took 1.1 to 1.4 times as long (2-core Xeon with AMX, numba 0.68).
        config.CPU_FEATURES = f"{_OWN.flatten()},-prefer-256-bit"  # type: ignore[attr-defined]
    else:  # ATEN_CPU_CAPABILITY asks for an older processor's instructions
        config.CPU_NAME, config.CPU_FEATURES = "haswell", AVX2  # type: ignore[attr-defined]
HAS_LONG_VECTORS = bool(_OWN.get("avx512f")) and config.CPU_NAME is None  # type: ignore[attr-defined]


def kernel(*arguments: str):
    """Compile a function for arguments of these types, immediately."""
    signature = f"void({', '.join(arguments)})"
    return lambda function: _compiled(function, signature)


def part(function):
    """Compile a function that kernels call, for the types of its arguments there."""
    return _compiled(function)


def _compiled(function, signature: str | None = None):
    try:
        return njit(signature, cache=True, **OPTIONS)(function)
    except RuntimeError:  # no writable folder for the cache: compiled in each process
        return njit(signature, **OPTIONS)(function)


@intrinsic
def pointer(_, address):
    """Convert an integer address to a pointer."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(types.voidptr))

    return types.voidptr(address), generate


@njit(inline="always")
def vector(address, num):
    """Return an array of ``num`` float32 numbers at an address."""
    return carray(pointer(address), num, np.float32)  # type: ignore[call-arg]


@part
def flush(parts, full, channels, sums):
    """Add two rows of ``full`` float32 partial sums to the float64 ``sums``, and clear them.

    Only the first ``channels`` of each row are added; the rest is padding.
    """
    values = vector(parts, 2 * full)
    for c in range(channels):
        sums[0, c] += values[c]
        sums[1, c] += values[full + c]
    values[:] = 0
