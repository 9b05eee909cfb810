"""Products of design columns with the features of the same rows, summed over a block in one visit of the rows.

Features go through the cache by tiles of `TILE_ROWS` rows and `COLUMNS` columns: centred, squared, and multiplied with
four columns of the design at a time, whose sums stay in registers, while the tile's successor is fetched from memory.
"""

# numba infers the types of what follows from the call
# mypy: allow-untyped-defs

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from residmix.moments.compiled import readable, readable_weight
from residmix.moments.registers import (
    WIDTH,
    Builder,
    Value,
    broadcast,
    integer,
    kernel,
    load,
    loop,
    multiply_add,
    prefetch,
    store,
)
from residmix.moments.rowwise import centre
from residmix.scratch import scratch

__all__ = ["centred_products"]

Array = NDArray[np.float64]

# A product wants its sums, a vector of each panel and a design value in registers: 21 of 32, or 11 of 16.
PANELS = 4 if WIDTH == 8 else 2
COLUMNS = PANELS * WIDTH
TILE_ROWS = 64
# The sum over so many rows is added to the sums before it: fewer roundings in a row.
RUN_ROWS = 1024


def centred_products(
    X: NDArray[np.floating], A: Array, origin_x: Array, origin_a: Array, weight: Array | None
) -> tuple[Array, Array, Array, Array, Array]:
    """Return the (weighted) sums of ``x = X - origin_x`` and ``a = A - origin_a``, and of their products.

    Parameters
    ----------
    X : ndarray (n, d), float64 or float32
    A : ndarray (n, q)
    origin_x, origin_a : ndarray (d,), (q,)
    weight : ndarray (n,), optional

    Returns
    -------
    sum_x, sum_a : ndarray (d,), (q,)
    aa, ax : ndarray (q, q), (q, d)
    squares : ndarray (d,)
        Of x, each column with itself.
    """
    (n, q), d = A.shape, X.shape[1]
    X, A = readable(X), readable(A)
    a = scratch((n, q), np.float64)
    weighted = a if weight is None else scratch((n, q), np.float64)
    # BLAS wins where columns don't fill the registers, and where both sides are so wide that it blocks better
    if d >= COLUMNS and min(q, d) <= 256:
        return _by_tiles(X, A, origin_x, origin_a, readable_weight(weight), a, weighted)
    x = scratch(X.shape, np.float64)
    sum_x, squares = centre(X, origin_x, x)
    sum_a, _ = centre(A, origin_a, a)
    if weight is not None:
        np.multiply(a, weight[:, None], out=weighted)
        sum_x, sum_a, squares = weight @ x, weight @ a, np.einsum("i,ij,ij->j", weight, x, x)
    return sum_x, sum_a, weighted.T @ a, weighted.T @ x, squares


