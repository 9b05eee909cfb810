"""Degenerate components on a few rows, where the likelihood is unbounded."""

from __future__ import annotations

import operator

import numpy as np
from numpy.typing import NDArray

from residmix.kernels.cholesky import inverse_cholesky, swept
from residmix.mixture.params import MixtureParams
from residmix.rows.block import Block
from residmix.rows.rows import Rows

__all__ = ["all_bare", "count", "none_apart", "none_narrow", "spikes", "spiky"]

Floats = NDArray[np.float64]

# A component whose spread in some direction is below this share of the typical one is suspicious...
NARROW = 0.03
# ... if it holds fewer rows than so many for each of its directions, or whatever it holds if below that share.
FEW = 2.0
EQUAL = 1e-3
# How many times as wide as in its narrowest direction the typical component may be, squared, for that one to count.
FLATTEST = 1e12
# A variance of rows below this share of what is added to it is none; and where values may be missing, of which each is
# as uncertain as the component is wide, so that of one half missing the variance is twice what is added.
OWN, OWN_WITH_GAPS = 1e-3, 1.0
# Above so many rows, weights don't decide whether a component has few.
MANY = 100_000


def count(rows: Rows) -> float:
    """Return the sum of the rows' weights if there are few rows, else their number."""
    return float(rows.fold(_weight, operator.add)) if rows.n_rows <= MANY else float(rows.n_rows)


def _weight(block: Block) -> float:
    return float(block.n_rows if block.weight is None else block.weight.sum())


def all_bare(params: MixtureParams, ridge: float | Floats) -> bool:
    """Tell whether all components sit on equal rows: as many components as distinct rows, or more.

    Beside each other none of them is narrow, so `spikes` doesn't see that.
    """
    # rows that differ by less than the ridge everywhere are a matter of scale
    return not params.family.shared and _no_spread(params, ridge, apart=True)


def none_apart(rows: Rows, params: MixtureParams, ridge: float | Floats) -> bool:
    """Tell whether all rows are equal, so that all components lie on one point."""
    if not _no_spread(params, ridge, apart=False):
        return False
    least, most = rows.fold(_ends, _wider)
    return bool((least == most).all())


def _no_spread(params: MixtureParams, ridge: float | Floats, *, apart: bool) -> bool:
    """Tell whether the covariances of components, one or no point apart, are nothing but the ridge."""
    more = np.diag(ridge) if np.ndim(ridge) == 2 else np.broadcast_to(ridge, params.n_features)
    if params.n_components == 1 or not more.max() > 0:
        return False
    if apart != bool((np.ptp(params.means, axis=0) ** 2 > more).any()):
        return False
    full = np.diagonal(params.full_covariances(), axis1=1, axis2=2)
    return bool((params.weights @ full - more <= OWN * more).all())


def _ends(block: Block) -> tuple[Floats, Floats]:
    x = block.X if block.weight is None else block.X[block.weight > 0]
    return x.min(axis=0, initial=np.inf), x.max(axis=0, initial=-np.inf)


def _wider(one: tuple[Floats, Floats], two: tuple[Floats, Floats]) -> tuple[Floats, Floats]:
    return np.minimum(one[0], two[0]), np.maximum(one[1], two[1])


def none_narrow(params: MixtureParams) -> bool:
    """Tell quickly that there are no spikes, whatever the rows; False where that isn't settled so."""
    if params.family.shared or params.n_components == 1:
        return True
    return not params.family.diagonal and _all_wide(params, params.weights, np.full(params.n_components, NARROW))


def spiky(
    weights: Floats, full: Floats, ridge: float, total: float, far: NDArray[np.bool_], rows_needed: int
) -> NDArray[np.bool_]:
    """Tell which of several mixtures (runs,) have spikes, as `spikes` has it.

    Parameters
    ----------
    weights, full : ndarray (runs, K), (runs, K, d, d)
    ridge : float
        What the covariances have more than the rows.
    total : float
        Sum of the rows' weights.
    far : ndarray of bool (runs, K)
        Components far outside.
    rows_needed : int
        See `residmix.mixture.families.structure.Family.rows_needed`.
    """
    d = full.shape[-1]
    # no variance beyond that in some direction
    pivots = swept(np.moveaxis(full.reshape(-1, d, d), 0, -1) - ((1 + OWN) * ridge * np.eye(d))[:, :, None])[1]
    found = ((pivots.min(axis=0) <= 0).reshape(far.shape) & ~far).any(axis=1)
    run, k = np.nonzero((weights * total <= FEW * rows_needed) & ~far & ~found[:, None])
    if len(run):
        index, place = np.unique(run, return_inverse=True)
        own = full[index] - ridge * np.eye(d)
        usual = ~far[index] | far[index].all(axis=1, keepdims=True)
        white = _to_typical(weights[index], own, usual)[place]
        least = np.linalg.eigvalsh(white.swapaxes(1, 2) @ own[place, k] @ white)[:, 0]
        found[run[least < NARROW**2]] = True
    return np.asarray(found)


