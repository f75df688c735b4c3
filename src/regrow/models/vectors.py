"""Vector code for kernels: blocks of matrix products, and small linear transforms of tiles.

The compiler vectorises loops over single numbers, but it does not keep a block of results in
registers, which a matrix product needs to reach the processor's peak. So these few parts are
written as vectors of ``LANES`` numbers, which the compiler splits if registers are shorter.

All functions take addresses, and strides in bytes. ``LANES`` channels are contiguous; functions
without a stride read and write ``LANES`` channels of one pixel.
"""

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 16
VECTOR = 4 * LANES  # bytes

Matrix = Sequence[Sequence[float]]
_COUNT, _FLOAT = ir.IntType(64), ir.FloatType()
_VECTOR = ir.VectorType(_FLOAT, LANES)
_BITS, _SHORT = ir.VectorType(ir.IntType(32), LANES), ir.VectorType(ir.IntType(16), LANES)


def _of_addresses(typing: Callable[..., Any]) -> Callable[..., None]:
    """Wrap ``intrinsic``, which turns a typing function into one that kernels can call."""
    made: Callable[..., None] = intrinsic(typing)
    return made


def product(rows: int, *, adding: bool) -> Callable[..., None]:
    """Return a function that writes a block of rows of a matrix product, or (``adding``) adds it.

    ``c[i, :] = sum over k < num of a[i, k] * b[k, :]`` for i < ``rows``, with rows of ``LANES``
    numbers in b and c. Element ``a[i, k]`` is at ``a + i * a_row + k * a_step``, row ``b[k]`` at
    ``b + k * b_step`` and row ``c[i]`` at ``c + i * c_row``.
    """

    @_of_addresses
    def multiply(_, a, a_row, a_step, b, b_step, c, c_row, num):
        def generate(context, builder, signature, arguments):
            a, a_row, a_step, b, b_step, c, c_row, num = arguments
            results, lefts = _places(builder, c, c_row, rows), _places(builder, a, a_row, rows)
            sums = [_load(builder, at) if adding else _spread(0) for at in results]
            before, loop = builder.block, builder.append_basic_block("products")
            after = builder.append_basic_block("written")
            builder.branch(loop)
            builder.position_at_end(loop)
            counts = [builder.phi(_COUNT) for _ in range(3)]
            blocks = [builder.phi(_VECTOR) for _ in range(rows)]
            index, of_a, of_b = counts
            right = _load(builder, of_b)
            added = [
                _fma(builder, _broadcast(builder, builder.add(left, of_a)), right, block)
                for left, block in zip(lefts, blocks, strict=True)
            ]
            steps = (
                builder.add(index, _COUNT(1)),
                builder.add(of_a, a_step),
                builder.add(of_b, b_step),
            )
            starts = [_COUNT(0), _COUNT(0), b, *sums]
            for phi, first, following in zip(
                [*counts, *blocks], starts, [*steps, *added], strict=True
            ):
                phi.add_incoming(first, before)
                phi.add_incoming(following, loop)
            builder.cbranch(builder.icmp_signed("<", steps[0], num), loop, after)
            builder.position_at_end(after)
            for value, at in zip(added, results, strict=True):
                _store(builder, value, at)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 8), generate

    return multiply


def change(matrix: Matrix) -> Callable[..., None]:
    """Return a function that writes ``matrix @ tile @ matrix.T`` for ``LANES`` channels."""
    num_out, num_in = len(matrix), len(matrix[0])

    @_of_addresses
    def write(_, x, x_row, x_column, y, y_row, y_column):
        def generate(context, builder, signature, arguments):
            x, x_row, x_column, y, y_row, y_column = arguments
            columns = [
                _combined(
                    builder,
                    matrix,
                    [_load(builder, at) for at in _places(builder, head, x_row, num_in)],
                )
                for head in _places(builder, x, x_column, num_in)
            ]
            for i, head in enumerate(_places(builder, y, y_row, num_out)):
                row = _combined(builder, matrix, [column[i] for column in columns])
                for value, at in zip(row, _places(builder, head, y_column, num_out), strict=True):
                    _store(builder, value, at)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 6), generate

    return write


@_of_addresses
def copy(_, to, source, size):
    """Copy ``size`` bytes."""

    def generate(context, builder, signature, arguments):
        to, source = (builder.inttoptr(at, cgutils.voidptr_t) for at in arguments[:2])
        cgutils.raw_memcpy(builder, to, source, arguments[2], 1, align=4)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 3), generate


@_of_addresses
def clear(_, to, size):
    """Set ``size`` bytes to zero."""

    def generate(context, builder, signature, arguments):
        cgutils.memset(builder, builder.inttoptr(arguments[0], cgutils.voidptr_t), arguments[1], 0)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


