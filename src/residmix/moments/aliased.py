r"""Which of all least-squares fits, where columns determine each other: the one of least contributions.

Let :math:`A_t b_t` be what term t contributes to the (centred) rows. Of all coefficients b that fit alike, those are
taken whose preserved part :math:`\sum_{t\,preserved} A_t b_t` has the least norm over the rows; of these, those whose
last term's contribution has; then the last but one's, and so on. So removed terms take what they share with preserved
ones, and earlier terms what they share with later ones. Norms of contributions depend on the spans of the terms only:
neither on the features' means nor on units, reference levels or the order of levels, as a norm of coefficients does.

With N a basis of the directions of b that leave the fit as it is, the k-th minimum is over :math:`b + N c`:
:math:`c = -(A_t N)^{+} A_t b`, and N shrinks to the null space of :math:`A_t N`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.linalg import cho_solve
from scipy.linalg.lapack import dpstrf

__all__ = [
    "Aliases",
    "FactorAliases",
    "Part",
    "absorbed_first",
    "aliases_of",
    "least_contributions",
    "own_columns",
    "pivoted",
]

Array = NDArray[np.float64]

# A direction of unit norm (of columns with unit spread) that contributes less than this contributes nothing.
_NOTHING = 1e-7
# A coefficient that moves by more than this along such a direction isn't determined.
_MOVES = 1e-6


class Part(Protocol):
    """What contributes to the rows as one: :class:`residmix.design.terms.Term` is such a thing."""

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
    """What is to be done about the null space of a design.

    Attributes
    ----------
    project : ndarray (q, q)
        ``project @ b`` fits as b does, with least contributions.
    unknown : ndarray of bool (q,)
        Coefficients that the columns of their own and of earlier terms leave open.
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
    """Return what is to be done about directions (q, k) of coefficients that don't change the fit.

    Parameters
    ----------
    roots : ndarray (r, q)
        ``roots' roots`` is the scatter of the columns, which have unit spread.
    null : ndarray (q, k)
        Orthonormal.
    tolerance : float
        Up to which contributions of nothing are known.
    """
    q = len(null)
    project, unknown = np.eye(q), np.zeros(q, dtype=bool)
    smallest = max(tolerance, _NOTHING)
    free = null
    for part in reversed(parts):
        columns = part.columns
        unknown[columns] = np.linalg.norm(free[columns], axis=1) > _MOVES
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


# ---- beside absorbed factors -----------------------------------------------------------------------------------------

# Squared norms of contributions, of directions whose contributions have norm 1 in all, below which there are none.
_NO_SQUARE = 1e-9
# Below this share of numbers that aren't 0, directions are kept as a sparse matrix.
_SPARSE = 0.05


class Remaining(Protocol):
    """Normal equations with one factor eliminated, as :mod:`residmix.moments.solve_absorbed` has them."""

    @property
    def first(self) -> int:
        """Return which factor is eliminated."""

    @property
    def inverse(self) -> Array:
        """Return 1 / weight of its levels (L1,), 0 for those without rows."""

    @property
    def link(self) -> sparse.csr_array:
        """Return the part (r, L1) of the equations that the remaining unknowns share with it."""

    @property
    def places(self) -> dict[int, slice]:
        """Return where the other factors' levels are among the remaining unknowns, and at -1 the dense columns."""

    @property
    def weights(self) -> list[Array]:
        """Return the weights of the levels, by factor."""

    @property
    def scatter(self) -> Array:
        """Return that of the dense columns (q, q), each with a sum of squares of 1."""


@dataclass(frozen=True)
class _Block:
    """What contributes: the levels of a factor, or some dense columns. Directions (r, m) may be sparse."""

    system: Remaining
    factor: int | None
    where: NDArray[np.int64]  # among the remaining unknowns

    def of_direction(self, rest: Array) -> Array:
        """Return the change of the block's own unknowns along directions that leave the fit as it is."""
        if self.factor == self.system.first:
            return -self.system.inverse[:, None] * (self.system.link.T @ rest)
        return rest[self.where]

    def back(self, own: Array) -> Array:
        """Return the transpose of `of_direction`, applied to the block's own unknowns."""
        if self.factor == self.system.first:
            return -(self.system.link @ (self.system.inverse[:, None] * own))
        rest = np.zeros((self.system.link.shape[0], own.shape[1]))
        rest[self.where] = own
        return rest

    def of(self, first: Array, rest: Array) -> Array:
        return first if self.factor == self.system.first else rest[self.where]

    def times_scatter(self, own: Array) -> Array:
        """Return the scatter of the block's (centred) contributions times its unknowns."""
        if self.factor is None:
            at = self.where - self.system.places[-1].start
            return self.system.scatter[np.ix_(at, at)] @ own
        weight = self.system.weights[self.factor]
        return weight[:, None] * (own - weight @ own / (weight.sum() or 1.0))

    def squares(self, null: Any) -> tuple[Array, Array]:
        """Return the scatter (m, m) of contributions along directions, and their squares before these are centred."""
        system = self.system
        if self.factor is None:
            at = self.where - system.places[-1].start
            own = null[self.where]
            whole = _plain(own.T @ (system.scatter[np.ix_(at, at)] @ own))
            return whole, np.diagonal(whole)
        weight = system.weights[self.factor]
        if self.factor == system.first:
            whole = _plain(null.T @ ((system.link * system.inverse) @ (system.link.T @ null)))
            total = -np.asarray(null.T @ np.asarray(system.link.sum(axis=1)).ravel())
        else:
            own = null[self.where]
            whole = _plain(own.T @ (sparse.diags_array(weight) @ own))
            total = np.asarray(own.T @ weight)
        return whole - np.outer(total, total) / (weight.sum() or 1.0), np.diagonal(whole)


