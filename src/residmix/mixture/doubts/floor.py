"""Columns that vary by less than what is added to their variances."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from residmix.errors import ScaleWarning, warn
from residmix.rows.rows import Rows

__all__ = ["overwhelmed_columns", "tell_of_scale"]

# Rows that are looked at, and those that nearly always suffice to see that a column varies by more than is added.
LOOKED_AT, SIEVED = 1000, 64


def tell_of_scale(rows: Rows, floor: float) -> None:
    """Warn of columns whose variance is less than ten times what is added to it."""
    columns = overwhelmed_columns(rows, floor)
    if columns.size:
        warn(
            f"reg_covar={floor:g} is more than a tenth of the variance of columns {columns[:10].tolist()}, "
            "so it dominates the covariances. Scale the columns, or lower reg_covar",
            ScaleWarning,
            columns=columns.tolist(),
        )


def overwhelmed_columns(rows: Rows, reg_covar: float) -> NDArray[np.intp]:
    """Return the columns whose variance, on a thousand rows, is mostly `reg_covar`; constant ones don't count."""
    x = np.asarray(rows.take(np.arange(0, rows.n_rows, max(1, rows.n_rows // LOOKED_AT))).X, dtype=np.float64)
    # two of n values that are r apart make for a variance of r^2 / (2 n) at least
    if (np.ptp(x[:: max(1, len(x) // SIEVED)], axis=0) >= np.sqrt(20.0 * len(x) * reg_covar)).all():
        return np.empty(0, dtype=np.intp)
    missing = np.isnan(x)
    if missing.any():
        mean, variance = np.zeros(x.shape[1]), np.zeros(x.shape[1])
        there = ~missing.all(axis=0)
        mean[there], variance[there] = np.nanmean(x[:, there], axis=0), np.nanvar(x[:, there], axis=0)
    else:
        mean, variance = x.mean(axis=0), x.var(axis=0)
    constant = variance <= (1e-12 * mean) ** 2
    return np.flatnonzero(~constant & (variance < 10 * reg_covar))
