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
from residmix.design.quantiles import distinct_values, order_statistics

__all__ = ["evaluate", "learn", "recut"]

Array = NDArray[np.float64]
Blocks = Callable[[], Iterator[Array]]
State = dict[str, Any]

BLOCK = 65_536  # rows of a block while learning
NEGLIGIBLE = 1e-24  # squared norm, relative to its scale, below which a polynomial is rounding only

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
        raise FormulaError(f"{expression.label}: the argument has {argument.shape[1]} columns; one is needed")
    if expression.function in _ELEMENTWISE:
        return _ELEMENTWISE[expression.function](argument)
    return _BASES[expression.function](argument, states[expression.text], dict(expression.options))


def learn(call: Call, blocks: Blocks) -> State | None:
    """Return what `call` keeps from its whole argument, as values that JSON holds; None if it keeps nothing.

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


# ---- options ---------------------------------------------------------------------------------------------------------


def _whole(options: Mapping[str, Any], key: str, default: int | None, low: int, high: int) -> int | None:
    value = options.get(key, default)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise FormulaError(f"{key} must be a whole number from {low} to {high}, not {value!r}")
    return value


def _number(options: Mapping[str, Any], key: str) -> float | None:
    value = options.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise FormulaError(f"{key} must be a number, not {value!r}")
    return float(value)


def _knots(options: Mapping[str, Any]) -> list[float] | None:
    knots = options.get("knots")
    if knots is None:
        return None
    if not isinstance(knots, tuple) or any(isinstance(k, bool) or not isinstance(k, int | float) for k in knots):
        raise FormulaError(f"knots must be a list of numbers, not {knots!r}")
    if options.get("df") is not None:
        raise FormulaError("give df or knots, not both")
    return sorted(float(knot) for knot in knots)


def _bounds(blocks: Blocks, options: Mapping[str, Any]) -> tuple[float, float]:
    low, high = _number(options, "lower_bound"), _number(options, "upper_bound")
    if low is None or high is None:
        extremes = [(block.min(), block.max()) for block in blocks()]
        if not extremes:
            raise FormulaError("there are no values to learn from")
        low = float(min(pair[0] for pair in extremes)) if low is None else low
        high = float(max(pair[1] for pair in extremes)) if high is None else high
    if low > high:
        raise FormulaError(f"lower_bound {low:g} is above upper_bound {high:g}")
    return low, high


def _within(blocks: Blocks, low: float, high: float) -> Blocks:
    return lambda: (block[(block >= low) & (block <= high)] for block in blocks())


# ---- stateful functions ----------------------------------------------------------------------------------------------


def _moments(blocks: Blocks) -> tuple[int, float, float]:
    """Return count, mean and centred sum of squares, merged block by block (Chan, Golub and LeVeque 1983)."""
    n, mean, scatter = 0, 0.0, 0.0
    for block in blocks():
        if not len(block):
            continue
        m, own = len(block), float(block.mean())
        gap, total = own - mean, n + m
        scatter += float(np.square(block - own).sum()) + gap * gap * n * m / total
        mean += gap * m / total
        n = total
    if n == 0:
        raise FormulaError("there are no values to learn from")
    return n, mean, scatter


def _learn_scale(blocks: Blocks, options: Mapping[str, Any]) -> State:
    n, mean, scatter = _moments(blocks)
    freedom = n - (_whole(options, "ddof", 1, 0, 1) or 0)
    spread = float(np.sqrt(scatter / freedom)) if freedom > 0 else 0.0
    centred, scaled = options.get("center", True), options.get("scale", True)
    if not isinstance(centred, bool) or not isinstance(scaled, bool):
        raise FormulaError("center and scale are True or False")
    return {"center": mean if centred else 0.0, "scale": spread if scaled and spread > 0 else 1.0}


def _learn_center(blocks: Blocks, options: Mapping[str, Any]) -> State:
    return {"center": _moments(blocks)[1], "scale": 1.0}


def _shifted(values: Array, state: State, options: Mapping[str, Any]) -> Array:
    return (values - state["center"]) / state["scale"]


def _learn_poly(blocks: Blocks, options: Mapping[str, Any]) -> State:
    """Coefficients of the monic three-term recurrence that makes the powers orthogonal on the training column."""
    degree = _whole(options, "degree", 1, 1, 20) or 1
    alpha: list[float] = []
    norms: list[float] = []
    raw = options.get("raw", False)
    for k in range(0 if raw else degree + 1):
        norm = weighted = square = 0.0
        for block in blocks():
            square += float(block @ block)
            last = _recurrence(block, alpha, norms)[-1]
            norm += float(last @ last)
            weighted += float((block * last) @ last)
        scale = norms[1] / norms[0] * norms[-1] if k > 1 else square if k == 1 else 0.0
        if norm <= NEGLIGIBLE * scale or not norm:
            raise FormulaError(f"degree {degree} needs more than {degree} distinct values, and there are {k}")
        norms.append(norm)
        alpha.append(weighted / norm)
    return {"degree": degree, "alpha": alpha[:degree], "norms": norms}


def _recurrence(values: Array, alpha: list[float], norms: list[float]) -> list[Array]:
    powers = [np.ones_like(values)]
    for k, shift in enumerate(alpha):
        following = (values - shift) * powers[-1]
        if k:
            following -= norms[k] / norms[k - 1] * powers[-2]
        powers.append(following)
    return powers


def _poly(values: Array, state: State, options: Mapping[str, Any]) -> Array:
    if not state["alpha"]:
        return np.stack([values**power for power in range(1, state["degree"] + 1)], axis=1)
    powers = _recurrence(values, state["alpha"], state["norms"])
    return np.stack(powers[1:], axis=1) / np.sqrt(state["norms"][1:])


def _learn_bs(blocks: Blocks, options: Mapping[str, Any]) -> State:
    degree = _whole(options, "degree", 3, 0, 9)
    assert degree is not None
    low, high = _bounds(blocks, options)
    knots = _knots(options)
    if knots is None:
        inner = (_whole(options, "df", degree, degree or 1, 500) or degree) - degree
        places = np.linspace(0, 1, inner + 2)[1:-1].tolist()
        knots = order_statistics(_within(blocks, low, high), places) if inner else []
    edges = degree + 1
    extrapolation = options.get("extrapolation", "clip")
    if extrapolation not in ("clip", "extend", "raise", "zero"):
        raise FormulaError(f"extrapolation is 'clip', 'extend', 'zero' or 'raise', not {extrapolation!r}")
    return {
        "lower_bound": low,
        "upper_bound": high,
        "knots": [low] * edges + knots + [high] * edges,
        "degree": degree,
        "extrapolation": extrapolation,
    }


def _bs(values: Array, state: State, options: Mapping[str, Any]) -> Array:
    from formulaic.transforms import basis_spline

    known = {key: state[key] for key in ("lower_bound", "upper_bound", "knots")}
    columns = basis_spline(values, degree=state["degree"], extrapolation=state["extrapolation"], _state=known)
    return _stacked(columns, len(values))


def _learn_natural(blocks: Blocks, options: Mapping[str, Any]) -> State:
    return _learn_cubic(blocks, options, cyclic=False)


def _learn_cyclic(blocks: Blocks, options: Mapping[str, Any]) -> State:
    return _learn_cubic(blocks, options, cyclic=True)


def _learn_cubic(blocks: Blocks, options: Mapping[str, Any], cyclic: bool) -> State:
    """Knots at quantiles of the distinct values, and the directions in which the basis has mean zero.

    A cubic regression spline's columns add up to one, as the intercept does; centring takes that out (Wood 2006, 4.2).
    """
    low, high = _bounds(blocks, options)
    knots = _knots(options)
    if knots is None:
        df = _whole(options, "df", None, 1, 500)
        if df is None:
            raise FormulaError("give df or knots")
        inner = df - 1 + cyclic
        inside = _within(blocks, low, high)
        distinct = distinct_values(inside)
        source: Blocks = inside if distinct is None else lambda: iter((distinct,))
        knots = order_statistics(source, np.linspace(0, 1, inner + 2)[1:-1].tolist()) if inner else []
        if len({low, *knots, high}) != inner + 2:
            most = 0 if distinct is None else len(distinct)
            raise FormulaError(f"df={df} needs {inner + 2} distinct knots; the column's distinct values number {most}")
    extrapolation = options.get("extrapolation", "extend")
    if extrapolation not in ("clip", "extend", "raise", "zero"):
        raise FormulaError(f"extrapolation is 'extend', 'clip', 'zero' or 'raise', not {extrapolation!r}")
    state: State = {
        "lower_bound": low,
        "upper_bound": high,
        "knots": sorted({low, *knots, high}),
        "cyclic": cyclic,
        "extrapolation": extrapolation,
    }
    total, count = np.zeros(len(state["knots"]) - cyclic), 0
    for block in blocks():
        if len(block):
            total += _free_cubic(block, state).sum(axis=0)
            count += len(block)
    complement, _ = np.linalg.qr((total / count)[:, None], mode="complete")
    return {**state, "directions": complement[:, 1:].tolist()}


def _cubic(values: Array, state: State, options: Mapping[str, Any]) -> Array:
    free = _free_cubic(values, state)
    directions = np.array(state["directions"])
    # Column by column and not as a matrix product, whose rounding depends on how many rows there are.
    centred = np.zeros((len(values), directions.shape[1]))
    for j, direction in enumerate(directions):
        centred += free[:, j, None] * direction
    return centred


def _free_cubic(values: Array, state: State) -> Array:
    """Return the uncentred basis."""
    from formulaic.transforms import cyclic_cubic_spline, natural_cubic_spline

    known = {key: state[key] for key in ("lower_bound", "upper_bound", "knots", "cyclic")}
    known["constraints"] = None
    spline = cyclic_cubic_spline if state["cyclic"] else natural_cubic_spline
    return _stacked(spline(values, extrapolation=state["extrapolation"], _state=known), len(values))


def _stacked(columns: Any, n_rows: int) -> Array:
    # A basis function that is constant (all knots equal) comes as a number.
    return np.stack([np.broadcast_to(column, n_rows) for column in dict(columns).values()], axis=1)


_LEARNERS: dict[str, Callable[[Blocks, Mapping[str, Any]], State]] = {
    "bs": _learn_bs,
    "cc": _learn_cyclic,
    "center": _learn_center,
    "cr": _learn_natural,
    "poly": _learn_poly,
    "scale": _learn_scale,
}
_BASES: dict[str, Callable[[Array, State, Mapping[str, Any]], Array]] = {
    "bs": _bs,
    "cc": _cubic,
    "center": _shifted,
    "cr": _cubic,
    "poly": _poly,
    "scale": _shifted,
}
