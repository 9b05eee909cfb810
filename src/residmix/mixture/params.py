"""Parameters of a mixture, and of its marginal and conditional mixtures."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, gammaln, logsumexp

from residmix.kernels.cholesky import inverse_cholesky, inverse_triangles
from residmix.mixture.families.factor import APART, FactorFamily
from residmix.mixture.families.family import Family, family
from residmix.mixture.families.restraint import Restraint
from residmix.mixture.given.by_group import ByGroup
from residmix.mixture.given.gate import Gate

__all__ = [
    "ConditionalParams",
    "MixtureParams",
    "SingularCovarianceError",
    "conditional",
    "factor_covariances",
    "like",
    "make_params",
    "marginal",
    "params_as",
    "params_from_factors",
    "params_from_precisions",
]

Floats = NDArray[np.float64]


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
    r"""Parameters of :math:`\sum_k \pi_k(u) N(x - u'D_k \mid \mu_k, \Sigma_k)`; without metadata there's no u.

    Attributes
    ----------
    weights : ndarray (K,)
        Mixing proportions; sum to one. With a gate the average of the priors.
    means : ndarray (K, d)
    covariances, factors : ndarray
        Shapes by family. ``factors`` are upper triangular with ``inv(covariance) = factor @ factor.T``, so
        ``(x - mean) @ factor`` is standard normal. scikit-learn calls them ``precisions_cholesky_``.
    covariance_type : str
        Name of the family.
    coef : ndarray (r, d), (K, r, d) or None
        D: effects of the last r columns of the design row u, which is centred; of all components, or of each. The gate
        has the first columns of u, and both may have the same ones.
    gate : Gate or None
        None for constant weights.
    noise : tuple of float and ndarray (2, d), or None
        Weight of the uniform noise, and its box. The weights of the components add up to one without it.
    dof : ndarray (K,) or None
        Degrees of freedom of Student-t components; `covariances` are their scale matrices.
    missing : bool
        Whether rows may have missing values.
    parts : ndarray (K, d, q + 1) or None
        Loadings and, last, the roots of the features' own variances; of factor-analytic families only.
    trim : tuple of float or None
        Share of the rows that are left out, and the log-density below which they are.
    restraint : Restraint or None
        Constraints on the M-step besides the family.
    by_group : ByGroup or None
        Covariances that differ by group of rows; `covariances` are their average then.
    cells : ndarray (d,) or None
        Prices of a value of each feature that is set aside: see `residmix.mixture.robust.cells`.
    """

    weights: Floats
    means: Floats
    covariances: Floats
    factors: Floats
    covariance_type: str
    coef: Floats | None = None
    gate: Gate | None = None
    noise: tuple[float, Floats] | None = None
    dof: Floats | None = None
    missing: bool = False
    parts: Floats | None = None
    trim: tuple[float, float] | None = None
    restraint: Restraint | None = None
    by_group: ByGroup | None = None
    cells: Floats | None = None

    @property
    def bare(self) -> bool:
        """Whether there is nothing but components of a family."""
        given = self.coef is not None or self.gate is not None or self.by_group is not None
        tails = self.noise is not None or self.dof is not None or self.missing or self.cells is not None
        return not (given or tails or self.trim is not None or self.restraint is not None)

    @property
    def n_design(self) -> int:
        """Columns of u that have effects."""
        return 0 if self.coef is None else self.coef.shape[-2]

    def columns_of(self, u: Floats) -> Floats:
        """Return the columns of u that have effects."""
        return u[:, u.shape[1] - self.n_design :]

    @property
    def by_component(self) -> bool:
        """Whether components have effects of their own."""
        return self.coef is not None and self.coef.ndim == 3 and self.coef.shape[1] > 0

    @property
    def n_components(self) -> int:
        return len(self.means)

    @property
    def n_features(self) -> int:
        return int(self.means.shape[1])

    @property
    def log_weights(self) -> Floats:
        """``log(weights)``, with -inf for a weight of 0."""
        if self.weights.min() > 0:
            return np.log(self.weights)
        with np.errstate(divide="ignore"):
            return np.log(self.weights)

    @property
    def family(self) -> Family:
        return family(self.covariance_type)

    @property
    def log_det(self) -> Floats:
        """Logarithm of each factor's determinant, (K,): minus half the covariance's log-determinant."""
        K, d = self.means.shape
        logs = np.log(self.family.diagonals(self.factors))
        sums = logs.sum(axis=1) if logs.shape[1] == d else d * logs[:, 0]
        return sums if len(sums) == K else np.full(K, sums[0])

    def precisions(self) -> Floats:
        """Return the inverse covariances, in the family's shape."""
        if self.family.matrices:
            return self.factors @ np.swapaxes(self.factors, -1, -2)
        return self.factors**2

    def full_covariances(self) -> Floats:
        """Return the covariances as (K, d, d), whatever the family."""
        return self.family.full(self.covariances, *self.means.shape)

    def full_factors(self) -> Floats:
        """Return the factors as (K, d, d), whatever the family."""
        return self.family.full(self.factors, *self.means.shape)


