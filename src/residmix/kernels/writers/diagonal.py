"""Micro-kernels of components whose axes are the features': distances and moments (see `residmix.kernels.compiled`).

A ball is a component whose axes are all alike. Its squared distances serve the density and the moments, so that each of
these takes one product a feature where others take two.
"""

from __future__ import annotations

from collections.abc import Callable

from residmix.kernels.compiled import (
    CHUNK,
    REGISTERS,
    WIDTH,
    ZERO,
    Builder,
    Value,
    at,
    broadcast,
    get,
    integer,
    kernel,
    load,
    loop,
    multiply_add,
    number,
    store,
    subtract_square,
)
from residmix.kernels.plain import NOTHING
from residmix.kernels.writers.distances import fetch_part

__all__ = ["join_balls", "join_scaled", "scatter_balls", "scatter_squares", "square_distances"]

# Columns whose sums are under way at once, as many as registers hold; what is left over takes the next smaller number.
_MANY = (8, 4, 1) if WIDTH == 8 else (4, 1)


def _in_turns(b: Builder, count: Value, sizes: tuple[int, ...], body: Callable[[Value, int], None]) -> None:
    """Emit ``body(first, size)`` for all of `count`, by as many as the largest size that fits what is left."""
    done = integer(0)
    for size in sizes:
        turns = b.sdiv(b.sub(count, done), integer(size))

        def turn(i: Value, _: list[Value], size: int = size, done: Value = done) -> list[Value]:
            body(at(b, done, b.mul(i, integer(size))), size)
            return []

        loop(b, turns, [], turn)
        done = at(b, done, b.mul(turns, integer(size)))


def _by_chunk(
    b: Builder,
    stride: Value,
    K: Value,
    sizes: tuple[int, ...],
    ahead: tuple[Value, Value, Value],
    body: Callable[[Value, Value, int], None],
) -> None:
    """Emit ``body(first row, first component, how many)`` for a tile, a chunk of rows after the other.

    The next tile is fetched meanwhile: see `fetch_part`.
    """
    chunks = b.sdiv(stride, integer(CHUNK))

    def chunk(i: Value, _: list[Value]) -> list[Value]:
        def components(k: Value, size: int) -> None:
            fetch_part(b, ahead, stride, at(b, b.mul(i, K), k), b.mul(chunks, K), size)
            body(b.mul(i, integer(CHUNK)), k, size)

        _in_turns(b, K, sizes, components)
        return []

    loop(b, chunks, [], chunk)


@kernel
def join_scaled(
    b: Builder,
    x: Value,
    stride: Value,
    means: Value,
    factors: Value,
    constant: Value,
    K: Value,
    d: Value,
    out: Value,
    rows: Value,
    next0: Value,
    m: Value,
) -> None:
    """out[k, i] = constant[k] - sum_j ((x[j, i] - means[k, j]) factors[k, j])**2, for `stride` rows.

    Fetches as many rows of m columns, from row `next0` on.
    """

    def component(first: Value, k: Value, _: int) -> None:
        mean, begin = b.mul(k, d), broadcast(b, constant, k)

        def squares(j: Value, left: list[Value]) -> list[Value]:
            mean_j, factor_j = broadcast(b, means, mean, j), broadcast(b, factors, mean, j)
            column = at(b, first, b.mul(j, stride))
            values = [load(b, x, column, r * WIDTH) for r in range(REGISTERS)]
            scaled = [b.fmul(b.fsub(value, mean_j), factor_j) for value in values]
            return [subtract_square(b, total, value) for total, value in zip(left, scaled, strict=True)]

        for r, value in enumerate(loop(b, d, [begin] * REGISTERS, squares)):
            store(b, value, out, b.mul(k, stride), first, r * WIDTH)

    _by_chunk(b, stride, K, (1,), (rows, next0, m), component)


@kernel
def square_distances(
    b: Builder,
    x: Value,
    stride: Value,
    means: Value,
    K: Value,
    d: Value,
    out: Value,
    rows: Value,
    next0: Value,
    m: Value,
) -> None:
    """out[k, i] = sum_j (x[j, i] - means[k, j])**2, for `stride` rows; fetches as `join_scaled` does."""

    def components(first: Value, k: Value, size: int) -> None:
        def squares(j: Value, sums: list[Value]) -> list[Value]:
            column, new = at(b, first, b.mul(j, stride)), []
            values = [load(b, x, column, r * WIDTH) for r in range(REGISTERS)]
            for c in range(size):
                mean = broadcast(b, means, b.mul(at(b, k, c), d), j)
                for r, value in enumerate(values):
                    away = b.fsub(value, mean)
                    new.append(multiply_add(b, away, away, sums[c * REGISTERS + r]))
            return new

        found = loop(b, d, [ZERO] * (size * REGISTERS), squares)
        for i, value in enumerate(found):
            c, r = divmod(i, REGISTERS)
            store(b, value, out, b.mul(at(b, k, c), stride), first, r * WIDTH)

    _by_chunk(b, stride, K, (2, 1), (rows, next0, m), components)


