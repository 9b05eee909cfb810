"""How loops are compiled and kept, and the pieces that their insides are written with: all we use of numba and LLVM.

The first call of a loop on a machine compiles it, and somebody waits for that: about a second per ten thousand lines
of LLVM code. So what makes much of it is avoided: slices of arrays (numba makes room for the text of an error if one
doesn't fit), arrays and sums made inside, and arguments of several types (a literal number is one of its own).

A micro-kernel is a numba intrinsic: a few lines that emit LLVM vector code, so that sums stay in registers and the full
width of the machine is used (numba's own vectoriser keeps to half of an AVX-512 register, and its scalar ``exp`` costs
more than all the arithmetic here). It works on flat arrays with offsets; the loops around it, in
`residmix.kernels.loops`, are plain numba.

Two layouts of a tile of rows are used. In *columns*, one feature's values lie side by side, and a vector holds one
feature of `WIDTH` rows. In *panels*, `WIDTH` features of one row lie side by side, panel after panel.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache, reduce
from pathlib import Path
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import njit
from numba.core import cgutils, types
from numba.core.caching import FunctionCache
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array
from numpy.typing import NDArray

from residmix.errors import ResidmixWarning, warn_once

__all__ = [
    "BROAD", "BROAD_ZERO", "CHUNK", "FEW_FLOATS", "FLOATS", "I64", "LINE", "REGISTERS", "VECTOR", "WHOLE", "WIDTH",
    "ZERO", "Builder", "Value", "at", "broadcast", "choose", "clear", "compiled", "everywhere", "fewer", "get",
    "integer", "kernel", "load", "load_broad", "load_four", "loop", "multiply_add", "number", "part", "part_places",
    "pick", "piece", "prefetch", "put", "room", "splat", "store", "subtract_square", "total", "whole",
]  # fmt: skip

# -- loops -----------------------------------------------------------------------------------------------------------

#: Make a piece of such loops, which is put into each of them before anything is compiled. Compiled by itself, as numba
#: does otherwise, it would be optimised and turned into machine code twice, and again in every further loop.
piece: Any = njit(nogil=True, inline="always")

# Of what numba makes besides, the entry for C has no user, and division by 0 gives infinity, as numpy's does, instead
# of a branch to an exception.
_SETTING: dict[str, Any] = {"nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True}


def compiled(function: Callable[..., Any]) -> Any:
    """Compile a loop that Python calls, and keep its machine code for the processes to come where that can be."""
    loop = njit(**_SETTING)(function)
    loop._cache = _Kept(function)
    return loop


class _Kept:
    """Numba's files of a loop's machine code; where these can't be written, read or trusted, the loop is compiled."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._files: Any = None

    def _open(self) -> Any:
        if self._files is None:
            files = FunctionCache(self._function)
            # what a loop is written with stands in other files than it: a change there must count as well
            files._cache_file._source_stamp = (files._cache_file._source_stamp, _stamp())
            self._files = files
        return self._files

    @property
    def cache_path(self) -> Any:
        return self._open().cache_path

    def load_overload(self, signature: Any, target: Any) -> Any:
        try:
            return self._open().load_overload(signature, target)
        # a file that was cut off may fail in any way when it is read
        except Exception as error:
            _tell(error)
        try:
            self._open().flush()
        except Exception:
            return None
        return None

    def save_overload(self, signature: Any, data: Any) -> None:
        try:
            self._open().save_overload(signature, data)
        except Exception as error:
            _tell(error)

    def flush(self) -> None:
        self._open().flush()


@cache
def _stamp() -> tuple[tuple[str, float, int], ...]:
    """Return what changes when a file beside this one does."""
    files = sorted(Path(__file__).parent.rglob("*.py"))
    return tuple((file.name, file.stat().st_mtime, file.stat().st_size) for file in files)


def _tell(error: Exception) -> None:
    """Warn once a process that machine code isn't kept."""
    warn_once(
        f"compiled loops can't be kept on disk or read from there ({type(error).__name__}: {error}), so every "
        "process compiles them again, which takes seconds. Set NUMBA_CACHE_DIR to a writable folder",
        ResidmixWarning,
        kind="compiled code not kept",
    )


# -- registers -------------------------------------------------------------------------------------------------------

_FEATURES = dict(binding.get_host_cpu_features())

# doubles in a register, and registers of rows that share one load of a factor: what fits 32 or 16 registers
WIDTH = 8 if _FEATURES.get("avx512f") else 4 if _FEATURES.get("avx2") else 2
REGISTERS = 6 if WIDTH == 8 else 3
CHUNK = WIDTH * REGISTERS

