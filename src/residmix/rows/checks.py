"""Checks of input: NaN, infinities, invalid weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Finite", "all_finite", "check_weight"]


class Finite:
    """Raise on NaN and infinities, block by block, until one complete pass found none.

    The check is cheap while the block is in cache; a separate pass would read all data again.

    Parameters
    ----------
    names : sequence of str
        Column names, for the message.
    allow_nan : bool
        Let NaN through (never an infinity).
    """

    def __init__(self, names: Sequence[str], allow_nan: bool = False) -> None:
        self.names, self.allow_nan, self.proven = tuple(names), allow_nan, False

    def __call__(self, X: NDArray[Any], start: int, index: NDArray[np.integer[Any]] | None = None) -> None:
        """Raise if `X` holds what isn't allowed. Row i of `X` is row ``start + i``, or ``index[i]``.

        Raises
        ------
        ValueError
            Naming the first offending row and column.
        """
        # huge finite values that overflow the sum are told apart below
        if all_finite(X):
            return
        bad = np.isinf(X) if self.allow_nan else ~np.isfinite(X)
        if not bad.any():
            return
        row, column = np.unravel_index(np.argmax(bad), bad.shape)
        value = X[row, column]
        kind = "NaN" if np.isnan(value) else f"infinity ({value:+})"
        where = int(index[row]) if index is not None else start + int(row)
        remedy = "drop or impute such rows first" if np.isnan(value) else "replace or drop it first"
        raise ValueError(f"X contains {kind}: row {where}, column {self.names[column]!r}; {remedy}")


def check_weight(weight: Any, n_rows: int) -> NDArray[np.float64] | None:
    """Return sample weights as float64 (n,), or None where every row counts 1.

    Raises
    ------
    ValueError
        If they aren't one number a row, finite, non-negative, with at least one above zero.
    """
    if weight is None:
        return None
    if np.ma.is_masked(weight):
        raise ValueError("sample_weight has masked values; give every row a weight, or 0 to leave it out")
    weight = np.asarray(weight)
    if weight.ndim == 0 and weight == 1:
        return None
    if weight.ndim == 0:
        weight = np.full(n_rows, weight)
    if weight.shape != (n_rows,):
        raise ValueError(f"sample_weight must be one number for each of the {n_rows} rows; got shape {weight.shape}")
    try:
        weight = np.ascontiguousarray(weight, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"sample_weight must hold numbers; got dtype {weight.dtype}") from error
    check_weight_values(weight, 0)
    if not weight.any():
        raise ValueError("sample_weight is 0 for every row; at least one must not be zero")
    return np.asarray(weight)


def check_weight_values(weight: NDArray[np.float64], start: int) -> None:
    """Raise if a weight is negative, NaN or infinite, naming its row."""
    bad = ~((weight >= 0) & (weight < np.inf))
    if bad.any():
        row = int(np.argmax(bad))
        raise ValueError(f"sample_weight must be finite and not negative; row {start + row} has {weight[row]}")


def all_finite(matrix: NDArray[Any]) -> bool:
    """Return True only if there are no infinite values and no NaN; False may also be due to huge numbers."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(matrix.sum()))