class ConditionalParams(MixtureParams):
    """What files of version 0.1 hold of mixtures given metadata: parameters with coefficients and gate around them."""

    @staticmethod
    def _from_older(attributes: dict[str, Any]) -> dict[str, Any]:
        mixture = attributes.pop("mixture", None)
        return (
            attributes
            if mixture is None
            else {field.name: getattr(mixture, field.name) for field in fields(mixture)} | attributes
        )


def factor_covariances(covariances: Floats, family: Family) -> Floats:
    """Return upper triangular factors with ``factor @ factor.T = inv(covariance)``.

    Raises
    ------
    SingularCovarianceError
        With the components whose covariance isn't positive definite.
    """
    if family.matrices:
        factors, failed = inverse_cholesky(_stacked(covariances))
        if failed.any():
            raise SingularCovarianceError(np.flatnonzero(failed))
        return factors.reshape(covariances.shape)
    rows = covariances.reshape(len(covariances), -1)
    bad = np.flatnonzero(~((rows > 0) & np.isfinite(rows)).all(axis=1))
    if bad.size:
        raise SingularCovarianceError(bad)
    return 1.0 / np.sqrt(covariances)


def make_params(
    weights: Floats, means: Floats, covariances: Floats, covariance_type: str, parts: Floats | None = None
) -> MixtureParams:
    """Return parameters with their factors; of a factor-analytic family with `parts`, found if they aren't given.

    Raises
    ------
    SingularCovarianceError
        If a covariance isn't positive definite.
    """
    of = family(covariance_type)
    if isinstance(of, FactorFamily) and parts is None:
        parts = of.fit_parts(covariances, None, APART)
    factors = factor_covariances(covariances, of)
    return MixtureParams(weights, means, covariances, factors, covariance_type, parts=parts)


def params_as(params: MixtureParams, covariance_type: str) -> MixtureParams:
    """Return the likeliest mixture of a family for rows that are as `params` say, component by component.

    Raises
    ------
    SingularCovarianceError
        If a covariance isn't positive definite.
    """
    if params.covariance_type == covariance_type:
        return params
    of, weight = family(covariance_type), np.maximum(params.weights, 1e-12)
    covariances, parts = of.fit_with_parts(of.of_full(params.full_covariances(), weight), weight)
    made = make_params(params.weights, params.means, covariances, covariance_type, parts)
    return like(made, params)


def like(params: MixtureParams, other: MixtureParams) -> MixtureParams:
    """Return components amid all that another mixture has besides its components."""
    return replace(
        params,
        coef=other.coef,
        gate=other.gate,
        noise=other.noise,
        dof=other.dof,
        missing=other.missing,
        trim=other.trim,
        cells=other.cells,
        restraint=other.restraint,
    )


