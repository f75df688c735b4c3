"""Norm and ReLU on part of a wider bfloat16 map, forward and backward, for PyTorch's convolutions.

A map is as in ``pointwise``, but of bfloat16: reads and writes may extend past a pixel's channels
to the end of a vector, so a map needs room for one vector at its end; other channels there keep
their values or are written later. Maps made by PyTorch have no such room, so their last pixel is
read from a copy. Arithmetic is float32.
"""

from regrow.models.compiled import ADDRESS, flush, kernel, part, vector
from regrow.models.vectors import (
    LANES,
    VECTOR,
    add_line_short,
    add_moments_short,
    clear,
    copy,
    fetch,
    pass_back,
    rectify_short,
)

ROWS = 64  # summed in float32
AHEAD = 4  # pixels to prefetch, because the processor's own prefetching is late
FAR = 16  # likewise, where little of each pixel is read
PIECE = 8  # channels that are copied at once
SIZE = 2  # bytes of a bfloat16
HALF = VECTOR // 2  # bytes of a vector in a map
_add_back, _write_back = pass_back(adding=True, short=True), pass_back(adding=False, short=True)
_SHAPE = "UniTuple(int64, 3)"  # pixels, channels, and the stride between pixels in channels
_MOMENTS = "float64[:,:]"  # as in ``pointwise``


@part
def _vectors(channels):
    return (channels + LANES - 1) // LANES


@kernel(ADDRESS, _SHAPE, ADDRESS, ADDRESS)
def rectify(x, shape, lines, to):
    """Write relu(norm(x)) with its pixels contiguous; ``lines`` are padded to whole vectors."""
    pixels, channels, between = shape
    full = _vectors(channels) * VECTOR
    for _ in range(pixels):
        for c in range(_vectors(channels)):
            line = lines + c * VECTOR
            fetch(x + c * HALF + AHEAD * between * SIZE)
            rectify_short(to + c * HALF, x + c * HALF, line, line + full)
        x += between * SIZE
        to += channels * SIZE


@kernel(*[ADDRESS] * 2, _SHAPE, ADDRESS, _MOMENTS)
def place(x, to, shape, room, found):
    """Copy contiguous pixels to a part of a map; write the moments of each channel.

    There are 8 channels or more. ``found``: ``[3, channels]``.
    """
    pixels, channels, between = shape
    full = _vectors(channels) * VECTOR
    shift, parts, last = vector(room, full // 4), room + full, room + 3 * full
    shift[:] = 0
    for p in range(pixels):
        if p == pixels - 1:
            copy(last, x, channels * SIZE)
            x = last
        if p == 0:  # the shift is the first pixel, converted to float32 as moments about 0
            clear(parts, 2 * full)
            for c in range(0, full, VECTOR):
                add_moments_short(room + c, parts + c, x + c // 2, parts + full + c)
            clear(parts, 2 * full)
        for c in range(0, full, VECTOR):
            add_moments_short(parts + c, parts + full + c, x + c // 2, room + c)
        fetch(to + FAR * between * SIZE)
        for c in range(0, channels - PIECE, PIECE):
            copy(to + c * SIZE, x + c * SIZE, PIECE * SIZE)
        end = (channels - PIECE) * SIZE
        copy(to + end, x + end, PIECE * SIZE)
        x += channels * SIZE
        to += between * SIZE
        if p == 0:
            for c in range(channels):
                found[0, c], found[1, c], found[2, c] = shift[c], 0.0, 0.0
        if (p + 1) % ROWS == 0:
            flush(parts, full // 4, channels, found[1:])
    flush(parts, full // 4, channels, found[1:])


@kernel(*[ADDRESS] * 3, _SHAPE, ADDRESS, "int64")
def straighten(grad, x, lines, shape, out, between_out):
    """Write grad + slope * x + constant; ``lines`` are slope and constant of each channel."""
    pixels, channels, between = shape
    full = _vectors(channels) * VECTOR
    for _ in range(pixels):
        for c in range(_vectors(channels)):
            line, at = lines + c * VECTOR, c * HALF
            fetch(grad + at + FAR * between * SIZE)
            fetch(x + at + FAR * between * SIZE)
            add_line_short(out + at, grad + at, x + at, line, line + full)
        grad += between * SIZE
        x += between * SIZE
        out += between_out * SIZE


@kernel(ADDRESS, _SHAPE, *[ADDRESS] * 3, "boolean", _MOMENTS, ADDRESS)
def back(x, shape, lines, grad, to, adding, sums, room):
    """Compute the gradient of x from that of ``rectify``, without its term slope * x + constant.

    It is written to ``to``, which has the layout of x, or (``adding``) added to it. With g the
    gradient at the input of the ReLU, the sums of g and of g * (x - mean) are added to ``sums``.
    """
    pixels, channels, between = shape
    num = _vectors(channels)
    full = num * VECTOR
    parts, last = room, room + 2 * full
    clear(parts, 2 * full)
    for p in range(pixels):
        if p == pixels - 1:
            copy(last, grad, channels * SIZE)
            grad = last
        for c in range(num):
            at, line = c * HALF, lines + c * VECTOR
            past = (to + at, parts + c * VECTOR, parts + full + c * VECTOR)
            of_line = (line, line + full, line + 2 * full)
            fetch(x + at + AHEAD * between * SIZE)
            fetch(to + at + AHEAD * between * SIZE)
            fetch(grad + at + AHEAD * channels * SIZE)
            if adding:
                _add_back(*past, grad + at, x + at, *of_line)
            else:
                _write_back(*past, grad + at, x + at, *of_line)
        x += between * SIZE
        to += between * SIZE
        grad += channels * SIZE
        if (p + 1) % ROWS == 0:
            flush(parts, full // 4, channels, sums)
    flush(parts, full // 4, channels, sums)
