r"""Rows with known measurement errors: :math:`x_i = v_i + e_i, e_i \sim N(0, E_i)`, a mixture of the v.

A row has the density :math:`\sum_k \pi_k N(x_i \mid \mu_k, T_{ik})`, :math:`T_{ik} = \Sigma_k + E_i`, and given
component k what was measured has the mean :math:`\mu_k + \Sigma_k T_{ik}^{-1} (x_i - \mu_k)` and the covariance
:math:`\Sigma_k - \Sigma_k T_{ik}^{-1} \Sigma_k`; the M-step is that of rows with these (Bovy, Hogg & Roweis 2011,
"Extreme deconvolution", Ann. Appl. Stat. 5). A missing value is one whose error is infinite.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import solve_triangular

from residmix.mixture.params import MixtureParams
from residmix.rows.rows import Rows

__all__ = ["Unsure", "check_errors", "chunk_rows", "local_errors", "unsure"]

Floats = NDArray[np.float64]

# Numbers of a chunk's covariances, rows times components.
CHUNK = 4_000_000


@dataclass(frozen=True, slots=True)
class Unsure:
    """Densities and expectations of rows with errors, by component.

    Attributes
    ----------
    log_det, distance : ndarray (b, K)
        Minus half the logarithm of the determinant of T, and the squared distance in it; of what is there.
    away : ndarray (b, K, d)
        Expected values less the component's mean.
    rest : ndarray (b, K, d, d)
        Their covariances.
    """

    log_det: Floats
    distance: Floats
    away: Floats
    rest: Floats


def unsure(params: MixtureParams, x: Floats, errors: Floats, effects: Floats | None = None) -> Unsure:
    """Return what components say of rows (b, d) with errors (b, d) or (b, d, d), less `effects` (K, b, d) if given."""
    full, (K, d) = params.full_covariances(), params.means.shape
    matrices = errors[:, :, None] * np.eye(d) if errors.ndim == 2 else errors
    there = ~np.isnan(x)
    both = there[:, :, None] & there[:, None, :]
    b = len(x)
    log_det, distance = np.empty((b, K)), np.empty((b, K))
    away, rest = np.empty((b, K, d)), np.empty((b, K, d, d))
    for k in range(K):
        # features that aren't there are as if independent, of variance 1, and seen where they are expected
        T = np.where(both, full[k] + matrices, np.eye(d))
        expected = params.means[k] if effects is None else params.means[k] + effects[k]
        difference = np.where(there, x - expected, 0.0)
        roots = np.linalg.cholesky(T)
        across = np.where(there[:, :, None], full[k], 0.0)
        solved = _lower_solved(roots, np.concatenate([across, difference[:, :, None]], axis=2))
        gain, white = solved[:, :, :d], solved[:, :, d]
        log_det[:, k] = -np.log(np.diagonal(roots, axis1=1, axis2=2)).sum(axis=1)
        distance[:, k] = (white**2).sum(axis=1)
        away[:, k] = np.einsum("bji,bj->bi", gain, white)
        rest[:, k] = full[k] - gain.swapaxes(1, 2) @ gain
    return Unsure(log_det, distance, away, rest)


def _lower_solved(roots: Floats, right: Floats) -> Floats:
    if len(roots) * roots.shape[1] < 64:
        return np.stack([solve_triangular(root, one, lower=True) for root, one in zip(roots, right, strict=True)])
    # by rows of the triangle, all matrices at once
    solved = np.empty_like(right)
    for i in range(roots.shape[1]):
        known = np.einsum("bj,bjm->bm", roots[:, i, :i], solved[:, :i])
        solved[:, i] = (right[:, i] - known) / roots[:, i, i, None]
    return solved


def chunk_rows(n_components: int, n_features: int) -> int:
    """Return how many rows are worked on at once."""
    return max(1, CHUNK // (n_components * n_features**2))


def check_errors(values: ArrayLike, n_rows: int, n_features: int) -> Floats:
    """Return errors (n, d) or (n, d, d) as float64.

    Raises
    ------
    ValueError
        Unless they are finite and valid variances or covariances.
    """
    given: Any = np.asarray(values, dtype=np.float64)
    n, d = n_rows, n_features
    if given.shape not in ((n, d), (n, d, d)):
        raise ValueError(
            f"error_covariance must have shape {(n, d)} (variances) or {(n, d, d)} (covariances), not {given.shape}"
        )
    if not np.isfinite(given).all():
        raise ValueError("error_covariance must be finite; mark a useless value as NaN in X, and allow missing values")
    variances = given if given.ndim == 2 else np.diagonal(given, axis1=1, axis2=2)
    if (variances < 0).any():
        raise ValueError(
            f"error_covariance must not have negative variances; row {int(np.argmin(variances.min(axis=1)))} has "
            f"{variances.min():.3g}"
        )
    if given.ndim == 3:
        size = np.maximum(variances.max(axis=1), 1e-300)
        if not np.allclose(given, given.swapaxes(1, 2)) or (np.linalg.eigvalsh(given)[:, 0] < -1e-9 * size).any():
            raise ValueError("error_covariance must hold symmetric matrices without negative eigenvalues")
    return np.ascontiguousarray(given)


def local_errors(values: ArrayLike | None, rows: Rows) -> Floats | None:
    """Return the errors of rows that are in this process, checked; or None.

    Raises
    ------
    ValueError
        As `check_errors` does, and for rows that a cluster holds.
    """
    if values is None:
        return None
    if not rows.local:
        raise ValueError("error_covariance needs X in memory; load or compute X first")
    return check_errors(values, rows.n_rows, rows.n_features)
