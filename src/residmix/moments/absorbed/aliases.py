"""The choice among least-squares solutions with absorbed factors, as in :mod:`residmix.moments.solving.aliased`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from residmix.moments.absorbed.centred import Centred, Independent, plain
from residmix.moments.solving.aliased import MOVES, Part, stages

__all__ = ["FactorAliases", "Remaining"]

Array = NDArray[np.float64]

# Squared norms of contributions, of directions whose contributions have norm 1 in all, below which there are none.
_NO_SQUARE = 1e-9
# Below this share of numbers that aren't 0, directions are kept as a sparse matrix.
_SPARSE = 0.05


class Remaining(Protocol):
    """Normal equations with one factor eliminated, as :mod:`residmix.moments.absorbed.system` has them."""

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
    """The levels of a factor, or some dense columns. Directions (r, m) may be sparse."""

    system: Remaining
    factor: int | None
    where: NDArray[np.int64]  # among the remaining unknowns

    def of_direction(self, rest: Array) -> Array:
        """Return the change of the block's own unknowns along directions that don't change the fit."""
        if self.factor == self.system.first:
            return np.asarray(-self.system.inverse[:, None] * (self.system.link.T @ rest))
        return rest[self.where]

    def back(self, own: Array) -> Array:
        """Return the transpose of `of_direction`, applied to the block's own unknowns."""
        if self.factor == self.system.first:
            return np.asarray(-(self.system.link @ (self.system.inverse[:, None] * own)))
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

    def scatter(self, null: Any) -> Centred:
        """Return the scatter (m, m) of contributions along directions."""
        system = self.system
        if self.factor is None:
            at = self.where - system.places[-1].start
            own = null[self.where]
            return Centred(own.T @ (system.scatter[np.ix_(at, at)] @ own), np.zeros(null.shape[1]))
        weight = system.weights[self.factor]
        if self.factor == system.first:
            products = null.T @ ((system.link * system.inverse) @ (system.link.T @ null))
            total = -np.asarray(null.T @ np.asarray(system.link.sum(axis=1)).ravel())
        else:
            own = null[self.where]
            products = own.T @ (sparse.diags_array(weight) @ own)
            total = np.asarray(own.T @ weight)
        return Centred(products, total, float(weight.sum()) or 1.0)


@dataclass(frozen=True)
class _Step:
    """One minimum: ``c = -H^{-1} N' G b`` for directions N of which the block's contributions are independent."""

    block: _Block
    directions: Any  # (r, p)
    solve: Callable[[Array], Array]  # H^{-1}

    def coefficients(self, first: Array, rest: Array) -> Array:
        along = self.directions.T @ self.block.back(self.block.times_scatter(self.block.of(first, rest)))
        return -np.asarray(self.solve(along))


class FactorAliases:
    """The choice of a solution in the null space of a design with absorbed factors.

    Parameters
    ----------
    system : Remaining
    null : ndarray or sparse (r, k)
        Directions of the remaining unknowns, which determine those of the eliminated factor's levels.
    parts : sequence of Part
        In order.

    Attributes
    ----------
    unknown : ndarray of bool (q,)
        Dense coefficients that can't be estimated.
    null : ndarray or sparse (r, m)
        Directions that change the contribution of some part.
    """

    def __init__(self, system: Remaining, null: Any, parts: Sequence[Part]) -> None:
        self._system = system
        dense = np.arange(system.places[-1].start, system.places[-1].stop)
        if not sparse.issparse(null) and np.count_nonzero(null) < _SPARSE * null.size:  # factors that are nested
            null = sparse.csr_array(null)
        found = [_block(system, dense, [part]).scatter(null) for part in parts]
        size = np.sqrt(sum((np.maximum(own.squares, 0.0) for own in found), np.zeros(null.shape[1])))
        # two factors always share a constant, which contributes nothing: relative to what isn't centred
        moves = np.flatnonzero(size > np.sqrt(_NO_SQUARE * sum(own.before for own in found)))
        if not len(moves):  # scipy doesn't scale matrices without columns
            null = plain(null)
        scaled = null[:, moves] * (1.0 / size[moves])
        self.null = sparse.csr_array(scaled) if sparse.issparse(scaled) else scaled
        self.unknown = np.zeros(len(dense), dtype=bool)
        self._steps = []
        free, each = self.null, [[part] for part in reversed(parts)]
        for stage in each:
            for part in stage:
                moved = abs(plain(free[dense[part.columns]]))
                self.unknown[part.columns] = np.any(moved > MOVES, axis=1)
            step, free = _minimum(_block(system, dense, stage), free)
            self._steps += [step] if step is not None else []
        if stages(parts) != each:
            self._steps, free = [], self.null
            for stage in stages(parts):
                step, free = _minimum(_block(system, dense, stage), free)
                self._steps += [step] if step is not None else []

    def of_columns(self) -> Array:
        """Return the part of the directions that the dense columns have, (q, m)."""
        return plain(self.null[self._system.places[-1]])

    def settled(self, first: Array, rest: Array) -> tuple[Array, Array]:
        """Return effects (L1, d) and other unknowns (r, d) with the same fit and the smallest contributions."""
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
            own = step.block.times_scatter(step.block.of_direction(step.directions @ step.solve(along)))
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
    found: Independent = block.scatter(free).independent(_NO_SQUARE)
    if not len(found.pivots):
        return None, free
    directions = free[:, found.pivots]
    return _Step(block, directions, found.solve), plain(free[:, found.others]) - directions @ found.made
