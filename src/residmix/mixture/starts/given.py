"""Starting values from the user, and fits that continue an earlier one."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import check_array

from residmix.mixture.families.family import family

__all__ = ["check_given", "check_goes_on"]

Floats = NDArray[np.float64]


def check_given(
    weights: Any, means: Any, precisions: Any, covariance_type: str, n_components: int, n_features: int
) -> dict[str, Floats | None]:
    """Return the user's starting values as float64 arrays (copies), or raise with scikit-learn's wording."""
    K, d = n_components, n_features
    weights = _shaped(weights, (K,), "weights")
    means = _shaped(means, (K, d), "means")
    precisions = _shaped(precisions, family(covariance_type).shape_of(K, d), f"{covariance_type} precision")
    if weights is not None:
        if (weights < 0).any() or (weights > 1).any():
            raise ValueError(
                "The parameter 'weights' should be in the range [0, 1], but got max value "
                # scikit-learn's text has the two the wrong way round, and its tests match it
                f"{weights.min():.5f}, min value {weights.max():.5f}"
            )
        if not np.isclose(weights.sum(), 1.0, rtol=0, atol=1e-6):
            raise ValueError(
                f"The parameter 'weights' should be normalized, but got sum(weights) = {weights.sum():.5f}"
            )
        weights = weights / weights.sum()
    if precisions is not None:
        _check_precisions(precisions, covariance_type)
    return {"weights": weights, "means": means, "precisions": precisions}


def check_goes_on(
    means: Floats, covariances: Floats, covariance_type: str, n_components: int, n_features: int, method: str
) -> None:
    """Raise if a fitted mixture doesn't have the size and family of the fit that continues it."""
    K, d = n_components, n_features
    if means.shape != (K, d) or covariances.shape != family(covariance_type).shape_of(K, d):
        raise ValueError(
            f"{method} continues the last fit, but its means of shape {means.shape} and covariances of shape "
            f"{covariances.shape} don't fit n_components={K}, covariance_type={covariance_type!r} and {d} features; "
            "fit a clone of the estimator instead"
        )


def _shaped(values: Any, shape: tuple[int, ...], name: str) -> Floats | None:
    if values is None:
        return None
    if type(values) is np.ndarray and values.dtype == np.float64 and np.isfinite(values).all():
        array = values.copy()  # what is left of check_array, which costs more than an iteration on few rows
    else:
        array = check_array(values, dtype=np.float64, ensure_2d=False, allow_nd=True, copy=True)
    if array.shape != shape:
        raise ValueError(f"The parameter '{name}' should have the shape of {shape}, but got {array.shape}")
    return np.asarray(array)


def _check_precisions(precisions: Floats, covariance_type: str) -> None:
    if not family(covariance_type).matrices:
        if (precisions <= 0).any():
            raise ValueError(f"'{covariance_type} precision' should be positive")
        return
    symmetric = np.allclose(precisions, np.swapaxes(precisions, -1, -2))
    if not (symmetric and _positive(precisions)):
        raise ValueError(f"'{covariance_type} precision' should be symmetric, positive-definite")


def _positive(matrices: Floats) -> bool:
    try:
        np.linalg.cholesky(matrices)
    except np.linalg.LinAlgError:
        return False
    return True
