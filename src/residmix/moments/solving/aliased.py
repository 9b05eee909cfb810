r"""The choice among least-squares solutions of a rank-deficient design: the one with the smallest contributions.

Let :math:`A_t b_t` be the contribution of term t to the (centred) rows. Of all coefficients b with the same fit, those
are chosen whose preserved part :math:`\sum_{t\,preserved} A_t b_t` has the least norm over the rows; of these, those
with the least norm of the last term's contribution; then of the last but one, and so on. So effects shared by removed
and preserved terms are attributed to the removed ones, and those shared by several terms to the earliest. These norms
depend only on the spans of the terms: not on the features' means, units, reference levels or the order of levels, as a
norm of coefficients would.

With N a basis of the directions of b that don't change the fit, the k-th minimum is over :math:`b + N c`: :math:`c =
-(A_t N)^{+} A_t b`, and N shrinks to the null space of :math:`A_t N`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "MOVES",
    "Aliases",
    "Part",
    "absorbed_first",
    "aliases_of",
    "least_contributions",
    "own_columns",
]

Array = NDArray[np.float64]

# A direction of unit norm (of columns with unit spread) that contributes less than this contributes nothing.
_NOTHING = 1e-7
# A coefficient that moves by more than this along such a direction isn't determined.
MOVES = 1e-6


class Part(Protocol):
    """Columns whose contribution counts as one, such as a :class:`residmix.design.terms.Term`."""

    @property
    def columns(self) -> slice: ...
    @property
    def preserved(self) -> bool: ...
    @property
    def factor(self) -> int | None: ...


@dataclass(frozen=True)
class _Column:
    columns: slice
    preserved: bool = False
    factor: int | None = None


def own_columns(q: int) -> tuple[Part, ...]:
    """Return each of q columns as a part of its own."""
    return tuple(_Column(slice(k, k + 1)) for k in range(q))


def absorbed_first(n_factors: int, q: int) -> tuple[Part, ...]:
    """Return absorbed factors, then each of q columns, as parts of their own."""
    return (*(_Column(slice(0, 0), factor=f) for f in range(n_factors)), *own_columns(q))


@dataclass(frozen=True)
class Aliases:
    """The choice of a solution in the null space of a design.

    Attributes
    ----------
    project : ndarray (q, q)
        ``project @ b`` has the same fit as b and the smallest contributions.
    unknown : ndarray of bool (q,)
        Coefficients that can't be estimated, given the columns of their own and of earlier terms.
    within : ndarray (q, m)
        Directions that change no term's contribution to any row.
    """

    project: Array
    unknown: NDArray[np.bool_]
    within: Array


def stages(parts: Sequence[Part]) -> list[list[Part]]:
    """Return the parts whose contributions are minimised together, in turn."""
    preserved = [part for part in parts if part.preserved]
    return [*([preserved] if len(preserved) > 1 else []), *([part] for part in reversed(parts))]


def aliases_of(roots: Array, null: Array, parts: Sequence[Part], tolerance: float) -> Aliases:
    """Return the choice of a solution along directions (q, k) of coefficients that don't change the fit.

    Parameters
    ----------
    roots : ndarray (r, q)
        ``roots' roots`` is the scatter of the columns, which have unit spread.
    null : ndarray (q, k)
        Orthonormal.
    tolerance : float
        Below which contributions count as zero.
    """
    q = len(null)
    project, unknown = np.eye(q), np.zeros(q, dtype=bool)
    smallest = max(tolerance, _NOTHING)
    free = null
    for part in reversed(parts):
        columns = part.columns
        unknown[columns] = np.linalg.norm(free[columns], axis=1) > MOVES
        free = free @ _kernel(roots[:, columns] @ free[columns], smallest)[2]
    free = null
    for stage in stages(parts):
        where = np.concatenate([np.arange(q)[part.columns] for part in stage])
        left, inverse, rest = _kernel(roots[:, where] @ free[where], smallest)
        project -= free @ (inverse @ (left.T @ (roots[:, where] @ project[where])))
        free = free @ rest
    # what is left moves columns within terms, and no row: a level that no row has, or columns that are alike
    return Aliases(project - free @ (free.T @ project), unknown, free)


def _kernel(image: Array, smallest: float) -> tuple[Array, Array, Array]:
    """Return U, V / s of the singular value decomposition of an image (r, k), and a basis of its null space."""
    left, values, right = np.linalg.svd(image, full_matrices=True)
    rank = int(np.count_nonzero(values > smallest))
    return left[:, :rank], right[:rank].T / values[:rank], right[rank:].T


def least_contributions(scatter: Array, parts: Sequence[Part]) -> Array:
    """Return the matrix (q, q) that takes coefficients to those of least contributions, from a scatter alone."""
    scale = np.sqrt(np.maximum(np.diagonal(scatter), 0.0))
    scale = np.where(scale > 0, scale, 1.0)
    values, vectors = np.linalg.eigh(scatter / scale[:, None] / scale)
    null = values <= 1e-12 * np.max(values, initial=0.0)
    roots = np.sqrt(np.where(null, 0.0, values))[:, None] * vectors.T
    return aliases_of(roots, vectors[:, null], parts, 0.0).project / scale[:, None] * scale
