"""Vector registers in numba: the pieces that micro-kernels are written with.

A micro-kernel is a numba intrinsic: a few lines that emit LLVM vector code, so that sums stay in registers and the full
width of the machine is used (numba's own vectoriser keeps to half of an AVX-512 register, and its scalar ``exp`` costs
more than all the arithmetic here). It works on flat arrays with offsets; the loops around it, in
`residmix.moments.tiles`, are plain numba.

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

__all__ = [
    "CHUNK",
    "REGISTERS",
    "VECTOR",
    "WIDTH",
    "ZERO",
    "Builder",
    "Value",
    "at",
    "broadcast",
    "integer",
    "kernel",
    "load",
    "loop",
    "multiply_add",
    "prefetch",
    "splat",
    "store",
    "subtract_square",
]

_FEATURES = dict(binding.get_host_cpu_features())

# doubles in a register, and registers of rows that share one load of a factor: what fits 32 or 16 registers
WIDTH = 8 if _FEATURES.get("avx512f") else 4 if _FEATURES.get("avx2") else 2
REGISTERS = 6 if WIDTH == 8 else 3
CHUNK = WIDTH * REGISTERS

I64 = ir.IntType(64)
VECTOR = ir.VectorType(ir.DoubleType(), WIDTH)
ZERO = ir.Constant(VECTOR, [0.0] * WIDTH)

Value = Any
Builder = Any


def integer(value: int) -> Value:
    return ir.Constant(I64, value)


def at(builder: Builder, *terms: Value | int) -> Value:
    """Return the sum of offsets. Known ones are added here: an instruction costs more to compile than to run."""
    known = sum(term for term in terms if isinstance(term, int))
    computed = [term for term in terms if not isinstance(term, int)]
    if not computed:
        return integer(known)
    total = computed[0]
    for term in computed[1:]:
        total = builder.add(total, term)
    return builder.add(total, integer(known)) if known else total


def load(builder: Builder, base: Value, *offset: Value | int) -> Value:
    """Load doubles, or floats as doubles."""
    pointer = builder.gep(base, [at(builder, *offset)])
    single = base.type.pointee == ir.FloatType()
    held = ir.VectorType(ir.FloatType(), WIDTH) if single else VECTOR
    value = builder.load(builder.bitcast(pointer, held.as_pointer()))
    value.align = 4 if single else 8
    return builder.fpext(value, VECTOR) if single else value


def prefetch(builder: Builder, base: Value, *offset: Value | int) -> None:
    """Ask for a line of memory to be in the second cache when it is needed. Any address will do, even a wrong one."""
    byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
    pointer = builder.bitcast(builder.gep(base, [at(builder, *offset)]), byte)
    read, second, data = (ir.Constant(number, value) for value in (0, 2, 1))
    builder.call(builder.module.declare_intrinsic("llvm.prefetch", [byte], kind), [pointer, read, second, data])


def store(builder: Builder, value: Value, base: Value, *offset: Value | int) -> None:
    pointer = builder.gep(base, [at(builder, *offset)])
    written = builder.store(value, builder.bitcast(pointer, VECTOR.as_pointer()))
    written.align = 8


def splat(builder: Builder, scalar: Value) -> Value:
    """Return a vector that holds `scalar` everywhere."""
    undefined = ir.Constant(VECTOR, ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(ir.IntType(32), WIDTH), [0] * WIDTH))


def broadcast(builder: Builder, base: Value, *offset: Value | int) -> Value:
    return splat(builder, builder.load(builder.gep(base, [at(builder, *offset)])))


def multiply_add(builder: Builder, x: Value, y: Value, z: Value) -> Value:
    """Return x y + z, one rounding where the machine can."""
    return builder.fadd(builder.fmul(x, y, flags=("contract",)), z, flags=("contract",))


def subtract_square(builder: Builder, z: Value, x: Value) -> Value:
    return builder.fsub(z, builder.fmul(x, x, flags=("contract",)), flags=("contract",))


def loop(
    builder: Builder, count: Value, carried: list[Value], body: Callable[[Value, list[Value]], list[Value]]
) -> list[Value]:
    """Emit ``for i in range(count): carried = body(i, carried)`` and return what is carried at the end."""
    before = builder.block
    head = builder.append_basic_block("head")
    inner = builder.append_basic_block("inner")
    after = builder.append_basic_block("after")
    builder.branch(head)
    builder.position_at_end(head)
    index = builder.phi(I64)
    index.add_incoming(integer(0), before)
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
    index.add_incoming(builder.add(index, integer(1)), builder.block)
    builder.branch(head)
    builder.position_at_end(after)
    return values


def kernel(emit: Callable[..., None], name: str | None = None) -> Any:
    """Make a numba intrinsic of ``emit(builder, *arguments)``: arrays arrive as pointers, numbers as they are."""

    def typed(context: Any, *arguments: Any) -> Any:
        kinds = [kind if isinstance(kind, types.Array) else types.unliteral(kind) for kind in arguments]

        def generate(target: Any, builder: Builder, signature: Any, values: Any) -> Value:
            lowered = [
                target.data_model_manager[kind].get(builder, value, "data") if isinstance(kind, types.Array) else value
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
