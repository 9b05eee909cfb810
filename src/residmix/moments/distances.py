"""Micro-kernels of the E-step: rows into columns, and squared distances of a chunk of rows (see `registers`)."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from residmix.moments.registers import (
    CHUNK,
    REGISTERS,
    VECTOR,
    WIDTH,
    ZERO,
    Builder,
    Value,
    at,
    broadcast,
    integer,
    kernel,
    load,
    loop,
    multiply_add,
    splat,
    store,
    subtract_square,
)

__all__ = ["begin_direct", "begin_whitened", "centre_chunk", "scaled_distance", "transpose", "whiten", "whiten_direct"]


@kernel
def transpose(b: Builder, rows: Value, r0: Value, n_columns: Value, x: Value, x0: Value, stride: Value) -> None:
    """x[j, :WIDTH] = rows[:WIDTH, j] for 4 columns; rows are `n_columns` apart, columns of `x` are `stride` apart."""
    four = ir.VectorType(VECTOR.element, 4)

    def mask(order: list[int]) -> Value:
        return ir.Constant(ir.VectorType(ir.IntType(32), len(order)), order)

    def row(i: int) -> Value:
        pointer = b.gep(rows, [at(b, r0, b.mul(n_columns, integer(i)))])
        value = b.load(b.bitcast(pointer, four.as_pointer()))
        value.align = 8
        return value

    lines = [row(i) for i in range(WIDTH)]
    if WIDTH == 8:
        # rows i and i + 4 side by side: what is left are two 4 x 4 transposes, one in each half
        lines = [b.shuffle_vector(lines[i], lines[i + 4], mask(list(range(8)))) for i in range(4)]
    halves = range(0, WIDTH, 4)
    if WIDTH == 2:
        columns = [b.shuffle_vector(lines[0], lines[1], mask([j, 4 + j])) for j in range(4)]
    else:
        columns = [ZERO] * 4
        for odd in (0, 1):
            pick = [h + e + s for h in halves for e in (odd, odd + 2) for s in (0, WIDTH)]
            one, two = (b.shuffle_vector(lines[i], lines[i + 1], mask(pick)) for i in (0, 2))
            for late in (0, 2):
                order = [h + late + s + t for h in halves for s in (0, WIDTH) for t in (0, 1)]
                columns[odd + late] = b.shuffle_vector(one, two, mask(order))
    for j, column in enumerate(columns):
        store(b, column, x, x0, b.mul(stride, integer(j)))


@kernel
def centre_chunk(b: Builder, x: Value, x0: Value, stride: Value, mean: Value, m0: Value, d: Value, out: Value) -> None:
    """out[j, :CHUNK] = x[j, :CHUNK] - mean[j], d columns; those of `x` are `stride` apart, those of `out` CHUNK."""

    def body(j: Value, _: list[Value]) -> list[Value]:
        mean_j = broadcast(b, mean, m0, j)
        column, target = at(b, x0, b.mul(j, stride)), b.mul(j, integer(CHUNK))
        for register in range(REGISTERS):
            value = b.fsub(load(b, x, column, register * WIDTH), mean_j)
            store(b, value, out, target, register * WIDTH)
        return []

    loop(b, d, [], body)


def _multiply(b: Builder, rows: list[Value], factor: Value, entry: Value, columns: range, sums: list[Value]) -> None:
    """sums[c] += rows * factor[entry + c], in place, for some columns c of a group."""
    for c in columns:
        value = broadcast(b, factor, entry, c)
        for r in range(REGISTERS):
            sums[c * REGISTERS + r] = multiply_add(b, rows[r], value, sums[c * REGISTERS + r])


def _finish(b: Builder, sums: list[Value], width: int, begin: Value | None, out: Value, o0: Value) -> None:
    """out[:CHUNK] = (begin, or what is there) - the sums' squares."""
    for r in range(REGISTERS):
        value = load(b, out, o0, r * WIDTH) if begin is None else begin
        for c in range(width):
            value = subtract_square(b, value, sums[c * REGISTERS + r])
        store(b, value, out, o0, r * WIDTH)


def _whitened(width: int) -> Any:
    def emit(b: Builder, deviation: Value, factor: Value, f0: Value, above: Value, out: Value, o0: Value) -> None:
        def multiply(j: Value, carried: list[Value], columns: range) -> list[Value]:
            start, sums = b.mul(j, integer(CHUNK)), list(carried)
            rows = [load(b, deviation, start, r * WIDTH) for r in range(REGISTERS)]
            _multiply(b, rows, factor, at(b, f0, b.mul(j, integer(width))), columns, sums)
            return sums

        sums = [ZERO] * (width * REGISTERS)
        sums = loop(b, above, sums, lambda j, carried: multiply(j, carried, range(width)))
        for c in range(width):
            sums = multiply(at(b, above, c), sums, range(c, width))
        _finish(b, sums, width, None, out, o0)

    return kernel(emit, f"whiten_{width}")


