"""Effects on the spread, beside those on the mean."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from residmix.design.design import Design
from residmix.effects.effect import Effect, need_dense
from residmix.effects.removal import LinearRemoval
from residmix.effects.scale import fit_scale
from residmix.rows.rows import Rows

__all__ = ["Spread"]


@dataclass(frozen=True)
class Spread:
    r"""Log variances that are linear in the design (:func:`residmix.effects.scale.fit_scale`).

    Attributes
    ----------
    mean : Effect
        How the effects on the mean are estimated.
    """

    mean: Effect

    merges: ClassVar[bool] = False
    exact_loo: ClassVar[bool] = False

    @property
    def columns_up_to(self) -> int:
        return self.mean.columns_up_to

    def check(self, design: Design) -> None:
        self.mean.check(design)
        need_dense(design)

    def fit(self, rows: Rows, design: Design) -> LinearRemoval:
        found: LinearRemoval = self.mean.fit(rows, design)
        if design.n_removed == 0:
            return found
        return replace(found, scale=fit_scale(rows, found.everything(), design.n_removed))
