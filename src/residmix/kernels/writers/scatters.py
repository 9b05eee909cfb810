"""Micro-kernels of the moments: share-weighted sums and scatters of a tile's rows (see `residmix.kernels.compiled`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from residmix.kernels.compiled import (
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
from residmix.kernels.plain import NOTHING

__all__ = ["Columns", "by_groups", "scatter_columns", "scatter_panels", "sift_panels"]

# -- in columns -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Columns(ABC):
    """One component's part of a tile in columns, and where its sums are; in single precision see `writers.single`."""

    b: Builder
    stride: Value
    vectors: Value
    weighted: Value
    scatter: Value
    shift: Value
    sums0: Value

    lanes: ClassVar[int] = WIDTH
    #: Numbers that a sum takes in memory.
    size: ClassVar[int] = WIDTH

    @abstractmethod
    def deviations(self, j: Value, width: int) -> Callable[[Value], list[Value]]:
        """Return what gives a vector of rows of each column from j on, less the columns' means, for a row."""

    @abstractmethod
    def shares(self, row: Value) -> Value:
        """Return the component's shares in a vector of rows."""

    def load(self, base: Value, *offset: Value | int) -> Value:
        return load(self.b, base, *offset)

    def begin(self, places: list[tuple[Value, Value]]) -> list[Value]:
        """Return what a tile's sums begin with."""
        return [load(self.b, base, place) for base, place in places]

    def keep(self, sums: list[Value], places: list[tuple[Value, Value]]) -> None:
        for value, (base, place) in zip(sums, places, strict=True):
            store(self.b, value, base, place)

    def itself(self, j: Value, entry: Value, width: int, keep: bool) -> None:
        """Pair a group of columns with itself, and keep it weighted."""
        b, deviations = self.b, self.deviations(j, width)
        n_pairs, place = width * (width + 1) // 2, b.mul(at(b, self.sums0, j), integer(self.size))

        def body(i: Value, sums: list[Value]) -> list[Value]:
            row = b.mul(i, integer(self.lanes))
            shares, columns = self.shares(row), deviations(row)
            sums, pair = list(sums), 0
            for c in range(width):
                value = b.fmul(shares, columns[c])
                if keep:
                    store(b, value, self.weighted, row, b.mul(self.stride, integer(c)))
                sums[n_pairs + c] = b.fadd(sums[n_pairs + c], value)
                for other in columns[c:]:
                    sums[pair] = multiply_add(b, value, other, sums[pair])
                    pair += 1
            return sums

        places = [(self.scatter, at(b, entry, pair * self.size)) for pair in range(n_pairs)]
        places += [(self.shift, at(b, place, c * self.size)) for c in range(width)]
        self.keep(loop(b, self.vectors, self.begin(places), body), places)

    def others(self, j: Value, entry: Value, width: int) -> None:
        """Pair the weighted group with the columns from j on."""
        b, deviations = self.b, self.deviations(j, width)

        def body(i: Value, sums: list[Value]) -> list[Value]:
            row = b.mul(i, integer(self.lanes))
            columns, new = deviations(row), []
            for a in range(4):
                value = self.load(self.weighted, row, b.mul(self.stride, integer(a)))
                new += [multiply_add(b, value, columns[c], sums[a * width + c]) for c in range(width)]
            return new

        places = [(self.scatter, at(b, entry, pair * self.size)) for pair in range(4 * width)]
        self.keep(loop(b, self.vectors, self.begin(places), body), places)


@dataclass(frozen=True)
class _Double(Columns):
    """In double precision, less the means on the way."""

    x: Value
    centres: Value
    mean0: Value
    joint: Value
    share: Value

    def deviations(self, j: Value, width: int) -> Callable[[Value], list[Value]]:
        b = self.b
        means = [broadcast(b, self.centres, self.mean0, j, c) for c in range(width)]

        def columns(row: Value) -> list[Value]:
            first = b.mul(j, self.stride)
            places = [b.mul(self.stride, integer(c)) for c in range(width)]
            return [b.fsub(load(b, self.x, first, row, c), mean) for c, mean in zip(places, means, strict=True)]

        return columns

    def shares(self, row: Value) -> Value:
        return load(self.b, self.joint, self.share, row)


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
    mean0, share, sums0 = b.mul(k, between), b.mul(k, stride), b.mul(k, m)
    vectors = b.sdiv(stride, integer(WIDTH))
    of = _Double(b, stride, vectors, weighted, scatter, shift, sums0, x, centres, mean0, joint, share)
    by_groups(b, of, k, m)


