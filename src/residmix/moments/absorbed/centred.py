"""Scatter of contributions along many directions, most of which are orthogonal to each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.linalg import cho_solve
from scipy.linalg.lapack import dpstrf

__all__ = ["Centred", "Independent", "pivoted", "plain"]

Array = NDArray[np.float64]

# So many directions may meet others; the work grows with their cube, and with all others times their square.
_MEETING = 500


@dataclass(frozen=True)
class Independent:
    """Independent directions (p,), their solver, and the others (k,) as combinations of them, (p, k)."""

    pivots: NDArray[np.int64]
    others: NDArray[np.int64]
    solve: Callable[[Array], Array]
    made: Array


@dataclass(frozen=True)
class Centred:
    r""":math:`H = G - t t' / W`, scatter of contributions with products G and sums t over rows of weight W.

    With nested factors there is a direction for each level of the outer one, and G is nearly diagonal. The diagonal
    part is eliminated with the formula of Sherman and Morrison, since a dense solver would cost the cube of the number
    of levels.

    Attributes
    ----------
    products : ndarray or sparse (m, m)
    total : ndarray (m,)
    weight : float
    """

    products: Any
    total: Array
    weight: float = 1.0

    @property
    def before(self) -> Array:
        """Squares before they are centred, (m,)."""
        return np.asarray(self.products.diagonal())

    @property
    def squares(self) -> Array:
        return self.before - self.total**2 / self.weight

    def _part(self, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> Array:
        return plain(self.products[rows][:, columns]) - np.outer(self.total[rows], self.total[columns]) / self.weight

    def independent(self, smallest: float) -> Independent:
        """Return which directions contribute more than `smallest`, beyond what other ones do."""
        size = len(self.total)
        moving = self.squares > smallest
        if not moving.any():
            return Independent(np.empty(0, np.int64), np.arange(size), lambda right: right, np.empty((0, size)))
        if sparse.issparse(self.products):
            apart = moving & _apart(self.products)
            if np.count_nonzero(~apart) <= _MEETING and np.count_nonzero(apart) > 1:
                return self._eliminated(apart, smallest)
        whole = plain(self.products) - np.outer(self.total, self.total) / self.weight
        lower, pivots, others = pivoted(whole, smallest)
        solve = partial(cho_solve, (lower, True))
        return Independent(pivots, others, solve, np.asarray(solve(whole[np.ix_(pivots, others)])))

    def _eliminated(self, apart: NDArray[np.bool_], smallest: float) -> Independent:
        own = self.before
        # without the one that holds most of the weight, what is left of it isn't lost in rounding
        heaviest = np.flatnonzero(apart)[np.argmax((self.total**2)[apart] / own[apart])]
        one, two = np.flatnonzero(apart & (np.arange(len(apart)) != heaviest)), np.flatnonzero(~apart)
        two = np.append(two, heaviest)
        total, own = self.total[one], own[one]
        turned = total / own
        left = self.weight - total @ turned

        def first(right: Array) -> Array:
            return right / own[:, None] + np.outer(turned, turned @ right) / left

        across = self._part(one, two)
        solved = first(across)
        schur = self._part(two, two) - across.T @ solved
        lower, pivots, others = pivoted((schur + schur.T) / 2, smallest)

        def solve(right: Array) -> Array:
            upper, n = first(right[: len(one)]), len(one)
            if not len(pivots):
                return upper
            rest = cho_solve((lower, True), right[n:] - across[:, pivots].T @ upper)
            return np.vstack([upper - solved[:, pivots] @ rest, rest])

        chosen = np.concatenate([one, two[pivots]])
        return Independent(chosen, two[others], solve, solve(self._part(chosen, two[others])))


def _apart(products: Any) -> NDArray[np.bool_]:
    """Return directions that have no products with each other: without those that meet most others, in turn."""
    table = sparse.csr_array(products)
    meets = table != 0
    degree = np.asarray(meets.sum(axis=1)).ravel() - (table.diagonal() != 0)
    apart = np.ones(len(degree), dtype=bool)
    for _ in range(_MEETING):
        most = int(np.argmax(degree))
        if degree[most] == 0:
            return apart
        apart[most] = False
        degree[meets.indices[meets.indptr[most] : meets.indptr[most + 1]]] -= 1
        degree[most] = 0
    return np.zeros_like(apart)


def plain(matrix: Any) -> Array:
    return np.asarray(matrix.toarray() if sparse.issparse(matrix) else matrix)


def pivoted(matrix: Array, smallest: float) -> tuple[Array, NDArray[np.int64], NDArray[np.int64]]:
    """Return Cholesky's factor of a scaled matrix, its pivots down to what is `smallest`, and the other columns."""
    size = len(matrix)
    # LAPACK takes the first pivot whatever its size
    if not size or np.diagonal(matrix).max() <= smallest:
        return np.empty((0, 0)), np.empty(0, np.int64), np.arange(size)
    factor, pivot, rank, _ = dpstrf(matrix, tol=smallest, lower=1)
    order = pivot.astype(np.int64) - 1
    return np.tril(factor[:rank, :rank]), order[:rank], order[rank:]