def params_from_precisions(weights: Floats, means: Floats, precisions: Floats, covariance_type: str) -> MixtureParams:
    """Return parameters from inverse covariances."""
    if not family(covariance_type).matrices:
        return MixtureParams(weights, means, 1.0 / precisions, np.sqrt(precisions), covariance_type)
    # precision = U U' with U upper triangular: reverse rows and columns, and it's an ordinary Cholesky factor
    factors = np.array(np.linalg.cholesky(precisions[..., ::-1, ::-1])[..., ::-1, ::-1], dtype=np.float64)
    return params_from_factors(weights, means, factors, covariance_type)


def params_from_factors(weights: Floats, means: Floats, factors: Floats, covariance_type: str) -> MixtureParams:
    """Return parameters from triangular factors of the inverse covariances."""
    if not family(covariance_type).matrices:
        return MixtureParams(weights, means, 1.0 / factors**2, factors, covariance_type)
    inverses = inverse_triangles(_stacked(factors))
    with np.errstate(over="ignore"):  # at the edge of what is valid
        covariances = (np.swapaxes(inverses, 1, 2) @ inverses).reshape(factors.shape)
    return MixtureParams(weights, means, covariances, factors, covariance_type)


def _stacked(matrices: Floats) -> Floats:
    return matrices.reshape(-1, *matrices.shape[-2:])


def marginal(params: MixtureParams, wanted: list[int]) -> MixtureParams:
    """Return the mixture of the features `wanted`, in that order."""
    full = params.full_covariances()[:, wanted][:, :, wanted]
    noise = None if params.noise is None else (params.noise[0], params.noise[1][:, wanted])
    return _as_parts(params, params.weights, params.means[:, wanted], full, noise, params.dof)


def conditional(params: MixtureParams, others: list[int], known: list[int], values: Floats) -> MixtureParams:
    """Return the mixture of the features `others`, given `values` of those `known`; log-weights throughout.

    Given other features a t distribution is one of more degrees of freedom, as wide as the values are far out (Roth
    2013, "On the multivariate t distribution").
    """
    full, K, size, dof = params.full_covariances(), params.n_components, len(known), params.dof
    means, log_weights = np.empty((K, len(others))), params.log_weights.copy()
    covariances = np.empty((K, len(others), len(others)))
    for k in range(K):
        root = np.linalg.cholesky(full[k][np.ix_(known, known)])
        across = np.linalg.solve(root, full[k][np.ix_(known, others)])
        apart = np.linalg.solve(root, values - params.means[k, known])
        distance = apart @ apart
        means[k] = params.means[k, others] + apart @ across
        covariances[k] = full[k][np.ix_(others, others)] - across.T @ across
        log_weights[k] -= np.log(np.diagonal(root)).sum()
        if dof is None:
            log_weights[k] -= 0.5 * (distance + size * np.log(2 * np.pi))
        else:
            covariances[k] *= (dof[k] + distance) / (dof[k] + size)
            half = dof[k] / 2
            log_weights[k] += gammaln(half + size / 2) - gammaln(half) - size / 2 * np.log(np.pi * dof[k])
            log_weights[k] -= (half + size / 2) * np.log1p(distance / dof[k])
    total = logsumexp(log_weights)
    noise = params.noise
    if noise is not None:
        weight, box = noise
        volume = np.log(box[1, known] - box[0, known]).sum()
        noise = float(expit(np.log(weight) - volume - np.log1p(-weight) - total)), box[:, others]
    return _as_parts(
        params, np.exp(log_weights - total), means, covariances, noise, None if dof is None else dof + size
    )


def _as_parts(
    params: MixtureParams,
    weights: Floats,
    means: Floats,
    full: Floats,
    noise: tuple[float, Floats] | None,
    dof: Floats | None,
) -> MixtureParams:
    """Return parameters in the family that parts of a family belong to."""
    of, own = params.family, dof is not None  # t distributions given values have a width each
    if of.isotropic:
        kind, kept = ("spherical", full[:, 0, 0]) if own or not of.matrices else (params.covariance_type, full)
    elif of.diagonal:
        kind, kept = "diag", np.diagonal(full, axis1=1, axis2=2)
    else:
        kind, kept = ("tied", full[0]) if of.shared and not own else ("full", full)
    return replace(make_params(weights, means, np.array(kept), kind), noise=noise, dof=dof, missing=params.missing)