def rectifying(*, short: bool) -> Callable[..., None]:
    """Return a function that writes relu(factor * x + term); ``short`` maps are bfloat16."""

    @_of_addresses
    def rectify(_, to, x, factor, term):
        def compute(builder, _, x, factor, term):
            value = _fma(builder, x, factor, term)
            # Not a maximum, so that NaN stays NaN.
            return [_where(builder, "<", value, _spread(0), value)]

        return _lane_by_lane(compute, num=4, written=1, short=(0, 1) if short else ())

    return rectify


rectify, rectify_short = rectifying(short=False), rectifying(short=True)


@_of_addresses
def add(_, to, x, added):
    """Write x + added."""
    return _lane_by_lane(lambda builder, _, *x: [builder.fadd(*x)], num=3, written=1)


def adding_line(*, short: bool) -> Callable[..., None]:
    """Return a function that writes grad + slope * x + constant; ``short`` maps are bfloat16."""

    @_of_addresses
    def add_line(_, to, grad, x, slope, constant):
        def compute(builder, _, grad, x, slope, constant):
            return [builder.fadd(grad, _fma(builder, slope, x, constant))]

        return _lane_by_lane(compute, num=5, written=1, short=(0, 1, 2) if short else ())

    return add_line


add_line, add_line_short = adding_line(short=False), adding_line(short=True)


def adding_moments(*, short: bool) -> Callable[..., None]:
    """Return a function that adds x - shift and its square to two rows; ``short`` x: bfloat16."""

    @_of_addresses
    def add_moments(_, first, second, x, shift):
        def compute(builder, first, second, x, shift):
            offset = builder.fsub(x, shift)
            return [builder.fadd(first, offset), _fma(builder, offset, offset, second)]

        return _lane_by_lane(compute, num=4, written=2, short=(2,) if short else ())

    return add_moments


add_moments, add_moments_short = adding_moments(short=False), adding_moments(short=True)


def pass_back(*, adding: bool, short: bool = False) -> Callable[..., None]:
    """Return a function that computes the gradient of x from that of ``rectify``.

    It writes or (``adding``) adds factor * g, with g the gradient at the input of the ReLU: the
    gradient of x without its term slope * x + constant. It also adds g and g * (x - mean) to two
    rows of sums. ``short`` maps are bfloat16.
    """

    @_of_addresses
    def write(_, to, first, second, grad, x, factor, term, mean):
        def compute(builder, to, first, second, grad, x, factor, term, mean):
            above = _fma(builder, x, factor, term)
            slope = _where(builder, ">", above, grad, _spread(0))
            return [
                _fma(builder, factor, slope, to) if adding else builder.fmul(factor, slope),
                builder.fadd(first, slope),
                _fma(builder, slope, builder.fsub(x, mean), second),
            ]

        return _lane_by_lane(compute, num=8, written=3, short=(0, 3, 4) if short else ())

    return write


@_of_addresses
def fetch(_, at):
    """Prefetch the cache line of an address, which may be past the end of a map."""

    def generate(context, builder, signature, arguments):
        byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
        fetched = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        to_read, near, data = word(0), word(3), word(1)
        builder.call(fetched, [builder.inttoptr(arguments[0], byte), to_read, near, data])
        return context.get_dummy_value()

    return types.void(types.int64), generate


