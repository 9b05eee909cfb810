"""Ridge penalties in the terms of a formula."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real

import numpy as np
from numpy.typing import NDArray

from residmix.design.design import Design
from residmix.design.terms import Term, find_term
from residmix.effects.mean.least_squares import LeastSquares

__all__ = ["Ridge", "need_columns", "term_penalty"]

Array = NDArray[np.float64]


def term_penalty(design: Design, term: Term) -> Array:
    r"""Return P so that :math:`b'Pb` is the sum of squares of the penalised effects.

    For numeric terms these are the coefficients. For a factor they are the effects of all levels less their mean, so
    that the reference level doesn't matter: with treatment coding :math:`P = I - 11'/L`.
    """
    width = term.columns.stop - term.columns.start
    if term.kind != "factor":
        return np.eye(width)
    levels = design.level_rows(term)
    centred = levels - levels.mean(axis=0)
    return np.asarray(centred.T @ centred)


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

    def penalty(self, design: Design) -> Array | None:
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
            penalty[term.columns, term.columns] += strength * term_penalty(design, term)
        return penalty if penalty.any() else None


def need_columns(design: Design) -> None:
    """Raise ValueError for levels without columns, which a penalty and leave-one-out don't support."""
    if design.factors:
        raise ValueError(
            f"alpha and residuals='loo' need a column per level, but {design.factors[0].name!r} has "
            f"{len(design.factors[0].levels)} levels; use residuals='cross-fitted', or merge levels"
        )
