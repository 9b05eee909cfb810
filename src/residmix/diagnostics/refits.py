"""Residuals to measure: given ones, or those of an estimator and of clones fitted without each fold."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from residmix.sources.array import MemoryTable
from residmix.sources.open import as_table
from residmix.sources.table import Table

__all__ = ["given", "held_out", "predicted", "refitted"]

Array = NDArray[np.float64]


def given(after: Any, n: int) -> Array:
    residual = as_table(after, name="after")
    whole = np.concatenate(list(residual.rows(allow_nan=True).map(_features_of)))
    if len(whole) != n:
        raise ValueError(f"after has {len(whole)} rows, but X has {n}; pass residuals of the same rows")
    return whole


def _features_of(block: Any) -> Array:
    return np.asarray(block.X, dtype=np.float64)


def refitted(
    estimator: Any,
    X: Any,
    metadata: Any,
    table: Table,
    folds: NDArray[np.int8],
    n_splits: int,
    seen: Callable[[], None],
) -> tuple[Array, list[Array]]:
    """Return the residuals of all rows by `estimator`, and by clones of it fitted without each fold.

    `seen` is called after each fold.
    """
    from sklearn.base import clone
    from sklearn.exceptions import NotFittedError
    from sklearn.utils.validation import check_is_fitted

    if not isinstance(table, MemoryTable) or isinstance(X, Table):
        raise TypeError(
            "an estimator as after= needs data in memory, since clones of it are fitted to parts; load a sample of "
            "the rows"
        )
    try:
        check_is_fitted(estimator)
        fitted = estimator
    except NotFittedError:
        fitted = _call(clone(estimator), "fit", X, metadata)
    by_fold = []
    for fold in range(n_splits):
        rows = np.flatnonzero(folds != fold)
        copy = _call(clone(estimator), "fit", _rows_of(X, rows), _rows_of(metadata, rows))
        by_fold.append(_left_by(copy, X, metadata))
        seen()
    return _left_by(fitted, X, metadata), by_fold


def held_out(by_fold: list[Array], folds: NDArray[np.int8]) -> Array:
    """Return for each row the residuals of the fit without its fold."""
    held = np.empty_like(by_fold[0])
    for fold, residual in enumerate(by_fold):
        held[folds == fold] = residual[folds == fold]
    return held


def _left_by(estimator: Any, X: Any, metadata: Any) -> Array:
    method = "transform" if hasattr(estimator, "transform") else "residuals"
    return given(_call(estimator, method, X, metadata), len(X))


def predicted(estimator: Any, X: Any, metadata: Any) -> Any:
    fitted = hasattr(estimator, "predict") and hasattr(estimator, "n_iter_")
    return _call(estimator, "predict", X, metadata) if fitted else None


def _call(estimator: Any, method: str, X: Any, metadata: Any) -> Any:
    """Call a method, with the metadata if it takes any: by name, or as a Pipeline hands them on to its steps."""
    from sklearn import config_context
    from sklearn.utils.metadata_routing import get_routing_for_object

    function = getattr(estimator, method)
    if metadata is None:
        return function(X)
    if "metadata" in inspect.signature(function).parameters:
        return function(X, metadata=metadata)
    with config_context(enable_metadata_routing=True):
        if hasattr(estimator, "get_metadata_routing") and get_routing_for_object(estimator).consumes(
            method, ["metadata"]
        ):
            return function(X, metadata=metadata)
    return function(X)


def _rows_of(data: Any, rows: NDArray[np.integer[Any]]) -> Any:
    import narwhals.stable.v2 as nw

    if data is None:
        return None
    frame = nw.from_native(data, eager_only=True, allow_series=True, pass_through=True)
    if isinstance(frame, nw.DataFrame | nw.Series):
        return frame[rows].to_native()
    return np.asarray(data)[rows]
