"""Levels for which a feature has no rows, as one that was never measured at a site."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from residmix.design.design import Design
from residmix.design.terms import Term
from residmix.moments.fit import LinearFit
from residmix.moments.linear import Moments

__all__ = ["NO_SHARE", "Lost", "Unmeasured", "averaged", "unmeasured"]

Array = NDArray[np.float64]

# Shares of rows are sums of millions of roundings at most.
NO_SHARE = 1e-11

# Some columns of the design (w,), what stands there in rows that features lack (u, w), and which lack them (u, d).
Lost = tuple[NDArray[np.intp], Array, NDArray[np.bool_]]


@dataclass(frozen=True)
class Unmeasured:
    """A factor for which some feature has no rows in some of the L levels.

    Attributes
    ----------
    term : Term
    lacking : ndarray of bool (L, d)
    rows : ndarray (L, w)
        Design columns of the levels; empty for an absorbed factor.
    """

    term: Term
    lacking: NDArray[np.bool_]
    rows: Array

    @property
    def columns(self) -> NDArray[np.intp]:
        return np.arange(self.term.columns.start, self.term.columns.stop)

    @property
    def lost(self) -> Lost:
        """Rows of levels that some feature lacks, and which features."""
        some = self.lacking.any(axis=1)
        return self.columns, self.rows[some], self.lacking[some]

    def directions(self, q: int) -> Array:
        """Return the directions in which the coefficients aren't identified, one per level, (q, L)."""
        whole = np.zeros((q, len(self.rows)))
        whole[self.columns] = _indicators(self.rows)[1].T
        return whole


def unmeasured(design: Design, fit: LinearFit, moments: Moments) -> list[Unmeasured]:
    """Return the removed factors with levels for which some feature has no rows."""
    found = []
    for term in design.terms:
        if term.preserved or term.kind not in ("factor", "absorbed"):
            continue
        if term.factor is not None:
            rows = np.empty((len(term.levels), 0))
            lacking = np.isnan(fit.effects[term.factor])
        else:
            rows = design.level_rows(term)
            start, turn = _indicators(rows)
            shares = start + moments.linear.mean_a[:, term.columns] @ turn.T  # (g, L)
            lacking = np.broadcast_to((shares <= NO_SHARE).T, (len(term.levels), len(fit.rss)))
        lacking = lacking & (fit.count > 0)
        if lacking.any():
            found.append(Unmeasured(term, lacking, rows))
    return found


def averaged(design: Design, fit: LinearFit, moments: Moments) -> LinearFit:
    """Return the fit in which levels without rows get the unweighted average effect of the feature's other levels.

    Before this step the coding gave them the effect of the reference level.
    """
    lost = [one for one in unmeasured(design, fit, moments) if one.term.factor is None]
    if not lost:
        return fit
    coef, constant = fit.coef.copy(), fit.constant.copy()
    for one in lost:
        columns, lacking = one.columns, one.lacking
        start, turn = _indicators(one.rows)
        known = ~lacking & (np.arange(len(one.rows)) < design.n_known_levels(one.term))[:, None]
        effects = one.rows @ coef[columns]
        average = np.sum(effects * known, axis=0) / np.maximum(known.sum(axis=0), 1)
        change = np.where(lacking & known.any(axis=0), average - effects, 0.0)
        added = turn.T @ change
        coef[columns] += added
        constant += start @ change + fit.origin_a[columns] @ added
    return replace(fit, coef=coef, constant=constant)


def _indicators(levels: Array) -> tuple[Array, Array]:
    """Return `start` (L,) and `turn` (L, w), so that a row of indicators of the levels is ``start + turn @ a``."""
    solved = np.linalg.pinv(np.column_stack([np.ones(len(levels)), levels]))
    return solved[0], solved[1:].T