def _to_typical(weights: Floats, full: Floats, usual: NDArray[np.bool_]) -> Floats:
    """Return maps (runs, d, d) to coordinates in which components have a covariance of 1 on average."""
    share = np.where(usual, weights, 0.0)
    pooled = np.einsum("rk,rkij->rij", share / share.sum(axis=1, keepdims=True), full)
    diagonal = np.einsum("rii->ri", pooled)
    scale = np.sqrt(np.where(diagonal > 0, diagonal, 1.0))
    values, vectors = np.linalg.eigh(pooled / scale[:, None] / scale[:, :, None])
    # rows that are all equal have no spread at all
    roots = np.sqrt(np.maximum(values, np.maximum(1e-12 * values[:, -1:], 1e-300)))
    return np.asarray(vectors / scale[:, :, None] / roots[:, None])


def spikes(
    params: MixtureParams,
    total: float,
    far: NDArray[np.bool_] | None = None,
    ridge: float | Floats | None = None,
) -> list[int]:
    """Return the components that sit on a few rows, or on nearly equal rows, amid the others.

    A component of N rows in d dimensions is a spike if its standard deviation in some direction is less than 3 % of
    what components have there on average, and N is at most 2 (d + 1); or less than .1 %, whatever N is. The
    likelihood grows without bound at such points (Day 1969, Biometrika 56).

    Parameters
    ----------
    total : float
        Sum of the rows' weights.
    far : ndarray of bool (K,), optional
        Components far outside, which may have few rows.
    ridge : float, ndarray (d,) or ndarray (d, d), optional
        The regularisation in the covariances. If it is given, a component with more than a few rows is a spike only if
        it has no spread beyond that, as rows with one rounded value; rows in a plane by nature have some.
    """
    of = params.family
    if of.shared or params.n_components == 1:
        return []
    K, d = params.means.shape
    rows = params.weights * total
    # the typical component counts, not one on far rows, however wide
    usual = np.ones(K, dtype=bool) if far is None or far.all() else ~far
    shares = np.where(usual, params.weights, 0.0) / params.weights[usual].sum()
    few = rows <= FEW * of.rows_needed(d)
    if not of.diagonal and _all_wide(params, shares, np.where(few | (ridge is not None), NARROW, EQUAL)):
        return []
    least, more = (_along_features if of.diagonal else _along_axes)(params, shares, 0.0 if ridge is None else ridge)
    narrowest = np.sqrt(np.maximum(least, 0.0))
    # where nothing is added, nothing tells a plane from rows that are equal
    bare = (narrowest < NARROW) & (least - more <= (OWN_WITH_GAPS if params.missing else OWN) * more)
    equal = np.where(more > 0, bare, narrowest < EQUAL)
    chosen = (few & (narrowest < NARROW)) | equal
    if far is not None:
        chosen &= ~far
    return [int(k) for k in np.flatnonzero(chosen)]


def _all_wide(params: MixtureParams, shares: Floats, narrow: Floats) -> bool:
    r"""Tell whether no component's least standard deviation, beside the typical one's, is below `narrow` (K,).

    Without eigenvalues, which take longer: :math:`1 / \lambda_{min} \le tr(\Sigma \Sigma_k^{-1})` for the least
    eigenvalue of :math:`\Sigma_k` beside :math:`\Sigma`. False where that doesn't settle it.
    """
    full = params.full_covariances()
    pooled = (shares @ full.reshape(len(full), -1)).reshape(full.shape[1:])
    scale = np.sqrt(pooled.diagonal())
    if not (scale.min() > 0 and scale.max() < np.inf):
        return False
    inverse, failed = inverse_cholesky((pooled / scale / scale[:, None])[None])
    if failed.any() or not (inverse**2).sum() < FLATTEST / len(scale):
        return False
    factors = params.full_factors()
    return bool(((factors * (pooled @ factors)).sum(axis=(1, 2)) * narrow**2 < 1.0).all())


def _along_axes(params: MixtureParams, shares: Floats, ridge: float | Floats) -> tuple[Floats, Floats]:
    """Return each component's least variance in units of the typical one, and what `ridge` is of it."""
    full = params.full_covariances()
    pooled = np.tensordot(shares, full, 1)
    scale = np.sqrt(np.where(np.diag(pooled) > 0, np.diag(pooled), 1.0))
    values, vectors = np.linalg.eigh(pooled / scale / scale[:, None])
    white = vectors / scale[:, None] / np.sqrt(np.maximum(values, values[-1] / FLATTEST))
    variances, axes = np.linalg.eigh(white.T @ full @ white)
    along = axes[:, :, 0] @ white.T
    more = ((along @ ridge) * along if np.ndim(ridge) == 2 else along**2 * ridge).sum(axis=1)
    return variances[:, 0], more


def _along_features(params: MixtureParams, shares: Floats, ridge: float | Floats) -> tuple[Floats, Floats]:
    """Return the same where the axes are those of the features, without a matrix of d x d."""
    own = np.broadcast_to(params.family.diagonals(params.covariances), params.means.shape)
    pooled = shares @ own
    unit = np.where(pooled > 0, pooled, 1e-12)
    place = np.argmin(own / unit, axis=1)
    added = np.broadcast_to(np.diag(ridge) if np.ndim(ridge) == 2 else ridge, unit.shape)
    return own[np.arange(len(own)), place] / unit[place], added[place] / unit[place]
