"""Checks of arguments that several estimators share: one clear error each, clean values out."""

from __future__ import annotations

import numbers
from collections.abc import Collection
from typing import Any

import numpy as np

from residmix.errors import did_you_mean

__all__ = ["check_choice", "check_number"]


def check_choice(name: str, value: Any, choices: Collection[Any]) -> None:
    """Raise ValueError unless `value` is one of `choices`.

    Examples
    --------
    >>> check_choice("on_unknown", "eror", ["error", "mean"])
    Traceback (most recent call last):
        ...
    ValueError: on_unknown must be one of 'error', 'mean', not 'eror' - did you mean 'error'?
    """
    if not any(value is choice or (type(value) is type(choice) and value == choice) for choice in choices):
        listed = ", ".join(repr(choice) for choice in choices)
        hint = did_you_mean(value, [c for c in choices if isinstance(c, str)]) if isinstance(value, str) else ""
        raise ValueError(f"{name} must be one of {listed}, not {value!r}{hint}")


def check_number(
    name: str,
    value: Any,
    *,
    low: float = -np.inf,
    high: float = np.inf,
    integral: bool = False,
    above: bool = False,
) -> None:
    """Raise unless `value` is a number with ``low <= value <= high``, or ``low < value`` when `above`.

    Raises
    ------
    TypeError
        If it is no number, or not a whole one when `integral`.
    ValueError
        If it is out of range, or not finite.

    Examples
    --------
    >>> check_number("alpha", -1.0, low=0)
    Traceback (most recent call last):
        ...
    ValueError: alpha must be at least 0, not -1.0
    """
    kind = numbers.Integral if integral else numbers.Real
    if isinstance(value, bool | np.bool_) or not isinstance(value, kind):
        raise TypeError(f"{name} must be a {'whole ' if integral else ''}number, not {value!r}")
    number = float(value)
    if not np.isfinite(number):
        raise ValueError(f"{name} must be finite, not {value!r}")
    if number < low or (above and number == low):
        raise ValueError(f"{name} must be {'more than' if above else 'at least'} {low:g}, not {value!r}")
    if number > high:
        raise ValueError(f"{name} must be at most {high:g}, not {value!r}")
