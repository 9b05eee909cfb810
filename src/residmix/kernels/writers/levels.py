"""Micro-kernels for rows of a few levels."""

from __future__ import annotations

from collections.abc import Callable

from residmix.kernels.compiled import (
    I64,
    WIDTH,
    Builder,
    Value,
    at,
    choose,
    get,
    integer,
    kernel,
    load,
    loop,
    multiply_add,
    prefetch,
    put,
    room,
    splat,
    store,
)
from residmix.kernels.levels import MOST_KEPT

__all__ = ["add_products", "rescale_levels"]


def _along(b: Builder, n: Value, body: Callable[..., None]) -> None:
    """Emit ``body(j, read, spread, write)`` for numbers j of n: a register of them at a time, then one by one."""
    whole = b.sdiv(n, integer(WIDTH))
    done = b.mul(whole, integer(WIDTH))

    def many(i: Value, _: list[Value]) -> list[Value]:
        body(b.mul(i, integer(WIDTH)), load, splat, store)
        return []

    def one(i: Value, _: list[Value]) -> list[Value]:
        body(at(b, done, i), get, lambda builder, scalar: scalar, put)
        return []

    loop(b, whole, [], many)
    loop(b, b.sub(n, done), [], one)


@kernel
def add_products(
    b: Builder,
    X: Value,
    x0: Value,
    next0: Value,
    n: Value,
    origin: Value,
    o0: Value,
    weight: Value,
    a: Value,
    q: Value,
    sums: Value,
    line: Value,
) -> None:
    """Add to lines of `sums` the products of x = X - origin with q numbers a, then weight x and weight x^2.

    `a` are weighted. The same numbers of the row at `next0` are fetched meanwhile.
    """
    total, square = b.mul(q, line), b.mul(at(b, q, 1), line)

    def numbers(j: Value, read: Callable[..., Value], spread: Callable[..., Value], write: Callable[..., None]) -> None:
        prefetch(b, X, next0, j)
        x = b.fsub(read(b, X, x0, j), read(b, origin, o0, j))
        share = b.fmul(spread(b, weight), x)
        write(b, b.fadd(read(b, sums, total, j), share), sums, total, j)
        write(b, multiply_add(b, share, x, read(b, sums, square, j)), sums, square, j)

        def term(m: Value, _: list[Value]) -> list[Value]:
            first = at(b, b.mul(m, line), j)
            write(b, multiply_add(b, spread(b, get(b, a, m)), x, read(b, sums, first)), sums, first)
            return []

        loop(b, q, [], term)

    _along(b, n, numbers)


@kernel
def rescale_levels(
    b: Builder,
    X: Value,
    n: Value,
    d: Value,
    design: Value,
    q: Value,
    first: Value,
    origin: Value,
    coef: Value,
    k: Value,
    base: Value,
    step: Value,
    origin_x: Value,
    shift: Value,
    stretch: Value,
    codes: Value,
    back: Value,
    out: Value,
) -> None:
    """Do what `residmix.kernels.levels.rescale_rows` does, with k columns that are kept, of q.

    Rows of `base` are `step` numbers apart: 0 if there is one for all.
    """
    factors = room(b, MOST_KEPT)

    def row(i: Value, _: list[Value]) -> list[Value]:
        x0, own, line = b.mul(i, d), b.mul(get(b, codes, i), d), b.mul(i, step)

        def factor(term: Value, _: list[Value]) -> list[Value]:
            put(b, b.fsub(get(b, design, b.mul(i, q), first, term), get(b, origin, term)), factors, term)
            return []

        def numbers(
            j: Value, read: Callable[..., Value], spread: Callable[..., Value], write: Callable[..., None]
        ) -> None:
            def term(m: Value, sums: list[Value]) -> list[Value]:
                product = b.fmul(spread(b, get(b, factors, m)), read(b, coef, b.mul(m, d), j))
                return [b.fadd(sums[0], product)]

            (kept,) = loop(b, k, [read(b, base, line, j)], term)
            x, about, by = read(b, X, x0, j), read(b, origin_x, j), read(b, stretch, own, j)
            moved = read(b, shift, own, j)

            def away() -> list[Value]:
                return [b.fadd(b.fmul(b.fsub(b.fsub(b.fsub(x, about), moved), kept), by), kept)]

            def again() -> list[Value]:
                return [b.fadd(b.fadd(b.fadd(b.fmul(b.fsub(x, kept), by), kept), about), moved)]

            write(b, choose(b, b.zext(back, I64), [away, again])[0], out, x0, j)

        loop(b, k, [], factor)
        _along(b, d, numbers)
        return []

    loop(b, n, [], row)
