"""Solvers of the Schur complement after one absorbed factor is eliminated."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.linalg import solve_triangular
from scipy.sparse.csgraph import connected_components

from residmix.errors import DesignWarning, warn
from residmix.moments.absorbed.centred import pivoted

__all__ = ["ALIASED", "schur_solver"]

Array = NDArray[np.float64]

# A column of which less than this share of the variance is left beside the others is aliased with them: rounding of a
# Gram matrix is of order 1e-16 times its size.
ALIASED = 1e-11
_DENSE_LIMIT = 4000
_MAX_STEPS = 2000


def schur_solver(
    gram: sparse.csr_array, link: sparse.csr_array, inverse: Array, starts: list[int]
) -> tuple[Callable[[Array], Array], NDArray[np.bool_], float, float]:
    """Return a solver of the Schur complement, which unknowns it determines, and how well."""
    size = gram.shape[0]
    if size == 0:
        return (lambda right: right), np.zeros(0, dtype=bool), 1.0, 1.0
    own = gram.diagonal()
    root = np.sqrt(np.where(own > 0, own, 1.0))
    if size > _DENSE_LIMIT:
        return _iterative(gram, link, inverse, root, starts)
    through = (link * inverse) @ link.T
    schur = (gram - through).toarray() / root[:, None] / root
    lower, order, _ = pivoted(schur, ALIASED)
    kept = np.zeros(size, dtype=bool)
    kept[order] = True

    def solve(right: Array) -> Array:
        out = np.zeros_like(right)
        if not len(order):  # LAPACK refuses matrices without rows
            return out
        inner = solve_triangular(lower, right[order] / root[order][:, None], lower=True)
        out[order] = solve_triangular(lower, inner, lower=True, trans="T") / root[order][:, None]
        return out

    pivots = np.diagonal(lower)
    weakest = float(pivots.min(initial=1.0) ** 2)
    return solve, kept, weakest, float(pivots.max(initial=1.0) / pivots.min(initial=1.0))


def _iterative(
    gram: sparse.csr_array, link: sparse.csr_array, inverse: Array, root: Array, starts: list[int]
) -> tuple[Callable[[Array], Array], NDArray[np.bool_], float, float]:
    """Return conjugate gradients on the Schur complement, preconditioned by its diagonal, for many right-hand sides.

    The complement is singular (a constant can be moved between two factors), but its right-hand sides lie in its range,
    where conjugate gradients converge.
    """
    left = sparse.csr_array(link * inverse)
    diagonal = np.maximum(gram.diagonal() - (left * link).sum(axis=1), 0.0)
    active = diagonal > ALIASED * root**2
    for start, stop in pairwise(starts):
        part = link[start:stop]
        _, label = connected_components(sparse.block_array([[None, part], [part.T, None]]), directed=False)
        active[start + np.unique(label[: stop - start], return_index=True)[1]] = False
    precondition = np.where(active, 1.0 / np.where(active, diagonal, 1.0), 0.0)[:, None]

    def solve(right: Array) -> Array:
        right = np.where(active[:, None], right, 0.0)
        out = np.zeros_like(right)
        residual = right.copy()
        direction = precondition * residual
        energy = goal = np.sum(residual * direction, axis=0)
        for _ in range(_MAX_STEPS):
            if (energy <= 1e-24 * goal).all():
                return out
            direction = np.where(energy > 1e-24 * goal, direction, 0.0)  # done: further steps would only add rounding
            image = gram @ direction - link @ (left.T @ direction)
            image[~active] = 0.0
            curvature = np.sum(direction * image, axis=0)
            step = np.divide(energy, curvature, out=np.zeros_like(energy), where=curvature > 0)
            out += step * direction
            residual -= step * image
            preconditioned = precondition * residual
            before, energy = energy, np.sum(residual * preconditioned, axis=0)
            turn = np.divide(energy, before, out=np.zeros_like(energy), where=before > 0)
            direction = preconditioned + turn * direction
        left_over = float(np.sqrt(np.max(energy / np.where(goal > 0, goal, 1.0))))
        if left_over > 1e-9:
            warn(
                f"the effects of crossed factors did not converge in {_MAX_STEPS} steps (relative error "
                f"{left_over:.1e}), since few rows connect their levels. Merge rare levels, or remove one factor at "
                "a time",
                DesignWarning,
            )
        return out

    return solve, active, 0.0, np.inf
