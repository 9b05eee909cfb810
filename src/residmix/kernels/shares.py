"""Micro-kernels of responsibilities: log p(x, k) of a tile's rows into weighted shares (see `registers`)."""

from __future__ import annotations

from collections.abc import Callable

from llvmlite import ir

from residmix.kernels.exp import vector_exp
from residmix.kernels.registers import (
    I64,
    VECTOR,
    WIDTH,
    ZERO,
    Builder,
    Value,
    at,
    choose,
    get,
    integer,
    kernel,
    load,
    loop,
    put,
    store,
    total,
)

__all__ = ["NOTHING", "UNREACHED", "add_prior", "copy_joint", "load_weights", "share_rows", "sum_logs", "sum_shares"]

# The log-density that stands for "no component reaches this row".
UNREACHED = -1e300

# A share this small (of one row) leaves no trace in any sum.
NOTHING = 1e-25

# Registers of rows under way at once, to hide the latency of one; divides every CHUNK.
_ABREAST = 3


@kernel
def load_weights(b: Builder, weight: Value, given: Value, start: Value, n: Value, stride: Value, w: Value) -> None:
    """w[i] = weight[start + i], 1 if none is given, for i < n; 0 for the other of `stride` rows."""
    one, zero = (ir.Constant(VECTOR.element, value) for value in (1.0, 0.0))

    def fill(begin: Value, end: Value, value: Callable[[Value], Value]) -> list[Value]:
        def body(i: Value, _: list[Value]) -> list[Value]:
            put(b, value(i), w, begin, i)
            return []

        return loop(b, b.sub(end, begin), [], body)

    none = integer(0)
    ways = [lambda: fill(none, n, lambda _: one), lambda: fill(none, n, lambda i: get(b, weight, start, i))]
    choose(b, b.zext(given, I64), ways)
    fill(n, stride, lambda _: zero)


@kernel
def add_prior(b: Builder, prior: Value, K: Value, start: Value, n: Value, stride: Value, joint: Value) -> None:
    """joint[k, i] += prior[start + i, k] for n rows and K components, which may be 0."""

    def component(k: Value, _: list[Value]) -> list[Value]:
        def row(i: Value, _: list[Value]) -> list[Value]:
            place = at(b, b.mul(k, stride), i)
            put(b, b.fadd(get(b, joint, place), get(b, prior, b.mul(at(b, start, i), K), k)), joint, place)
            return []

        return loop(b, n, [], row)

    loop(b, K, [], component)


@kernel
def copy_joint(b: Builder, joint: Value, K: Value, start: Value, n: Value, stride: Value, out: Value) -> None:
    """out[start + i, k] = joint[k, i] for n rows."""

    def row(i: Value, _: list[Value]) -> list[Value]:
        def component(k: Value, _: list[Value]) -> list[Value]:
            put(b, get(b, joint, b.mul(k, stride), i), out, b.mul(at(b, start, i), K), k)
            return []

        return loop(b, K, [], component)

    loop(b, n, [], row)


@kernel
def sum_logs(b: Builder, weight: Value, top: Value, total: Value, n: Value, out: Value) -> None:
    """out[0] = sum_i weight[i] (top[i] + log(total[i])) over n rows; the logarithm of 0 counts as 0."""
    double = VECTOR.element
    log = b.module.declare_intrinsic("llvm.log", [double])
    one, zero = (ir.Constant(double, value) for value in (1.0, 0.0))

    def row(i: Value, carried: list[Value]) -> list[Value]:
        value = get(b, total, i)
        logarithm = b.call(log, [b.select(b.fcmp_ordered(">", value, zero), value, one)])
        return [b.fadd(carried[0], b.fmul(get(b, weight, i), b.fadd(get(b, top, i), logarithm)))]

    put(b, loop(b, n, [zero], row)[0], out)


@kernel
def share_rows(
    b: Builder,
    joint: Value,
    K: Value,
    stride: Value,
    n: Value,
    weight: Value,
    top: Value,
    total: Value,
    product: Value,
    sum_top: Value,
) -> None:
    """Turn joint[k, i] = log p(x_i, k), rows `stride` apart, into weight[i] p(k | x_i), for i < n WIDTH.

    top[i] = max_k joint[k, i], NaN passed over; total[i] = sum_k exp(joint[k, i] - top[i]), 0 where no component
    reaches, and all shares are 0 then. Over the rows of positive weight, in lanes, product is that of the totals (0
    counts as 1) and sum_top the sum of the tops: the unweighted log-likelihood is sum_top + log(product).
    """
    one = ir.Constant(VECTOR, [1.0] * WIDTH)
    unreached = ir.Constant(VECTOR, [UNREACHED] * WIDTH)
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
            scales.append(b.select(reached, b.fdiv(weights, safe), ZERO))
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
    nothing, one = ir.Constant(VECTOR, [NOTHING] * WIDTH), ir.Constant(VECTOR, [1.0] * WIDTH)

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
