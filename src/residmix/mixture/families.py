"""Covariance families: scatter in, covariances out. Pure functions; nothing here has seen a row.

Shapes follow scikit-learn: ``full`` (K, d, d), ``tied`` (d, d), ``diag`` (K, d), ``spherical`` (K,).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from residmix.kernels.cholesky import inverse_cholesky, inverse_triangles

__all__ = [
    "COVARIANCE_TYPES",
    "MixtureParams",
    "SingularCovarianceError",
    "family",
    "full_covariances",
    "make_params",
    "matrix_diagonal",
    "n_covariance_parameters",
    "params_from_factors",
    "params_from_precisions",
]

Floats = NDArray[np.float64]

COVARIANCE_TYPES = ("full", "tied", "diag", "spherical")


class SingularCovarianceError(ValueError):
    """A covariance isn't positive definite, so its density doesn't exist."""

    def __init__(self, components: NDArray[np.intp]) -> None:
        super().__init__(
            "Fitting the mixture model failed because some components have ill-defined empirical covariance "
            "(for instance caused by singleton or collapsed samples). Try to decrease the number of "
            "components, increase reg_covar, or scale the input data. "
            f"Components concerned: {components.tolist()}."
        )
        self.components = components

    def __reduce__(self) -> tuple[type[SingularCovarianceError], tuple[NDArray[np.intp]]]:
        return type(self), (self.components,)


@dataclass(frozen=True, slots=True)
class MixtureParams:
    r"""Parameters of :math:`\sum_k \pi_k N(x \mid \mu_k, \Sigma_k)`.

    Attributes
    ----------
    weights : ndarray (K,)
        Mixing proportions; sum to one.
    means : ndarray (K, d)
    covariances, factors : ndarray
        Shapes by family. ``factors`` are upper triangular with ``inv(covariance) = factor @ factor.T``, so
        ``(x - mean) @ factor`` is standard normal. scikit-learn calls them ``precisions_cholesky_``.
    covariance_type : {"full", "tied", "diag", "spherical"}
    """

    weights: Floats
    means: Floats
    covariances: Floats
    factors: Floats
    covariance_type: str

    @property
    def n_components(self) -> int:
        return self.means.shape[0]

    @property
    def n_features(self) -> int:
        return self.means.shape[1]

    @property
    def log_weights(self) -> Floats:
        """``log(weights)``, with -inf for a weight of 0."""
        if self.weights.min() > 0:
            return np.log(self.weights)
        with np.errstate(divide="ignore"):
            return np.log(self.weights)

    @property
    def log_det(self) -> Floats:
        """Logarithm of each factor's determinant, (K,): minus half the covariance's log-determinant."""
        diagonal = family(self.covariance_type).diagonal(self.factors)
        logs = np.log(diagonal)
        if self.covariance_type == "spherical":
            return self.n_features * logs
        sums = logs.sum(axis=-1)
        return np.full(self.n_components, sums) if self.covariance_type == "tied" else sums

    def precisions(self) -> Floats:
        """Return the inverse covariances, in the family's shape."""
        if self.covariance_type in ("full", "tied"):
            return self.factors @ np.swapaxes(self.factors, -1, -2)
        return self.factors**2

    def full_covariances(self) -> Floats:
        """Return the covariances as (K, d, d), whatever the family."""
        return full_covariances(self.covariances, self.covariance_type, *self.means.shape)

    def full_factors(self) -> Floats:
        """Return the factors as (K, d, d), whatever the family."""
        K, d = self.means.shape
        if self.covariance_type == "full":
            return self.factors
        if self.covariance_type == "tied":
            return np.broadcast_to(self.factors, (K, d, d))
        return np.broadcast_to(self.factors.reshape(K, -1), (K, d))[:, :, None] * np.eye(d)


@dataclass(frozen=True, slots=True)
class _Family:
    """What tells one family from another."""

    covariances: Callable[[Floats, Floats, Floats], Floats]
    diagonal: Callable[[Floats], Floats]
    n_parameters: Callable[[int, int], int]


def _per_component(scatter: Floats, shift: Floats, weight: Floats) -> Floats:
    """Full covariance of each component about its new mean: S2/N - e e', e = new mean - old mean."""
    e = shift / weight[:, None]
    return scatter / weight[:, None, None] - e[:, :, None] * e[:, None, :]


