"""Coefficients given responsibilities and covariances: generalised least squares, the means profiled out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cho_factor, cho_solve

from residmix.mixture.iteration.estep import MixtureMoments
from residmix.mixture.params import MixtureParams

__all__ = ["coefficient_step", "conjugate_gradients", "solve_generalised"]

Floats = NDArray[np.float64]

# Unknowns up to which the least-squares system is solved densely; above, by conjugate gradients.
MAX_DENSE = 400


def coefficient_step(moments: MixtureMoments, q: int, mixture: MixtureParams) -> Floats:
    r"""Return the change of the coefficients (q, d) that is best together with the means it implies.

    It solves :math:`\sum_k A_k D P_k = \sum_k C_k P_k` with the responsibility-weighted scatter A_k of u and C_k of u
    with r, both within component k, and the precision P_k: generalised least squares, the means profiled out.

    Parameters
    ----------
    moments : MixtureMoments
        Of the rows [u, r].
    q : int
        Columns of u.
    mixture : MixtureParams
        Whose covariances weigh the features.
    """
    weight = np.where(moments.weight > 0, moments.weight, 1.0)
    mean = moments.shift / weight[:, None]
    within = moments.scatter - weight[:, None, None] * mean[:, :, None] * mean[:, None, :]
    a, c = within[:, :q, :q] / moments.total, within[:, :q, q:] / moments.total
    of = mixture.family
    if of.shared:
        return _solve_damped(a.sum(axis=0), c.sum(axis=0))
    if of.diagonal:
        precisions = of.diagonals(mixture.factors) ** 2
        if of.isotropic:
            return _solve_damped(np.tensordot(precisions[:, 0], a, 1), np.tensordot(precisions[:, 0], c, 1))
        left = np.einsum("kab,kj->jab", a, precisions)
        right = np.einsum("kaj,kj->ja", c, precisions)
        return np.stack([_solve_damped(lhs, rhs) for lhs, rhs in zip(left, right, strict=True)], axis=1)
    return solve_generalised(a, c, mixture.precisions())


def solve_generalised(a: Floats, c: Floats, precisions: Floats) -> Floats:
    r"""Solve :math:`\sum_k A_k D P_k = \sum_k C_k P_k` for D (q, d); directions that no A_k sees stay at 0."""
    q, d = c.shape[1:]
    # Features in units of their pooled noise, so that one damping serves all of them
    unit = 1.0 / np.sqrt(np.einsum("k,kjj->j", np.ones(len(a)) / len(a), precisions))
    p, c = precisions * unit[:, None] * unit, c / unit
    right = np.einsum("kaj,kji->ai", c, p)
    if q * d <= MAX_DENSE:
        left = np.einsum("kab,kij->aibj", a, p).reshape(q * d, q * d)
        return np.asarray(_solve_damped(left, right.ravel()).reshape(q, d) * unit)

    def product(x: Floats) -> Floats:
        return np.asarray(np.einsum("kaj,kji->ai", a @ x, p))

    pooled = np.einsum("kab->ab", a), np.einsum("k,kij->ij", np.einsum("kaa->k", a), p) / np.einsum("kaa->", a)
    return np.asarray(conjugate_gradients(product, right, *pooled) * unit)


def _solve_damped(left: Floats, right: Floats) -> Floats:
    """Solve a positive semi-definite system; directions that it can't see (up to rounding) stay at 0."""
    size = float(np.trace(left)) / len(left)
    if not size > 0:
        return np.zeros_like(right)
    damped = left + 1e-10 * size * np.eye(len(left))
    try:
        return np.asarray(cho_solve(cho_factor(damped), right))
    except LinAlgError:
        values, vectors = np.linalg.eigh(left)
        kept = values > 1e-10 * values[-1]
        return np.asarray(vectors[:, kept] @ ((vectors[:, kept].T @ right).T / values[kept]).T)


def conjugate_gradients(
    product: Callable[[Floats], Floats], right: Floats, rows: Floats, columns: Floats, *, tol: float = 1e-10
) -> Floats:
    """Solve ``product(x) = right`` for x (q, d), preconditioned by ``rows x columns = right``.

    Started from 0 every iterate improves the quadratic that the solution minimises, so it may be cut short.
    """
    q, d = right.shape
    x, residual = np.zeros_like(right), right.copy()
    size = np.linalg.norm(right)

    def precondition(y: Floats) -> Floats:
        return _solve_damped(columns, _solve_damped(rows, y).T).T

    z = precondition(residual)
    direction, rho = z.copy(), float(np.vdot(residual, z))
    for _ in range(4 * q * d):
        if np.linalg.norm(residual) <= tol * size:
            break
        applied = product(direction)
        length = rho / float(np.vdot(direction, applied))
        x += length * direction
        residual -= length * applied
        z = precondition(residual)
        rho, before = float(np.vdot(residual, z)), rho
        direction = z + (rho / before) * direction
    return x
