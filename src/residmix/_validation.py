"""Checks of arguments that several estimators share: one clear error each, clean values out."""

from __future__ import annotations

import numbers
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from residmix.errors import did_you_mean

if TYPE_CHECKING:
    from residmix.moments.linear import LinearMoments

__all__ = ["check_choice", "check_design_moments", "check_magnitudes", "check_number"]

# Standard deviations whose squares, summed over any number of rows, are ordinary numbers of double precision.
_SMALLEST, _LARGEST = 1e-145, 1e145


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


def check_magnitudes(
    names: Sequence[str],
    mean: NDArray[np.float64],
    variance: NDArray[np.float64],
    shared: NDArray[np.float64],
    variance_x: NDArray[np.float64],
) -> None:
    r"""Raise ValueError if a design column spreads so little or so much that its squares are no ordinary numbers.

    A variance that underflowed is 0, but covariances with features of ordinary size are not: the inequality of Cauchy
    and Schwarz, :math:`\sigma_a \ge |s_{ax}| / \sigma_x`, tells a tiny column from a constant.

    Parameters
    ----------
    names : sequence of str
        Of the design columns.
    mean, variance : ndarray (q,)
        Of the design columns; infinite or NaN where it overflowed.
    shared : ndarray (q, d)
        Covariances with the features.
    variance_x : ndarray (d,)
        Of the features.

    Examples
    --------
    >>> one = np.ones(1)
    >>> check_magnitudes(["dose"], 0 * one, np.inf * one, np.array([[1e200]]), one)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    ValueError: design column 'dose' has a standard deviation of 1e+200 or more, whose square is beyond ...
    """
    with np.errstate(all="ignore"):
        bound = np.abs(shared) / np.sqrt(np.where(variance_x > 0, variance_x, np.inf))
        bound = np.where(np.isfinite(bound), bound, 0.0).max(axis=1, initial=0.0)
        spread = np.maximum(np.where(np.isfinite(variance), np.sqrt(np.maximum(variance, 0.0)), 0.0), bound)
    for name, size, centre, sound in zip(names, spread, np.abs(mean), np.isfinite(variance), strict=False):
        if sound and (size <= 8 * np.finfo(float).eps * centre or _SMALLEST <= size <= _LARGEST):
            continue
        size = size if sound else max(size, _LARGEST)
        raise ValueError(
            f"design column {name!r} has a standard deviation of {size:.0e} or more, whose square is beyond double "
            f"precision: change its unit, that is, divide the column by {size:.0e}"
        )


def check_design_moments(names: Sequence[str], moments: LinearMoments) -> None:
    """Raise ValueError if `check_magnitudes` does, of the moments of a design and features."""
    weight = np.where(moments.weight > 0, moments.weight, 1.0)
    with np.errstate(all="ignore"):
        variance = np.max(np.diagonal(moments.s_aa, axis1=1, axis2=2) / weight[:, None], axis=0)
        check_magnitudes(names, moments.mean_a[0], variance, moments.s_ax / weight, moments.s_xx / weight)
