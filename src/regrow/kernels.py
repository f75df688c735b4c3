"""Batch norm and ReLU over bfloat16 maps in as few passes over memory as they need.

On a CPU these networks spend more time in moving maps between memory and core than in computing:
norm and ReLU as PyTorch has them read and write a map 16 times in a step, these kernels 9 times.
They see a map as rows ``[pixels, channels]`` of bfloat16 held in ``uint16``; where channels are
few, several pixels lie in one row, so that the inner loop is long enough for the vector unit.
Arithmetic is float32; sums over pixels are float32 over 64 rows and float64 over these.

Compiled by numba when first used (some seconds), and kept on disk where that is possible. Each is
one call for all of an operation, because calls cost as much as the arithmetic of small maps.
"""

from typing import Any

import llvmlite.binding
import numpy as np
from numba import config, njit

ROWS = 64  # summed in float32
_MAP, _VECTOR, _SAVED = "uint16[:,::1]", "float32[::1]", "float64[:,::1]"
_OPTIONS: dict[str, Any] = {
    "nogil": True,
    "error_model": "numpy",
    "fastmath": {"contract", "nsz"},
}

_OWN = llvmlite.binding.get_host_cpu_features()
if config.CPU_FEATURES is None and _OWN.get("avx512f"):  # type: ignore[attr-defined]
    # By default the compiler uses half of such vectors, for the sake of processors of 2017: these
    # kernels took 1.1 to 1.4 times as long so (2-core Xeon with AMX, numba 0.68).
    config.CPU_FEATURES = f"{_OWN.flatten()},-prefer-256-bit"  # type: ignore[attr-defined]


def _kernel(*arguments: str):
    signature = f"void({', '.join(arguments)})"
    return lambda function: _compiled(function, signature)


def _part(function):
    return _compiled(function)


def _compiled(function, signature: str | None = None):
    try:
        return njit(signature, cache=True, **_OPTIONS)(function)
    except RuntimeError:  # no folder that may be written to: compiled anew by each process
        return njit(signature, **_OPTIONS)(function)


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


@_part
def _in_row(values, width):
    """Repeat values of channels along a row, as float32."""
    found = np.empty(width, np.float32)
    channels = len(values)
    for c in range(width):
        found[c] = values[c % channels]
    return found


@_part
def _of_channels(sums, channels):
    """Add up the pixels of a row: ``[channels]``."""
    found = np.zeros(channels)
    for c in range(len(sums)):
        found[c % channels] += sums[c]
    return found


@_part
def _moments(x, shift):
    """Return the sums over rows of x - shift and of its square."""
    rows, width = x.shape
    first, second = np.zeros(width), np.zeros(width)
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
    return first, second


@_part
def _statistics(x, norm, eps, momentum, saved):
    """Return factor and term of a norm, each in a row; save what its backward pass needs.

    ``norm`` is weight, bias, running mean and running variance; the running ones are moved on.
    """
    weight, bias, running_mean, running_var = norm
    channels, width = len(weight), x.shape[1]
    num = x.shape[0] * width // channels
    shift = np.empty(channels, np.float32)  # any value near the mean keeps the sums small
    for c in range(channels):
        shift[c] = _float(x[0, c])
    sums = _moments(x, _in_row(shift, width))
    first, second = _of_channels(sums[0], channels), _of_channels(sums[1], channels)
    for c in range(channels):
        offset = first[c] / num
        mean = shift[c] + offset
        variance = max(second[c] / num - offset * offset, 0.0)
        inverse = 1.0 / np.sqrt(variance + eps)
        saved[0, c], saved[1, c] = mean, inverse
        saved[2, c] = weight[c] * inverse
        saved[3, c] = bias[c] - mean * saved[2, c]
        running_mean[c] += momentum * (mean - running_mean[c])
        running_var[c] += momentum * (variance * num / (num - 1) - running_var[c])
    return _in_row(saved[2], width), _in_row(saved[3], width)


@_kernel(_MAP, f"UniTuple({_VECTOR}, 4)", "float64", "float64", _MAP, _SAVED)
def norm_relu(x, norm, eps, momentum, y, saved):
    """Write relu(norm(x))."""
    factor, term = _statistics(x, norm, eps, momentum, saved)
    rows, width = x.shape
    for row in range(rows):
        for c in range(width):
            value = _float(x[row, c]) * factor[c] + term[c]
            # Not a maximum, so that what is not a number stays so.
            y[row, c] = _bits(np.float32(0) if value < 0 else value)


@_kernel(_MAP, _MAP, f"UniTuple({_VECTOR}, 4)", "float64", "float64", _MAP, _SAVED)
def norm_add_relu(x, added, norm, eps, momentum, y, saved):
    """Write relu(norm(x) + added)."""
    factor, term = _statistics(x, norm, eps, momentum, saved)
    rows, width = x.shape
    for row in range(rows):
        for c in range(width):
            value = _float(x[row, c]) * factor[c] + term[c] + _float(added[row, c])
            y[row, c] = _bits(np.float32(0) if value < 0 else value)


