"""1x1 convolutions of relu(norm(x)) in float32, without writing relu(norm(x)) to memory.

A map is ``[pixels, channels]``, with a longer stride between pixels if its channels are part of a
wider map. Blocks of pixels are read, passed through norm and ReLU, and multiplied while they are in
the processor's cache. The ``lines`` of a norm are rows of whole vectors: factor, term and mean of
each channel, with norm(x) = factor * x + term.

Reads and writes may extend past a pixel's channels to the end of a vector, so a map needs room for
one vector at its end. The next pixel or other channels there keep their values or are written
later.
"""

from regrow.models.compiled import ADDRESS, flush, kernel, part, vector
from regrow.models.vectors import (
    LANES,
    VECTOR,
    add,
    add_line,
    add_moments,
    clear,
    copy,
    pass_back,
    product,
    rectify,
)
from regrow.models.winograd import ROWS, ROWS_OF_KERNEL, padded

PIXELS = 4 * 12  # of a block, a multiple of ROWS
_multiply, _multiply_and_add = product(ROWS, adding=False), product(ROWS_OF_KERNEL, adding=True)
_add_back, _write_back = pass_back(adding=True), pass_back(adding=False)
_SHAPE = "UniTuple(int64, 3)"  # pixels, channels, and the stride between pixels in channels
_MOMENTS = "float64[:,:]"  # rows: a shift near the mean; sums of x - shift, and of its square

Shape = tuple[int, int, int]


def room_of(inputs: int, outputs: int) -> int:
    """Return the size of the kernels' workspace, in numbers."""
    return (2 * PIXELS + 3) * (padded(inputs) + padded(outputs))  # for forward and backward


@part
def _size(channels):
    """Return the bytes of a number of channels, padded to whole vectors."""
    return (channels + LANES - 1) // LANES * VECTOR


@part
def _rectify_pixels(x, shape, lines, to):
    """Write relu(norm(x)), padded to whole vectors."""
    pixels, channels, between = shape
    full = _size(channels)
    for _ in range(pixels):
        for c in range(0, full, VECTOR):
            rectify(to + c, x + c, lines + c, lines + full + c)
        x += between * 4
        to += full


@part
def _add_up(x, shape, shift, sums):
    """Add x - shift and its square, over pixels, to two rows of sums."""
    pixels, channels, between = shape
    full = _size(channels)
    for _ in range(pixels):
        for c in range(0, full, VECTOR):
            add_moments(sums + c, sums + full + c, x + c, shift + c)
        x += between * 4


