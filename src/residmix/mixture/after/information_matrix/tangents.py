r"""Free directions of the covariances of a family: :math:`\Sigma_k = \lambda_k D_k A_k D_k'`.

A change of volume is :math:`d\Sigma_k = \Sigma_k`, one of shape :math:`D_k \lambda_k A_k \mathrm{diag}(a) D_k'` with
:math:`\sum a = 0`, one of orientation :math:`\Omega \Sigma_k - \Sigma_k \Omega` with :math:`\Omega' = -\Omega`; of one
component where the letter is V, of all at once where it is E.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from residmix.mixture.families.family import Family

__all__ = ["half", "tangents"]

Floats = NDArray[np.float64]

# Directions of less than this share of the largest are rounding: axes of equal variance don't turn.
FLAT = 1e-9


def half(d: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the places of a symmetric matrix that say all of it."""
    return np.triu_indices(d)


def tangents(family: Family, full: Floats, parts: Floats | None = None) -> Floats | None:
    """Return directions as columns over the halves of all components, (K m, n), orthonormal; None if all are free.

    `parts` are the loadings and the roots of the features' own variances of a factor-analytic family.
    """
    if family.free:
        return None
    if parts is not None:
        return _independent(_moves("V", _factor_moves(parts)))
    K, d = full.shape[:2]
    if family.shared and not family.diagonal:
        alike: Floats = np.tile(np.eye(d * (d + 1) // 2), (K, 1)) / np.sqrt(K)
        return alike
    made: list[Floats] = []
    values, axes = np.linalg.eigh(full[0] if family.orientation == "E" else full)
    if family.orientation == "E":  # components share axes, which those of the first may not tell
        values, axes = _common(full)
    if family.diagonal:
        axes, values = np.broadcast_to(np.eye(d), full.shape), np.diagonal(full, axis1=1, axis2=2)
    made += _moves(family.volume, full[:, None])
    shapes = np.zeros((K, 0, d, d))
    if not family.isotropic and d > 1:
        pull = np.eye(d)[:-1] - np.eye(d)[-1]
        shapes = np.einsum("kia,kta,kja->ktij", axes, values[:, None] * pull, axes)
    made += _moves(family.shape, shapes)
    first, second = np.triu_indices(d, 1)
    turns = np.zeros((K, len(first), d, d))
    if not family.diagonal:
        apart = values[:, second] - values[:, first]
        turns = np.einsum("kit,kt,kjt->ktij", axes[:, :, first], apart, axes[:, :, second])
        turns = turns + turns.swapaxes(-1, -2)
    made += _moves(family.orientation, turns)
    return _independent(made)


def _factor_moves(parts: Floats) -> Floats:
    """Return changes (K, n, d, d) of loadings times their transpose plus own variances, entry by entry."""
    K, d, q = parts.shape[0], parts.shape[1], parts.shape[2] - 1
    moves = np.zeros((K, d * q + d, d, d))
    for i in range(d):
        for f in range(q):
            moves[:, i * q + f, i] = parts[:, :, f]
        moves[:, d * q + i, i, i] = 0.5
    return moves + moves.swapaxes(-1, -2)


def _independent(made: list[Floats]) -> Floats:
    """Return an orthonormal basis of moves, over the halves of all components."""
    d = made[0].shape[1]
    rows, columns = half(d)
    flat = np.stack(made)[:, :, rows, columns].reshape(len(made), -1).T
    left, size, _ = np.linalg.svd(
        flat / np.maximum(np.linalg.norm(flat, axis=0), np.finfo(float).tiny), full_matrices=False
    )
    return left[:, size > FLAT * size[0]]


def _common(full: Floats) -> tuple[Floats, Floats]:
    """Return variances (K, d) along axes in common, and these (K, d, d)."""
    weights = np.linspace(1.0, 2.0, len(full))  # so that axes of equal variance in one component are told by others
    axes = np.linalg.eigh(np.tensordot(weights / np.trace(full, axis1=1, axis2=2), full, 1))[1]
    return np.einsum("ia,kij,ja->ka", axes, full, axes), np.broadcast_to(axes, full.shape)


def _moves(letter: str, each: Floats) -> list[Floats]:
    """Return moves (K, d, d): those of `each` component (K, n, d, d) alone, of all together, or none."""
    K, n, d, _ = each.shape
    if letter == "I":
        return []
    if letter == "E":
        return [each[:, t] for t in range(n)]
    alone = []
    for k in range(K):
        for t in range(n):
            move = np.zeros((K, d, d))
            move[k] = each[k, t]
            alone.append(move)
    return alone