@_part
def _gradient_moments(x, grad, factor, term, mean):
    """Return the sums of the gradient past the ReLU, and of it times x - mean."""
    rows, width = x.shape
    first, second = np.zeros(width), np.zeros(width)
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
                part2[c] += slope * (value - mean[c])
        for c in range(width):
            first[c] += part1[c]
            second[c] += part2[c]
    return first, second


@_part
def _gradient_moments_added(x, y, grad, mean):
    """Do as ``_gradient_moments``, where the ReLU's input was more than x alone."""
    rows, width = x.shape
    first, second = np.zeros(width), np.zeros(width)
    part1, part2 = np.empty(width, np.float32), np.empty(width, np.float32)
    for start in range(0, rows, ROWS):
        part1[:] = 0
        part2[:] = 0
        for row in range(start, min(rows, start + ROWS)):
            for c in range(width):
                slope = _float(grad[row, c]) if _float(y[row, c]) > 0 else np.float32(0)
                part1[c] += slope
                part2[c] += slope * (_float(x[row, c]) - mean[c])
        for c in range(width):
            first[c] += part1[c]
            second[c] += part2[c]
    return first, second


@_part
def _line(x, sums, saved, of_weight, of_bias):
    """Write the norm's gradients; return that of x as a line in x: its slope and constant.

    factor * (g - mean of g - normalised x * mean of g * normalised x), but for factor * g.
    """
    channels, width = len(of_weight), x.shape[1]
    num = x.shape[0] * width // channels
    first, second = _of_channels(sums[0], channels), _of_channels(sums[1], channels)
    slope, constant = np.empty(channels), np.empty(channels)
    for c in range(channels):
        mean, inverse, factor = saved[0, c], saved[1, c], saved[2, c]
        scaled = second[c] * inverse
        of_weight[c], of_bias[c] = scaled, first[c]
        slope[c] = -factor * inverse * scaled / num
        constant[c] = -factor * first[c] / num - slope[c] * mean
    return _in_row(slope, width), _in_row(constant, width)


@_kernel(_MAP, _MAP, _SAVED, _MAP, _VECTOR, _VECTOR)
def norm_relu_backward(x, grad, saved, out, of_weight, of_bias):
    """Write the gradients of ``norm_relu``."""
    rows, width = x.shape
    factor, term = _in_row(saved[2], width), _in_row(saved[3], width)
    sums = _gradient_moments(x, grad, factor, term, _in_row(saved[0], width))
    per_x, constant = _line(x, sums, saved, of_weight, of_bias)
    for row in range(rows):
        for c in range(width):
            value = _float(x[row, c])
            open_ = value * factor[c] + term[c] > 0
            slope = _float(grad[row, c]) if open_ else np.float32(0)
            out[row, c] = _bits(factor[c] * slope + (per_x[c] * value + constant[c]))


@_kernel(_MAP, _MAP, _MAP, _SAVED, _MAP, _VECTOR, _VECTOR)
def norm_relu_backward_passed(x, grad, passed, saved, out, of_weight, of_bias):
    """Do as ``norm_relu_backward``, and add the gradient that comes to x from elsewhere."""
    rows, width = x.shape
    factor, term = _in_row(saved[2], width), _in_row(saved[3], width)
    sums = _gradient_moments(x, grad, factor, term, _in_row(saved[0], width))
    per_x, constant = _line(x, sums, saved, of_weight, of_bias)
    for row in range(rows):
        for c in range(width):
            value = _float(x[row, c])
            open_ = value * factor[c] + term[c] > 0
            slope = _float(grad[row, c]) if open_ else np.float32(0)
            own = factor[c] * slope + (per_x[c] * value + constant[c])
            out[row, c] = _bits(own + _float(passed[row, c]))


@_kernel(_MAP, _MAP, _MAP, _SAVED, _MAP, _MAP, _VECTOR, _VECTOR)
def norm_add_relu_backward(x, y, grad, saved, out, out_added, of_weight, of_bias):
    """Write the gradients of ``norm_add_relu``."""
    rows, width = x.shape
    factor = _in_row(saved[2], width)
    sums = _gradient_moments_added(x, y, grad, _in_row(saved[0], width))
    per_x, constant = _line(x, sums, saved, of_weight, of_bias)
    for row in range(rows):
        for c in range(width):
            slope = _float(grad[row, c]) if _float(y[row, c]) > 0 else np.float32(0)
            out[row, c] = _bits(factor[c] * slope + (per_x[c] * _float(x[row, c]) + constant[c]))
            out_added[row, c] = _bits(slope)