# bytes
LINE = 64

I64 = ir.IntType(64)
VECTOR = ir.VectorType(ir.DoubleType(), WIDTH)
Value = Any
Builder = Any
Body = Callable[[Value, list[Value]], list[Value]]


def everywhere(value: float) -> Value:
    """Return a vector that holds a known number everywhere."""
    return ir.Constant(VECTOR, [value] * WIDTH)


ZERO = everywhere(0.0)

# a register of floats, and as many of them as doubles in one
BROAD = 2 * WIDTH
FLOATS, FEW_FLOATS = (ir.VectorType(ir.FloatType(), size) for size in (BROAD, WIDTH))
BROAD_ZERO = ir.Constant(FLOATS, [0.0] * BROAD)

# whole numbers of the size of a register's numbers
WHOLE = ir.VectorType(I64, WIDTH)


def whole(value: int) -> Value:
    return ir.Constant(WHOLE, [value] * WIDTH)


def number(value: float) -> Value:
    return ir.Constant(VECTOR.element, value)


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


def room(builder: Builder, size: int) -> Value:
    """Return the address of so many doubles that last as long as the loop, apart from all arrays."""
    place = cgutils.alloca_once(builder, ir.DoubleType(), size=size)
    place.align = LINE
    return place


def load_four(builder: Builder, base: Value, *offset: Value | int) -> Value:
    """Load four numbers, doubles or floats, whatever a register holds."""
    four = ir.VectorType(base.type.pointee, 4)
    value = builder.load(builder.bitcast(builder.gep(base, [at(builder, *offset)]), four.as_pointer()))
    value.align = 4 if base.type.pointee == ir.FloatType() else 8
    return value


def load(builder: Builder, base: Value, *offset: Value | int) -> Value:
    """Load doubles, or floats as doubles."""
    pointer = builder.gep(base, [at(builder, *offset)])
    single = base.type.pointee == ir.FloatType()
    held = ir.VectorType(ir.FloatType(), WIDTH) if single else VECTOR
    value = builder.load(builder.bitcast(pointer, held.as_pointer()))
    value.align = 4 if single else 8
    return builder.fpext(value, VECTOR) if single else value


def load_broad(builder: Builder, base: Value, *offset: Value | int) -> Value:
    """Load a register of floats."""
    value = builder.load(builder.bitcast(builder.gep(base, [at(builder, *offset)]), FLOATS.as_pointer()))
    value.align = 4
    return value


def prefetch(builder: Builder, base: Value, *offset: Value | int) -> None:
    """Ask for a line of memory to be in the second cache when it is needed. Any address will do, even a wrong one."""
    byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
    pointer = builder.bitcast(builder.gep(base, [at(builder, *offset)]), byte)
    read, second, data = (ir.Constant(number, value) for value in (0, 2, 1))
    builder.call(builder.module.declare_intrinsic("llvm.prefetch", [byte], kind), [pointer, read, second, data])


def store(builder: Builder, value: Value, base: Value, *offset: Value | int) -> None:
    """Store a register, doubles as floats where floats are kept."""
    pointer = builder.gep(base, [at(builder, *offset)])
    if pointer.type.pointee == ir.FloatType() != value.type.element:
        value = builder.fptrunc(value, FEW_FLOATS)
    written = builder.store(value, builder.bitcast(pointer, value.type.as_pointer()))
    written.align = 4 if value.type.element == ir.FloatType() else 8


def splat(builder: Builder, scalar: Value, kind: Value = VECTOR) -> Value:
    """Return a vector that holds `scalar` everywhere."""
    undefined = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(ir.IntType(32), 0))
    return pick(builder, first, undefined, [0] * kind.count)


def broadcast(builder: Builder, base: Value, *offset: Value | int) -> Value:
    return splat(builder, get(builder, base, *offset))


def multiply_add(builder: Builder, x: Value, y: Value, z: Value) -> Value:
    """Return x y + z, one rounding where the machine can."""
    return builder.fadd(builder.fmul(x, y, flags=("contract",)), z, flags=("contract",))


def subtract_square(builder: Builder, z: Value, x: Value) -> Value:
    return builder.fsub(z, builder.fmul(x, x, flags=("contract",)), flags=("contract",))


def loop(builder: Builder, count: Value, carried: list[Value], body: Body, *, unrolled: bool = False) -> list[Value]:
    """Emit ``for i in range(count): carried = body(i, carried)`` and return what is carried at the end.

    Only if it is to be `unrolled` may LLVM copy the body: with vectors that is a third of the time to compile, for no
    gain.
    """
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
    back = builder.branch(head)
    if not unrolled:  # said by a node that names itself first
        node = ir.MDValue(builder.module, [], name=str(len(builder.module.metadata)))
        node.operands = (node, builder.module.add_metadata(["llvm.loop.unroll.disable"]))
        back.set_metadata("llvm.loop", node)
    builder.position_at_end(after)
    return values