def _lane_by_lane(
    compute: Callable[..., list[Any]], *, num: int, written: int, short: Sequence[int] = ()
) -> Any:
    """Return signature and generator of a function of ``num`` addresses, for ``intrinsic``.

    It reads a vector at each address, and writes the results of ``compute`` to the first
    ``written`` addresses. Those at the indices ``short`` are bfloat16 in memory.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        loads = [_load_short if i in short else _load for i in range(num)]
        found = compute(
            builder, *[load(builder, at) for load, at in zip(loads, arguments, strict=True)]
        )
        for i, value in enumerate(found):
            store = _store_short if i in short else _store
            store(builder, value, arguments[i])
        return context.get_dummy_value()

    return types.void(*[types.int64] * num), generate


def _where(builder: Any, sign: str, value: Any, this: Any, other: Any) -> Any:
    """Return ``this`` in lanes where ``value`` is below (or above) 0, else ``other``."""
    return builder.select(builder.fcmp_ordered(sign, value, _spread(0)), this, other)


def _combined(builder: Any, matrix: Matrix, values: list[Any]) -> list[Any]:
    """Return a matrix times a vector of values, in few operations.

    In these matrices, columns (or rows) 1 and 2, and 3 and 4, of 6 are equal except for signs, as
    they belong to points such as +1 and -1. Of the values of two such columns, the sum and the
    difference are computed once; for two such rows, the sums over equal and over opposite terms.
    """
    num_out, num_in = len(matrix), len(matrix[0])
    pairs = ((1, 2), (3, 4))
    if num_in == 6 and _alike(list(zip(*matrix, strict=True)), pairs):
        found = []
        both = [
            (builder.fadd(values[i], values[j]), builder.fsub(values[i], values[j]))
            for i, j in pairs
        ]
        for row in matrix:
            terms = [(row[0], values[0]), (row[5], values[5])]
            for (i, j), (total, difference) in zip(pairs, both, strict=True):
                terms.append((row[i], total if row[i] == row[j] else difference))
            found.append(_total(builder, terms))
        return found
    if num_out == 6 and _alike(matrix, pairs):
        rows = {i: _total(builder, zip(matrix[i], values, strict=True)) for i in (0, 5)}
        for i, j in pairs:
            places = list(zip(matrix[i], matrix[j], values, strict=True))
            same = _total(builder, [(f, x) for f, other, x in places if f == other])
            opposite = _total(builder, [(f, x) for f, other, x in places if f != other])
            rows[i] = builder.fadd(same, opposite)
            rows[j] = builder.fsub(same, opposite)
        return [rows[i] for i in range(6)]
    return [_total(builder, zip(row, values, strict=True)) for row in matrix]


def _alike(rows: Sequence[Sequence[float]], pairs: Sequence[tuple[int, int]]) -> bool:
    """Return whether the rows of each pair are equal except for signs."""
    return all(
        [abs(value) for value in rows[i]] == [abs(value) for value in rows[j]] for i, j in pairs
    )


def _total(builder: Any, terms: Any) -> Any:
    """Return the sum of factors times values."""
    ordered = sorted(((f, x) for f, x in terms if f), key=lambda term: term[0] != 1)
    factor, total = ordered[0]
    if factor != 1:
        total = builder.fmul(_spread(factor), total)
    for factor, value in ordered[1:]:
        if factor == 1:
            total = builder.fadd(total, value)
        elif factor == -1:
            total = builder.fsub(total, value)
        else:
            total = _fma(builder, _spread(factor), value, total)
    return total


def _places(builder: Any, start: Any, step: Any, num: int) -> list[Any]:
    """Return ``num`` addresses, a step apart."""
    places = [start]
    while len(places) < num:
        places.append(builder.add(places[-1], step))
    return places


def _load(builder: Any, at: Any) -> Any:
    loaded = builder.load(builder.inttoptr(at, _VECTOR.as_pointer()))
    loaded.align = 4
    return loaded


def _store(builder: Any, value: Any, at: Any) -> None:
    builder.store(value, builder.inttoptr(at, _VECTOR.as_pointer())).align = 4


def _load_short(builder: Any, at: Any) -> Any:
    """Load bfloat16, the upper halves of float32."""
    loaded = builder.load(builder.inttoptr(at, _SHORT.as_pointer()))
    loaded.align = 2
    return builder.bitcast(builder.shl(builder.zext(loaded, _BITS), _all(16)), _VECTOR)


def _store_short(builder: Any, value: Any, at: Any) -> None:
    """Store as the nearest bfloat16, ties to even."""
    bits = builder.bitcast(value, _BITS)
    odd = builder.and_(builder.lshr(bits, _all(16)), _all(1))
    up = builder.add(builder.add(bits, _all(0x7FFF)), odd)
    short = builder.trunc(builder.lshr(up, _all(16)), _SHORT)
    builder.store(short, builder.inttoptr(at, _SHORT.as_pointer())).align = 2


def _all(bits: int) -> Any:
    return ir.Constant(_BITS, [ir.Constant(ir.IntType(32), bits)] * LANES)


def _broadcast(builder: Any, at: Any) -> Any:
    """Load one number into all lanes."""
    nothing, first = ir.Constant(_VECTOR, ir.Undefined), ir.Constant(ir.IntType(32), 0)
    number = builder.load(builder.inttoptr(at, _FLOAT.as_pointer()))
    one = builder.insert_element(nothing, number, first)
    everywhere = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    return builder.shuffle_vector(one, nothing, everywhere)


def _spread(value: float) -> Any:
    return ir.Constant(_VECTOR, [ir.Constant(_FLOAT, float(value))] * LANES)


def _fma(builder: Any, x: Any, y: Any, z: Any) -> Any:
    kind = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{LANES}f32")
    return builder.call(function, [x, y, z])
