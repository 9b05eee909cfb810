"""Options of the functions in a formula: checked, and what they mean for a column."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from residmix.design.formula.tokens import FormulaError
from residmix.design.quantiles import distinct_values, order_statistics

__all__ = ["Blocks", "State", "bounds", "evenly", "given_knots", "number", "spread_knots", "whole", "within"]

Array = NDArray[np.float64]
Blocks = Callable[[], Iterator[Array]]
State = dict[str, Any]


def whole(options: Mapping[str, Any], key: str, default: int | None, low: int, high: int) -> int | None:
    value = options.get(key, default)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise FormulaError(f"{key} must be a whole number from {low} to {high}, not {value!r}")
    return value


def number(options: Mapping[str, Any], key: str) -> float | None:
    value = options.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise FormulaError(f"{key} must be a number, not {value!r}")
    return float(value)


def given_knots(options: Mapping[str, Any]) -> list[float] | None:
    knots = options.get("knots")
    if knots is None:
        return None
    if not isinstance(knots, tuple) or any(isinstance(k, bool) or not isinstance(k, int | float) for k in knots):
        raise FormulaError(f"knots must be a list of numbers, not {knots!r}")
    if options.get("df") is not None:
        raise FormulaError("give df or knots, not both")
    return sorted(float(knot) for knot in knots)


def bounds(blocks: Blocks, options: Mapping[str, Any]) -> tuple[float, float]:
    """Return the range: what is given, else that of the values."""
    low, high = _bound(options, "lower"), _bound(options, "upper")
    if low is None or high is None:
        extremes = [(block.min(), block.max()) for block in blocks()]
        if not extremes:
            raise FormulaError("the column has no values; leave it out of the formula")
        low = float(min(pair[0] for pair in extremes)) if low is None else low
        high = float(max(pair[1] for pair in extremes)) if high is None else high
    if low > high:
        raise FormulaError(f"the lower bound {low:g} is above the upper bound {high:g}")
    return low, high


def _bound(options: Mapping[str, Any], key: str) -> float | None:
    short, long = number(options, key), number(options, f"{key}_bound")
    if short is not None and long is not None:
        raise FormulaError(f"give {key} or {key}_bound, not both")
    return long if short is None else short


def evenly(options: Mapping[str, Any]) -> bool:
    """Tell whether knots are spaced evenly, independent of the rows: when lower= and upper= are given."""
    return options.get("lower") is not None and options.get("upper") is not None


def within(blocks: Blocks, low: float, high: float) -> Blocks:
    return lambda: (block[(block >= low) & (block <= high)] for block in blocks())


def spread_knots(blocks: Blocks, low: float, high: float, inner: int, name: str, least: int = 0) -> list[float]:
    """Return `inner` knots between the bounds, at quantiles of the distinct values there.

    Raises
    ------
    FormulaError
        If there are too few distinct knots, or fewer than `least` distinct values; `name` is the option to name in the
        error.
    """
    inside = within(blocks, low, high)
    distinct = distinct_values(inside)
    source: Blocks = inside if distinct is None else lambda: iter((distinct,))
    knots = order_statistics(source, np.linspace(0, 1, inner + 2)[1:-1].tolist()) if inner else []
    if len({low, *knots, high}) != inner + 2 or (distinct is not None and len(distinct) < least):
        most = 0 if distinct is None else len(distinct)
        raise FormulaError(f"{name} needs {inner + 2} distinct knots, but the column has {most} distinct values")
    return knots