@dataclass(frozen=True)
class _Step:
    """One minimum: ``c = -H^{-1} N' G b`` for directions N of which the block's contributions are independent."""

    block: _Block
    directions: Any  # (r, p)
    factor: tuple[Array, bool]  # of Cholesky, of H

    def coefficients(self, first: Array, rest: Array) -> Array:
        along = self.directions.T @ self.block.back(self.block.times_scatter(self.block.of(first, rest)))
        return -np.asarray(cho_solve(self.factor, along))


class FactorAliases:
    """What is to be done about the null space of a design with absorbed factors.

    Parameters
    ----------
    system : Remaining
    null : ndarray (r, k)
        Directions of the remaining unknowns, which take the eliminated factor's levels with them.
    parts : sequence of Part
        In order.

    Attributes
    ----------
    unknown : ndarray of bool (q,)
        Dense coefficients that can't be estimated.
    null : ndarray or sparse (r, m)
        Directions that change the contribution of some part.
    """

    def __init__(self, system: Remaining, null: Array, parts: Sequence[Part]) -> None:
        self._system = system
        dense = np.arange(system.places[-1].start, system.places[-1].stop)
        if np.count_nonzero(null) < _SPARSE * null.size:  # factors that are nested
            null = sparse.csr_array(null)
        found = [_block(system, dense, [part]).squares(null) for part in parts]
        size = np.sqrt(sum((np.maximum(np.diagonal(own), 0.0) for own, _ in found), np.zeros(null.shape[1])))
        # two factors always share a constant, which contributes nothing: relative to what isn't centred
        moves = np.flatnonzero(size > np.sqrt(_NO_SQUARE * sum(before for _, before in found)))
        if not len(moves):  # scipy doesn't scale matrices without columns
            null = _plain(null)
        scaled = null[:, moves] * (1.0 / size[moves])
        self.null = sparse.csr_array(scaled) if sparse.issparse(scaled) else scaled
        self.unknown = np.zeros(len(dense), dtype=bool)
        self._steps = []
        free, each = self.null, [[part] for part in reversed(parts)]
        for stage in each:
            for part in stage:
                moved = abs(_plain(free[dense[part.columns]]))
                self.unknown[part.columns] = np.any(moved > _MOVES, axis=1)
            step, free = _minimum(_block(system, dense, stage), free)
            self._steps += [step] if step is not None else []
        if stages(parts) != each:
            self._steps, free = [], self.null
            for stage in stages(parts):
                step, free = _minimum(_block(system, dense, stage), free)
                self._steps += [step] if step is not None else []

    def of_columns(self) -> Array:
        """Return the part of the directions that the dense columns have, (q, m)."""
        return _plain(self.null[self._system.places[-1]])

    def settled(self, first: Array, rest: Array) -> tuple[Array, Array]:
        """Return effects (L1, d) and other unknowns (r, d) that fit as these do, with least contributions."""
        system = self._system
        for step in self._steps:
            change = step.directions @ step.coefficients(first, rest)
            first, rest = first - system.inverse[:, None] * (system.link.T @ change), rest + change
        return first, rest

    def transposed(self, rest: Array) -> tuple[Array, Array]:
        """Return the transpose of `settled`, applied to (0, rest)."""
        system = self._system
        first = np.zeros((len(system.inverse), rest.shape[1]))
        for step in reversed(self._steps):
            along = step.directions.T @ (rest - system.link @ (system.inverse[:, None] * first))
            own = step.block.times_scatter(step.block.of_direction(step.directions @ cho_solve(step.factor, along)))
            if step.block.factor == system.first:
                first = first - own
            else:
                rest = rest.copy()
                rest[step.block.where] -= own
        return first, rest


def _block(system: Remaining, dense: NDArray[np.int64], stage: Sequence[Part]) -> _Block:
    factor = stage[0].factor
    if factor is None:
        return _Block(system, None, np.concatenate([dense[part.columns] for part in stage]))
    place = system.places.get(factor, slice(0, 0))
    return _Block(system, factor, np.arange(place.start, place.stop))


def _minimum(block: _Block, free: Array) -> tuple[_Step | None, Array]:
    """Return the step that minimises the block's contribution along `free`, and what it leaves free."""
    squares, _ = block.squares(free)
    lower, pivots, others = pivoted(squares, _NO_SQUARE)
    if not len(pivots):
        return None, free
    directions = free[:, pivots]
    solved = cho_solve((lower, True), squares[np.ix_(pivots, others)])
    return _Step(block, directions, (lower, True)), _plain(free[:, others]) - directions @ solved


def _plain(matrix: Any) -> Array:
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
