"""Affine erasure from second moments: what to subtract so that no linear model predicts z from x."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Erasure", "TangledError", "erasure"]

Array = NDArray[np.float64]

# A correlation that is smaller than this is the rounding of moments in double precision, not an association.
_NOISE = 1e-11


class TangledError(ValueError):
    """The same direction of feature space would have to be erased and kept."""


@dataclass(frozen=True)
class Erasure:
    r"""The map :math:`r(x) = x - L R (x - \mu)`, of rank k.

    Attributes
    ----------
    mean : ndarray (d,)
    left : ndarray (d, k)
        Directions that are removed.
    right : ndarray (k, d)
        How much of each is in a row; ``right @ left`` is the identity, so the map is a projection.
    correlations : ndarray (k,)
        Canonical correlations between x and z, largest first.
    entangled : float
        Largest canonical correlation, in whitened feature space, between what is erased and what is kept.
    """

    mean: Array
    left: Array
    right: Array
    correlations: Array
    entangled: float

    def __call__(self, X: NDArray[np.floating]) -> Array:
        return X - ((X - self.mean) @ self.right.T) @ self.left.T


def erasure(mean: Array, covariance: Array, n_erased: int, n_kept: int) -> Erasure:
    r"""Find the least-squares erasure of z from x, keeping the covariance of x with y.

    With :math:`M = \Sigma_{xx}^+`, :math:`A = M^{1/2} \Sigma_{xz}`, :math:`B = M^{1/2} \Sigma_{xy}` and :math:`Q_B` the
    projector on the columns of B,

    .. math:: r(x) = x - \Sigma_{xz} \left(A'(I - Q_B)A\right)^+ A'(I - Q_B) M^{1/2} (x - \mu)

    This has Cov(r, z) = 0 and Cov(r, y) = Cov(x, y), and of all affine maps that have, it changes x least, in
    every inner product at once. Without y it is LEACE, :math:`x - W^+ Q W (x - \mu)` with :math:`W = M^{1/2}`.

    Every column is brought to unit variance first, which the formula is invariant to; so tolerances are relative
    to the scale of each column. :math:`\Sigma_{xz}` itself stands at the left rather than :math:`W^+ W \Sigma_{xz}`:
    the covariance with z then vanishes whatever the pseudo-inverse cuts off.

    Parameters
    ----------
    mean : ndarray (q + d,)
        Mean of rows [z, y, x].
    covariance : ndarray (q + d, q + d)
        Their covariance.
    n_erased, n_kept : int
        Columns of z and of y.

    Raises
    ------
    TangledError
        A direction of feature space would have to be erased and kept.

    References
    ----------
    Belrose et al., "LEACE: Perfect linear concept erasure in closed form", NeurIPS 2023, theorem 4.2.
    Holstege, Ravfogel and Wouters, "Preserving task-relevant information under linear concept removal", NeurIPS 2025.
    """
    q = n_erased + n_kept
    z, y, x = slice(0, n_erased), slice(n_erased, q), slice(q, len(mean))
    scale = column_scale(mean, covariance)
    safe = np.where(scale > 0, scale, 1.0)
    correlation = covariance / safe / safe[:, None]
    correlation[scale == 0] = 0.0
    correlation[:, scale == 0] = 0.0

    white_x = whitener(correlation[x, x])
    cross = correlation[x, z] @ whitener(correlation[z, z]).T
    A = informative(white_x, cross)
    kept = range_of(white_x @ correlation[x, y] @ whitener(correlation[y, y]).T)
    entangled = overlap(A, kept)
    if entangled > 1 - 1e-10:
        raise TangledError(
            f"erased and preserved effects share a direction of feature space (canonical correlation {entangled:.6f} "
            f"in {len(white_x)} dimensions), so no linear map can do both; preserve or erase fewer terms, or use "
            "more features"
        )
    own = A - kept @ (kept.T @ A)
    U, s, Vt = np.linalg.svd(own, full_matrices=False)
    rank = int(np.sum(s > _NOISE))
    U, s, Vt = U[:, :rank], s[:rank], Vt[:rank]
    left = cross @ Vt.T / s
    right = U.T @ white_x
    right = np.linalg.solve(right @ left, right)
    return Erasure(
        mean[x].copy(),
        safe[x, None] * left,
        right / safe[x],
        np.minimum(np.linalg.svd(A, compute_uv=False)[:rank], 1.0),
        entangled,
    )


def column_scale(mean: Array, covariance: Array) -> Array:
    """Standard deviations; 0 where a column's spread is no more than the rounding of its mean."""
    sd = np.sqrt(np.clip(np.diag(covariance), 0.0, None))
    return np.where(sd > 64 * np.finfo(np.float64).eps * np.abs(mean), sd, 0.0)


def whitener(correlation: Array) -> Array:
    """Return W (rank, m) with W C W' = I, on the directions whose variance is above rounding."""
    values, vectors = np.linalg.eigh(correlation)
    floor = 8 * max(len(values), 8) * np.finfo(np.float64).eps * max(values.max(initial=0.0), 1e-300)
    good = values > floor
    return np.asarray(vectors[:, good].T / np.sqrt(values[good])[:, None])


def informative(white_x: Array, cross: Array) -> Array:
    """Return W S_xz without the directions of z that correlate with no feature."""
    U, s, Vt = np.linalg.svd(cross, full_matrices=False)
    s = np.where(s > _NOISE, s, 0.0)
    return np.asarray(white_x @ (U * s) @ Vt)


def range_of(matrix: Array) -> Array:
    """Orthonormal basis of the columns, by singular values above rounding."""
    U, s, _ = np.linalg.svd(matrix, full_matrices=False)
    return U[:, s > _NOISE]


def overlap(A: Array, basis: Array) -> float:
    """Largest cosine between the columns of `A` and the space that `basis` spans."""
    own = range_of(A)
    if own.shape[1] == 0 or basis.shape[1] == 0:
        return 0.0
    return float(min(np.linalg.svd(own.T @ basis, compute_uv=False)[0], 1.0))
