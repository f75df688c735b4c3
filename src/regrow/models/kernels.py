"""Kernels for batch norm and ReLU on feature maps, with as few passes over memory as possible.

On a CPU these networks spend more time on moving maps between memory and core than on computing:
PyTorch's norm and ReLU read and write a map 16 times per training step, these kernels 9 times. A
map is seen as rows ``[pixels, channels]`` of float32, or of bfloat16 held in ``uint16``; if there
are few channels, a row holds several pixels, so that the inner loop is long enough for the vector
unit. Arithmetic is float32; sums over pixels are float32 within 64 rows and float64 beyond.

The address 0 means no map. Loops that differ in one optional map, or in the type of elements, are
written once and compiled for each case.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from llvmlite import ir
from numba import carray, njit, types  # type: ignore[attr-defined]
from numba.core import cgutils
from numba.extending import intrinsic, overload

from regrow.models.compiled import ADDRESS, kernel, part, pointer, vector

ROWS = 64  # summed in float32
AHEAD = 4  # rows to prefetch: the processor's own prefetching is late (a pass takes 1.15 times)
LINE = 64  # bytes of a cache line
ELEMENTS = {torch.bfloat16: np.uint16, torch.float32: np.float32}  # how elements of maps are held
_SAVED = "float64[:,::1]"
_SHAPE, _NORM = "UniTuple(int64, 2)", "UniTuple(int64, 4)"


def _float(element):
    """Convert an element to float32; in compiled code only, where ``_read`` implements it."""
    raise NotImplementedError


@overload(_float, inline="always")
def _read(element):
    if element == types.uint16:
        return lambda element: np.uint32(np.uint32(element) << np.uint32(16)).view(np.float32)
    return lambda element: element


def _rounded(value, like):
    """Round a value to the element type of the map ``like``; ties to even for bfloat16.

    In compiled code only, where ``_round`` implements it.
    """
    raise NotImplementedError


@overload(_rounded, inline="always")
def _round(value, like):
    if like.dtype == types.uint16:

        def to_bfloat16(value, like):
            bits = np.float32(value).view(np.uint32)
            odd = np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(1))
            up = np.uint32(np.uint32(bits + np.uint32(0x7FFF)) + odd)
            return np.uint16(np.uint32(up >> np.uint32(16)))

        return to_bfloat16
    return lambda value, like: np.float32(value)


@njit(inline="always")
def _map(address, shape, element):
    return carray(pointer(address), shape, element)  # type: ignore[call-arg]


@intrinsic
def _prefetch(_, rows, row, column):
    """Prefetch the cache line of a position in a map, which may be past its end."""

    def generate(context, builder, signature, arguments):
        kind = signature.args[0]
        array = context.make_array(kind)(context, builder, arguments[0])
        at = cgutils.get_item_pointer(
            context, builder, kind, array, arguments[1:], wraparound=False, boundscheck=False
        )
        byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        fetch = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(ir.VoidType(), [byte, word, word, word]),
            "llvm.prefetch.p0",
        )
        to_read, near, data = word(0), word(3), word(1)
        builder.call(fetch, [builder.bitcast(at, byte), to_read, near, data])
        return context.get_dummy_value()

    return types.void(rows, row, column), generate


@njit(inline="always")
def _ahead(x, row):
    """Prefetch the row that is ``AHEAD`` rows further."""
    for c in range(0, x.shape[1], LINE // x.itemsize):
        _prefetch(x, row + AHEAD, c)  # type: ignore[call-arg]


@part
def _in_row(values, width):
    """Repeat per-channel values along a row, as float32."""
    row = np.empty(width, np.float32)
    channels = len(values)
    for c in range(width):
        row[c] = values[c % channels]
    return row


@part
def _of_channels(sums, channels):
    """Sum over the pixels of a row: ``[channels]``."""
    values = np.zeros(channels)
    for c in range(len(sums)):
        values[c % channels] += sums[c]
    return values


def _shifted_moments(*, of_sum: bool):
    """Return a function that sums x - shift and its square over pixels.

    With ``of_sum``, it writes x + added first, and does so for that sum.
    """

    @part
    def sums(x, added, out, moments):
        rows, width = x.shape
        channels = moments.shape[1]
        shift = np.empty(channels, np.float32)  # any value near the mean keeps the sums small
        for c in range(channels):
            value = _float(x[0, c])
            shift[c] = _float(_rounded(value + _float(added[0, c]), x)) if of_sum else value
        shifts = _in_row(shift, width)
        first, second = np.zeros(width), np.zeros(width)
        part1, part2 = np.empty(width, np.float32), np.empty(width, np.float32)
        for start in range(0, rows, ROWS):
            part1[:] = 0
            part2[:] = 0
            for row in range(start, min(rows, start + ROWS)):
                _ahead(x, row)
                if of_sum:
                    _ahead(added, row)
                    _ahead(out, row)
                for c in range(width):
                    bits = x[row, c]
                    if of_sum:
                        bits = _rounded(_float(bits) + _float(added[row, c]), x)
                        out[row, c] = bits
                    value = _float(bits) - shifts[c]
                    part1[c] += value
                    part2[c] += value * value
            for c in range(width):
                first[c] += part1[c]
                second[c] += part2[c]
        moments[0] = shift
        moments[1], moments[2] = _of_channels(first, channels), _of_channels(second, channels)

    return sums


_moments, _moments_of_sum = _shifted_moments(of_sum=False), _shifted_moments(of_sum=True)


@part
def statistics(num, moments, norm, eps, momentum, saved):
    """Compute a norm's statistics from the moments of ``num`` values; update its running ones.

    ``norm``: addresses of weight, bias, running mean and running variance. ``saved`` gets, per
    channel: mean, 1 / standard deviation, and the factor and term of norm(x) = factor * x + term.
    """
    channels = saved.shape[1]
    weight, bias = vector(norm[0], channels), vector(norm[1], channels)
    running_mean, running_var = vector(norm[2], channels), vector(norm[3], channels)
    for c in range(channels):
        offset = moments[1, c] / num
        mean = moments[0, c] + offset
        variance = max(moments[2, c] / num - offset * offset, 0.0)
        inverse = 1.0 / np.sqrt(variance + eps)
        saved[0, c], saved[1, c] = mean, inverse
        saved[2, c] = weight[c] * inverse
        saved[3, c] = bias[c] - mean * saved[2, c]
        running_mean[c] += momentum * (mean - running_mean[c])
        running_var[c] += momentum * (variance * num / (num - 1) - running_var[c])


def _forward(*, adding: bool):
    @part
    def write(x, added, factor, term, y):
        rows, width = x.shape
        for row in range(rows):
            _ahead(x, row)
            _ahead(y, row)
            if adding:
                _ahead(added, row)
            for c in range(width):
                value = _float(x[row, c]) * factor[c] + term[c]
                if adding:
                    value += _float(added[row, c])
                # Not a maximum, so that NaN stays NaN.
                y[row, c] = _rounded(np.float32(0) if value < 0 else value, y)

    return write


_write, _write_added = _forward(adding=False), _forward(adding=True)


def _gradient_sums(*, added: bool):
    """Return a function that sums g and g * (x - mean), g being the gradient at the ReLU's input.

    g is also the gradient of the added map, if there is one, and is then written here.
    """

    @part
    def sums(x, y, grad, factor, term, mean, out_added):
        rows, width = x.shape
        totals = np.zeros((2, width))
        part1, part2 = np.empty(width, np.float32), np.empty(width, np.float32)
        for start in range(0, rows, ROWS):
            part1[:] = 0
            part2[:] = 0
            for row in range(start, min(rows, start + ROWS)):
                _ahead(x, row)
                _ahead(grad, row)
                if added:
                    _ahead(y, row)
                    _ahead(out_added, row)
                for c in range(width):
                    value = _float(x[row, c])
                    # Without an added map, recomputed from x: one map less to move.
                    above = _float(y[row, c]) if added else value * factor[c] + term[c]
                    slope = _float(grad[row, c]) if above > 0 else np.float32(0)
                    if added:
                        out_added[row, c] = _rounded(slope, out_added)  # exact, same type as grad
                    part1[c] += slope
                    part2[c] += slope * (value - mean[c])
            for c in range(width):
                totals[0, c] += part1[c]
                totals[1, c] += part2[c]
        return totals

    return sums


_slopes, _slopes_added = _gradient_sums(added=False), _gradient_sums(added=True)


@part
def line(num, first, second, saved, of_weight, of_bias):
    """Write the gradients of weight and bias; return slope and constant of the gradient of x.

    The gradient of x is factor * (g - mean(g) - z * mean(g * z)), with z the normalised x, which
    equals factor * g + slope * x + constant. ``first`` and ``second`` are the sums of g and of
    g * (x - mean).
    """
    channels = saved.shape[1]
    slope, constant = np.empty(channels), np.empty(channels)
    for c in range(channels):
        mean, inverse, factor = saved[0, c], saved[1, c], saved[2, c]
        scaled = second[c] * inverse
        of_weight[c], of_bias[c] = scaled, first[c]
        slope[c] = -factor * inverse * scaled / num
        constant[c] = -factor * first[c] / num - slope[c] * mean
    return slope, constant


def _gradient(*, added: bool, passing: bool):
    """Return a function that writes the gradient of x.

    With ``added``, ``grad`` is already that at the ReLU's input. With ``passing``, the gradient
    that x gets from its other readers is added.
    """

    @part
    def write(x, grad, passed, factor, term, per_x, constant, out):
        rows, width = x.shape
        for row in range(rows):
            _ahead(x, row)
            _ahead(grad, row)
            _ahead(out, row)
            if passing:
                _ahead(passed, row)
            for c in range(width):
                value = _float(x[row, c])
                slope = _float(grad[row, c])
                if not added and not value * factor[c] + term[c] > 0:
                    slope = np.float32(0)
                gradient = factor[c] * slope + (per_x[c] * value + constant[c])
                if passing:
                    gradient += _float(passed[row, c])
                out[row, c] = _rounded(gradient, out)

    return write


_write_gradient = _gradient(added=False, passing=False)
_write_gradient_added = _gradient(added=True, passing=False)
_write_gradient_passing = _gradient(added=False, passing=True)


class Kernels(NamedTuple):
    """The kernels for maps of one element type."""

    add: Callable[..., None]
    norm_relu: Callable[..., None]
    norm_relu_backward: Callable[..., None]


@cache
def kernels_of(dtype: torch.dtype) -> Kernels:
    """Return the kernels for maps of one of the types in ``ELEMENTS``."""
    element = ELEMENTS[dtype]
    return Kernels(
        add=_add_of(element),
        norm_relu=_norm_relu_of(element),
        norm_relu_backward=_norm_relu_backward_of(element),
    )


def _add_of(element: Any):
    @kernel(ADDRESS, ADDRESS, _SHAPE, ADDRESS, _SAVED)
    def add(x, added, shape, out, moments):
        """Write x + added, and the moments that a norm of it needs: ``[3, channels]``."""
        _moments_of_sum(
            _map(x, shape, element),
            _map(added, shape, element),
            _map(out, shape, element),
            moments,
        )

    return add


def _norm_relu_of(element: Any):
    @kernel(ADDRESS, ADDRESS, _SHAPE, _SAVED, _NORM, "float64", "float64", ADDRESS, _SAVED)
    def norm_relu(x, added, shape, moments, norm, eps, momentum, y, saved):
        """Write relu(norm(x) + added).

        ``moments`` are those of x from ``add``; without rows they are computed here.
        """
        rows, width = shape
        channels = saved.shape[1]
        of_x = _map(x, shape, element)
        if not len(moments):
            moments = np.empty((3, channels))
            _moments(of_x, of_x, of_x, moments)
        statistics(rows * width // channels, moments, norm, eps, momentum, saved)
        factor, term = _in_row(saved[2], width), _in_row(saved[3], width)
        if added:
            _write_added(
                of_x,
                _map(added, shape, element),
                factor,
                term,
                _map(y, shape, element),
            )
        else:
            _write(of_x, of_x, factor, term, _map(y, shape, element))

    return norm_relu


def _norm_relu_backward_of(element: Any):
    @kernel(*[ADDRESS] * 4, _SHAPE, _SAVED, *[ADDRESS] * 4)
    def norm_relu_backward(x, y, grad, passed, shape, saved, out, out_added, of_weight, of_bias):
        """Write the gradients of ``norm_relu``.

        Either a map was added to norm(x), and y and out_added are given; or ``passed`` may be
        given, the gradient that x gets from its other readers, which is added to its gradient.
        """
        rows, width = shape
        channels = saved.shape[1]
        of_x, of_out = _map(x, shape, element), _map(out, shape, element)
        of_grad = _map(grad, shape, element)
        mean, factor = _in_row(saved[0], width), _in_row(saved[2], width)
        term = _in_row(saved[3], width)
        if y:
            past = _map(out_added, shape, element)
            sums = _slopes_added(of_x, _map(y, shape, element), of_grad, factor, term, mean, past)
        else:
            past = of_grad
            sums = _slopes(of_x, of_x, of_grad, factor, term, mean, of_x)
        norm = vector(of_weight, channels), vector(of_bias, channels)
        totals = _of_channels(sums[0], channels), _of_channels(sums[1], channels)
        per_x, constant = line(rows * width // channels, *totals, saved, *norm)
        lines = factor, term, _in_row(per_x, width), _in_row(constant, width)
        if y:
            _write_gradient_added(of_x, past, past, *lines, of_out)
        elif passed:
            _write_gradient_passing(of_x, past, _map(passed, shape, element), *lines, of_out)
        else:
            _write_gradient(of_x, past, past, *lines, of_out)

    return norm_relu_backward
