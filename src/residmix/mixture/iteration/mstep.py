"""The M-step: moments in, parameters out."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from residmix.mixture.iteration.estep import MixtureMoments
from residmix.kernels.pairs import full_parameters, small
from residmix.mixture.families.family import Family, family
from residmix.mixture.params import MixtureParams, make_params

__all__ = [
    "CANCELLED",
    "DEAD_ROWS",
    "FEW_FEATURES",
    "covariances_from_scatter",
    "dead_components",
    "keep_where_cancelled",
    "m_step",
    "ordinary_step",
    "with_ridge",
]

Floats = NDArray[np.float64]

# A component that holds less than this many rows is dead: its mean and covariance are rounding errors.
DEAD_ROWS = 1e-8

# Up to so many features calls of LAPACK take longer than their arithmetic, and as long as many rows.
FEW_FEATURES = 12

# Where the mean jumped by more than this many (squared) new standard deviations, S2/N - ee' has no digits left.
CANCELLED = 1e13


def covariances_from_scatter(
    scatter: Floats,
    shift: Floats,
    weight: Floats,
    covariance_type: str,
    reg_covar: float | Floats,
    params: MixtureParams | None = None,
    dead: NDArray[np.bool_] | None = None,
) -> tuple[Floats, Floats | None]:
    """Return the maximum-likelihood covariances of a family, for moments with `reg_covar` added to their diagonals.

    Their parts come with them, see `Family.fit_with_parts`; restraints of `params` are obeyed.

    Parameters
    ----------
    scatter, shift, weight
        As for `residmix.mixture.families.family.Family.within`.
    reg_covar : float, ndarray (d,) or ndarray (d, d)
        The same for all features, for each, or a matrix that is added.
    params : MixtureParams, optional
        So far.
    dead : ndarray of bool (K,), optional
        Components whose moments are rounding errors: they stay unchanged, with nearly no weight.
    """
    of = family(covariance_type)
    restraint = None if params is None else params.restraint
    W, counts = of.within(scatter, shift, weight), weight
    if restraint is not None and restraint.prior is not None:
        W, counts = restraint.prior.steadied(of, W, weight)
    W = with_ridge(W, reg_covar)
    previous = None if params is None or not of.linked else params.full_covariances()
    if previous is not None and dead is not None and dead.any() and len(W) == len(dead):
        W[dead] = of.of_full(previous, weight)[dead]
    parts = None if params is None else params.parts
    if parts is not None and dead is not None and dead.any():
        W[dead] = params.full_covariances()[dead]  # type: ignore[union-attr]
    if restraint is not None:
        return restraint.fit(of, W, counts, previous, parts)
    return of.fit_with_parts(W, counts, previous, parts)


def with_ridge(W: Floats, reg_covar: float | Floats) -> Floats:
    """Return covariances (K, d, d), made symmetric, or variances (K, d) with `reg_covar` added."""
    if W.ndim == 2:
        return W + reg_covar
    W = 0.5 * (W + np.swapaxes(W, 1, 2))
    if np.ndim(reg_covar) == 2:
        W += reg_covar
    else:
        np.einsum("kii->ki", W)[...] += reg_covar
    return W


def m_step(
    moments: MixtureMoments, params: MixtureParams, *, reg_covar: float | Floats, revive: bool = True
) -> MixtureParams:
    """Return the parameters that maximise the expected log-likelihood (Dempster, Laird & Rubin 1977).

    ``N_k = weight``, ``mean += shift / N``, covariance by family, plus `reg_covar`. A component left without rows
    (see `dead_components`) takes half of the heaviest one, cut along its longest axis; with ``revive=False`` it
    stays where it was, with weight 0.

    Raises
    ------
    SingularCovarianceError
        If a component's rows don't span the space and `reg_covar` is 0.
    """
    if (ordinary := ordinary_step(moments, params, reg_covar)) is not None:
        return ordinary
    dead, weight, weights = dead_components(moments), moments.weight, moments.weight
    if dead.any():
        floor = DEAD_ROWS * moments.total / moments.rows
        weight, weights = np.maximum(weight, floor), np.where(dead, 0.0, weights)
        e = np.where(dead[:, None], 0.0, moments.shift / weight[:, None])
    else:
        e = moments.shift / weight[:, None]
    means = params.means + e
    prior = None if params.restraint is None else params.restraint.prior
    if prior is not None:  # its rows at the prior's mean aren't the component's
        weights = np.maximum(weights - prior.strength + prior.dirichlet - 1.0, 0.0)
    # where the noise has taken all rows, none is left to tell the proportions
    weights = weights / weights.sum() if weights.any() else params.weights
    covariances, parts = covariances_from_scatter(
        moments.scatter, e * weight[:, None], weight, params.covariance_type, reg_covar, params, dead
    )
    if parts is None:
        covariances = keep_where_cancelled(covariances, e, params, dead)
    elif params.parts is not None and (jumped := _jumped(covariances, e, params)).any():
        parts = np.where(jumped[:, None, None], params.parts, parts)
        covariances = np.where(jumped[:, None, None], params.covariances, covariances)
    if dead.any() and revive:
        weights, means, covariances, heavy = _split_heaviest(weights, means, covariances, params.family, dead)
        parts = None if parts is None else parts[heavy]
    made = make_params(weights, means, covariances, params.covariance_type, parts)
    return made if params.restraint is None else replace(made, restraint=params.restraint)


def ordinary_step(moments: MixtureMoments, params: MixtureParams, reg_covar: float | Floats) -> MixtureParams | None:
    """Return the M-step of a few full covariances, unless something special is asked or happens: then None.

    What stands beside the components isn't looked at.
    """
    K, d = params.means.shape
    if not params.family.free or d > FEW_FEATURES or params.restraint is not None or isinstance(reg_covar, np.ndarray):
        return None
    floor = DEAD_ROWS * moments.total / moments.rows
    given = moments.weight, moments.shift, moments.scatter, params.means, floor, CANCELLED, float(reg_covar)
    found: tuple[Floats, Floats, Floats, Floats] | None = full_parameters(*given, plain=small(moments.rows, K * d))
    return None if found is None else MixtureParams(*found, params.covariance_type)


def dead_components(moments: MixtureMoments) -> NDArray[np.bool_]:
    """Return a mask of the components with less than 1e-8 of a row, whose moments are rounding errors."""
    return moments.weight <= DEAD_ROWS * moments.total / moments.rows


def keep_where_cancelled(covariances: Floats, e: Floats, params: MixtureParams, dead: NDArray[np.bool_]) -> Floats:
    """Keep the old covariance where the mean jumped so far that the new one is all rounding error.

    This is still an ascent step (of the weights and means), and the next iteration is exact.
    """
    jumped = _jumped(covariances, e, params)
    if not (jumped.any() or dead.any()):
        return covariances
    bounded = params.restraint is not None and params.restraint.ratio is not None
    if params.family.linked or bounded:  # the covariances of one component would contradict the others'
        return params.covariances if jumped.any() else covariances
    return np.where((jumped | dead).reshape(-1, *(1,) * (covariances.ndim - 1)), params.covariances, covariances)


def _jumped(covariances: Floats, e: Floats, params: MixtureParams) -> NDArray[np.bool_]:
    return np.asarray((e**2 > CANCELLED * np.abs(params.family.diagonals(covariances))).any(axis=1))


def _split_heaviest(
    weights: Floats, means: Floats, covariances: Floats, of: Family, dead: NDArray[np.bool_]
) -> tuple[Floats, Floats, Floats, NDArray[np.intp]]:
    """Give each dead component half of the heaviest one, the halves half a standard deviation off its mean.

    Last comes whose covariance each component has now.
    """
    origin = np.arange(len(weights))
    weights, means, covariances = weights.copy(), means.copy(), covariances.copy()
    for k in np.flatnonzero(dead):
        heavy = int(np.argmax(weights))
        values, vectors = np.linalg.eigh(of.full(covariances, *means.shape)[heavy])
        step = vectors[:, -1] * np.sqrt(max(values[-1], 0.0))
        means[k], means[heavy] = means[heavy] + 0.5 * step, means[heavy] - 0.5 * step
        weights[k] = weights[heavy] = 0.5 * weights[heavy]
        origin[k] = origin[heavy]
        if of.kept[0] == "K":
            covariances[k] = covariances[heavy]
    return weights, means, covariances, origin
