"""3x3 convolutions of stride 1 with a quarter of the multiplications, in float32.

Winograd's minimal filtering F(4x4, 3x3): a tile of 6x6 input pixels gives 4x4 output pixels. Input
tiles, kernel and output tiles are transformed by small matrices; between the transforms, a
convolution is 36 matrix products [tiles, inputs] x [inputs, outputs]:

    y = A^T [(G g G^T) * (B^T x B)] A

The gradient of the kernel is therefore G^T [sum of (A dy A^T) * (B^T x B)] G. The gradient of x is
the same convolution, of the gradient of y with the kernel rotated by 180 degrees.

A map is ``[images, height, width, channels]``, zero outside; tiles are processed in blocks of rows,
whose transformed values stay in the processor's cache. Channels are padded with zeros to whole
vectors.

Reference: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, CVPR 2016,
arXiv:1509.09308, whose matrices these are.
"""

from regrow.models.compiled import ADDRESS, HAS_LONG_VECTORS, kernel, part, vector
from regrow.models.vectors import (
    LANES,
    VECTOR,
    Matrix,
    change,
    clear,
    copy,
    pass_back,
    product,
    rectify,
)

TILE = 4  # side of a tile's output, in pixels
AROUND = 2  # its input is larger by so many
PLACES = (TILE + AROUND) ** 2  # the number of matrix products

B_T: Matrix = [
    [4, 0, -5, 0, 1, 0],
    [0, -4, -4, 1, 1, 0],
    [0, 4, -4, -1, 1, 0],
    [0, -2, -1, 2, 1, 0],
    [0, 2, -1, -2, 1, 0],
    [0, 4, 0, -5, 0, 1],
]
G: Matrix = [
    [1 / 4, 0, 0],
    [-1 / 6, -1 / 6, -1 / 6],
    [-1 / 6, 1 / 6, -1 / 6],
    [1 / 24, 1 / 12, 1 / 6],
    [1 / 24, -1 / 12, 1 / 6],
    [0, 0, 1],
]
A_T: Matrix = [
    [1, 1, 1, 1, 1, 0],
    [0, 1, -1, 2, -2, 0],
    [0, 1, 1, 4, 4, 0],
    [0, 1, -1, 8, -8, 1],
]

# Rows of a block of results: as many as fit into registers beside the operands.
ROWS = 12 if HAS_LONG_VECTORS else 6
ROWS_OF_KERNEL = 8 if HAS_LONG_VECTORS else 4  # divides LANES
# Rows of more than LONG_ROW bytes are APART bytes further apart, because at distances of powers of
# 2 they would share cache lines.
LONG_ROW, APART = 256, 64
# Numbers in a block of tiles, which should stay in the cache; and the fewest tiles in a block, more
# if the kernel is large, because each block reads it again.
BLOCK = 100_000
FEWEST = 48
OF_KERNEL = 512  # at least one tile for so many inputs x outputs

_change_map, _change_gradient = change(B_T), change(list(zip(*A_T, strict=True)))
_change_kernel, _write_map = change(G), change(A_T)
_write_kernel = change(list(zip(*G, strict=True)))
_multiply = product(ROWS, adding=False)
_multiply_and_add = product(ROWS_OF_KERNEL, adding=True)
_add_back, _write_back = pass_back(adding=True), pass_back(adding=False)
_SHAPE = "UniTuple(int64, 5)"  # images, height, width, channels, stride of pixels in channels

Shape = tuple[int, int, int, int, int]


