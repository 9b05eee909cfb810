"""Products of design columns with the features of the same rows, summed over a block in one visit of the rows.

Features go through the cache by tiles of `TILE_ROWS` rows and `COLUMNS` columns: centred, squared, and multiplied with
four columns of the design at a time, whose sums stay in registers, while the tile's successor is fetched from memory.
"""

# numba infers the types of what follows from the call
# mypy: allow-untyped-defs

from __future__ import annotations

from functools import lru_cache, partial

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.blas import dgemm

from residmix.kernels import plain
from residmix.kernels.arrays import readable
from residmix.kernels.compiled import (
    I64,
    WIDTH,
    Builder,
    Value,
    at,
    broadcast,
    choose,
    clear,
    compiled,
    fewer,
    get,
    integer,
    kernel,
    load,
    loop,
    multiply_add,
    prefetch,
    put,
    store,
)
from residmix.kernels.loops.rowwise import centre
from residmix.rows.scratch import scratch

__all__ = ["centred_products"]

Array = NDArray[np.float64]

# A product wants its sums, a vector of each panel and a design value in registers: 21 of 32, or 11 of 16.
PANELS = 4 if WIDTH == 8 else 2
COLUMNS = PANELS * WIDTH
TILE_ROWS = 64
# The sum over so many rows is added to the sums before it: fewer roundings in a row.
RUN_ROWS = 1024


def centred_products(
    X: NDArray[np.floating], A: Array, origin_x: Array, origin_a: Array, weight: Array
) -> tuple[Array, Array, Array, Array, Array]:
    q, d = A.shape[1], X.shape[1]
    # BLAS wins where columns don't fill the registers, and where both sides are so wide that it blocks better
    if min(q, d) > 256:
        return plain.centred_products(X, A, origin_x, origin_a, weight)
    X, A = readable(X), readable(A)
    a = scratch(A.shape, np.float64)
    if d < COLUMNS:
        x = scratch(X.shape, np.float64)
        sum_x, squares, sum_a, unused = np.zeros(d), np.zeros(d), np.zeros(q), np.zeros(q)
        centre(X, readable(origin_x), x, sum_x, squares)
        centre(A, readable(origin_a), a, sum_a, unused)
        if not weight.size:
            return sum_x, sum_a, a.T @ a, a.T @ x, squares
        weighted = np.multiply(a, weight[:, None], out=scratch(A.shape, np.float64))
        return weight @ x, weight @ a, weighted.T @ a, weighted.T @ x, np.einsum("i,ij,ij->j", weight, x, x)
    weighted = scratch(A.shape, np.float64) if weight.size else a
    begins, columns = _chunks(d)
    run, x = np.empty((q + 2) * len(columns)), np.empty(TILE_ROWS * COLUMNS)
    origins, sums_a, sums = np.empty((TILE_ROWS, q)), np.zeros((TILE_ROWS, q)), np.zeros((q + 2, d))
    origins[:] = origin_a
    about = origin_x[columns]
    _add_tiles(X, A, origins, about, weight, begins, x, a, weighted, run, sums_a, sums)
    # numpy has a matrix times itself by another routine, which few columns are slow with
    aa = weighted.T @ a if q > 16 else dgemm(1.0, a.T, weighted.T, trans_b=True).T
    return sums[q], sums_a.sum(axis=0), aa, sums[:q], sums[q + 1]


