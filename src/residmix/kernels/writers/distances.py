"""Micro-kernels of the E-step: rows into columns, rotated rows, squared distances (see `residmix.kernels.compiled`)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from residmix.kernels.compiled import (
    CHUNK,
    FLOATS,
    LINE,
    REGISTERS,
    WIDTH,
    ZERO,
    Builder,
    Value,
    at,
    broadcast,
    choose,
    fewer,
    get,
    integer,
    kernel,
    load,
    load_four,
    loop,
    multiply_add,
    number,
    pick,
    prefetch,
    put,
    store,
    subtract_square,
)

__all__ = ["fetch_part", "join_full", "load_columns", "products", "rotate", "take_expected"]

# Columns up to which a group of columns of the factor takes the rows less their means, rather than copies of them:
# subtracting twice is cheaper than to store and load.
NARROW = 8


@kernel
def load_columns(b: Builder, rows: Value, start: Value, n: Value, m: Value, stride: Value, x: Value) -> None:
    """x[j, i] = rows[start + i, j] for n rows of m columns, 0 for i from n on; columns of `x` are `stride` apart."""
    first, whole, fours = b.mul(start, m), b.sdiv(n, integer(WIDTH)), b.sdiv(m, integer(4))

    def block(i: Value, _: list[Value]) -> list[Value]:
        row = b.mul(i, integer(WIDTH))

        def four(j: Value, _: list[Value]) -> list[Value]:
            column = b.mul(j, integer(4))
            _transpose(b, rows, at(b, first, b.mul(row, m), column), m, x, at(b, b.mul(column, stride), row), stride)
            return []

        return loop(b, fours, [], four)

    def rest(j: Value, _: list[Value]) -> list[Value]:
        done = b.icmp_signed("<", j, b.mul(fours, integer(4)))
        begin, column = b.select(done, b.mul(whole, integer(WIDTH)), integer(0)), b.mul(j, stride)

        def copy(i: Value, _: list[Value]) -> list[Value]:
            i = at(b, begin, i)
            put(b, get(b, rows, first, b.mul(i, m), j), x, column, i)
            return []

        def clear(i: Value, _: list[Value]) -> list[Value]:
            put(b, number(0.0), x, column, n, i)
            return []

        loop(b, b.sub(n, begin), [], copy)
        return loop(b, b.sub(stride, n), [], clear)

    loop(b, whole, [], block)
    loop(b, m, [], rest)


def _transpose(b: Builder, rows: Value, r0: Value, n_columns: Value, x: Value, x0: Value, stride: Value) -> None:
    """x[j, :WIDTH] = rows[:WIDTH, j] for 4 columns; rows are `n_columns` apart, columns of `x` are `stride` apart."""
    lines = [load_four(b, rows, r0, b.mul(n_columns, integer(i))) for i in range(WIDTH)]
    if WIDTH == 8:
        # rows i and i + 4 side by side: what is left are two 4 x 4 transposes, one in each half
        lines = [pick(b, lines[i], lines[i + 4], list(range(8))) for i in range(4)]
    halves = range(0, WIDTH, 4)
    if WIDTH == 2:
        columns = [pick(b, lines[0], lines[1], [j, 4 + j]) for j in range(4)]
    else:
        columns = [ZERO] * 4
        for odd in (0, 1):
            order = [h + e + s for h in halves for e in (odd, odd + 2) for s in (0, WIDTH)]
            one, two = (pick(b, lines[i], lines[i + 1], order) for i in (0, 2))
            for late in (0, 2):
                order = [h + late + s + t for h in halves for s in (0, WIDTH) for t in (0, 1)]
                columns[odd + late] = pick(b, one, two, order)
    for j, column in enumerate(columns):
        store(b, column, x, x0, b.mul(stride, integer(j)))


def fetch_part(
    b: Builder, ahead: tuple[Value, Value, Value], n: Value, part: Value, parts: Value, size: int = 1
) -> None:
    """Ask for some of the `parts` of n rows to be in the second cache: `size` of them, from `part` on.

    `ahead` are the rows, the first of them and how many columns these have. With few columns, waiting for the next
    tile's rows takes a fifth of the time, and a processor that's asked for all of them at once is as slow.
    """
    rows, first, m = ahead
    per_line = LINE // (4 if rows.type.pointee == FLOATS.element else 8)
    each = b.sdiv(b.sub(at(b, b.sdiv(b.mul(n, m), integer(per_line)), parts), integer(1)), parts)
    begin = at(b, b.mul(first, m), b.mul(b.mul(part, each), integer(per_line)))

    def line(i: Value, _: list[Value]) -> list[Value]:
        prefetch(b, rows, begin, b.mul(i, integer(per_line)))
        return []

    loop(b, b.mul(each, integer(size)), [], line)


@kernel
def join_full(
    b: Builder,
    x: Value,
    x0: Value,
    stride: Value,
    means: Value,
    m0: Value,
    between: Value,
    packed: Value,
    constant: Value,
    K: Value,
    d: Value,
    chunk: Value,
    out: Value,
    rows: Value,
    next0: Value,
    m: Value,
) -> None:
    """out[k, i] = constant[k] - half the squared Mahalanobis distance of row i from mean k, for `stride` rows.

    The rows' d columns begin at `x0`, the d numbers of mean k at ``m0 + k between``. A chunk of rows is done at a
    time, `chunk` (d, CHUNK) being scratch for it. Fetches as many rows of m columns, from row `next0` on.
    """
    narrow = b.icmp_signed("<=", d, integer(NARROW))

    def component(k: Value, _: list[Value]) -> list[Value]:
        mean, factor, begin = at(b, m0, b.mul(k, between)), b.mul(k, b.mul(d, d)), broadcast(b, constant, k)
        fetch_part(b, (rows, next0, m), stride, k, K)

        def chunks(i: Value, _: list[Value]) -> list[Value]:
            first = b.mul(i, integer(CHUNK))

            def centred(j: Value) -> list[Value]:
                mean_j, column = broadcast(b, means, mean, j), at(b, x0, first, b.mul(j, stride))
                return [b.fsub(load(b, x, column, r * WIDTH), mean_j) for r in range(REGISTERS)]

            def copied(j: Value) -> list[Value]:
                column = b.mul(j, integer(CHUNK))
                return [load(b, chunk, column, r * WIDTH) for r in range(REGISTERS)]

            def copy(j: Value, _: list[Value]) -> list[Value]:
                column = b.mul(j, integer(CHUNK))
                for r, value in enumerate(centred(j)):
                    store(b, value, chunk, column, r * WIDTH)
                return []

            with b.if_else(narrow) as (directly, from_copies):
                with directly:
                    values = _distances(b, centred, packed, factor, d, begin)
                    for r, value in enumerate(values):
                        store(b, value, out, b.mul(k, stride), first, r * WIDTH)
                with from_copies:
                    loop(b, d, [], copy)
                    values = _distances(b, copied, packed, factor, d, begin)
                    for r, value in enumerate(values):
                        store(b, value, out, b.mul(k, stride), first, r * WIDTH)
            return []

        return loop(b, b.sdiv(stride, integer(CHUNK)), [], chunks)

    loop(b, K, [], component)


def _groups(b: Builder, d: Value) -> Value:
    return b.sdiv(at(b, d, 3), integer(4))


def products(
    b: Builder,
    row: Callable[[Value], list[Value]],
    packed: Value,
    f0: Value,
    d: Value,
    carried: list[Value],
    finish: Callable[[list[Value], Value, int, list[Value]], list[Value]],
    *,
    zero: Value = ZERO,
    broadcast: Callable[..., Value] = broadcast,
) -> list[Value]:
    """Multiply a chunk of rows with a packed triangular factor; `row` is one of the chunk's columns.

    A group of four columns of the factor keeps its sums in registers: over the rows above the tip of its triangle in a
    loop, then over the triangle's. The last group is of 1 ... 4. ``finish(carried, first column, how many, sums)`` is
    given each group's, and returns what is carried on to the next.
    """

    def group(g: Value, carried: list[Value]) -> list[Value]:
        above, entry = b.mul(g, integer(4)), carried[-1]

        def columns(width: int) -> list[Value]:
            def multiply(j: Value, sums: list[Value], columns: range) -> list[Value]:
                values, new = row(j), list(sums)
                for c in columns:
                    factor = broadcast(b, packed, entry, b.mul(j, integer(width)), c)
                    for r in range(REGISTERS):
                        new[c * REGISTERS + r] = multiply_add(b, values[r], factor, new[c * REGISTERS + r])
                return new

            sums = loop(b, above, [zero] * (width * REGISTERS), lambda j, sums: multiply(j, sums, range(width)))
            for c in range(width):
                sums = multiply(at(b, above, c), sums, range(c, width))
            done = finish(carried[:-1], above, width, sums)
            return [*done, at(b, entry, b.mul(integer(width), at(b, above, width)))]

        wide = fewer(b, integer(3), b.sub(b.sub(d, above), integer(1)))
        return choose(b, wide, [partial(columns, width) for width in (1, 2, 3, 4)])

    return loop(b, _groups(b, d), [*carried, f0], group)[:-1]


def _distances(
    b: Builder, row: Callable[[Value], list[Value]], packed: Value, f0: Value, d: Value, begin: Value
) -> list[Value]:
    """Return `begin` minus the squared products of a chunk with the columns of a factor."""

    def squares(left: list[Value], above: Value, width: int, sums: list[Value]) -> list[Value]:
        new = list(left)
        for r in range(REGISTERS):
            for c in range(width):
                new[r] = subtract_square(b, new[r], sums[c * REGISTERS + r])
        return new

    return products(b, row, packed, f0, d, [begin] * REGISTERS, squares)


@kernel
def rotate(b: Builder, x: Value, stride: Value, packed: Value, d: Value, out: Value) -> None:
    """out[c, i] = sum_j x[j, i] factor[j, c] for `stride` rows, with one packed triangular factor."""

    def rows(i: Value, _: list[Value]) -> list[Value]:
        first = b.mul(i, integer(CHUNK))

        def row(j: Value) -> list[Value]:
            return [load(b, x, first, b.mul(j, stride), r * WIDTH) for r in range(REGISTERS)]

        def keep(_: list[Value], above: Value, width: int, sums: list[Value]) -> list[Value]:
            for c in range(width):
                for r in range(REGISTERS):
                    store(b, sums[c * REGISTERS + r], out, first, b.mul(at(b, above, c), stride), r * WIDTH)
            return []

        return products(b, row, packed, integer(0), d, [], keep)

    loop(b, b.sdiv(stride, integer(CHUNK)), [], rows)


@kernel
def take_expected(
    b: Builder, y: Value, stride: Value, means: Value, K: Value, d: Value, joint: Value, reached: Value
) -> None:
    """y[j, i] -= sum_k joint[k, i] means[k, j], in place, for `stride` rows; 0 where reached[i] isn't positive."""

    def rows(i: Value, _: list[Value]) -> list[Value]:
        first = b.mul(i, integer(CHUNK))
        counts = [b.fcmp_ordered(">", load(b, reached, first, r * WIDTH), ZERO) for r in range(REGISTERS)]

        def group(g: Value, _: list[Value]) -> list[Value]:
            j = b.mul(g, integer(4))

            def columns(width: int) -> list[Value]:
                places = [(at(b, first, b.mul(at(b, j, c), stride)), r) for c in range(width) for r in range(REGISTERS)]

                def component(k: Value, left: list[Value]) -> list[Value]:
                    share, new = b.mul(k, stride), []
                    shares = [load(b, joint, share, first, r * WIDTH) for r in range(REGISTERS)]
                    for c in range(width):
                        mean = broadcast(b, means, b.mul(k, d), j, c)
                        for r in range(REGISTERS):
                            product = b.fmul(shares[r], mean, flags=("contract",))
                            new.append(b.fsub(left[c * REGISTERS + r], product, flags=("contract",)))
                    return new

                left = loop(b, K, [load(b, y, begin, r * WIDTH) for begin, r in places], component)
                for value, (begin, r) in zip(left, places, strict=True):
                    store(b, b.select(counts[r], value, ZERO), y, begin, r * WIDTH)
                return []

            wide = fewer(b, integer(3), b.sub(b.sub(d, j), integer(1)))
            return choose(b, wide, [partial(columns, width) for width in (1, 2, 3, 4)])

        return loop(b, _groups(b, d), [], group)

    loop(b, b.sdiv(stride, integer(CHUNK)), [], rows)