def padded(channels: int) -> int:
    """Return the number of channels, padded to whole vectors."""
    return -(-channels // LANES) * LANES


def strips_of(shape: Shape, outputs: int) -> int:
    """Return the number of strips (rows of tiles) in a block."""
    images, height, width, inputs, _ = shape
    inputs, outputs = padded(inputs), padded(outputs)
    tiles = max(BLOCK // (PLACES * (inputs + outputs)), FEWEST, inputs * outputs // OF_KERNEL)
    return max(1, min(tiles // -(-width // TILE), images * -(-height // TILE)))


def room_of(shape: Shape, outputs: int, strips: int) -> int:
    """Return the size of the kernels' workspace in numbers, for blocks of so many strips."""
    across = -(-shape[2] // TILE)
    inputs, outputs = padded(shape[3]), padded(outputs)
    strip = (TILE + AROUND) * (across * TILE + AROUND) * max(inputs, outputs)
    tiles = strips * across + ROWS
    return strip + PLACES * tiles * (inputs + outputs + APART // 2)


@part
def _row_bytes(channels):
    """Return the stride between tiles, in bytes."""
    size = (channels + LANES - 1) // LANES * VECTOR
    return size if size <= LONG_ROW else size + APART


@part
def _read_strip(x, shape, lines, first, margin, high, wide, strip):
    """Copy rows of an image into a strip of ``high`` x ``wide`` pixels, zero outside the image.

    The strip starts ``margin`` rows above row ``first`` and ``margin`` columns left of the image.
    With ``lines`` (factor and term of each channel), relu(norm(x)) is copied instead of x.
    """
    height, width, channels, between = shape
    pixel, full = channels * 4, (channels + LANES - 1) // LANES * VECTOR
    for r in range(high):
        row, to = first - margin + r, strip + r * wide * full
        if row < 0 or row >= height:
            clear(to, wide * full)
            continue
        source = x + row * width * between * 4
        clear(to, margin * full)
        to += margin * full
        if lines:
            for _ in range(width):
                for c in range(0, full, VECTOR):
                    rectify(to + c, source + c, lines + c, lines + full + c)
                to += full
                source += between * 4
        elif pixel == full and between == channels:
            copy(to, source, width * pixel)
            to += width * pixel
        else:
            for _ in range(width):
                copy(to, source, pixel)
                clear(to + pixel, full - pixel)
                to += full
                source += between * 4
        clear(to, (wide - width - margin) * full)


@part
def _change_maps(x, shape, lines, first, num, strip, to, place):
    """Write B^T x B for the tiles of some strips: ``[places, tiles, channels]``."""
    _, height, width, channels, between = shape
    down, across = (height + TILE - 1) // TILE, (width + TILE - 1) // TILE
    wide, row = across * TILE + AROUND, _row_bytes(channels)
    full = (channels + LANES - 1) // LANES * VECTOR
    for s in range(first, first + num):
        image = x + s // down * height * width * between * 4
        _read_strip(image, shape[1:], lines, s % down * TILE, 1, TILE + AROUND, wide, strip)
        for t in range(across):
            source, place_of_tile = strip + t * TILE * full, to + ((s - first) * across + t) * row
            for c in range(0, full, VECTOR):
                _change_map(
                    source + c, wide * full, full, place_of_tile + c, (TILE + AROUND) * place, place
                )


@part
def _change_gradients(grad, shape, first, num, strip, to, place):
    """Write A dy A^T for the tiles of some strips: ``[places, tiles, channels]``."""
    _, height, width, channels, between = shape
    down, across = (height + TILE - 1) // TILE, (width + TILE - 1) // TILE
    wide, row = across * TILE, _row_bytes(channels)
    full = (channels + LANES - 1) // LANES * VECTOR
    for s in range(first, first + num):
        image, top = grad + s // down * height * width * between * 4, s % down * TILE
        source = image + top * width * full
        if between * 4 != full or channels != between or wide != width or top + TILE > height:
            _read_strip(image, shape[1:], 0, top, 0, TILE, wide, strip)
            source = strip
        for t in range(across):
            place_of_tile = to + ((s - first) * across + t) * row
            for c in range(0, full, VECTOR):
                _change_gradient(
                    source + t * TILE * full + c,
                    wide * full,
                    full,
                    place_of_tile + c,
                    (TILE + AROUND) * place,
                    place,
                )


@part
def _write_maps(products, row, place, shape, first, num, strip, y, behind, sums):
    """Write A^T m A for the tiles of some strips; or, with ``behind``, the gradient of that map."""
    _, height, width, channels, between = shape
    down, across = (height + TILE - 1) // TILE, (width + TILE - 1) // TILE
    wide, pixel = across * TILE, channels * 4
    full = (channels + LANES - 1) // LANES * VECTOR
    for s in range(first, first + num):
        top = s % down * TILE
        high = min(TILE, height - top)
        start = (s // down * height + top) * width * between * 4
        for t in range(across):
            source = products + ((s - first) * across + t) * row
            for c in range(0, full, VECTOR):
                _write_map(
                    source + c,
                    (TILE + AROUND) * place,
                    place,
                    strip + t * TILE * full + c,
                    wide * full,
                    full,
                )
        if behind[0]:
            of_x = behind[0] + start, behind[1], behind[2]
            _pass_back(strip, (high, width, wide, full, between), of_x, y + start, sums)
        elif pixel == full and wide == width and between == channels:
            # One large copy, which waits less for memory.
            copy(y + start, strip, high * width * pixel)
        else:
            for r in range(high):
                for w in range(width):
                    to = y + start + (r * width + w) * between * 4
                    copy(to, strip + (r * wide + w) * full, pixel)


@part
def _pass_back(strip, shape, behind, to, sums):
    """Pass a strip of a gradient back through the norm and ReLU before the convolution."""
    high, width, wide, full, between = shape
    x, lines, adding = behind
    room = strip + high * wide * full
    clear(room, 2 * full)
    for r in range(high):
        for w in range(width):
            grad, at = strip + (r * wide + w) * full, (r * width + w) * between * 4
            for c in range(0, full, VECTOR):
                past = (to + at + c, room + c, room + full + c)
                read = (grad + c, x + at + c, lines + c, lines + full + c, lines + 2 * full + c)
                if adding:
                    _add_back(*past, *read)
                else:
                    _write_back(*past, *read)
    parts = vector(room, full // 2)
    for c in range(full // 4):
        sums[0, c] += parts[c]
        sums[1, c] += parts[full // 4 + c]


@kernel(ADDRESS, "UniTuple(int64, 2)", ADDRESS)
def turn_over(weight, shape, out):
    """Write a kernel ``[rows, 3, 3, columns]`` as ``[columns, 3, 3, rows]``.

    Rows are padded to whole vectors there.
    """
    rows, columns = shape
    lanes = (rows + LANES - 1) // LANES * LANES
    source, to = vector(weight, rows * 9 * columns), vector(out, columns * 9 * lanes)
    if lanes > rows:
        to[:] = 0
    for first in range(0, columns, LANES):  # one cache line at a time
        for top in range(0, rows, LANES):
            for place in range(9):
                for r in range(top, min(top + LANES, rows)):
                    for c in range(first, min(first + LANES, columns)):
                        to[(c * 9 + place) * lanes + r] = source[(r * 9 + place) * columns + c]


@kernel(ADDRESS, "UniTuple(int64, 2)", "boolean", ADDRESS)
def change_kernel(weight, shape, turned, out):
    """Write G g G^T: ``[places, vectors, rows, LANES]`` of a kernel ``[rows, 3, 3, lanes]``.

    ``turned``: for the kernel rotated by 180 degrees. ``lanes`` is a multiple of ``LANES``.
    """
    rows, lanes = shape
    place, start, row, column = rows * lanes * 4, 0, 3 * lanes * 4, lanes * 4
    if turned:
        start, row, column = 2 * (row + column), -row, -column
    for c in range(lanes // LANES):
        for r in range(rows):
            source = weight + start + r * 9 * lanes * 4 + c * VECTOR
            to = out + (c * rows + r) * VECTOR
            _change_kernel(source, row, column, to, (TILE + AROUND) * place, place)


@kernel(
    *(ADDRESS, _SHAPE, ADDRESS, ADDRESS),
    *(ADDRESS, "UniTuple(int64, 2)", "UniTuple(int64, 3)", "float64[:,::1]"),
    *("int64", ADDRESS),
)
def convolve(x, shape, lines, kernels, y, channels, behind, sums, strips, room):
    """Write the convolution of a map with kernels from ``change_kernel``.

    ``lines``: 0, or the address of factor and term of each channel, padded to whole vectors; then
    relu(factor * x + term) is convolved. ``channels``: the channels of y and the stride between its
    pixels.

    ``behind``: zeros; or the address of a map with the layout of y, that of its ``lines`` (factor,
    term and mean), and 0 or 1. Then the convolution is the gradient of relu(norm(map)), and the
    gradient of the map, without its term slope * map + constant, is written (0) or added (1) to y.
    With g the gradient at the input of the ReLU, the sums of g and of g * (map - mean) are added to
    the two rows of ``sums``. Memory after x and y may then be read and written, up to the end of a
    vector.
    """
    images, height, width, inputs, _ = shape
    outputs = channels[0]
    down, across = (height + TILE - 1) // TILE, (width + TILE - 1) // TILE
    vectors = (outputs + LANES - 1) // LANES
    tiles = (strips * across + ROWS - 1) // ROWS * ROWS
    row, row_out = _row_bytes(inputs), _row_bytes(outputs)
    widest = max((inputs + LANES - 1) // LANES, vectors) * VECTOR
    changed = room + (TILE + AROUND) * (across * TILE + AROUND) * widest
    products = changed + PLACES * tiles * row
    of_y = (images, height, width, outputs, channels[1])
    for first in range(0, images * down, strips):
        num = min(strips, images * down - first)
        _change_maps(x, shape, lines, first, num, room, changed, tiles * row)
        for place in range(PLACES):
            for c in range(vectors):
                right = kernels + (place * vectors + c) * inputs * VECTOR
                for t in range(0, num * across, ROWS):
                    left = changed + (place * tiles + t) * row
                    to = products + (place * tiles + t) * row_out + c * VECTOR
                    _multiply(left, row, 4, right, VECTOR, to, row_out, inputs)
        place_out = tiles * row_out
        _write_maps(products, row_out, place_out, of_y, first, num, room, y, behind, sums)


@kernel(ADDRESS, _SHAPE, ADDRESS, ADDRESS, "int64", "int64", ADDRESS, ADDRESS, ADDRESS)
def kernel_gradient(x, shape, lines, grad, outputs, strips, room, sums, out):
    """Write the gradient of a kernel: ``[outputs, 3, 3, inputs]``, inputs padded to whole vectors.

    ``lines``: as in ``convolve``. ``sums``: workspace for ``PLACES`` x outputs x inputs numbers,
    both padded to whole vectors.
    """
    images, height, width, inputs, _ = shape
    down, across = (height + TILE - 1) // TILE, (width + TILE - 1) // TILE
    vectors, rows = (inputs + LANES - 1) // LANES, (outputs + LANES - 1) // LANES * LANES
    tiles = strips * across
    row, row_of_grad = _row_bytes(inputs), _row_bytes(outputs)
    widest = max(vectors * VECTOR, rows * 4)
    changed = room + (TILE + AROUND) * (across * TILE + AROUND) * widest
    gradients = changed + PLACES * tiles * row
    clear(sums, PLACES * vectors * rows * VECTOR)
    of_y = (images, height, width, outputs, outputs)
    for first in range(0, images * down, strips):
        num = min(strips, images * down - first)
        _change_maps(x, shape, lines, first, num, room, changed, tiles * row)
        _change_gradients(grad, of_y, first, num, room, gradients, tiles * row_of_grad)
        for place in range(PLACES):
            left = gradients + place * tiles * row_of_grad
            for c in range(vectors):
                right = changed + place * tiles * row + c * VECTOR
                to = sums + (place * vectors + c) * rows * VECTOR
                for r in range(0, outputs, ROWS_OF_KERNEL):
                    _multiply_and_add(
                        left + r * 4,
                        4,
                        row_of_grad,
                        right,
                        row,
                        to + r * VECTOR,
                        VECTOR,
                        num * across,
                    )
    place = vectors * rows * VECTOR
    for r in range(outputs):
        for c in range(vectors):
            source, to = sums + (c * rows + r) * VECTOR, out + (r * 9 * vectors + c) * VECTOR
            _write_kernel(
                source,
                (TILE + AROUND) * place,
                place,
                to,
                3 * vectors * VECTOR,
                vectors * VECTOR,
            )
