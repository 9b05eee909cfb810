"""Normal equations of a design: a column for every effect, or large factors whose levels are absorbed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from residmix.moments import inference
from residmix.moments.absorbed.fit import (
    FactorFit,
    features_with_gaps,
    fit_factor_moments,
    fold_factors,
    solve_factors,
)
from residmix.moments.absorbed.sums import FactorMoments, merge_factor_moments
from residmix.moments.linear import LinearMoments, merge_moments
from residmix.moments.solving.aliased import Part
from residmix.moments.solving.solve import LinearFit, fit_moments, fold_linear, solve_moments
from residmix.rows.rows import Rows

__all__ = ["Absorbed", "Dense", "Equations", "equations"]

Array = NDArray[np.float64]
Moments = LinearMoments | FactorMoments


class Equations(Protocol):
    """Least squares from one kind of moments."""

    def moments(self, rows: Rows) -> Any:
        """Return the moments of all rows, by one ordered fold."""

    def merge(self, one: Any, two: Any) -> Any:
        """Return the moments of the rows of both; may change the first."""

    def gaps(self, moments: Any) -> NDArray[np.bool_]:
        """Return a mask of the features (d,) whose missing values make merging impossible."""

    def fit(
        self, moments: Any, rows: Rows | None, penalty: Array | None = None, parts: Sequence[Part] = ()
    ) -> LinearFit:
        """Solve; `rows`, those of the moments, are read again where accuracy asks for it.

        `parts` are the terms in order, which decides how shared effects are divided.
        """

    def correlations(self, fit: Any, moments: Any, n_removed: int) -> Array:
        """Return the canonical correlations of removed and preserved effects, largest first."""


@dataclass(frozen=True)
class Dense:
    """Every effect has a column; features may lack rows. Moments are linear ones, or hold such as `linear`."""

    def moments(self, rows: Rows) -> Any:
        return fold_linear(rows)

    def merge(self, one: Any, two: Any) -> Any:
        return merge_moments(one, two)

    def gaps(self, moments: Any) -> NDArray[np.bool_]:
        return np.zeros(len(moments.linear.offset_x), dtype=bool)

    def fit(
        self, moments: Any, rows: Rows | None, penalty: Array | None = None, parts: Sequence[Part] = ()
    ) -> LinearFit:
        if rows is None:
            return solve_moments(moments.linear, penalty=penalty, parts=parts)
        return fit_moments(moments.linear, rows, penalty=penalty, parts=parts)

    def correlations(self, fit: LinearFit, moments: Any, n_removed: int) -> Array:
        if not 0 < n_removed < len(fit.coef):
            return np.empty(0)
        most = int(np.argmax(moments.linear.weight))  # others have gaps, or no values at all
        return inference.canonical_correlations(moments.linear.s_aa[most], n_removed)


@dataclass(frozen=True)
class Absorbed:
    """Some factors have no columns but sums by level.

    Attributes
    ----------
    sizes : tuple of int
        Their numbers of levels.
    """

    sizes: tuple[int, ...]

    def moments(self, rows: Rows) -> FactorMoments:
        return fold_factors(rows, self.sizes)

    def merge(self, one: FactorMoments, two: FactorMoments) -> FactorMoments:
        return merge_factor_moments(one, two)

    def gaps(self, moments: FactorMoments) -> NDArray[np.bool_]:
        return features_with_gaps(moments)

    def fit(
        self, moments: FactorMoments, rows: Rows | None, penalty: Array | None = None, parts: Sequence[Part] = ()
    ) -> FactorFit:
        assert penalty is None, (
            "a penalty needs a column per level, but a factor has too many levels; merge "
            "levels, or leave the penalty out"
        )
        return solve_factors(moments, parts) if rows is None else fit_factor_moments(moments, rows, parts)

    def correlations(self, fit: FactorFit, moments: FactorMoments, n_removed: int) -> Array:
        if n_removed == len(fit.coef):
            return np.empty(0)
        kept = slice(n_removed, None)
        return inference.correlations_beside_factors(moments.linear.s_aa[0][kept, kept], fit.covariance[0][kept, kept])


def equations(sizes: tuple[int, ...]) -> Equations:
    """Return the kind for a design whose absorbed factors have so many levels."""
    return Absorbed(sizes) if sizes else Dense()
