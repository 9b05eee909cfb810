"""Effects on the spread, beside those on the mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from residmix.design.design import Design
from residmix.effects.by_level import still_levels, tell_still
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

    def fit(self, rows: Rows, design: Design, features: Sequence[Any]) -> LinearRemoval:
        found: LinearRemoval = self.mean.fit(rows, design, features)
        if design.n_removed == 0:
            return found
        still = still_levels(rows, design)
        tell_still(
            still, design, features, "no spread can be brought to the pooled one there, only the mean is adjusted"
        )
        scale = fit_scale(rows, found.everything(), design.n_removed, still=tuple(still.values()), features=features)
        return replace(found, scale=scale)
