"""Loops over rows that do in one visit what array expressions need several for (see `registers`)."""

# numba infers the types of what follows from the call
# mypy: allow-untyped-defs

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba.core import cgutils

from residmix.kernels.compiled import compiled
from residmix.kernels.registers import I64, LINE, Builder, Value, at, fewer, get, integer, kernel, loop, put

__all__ = ["add_effects", "centre", "subtract_rows"]

# Columns that are done together: up to 16 rows of coefficients then stay in the first cache.
CHUNK = 256


@kernel
def _centre(b: Builder, X: Value, n: Value, d: Value, origin: Value, out: Value, sums: Value, squares: Value) -> None:
    def row(i: Value, _: list[Value]) -> list[Value]:
        first = b.mul(i, d)

        def column(j: Value, _: list[Value]) -> list[Value]:
            value = b.fsub(get(b, X, first, j), get(b, origin, j))
            put(b, value, out, first, j)
            put(b, b.fadd(get(b, sums, j), value), sums, j)
            put(b, b.fadd(get(b, squares, j), b.fmul(value, value)), squares, j)
            return []

        return loop(b, d, [], column)

    loop(b, n, [], row)


@compiled
def centre(X, origin, out, sums, squares):
    """Write ``y = X - origin`` to `out` (n, d), and add the sums of y and of its squares to `sums` and `squares`."""
    _centre(X, X.shape[0], X.shape[1], origin, out, sums, squares)


def _effect(b: Builder, codes: Value, i: Value, levels: Value, d: Value) -> Value:
    """Return where the effects of row i begin: those of its level, or the last of `levels` for code -1."""
    code = get(b, codes, i)
    code = code if code.type == I64 else b.sext(code, I64)
    unknown = b.icmp_signed("<", code, integer(0))
    return b.mul(b.select(unknown, b.add(code, levels), code), d)


@kernel
def _subtract(
    b: Builder,
    X: Value,
    n: Value,
    d: Value,
    design: Value,
    q: Value,
    origin_x: Value,
    origin_a: Value,
    coef: Value,
    p: Value,
    constant: Value,
    sign: Value,
    effects: Value,
    codes: Value,
    levels: Value,
    out: Value,
) -> None:
    absorbed = b.icmp_signed(">", levels, integer(0))
    row = cgutils.alloca_once(b, ir.DoubleType(), size=CHUNK)
    row.align = LINE

    def chunk(c: Value, _: list[Value]) -> list[Value]:
        begin = b.mul(c, integer(CHUNK))
        width = fewer(b, integer(CHUNK), b.sub(d, begin))

        def columns(i: Value, _: list[Value]) -> list[Value]:
            x0 = at(b, b.mul(i, d), begin)

            def start(j: Value, _: list[Value]) -> list[Value]:
                first, second = (b.fmul(sign, get(b, array, begin, j)) for array in (origin_x, constant))
                put(b, b.fadd(b.fadd(get(b, X, x0, j), first), second), row, j)
                return []

            def effect(j: Value, _: list[Value]) -> list[Value]:
                put(b, b.fadd(get(b, row, j), b.fmul(sign, get(b, effects, place, begin, j))), row, j)
                return []

            def factor(k: Value) -> Value:
                return b.fmul(sign, b.fsub(get(b, design, b.mul(i, q), k), get(b, origin_a, k)))

            def terms(first: Value, count: int) -> None:
                lines = [at(b, first, k) for k in range(count)]
                factors = [factor(k) for k in lines]

                def add(j: Value, _: list[Value]) -> list[Value]:
                    products = [
                        b.fmul(value, get(b, coef, b.mul(k, d), begin, j))
                        for value, k in zip(factors, lines, strict=True)
                    ]
                    total = products[0]
                    for product in products[1:]:
                        total = b.fadd(total, product)
                    put(b, b.fadd(get(b, row, j), total), row, j)
                    return []

                loop(b, width, [], add)

            def four(g: Value, _: list[Value]) -> list[Value]:
                # four at a time: the row is loaded and stored once for all of them
                terms(b.mul(g, integer(4)), 4)
                return []

            def one(k: Value, _: list[Value]) -> list[Value]:
                terms(at(b, done, k), 1)
                return []

            def finish(j: Value, _: list[Value]) -> list[Value]:
                put(b, get(b, row, j), out, x0, j)
                return []

            loop(b, width, [], start)
            with b.if_then(absorbed):
                place = _effect(b, codes, i, levels, d)
                loop(b, width, [], effect)
            fours = b.sdiv(p, integer(4))
            done = b.mul(fours, integer(4))
            loop(b, fours, [], four)
            loop(b, b.sub(p, done), [], one)
            return loop(b, width, [], finish)

        return loop(b, n, [], columns)

    loop(b, b.sdiv(at(b, d, CHUNK - 1), integer(CHUNK)), [], chunk)


@compiled
def subtract_rows(X, design, origin_x, origin_a, coef, constant, sign, effects, codes, out):
    """Write ``X + sign * (origin_x + (design - origin_a) coef + constant + effects[codes])`` to `out`, in its dtype.

    Only the first p columns of `design` are read, for `coef` (p, d). Without codes there are no effects; code -1 finds
    the last one: the mean of the levels.
    """
    n, d = X.shape
    levels = len(effects) if codes.size > 0 else 0
    _subtract(
        X,
        n,
        d,
        design,
        design.shape[1],
        origin_x,
        origin_a,
        coef,
        len(coef),
        constant,
        sign,
        effects,
        codes,
        levels,
        out,
    )


@kernel
def _add_effects(
    b: Builder, out: Value, n: Value, d: Value, effects: Value, levels: Value, codes: Value, sign: Value
) -> None:
    def row(i: Value, _: list[Value]) -> list[Value]:
        place, first = _effect(b, codes, i, levels, d), b.mul(i, d)

        def column(j: Value, _: list[Value]) -> list[Value]:
            put(b, b.fadd(get(b, out, first, j), b.fmul(sign, get(b, effects, place, j))), out, first, j)
            return []

        return loop(b, d, [], column)

    loop(b, n, [], row)


@compiled
def add_effects(out, effects, codes, sign):
    """Add ``sign * effects[codes]`` to `out` (n, d); code -1 finds the last row of the effects."""
    _add_effects(out, out.shape[0], out.shape[1], effects, len(effects), codes, sign)


@compiled
def _locate(codes, size):
    """Return the levels that occur, in the order in which they first do, and where each row's level is among them."""
    place = np.full(size, -1, dtype=np.int64)
    present = np.empty(min(size, len(codes)), dtype=np.int64)
    local = np.empty(len(codes), dtype=np.int64)
    found = 0
    for i in range(len(codes)):
        code = codes[i]
        if place[code] < 0:
            place[code] = found
            present[found] = code
            found += 1
        local[i] = place[code]
    return present[:found].copy(), local


@compiled
def _sum_levels(values, origin, codes, weight, sums, squares):
    """Add each row less the origin to the sums of its level, and its squares to `squares`, all weighted."""
    n, d = values.shape
    for i in range(n):
        row, w = sums[codes[i]], weight[i] if weight.size > 0 else 1.0
        for j in range(d):
            value = np.float64(values[i, j]) - origin[j]
            row[j] += w * value
            squares[j] += w * value * value