def by_groups(b: Builder, of: Columns, k: Value, m: Value) -> None:
    """Pair groups of four columns of component k with themselves and the later ones, as `collect_columns` has it."""
    entry = b.mul(k, b.mul(b.sdiv(b.mul(m, at(b, m, 1)), integer(2)), integer(of.size)))
    groups = b.sdiv(b.sub(m, integer(1)), integer(4))

    def group(g: Value, carried: list[Value]) -> list[Value]:
        j, entry = b.mul(g, integer(4)), carried[0]
        of.itself(j, entry, 4, True)
        after, entry = at(b, j, 4), at(b, entry, 10 * of.size)
        left = b.sub(m, after)
        fours = b.sdiv(left, integer(4))

        def four(o: Value, carried: list[Value]) -> list[Value]:
            of.others(at(b, after, b.mul(o, integer(4))), carried[0], 4)
            return [at(b, carried[0], 16 * of.size)]

        entry = loop(b, fours, [entry], four)[0]
        done = b.mul(fours, integer(4))

        def rest(width: int) -> list[Value]:
            if width:
                of.others(at(b, after, done), entry, width)
            return [at(b, entry, 4 * width * of.size)]

        return choose(b, b.sub(left, done), [partial(rest, width) for width in range(4)])

    def last(width: int) -> list[Value]:
        of.itself(b.mul(groups, integer(4)), entry, width, False)
        return []

    entry = loop(b, groups, [entry], group)[0]
    tail = b.sub(m, b.mul(groups, integer(4)))
    choose(b, b.sub(tail, integer(1)), [partial(last, width) for width in (1, 2, 3, 4)])


# -- in panels ------------------------------------------------------------------------------------------------------


@kernel
def sift_panels(
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
) -> None:
    """Keep the rows of a tile that have a share in component k: the shares, and panels less the component's centre.

    index[0] is how many there are, in the end.
    """
    size, rows = b.mul(stride, integer(WIDTH)), b.bitcast(index, I64.as_pointer())

    def sift(i: Value, carried: list[Value]) -> list[Value]:
        value = b.load(b.gep(joint, [at(b, b.mul(k, stride), i)]))
        b.store(i, b.gep(rows, carried))
        b.store(value, b.gep(share, carried))
        belongs = b.fcmp_ordered(">", value, value.type(NOTHING))
        return [b.add(carried[0], b.zext(belongs, I64))]

    used = loop(b, n, [integer(0)], sift, unrolled=True)[0]

    def centre(p: Value, _: list[Value]) -> list[Value]:
        mean = load(b, centres, b.mul(at(b, b.mul(k, panels), p), integer(WIDTH)))
        first = b.mul(p, size)

        def body(i: Value, _: list[Value]) -> list[Value]:
            row = b.mul(b.load(b.gep(rows, [i])), integer(WIDTH))
            store(b, b.fsub(load(b, x, first, row), mean), deviation, first, b.mul(i, integer(WIDTH)))
            return []

        return loop(b, used, [], body, unrolled=True)

    loop(b, panels, [], centre)
    b.store(used, rows)


def _weigh(
    b: Builder,
    deviation: Value,
    first: Value,
    used: Value,
    share: Value,
    weighted: Value,
    shift: Value,
    place: Value,
) -> None:
    """Weigh a panel with the rows' shares, and add up what comes out."""

    def body(i: Value, sums: list[Value]) -> list[Value]:
        row = b.mul(i, integer(WIDTH))
        value = b.fmul(load(b, deviation, first, row), broadcast(b, share, i))
        store(b, value, weighted, row)
        return [b.fadd(sums[0], value)]

    store(b, loop(b, used, [load(b, shift, place)], body)[0], shift, place)


@kernel
def scatter_panels(
    b: Builder,
    deviation: Value,
    panels: Value,
    k: Value,
    stride: Value,
    index: Value,
    share: Value,
    weighted: Value,
    scatter: Value,
    shift: Value,
) -> None:
    """Add component k's moments of the rows that `sift_panels` kept, by blocks of panels."""
    size, block = b.mul(stride, integer(WIDTH)), WIDTH * WIDTH
    used, sums0 = b.load(b.bitcast(index, I64.as_pointer())), b.mul(k, panels)

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
        _weigh(b, deviation, b.mul(p, size), used, share, weighted, shift, b.mul(at(b, sums0, p), integer(WIDTH)))
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

    pairs = b.sdiv(b.mul(panels, at(b, panels, 1)), integer(2))
    loop(b, panels, [b.mul(k, b.mul(pairs, integer(block)))], panel)