def get(builder: Builder, base: Value, *offset: Value | int) -> Value:
    """Load one number, a float as a double."""
    value = builder.load(builder.gep(base, [at(builder, *offset)]))
    return builder.fpext(value, ir.DoubleType()) if value.type == ir.FloatType() else value


def put(builder: Builder, value: Value, base: Value, *offset: Value | int) -> None:
    """Store one number, a double as a float where floats are kept."""
    pointer = builder.gep(base, [at(builder, *offset)])
    builder.store(builder.fptrunc(value, ir.FloatType()) if pointer.type.pointee == ir.FloatType() else value, pointer)


def total(builder: Builder, vector: Value) -> Value:
    """Return the sum of a vector's doubles, from the first to the last."""
    lanes = [builder.extract_element(vector, integer(lane)) for lane in range(WIDTH)]
    return reduce(builder.fadd, lanes)


def choose(builder: Builder, index: Value, cases: list[Callable[[], list[Value]]]) -> list[Value]:
    """Emit ``cases[index]()`` and return what it returns; the last case is any other's, too."""
    after = builder.append_basic_block("chosen")
    blocks = [builder.append_basic_block("case") for _ in cases]
    branches = builder.switch(index, blocks[-1])
    for number, block in enumerate(blocks[:-1]):
        branches.add_case(integer(number), block)
    outcomes = []
    for case, block in zip(cases, blocks, strict=True):
        builder.position_at_end(block)
        values = case()
        outcomes.append((builder.block, values))
        builder.branch(after)
    builder.position_at_end(after)
    chosen = [builder.phi(value.type) for value in outcomes[0][1]]
    for block, values in outcomes:
        for phi, value in zip(chosen, values, strict=True):
            phi.add_incoming(value, block)
    return chosen


def pick(builder: Builder, one: Value, two: Value, order: list[int]) -> Value:
    """Return a vector of the elements `order` of two vectors, the second's numbers following the first's."""
    mask = ir.Constant(ir.VectorType(ir.IntType(32), len(order)), order)
    return builder.shuffle_vector(one, two, mask)


def fewer(builder: Builder, one: Value, two: Value) -> Value:
    """Return the smaller one of two whole numbers."""
    return builder.select(builder.icmp_signed("<", one, two), one, two)


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


def part_places(sizes: list[int], item: int = 8) -> NDArray[np.int64]:
    """Return where the parts of an array begin that are to have such sizes, and how many numbers the array must have.

    `item` is the size of a number in bytes.

    Each part begins with a line of the cache: vectors that lie across two of them are slow.
    """
    line = LINE // item
    places = np.cumsum([0, *(-(-size // line) * line for size in sizes)])
    places[-1] += line - 1
    return places


def _part(context: Any, work: Any, places: Any, index: Any) -> Any:
    """Return part `index` of `work`, see `part_places`. It must not outlive `work`: nothing counts its users."""

    def generate(target: Any, builder: Builder, signature: Any, values: Any) -> Value:
        numbers, bounds = (
            target.data_model_manager[kind].get(builder, value, "data")
            for kind, value in zip(signature.args[:2], values[:2], strict=True)
        )
        begin, end = (builder.load(builder.gep(bounds, [at(builder, values[2], after)])) for after in (0, 1))
        array = target.make_array(signature.return_type)(target, builder)
        size, width = builder.sub(end, begin), integer(work.dtype.bitwidth // 8)
        line = integer(LINE)
        address = builder.add(builder.ptrtoint(numbers, I64), builder.sub(line, integer(1)))
        first = builder.inttoptr(builder.and_(address, builder.neg(line)), numbers.type)
        data = builder.gep(first, [begin])
        populate_array(array, data=data, shape=[size], strides=[width], itemsize=width, meminfo=None)
        return array._getvalue()

    return types.Array(work.dtype, 1, "C")(work, places, types.unliteral(index)), generate


part: Any = intrinsic(_part)


@kernel
def clear(b: Builder, x: Value, n: Value) -> None:
    """x[:n] = 0, for whole lines of the cache, beyond the end of a part if the next ones are meant, too."""

    def vector(i: Value, _: list[Value]) -> list[Value]:
        store(b, ZERO, x, b.mul(i, integer(WIDTH)))
        return []

    loop(b, b.sdiv(n, integer(WIDTH)), [], vector)
