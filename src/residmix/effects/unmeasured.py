"""Levels that a feature has no rows of: it was never measured at a site, so its effect there can't be estimated."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from residmix.design.design import Design
from residmix.design.terms import Term
from residmix.moments.affine import WithEffects
from residmix.moments.fit import LinearFit
from residmix.moments.linear import Moments
from residmix.rows.block import Block

__all__ = ["Withheld", "averaged", "unmeasured", "withheld"]

Array = NDArray[np.float64]

# Shares of rows are sums of millions of roundings at most.
_NO_SHARE = 1e-11


def unmeasured(design: Design, fit: LinearFit, moments: Moments) -> list[tuple[Term, NDArray[np.bool_]]]:
    """Return the removed factors with levels that some feature, which has values, has none of; with which (L, d)."""
    found = []
    for term in design.terms:
        if term.preserved or term.kind not in ("factor", "absorbed"):
            continue
        if term.factor is not None:
            lacking = np.isnan(fit.effects[term.factor])
        else:
            linear = moments.linear
            start, turn = _indicators(design.level_rows(term))
            shares = start + linear.mean_a[:, term.columns] @ turn  # (g, L)
            lacking = np.broadcast_to((shares <= _NO_SHARE).T, (len(term.levels), len(fit.rss)))
        lacking = lacking & (fit.count > 0)
        if lacking.any():
            found.append((term, lacking))
    return found


def averaged(design: Design, fit: LinearFit, moments: Moments) -> LinearFit:
    """Return the fit whose unmeasured levels have the average effect of the feature's others, each counting alike.

    No row of the fit tells what their effect is, and coding made it that of the reference level.
    """
    coef, constant = fit.coef.copy(), fit.constant.copy()
    lost = [(term, lacking) for term, lacking in unmeasured(design, fit, moments) if term.factor is None]
    if not lost:
        return fit
    for term, lacking in lost:
        levels = design.level_rows(term)
        start, turn = _indicators(levels)
        known = ~lacking & (np.arange(len(levels)) < len(design.known_level_rows(term)))[:, None]
        effects = levels @ coef[term.columns]
        average = np.sum(effects * known, axis=0) / np.maximum(known.sum(axis=0), 1)
        change = np.where(lacking & known.any(axis=0), average - effects, 0.0)
        added = turn @ change
        coef[term.columns] += added
        constant += start @ change + fit.origin_a[term.columns] @ added
    return replace(fit, coef=coef, constant=constant)


def _indicators(levels: Array) -> tuple[Array, Array]:
    """Return `start` (L,) and `turn` (w, L), so that a row of indicators of the levels is ``start + a @ turn``."""
    solved = np.linalg.pinv(np.column_stack([np.ones(len(levels)), levels]))
    return solved[0], solved[1:]


@dataclass(frozen=True)
class Withheld:
    """What `remove` gives of a block, but NaN where a row's level is one that the feature was never measured at.

    Attributes
    ----------
    remove : callable
    lost : tuple of (slice, ndarray (u, w), ndarray (u, d))
        By factor: its design columns, how such levels are coded in them, and which features lack them.
    """

    remove: Any
    lost: tuple[tuple[slice, Array, NDArray[np.bool_]], ...]

    def __call__(self, block: Block) -> NDArray[Any]:
        out = self.remove(block)
        self._withhold(block, out)
        return np.asarray(out)

    def _withhold(self, block: Block, out: NDArray[Any]) -> None:
        assert block.design is not None
        for columns, levels, lacking in self.lost:
            own = block.design[:, columns]
            for level, features in zip(levels, lacking, strict=True):
                rows = np.flatnonzero((own == level).all(axis=1))
                out[np.ix_(rows, np.flatnonzero(features))] = np.nan


def withheld(remove: Any, design: Design, fit: LinearFit, moments: Moments, on_unknown: str) -> Any:
    """Return the map for later rows: unmeasured levels give NaN, or the average where unknown levels may have it."""
    if on_unknown != "error":
        return _with_average(remove)
    lost = tuple(
        (term.columns, design.level_rows(term)[lacking.any(axis=1)], lacking[lacking.any(axis=1)])
        for term, lacking in unmeasured(design, fit, moments)
        if term.factor is None
    )
    return Withheld(remove, lost) if lost else remove


def _with_average(remove: Any) -> Any:
    """Return the map whose absorbed factors have the average effect, the last row, in place of NaN."""
    if isinstance(remove, WithEffects):
        filled = tuple(np.where(np.isnan(effects), effects[-1], effects) for effects in remove.effects)
        return replace(remove, effects=filled)
    return remove
