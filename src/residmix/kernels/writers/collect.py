"""Sums of a block's tiles, which lie as micro-kernels add them up, into moments by columns."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from residmix.kernels.compiled import (
    WIDTH,
    Builder,
    Value,
    at,
    get,
    integer,
    kernel,
    load,
    loop,
    put,
    total,
)

__all__ = ["add_lanes", "collect_columns", "collect_panels", "column_pairs"]


def column_pairs(m: int) -> NDArray[np.int64]:
    """Return the pairs of m columns (., 2) in the order in which `scatter_columns` keeps their sums."""
    pairs = []
    for j in range(0, m, 4):
        group = range(j, min(j + 4, m))
        pairs += [(a, c) for a in group for c in group if a <= c]
        for other in range(j + 4, m, 4):
            pairs += [(a, c) for a in group for c in range(other, min(other + 4, m))]
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


@kernel
def add_lanes(b: Builder, lanes: Value, size: Value, out: Value) -> None:
    """out[i] = sum(lanes[i, :WIDTH]) for `size` of them."""

    def body(i: Value, _: list[Value]) -> list[Value]:
        put(b, total(b, load(b, lanes, b.mul(i, integer(WIDTH)))), out, i)
        return []

    loop(b, size, [], body)


@kernel
def collect_columns(b: Builder, lanes: Value, pairs: Value, n_pairs: Value, K: Value, m: Value, scatter: Value) -> None:
    """Add up the lanes of `scatter_columns` into scatter (K, m, m)."""

    def component(k: Value, _: list[Value]) -> list[Value]:
        def pair(i: Value, _: list[Value]) -> list[Value]:
            value = total(b, load(b, lanes, b.mul(at(b, b.mul(k, n_pairs), i), integer(WIDTH))))
            row, column = (get(b, pairs, b.mul(i, integer(2)), side) for side in (0, 1))
            for one, other in ((row, column), (column, row)):
                put(b, value, scatter, b.mul(at(b, b.mul(k, m), one), m), other)
            return []

        return loop(b, n_pairs, [], pair)

    loop(b, K, [], component)


@kernel
def collect_panels(
    b: Builder, blocks: Value, panel_shift: Value, panels: Value, K: Value, m: Value, shift: Value, scatter: Value
) -> None:
    """Add the blocks of `scatter_panels` to shift (K, m) and scatter (K, m, m)."""

    def component(k: Value, carried: list[Value]) -> list[Value]:
        def mean(j: Value, _: list[Value]) -> list[Value]:
            place = at(b, b.mul(k, m), j)
            value = get(b, panel_shift, b.mul(k, b.mul(panels, integer(WIDTH))), j)
            put(b, b.fadd(get(b, shift, place), value), shift, place)
            return []

        def block(p: Value, other: Value, entry: Value) -> None:
            def row(i: Value, _: list[Value]) -> list[Value]:
                def column(j: Value, _: list[Value]) -> list[Value]:
                    a, c = at(b, b.mul(p, integer(WIDTH)), i), at(b, b.mul(other, integer(WIDTH)), j)
                    inside = b.and_(b.icmp_signed("<=", a, c), b.icmp_signed("<", c, m))
                    with b.if_then(inside):
                        first, second = (at(b, b.mul(at(b, b.mul(k, m), x), m), y) for x, y in ((a, c), (c, a)))
                        found = get(b, blocks, entry, b.mul(i, integer(WIDTH)), j)
                        value = b.fadd(get(b, scatter, first), found)
                        put(b, value, scatter, first)
                        put(b, value, scatter, second)
                    return []

                return loop(b, integer(WIDTH), [], column)

            loop(b, integer(WIDTH), [], row)

        def panel(p: Value, carried: list[Value]) -> list[Value]:
            def after(o: Value, carried: list[Value]) -> list[Value]:
                block(p, at(b, p, o), carried[0])
                return [at(b, carried[0], WIDTH * WIDTH)]

            return loop(b, b.sub(panels, p), carried, after)

        loop(b, m, [], mean)
        return loop(b, panels, carried, panel)

    loop(b, K, [integer(0)], component)