@lru_cache(maxsize=32)
def _chunks(d: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the first columns of the chunks of d columns, and all columns, chunk after chunk.

    The last chunk may begin amid the one before it: then it has its own sums of the columns that both have.
    """
    begins = np.minimum(np.arange(0, d, COLUMNS), d - COLUMNS)
    return begins, (begins[:, None] + np.arange(COLUMNS)).ravel()


@kernel
def _multiply_tile(
    b: Builder,
    left: Value,
    start: Value,
    q: Value,
    x: Value,
    n: Value,
    out: Value,
    column: Value,
    line: Value,
    rows: Value,
    next0: Value,
    stride: Value,
) -> None:
    """out[l, column:] += sum_i left[start + i, l] x[i] for q columns l, four at a time, and one chunk of columns of x.

    The first four columns fetch one half of the next tile of rows, the others the other.
    """

    def group(g: Value, _: list[Value]) -> list[Value]:
        k = b.mul(g, integer(4))
        l0, o0 = at(b, b.mul(start, q), k), at(b, b.mul(k, line), column)
        first = b.icmp_signed("==", g, integer(0))
        ahead = b.select(first, next0, at(b, next0, COLUMNS // 2))

        def products(width: int) -> list[Value]:
            def body(i: Value, sums: list[Value]) -> list[Value]:
                values = [load(b, x, b.mul(i, integer(COLUMNS)), p * WIDTH) for p in range(PANELS)]
                row, new = b.mul(i, q), []
                for p in range(PANELS // 2):
                    prefetch(b, rows, ahead, b.mul(i, stride), p * WIDTH)
                for c in range(width):
                    factor = broadcast(b, left, l0, row, c)
                    new += [multiply_add(b, factor, values[p], sums[c * PANELS + p]) for p in range(PANELS)]
                return new

            places = [(b.mul(line, integer(c)), p * WIDTH) for c in range(width) for p in range(PANELS)]
            sums = loop(b, n, [load(b, out, o0, begin, p) for begin, p in places], body)
            for value, (begin, p) in zip(sums, places, strict=True):
                store(b, value, out, o0, begin, p)
            return []

        wide = fewer(b, integer(3), b.sub(b.sub(q, k), integer(1)))
        return choose(b, wide, [partial(products, width) for width in (1, 2, 3, 4)])

    loop(b, b.sdiv(at(b, q, 3), integer(4)), [], group)


@kernel
def _centre_chunk(
    b: Builder,
    rows: Value,
    x0: Value,
    stride: Value,
    next0: Value,
    n: Value,
    origin: Value,
    j0: Value,
    weight: Value,
    given: Value,
    w0: Value,
    x: Value,
    sums: Value,
    total: Value,
    square: Value,
) -> None:
    """x = rows - origin for one chunk of columns; adds the (weighted) sums to `sums`, from `total` and `square` on."""
    origins = [load(b, origin, j0, p * WIDTH) for p in range(PANELS)]

    def chunk(weighted: bool) -> list[Value]:
        def body(i: Value, carried: list[Value]) -> list[Value]:
            row, totals, squares = b.mul(i, stride), [], []
            factor = broadcast(b, weight, w0, i) if weighted else None
            for p in range(PANELS // 2):
                prefetch(b, rows, next0, row, p * WIDTH)
            for p in range(PANELS):
                value = b.fsub(load(b, rows, x0, row, p * WIDTH), origins[p])
                store(b, value, x, b.mul(i, integer(COLUMNS)), p * WIDTH)
                share = value if factor is None else b.fmul(factor, value)
                totals.append(b.fadd(carried[p], share))
                squares.append(multiply_add(b, share, value, carried[PANELS + p]))
            return totals + squares

        places = [(begin, p * WIDTH) for begin in (total, square) for p in range(PANELS)]
        found = loop(b, n, [load(b, sums, begin, j0, p) for begin, p in places], body)
        for value, (begin, p) in zip(found, places, strict=True):
            store(b, value, sums, begin, j0, p)
        return []

    choose(b, b.zext(given, I64), [partial(chunk, False), partial(chunk, True)])


@kernel
def _centre_design(
    b: Builder,
    A: Value,
    start: Value,
    n: Value,
    q: Value,
    origins: Value,
    weight: Value,
    given: Value,
    a: Value,
    weighted: Value,
    sums: Value,
) -> None:
    """Centre and weigh a tile of the design; `origins` and `sums` repeat for each of its rows."""
    first, size = b.mul(start, q), b.mul(n, q)

    def centre(j: Value, _: list[Value]) -> list[Value]:
        put(b, b.fsub(get(b, A, first, j), get(b, origins, j)), a, first, j)
        return []

    def weigh(i: Value, _: list[Value]) -> list[Value]:
        row, factor = at(b, first, b.mul(i, q)), get(b, weight, start, i)

        def column(j: Value, _: list[Value]) -> list[Value]:
            put(b, b.fmul(factor, get(b, a, row, j)), weighted, row, j)
            return []

        return loop(b, q, [], column)

    def add(j: Value, _: list[Value]) -> list[Value]:
        put(b, b.fadd(get(b, sums, j), get(b, weighted, first, j)), sums, j)
        return []

    loop(b, size, [], centre)
    with b.if_then(given):
        loop(b, n, [], weigh)
    loop(b, size, [], add)


@compiled
def _add_tiles(X, A, origins, about, weight, begins, x, a, weighted, run, sums_a, sums):
    """Fill `a` and `weighted` with the centred design; add up the products, sums and squares of X in `sums` (q + 2, d).

    `begins` are the first columns of the chunks, `about` their origins. The sums over a run of rows are kept in `run`,
    chunk after chunk.
    """
    (n, d), q, chunks = X.shape, A.shape[1], len(begins)
    line, given = chunks * COLUMNS, weight.size > 0
    for begin in range(0, n, RUN_ROWS):
        end = min(begin + RUN_ROWS, n)
        clear(run, (q + 2) * line)
        for start in range(begin, end, TILE_ROWS):
            size = min(TILE_ROWS, end - start)
            _centre_design(A, start, size, q, origins, weight, given, a, weighted, sums_a)
            for c in range(chunks):
                here, at = start * d + begins[c], c * COLUMNS
                next0 = here + TILE_ROWS * d
                # one round of products fetches a half only
                ahead = next0 + COLUMNS // 2 if q <= 4 else here
                total, square = q * line, (q + 1) * line
                _centre_chunk(X, here, d, ahead, size, about, at, weight, given, start, x, run, total, square)
                _multiply_tile(weighted, start, q, x, size, run, at, line, X, next0, d)
        for k in range(q + 2):
            for j in range(d):
                sums[k, j] += run[k * line + (j if j < line - COLUMNS else j - d + line)]
