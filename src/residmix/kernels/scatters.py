"""Micro-kernels of the moments: share-weighted sums and scatters of a tile's rows (see `registers`)."""

from __future__ import annotations

from functools import partial

from residmix.kernels.registers import (
    I64,
    WIDTH,
    Builder,
    Value,
    at,
    broadcast,
    choose,
    integer,
    kernel,
    load,
    loop,
    multiply_add,
    store,
)
from residmix.kernels.shares import NOTHING

__all__ = ["load_panels", "scatter_columns", "scatter_panels", "scatter_squares"]

# -- in columns -----------------------------------------------------------------------------------------------------


@kernel
def scatter_squares(
    b: Builder,
    x: Value,
    d: Value,
    stride: Value,
    means: Value,
    k: Value,
    joint: Value,
    shift: Value,
    scatter: Value,
) -> None:
    """shift[k, j, :WIDTH] += share (x[j] - mean[j]); scatter[k, j, :WIDTH] += share (x[j] - mean[j])**2."""
    share = b.mul(k, stride)

    def column(j: Value, _: list[Value]) -> list[Value]:
        entry = at(b, b.mul(k, d), j)
        mean, place = broadcast(b, means, entry), b.mul(entry, integer(WIDTH))

        def body(i: Value, sums: list[Value]) -> list[Value]:
            row = b.mul(i, integer(WIDTH))
            value = b.fsub(load(b, x, row, b.mul(j, stride)), mean)
            weighted = b.fmul(value, load(b, joint, share, row))
            return [b.fadd(sums[0], weighted), multiply_add(b, weighted, value, sums[1])]

        vectors = b.sdiv(stride, integer(WIDTH))
        first, second = loop(b, vectors, [load(b, shift, place), load(b, scatter, place)], body)
        store(b, first, shift, place)
        store(b, second, scatter, place)
        return []

    loop(b, d, [], column)


@kernel
def scatter_columns(
    b: Builder,
    x: Value,
    m: Value,
    stride: Value,
    centres: Value,
    k: Value,
    between: Value,
    joint: Value,
    weighted: Value,
    scatter: Value,
    shift: Value,
) -> None:
    """Add component k's moments of a tile of m columns, by groups of four columns and pairs of such groups.

    The centres of two components are `between` apart. A group is centred and weighted once, in `weighted` (4, stride),
    and paired with itself, then with the columns after it. `collect_columns` knows the order of the sums.
    """
    vectors, mean0 = b.sdiv(stride, integer(WIDTH)), b.mul(k, between)
    share, sums0 = b.mul(k, stride), b.mul(k, m)
    entry = b.mul(k, b.mul(b.sdiv(b.mul(m, at(b, m, 1)), integer(2)), integer(WIDTH)))
    groups = b.sdiv(b.sub(m, integer(1)), integer(4))

    def itself(j: Value, entry: Value, width: int, keep: bool) -> None:
        means = [broadcast(b, centres, mean0, j, c) for c in range(width)]
        n_pairs, place = width * (width + 1) // 2, b.mul(at(b, sums0, j), integer(WIDTH))

        def body(i: Value, sums: list[Value]) -> list[Value]:
            row = b.mul(i, integer(WIDTH))
            share_i = load(b, joint, share, row)
            columns = _deviations(b, x, b.mul(j, stride), stride, row, means)
            sums, pair = list(sums), 0
            for c in range(width):
                value = b.fmul(share_i, columns[c])
                if keep:
                    store(b, value, weighted, row, b.mul(stride, integer(c)))
                sums[n_pairs + c] = b.fadd(sums[n_pairs + c], value)
                for other in columns[c:]:
                    sums[pair] = multiply_add(b, value, other, sums[pair])
                    pair += 1
            return sums

        sums = [load(b, scatter, entry, pair * WIDTH) for pair in range(n_pairs)]
        sums = loop(b, vectors, sums + [load(b, shift, place, c * WIDTH) for c in range(width)], body)
        for pair in range(n_pairs):
            store(b, sums[pair], scatter, entry, pair * WIDTH)
        for c in range(width):
            store(b, sums[n_pairs + c], shift, place, c * WIDTH)

    def others(j: Value, entry: Value, width: int) -> None:
        means = [broadcast(b, centres, mean0, j, c) for c in range(width)]

        def body(i: Value, sums: list[Value]) -> list[Value]:
            row = b.mul(i, integer(WIDTH))
            columns = _deviations(b, x, b.mul(j, stride), stride, row, means)
            new = []
            for a in range(4):
                value = load(b, weighted, row, b.mul(stride, integer(a)))
                new += [multiply_add(b, value, columns[c], sums[a * width + c]) for c in range(width)]
            return new

        sums = loop(b, vectors, [load(b, scatter, entry, pair * WIDTH) for pair in range(4 * width)], body)
        for pair in range(4 * width):
            store(b, sums[pair], scatter, entry, pair * WIDTH)

    def group(g: Value, carried: list[Value]) -> list[Value]:
        j, entry = b.mul(g, integer(4)), carried[0]
        itself(j, entry, 4, True)
        after, entry = at(b, j, 4), at(b, entry, 10 * WIDTH)
        left = b.sub(m, after)
        fours = b.sdiv(left, integer(4))

        def four(o: Value, carried: list[Value]) -> list[Value]:
            others(at(b, after, b.mul(o, integer(4))), carried[0], 4)
            return [at(b, carried[0], 16 * WIDTH)]

        entry = loop(b, fours, [entry], four)[0]
        done = b.mul(fours, integer(4))

        def rest(width: int) -> list[Value]:
            if width:
                others(at(b, after, done), entry, width)
            return [at(b, entry, 4 * width * WIDTH)]

        return choose(b, b.sub(left, done), [partial(rest, width) for width in range(4)])

    def last(width: int) -> list[Value]:
        itself(b.mul(groups, integer(4)), entry, width, False)
        return []

    entry = loop(b, groups, [entry], group)[0]
    tail = b.sub(m, b.mul(groups, integer(4)))
    choose(b, b.sub(tail, integer(1)), [partial(last, width) for width in (1, 2, 3, 4)])


