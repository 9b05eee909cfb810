"""Targets, predictions and confounders as numbers or categories, and models of one given another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import narwhals.stable.v2 as nw
import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import SplineTransformer

from residmix.sources.frames import is_frame

__all__ = ["Variables", "given", "orthonormal", "unexplained", "variables"]

Floats = NDArray[np.float64]

# Numbers of at most so many different values are levels where they explain something.
FEW = 8
KNOTS = 5
# Directions of less than this share of the largest are aliased.
ALIASED = 1e-8
# Weight of the data against the ridge of a logit, which only matters where levels are separated.
LOGIT = 1e3


@dataclass(frozen=True)
class Variables:
    """One variable or more.

    Attributes
    ----------
    numbers : ndarray (n, p)
    levels : list of ndarray of int (n,)
        Codes of categories.
    """

    numbers: Floats
    levels: list[NDArray[np.intp]]

    def __len__(self) -> int:
        return len(self.numbers)

    def columns(self) -> Floats:
        """Return numbers and indicators of levels, (n, q)."""
        return np.hstack([self.numbers, *(_indicators(codes) for codes in self.levels)])

    def smooth(self) -> Floats:
        """Return the columns of an additive model: splines of numbers, indicators of levels."""
        parts = [_indicators(codes) for codes in self.levels]
        for x in self.numbers.T:
            values, codes = np.unique(x, return_inverse=True)
            if len(values) <= FEW:
                parts.append(_indicators(codes))
            else:
                spline = SplineTransformer(n_knots=KNOTS, knots="quantile", extrapolation="linear")
                parts.append(spline.fit_transform(x[:, None]))
        return np.hstack(parts)


def _indicators(codes: NDArray[np.intp]) -> Floats:
    return np.asarray((codes[:, None] == np.arange(codes.max() + 1)).astype(np.float64))


def variables(data: Any, name: str, n_rows: int | None = None) -> Variables:
    """Return data (n,), (n, p), or a frame or series as variables: numbers are numbers, all else are categories.

    Raises
    ------
    ValueError
        For another number of rows, missing values, or a variable that doesn't vary.
    """
    if is_frame(data):
        frame = nw.from_native(data, eager_only=True, allow_series=True)
        series = [frame] if isinstance(frame, nw.Series) else list(frame.iter_columns())
        columns = {str(column.name): column.to_numpy() for column in series}
    else:
        array = np.asarray(data.to_numpy() if hasattr(data, "to_numpy") else data)
        if array.ndim not in (1, 2):
            raise ValueError(f"{name} must be (n,) or (n, p), not of shape {array.shape}")
        array = array.reshape(len(array), -1)
        columns = {str(j): array[:, j] for j in range(array.shape[1])}
    numbers, levels = [], []
    for column, values in columns.items():
        where = name if len(columns) == 1 else f"column {column!r} of {name}"
        if n_rows is not None and len(values) != n_rows:
            raise ValueError(f"{name} has {len(values)} rows, but there are {n_rows} predictions; pass the same rows")
        mixed = values.dtype.kind == "O"
        numeric = values.dtype.kind in "iuf" or (mixed and all(type(v) in (int, float) for v in values))
        absent = np.array([v is None or v != v for v in values]) if values.dtype.kind in "OM" else values != values
        if numeric:
            values = values.astype(np.float64)
            absent = ~np.isfinite(values)
        if np.any(absent):
            raise ValueError(f"{where} has {int(np.sum(absent))} missing values; leave these rows out of all arguments")
        found, codes = np.unique(values if numeric else values.astype(str), return_inverse=True)
        if len(found) < 2:
            raise ValueError(f"{where} is constant ({found[0]}), so there is nothing to test; leave it out")
        if numeric:
            numbers.append(values)
        else:
            levels.append(codes)
    n = len(next(iter(columns.values())))
    return Variables(np.column_stack(numbers) if numbers else np.empty((n, 0)), levels)


def orthonormal(columns: Floats) -> Floats:
    """Return an orthonormal basis (n, rank) of centred columns."""
    a = columns - columns.mean(axis=0)
    size = np.linalg.norm(a, axis=0)
    a = a[:, size > 0] / size[size > 0]
    if not a.shape[1]:
        return np.asarray(a)
    values, vectors = np.linalg.eigh(a.T @ a)
    kept = values > ALIASED * values[-1]
    return np.asarray(a @ (vectors[:, kept] / np.sqrt(values[kept])))


def unexplained(columns: Floats, others: Variables) -> Floats:
    """Return what an additive model of others leaves of columns (n, a); 0 where it leaves nothing."""
    design, a = orthonormal(others.smooth()), columns - columns.mean(axis=0)
    rest = a - design @ (design.T @ a)
    gone = np.linalg.norm(rest, axis=0) <= ALIASED * np.linalg.norm(a, axis=0)
    rest[:, gone] = 0.0
    return np.asarray(rest)


def given(target: Variables, others: Variables) -> tuple[Floats, Floats]:
    """Return r (n, q) of the target's values and g (n, q) of the others': see `residmix.diagnostics.confounding.swaps`.

    Numbers are normal about an additive model, with one covariance; one categorical target has a multinomial logit. The
    model is linear in numbers unless splines have the lower BIC.
    """
    designs = [orthonormal(others.columns()), orthonormal(others.smooth())]
    if target.levels:
        codes = target.levels[0]
        tried = [_logit(design, codes) for design in designs]
        logs = min(tried, key=lambda one: one[0])[1]
        if logs.shape[1] == 2:
            return codes[:, None].astype(np.float64), logs[:, 1:] - logs[:, :1]
        return _indicators(codes), logs
    y = target.numbers - target.numbers.mean(axis=0)
    design = min(designs, key=lambda one: _bic(one, y))
    fitted = design @ (design.T @ y)
    rest = y - fitted
    covariance = rest.T @ rest / max(len(y) - design.shape[1] - 1, 1)
    scale = np.sqrt(np.maximum(np.diag(covariance), 1e-12 * (y**2).mean(axis=0)))
    values, vectors = np.linalg.eigh(covariance / scale[:, None] / scale)
    white = vectors / np.sqrt(np.maximum(values, ALIASED)) / scale[:, None]
    return y @ white, fitted @ white


def _bic(design: Floats, y: Floats) -> float:
    left = np.maximum((y**2).sum(axis=0) - ((design.T @ y) ** 2).sum(axis=0), 1e-300)
    return float(len(y) * np.log(left).sum() + y.shape[1] * design.shape[1] * np.log(len(y)))


def _logit(design: Floats, codes: NDArray[np.intp]) -> tuple[float, Floats]:
    """Return BIC and log-probabilities (n, L) of a multinomial logit."""
    scaled = design * np.sqrt(len(design))
    logs = np.asarray(LogisticRegression(C=LOGIT, max_iter=1000).fit(scaled, codes).predict_log_proba(scaled))
    free = design.shape[1] * (logs.shape[1] - 1)
    return float(free * np.log(len(codes)) - 2 * logs[np.arange(len(codes)), codes].sum()), logs
