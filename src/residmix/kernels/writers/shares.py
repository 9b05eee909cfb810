"""Micro-kernels of responsibilities: log p(x, k) of rows into weighted shares (see `residmix.kernels.compiled`)."""

from __future__ import annotations

from residmix.kernels.compiled import (
    WIDTH,
    ZERO,
    Builder,
    Value,
    at,
    everywhere,
    integer,
    kernel,
    load,
    loop,
    put,
    store,
    total,
)
from residmix.kernels.plain import NOTHING, UNREACHED
from residmix.kernels.writers.exp import vector_exp

__all__ = ["share_rows", "sum_shares"]

# Registers of rows under way at once, to hide the latency of one; divides every CHUNK.
_ABREAST = 3


@kernel
def share_rows(
    b: Builder,
    joint: Value,
    K: Value,
    stride: Value,
    n: Value,
    weight: Value,
    scale: Value,
    top: Value,
    total: Value,
    product: Value,
    sum_top: Value,
) -> None:
    """Turn joint[k, i] = log p(x_i, k), rows `stride` apart, into scale[i] p(k | x_i), for i < n WIDTH.

    top[i] = max_k joint[k, i], NaN passed over; total[i] = sum_k exp(joint[k, i] - top[i]), 0 where no component
    reaches, and all shares are 0 then. Over the rows of positive weight, in lanes, product is that of the totals (0
    counts as 1) and sum_top the sum of the tops: the unweighted log-likelihood is sum_top + log(product).
    """
    one, unreached = everywhere(1.0), everywhere(UNREACHED)
    wide = range(_ABREAST)

    def body(i: Value, carried: list[Value]) -> list[Value]:
        row = b.mul(i, integer(_ABREAST * WIDTH))

        def columns(k: Value) -> list[Value]:
            start = at(b, row, b.mul(k, stride))
            return [at(b, start, r * WIDTH) for r in wide]

        def larger(k: Value, best: list[Value]) -> list[Value]:
            values = [load(b, joint, column) for column in columns(k)]
            return [b.select(b.fcmp_ordered(">", v, t), v, t) for v, t in zip(values, best, strict=True)]

        def exponential(k: Value, sums: list[Value]) -> list[Value]:
            new = []
            for column, best, before in zip(columns(k), tops, sums, strict=True):
                value = vector_exp(b, b.fsub(load(b, joint, column), best))
                store(b, value, joint, column)
                new.append(b.fadd(before, value))
            return new

        def scaled(k: Value, _: list[Value]) -> list[Value]:
            for column, scale in zip(columns(k), scales, strict=True):
                store(b, b.fmul(load(b, joint, column), scale), joint, column)
            return []

        tops = loop(b, K, [unreached for _ in wide], larger)
        totals = loop(b, K, [ZERO for _ in wide], exponential)
        products, sums, scales = carried[0], carried[1], []
        for r in wide:
            store(b, tops[r], top, row, r * WIDTH)
            store(b, totals[r], total, row, r * WIDTH)
            weights = load(b, weight, row, r * WIDTH)
            reached, counts = b.fcmp_ordered(">", totals[r], ZERO), b.fcmp_ordered(">", weights, ZERO)
            safe = b.select(reached, totals[r], one)
            scales.append(b.select(reached, b.fdiv(load(b, scale, row, r * WIDTH), safe), ZERO))
            products = b.fmul(products, b.select(counts, safe, one))
            sums = b.fadd(sums, b.select(counts, tops[r], ZERO))
        loop(b, K, [], scaled)
        return [products, sums]

    products, sums = loop(b, b.sdiv(n, integer(_ABREAST)), [one, ZERO], body)
    store(b, products, product)
    store(b, sums, sum_top)


@kernel
def sum_shares(b: Builder, x: Value, x0: Value, n: Value, out: Value) -> None:
    """out[0] = the sum of n vectors, lane by lane first; out[1] = how many of their entries leave a trace."""
    nothing, one = everywhere(NOTHING), everywhere(1.0)

    def body(i: Value, sums: list[Value]) -> list[Value]:
        row, new = b.mul(i, integer(_ABREAST * WIDTH)), []
        for r in range(_ABREAST):
            value = load(b, x, x0, row, r * WIDTH)
            counts = b.select(b.fcmp_ordered(">", value, nothing), one, ZERO)
            new += [b.fadd(sums[2 * r], value), b.fadd(sums[2 * r + 1], counts)]
        return new

    sums = loop(b, b.sdiv(n, integer(_ABREAST)), [ZERO] * (2 * _ABREAST), body)
    for first in (0, 1):
        value = sums[first]
        for other in sums[first + 2 :: 2]:
            value = b.fadd(value, other)
        put(b, total(b, value), out, first)