def _multiplied(width: int) -> Any:
    def emit(
        b: Builder,
        left: Value,
        l0: Value,
        q: Value,
        x: Value,
        n: Value,
        out: Value,
        o0: Value,
        line: Value,
        rows: Value,
        next0: Value,
        stride: Value,
    ) -> None:
        def body(i: Value, sums: list[Value]) -> list[Value]:
            values = [load(b, x, b.mul(i, integer(COLUMNS)), p * WIDTH) for p in range(PANELS)]
            row, new = b.mul(i, q), []
            for p in range(PANELS // 2):
                prefetch(b, rows, next0, b.mul(i, stride), p * WIDTH)
            for column in range(width):
                factor = broadcast(b, left, l0, row, column)
                new += [multiply_add(b, factor, values[p], sums[column * PANELS + p]) for p in range(PANELS)]
            return new

        places = [(b.mul(line, integer(column)), p * WIDTH) for column in range(width) for p in range(PANELS)]
        sums = loop(b, n, [load(b, out, o0, begin, p) for begin, p in places], body)
        for value, (begin, p) in zip(sums, places, strict=True):
            store(b, value, out, o0, begin, p)

    return kernel(emit, f"add_products_{width}")


#: out[l] += sum_i left[i, l] x[i] for 1 ... 4 columns l and one chunk of columns of x; fetches half of the next rows.
add_products = tuple(_multiplied(width) for width in (1, 2, 3, 4))


def _centred(weighted: bool) -> Any:
    def emit(
        b: Builder,
        rows: Value,
        x0: Value,
        stride: Value,
        next0: Value,
        n: Value,
        origin: Value,
        j0: Value,
        weight: Value,
        w0: Value,
        x: Value,
        total: Value,
        square: Value,
    ) -> None:
        origins = [load(b, origin, j0, p * WIDTH) for p in range(PANELS)]

        def body(i: Value, sums: list[Value]) -> list[Value]:
            row, totals, squares = b.mul(i, stride), [], []
            factor = broadcast(b, weight, w0, i) if weighted else None
            for p in range(PANELS // 2):
                prefetch(b, rows, next0, row, p * WIDTH)
            for p in range(PANELS):
                value = b.fsub(load(b, rows, x0, row, p * WIDTH), origins[p])
                store(b, value, x, b.mul(i, integer(COLUMNS)), p * WIDTH)
                share = value if factor is None else b.fmul(factor, value)
                totals.append(b.fadd(sums[p], share))
                squares.append(multiply_add(b, share, value, sums[PANELS + p]))
            return totals + squares

        sums = loop(b, n, [load(b, array, j0, p * WIDTH) for array in (total, square) for p in range(PANELS)], body)
        for p in range(PANELS):
            store(b, sums[p], total, j0, p * WIDTH)
            store(b, sums[PANELS + p], square, j0, p * WIDTH)

    return kernel(emit, f"centre_{'weighted' if weighted else 'rows'}")


#: x = rows - origin for one chunk of columns; total and square += its (weighted) sums and sums of squares.
centre_rows, centre_weighted = _centred(False), _centred(True)

products1, products2, products3, products4 = add_products


@njit(nogil=True)
def _multiply_tile(left, start, q, x, n, out, column, line, rows, next0, stride):
    for k in range(0, q, 4):
        l0, o0, more = start * q + k, k * line + column, q - k
        # the first four columns fetch one half of the next tile, the others the other
        ahead = next0 if k == 0 else next0 + COLUMNS // 2
        if more >= 4:
            products4(left, l0, q, x, n, out, o0, line, rows, ahead, stride)
        elif more == 3:
            products3(left, l0, q, x, n, out, o0, line, rows, ahead, stride)
        elif more == 2:
            products2(left, l0, q, x, n, out, o0, line, rows, ahead, stride)
        else:
            products1(left, l0, q, x, n, out, o0, line, rows, ahead, stride)


@njit(nogil=True)
def _centre_design(A, start, n, q, origin, weight, a, weighted, sums):
    """Centre a tile of the design, laid flat; `origin` and `sums` repeat for each of its rows."""
    tile = slice(start * q, (start + n) * q)
    # views from 0 on: without offsets, of which the compiler can't know the sign, these loops become vector code
    from_A, to_a, to_weighted = A[tile], a[tile], weighted[tile]
    for j in range(n * q):
        to_a[j] = from_A[j] - origin[j]
    if weight.size > 0:
        for i in range(n):
            for j in range(i * q, (i + 1) * q):
                to_weighted[j] = weight[start + i] * to_a[j]
    for j in range(n * q):
        sums[j] += to_weighted[j]


@njit(cache=True, nogil=True)
def _by_tiles(X, A, origin_x, origin_a, weight, a, weighted):
    n, d = X.shape
    q = A.shape[1]
    chunks = (d + COLUMNS - 1) // COLUMNS
    # the last chunk may begin amid the one before it: then it has its own sums of the columns that both have
    begins = np.array([min(c * COLUMNS, d - COLUMNS) for c in range(chunks)])
    line = chunks * COLUMNS
    rows, x, centre = X.ravel(), np.empty(TILE_ROWS * COLUMNS), np.empty(line)
    design, flat, left = A.ravel(), a.ravel(), weighted.ravel()
    origins, sums_a = np.empty(TILE_ROWS * q), np.zeros(TILE_ROWS * q)
    for i in range(TILE_ROWS):
        origins[i * q : (i + 1) * q] = origin_a
    for c in range(chunks):
        centre[c * COLUMNS : (c + 1) * COLUMNS] = origin_x[begins[c] : begins[c] + COLUMNS]
    products, sums, squares = np.zeros((q, d)), np.zeros(d), np.zeros(d)
    run, run_sums, run_squares = np.empty(q * line), np.empty(line), np.empty(line)
    for begin in range(0, n, RUN_ROWS):
        end = min(begin + RUN_ROWS, n)
        run[:], run_sums[:], run_squares[:] = 0.0, 0.0, 0.0
        for start in range(begin, end, TILE_ROWS):
            size = min(TILE_ROWS, end - start)
            _centre_design(design, start, size, q, origins, weight, flat, left, sums_a)
            for c in range(chunks):
                here, at = start * d + begins[c], c * COLUMNS
                next0 = here + TILE_ROWS * d
                # one round of products fetches a half only
                ahead = next0 + COLUMNS // 2 if q <= 4 else here
                if weight.size > 0:
                    centre_weighted(rows, here, d, ahead, size, centre, at, weight, start, x, run_sums, run_squares)
                else:
                    centre_rows(rows, here, d, ahead, size, centre, at, weight, start, x, run_sums, run_squares)
                _multiply_tile(left, start, q, x, size, run, at, line, rows, next0, d)
        for j in range(d):
            at = j if j < line - COLUMNS else j - d + line
            sums[j] += run_sums[at]
            squares[j] += run_squares[at]
            for k in range(q):
                products[k, j] += run[k * line + at]
    sum_a = sums_a.reshape(TILE_ROWS, q).sum(axis=0)
    return sums, sum_a, np.dot(weighted.T, a), products, squares
