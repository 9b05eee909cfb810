"""Numeric expressions of a formula: what they learn from a whole column, and their value on some rows.

What is learned (knots, bounds, means, polynomial coefficients) comes from the whole column however it is cut into
chunks: the stream is cut anew into blocks of fixed length, so even rounding doesn't depend on the chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from residmix.design.formula.expressions import Call, Column, Expression, Number, Operation
from residmix.design.formula.tokens import FormulaError
from residmix.design.transforms import bases, smooth
from residmix.design.transforms.options import Blocks, State

__all__ = ["evaluate", "learn", "recut"]

Array = NDArray[np.float64]

BLOCK = 65_536  # rows of a block while learning

_ELEMENTWISE: dict[str, Callable[[Array], Array]] = {
    "I": lambda values: values,
    "exp": np.exp,
    "expm1": np.expm1,
    "log": np.log,
    "log10": np.log10,
    "log1p": np.log1p,
    "log2": np.log2,
    "sqrt": np.sqrt,
}
_ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "+": np.add,
    "-": np.subtract,
    "*": np.multiply,
    "/": np.divide,
    "**": np.power,
}


def evaluate(expression: Expression, columns: Mapping[str, Array], states: Mapping[str, State]) -> Array:
    """Return the value of a numeric expression: (b,), or (b, k) for a basis.

    Raises
    ------
    ValueError
        If a value isn't finite, for example the log of zero.
    """
    with np.errstate(all="ignore"):
        values = _evaluate(expression, columns, states)
    if not isinstance(expression, Column) and not np.isfinite(values).all():
        bad = ~np.isfinite(values.reshape(len(values), -1)).all(axis=1)
        row = int(bad.argmax())
        inputs = ", ".join(f"{name} = {columns[name][row]:g}" for name in dict.fromkeys(expression.columns()))
        raise ValueError(
            f"{expression.label} is not finite in {int(bad.sum())} rows (the first is row {row}, where {inputs})"
        )
    return values


def _evaluate(expression: Expression, columns: Mapping[str, Array], states: Mapping[str, State]) -> Array:
    if isinstance(expression, Column):
        return columns[expression.name]
    if isinstance(expression, Number):
        return np.asarray(expression.value)
    if isinstance(expression, Operation):
        right = _evaluate(expression.right, columns, states)
        if expression.left is None:
            return np.negative(right)
        return np.asarray(_ARITHMETIC[expression.symbol](_evaluate(expression.left, columns, states), right))
    argument = _evaluate(expression.argument, columns, states)
    if argument.ndim != 1:
        raise FormulaError(f"{expression.label}: the argument has {argument.shape[1]} columns, but must have one")
    if expression.function in _ELEMENTWISE:
        return _ELEMENTWISE[expression.function](argument)
    return _BASES[expression.function](argument, states[expression.text], dict(expression.options))


def learn(call: Call, blocks: Blocks) -> State | None:
    """Return what `call` learns from its whole argument, as values that fit into JSON; None if nothing.

    `blocks` yields the argument, in blocks whose lengths don't depend on how the data came.
    """
    if call.function not in _LEARNERS:
        return None
    options = dict(call.options)
    try:
        return _LEARNERS[call.function](blocks, options)
    except ValueError as error:
        raise FormulaError(f"{call.label}: {error}") from None


def recut(pieces: Iterator[Mapping[str, Array]], length: int = BLOCK) -> Iterator[dict[str, Array]]:
    """Yield the rows of `pieces` in blocks of `length`, whatever the lengths of the pieces."""
    held: list[Mapping[str, Array]] = []
    count = 0
    for piece in pieces:
        held.append(piece)
        count += len(next(iter(piece.values())))
        if count >= length:
            joined = {name: np.concatenate([part[name] for part in held]) for name in piece}
            for start in range(0, count - length + 1, length):
                yield {name: values[start : start + length] for name, values in joined.items()}
            held = [{name: values[count - count % length :] for name, values in joined.items()}]
            count %= length
    if count:
        yield {name: np.concatenate([part[name] for part in held]) for name in held[0]}


_LEARNERS: dict[str, Callable[[Blocks, Mapping[str, Any]], State]] = {
    "bs": bases.learn_bs,
    "cc": bases.learn_cyclic,
    "center": bases.learn_center,
    "cr": bases.learn_natural,
    "poly": bases.learn_poly,
    "s": smooth.learn_smooth,
    "scale": bases.learn_scale,
}
_BASES: dict[str, Callable[[Array, State, Mapping[str, Any]], Array]] = {
    "bs": bases.bs,
    "cc": bases.cubic,
    "center": bases.shifted,
    "cr": bases.cubic,
    "poly": bases.poly,
    "s": smooth.smooth,
    "scale": bases.shifted,
}
