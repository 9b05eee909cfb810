"""Ridge penalties in the terms of a formula."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real

import numpy as np
from numpy.typing import NDArray

from residmix.design.design import Design
from residmix.design.terms import Term, find_term
from residmix.effects.mean.least_squares import LeastSquares
from residmix.moments.linear import LinearMoments

__all__ = ["Ridge", "need_columns", "term_penalty"]

Array = NDArray[np.float64]


def term_penalty(design: Design, term: Term, mean: Array) -> Array:
    r"""Return P (q, q) so that :math:`b'Pb` is the sum of squares of the penalised effects.

    For a numeric term this is its coefficient. For a factor they are the effects of all levels less their mean, so that
    the reference level doesn't matter: with treatment coding :math:`P = I - 11'/L`. Beside an interaction, effects of a
    term are averages over the other's levels, or those at the other's mean if that is a number, so that it doesn't
    matter where it is 0; and the interaction's are what these averages leave.

    Parameters
    ----------
    design : Design
    term : Term
    mean : ndarray (q,)
        Of the design's columns over the rows.
    """
    effects = _effects(design, term, mean)
    return np.asarray(effects.T @ effects)


def _effects(design: Design, term: Term, mean: Array) -> Array:
    """Return the matrix (m, q) that makes the penalised effects of a term of all coefficients."""
    q, beside = len(design.column_names), [other for other in design.terms if term.within(other)]
    if term.kind == "factor":
        own = _placed(design.level_rows(term), term.columns, q)
        for other in beside:
            if (rows := _combined(design, other)) is not None:
                at = other.variables.index(term.variables[0])
                own += rows.mean(axis=tuple(i for i in range(rows.ndim - 1) if i != at))
            elif (lines := _lines(design, other)) is not None:
                own += _number(design, term, other, lines, mean) * _placed(lines, other.columns, q)
        return _less_mean(own, 0)
    if term.kind == "numeric":
        own = _placed(np.eye(1), term.columns, q)
        for other in beside:
            if (lines := _lines(design, other)) is not None:
                own += _placed(lines, other.columns, q).mean(axis=0, keepdims=True)
            elif other.columns.stop - other.columns.start == 1:
                own += _number(design, term, other, np.ones((1, 1)), mean) * _placed(np.eye(1), other.columns, q)
        return own
    if term.kind == "interaction" and (rows := _combined(design, term)) is not None:
        for axis in range(rows.ndim - 1):
            rows = _less_mean(rows, axis)
        return rows.reshape(-1, q)
    if term.kind == "interaction" and (lines := _lines(design, term)) is not None and lines.shape[1] < len(lines):
        return _placed(_less_mean(lines, 0), term.columns, q)
    return _placed(np.eye(term.columns.stop - term.columns.start), term.columns, q)


def _placed(rows: Array, columns: slice, q: int) -> Array:
    placed = np.zeros((len(rows), q))
    placed[:, columns] = rows
    return placed


def _less_mean(effects: Array, axis: int) -> Array:
    return np.asarray(effects - effects.mean(axis=axis, keepdims=True))


def _combined(design: Design, term: Term) -> Array | None:
    """Return the design rows of an interaction alone, (L1, L2, ..., q), by levels of its factors; None of numbers."""
    found = None if term.preserved else design.combinations(term)
    if found is None or len(found.levels) != len(term.variables):
        return None
    own = (found.columns >= term.columns.start) & (found.columns < term.columns.stop)
    rows = _placed(found.rows[:, own], term.columns, len(design.column_names))
    return rows.reshape(*map(len, found.levels), -1)


def _lines(design: Design, term: Term) -> Array | None:
    """Return the levels' rows of the slopes that a factor's levels have in one number; None if it's something else."""
    factors = [one for one in design.terms if one.kind == "factor" and one.within(term)]
    if len(factors) != 1 or len(term.variables) != 2:
        return None
    rows, size = design.level_rows(factors[0]), term.columns.stop - term.columns.start
    # a column for each level where the number has none of its own
    return np.eye(size) if size == len(rows) else rows if size == rows.shape[1] else None


def _number(design: Design, term: Term, other: Term, lines: Array, mean: Array) -> float:
    """Return the mean over the rows of the number that another term multiplies a term by.

    `lines` (m, k) are the rows of the other's columns by level: they add up to the number if it has no term of its own.
    """
    for one in design.terms:
        if one.kind == "numeric" and other.name in (f"{term.name}:{one.name}", f"{one.name}:{term.name}"):
            return float(mean[one.columns.start])
    return float(mean[other.columns] @ np.linalg.lstsq(lines, np.ones(len(lines)), rcond=None)[0])


@dataclass(frozen=True)
class Ridge(LeastSquares):
    r"""Least squares with the penalty :math:`\alpha\, b'Pb` on removed effects, P from `term_penalty`.

    Attributes
    ----------
    alpha : float or dict
        One strength for all removed terms, or one per term.
    """

    alpha: float | dict[str, float] = 0.0

    def check(self, design: Design) -> None:
        """Raise ValueError for levels without columns."""
        need_columns(design)

    def penalty(self, design: Design, moments: LinearMoments) -> Array | None:
        """Return P (q, q) for all columns; None if nothing is penalised.

        Raises
        ------
        TypeError, ValueError
            For an alpha that isn't a number, is negative, or names no term.
        """
        if isinstance(self.alpha, dict):
            strengths = []
            for name, value in self.alpha.items():
                if not isinstance(value, Real) or isinstance(value, bool) or not 0 <= value < np.inf:
                    raise ValueError(f"alpha[{name!r}] must be a number of at least 0, not {value!r}")
                strengths.append((find_term(design.terms, name, "alpha"), float(value)))
        else:
            strengths = [(term, float(self.alpha)) for term in design.terms if not term.preserved]
        penalty = np.zeros((len(design.column_names),) * 2)
        for term, strength in strengths:
            penalty += strength * term_penalty(design, term, moments.mean_a.mean(axis=0))
        return penalty if penalty.any() else None


def need_columns(design: Design) -> None:
    """Raise ValueError for levels without columns, which a penalty and leave-one-out don't support."""
    if design.factors:
        raise ValueError(
            f"alpha and residuals='loo' need a column per level, but {design.factors[0].name!r} has "
            f"{len(design.factors[0].levels)} levels; use residuals='cross-fitted', or merge levels"
        )