@kernel
def join_balls(
    b: Builder, squares: Value, stride: Value, factors: Value, constant: Value, K: Value, out: Value
) -> None:
    """out[k, i] = constant[k] - factors[k]**2 squares[k, i], for `stride` rows; `out` may be `squares`."""

    def component(k: Value, _: list[Value]) -> list[Value]:
        factor, begin = broadcast(b, factors, k), broadcast(b, constant, k)
        scale = b.fmul(factor, factor)

        def vector(i: Value, _: list[Value]) -> list[Value]:
            place = at(b, b.mul(k, stride), b.mul(i, integer(WIDTH)))
            product = b.fmul(scale, load(b, squares, place), flags=("contract",))
            store(b, b.fsub(begin, product, flags=("contract",)), out, place)
            return []

        return loop(b, b.sdiv(stride, integer(WIDTH)), [], vector)

    loop(b, K, [], component)


@kernel
def scatter_squares(
    b: Builder,
    x: Value,
    d: Value,
    stride: Value,
    means: Value,
    K: Value,
    masses: Value,
    joint: Value,
    shift: Value,
    scatter: Value,
) -> None:
    """shift[k, j, :WIDTH] += share (x[j] - mean[j]); scatter[k, j, :WIDTH] += share (x[j] - mean[j])**2.

    Components of which a tile has nothing, see `masses`, are left out.
    """

    def columns(j: Value, width: int) -> None:
        def component(k: Value, _: list[Value]) -> list[Value]:
            entry, share = at(b, b.mul(k, d), j), b.mul(k, stride)

            def body(i: Value, sums: list[Value]) -> list[Value]:
                row, new = b.mul(i, integer(WIDTH)), []
                shares = load(b, joint, share, row)
                for c in range(width):
                    value = b.fsub(load(b, x, row, b.mul(at(b, j, c), stride)), centres[c])
                    weighted = b.fmul(value, shares)
                    new += [b.fadd(sums[2 * c], weighted), multiply_add(b, weighted, value, sums[2 * c + 1])]
                return new

            with b.if_then(_there(b, masses, k)):
                centres = [broadcast(b, means, entry, c) for c in range(width)]
                places = [(base, at(b, entry, c)) for c in range(width) for base in (shift, scatter)]
                _add_up(b, stride, places, body)
            return []

        loop(b, K, [], component)

    _in_turns(b, d, _MANY, columns)


@kernel
def scatter_balls(
    b: Builder,
    x: Value,
    d: Value,
    stride: Value,
    means: Value,
    K: Value,
    masses: Value,
    joint: Value,
    squares: Value,
    shift: Value,
    scatter: Value,
) -> None:
    """shift[k, j, :WIDTH] += share (x[j] - mean[j]); scatter[k, :WIDTH] += share squares."""

    def columns(j: Value, width: int) -> None:
        def components(k: Value, size: int) -> None:
            entries = [at(b, b.mul(at(b, k, c), d), j) for c in range(size)]

            def body(i: Value, sums: list[Value]) -> list[Value]:
                row, new = b.mul(i, integer(WIDTH)), list[Value]()
                values = [load(b, x, row, b.mul(at(b, j, c), stride)) for c in range(width)]
                for c in range(size):
                    shares = load(b, joint, b.mul(at(b, k, c), stride), row)
                    for value, centre in zip(values, centres[c], strict=True):
                        new.append(multiply_add(b, shares, b.fsub(value, centre), sums[len(new)]))
                return new

            some = _there(b, masses, k)
            for c in range(1, size):
                some = b.or_(some, _there(b, masses, at(b, k, c)))
            with b.if_then(some):
                centres = [[broadcast(b, means, entry, c) for c in range(width)] for entry in entries]
                places = [(shift, at(b, entry, c)) for entry in entries for c in range(width)]
                _add_up(b, stride, places, body)

        _in_turns(b, K, (2, 1), components)

    def squared(k: Value, size: int) -> None:
        def body(i: Value, sums: list[Value]) -> list[Value]:
            row, new = b.mul(i, integer(WIDTH)), []
            for c, before in enumerate(sums):
                place = at(b, b.mul(at(b, k, c), stride), row)
                shares = load(b, joint, place)
                # the square may be infinite where there's no share
                square = b.select(b.fcmp_ordered(">", shares, ZERO), load(b, squares, place), ZERO)
                new.append(multiply_add(b, shares, square, before))
            return new

        _add_up(b, stride, [(scatter, at(b, k, c)) for c in range(size)], body)

    _in_turns(b, d, (4, 1), columns)
    _in_turns(b, K, (4, 1), squared)


def _there(b: Builder, masses: Value, k: Value) -> Value:
    """Tell whether a tile has anything of component k."""
    return b.fcmp_ordered(">", get(b, masses, k), number(NOTHING))


def _add_up(
    b: Builder,
    stride: Value,
    places: list[tuple[Value, Value]],
    body: Callable[[Value, list[Value]], list[Value]],
) -> None:
    """Add a tile's vectors to sums that are kept in lanes."""
    begins = [(base, b.mul(entry, integer(WIDTH))) for base, entry in places]
    sums = loop(b, b.sdiv(stride, integer(WIDTH)), [load(b, base, begin) for base, begin in begins], body)
    for value, (base, begin) in zip(sums, begins, strict=True):
        store(b, value, base, begin)
