r"""Coordinates in which a penalised spline is a sum of unpenalised columns and i.i.d. random effects.

With the penalty :math:`P = U_+ \operatorname{diag}(s) U_+'` and its null space :math:`U_0` (straight lines), the
coefficients :math:`b = U_0 \beta + U_+ s^{-1/2} u` have the roughness :math:`|u|^2`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from residmix.design.design import Design
from residmix.design.terms import Term
from residmix.effects.random.predicted import generalised_inverse, level_indicators
from residmix.moments.linear import LinearMoments
from residmix.moments.solving.aliased import least_contributions
from residmix.moments.solving.solve import constant_features

__all__ = ["Coordinates", "Curved", "coordinates", "curved", "penalised"]

Array = NDArray[np.float64]

# Beside its largest, an eigenvalue of a penalty below this is that of a straight line.
_STRAIGHT = 1e-10


@dataclass(frozen=True)
class Coordinates:
    """Coefficients are ``fixed @ beta + turn @ u``.

    Attributes
    ----------
    fixed : ndarray (q, f)
    turn : ndarray (q, r)
    parts : list of slice
        Where curves, then random terms, lie in u.
    straight : list of slice
        Where the straight part of each curve lies in beta.
    terms : list of Term
        With their columns in beta.
    """

    fixed: Array
    turn: Array
    parts: list[slice]
    straight: list[slice]
    terms: list[Term]


def coordinates(design: Design, random: Sequence[Term] = (), among: Sequence[Term] | None = None) -> Coordinates:
    """Return the coordinates of the curves of a design, and of factors whose effects are random; or of some terms."""
    q = len(design.column_names)
    fixed, turn, parts, straight, terms = [], [], [], [], []
    n_fixed = n_turned = 0
    asked = design.terms if among is None else among
    for term in (term for term in design.terms if term in asked):
        start = n_fixed
        if term.kind == "smooth":
            for curve in (curve for curve in design.curves if curve.term == term.name):
                values, vectors = np.linalg.eigh(curve.penalty)
                rough = values > _STRAIGHT * values[-1]
                free, bent = np.zeros((q, np.count_nonzero(~rough))), np.zeros((q, np.count_nonzero(rough)))
                free[curve.columns], bent[curve.columns] = (
                    vectors[:, ~rough],
                    vectors[:, rough] / np.sqrt(values[rough]),
                )
                fixed.append(free)
                turn.append(bent)
                straight.append(slice(n_fixed, n_fixed + free.shape[1]))
                parts.append(slice(n_turned, n_turned + bent.shape[1]))
                n_fixed, n_turned = straight[-1].stop, parts[-1].stop
        elif term not in random:
            fixed.append(np.eye(q)[:, term.columns])
            n_fixed += term.columns.stop - term.columns.start
        terms.append(replace(term, columns=slice(start, n_fixed)))
    for term in (term for term in random if term in asked):
        own = np.zeros((q, len(term.levels)))
        own[term.columns] = level_indicators(design.level_rows(term))[1]
        turn.append(own)
        parts.append(slice(n_turned, n_turned + own.shape[1]))
        n_turned = parts[-1].stop
    empty = np.zeros((q, 0))
    return Coordinates(np.hstack([empty, *fixed]), np.hstack([empty, *turn]), parts, straight, terms)


@dataclass(frozen=True)
class Curved:
    """Moments of u after adjustment for beta; g is 1, or d where features have different missing rows.

    Attributes
    ----------
    free : ndarray (g, f, f)
        Inverse of the scatter of the fixed columns.
    beside : ndarray (g, r, f)
        Cross products of the random columns with the fixed ones.
    products : ndarray (f, d)
        Of the fixed columns with the features.
    own : ndarray (g, r, r)
        Scatter of the random columns, adjusted for the fixed ones.
    turned : ndarray (r, d)
        Products of the random columns with the features, adjusted for the fixed ones.
    total, degrees : ndarray (d,)
        Residual sums of squares after the fixed columns, and rows less these columns and the intercept.
    rank : ndarray (g,)
        Of the fixed columns.
    identified : ndarray (g, f)
        How far each fixed column is identified: 1, or less where the other columns determine it.
    """

    free: Array
    beside: Array
    products: Array
    own: Array
    turned: Array
    total: Array
    degrees: Array
    rank: Array
    identified: Array

    def fixed_beside(self, effects: Array) -> Array:
        """Return beta (f, d), given effects u (r, d)."""
        left = self.products - _each(np.swapaxes(self.beside, 1, 2), effects)
        return _each(self.free, left)

    def straight(self, where: Coordinates) -> Array:
        """Return degrees of freedom (t, d) of the straight part of each curve."""
        found = np.array([self.identified[:, part].sum(axis=1) for part in where.straight])
        return np.broadcast_to(found, (len(where.straight), len(self.total))).copy()


def curved(moments: LinearMoments, where: Coordinates) -> Curved:
    """Return the moments in these coordinates."""
    F, Z = where.fixed, where.turn
    d = len(moments.offset_x)
    products = np.where(constant_features(moments), 0.0, moments.s_ax)
    scatter = F.T @ moments.s_aa @ F  # (g, f, f)
    free = np.stack([generalised_inverse(own) for own in scatter])
    beside = Z.T @ moments.s_aa @ F
    hat = free @ scatter
    rank = np.rint(np.einsum("gff->g", hat))
    fixed_products = F.T @ products
    solution = _each(free, fixed_products)
    own = Z.T @ moments.s_aa @ Z - beside @ free @ np.swapaxes(beside, 1, 2)
    squares = np.where(constant_features(moments), 0.0, moments.s_xx)
    return Curved(
        free,
        beside,
        fixed_products,
        0.5 * (own + np.swapaxes(own, 1, 2)),
        Z.T @ products - _each(beside, solution),
        np.maximum(squares - np.einsum("fd,fd->d", fixed_products, solution), 0.0),
        np.broadcast_to(moments.count - 1.0 - rank, d).copy(),
        rank,
        np.einsum("gff->gf", hat),
    )


def penalised(moments: LinearMoments, where: Coordinates, beside: Curved, effects: Array) -> Array:
    """Return all coefficients (q, d), given u (r, d); aliased fixed columns get the smallest contributions."""
    fixed = beside.fixed_beside(effects)
    for g, rank in enumerate(beside.rank):
        if rank < len(fixed):
            own = slice(None) if len(beside.rank) == 1 else slice(g, g + 1)
            scatter = where.fixed.T @ moments.s_aa[g] @ where.fixed
            fixed[:, own] = least_contributions(scatter, where.terms) @ fixed[:, own]
    return where.fixed @ fixed + where.turn @ effects


def _each(matrices: Array, columns: Array) -> Array:
    """Return the product of the one matrix with columns (k, d), or of each feature's own with its column."""
    if len(matrices) == 1:
        return np.asarray(matrices[0] @ columns)
    return np.asarray(np.einsum("dij,jd->id", matrices, columns))
