"""Micro-kernels of the moments: share-weighted sums and scatters of a tile's rows (see `registers`)."""

from __future__ import annotations

from typing import Any

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
    store,
)

__all__ = [
    "add_outer",
    "add_squares",
    "centre_panel",
    "last_scatter",
    "pair_scatter",
    "self_scatter",
    "weigh_panel",
]

# -- in columns -----------------------------------------------------------------------------------------------------


@kernel
def add_squares(
    b: Builder,
    x: Value,
    x0: Value,
    n: Value,
    mean: Value,
    m0: Value,
    share: Value,
    r0: Value,
    shift: Value,
    scatter: Value,
    s0: Value,
) -> None:
    """shift[:WIDTH] += share (x - mean); scatter[:WIDTH] += share (x - mean)**2."""
    mean_j = broadcast(b, mean, m0)

    def body(i: Value, sums: list[Value]) -> list[Value]:
        row = b.mul(i, integer(WIDTH))
        value = b.fsub(load(b, x, x0, row), mean_j)
        weighted = b.fmul(value, load(b, share, r0, row))
        return [b.fadd(sums[0], weighted), multiply_add(b, weighted, value, sums[1])]

    first, second = loop(b, n, [load(b, shift, s0), load(b, scatter, s0)], body)
    store(b, first, shift, s0)
    store(b, second, scatter, s0)


def _deviations(b: Builder, x: Value, x0: Value, stride: Value, row: Value, means: list[Value]) -> list[Value]:
    """Return a vector of rows of each column, less the columns' means."""
    return [b.fsub(load(b, x, x0, row, b.mul(stride, integer(j))), mean) for j, mean in enumerate(means)]


def _self_scattered(width: int, keep: bool) -> Any:
    n_pairs = width * (width + 1) // 2

    def emit(
        b: Builder,
        x: Value,
        x0: Value,
        stride: Value,
        n: Value,
        mean: Value,
        m0: Value,
        share: Value,
        r0: Value,
        weighted: Value,
        scatter: Value,
        s0: Value,
        shift: Value,
        t0: Value,
    ) -> None:
        means = [broadcast(b, mean, m0, j) for j in range(width)]

        def body(i: Value, sums: list[Value]) -> list[Value]:
            row = b.mul(i, integer(WIDTH))
            share_i = load(b, share, r0, row)
            columns = _deviations(b, x, x0, stride, row, means)
            sums, pair = list(sums), 0
            for j in range(width):
                value = b.fmul(share_i, columns[j])
                if keep:
                    store(b, value, weighted, row, b.mul(stride, integer(j)))
                sums[n_pairs + j] = b.fadd(sums[n_pairs + j], value)
                for other in columns[j:]:
                    sums[pair] = multiply_add(b, value, other, sums[pair])
                    pair += 1
            return sums

        sums = [load(b, scatter, s0, pair * WIDTH) for pair in range(n_pairs)]
        sums = loop(b, n, sums + [load(b, shift, t0, j * WIDTH) for j in range(width)], body)
        for pair in range(n_pairs):
            store(b, sums[pair], scatter, s0, pair * WIDTH)
        for j in range(width):
            store(b, sums[n_pairs + j], shift, t0, j * WIDTH)

    return kernel(emit, f"{'self' if keep else 'last'}_scatter_{width}")


#: For 4 columns: weighted = share (x - mean); shift += weighted; scatter += weighted (x - mean) over their pairs.
self_scatter = _self_scattered(4, True)

#: The same for the last 1 ... 4 columns, without keeping `weighted`: there are no further columns to pair it with.
last_scatter = tuple(_self_scattered(width, False) for width in (1, 2, 3, 4))


def _pair_scattered(width: int) -> Any:
    def emit(
        b: Builder,
        weighted: Value,
        x: Value,
        x0: Value,
        stride: Value,
        n: Value,
        mean: Value,
        m0: Value,
        scatter: Value,
        s0: Value,
    ) -> None:
        means = [broadcast(b, mean, m0, j) for j in range(width)]

        def body(i: Value, sums: list[Value]) -> list[Value]:
            row = b.mul(i, integer(WIDTH))
            columns = _deviations(b, x, x0, stride, row, means)
            new = []
            for j in range(4):
                value = load(b, weighted, row, b.mul(stride, integer(j)))
                new += [multiply_add(b, value, columns[c], sums[j * width + c]) for c in range(width)]
            return new

        sums = loop(b, n, [load(b, scatter, s0, pair * WIDTH) for pair in range(4 * width)], body)
        for pair in range(4 * width):
            store(b, sums[pair], scatter, s0, pair * WIDTH)

    return kernel(emit, f"pair_scatter_{width}")


#: scatter += weighted (x - mean) over 4 weighted columns and 1 ... 4 further columns.
pair_scatter = tuple(_pair_scattered(width) for width in (1, 2, 3, 4))


# -- in panels ------------------------------------------------------------------------------------------------------


@kernel
def centre_panel(
    b: Builder, x: Value, x0: Value, rows: Value, n: Value, mean: Value, m0: Value, out: Value, o0: Value
) -> None:
    """out[i] = x[rows[i]] - mean, for n rows of one panel."""
    mean_p = load(b, mean, m0)

    def body(i: Value, _: list[Value]) -> list[Value]:
        row = b.mul(b.load(b.gep(rows, [i])), integer(WIDTH))
        store(b, b.fsub(load(b, x, x0, row), mean_p), out, o0, b.mul(i, integer(WIDTH)))
        return []

    loop(b, n, [], body)


@kernel
def weigh_panel(b: Builder, x: Value, x0: Value, share: Value, n: Value, out: Value, shift: Value, t0: Value) -> None:
    """out[i] = share[i] x[i]; shift += out[i], for n rows of one panel."""

    def body(i: Value, sums: list[Value]) -> list[Value]:
        row = b.mul(i, integer(WIDTH))
        value = b.fmul(load(b, x, x0, row), broadcast(b, share, i))
        store(b, value, out, row)
        return [b.fadd(sums[0], value)]

    store(b, loop(b, n, [load(b, shift, t0)], body)[0], shift, t0)


def _outer(panels: int) -> Any:
    def emit(
        b: Builder, weighted: Value, x: Value, x0: Value, stride: Value, n: Value, scatter: Value, s0: Value
    ) -> None:
        block = WIDTH * WIDTH

        def body(i: Value, sums: list[Value]) -> list[Value]:
            row = b.mul(i, integer(WIDTH))
            values = [load(b, x, x0, row, b.mul(stride, integer(p))) for p in range(panels)]
            sums = list(sums)
            for a in range(WIDTH):
                left = broadcast(b, weighted, row, a)
                for p in range(panels):
                    sums[p * WIDTH + a] = multiply_add(b, values[p], left, sums[p * WIDTH + a])
            return sums

        offsets = [p * block + a * WIDTH for p in range(panels) for a in range(WIDTH)]
        sums = loop(b, n, [load(b, scatter, s0, offset) for offset in offsets], body)
        for value, offset in zip(sums, offsets, strict=True):
            store(b, value, scatter, s0, offset)

    return kernel(emit, f"add_outer_{panels}")


#: scatter += sum_i weighted[i] x[i]', WIDTH x WIDTH blocks of one weighted panel with 1 ... 3 panels `stride` apart.
add_outer = tuple(_outer(panels) for panels in (1, 2, 3))