def _pooled(scatter: Floats, shift: Floats, weight: Floats) -> Floats:
    total = scatter if scatter.ndim == 2 else scatter.sum(axis=0)
    return (total - (shift / weight[:, None]).T @ shift) / weight.sum()


def _variances(scatter: Floats, shift: Floats, weight: Floats) -> Floats:
    squares = scatter if scatter.ndim == 2 else np.diagonal(scatter, axis1=1, axis2=2)
    return squares / weight[:, None] - (shift / weight[:, None]) ** 2


def _spherical(scatter: Floats, shift: Floats, weight: Floats) -> Floats:
    return _variances(scatter, shift, weight).mean(axis=1)


def matrix_diagonal(matrices: Floats) -> Floats:
    return np.diagonal(matrices, axis1=-2, axis2=-1)


_FAMILIES = {
    "full": _Family(_per_component, matrix_diagonal, lambda K, d: K * d * (d + 1) // 2),
    "tied": _Family(_pooled, matrix_diagonal, lambda K, d: d * (d + 1) // 2),
    "diag": _Family(_variances, lambda values: values, lambda K, d: K * d),
    "spherical": _Family(_spherical, lambda values: values, lambda K, d: K),
}


def family(covariance_type: str) -> _Family:
    return _FAMILIES[covariance_type]


def full_covariances(covariances: Floats, covariance_type: str, n_components: int, n_features: int) -> Floats:
    """Return covariances of any family as (K, d, d); of "full" and "tied" a view."""
    K, d = n_components, n_features
    if covariance_type == "full":
        return covariances
    if covariance_type == "tied":
        return np.broadcast_to(covariances, (K, d, d))
    variances = np.broadcast_to(covariances.reshape(K, -1), (K, d))
    return variances[:, :, None] * np.eye(d)


def n_covariance_parameters(covariance_type: str, n_components: int, n_features: int) -> int:
    """Return the number of free covariance parameters of a family."""
    return family(covariance_type).n_parameters(n_components, n_features)


def factor_covariances(covariances: Floats, covariance_type: str) -> Floats:
    """Return upper triangular factors with ``factor @ factor.T = inv(covariance)``.

    Raises
    ------
    SingularCovarianceError
        With the components whose covariance isn't positive definite.
    """
    if covariance_type in ("diag", "spherical"):
        rows = covariances.reshape(len(covariances), -1)
        bad = np.flatnonzero(~((rows > 0) & np.isfinite(rows)).all(axis=1))
        if bad.size:
            raise SingularCovarianceError(bad)
        return 1.0 / np.sqrt(covariances)
    factors, failed = inverse_cholesky(covariances if covariance_type == "full" else covariances[None])
    if failed.any():
        raise SingularCovarianceError(np.flatnonzero(failed))
    return factors if covariance_type == "full" else factors[0]


def make_params(weights: Floats, means: Floats, covariances: Floats, covariance_type: str) -> MixtureParams:
    """Return parameters with their factors.

    Raises
    ------
    SingularCovarianceError
        If a covariance isn't positive definite.
    """
    factors = factor_covariances(covariances, covariance_type)
    return MixtureParams(weights, means, covariances, factors, covariance_type)


def params_from_precisions(weights: Floats, means: Floats, precisions: Floats, covariance_type: str) -> MixtureParams:
    """Return parameters from inverse covariances."""
    if covariance_type in ("diag", "spherical"):
        return MixtureParams(weights, means, 1.0 / precisions, np.sqrt(precisions), covariance_type)
    # precision = U U' with U upper triangular: reverse rows and columns, and it's an ordinary Cholesky factor
    factors = np.array(np.linalg.cholesky(precisions[..., ::-1, ::-1])[..., ::-1, ::-1], dtype=np.float64)
    return params_from_factors(weights, means, factors, covariance_type)


def params_from_factors(weights: Floats, means: Floats, factors: Floats, covariance_type: str) -> MixtureParams:
    """Return parameters from triangular factors of the inverse covariances."""
    if covariance_type in ("diag", "spherical"):
        return MixtureParams(weights, means, 1.0 / factors**2, factors, covariance_type)
    inverses = inverse_triangles(factors if covariance_type == "full" else factors[None])
    covariances = np.swapaxes(inverses, 1, 2) @ inverses
    shaped = covariances if covariance_type == "full" else covariances[0]
    return MixtureParams(weights, means, shaped, factors, covariance_type)
