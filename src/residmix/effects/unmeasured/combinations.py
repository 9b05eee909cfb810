"""Interactions: combinations of levels for which a feature has no rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from residmix.design.design import Design
from residmix.design.terms import Combinations, Term
from residmix.effects.unmeasured.levels import NO_SHARE, Lost, unmeasured
from residmix.moments.fit import LinearFit
from residmix.moments.linear import Moments

__all__ = ["Empty", "completed", "empty", "explained", "with_sums", "without_rows"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Empty:
    """An interaction for which some feature has no rows in some of the c combinations of levels.

    Attributes
    ----------
    term : Term
    among : Combinations
    lacking : ndarray of bool (c, d)
    start, turn : ndarray (c,), (c, k)
        A row of indicators of the combinations is ``start + turn @ a``, with a its columns.
    """

    term: Term
    among: Combinations
    lacking: NDArray[np.bool_]
    start: Array
    turn: Array

    def directions(self, q: int) -> Array:
        """Return the directions in which the coefficients aren't identified, one per combination, (q, c)."""
        whole = np.zeros((q, len(self.turn)))
        whole[self.among.columns] = self.turn.T
        return whole

    @property
    def lost(self) -> Lost:
        """Rows of combinations that some feature lacks, and which features."""
        some = self.lacking.any(axis=1)
        return self.among.columns, self.among.rows[some], self.lacking[some]

    def alone(self) -> NDArray[np.bool_]:
        """Return a mask of the combinations (c, d) without rows though each of their levels has rows."""
        shape = tuple(map(len, self.among.levels))
        seen = ~self.lacking.reshape(*shape, -1)
        told = self.lacking.reshape(*shape, -1).copy()
        for axis in range(len(shape)):
            others = tuple(k for k in range(len(shape)) if k != axis)
            told &= seen.any(axis=others, keepdims=True)
        return told.reshape(self.lacking.shape)


def empty(design: Design, fit: LinearFit, moments: Moments) -> list[Empty]:
    """Return the removed interactions with combinations for which some feature has no rows.

    Of nested interactions only the highest order is returned.
    """
    if not fit.aliased:  # what no row has makes columns aliased
        return []
    found = []
    for term, own, start, turn in _crossed(design):
        shares = start + moments.linear.mean_a[:, own.columns] @ turn.T  # (g, c)
        lacking = np.broadcast_to((shares <= NO_SHARE).T, (len(turn), len(fit.rss))) & (fit.count > 0)
        if lacking.any():
            found.append(Empty(term, own, lacking, start, turn))
    return found


def without_rows(design: Design, mean: Array) -> list[tuple[Term, Combinations, NDArray[np.bool_]]]:
    """Return the same interactions, and which combinations (c,) no row has, given the mean (q,) of the design."""
    found = [(term, own, start + turn @ mean[own.columns] <= NO_SHARE) for term, own, start, turn in _crossed(design)]
    return [(term, own, lacking) for term, own, lacking in found if lacking.any()]


def _crossed(design: Design) -> Iterator[tuple[Term, Combinations, Array, Array]]:
    """Yield the removed interactions of the highest order, their combinations, and `start` and `turn` of `Empty`."""
    crossed = [term for term in design.terms if term.kind == "interaction" and not term.preserved]
    among = [(term, own) for term in crossed if (own := design.combinations(term)) is not None]
    for term, own in among:
        if any(set(own.factors) < set(other.factors) for _, other in among):
            continue
        square = np.column_stack([np.ones(len(own.rows)), own.rows])
        if square.shape[0] != square.shape[1]:  # part of the effects is preserved
            continue
        inverse = np.linalg.inv(square)
        yield term, own, inverse[0], inverse[1:].T


def completed(design: Design, fit: LinearFit, moments: Moments) -> LinearFit:
    """Return the fit in which the effect of an empty combination is the sum of the effects of its levels.

    These effects of levels are fitted to the combinations that have rows, without weights; a level without any gets the
    average of the others. Least squares leaves these coefficients open, so before this step they depend on the coding.
    """
    found = empty(design, fit, moments)
    if not found:
        return fit
    coef, moved = with_sums(found, fit.coef, fit.origin_a)
    return replace(fit, coef=coef, constant=fit.constant + moved)


def with_sums(found: list[Empty], coef: Array, origin: Array) -> tuple[Array, Array]:
    """Return coefficients (q, d) with that sum in empty combinations, and the change of the intercept at `origin`."""
    coef, moved = coef.copy(), np.zeros(coef.shape[1])
    for one in found:
        columns = one.among.columns
        effects = one.among.rows @ coef[columns]
        change = np.zeros_like(effects)
        patterns, group = np.unique(one.lacking, axis=1, return_inverse=True)
        for g, lacking in enumerate(patterns.T):
            if lacking.any() and not lacking.all():
                own = np.flatnonzero(group.ravel() == g)
                sums = _sums(one.among, lacking, effects[:, own])
                change[:, own] = np.where(lacking[:, None], sums - effects[:, own], 0.0)
        added = one.turn.T @ change
        coef[columns] += added
        moved += one.start @ change + origin[columns] @ added
    return coef, moved


def _sums(among: Combinations, lacking: NDArray[np.bool_], effects: Array) -> Array:
    """Return the sum of effects of levels (c, d) that fits the effects of the combinations seen."""
    shape = tuple(map(len, among.levels))
    grid = np.indices(shape).reshape(len(shape), -1)
    indicators = [np.eye(size)[own] for size, own in zip(shape, grid, strict=True)]
    sums = np.hstack([np.ones((len(effects), 1)), *indicators])
    fitted = sums @ np.linalg.lstsq(sums[~lacking], effects[~lacking], rcond=None)[0]
    table, seen = fitted.reshape(*shape, -1), ~lacking.reshape(shape)
    for axis, known in enumerate(among.n_known):
        there = np.asarray(seen.any(axis=tuple(k for k in range(len(shape)) if k != axis)))
        if not there.all() and there[:known].any():
            average = table.take(np.flatnonzero(there[:known]), axis=axis).mean(axis=axis, keepdims=True)
            where = np.expand_dims(there, [k for k in range(len(shape) + 1) if k != axis])
            table = np.where(where, table, average)
    return np.asarray(table.reshape(fitted.shape))


def explained(design: Design, fit: LinearFit, moments: Moments) -> bool:
    """Tell whether all aliased columns are due to levels and combinations without rows."""
    q, directions, lacking = len(fit.coef), [np.empty((len(fit.coef), 0))], [np.empty((0, len(fit.rss)), bool)]
    for lost in unmeasured(design, fit, moments):
        if lost.term.factor is None:
            directions.append(lost.directions(q))
            lacking.append(lost.lacking)
    for one in empty(design, fit, moments):
        directions.append(one.directions(q))
        lacking.append(one.lacking)
    every, which = np.hstack(directions), np.vstack(lacking)
    for g, null in enumerate(fit.null):
        member = int(np.argmax(fit.group == g))
        if not fit.count[member]:
            continue
        mine = every[:, which[:, member]]
        spread = np.linalg.norm(mine, axis=0)
        if null.shape[1] > (np.linalg.matrix_rank(mine / np.where(spread > 0, spread, 1.0)) if mine.size else 0):
            return False
    return True
