"""Effects by least squares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from residmix.design.design import Design
from residmix.effects.marginal import shared
from residmix.effects.removal import LinearRemoval
from residmix.effects.unmeasured.later import settled
from residmix.moments.equations import Equations, equations
from residmix.moments.linear import LinearMoments
from residmix.moments.scatter import check_design_moments, check_feature_moments
from residmix.rows.rows import Rows

__all__ = ["LeastSquares"]


@dataclass(frozen=True)
class LeastSquares:
    r"""Minimise :math:`\sum_i w_i |x_i - c - a_i' B|^2` over all effects, removed and preserved ones."""

    exact_loo: ClassVar[bool] = True
    columns_up_to: ClassVar[int] = 200

    def check(self, design: Design) -> None:
        """Accept every design."""

    def penalty(self, design: Design, moments: LinearMoments) -> NDArray[np.float64] | None:
        """Return None: there is no penalty."""
        return None

    def merges(self, design: Design) -> bool:
        return True

    def equations(self, design: Design) -> Equations:
        return equations(design.sizes)

    def estimate(
        self, moments: Any, design: Design, features: Sequence[Any], rows: Rows | None = None
    ) -> LinearRemoval:
        check_design_moments(design.column_names, moments.linear)
        check_feature_moments(features, moments.linear)
        fit = equations(design.sizes).fit(moments, rows, self.penalty(design, moments.linear), design.terms)
        held = shared(design.terms, moments.linear)
        return LinearRemoval(design.n_removed, moments, settled(design, fit, moments), shared=held)