@kernel(ADDRESS, _SHAPE, ADDRESS, _MOMENTS)
def moments(x, shape, room, found):
    """Write the moments of each channel: ``[3, channels]``."""
    pixels, channels, between = shape
    full = _size(channels)
    copy(room, x, full)
    shift, parts = vector(room, channels), room + full
    for c in range(channels):
        found[0, c], found[1, c], found[2, c] = shift[c], 0.0, 0.0
    clear(parts, 2 * full)
    for first in range(0, pixels, PIXELS):
        num = min(PIXELS, pixels - first)
        _add_up(x + first * between * 4, (num, channels, between), room, parts)
        flush(parts, full // 4, channels, found[1:])


@kernel(*[ADDRESS] * 3, _SHAPE, ADDRESS, "int64")
def straighten(grad, x, lines, shape, out, between_out):
    """Write grad + slope * x + constant; ``lines`` are slope and constant of each channel."""
    pixels, channels, between = shape
    full = _size(channels)
    for _ in range(pixels):
        for c in range(0, full, VECTOR):
            add_line(out + c, grad + c, x + c, lines + c, lines + full + c)
        grad += between * 4
        x += between * 4
        out += between_out * 4


@kernel(ADDRESS, _SHAPE, *[ADDRESS] * 4, "UniTuple(int64, 2)", ADDRESS, _MOMENTS)
def convolve(x, shape, lines, weight, added, y, channels, room, found):
    """Write y = weight * relu(norm(x)) + added, and the moments of y.

    ``weight``: ``[vectors, inputs, LANES]``. ``channels``: the channels of y, and the stride
    between pixels in y and in ``added``, which may be 0 (no map).
    """
    pixels, inputs, between = shape
    outputs, between_out = channels
    row, row_out = _size(inputs), _size(outputs)
    products = room + PIXELS * row
    shift, parts = products + PIXELS * row_out, products + (PIXELS + 1) * row_out
    clear(parts, 2 * row_out)
    found[:] = 0.0
    for first in range(0, pixels, PIXELS):
        num = min(PIXELS, pixels - first)
        _rectify_pixels(x + first * between * 4, (num, inputs, between), lines, room)
        for c in range(row_out // VECTOR):
            for p in range(0, num, ROWS):
                to = products + p * row_out + c * VECTOR
                right = weight + c * inputs * VECTOR
                _multiply(room + p * row, row, 4, right, VECTOR, to, row_out, inputs)
        if added:
            for p in range(num):
                at = added + (first + p) * between_out * 4
                for c in range(p * row_out, (p + 1) * row_out, VECTOR):
                    add(products + c, products + c, at + c - p * row_out)
        if first == 0:
            copy(shift, products, row_out)
            found[0] = vector(shift, outputs)
        _add_up(products, (num, outputs, row_out // 4), shift, parts)
        for p in range(num):
            copy(y + (first + p) * between_out * 4, products + p * row_out, outputs * 4)
        flush(parts, _size(outputs) // 4, outputs, found[1:])


@part
def _read_gradient(grad, channels, straight, first, num, to):
    """Copy pixels of a gradient, padded to whole vectors, and fill the block with zero pixels."""
    outputs, between = channels
    full, at = _size(outputs), first * between * 4
    if straight[0]:
        shape, x = (num, outputs, between), straight[0] + at
        straighten(grad + at, x, straight[1], shape, grad + at, between)
    for p in range(num):
        copy(to, grad + at + p * between * 4, outputs * 4)
        clear(to + outputs * 4, full - outputs * 4)
        to += full
    clear(to, (PIXELS - num) * full)


@kernel(
    *(ADDRESS, _SHAPE, *[ADDRESS] * 3, "UniTuple(int64, 2)", "UniTuple(int64, 2)"),
    *(ADDRESS, "boolean", ADDRESS, _MOMENTS, ADDRESS),
)
def gradients(x, shape, lines, weight, grad, channels, straight, to, adding, of_weight, sums, room):
    """Write the gradients of ``convolve``.

    ``weight`` and ``of_weight``: ``[vectors of inputs, outputs, LANES]``, the latter with outputs
    padded to whole vectors. ``channels``: the channels of ``grad`` and the stride between its
    pixels. The gradient of x, without its term slope * x + constant, is written to ``to`` or
    (``adding``) added to it; ``to`` has the layout of x. With g the gradient at the input of the
    ReLU, the sums of g and of g * (x - mean) are added to the two rows of ``sums``.

    ``straight``: zeros, or the addresses of a map with the layout of ``grad`` and of its lines;
    slope * map + constant is then added to ``grad`` first.
    """
    pixels, inputs, between = shape
    outputs = channels[0]
    row, row_of_grad = _size(inputs), _size(outputs)
    rectified, found = room + PIXELS * row_of_grad, room + PIXELS * (row_of_grad + row)
    parts = found + PIXELS * row
    clear(parts, 2 * row)
    clear(of_weight, row // 4 * row_of_grad)
    for first in range(0, pixels, PIXELS):
        num = min(PIXELS, pixels - first)
        start = first * between * 4
        _read_gradient(grad, channels, straight, first, num, room)
        _rectify_pixels(x + start, (num, inputs, between), lines, rectified)
        for c in range(0, row, VECTOR):
            right = weight + c * outputs
            for p in range(0, num, ROWS):
                left = room + p * row_of_grad
                _multiply(left, row_of_grad, 4, right, VECTOR, found + p * row + c, row, outputs)
            for r in range(0, outputs, ROWS_OF_KERNEL):
                of_rows = of_weight + c * (row_of_grad // 4) + r * VECTOR
                left = room + r * 4
                _multiply_and_add(left, 4, row_of_grad, rectified + c, row, of_rows, VECTOR, num)
        for p in range(num):
            at = start + p * between * 4
            for c in range(0, row, VECTOR):
                past = (to + at + c, parts + c, parts + row + c)
                grad_of_pixel = found + p * row + c
                line = (lines + c, lines + row + c, lines + 2 * row + c)
                if adding:
                    _add_back(*past, grad_of_pixel, x + at + c, *line)
                else:
                    _write_back(*past, grad_of_pixel, x + at + c, *line)
        flush(parts, _size(inputs) // 4, inputs, sums)
