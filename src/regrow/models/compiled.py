"""Compiling of loops over maps by numba: its options, and reading of memory by address.

Compiled when first used (some seconds), and kept on disk where that is possible. A kernel is one
call for all of an operation, and takes maps and vectors as addresses, because calls and what leads
to them cost as much as the arithmetic of small maps.
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
# Of x86 processors with AVX2, none with AVX-512.
AVX2 = "+avx,+avx2,+fma,+bmi,+bmi2,+f16c,+lzcnt,+movbe,+popcnt,+sse4.1,+sse4.2"

_OWN = llvmlite.binding.get_host_cpu_features()
if config.CPU_FEATURES is None and config.CPU_NAME is None and _OWN.get("avx512f"):  # type: ignore[attr-defined]
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "DEFAULT"):
        # By default the compiler uses half of such vectors, for the sake of processors of 2017:
        # these kernels took 1.1 to 1.4 times as long so (2-core Xeon with AMX, numba 0.68).
        config.CPU_FEATURES = f"{_OWN.flatten()},-prefer-256-bit"  # type: ignore[attr-defined]
    else:  # ATEN_CPU_CAPABILITY says to compute as an older processor does
        config.CPU_NAME, config.CPU_FEATURES = "haswell", AVX2  # type: ignore[attr-defined]
HAS_LONG_VECTORS = bool(_OWN.get("avx512f")) and config.CPU_NAME is None  # type: ignore[attr-defined]


def kernel(*arguments: str):
    """Compile a function for arguments of these types, at once."""
    signature = f"void({', '.join(arguments)})"
    return lambda function: _compiled(function, signature)


def part(function):
    """Compile a function that kernels call, for the arguments that they give it."""
    return _compiled(function)


def _compiled(function, signature: str | None = None):
    try:
        return njit(signature, cache=True, **OPTIONS)(function)
    except RuntimeError:  # no folder that may be written to: compiled anew by each process
        return njit(signature, **OPTIONS)(function)


@intrinsic
def pointer(_, address):
    """Take an address for what it is."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(types.voidptr))

    return types.voidptr(address), generate


@njit(inline="always")
def vector(address, num):
    """Read so many float32 numbers."""
    return carray(pointer(address), num, np.float32)  # type: ignore[call-arg]


@part
def flush(parts, full, channels, sums):
    """Move two rows of ``full`` float32 sums into float64, as far as there are channels."""
    values = vector(parts, 2 * full)
    for c in range(channels):
        sums[0, c] += values[c]
        sums[1, c] += values[full + c]
    values[:] = 0
