"""What goes into a tile's micro-kernels: weights, priors, factors, panels (see `residmix.kernels.compiled`).

In plain numba these and those of `collect` are as quick, but make the first fit on a machine compile a second longer.
"""

from __future__ import annotations

from collections.abc import Callable

from residmix.kernels.compiled import (
    I64,
    WIDTH,
    Builder,
    Value,
    at,
    choose,
    fewer,
    get,
    integer,
    kernel,
    loop,
    number,
    put,
)

__all__ = ["add_prior", "copy_joint", "load_panels", "load_weights", "pack_factors", "sum_logs"]


@kernel
def pack_factors(b: Builder, factors: Value, K: Value, d: Value, scale: Value, packed: Value) -> None:
    """Lay upper triangular factors (K, d, d) out as `join_full` and `rotate` read them, times `scale`.

    Four columns at a time, row by row down to the diagonal. Component k's begin at k d d.
    """

    def component(k: Value, _: list[Value]) -> list[Value]:
        def group(g: Value, carried: list[Value]) -> list[Value]:
            above = b.mul(g, integer(4))
            width = fewer(b, integer(4), b.sub(d, above))

            def row(i: Value, carried: list[Value]) -> list[Value]:
                source = at(b, b.mul(at(b, b.mul(k, d), i), d), above)

                def column(j: Value, _: list[Value]) -> list[Value]:
                    value = b.fmul(scale, get(b, factors, source, j))
                    put(b, value, packed, carried[0], j)
                    return []

                loop(b, width, [], column)
                return [at(b, carried[0], width)]

            return loop(b, at(b, above, width), carried, row)

        loop(b, b.sdiv(at(b, d, 3), integer(4)), [b.mul(k, b.mul(d, d))], group)
        return []

    loop(b, K, [], component)


@kernel
def load_panels(b: Builder, rows: Value, start: Value, n: Value, m: Value, stride: Value, x: Value) -> None:
    """Turn n rows of m columns into panels of `stride` rows; columns that aren't there stay what they are."""

    def row(i: Value, _: list[Value]) -> list[Value]:
        source = b.mul(at(b, start, i), m)

        def column(j: Value, _: list[Value]) -> list[Value]:
            panel, within = b.sdiv(j, integer(WIDTH)), b.srem(j, integer(WIDTH))
            place = at(b, b.mul(at(b, b.mul(panel, stride), i), integer(WIDTH)), within)
            put(b, get(b, rows, source, j), x, place)
            return []

        return loop(b, m, [], column, unrolled=True)

    loop(b, n, [], row)


@kernel
def load_weights(b: Builder, weight: Value, given: Value, start: Value, n: Value, stride: Value, w: Value) -> None:
    """w[i] = weight[start + i], 1 if none is given, for i < n; 0 for the other of `stride` rows."""
    one, zero = number(1.0), number(0.0)

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
    one, zero = number(1.0), number(0.0)
    log = b.module.declare_intrinsic("llvm.log", [one.type])

    def row(i: Value, carried: list[Value]) -> list[Value]:
        value = get(b, total, i)
        logarithm = b.call(log, [b.select(b.fcmp_ordered(">", value, zero), value, one)])
        return [b.fadd(carried[0], b.fmul(get(b, weight, i), b.fadd(get(b, top, i), logarithm)))]

    put(b, loop(b, n, [zero], row)[0], out)