def _deviations(b: Builder, x: Value, x0: Value, stride: Value, row: Value, means: list[Value]) -> list[Value]:
    """Return a vector of rows of each column, less the columns' means."""
    return [b.fsub(load(b, x, x0, row, b.mul(stride, integer(j))), mean) for j, mean in enumerate(means)]


# -- in panels ------------------------------------------------------------------------------------------------------


@kernel
def load_panels(b: Builder, rows: Value, start: Value, n: Value, m: Value, stride: Value, x: Value) -> None:
    """Turn n rows of m columns into panels of `stride` rows; columns that aren't there stay what they are."""

    def row(i: Value, _: list[Value]) -> list[Value]:
        source = b.mul(at(b, start, i), m)

        def column(j: Value, _: list[Value]) -> list[Value]:
            panel, within = b.sdiv(j, integer(WIDTH)), b.srem(j, integer(WIDTH))
            place = at(b, b.mul(at(b, b.mul(panel, stride), i), integer(WIDTH)), within)
            b.store(b.load(b.gep(rows, [at(b, source, j)])), b.gep(x, [place]))
            return []

        return loop(b, m, [], column)

    loop(b, n, [], row)


@kernel
def scatter_panels(
    b: Builder,
    x: Value,
    panels: Value,
    centres: Value,
    k: Value,
    joint: Value,
    n: Value,
    stride: Value,
    index: Value,
    share: Value,
    deviation: Value,
    weighted: Value,
    scatter: Value,
    shift: Value,
) -> None:
    """Add component k's moments of a tile in panels, by blocks of panels; rows without a share are passed over."""
    size, block, rows = b.mul(stride, integer(WIDTH)), WIDTH * WIDTH, b.bitcast(index, I64.as_pointer())
    sums0 = b.mul(k, panels)

    def sift(i: Value, carried: list[Value]) -> list[Value]:
        value = b.load(b.gep(joint, [at(b, b.mul(k, stride), i)]))
        b.store(i, b.gep(rows, carried))
        b.store(value, b.gep(share, carried))
        belongs = b.fcmp_ordered(">", value, value.type(NOTHING))
        return [b.add(carried[0], b.zext(belongs, I64))]

    used = loop(b, n, [integer(0)], sift)[0]

    def centre(p: Value, _: list[Value]) -> list[Value]:
        mean, first = load(b, centres, b.mul(at(b, sums0, p), integer(WIDTH))), b.mul(p, size)

        def body(i: Value, _: list[Value]) -> list[Value]:
            row = b.mul(b.load(b.gep(rows, [i])), integer(WIDTH))
            store(b, b.fsub(load(b, x, first, row), mean), deviation, first, b.mul(i, integer(WIDTH)))
            return []

        return loop(b, used, [], body)

    def weigh(p: Value) -> None:
        place = b.mul(at(b, sums0, p), integer(WIDTH))

        def body(i: Value, sums: list[Value]) -> list[Value]:
            row = b.mul(i, integer(WIDTH))
            value = b.fmul(load(b, deviation, b.mul(p, size), row), broadcast(b, share, i))
            store(b, value, weighted, row)
            return [b.fadd(sums[0], value)]

        store(b, loop(b, used, [load(b, shift, place)], body)[0], shift, place)

    def outer(other: Value, entry: Value, width: int) -> None:
        def body(i: Value, sums: list[Value]) -> list[Value]:
            row = b.mul(i, integer(WIDTH))
            values = [load(b, deviation, b.mul(at(b, other, p), size), row) for p in range(width)]
            sums = list(sums)
            for a in range(WIDTH):
                left = broadcast(b, weighted, row, a)
                for p in range(width):
                    sums[p * WIDTH + a] = multiply_add(b, values[p], left, sums[p * WIDTH + a])
            return sums

        offsets = [p * block + a * WIDTH for p in range(width) for a in range(WIDTH)]
        sums = loop(b, used, [load(b, scatter, entry, offset) for offset in offsets], body)
        for value, offset in zip(sums, offsets, strict=True):
            store(b, value, scatter, entry, offset)

    def panel(p: Value, carried: list[Value]) -> list[Value]:
        weigh(p)
        left = b.sub(panels, p)
        threes = b.sdiv(left, integer(3))

        def three(o: Value, carried: list[Value]) -> list[Value]:
            outer(at(b, p, b.mul(o, integer(3))), carried[0], 3)
            return [at(b, carried[0], 3 * block)]

        entry = loop(b, threes, carried, three)[0]
        done = b.mul(threes, integer(3))

        def rest(width: int) -> list[Value]:
            if width:
                outer(at(b, p, done), entry, width)
            return [at(b, entry, width * block)]

        return choose(b, b.sub(left, done), [partial(rest, width) for width in range(3)])

    loop(b, panels, [], centre)
    pairs = b.sdiv(b.mul(panels, at(b, panels, 1)), integer(2))
    loop(b, panels, [b.mul(k, b.mul(pairs, integer(block)))], panel)