#: out[:CHUNK] -= squared products of the deviations with 1 ... 4 columns of an upper triangular factor, with `above`
#: rows above the tip of its triangle; the factor's entries lie row by row.
whiten = tuple(_whitened(width) for width in (1, 2, 3, 4))


@kernel
def begin_whitened(b: Builder, deviation: Value, factor: Value, f0: Value, begin: Value, out: Value, o0: Value) -> None:
    """Set out[:CHUNK] to `begin` minus the same with the first 4 columns of the factor."""
    sums = [ZERO] * (4 * REGISTERS)
    for j in range(4):
        rows = [load(b, deviation, j * CHUNK, r * WIDTH) for r in range(REGISTERS)]
        _multiply(b, rows, factor, at(b, f0, 4 * j), range(j, 4), sums)
    _finish(b, sums, 4, splat(b, begin), out, o0)


def _direct(b: Builder, x: Value, x0: Value, stride: Value, mean: Value, m0: Value, j: int) -> list[Value]:
    """Return column j of a chunk less its mean: subtracting twice is cheaper than to store and load."""
    mean_j, column = broadcast(b, mean, m0, j), at(b, x0, b.mul(stride, integer(j)))
    return [b.fsub(load(b, x, column, r * WIDTH), mean_j) for r in range(REGISTERS)]


def _whiten_columns(
    b: Builder,
    x: Value,
    x0: Value,
    stride: Value,
    mean: Value,
    m0: Value,
    factor: Value,
    f0: Value,
    width: int,
    above: int,
) -> list[Value]:
    """Return the products of columns that aren't centred with a group of columns of the factor, `above` rows down."""
    sums = [ZERO] * (width * REGISTERS)
    for j in range(above + width):
        rows = _direct(b, x, x0, stride, mean, m0, j)
        _multiply(b, rows, factor, at(b, f0, width * j), range(max(0, j - above), width), sums)
    return sums


def _begin_direct(width: int) -> Any:
    def emit(
        b: Builder,
        x: Value,
        x0: Value,
        stride: Value,
        mean: Value,
        m0: Value,
        factor: Value,
        f0: Value,
        begin: Value,
        out: Value,
        o0: Value,
    ) -> None:
        sums = _whiten_columns(b, x, x0, stride, mean, m0, factor, f0, width, 0)
        _finish(b, sums, width, splat(b, begin), out, o0)

    return kernel(emit, f"begin_direct_{width}")


def _whiten_direct(width: int) -> Any:
    def emit(
        b: Builder,
        x: Value,
        x0: Value,
        stride: Value,
        mean: Value,
        m0: Value,
        factor: Value,
        f0: Value,
        out: Value,
        o0: Value,
    ) -> None:
        sums = _whiten_columns(b, x, x0, stride, mean, m0, factor, f0, width, 4)
        _finish(b, sums, width, None, out, o0)

    return kernel(emit, f"whiten_direct_{width}")


#: `begin_whitened` and `whiten` for up to 8 features, from columns of `x` that aren't centred: the first group of
#: 1 ... 4 columns of the factor, and a second group below it.
begin_direct = tuple(_begin_direct(width) for width in (1, 2, 3, 4))
whiten_direct = tuple(_whiten_direct(width) for width in (1, 2, 3, 4))


@kernel
def scaled_distance(
    b: Builder,
    x: Value,
    x0: Value,
    stride: Value,
    mean: Value,
    factor: Value,
    m0: Value,
    d: Value,
    begin: Value,
    out: Value,
    o0: Value,
) -> None:
    """out[:CHUNK] = begin - sum_j ((x[j] - mean[j]) factor[j])**2."""

    def body(j: Value, sums: list[Value]) -> list[Value]:
        mean_j, factor_j = broadcast(b, mean, m0, j), broadcast(b, factor, m0, j)
        column = at(b, x0, b.mul(j, stride))
        rows = [load(b, x, column, r * WIDTH) for r in range(REGISTERS)]
        scaled = [b.fmul(b.fsub(row, mean_j), factor_j) for row in rows]
        return [subtract_square(b, total, value) for total, value in zip(sums, scaled, strict=True)]

    sums = loop(b, d, [splat(b, begin)] * REGISTERS, body)
    for r in range(REGISTERS):
        store(b, sums[r], out, o0, r * WIDTH)
