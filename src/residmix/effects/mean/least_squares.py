"""Effects by least squares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from residmix.design.design import Design
from residmix.effects.removal import LinearRemoval
from residmix.effects.unmeasured import averaged
from residmix.moments.absorbed import FactorMoments
from residmix.moments.equations import equations
from residmix.moments.linear import LinearMoments
from residmix.moments.scatter import check_design_moments
from residmix.rows.rows import Rows

__all__ = ["LeastSquares"]


@dataclass(frozen=True)
class LeastSquares:
    r"""Minimise :math:`\sum_i w_i |x_i - c - a_i' B|^2` over all effects, removed and preserved ones."""

    merges: ClassVar[bool] = True
    exact_loo: ClassVar[bool] = True
    columns_up_to: ClassVar[int] = 200

    def check(self, design: Design) -> None:
        """Accept every design."""

    def penalty(self, design: Design) -> NDArray[np.float64] | None:
        """Return P of the penalty b'Pb, of which there is none."""
        return None

    def fit(self, rows: Rows, design: Design, features: Sequence[Any]) -> LinearRemoval:
        """Estimate from rows, which are read again where accuracy asks for it."""
        return self._solved(equations(design.sizes).moments(rows), design, rows)

    def refit(self, moments: LinearMoments | FactorMoments, design: Design) -> LinearRemoval:
        """Estimate from moments alone."""
        return self._solved(moments, design, None)

    def _solved(self, moments: LinearMoments | FactorMoments, design: Design, rows: Rows | None) -> LinearRemoval:
        check_design_moments(design.column_names, moments.linear)
        fit = equations(design.sizes).fit(moments, rows, self.penalty(design), design.terms)
        return LinearRemoval(design.n_removed, moments, averaged(design, fit, moments))
