"""Micro-kernels in single precision: what a row costs by the square of its columns (see `residmix.kernels.compiled`).

Means are floats and what these leave out, so no offset costs digits. A vector holds twice as many numbers; sums over
tiles are in double precision.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from residmix.kernels.compiled import (
    BROAD,
    BROAD_ZERO,
    FEW_FLOATS,
    FLOATS,
    I64,
    REGISTERS,
    VECTOR,
    WIDTH,
    ZERO,
    Builder,
    Value,
    at,
    broadcast,
    everywhere,
    get,
    integer,
    kernel,
    load,
    load_broad,
    loop,
    multiply_add,
    number,
    pick,
    put,
    splat,
    store,
    total,
)
from residmix.kernels.writers.distances import fetch_part, products
from residmix.kernels.writers.scatters import Columns, by_groups

__all__ = ["BROAD_CHUNK", "centre_single", "join_single", "round_shares", "scatter_single", "sift_single"]

# A share of a row that leaves no trace in single precision, and would be slow as a number without all its digits.
FAINT = 1e-30

# rows that share one load of a factor
BROAD_CHUNK = BROAD * REGISTERS


def _everywhere(b: Builder, base: Value, *offset: Value | int) -> Value:
    return splat(b, b.load(b.gep(base, [at(b, *offset)])), FLOATS)


def _halves(b: Builder, value: Value) -> list[Value]:
    """Return the two halves of a vector of floats."""
    return [pick(b, value, value, list(range(begin, begin + WIDTH))) for begin in (0, WIDTH)]


@kernel
def centre_single(
    b: Builder, x: Value, m: Value, stride: Value, high: Value, low: Value, c0: Value, deviation: Value
) -> None:
    """deviation[j, i] = (x[j, i] - high[c0 + j]) - low[c0 + j], for m columns of `stride` rows.

    With `high` the nearest float to a mean and `low` the rest of it, that's as exact as one rounding of the difference:
    the first one is rounded by its own size at most, and the second takes no more than a float's last digit of `high`.
    """

    def column(j: Value, _: list[Value]) -> list[Value]:
        first, parts = b.mul(j, stride), [_everywhere(b, each, c0, j) for each in (high, low)]

        def rows(i: Value, _: list[Value]) -> list[Value]:
            row = at(b, first, b.mul(i, integer(BROAD)))
            store(b, b.fsub(b.fsub(load_broad(b, x, row), parts[0]), parts[1]), deviation, row)
            return []

        return loop(b, b.sdiv(stride, integer(BROAD)), [], rows)

    loop(b, m, [], column)


@kernel
def round_shares(b: Builder, joint: Value, j0: Value, n: Value, index: Value, share: Value) -> None:
    """share[i] = joint[j0 + i] for n rows, 0 where that is `FAINT`; index[0] = n."""

    def rows(i: Value, _: list[Value]) -> list[Value]:
        row = b.mul(i, integer(WIDTH))
        value = load(b, joint, j0, row)
        value = b.select(b.fcmp_ordered(">", value, everywhere(FAINT)), value, ZERO)
        store(b, b.fptrunc(value, FEW_FLOATS), share, row)
        return []

    loop(b, b.sdiv(n, integer(WIDTH)), [], rows)
    b.store(n, b.bitcast(index, I64.as_pointer()))


@kernel
def sift_single(
    b: Builder,
    x: Value,
    m: Value,
    stride: Value,
    high: Value,
    low: Value,
    c0: Value,
    joint: Value,
    j0: Value,
    n: Value,
    index: Value,
    share: Value,
    deviation: Value,
) -> None:
    """Keep the rows of a tile whose share isn't `FAINT`, and m columns of them less a mean, as `centre_single`.

    index[0] is how many there are in the end, whole vectors: what fills the last one has no share.
    """
    places = b.bitcast(index, I64.as_pointer())

    def sift(i: Value, carried: list[Value]) -> list[Value]:
        value = b.load(b.gep(joint, [at(b, j0, i)]))
        b.store(i, b.gep(places, carried))
        put(b, value, share, carried[0])
        belongs = b.fcmp_ordered(">", value, number(FAINT))
        return [b.add(carried[0], b.zext(belongs, I64))]

    some = loop(b, n, [integer(0)], sift, unrolled=True)[0]
    vectors = b.sdiv(at(b, some, BROAD - 1), integer(BROAD))
    used = b.mul(vectors, integer(BROAD))

    def fill(i: Value, _: list[Value]) -> list[Value]:
        b.store(integer(0), b.gep(places, [at(b, some, i)]))
        put(b, number(0.0), share, some, i)
        return []

    loop(b, b.sub(used, some), [], fill)

    def column(j: Value, _: list[Value]) -> list[Value]:
        first, parts = b.mul(j, stride), [b.load(b.gep(each, [at(b, c0, j)])) for each in (high, low)]

        def row(i: Value, _: list[Value]) -> list[Value]:
            value = b.load(b.gep(x, [at(b, first, b.load(b.gep(places, [i])))]))
            b.store(b.fsub(b.fsub(value, parts[0]), parts[1]), b.gep(deviation, [at(b, first, i)]))
            return []

        return loop(b, used, [], row, unrolled=True)

    loop(b, m, [], column)
    b.store(used, places)


@kernel
def join_single(
    b: Builder,
    x: Value,
    stride: Value,
    high: Value,
    low: Value,
    packed: Value,
    d: Value,
    constant: Value,
    K: Value,
    chunk: Value,
    out: Value,
    rows: Value,
    next0: Value,
) -> None:
    """out[k, i] = constant[k] - half the squared Mahalanobis distance of row i from mean k, for `stride` rows.

    A chunk of rows is done at a time, `chunk` (d, BROAD_CHUNK) being scratch for it less a mean: see `centre_single`.
    Fetches as many rows, from row `next0` on.
    """
    chunks, wide = b.sdiv(stride, integer(BROAD_CHUNK)), range(REGISTERS)

    def row(j: Value) -> list[Value]:
        return [load_broad(b, chunk, b.mul(j, integer(BROAD_CHUNK)), r * BROAD) for r in wide]

    def squares(left: list[Value], above: Value, width: int, sums: list[Value]) -> list[Value]:
        new = list(left)
        for r in wide:
            for c in range(width):
                value = sums[c * REGISTERS + r]
                new[r] = multiply_add(b, value, value, new[r])
        return new

    def part(i: Value, _: list[Value]) -> list[Value]:
        first = b.mul(i, integer(BROAD_CHUNK))

        def component(k: Value, _: list[Value]) -> list[Value]:
            fetch_part(b, (rows, next0, d), stride, at(b, b.mul(i, K), k), b.mul(chunks, K))

            def centre(j: Value, _: list[Value]) -> list[Value]:
                parts = [_everywhere(b, each, b.mul(k, d), j) for each in (high, low)]
                for r in wide:
                    value = load_broad(b, x, first, b.mul(j, stride), r * BROAD)
                    value = b.fsub(b.fsub(value, parts[0]), parts[1])
                    store(b, value, chunk, b.mul(j, integer(BROAD_CHUNK)), r * BROAD)
                return []

            loop(b, d, [], centre)
            begin, factor = broadcast(b, constant, k), b.mul(k, b.mul(d, d))
            taken = products(
                b, row, packed, factor, d, [BROAD_ZERO] * REGISTERS, squares, zero=BROAD_ZERO, broadcast=_everywhere
            )
            for r, value in enumerate(taken):
                for begin_at, half in zip((0, WIDTH), _halves(b, value), strict=True):
                    value = b.fsub(begin, b.fpext(half, begin.type))
                    store(b, value, out, b.mul(k, stride), first, r * BROAD + begin_at)
            return []

        return loop(b, K, [], component)

    loop(b, chunks, [], part)


@dataclass(frozen=True)
class _Broad(Columns):
    """In single precision, of columns less the means; a tile's sums are added to those in double precision."""

    deviation: Value
    share: Value

    lanes: ClassVar[int] = BROAD
    size: ClassVar[int] = 1

    def deviations(self, j: Value, width: int) -> Callable[[Value], list[Value]]:
        def columns(row: Value) -> list[Value]:
            first = self.b.mul(j, self.stride)
            return [
                load_broad(self.b, self.deviation, first, row, self.b.mul(self.stride, integer(c)))
                for c in range(width)
            ]

        return columns

    def shares(self, row: Value) -> Value:
        return load_broad(self.b, self.share, row)

    def load(self, base: Value, *offset: Value | int) -> Value:
        return load_broad(self.b, base, *offset)

    def begin(self, places: list[tuple[Value, Value]]) -> list[Value]:
        return [BROAD_ZERO] * len(places)

    def keep(self, sums: list[Value], places: list[tuple[Value, Value]]) -> None:
        """Add up the lanes, so that what tiles are added to stays in the cache; `WIDTH` sums that lie side by side."""
        b, begin = self.b, 0
        while begin < len(sums):
            base, place = places[begin]
            several = [value for value, there in zip(sums[begin:], places[begin:], strict=True) if there[0] is base]
            if len(several) >= WIDTH:
                added = _across(b, [_doubles(b, value) for value in several[:WIDTH]])
                store(b, b.fadd(load(b, base, place), added), base, place)
                begin += WIDTH
            else:
                put(b, b.fadd(get(b, base, place), total(b, _doubles(b, several[0]))), base, place)
                begin += 1


def _doubles(b: Builder, value: Value) -> Value:
    """Return the sum of the two halves of a vector of floats, as doubles."""
    return b.fpext(b.fadd(*_halves(b, value)), VECTOR)


def _across(b: Builder, vectors: list[Value]) -> Value:
    """Return the sums of `WIDTH` vectors' lanes, as a vector."""
    lanes = list(range(2 * WIDTH))
    while len(vectors) > 1:
        pairs = zip(vectors[::2], vectors[1::2], strict=True)
        vectors = [b.fadd(pick(b, one, two, lanes[::2]), pick(b, one, two, lanes[1::2])) for one, two in pairs]
    return vectors[0]


@kernel
def scatter_single(
    b: Builder,
    deviation: Value,
    m: Value,
    stride: Value,
    k: Value,
    index: Value,
    share: Value,
    weighted: Value,
    scatter: Value,
    shift: Value,
) -> None:
    """Add component k's moments of index[0] rows of m columns less its mean, as `scatter_columns` does."""
    vectors = b.sdiv(b.load(b.bitcast(index, I64.as_pointer())), integer(BROAD))
    by_groups(b, _Broad(b, stride, vectors, weighted, scatter, shift, b.mul(k, m), deviation, share), k, m)
