"""Vector micro-kernels: the inner loops that neither BLAS nor automatic vectorisation does well.

Each is a numba intrinsic: a few lines that emit LLVM vector code, so that sums stay in registers and the full width of
the machine is used (numba's own vectoriser keeps to half of an AVX-512 register, and its scalar ``exp`` costs more than
all the arithmetic here). They work on flat arrays with offsets; the loops around them, in `residmix.moments.tiles`, are
plain numba.

Two layouts of a tile of rows are used. In *columns*, one feature's values lie side by side, and a vector holds one
feature of `WIDTH` rows. In *panels*, `WIDTH` features of one row lie side by side, panel after panel.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from llvmlite import binding, ir
from numba.core import types
from numba.extending import intrinsic

from residmix.moments.exp import vector_exp

__all__ = [
    "CHUNK",
    "WIDTH",
    "add_outer",
    "add_squares",
    "centre_chunk",
    "centre_column",
    "centre_panel",
    "exp_and_sum",
    "invert_and_multiply",
    "larger",
    "pair_scatter",
    "scale_and_sum",
    "self_scatter",
    "subtract_scaled",
    "subtract_whitened",
    "weigh_panel",
]

_FEATURES = dict(binding.get_host_cpu_features())

# doubles in a register, and registers of rows that share one load of a factor: what fits 32 or 16 registers
WIDTH = 8 if _FEATURES.get("avx512f") else 4 if _FEATURES.get("avx2") else 2
_REGISTERS = 6 if WIDTH == 8 else 3
CHUNK = WIDTH * _REGISTERS

_I64 = ir.IntType(64)
_VECTOR = ir.VectorType(ir.DoubleType(), WIDTH)
_ZERO = ir.Constant(_VECTOR, [0.0] * WIDTH)

Value = Any
Builder = Any


def _int(value: int) -> Value:
    return ir.Constant(_I64, value)


def _at(builder: Builder, *terms: Value | int) -> Value:
    """Return the sum of offsets."""
    total = _int(0)
    for term in terms:
        total = builder.add(total, _int(term) if isinstance(term, int) else term)
    return total


def _load(builder: Builder, base: Value, *offset: Value | int) -> Value:
    pointer = builder.gep(base, [_at(builder, *offset)])
    value = builder.load(builder.bitcast(pointer, _VECTOR.as_pointer()))
    value.align = 8
    return value


def _store(builder: Builder, value: Value, base: Value, *offset: Value | int) -> None:
    pointer = builder.gep(base, [_at(builder, *offset)])
    store = builder.store(value, builder.bitcast(pointer, _VECTOR.as_pointer()))
    store.align = 8


def _splat(builder: Builder, scalar: Value) -> Value:
    """Return a vector that holds `scalar` everywhere."""
    undefined = ir.Constant(_VECTOR, ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(ir.IntType(32), WIDTH), [0] * WIDTH))


def _broadcast(builder: Builder, base: Value, *offset: Value | int) -> Value:
    return _splat(builder, builder.load(builder.gep(base, [_at(builder, *offset)])))


def _multiply_add(builder: Builder, x: Value, y: Value, z: Value) -> Value:
    """Return x y + z, one rounding where the machine can."""
    return builder.fadd(builder.fmul(x, y, flags=("contract",)), z, flags=("contract",))


def _subtract_square(builder: Builder, z: Value, x: Value) -> Value:
    return builder.fsub(z, builder.fmul(x, x, flags=("contract",)), flags=("contract",))


def _loop(
    builder: Builder, count: Value, carried: list[Value], body: Callable[[Value, list[Value]], list[Value]]
) -> list[Value]:
    """Emit ``for i in range(count): carried = body(i, carried)`` and return what is carried at the end."""
    before = builder.block
    head = builder.append_basic_block("head")
    inner = builder.append_basic_block("inner")
    after = builder.append_basic_block("after")
    builder.branch(head)
    builder.position_at_end(head)
    index = builder.phi(_I64)
    index.add_incoming(_int(0), before)
    values = []
    for value in carried:
        phi = builder.phi(value.type)
        phi.add_incoming(value, before)
        values.append(phi)
    builder.cbranch(builder.icmp_signed("<", index, count), inner, after)
    builder.position_at_end(inner)
    new = body(index, values)
    for phi, value in zip(values, new, strict=True):
        phi.add_incoming(value, builder.block)
    index.add_incoming(builder.add(index, _int(1)), builder.block)
    builder.branch(head)
    builder.position_at_end(after)
    return values


def _kernel(emit: Callable[..., None], name: str | None = None) -> Any:
    """Make a numba intrinsic of ``emit(builder, *arguments)``: arrays arrive as pointers, numbers as they are."""

    def typed(context: Any, *arguments: Any) -> Any:
        kinds = [kind if isinstance(kind, types.Array) else types.unliteral(kind) for kind in arguments]

        def generate(target: Any, builder: Builder, signature: Any, values: Any) -> Value:
            lowered = [
                target.make_array(kind)(target, builder, value).data if isinstance(kind, types.Array) else value
                for kind, value in zip(signature.args, values, strict=True)
            ]
            emit(builder, *lowered)
            return target.get_dummy_value()

        return types.void(*kinds), generate

    typed.__name__ = typed.__qualname__ = name or emit.__name__
    # numba reads the number of arguments from the signature, where *arguments would become a tuple
    names = ["context", *list(inspect.signature(emit).parameters)[1:]]
    positional = inspect.Parameter.POSITIONAL_OR_KEYWORD
    typed.__dict__["__signature__"] = inspect.Signature([inspect.Parameter(n, positional) for n in names])
    return intrinsic(typed)


# -- distances, in columns ------------------------------------------------------------------------------------------


@_kernel
def centre_chunk(b: Builder, x: Value, x0: Value, stride: Value, mean: Value, m0: Value, d: Value, out: Value) -> None:
    """out[j, :CHUNK] = x[j, :CHUNK] - mean[j], d columns; those of `x` are `stride` apart, those of `out` CHUNK."""

    def body(j: Value, _: list[Value]) -> list[Value]:
        mean_j = _broadcast(b, mean, m0, j)
        column, target = _at(b, x0, b.mul(j, stride)), b.mul(j, _int(CHUNK))
        for register in range(_REGISTERS):
            value = b.fsub(_load(b, x, column, register * WIDTH), mean_j)
            _store(b, value, out, target, register * WIDTH)
        return []

    _loop(b, d, [], body)


def _whitened(width: int) -> Any:
    def emit(b: Builder, deviation: Value, factor: Value, f0: Value, above: Value, out: Value, o0: Value) -> None:
        def column(j: Value) -> tuple[list[Value], Value]:
            start = b.mul(j, _int(CHUNK))
            return [_load(b, deviation, start, r * WIDTH) for r in range(_REGISTERS)], _at(b, f0, b.mul(j, _int(width)))

        def multiply(j: Value, sums: list[Value], first: int) -> list[Value]:
            rows, entry = column(j)
            sums = list(sums)
            for c in range(first, width):
                value = _broadcast(b, factor, entry, c)
                for r in range(_REGISTERS):
                    sums[c * _REGISTERS + r] = _multiply_add(b, rows[r], value, sums[c * _REGISTERS + r])
            return sums

        sums = _loop(b, above, [_ZERO] * (width * _REGISTERS), lambda j, carried: multiply(j, carried, 0))
        for c in range(width):
            sums = multiply(_at(b, above, c), sums, c)
        for r in range(_REGISTERS):
            value = _load(b, out, o0, r * WIDTH)
            for c in range(width):
                value = _subtract_square(b, value, sums[c * _REGISTERS + r])
            _store(b, value, out, o0, r * WIDTH)

    return _kernel(emit, f"subtract_whitened_{width}")


#: out[:CHUNK] -= squared products of the deviations with 1 ... 4 columns of an upper triangular factor, with `above`
#: rows above the tip of its triangle; the factor's entries lie row by row.
subtract_whitened = tuple(_whitened(width) for width in (1, 2, 3, 4))


@_kernel
def subtract_scaled(
    b: Builder,
    x: Value,
    x0: Value,
    stride: Value,
    mean: Value,
    factor: Value,
    m0: Value,
    d: Value,
    out: Value,
    o0: Value,
) -> None:
    """out[:CHUNK] -= sum_j ((x[j] - mean[j]) factor[j])**2."""

    def body(j: Value, sums: list[Value]) -> list[Value]:
        mean_j, factor_j = _broadcast(b, mean, m0, j), _broadcast(b, factor, m0, j)
        column = _at(b, x0, b.mul(j, stride))
        rows = [_load(b, x, column, r * WIDTH) for r in range(_REGISTERS)]
        scaled = [b.fmul(b.fsub(row, mean_j), factor_j) for row in rows]
        return [_subtract_square(b, total, value) for total, value in zip(sums, scaled, strict=True)]

    sums = _loop(b, d, [_load(b, out, o0, r * WIDTH) for r in range(_REGISTERS)], body)
    for r in range(_REGISTERS):
        _store(b, sums[r], out, o0, r * WIDTH)


# -- responsibilities -----------------------------------------------------------------------------------------------


@_kernel
def larger(b: Builder, x: Value, x0: Value, n: Value, out: Value) -> None:
    """out = max(out, x); NaN in x is passed over."""

    def body(i: Value, _: list[Value]) -> list[Value]:
        row = b.mul(i, _int(WIDTH))
        value, best = _load(b, x, x0, row), _load(b, out, row)
        _store(b, b.select(b.fcmp_ordered(">", value, best), value, best), out, row)
        return []

    _loop(b, n, [], body)


@_kernel
def exp_and_sum(b: Builder, x: Value, x0: Value, n: Value, top: Value, total: Value) -> None:
    """x = exp(x - top); total += x."""

    def body(i: Value, _: list[Value]) -> list[Value]:
        row = b.mul(i, _int(WIDTH))
        value = vector_exp(b, b.fsub(_load(b, x, x0, row), _load(b, top, row)))
        _store(b, value, x, x0, row)
        _store(b, b.fadd(_load(b, total, row), value), total, row)
        return []

    _loop(b, n, [], body)


@_kernel
def invert_and_multiply(b: Builder, total: Value, top: Value, n: Value, product: Value, sum_top: Value) -> None:
    """product *= total; sum_top += top, lane by lane; total = 1 / total. A total of 0 counts as 1 and stays 0."""
    one = ir.Constant(_VECTOR, [1.0] * WIDTH)

    def body(i: Value, carried: list[Value]) -> list[Value]:
        row = b.mul(i, _int(WIDTH))
        value = _load(b, total, row)
        reached = b.fcmp_ordered(">", value, _ZERO)
        safe = b.select(reached, value, one)
        _store(b, b.select(reached, b.fdiv(one, safe), _ZERO), total, row)
        return [b.fmul(carried[0], safe), b.fadd(carried[1], _load(b, top, row))]

    products, sums = _loop(b, n, [one, _ZERO], body)
    _store(b, products, product)
    _store(b, sums, sum_top)


@_kernel
def scale_and_sum(b: Builder, x: Value, x0: Value, n: Value, factor: Value, total: Value, t0: Value) -> None:
    """x *= factor; total[:WIDTH] += x."""

    def body(i: Value, sums: list[Value]) -> list[Value]:
        row = b.mul(i, _int(WIDTH))
        value = b.fmul(_load(b, x, x0, row), _load(b, factor, row))
        _store(b, value, x, x0, row)
        return [b.fadd(sums[0], value)]

    _store(b, _loop(b, n, [_load(b, total, t0)], body)[0], total, t0)


# -- moments, in columns --------------------------------------------------------------------------------------------


@_kernel
def centre_column(b: Builder, x: Value, x0: Value, n: Value, mean: Value, m0: Value, out: Value, o0: Value) -> None:
    """out = x - mean[m0]."""
    mean_j = _broadcast(b, mean, m0)

    def body(i: Value, _: list[Value]) -> list[Value]:
        row = b.mul(i, _int(WIDTH))
        _store(b, b.fsub(_load(b, x, x0, row), mean_j), out, o0, row)
        return []

    _loop(b, n, [], body)


@_kernel
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
    mean_j = _broadcast(b, mean, m0)

    def body(i: Value, sums: list[Value]) -> list[Value]:
        row = b.mul(i, _int(WIDTH))
        value = b.fsub(_load(b, x, x0, row), mean_j)
        weighted = b.fmul(value, _load(b, share, r0, row))
        return [b.fadd(sums[0], weighted), _multiply_add(b, weighted, value, sums[1])]

    first, second = _loop(b, n, [_load(b, shift, s0), _load(b, scatter, s0)], body)
    _store(b, first, shift, s0)
    _store(b, second, scatter, s0)


def _self_scattered(width: int) -> Any:
    n_pairs = width * (width + 1) // 2

    def emit(
        b: Builder,
        x: Value,
        x0: Value,
        stride: Value,
        n: Value,
        share: Value,
        r0: Value,
        weighted: Value,
        scatter: Value,
        s0: Value,
        shift: Value,
        t0: Value,
    ) -> None:
        def body(i: Value, sums: list[Value]) -> list[Value]:
            row = b.mul(i, _int(WIDTH))
            share_i = _load(b, share, r0, row)
            columns = [_load(b, x, x0, row, b.mul(stride, _int(j))) for j in range(width)]
            sums, pair = list(sums), 0
            for j in range(width):
                value = b.fmul(share_i, columns[j])
                _store(b, value, weighted, row, b.mul(stride, _int(j)))
                sums[n_pairs + j] = b.fadd(sums[n_pairs + j], value)
                for other in columns[j:]:
                    sums[pair] = _multiply_add(b, value, other, sums[pair])
                    pair += 1
            return sums

        sums = [_load(b, scatter, s0, pair * WIDTH) for pair in range(n_pairs)]
        sums = _loop(b, n, sums + [_load(b, shift, t0, j * WIDTH) for j in range(width)], body)
        for pair in range(n_pairs):
            _store(b, sums[pair], scatter, s0, pair * WIDTH)
        for j in range(width):
            _store(b, sums[n_pairs + j], shift, t0, j * WIDTH)

    return _kernel(emit, f"self_scatter_{width}")


#: weighted = share x for 1 ... 4 columns; shift += weighted; scatter += weighted x over the pairs of these columns.
self_scatter = tuple(_self_scattered(width) for width in (1, 2, 3, 4))


def _pair_scattered(width: int) -> Any:
    def emit(
        b: Builder, weighted: Value, x: Value, x0: Value, stride: Value, n: Value, scatter: Value, s0: Value
    ) -> None:
        def body(i: Value, sums: list[Value]) -> list[Value]:
            row = b.mul(i, _int(WIDTH))
            columns = [_load(b, x, x0, row, b.mul(stride, _int(j))) for j in range(width)]
            new = []
            for j in range(4):
                value = _load(b, weighted, row, b.mul(stride, _int(j)))
                new += [_multiply_add(b, value, columns[c], sums[j * width + c]) for c in range(width)]
            return new

        sums = _loop(b, n, [_load(b, scatter, s0, pair * WIDTH) for pair in range(4 * width)], body)
        for pair in range(4 * width):
            _store(b, sums[pair], scatter, s0, pair * WIDTH)

    return _kernel(emit, f"pair_scatter_{width}")


#: scatter += weighted x over 4 weighted columns and 1 ... 4 further columns.
pair_scatter = tuple(_pair_scattered(width) for width in (1, 2, 3, 4))


# -- moments, in panels ---------------------------------------------------------------------------------------------


@_kernel
def centre_panel(
    b: Builder, x: Value, x0: Value, rows: Value, n: Value, mean: Value, m0: Value, out: Value, o0: Value
) -> None:
    """out[i] = x[rows[i]] - mean, for n rows of one panel."""
    mean_p = _load(b, mean, m0)

    def body(i: Value, _: list[Value]) -> list[Value]:
        row = b.mul(b.load(b.gep(rows, [i])), _int(WIDTH))
        _store(b, b.fsub(_load(b, x, x0, row), mean_p), out, o0, b.mul(i, _int(WIDTH)))
        return []

    _loop(b, n, [], body)


@_kernel
def weigh_panel(b: Builder, x: Value, x0: Value, share: Value, n: Value, out: Value, shift: Value, t0: Value) -> None:
    """out[i] = share[i] x[i]; shift += out[i], for n rows of one panel."""

    def body(i: Value, sums: list[Value]) -> list[Value]:
        row = b.mul(i, _int(WIDTH))
        value = b.fmul(_load(b, x, x0, row), _broadcast(b, share, i))
        _store(b, value, out, row)
        return [b.fadd(sums[0], value)]

    _store(b, _loop(b, n, [_load(b, shift, t0)], body)[0], shift, t0)


def _outer(panels: int) -> Any:
    def emit(
        b: Builder, weighted: Value, x: Value, x0: Value, stride: Value, n: Value, scatter: Value, s0: Value
    ) -> None:
        block = WIDTH * WIDTH

        def body(i: Value, sums: list[Value]) -> list[Value]:
            row = b.mul(i, _int(WIDTH))
            values = [_load(b, x, x0, row, b.mul(stride, _int(p))) for p in range(panels)]
            sums = list(sums)
            for a in range(WIDTH):
                left = _broadcast(b, weighted, row, a)
                for p in range(panels):
                    sums[p * WIDTH + a] = _multiply_add(b, values[p], left, sums[p * WIDTH + a])
            return sums

        offsets = [p * block + a * WIDTH for p in range(panels) for a in range(WIDTH)]
        sums = _loop(b, n, [_load(b, scatter, s0, offset) for offset in offsets], body)
        for value, offset in zip(sums, offsets, strict=True):
            _store(b, value, scatter, s0, offset)

    return _kernel(emit, f"add_outer_{panels}")


#: scatter += sum_i weighted[i] x[i]', WIDTH x WIDTH blocks of one weighted panel with 1 ... 3 panels `stride` apart.
add_outer = tuple(_outer(panels) for panels in (1, 2, 3))
