"""Batch norm and ReLU over bfloat16 maps in as few passes over memory as they need.

On a CPU these networks spend more time in moving maps between memory and core than in computing:
norm and ReLU as PyTorch has them read and write a map 16 times in a step, these kernels 9 times.
They see a map as rows ``[pixels, channels]`` of bfloat16 held in ``uint16``; where channels are
few, several pixels lie in one row, so that the inner loop is long enough for the vector unit.
Arithmetic is float32; sums over pixels are float32 over 64 rows and float64 over these.

Compiled by numba when first used (some seconds), and kept on disk by it from then on.
"""

import llvmlite.binding
import numpy as np
from numba import config, njit

ROWS = 64  # summed in float32
_MAP, _VECTOR, _SUMS = "uint16[:,::1]", "float32[::1]", "float64[::1]"

_OWN = llvmlite.binding.get_host_cpu_features()
if config.CPU_FEATURES is None and _OWN.get("avx512f"):  # type: ignore[attr-defined]
    # By default the compiler uses half of such vectors, for the sake of processors of 2017: these
    # kernels took 1.1 to 1.4 times as long so (2-core Xeon with AMX, numba 0.68).
    config.CPU_FEATURES = f"{_OWN.flatten()},-prefer-256-bit"  # type: ignore[attr-defined]


def _kernel(*arguments: str):
    return njit(
        f"void({', '.join(arguments)})",
        nogil=True,
        cache=True,
        error_model="numpy",
        fastmath={"contract", "nsz"},
    )


@njit(inline="always")
def _float(bits):
    """Read a bfloat16."""
    return np.uint32(np.uint32(bits) << np.uint32(16)).view(np.float32)


@njit(inline="always")
def _bits(value):
    """Round to the nearest bfloat16, of two to the even one."""
    bits = np.float32(value).view(np.uint32)
    odd = np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(1))
    up = np.uint32(np.uint32(bits + np.uint32(0x7FFF)) + odd)
    return np.uint16(np.uint32(up >> np.uint32(16)))


@_kernel(_MAP, _VECTOR, _SUMS, _SUMS)
def moments(x, shift, first, second):
    """Add to ``first`` and ``second`` the sums of x - shift and of its square."""
    rows, width = x.shape
    part1, part2 = np.empty(width, np.float32), np.empty(width, np.float32)
    for start in range(0, rows, ROWS):
        part1[:] = 0
        part2[:] = 0
        for row in range(start, min(rows, start + ROWS)):
            for c in range(width):
                value = _float(x[row, c]) - shift[c]
                part1[c] += value
                part2[c] += value * value
        for c in range(width):
            first[c] += part1[c]
            second[c] += part2[c]


@_kernel(_MAP, _VECTOR, _VECTOR, _MAP)
def forward(x, factor, term, y):
    """Write relu(x * factor + term)."""
    rows, width = x.shape
    for row in range(rows):
        for c in range(width):
            value = _float(x[row, c]) * factor[c] + term[c]
            # Not a maximum, so that what is not a number stays so.
            y[row, c] = _bits(np.float32(0) if value < 0 else value)


@_kernel(_MAP, _MAP, _VECTOR, _VECTOR, _MAP)
def forward_added(x, added, factor, term, y):
    """Write relu(x * factor + term + added)."""
    rows, width = x.shape
    for row in range(rows):
        for c in range(width):
            value = _float(x[row, c]) * factor[c] + term[c] + _float(added[row, c])
            y[row, c] = _bits(np.float32(0) if value < 0 else value)


@_kernel(_MAP, _MAP, _VECTOR, _VECTOR, _VECTOR, _SUMS, _SUMS)
def backward_moments(x, grad, factor, term, shift, first, second):
    """Add the sums of the gradient past the ReLU, and of it times x - shift."""
    rows, width = x.shape
    part1, part2 = np.empty(width, np.float32), np.empty(width, np.float32)
    for start in range(0, rows, ROWS):
        part1[:] = 0
        part2[:] = 0
        for row in range(start, min(rows, start + ROWS)):
            for c in range(width):
                value = _float(x[row, c])
                # Computed again rather than read from y: one map less to move.
                open_ = value * factor[c] + term[c] > 0
                slope = _float(grad[row, c]) if open_ else np.float32(0)
                part1[c] += slope
                part2[c] += slope * (value - shift[c])
        for c in range(width):
            first[c] += part1[c]
            second[c] += part2[c]


@_kernel(_MAP, _MAP, _MAP, _VECTOR, _SUMS, _SUMS)
def backward_moments_added(x, y, grad, shift, first, second):
    """Do as ``backward_moments``, where the ReLU's input was more than x alone."""
    rows, width = x.shape
    part1, part2 = np.empty(width, np.float32), np.empty(width, np.float32)
    for start in range(0, rows, ROWS):
        part1[:] = 0
        part2[:] = 0
        for row in range(start, min(rows, start + ROWS)):
            for c in range(width):
                slope = _float(grad[row, c]) if _float(y[row, c]) > 0 else np.float32(0)
                part1[c] += slope
                part2[c] += slope * (_float(x[row, c]) - shift[c])
        for c in range(width):
            first[c] += part1[c]
            second[c] += part2[c]


@_kernel(_MAP, _MAP, _VECTOR, _VECTOR, _VECTOR, _VECTOR, _MAP)
def backward(x, grad, factor, term, per_x, constant, out):
    """Write the gradient of x: factor * (gradient past the ReLU) + per_x * x + constant."""
    rows, width = x.shape
    for row in range(rows):
        for c in range(width):
            value = _float(x[row, c])
            open_ = value * factor[c] + term[c] > 0
            slope = _float(grad[row, c]) if open_ else np.float32(0)
            out[row, c] = _bits(factor[c] * slope + (per_x[c] * value + constant[c]))


@_kernel(_MAP, _MAP, _MAP, _VECTOR, _VECTOR, _VECTOR, _VECTOR, _MAP)
def backward_passed(x, grad, passed, factor, term, per_x, constant, out):
    """Do as ``backward``, and add the gradient that comes to x from elsewhere."""
    rows, width = x.shape
    for row in range(rows):
        for c in range(width):
            value = _float(x[row, c])
            open_ = value * factor[c] + term[c] > 0
            slope = _float(grad[row, c]) if open_ else np.float32(0)
            own = factor[c] * slope + (per_x[c] * value + constant[c])
            out[row, c] = _bits(own + _float(passed[row, c]))


@_kernel(_MAP, _MAP, _MAP, _VECTOR, _VECTOR, _VECTOR, _MAP, _MAP)
def backward_added(x, y, grad, factor, per_x, constant, out, out_added):
    """Do as ``backward``, and write the gradient of what was added too."""
    rows, width = x.shape
    for row in range(rows):
        for c in range(width):
            slope = _float(grad[row, c]) if _float(y[row, c]) > 0 else np.float32(0)
            out[row, c] = _bits(factor[c] * slope + (per_x[c] * _float(x[row, c]) + constant[c]))
            out_added[row, c] = _bits(slope)
