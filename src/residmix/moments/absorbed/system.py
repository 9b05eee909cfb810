"""Normal equations of absorbed factors with the largest one eliminated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from residmix.moments.absorbed.aliases import FactorAliases
from residmix.moments.absorbed.schur import ALIASED, schur_solver
from residmix.moments.absorbed.sums import FactorMoments
from residmix.moments.solving.aliased import Part, absorbed_first
from residmix.rows.threads import lazy

__all__ = ["System", "system_of"]

Array = NDArray[np.float64]


@dataclass
class System:
    """Normal equations with the largest factor eliminated."""

    moments: FactorMoments
    first: int
    others: list[int]
    starts: list[int]  # where each other factor begins among the remaining unknowns; then the columns, then the end
    inverse: Array  # 1 / (weight of the eliminated levels), 0 for levels without rows
    gram: sparse.csr_array  # (remaining, remaining)
    link: sparse.csr_array  # (remaining, L1)
    scale: Array  # (q,), of the dense columns
    solve: Callable[[Array], Array]
    kept: NDArray[np.bool_]  # unknowns that aren't aliased
    weakest: float
    condition: float
    weights: list[Array]
    scatter: Array
    parts: Sequence[Part]

    @property
    def places(self) -> dict[int, slice]:
        """Where the levels of the other factors are among the remaining unknowns, and at -1 the dense columns."""
        own = {f: slice(*at) for f, at in zip(self.others, pairwise(self.starts), strict=True)}
        return own | {-1: slice(self.starts[-1], len(self.kept))}

    @lazy
    def aliases(self) -> FactorAliases:
        """Null directions: each unknown without a pivot, less its combination of the others."""
        places = self.places
        active = np.zeros(len(self.kept), dtype=bool)
        for f in self.others:
            active[places[f]] = self.weights[f] > 0
        active[places[-1]] = np.diagonal(self.scatter) > 0
        left_out = np.flatnonzero(active & ~self.kept)
        # sparse, since levels of a nested factor meet few levels of the eliminated one
        through = (self.link * self.inverse) @ self.link[left_out].T
        root = np.sqrt(np.where(active, self.gram.diagonal(), 1.0))
        shared = sparse.csr_array(self.gram[:, left_out] - through)
        rounding = (
            abs(shared.data) <= ALIASED * np.repeat(root, np.diff(shared.indptr)) * root[left_out][shared.indices]
        )
        shared.data[rounding] = 0.0
        itself = sparse.csr_array((np.ones(len(left_out)), (left_out, np.arange(len(left_out)))), shape=shared.shape)
        if not shared.data.any():  # nested: the levels of the eliminated factor are all it takes
            return FactorAliases(self, itself, self.parts)
        null = -self.solve(shared.toarray())
        null[abs(null) * root[:, None] <= ALIASED * root[left_out]] = 0.0
        null[left_out, np.arange(len(left_out))] += 1.0
        return FactorAliases(self, null, self.parts)

    def settled_unknowns(self, x_first: Array, x_rest: Array) -> tuple[Array, Array]:
        """Return the solution with the smallest contributions."""
        found = self.unknowns(x_first, x_rest)
        return found if self.kept.all() else self.aliases.settled(*found)

    def covariance(self) -> Array:
        """Return that of the coefficients of the scaled dense columns, for a residual variance of 1."""
        unit = np.zeros((len(self.kept), len(self.scatter)))
        unit[self.places[-1]] = np.eye(len(self.scatter))
        if self.kept.all():
            return self.solve(unit)[self.places[-1]]
        first, rest = self.aliases.transposed(unit)
        solved = self.unknowns(first, rest)
        return np.asarray(first.T @ solved[0] + rest.T @ solved[1])

    def unknowns(self, x_first: Array, x_rest: Array) -> tuple[Array, Array]:
        """Return effects of the eliminated factor, and the other unknowns, for sums of the features."""
        rest = self.solve(x_rest - self.link @ (self.inverse[:, None] * x_first))
        return self.inverse[:, None] * (x_first - self.link.T @ rest), rest


def system_of(moments: FactorMoments, parts: Sequence[Part]) -> System:
    linear, sizes, sums = moments.linear, moments.sizes, moments.sums
    q = linear.s_aa.shape[1]
    first = int(np.argmax(sizes))
    others = [f for f in range(len(sizes)) if f != first]
    starts = [0, *np.cumsum([sizes[f] for f in others]).tolist()]
    weight = sums[first].weight
    inverse = np.where(weight > 0, 1.0 / np.where(weight > 0, weight, 1.0), 0.0)
    spread = np.sqrt(np.maximum(np.diagonal(linear.s_aa[0]), 0.0))
    varies = spread > 8 * np.finfo(float).eps * np.sqrt(linear.weight[0]) * np.abs(linear.mean_a[0])
    scale = np.where(varies, spread, 1.0)

    def columns(f: int) -> Array:  # sums of the centred, scaled dense columns by level
        return np.where(varies, (sums[f].a - sums[f].weight[:, None] * linear.offset_a[0]) / scale, 0.0)

    def table(f: int, g: int) -> sparse.csr_array:
        if f == g:
            return sparse.csr_array(sparse.diags_array(sums[f].weight))
        return moments.cells[f"{f}:{g}"].matrix() if f < g else moments.cells[f"{g}:{f}"].matrix().T.tocsr()

    dense = np.where(np.outer(varies, varies), linear.s_aa[0] / scale[:, None] / scale, 0.0)
    grid: list[list[sparse.csr_array]] = [
        [*(table(f, g) for g in others), sparse.csr_array(columns(f))] for f in others
    ]
    grid.append([*(sparse.csr_array(columns(g)).T.tocsr() for g in others), sparse.csr_array(dense)])
    gram = sparse.csr_array(sparse.block_array(grid)) if starts[-1] + q else sparse.csr_array((0, 0))
    link = sparse.csr_array(
        sparse.vstack([*(table(f, first) for f in others), sparse.csr_array(columns(first)).T])
        if starts[-1] + q
        else (0, sizes[first])
    )
    solve, kept, weakest, condition = schur_solver(gram, link, inverse, starts)
    parts = parts or absorbed_first(len(sizes), q)
    weights = [s.weight for s in sums]
    return System(
        moments,
        first,
        others,
        starts,
        inverse,
        gram,
        link,
        scale,
        solve,
        kept,
        weakest,
        condition,
        weights,
        dense,
        parts,
    )
