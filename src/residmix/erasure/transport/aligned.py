r"""Groups brought to one location and covariance, and spreads along numbers to one, before a mixture is fitted.

.. math:: u = c + \frac{x - c - B'(m - \bar m)}{s(m)} T_g

B is from least squares, s from the regression of log sizes on numbers, and :math:`T_g` the map from the covariance of
group g to the pooled one, :math:`S`, that moves rows least in the metric of S: :math:`S^{-1/2} (S^{-1/2} S_g
S^{-1/2})^{-1/2} S^{1/2}` (Gelbrich 1990). It's one to one, and a mixture of u is one of x: nothing is lost by it. But
the components of u are what groups have in common, where those of x might be the groups themselves.

References
----------
Gelbrich, "On a formula for the L2 Wasserstein metric between measures on Euclidean and Hilbert spaces", Mathematische
Nachrichten 147:185-203, 1990.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from residmix.erasure.transport.along import Along, along

__all__ = ["Aligned", "aligned", "find_groups", "prior_rows"]

Floats = NDArray[np.float64]

# Directions whose variance is below this share of the largest aren't turned.
FLAT = 1e-9
# So many rows for each that a prior would count are enough without one.
ENOUGH, LEAST = 10.0, 1e-4
# Rows that are turned into a triangle at once.
AT_ONCE = 1 << 14


def prior_rows(d: int, mass: float) -> float:
    """Return how many rows of the shared covariance a prior counts where `mass` rows determine one of d features.

    d + 2 of them if there are no others, and next to none from ten times as many on: in a direction in which a group
    has a hundredth of the spread of the others, a few rows of theirs would outweigh all of its own.
    """
    return max((d + 2.0) * (1.0 - mass / (ENOUGH * (d + 2.0))), LEAST)


@dataclass(frozen=True)
class Aligned:
    """The fitted maps.

    Attributes
    ----------
    columns : ndarray of int (c,)
        The design columns that tell groups apart.
    patterns : ndarray (G, c)
        Their values in each group.
    centre : ndarray (d,)
    origin : ndarray (n_removed,)
    slope : ndarray (n_removed, d)
    along : Along
        Log spreads along numbers, of all components together (K = 1).
    turn, back : ndarray (G + 1, d, d)
        T and its inverse; the last ones, I, are for rows of no group.
    """

    columns: NDArray[np.intp]
    patterns: Floats
    centre: Floats
    origin: Floats
    slope: Floats
    along: Along
    turn: Floats
    back: Floats

    def _about(self, a: Floats) -> tuple[Floats, Floats, NDArray[np.intp]]:
        where = self.centre + (a[:, : len(self.origin)] - self.origin) @ self.slope
        return where, self.along.at(a)[:, 0], find_groups(a, self.columns, self.patterns)

    def into(self, x: Floats, a: Floats) -> Floats:
        """Return u (n, d) of rows x (n, d) with design rows a (n, q)."""
        where, spread, group = self._about(a)
        return self.centre + _turned((x - where) / spread, self.turn, group)

    def out_of(self, u: Floats, a: Floats) -> Floats:
        """Return the rows x (n, d) of u: the inverse of `into`."""
        where, spread, group = self._about(a)
        return where + _turned(u - self.centre, self.back, group) * spread

    def log_slope(self, a: Floats) -> Floats:
        """Return log |du / dx|, (n,)."""
        _, spread, group = self._about(a)
        return np.asarray(np.linalg.slogdet(self.turn)[1][group] - np.log(spread).sum(axis=1))


def find_groups(a: Floats, columns: NDArray[np.intp], patterns: Floats) -> NDArray[np.intp]:
    """Return the group of each design row (n,); G for none."""
    values, none = a[:, columns], len(patterns)
    if not none:
        return np.full(len(a), none, dtype=np.intp)
    # a number for each row, of which equal rows have equal ones to the bit: much quicker than to sort rows
    factor = np.random.default_rng(0).uniform(1.0, 2.0, len(columns))
    keys = [np.zeros(len(rows)) for rows in (values, patterns)]
    for j, f in enumerate(factor):
        keys = [key + f * rows[:, j] for key, rows in zip(keys, (values, patterns), strict=True)]
    order = np.argsort(keys[1], kind="stable")
    place = np.searchsorted(keys[1][order], keys[0]).clip(max=none - 1)
    found = order[place]
    return np.where((patterns[found] == values).all(axis=1), found, none)


def _turned(rows: Floats, maps: Floats, group: NDArray[np.intp]) -> Floats:
    made = np.empty_like(rows)
    for g in np.unique(group):
        here = group == g
        made[here] = rows[here] @ maps[g]
    return made


def aligned(
    x: Floats,
    a: Floats,
    weight: Floats,
    n_removed: int,
    columns: NDArray[np.intp],
    numbers: NDArray[np.intp],
    patterns: Floats,
    labels: NDArray[np.intp] | None = None,
) -> Aligned:
    """Fit the maps to rows x (n, d) with design rows a (n, q); with `labels`, location and covariance are within these.

    Without them groups of other shares of components have other means and covariances.
    """
    d, total = x.shape[1], weight.sum()
    centre, mean = weight @ x / total, weight @ a / total
    group = find_groups(a, columns, patterns)
    cells = np.eye(labels.max() + 1)[labels] if labels is not None else np.empty((len(x), 0))
    design = np.hstack([a - mean, cells - weight @ cells / total])
    coef = _least_squares(design, x - centre, weight)
    rest = x - centre
    rest -= design @ coef
    del cells, design  # as large as the rows
    if labels is not None:
        rest = _within(rest, weight, group * (labels.max() + 1) + labels)
    spread = along(rest[:, None], weight[:, None], a, numbers)
    rest = rest / spread.at(a)[:, 0]
    unit = np.sqrt(weight @ rest**2 / total)
    unit = np.where(unit > 0, unit, 1.0)
    rest = rest / unit
    pooled = (rest * weight[:, None]).T @ rest / total
    root, unroot = _roots(pooled)
    turn = np.repeat(np.eye(d)[None], len(patterns) + 1, axis=0)
    back = turn.copy()
    for g in range(len(patterns)):
        here = group == g
        prior = prior_rows(d, float(weight[here].sum()))
        own = (rest[here] * weight[here, None]).T @ rest[here]
        white = unroot @ (own + prior * pooled) @ unroot / (weight[here].sum() + prior)
        forth, unforth = _roots(white)
        turn[g] = unroot @ unforth @ root * (unit / unit[:, None])
        back[g] = unroot @ forth @ root * (unit / unit[:, None])
    return Aligned(
        columns, patterns, centre, mean[:n_removed], np.ascontiguousarray(coef[:n_removed]), spread, turn, back
    )


def _least_squares(design: Floats, x: Floats, weight: Floats) -> Floats:
    """Return the coefficients of weighted least squares, from the triangle of [design, x] made some rows at a time."""
    q = design.shape[1]
    scale = np.where(design.std(axis=0) > 0, design.std(axis=0), 1.0)
    triangle = np.empty((0, q + x.shape[1]))
    for first in range(0, len(x), AT_ONCE):
        rows = slice(first, first + AT_ONCE)
        some = np.hstack([design[rows] / scale, x[rows]]) * np.sqrt(weight[rows])[:, None]
        triangle = np.asarray(np.linalg.qr(np.vstack([triangle, some]), mode="r"))
    return np.asarray(np.linalg.lstsq(triangle[:q, :q], triangle[:q, q:], rcond=1e-10)[0] / scale[:, None])


def _within(rows: Floats, weight: Floats, cell: NDArray[np.intp]) -> Floats:
    """Return rows less the mean of their cell."""
    _, place = np.unique(cell, return_inverse=True)
    place = place.reshape(-1)
    sums = np.zeros((place.max() + 1, rows.shape[1]))
    np.add.at(sums, place, rows * weight[:, None])
    mass = np.bincount(place, weight)[:, None]
    return np.asarray(rows - (sums / np.maximum(mass, 1e-300))[place])


def _roots(matrix: Floats) -> tuple[Floats, Floats]:
    """Return the square root of a covariance and its inverse."""
    values, vectors = np.linalg.eigh(matrix)
    root = np.sqrt(np.maximum(values, FLAT * max(float(values[-1]), 1e-300)))
    return (vectors * root) @ vectors.T, (vectors / root) @ vectors.T
