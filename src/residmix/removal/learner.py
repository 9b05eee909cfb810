"""How a Residualizer fits rows, and removes the effects from new rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

from numpy.typing import NDArray

from residmix.effects.effect import Effect
from residmix.effects.mean.regressor import Regressor
from residmix.effects.mean.ridge import need_columns
from residmix.effects.removal import LinearRemoval
from residmix.effects.unmeasured.later import withheld
from residmix.effects.unseen.levels import priors
from residmix.removal.fitting import fitted, refitted
from residmix.removal.held_out import group_column
from residmix.removal.settings import effect_of, refuse_moments_alone, warn_of_nothing
from residmix.removal.telling.messages import refuse_entangled
from residmix.removal.telling.scores import Scores
from residmix.removal.telling.told import Told
from residmix.removal.watch import Watch
from residmix.rows.block import Block
from residmix.rows.folds import splits
from residmix.rows.progress import watched
from residmix.rows.rows import Rows
from residmix.sources.table import Table

__all__ = ["Learner"]


class Learner(Scores, Told):
    """Base of :class:`residmix.Residualizer`: fitting and transforming rows."""

    missing: str
    residuals: str
    cv: Any
    groups: str | None
    on_entangled: str
    check_leakage: bool

    def fit_to(
        self,
        X: Any,
        table: Table,
        weight: Any = None,
        *,
        y: Any = None,
        quiet: bool = False,
        allow_nan: bool = True,
        further: bool = False,
        codes: bool = True,
        beside: Sequence[str] = (),
    ) -> tuple[Rows, NDArray[Any] | None]:
        """Fit to a table; return its rows, and their residuals if the fit computes them.

        Parameters
        ----------
        X : what `table` was opened from, whose columns are remembered
        table : Table
        weight : array or str, optional
        y : ignored, but for a warning
        quiet, allow_nan, further, codes : bool
            Whether no line of progress is shown, features may have gaps, further rows may come, and codes for missing
            values are looked for in a sample of the features.
        beside : sequence of str
            Columns of X that are metadata for another purpose.
        """
        self._validate_params()
        effect = effect_of(self)
        known_only = "mean" if self.on_unknown == "shrink" else self.on_unknown
        self.__dict__.pop("_found", None)
        self._learn(
            X,
            table,
            weight,
            beside,
            on_unknown=known_only,
            missing=self.missing,
            absorb_above=effect.columns_up_to,
        )
        effect.check(self.design_)
        if not beside:
            warn_of_nothing(self, y)
        if further:
            refuse_moments_alone(self)
        if self.residuals == "loo":
            need_columns(self.design_)
        rows = self.rows_of(table, weight, preserved=True, allow_nan=allow_nan)
        if isinstance(effect, Regressor) and self.groups is not None:
            effect = replace(effect, cv=list(splits(self.cv, rows.n_rows, group_column(table, self.groups))))
        with watched(rows, quiet=quiet) as seen:
            # moments of features with gaps are sound numbers: unless gaps are allowed, each block must be looked at
            seen = seen if allow_nan else seen.mapped(_as_it_is)
            found, residual, watch = fitted(
                effect, seen, self.design_, list(self.features_), Watch(active=self.check_leakage)
            )
        self._keep(found, watch)
        if codes:
            watch.tell_of_codes(list(self.features_))
        return rows, residual

    def _refit(self, moments: Any, watch: Watch) -> None:
        """Fit again with further rows."""
        self._keep(
            refitted(cast(Effect, effect_of(self)), self._linear, moments, self.design_, list(self.features_)), watch
        )

    def _keep(self, found: Any, watch: Watch) -> None:
        if isinstance(found, LinearRemoval) and self.on_entangled == "error":
            refuse_entangled(found.correlations)
        self._found, self._watch, self.new_levels_ = found, watch, {}
        if isinstance(found, LinearRemoval):
            if self.on_unknown == "shrink":
                self.new_levels_ = priors(found, self.design_)
            self._warn()
            self._watch = watch.look(found, self.design_, list(self.features_))

    def _further_rows(self, table: Table, weight: Any) -> Rows:
        """Return further rows to fit. They have the first ones' levels, whatever `on_unknown` says of new rows."""
        design = self.design_.following({}, "further")
        return self.rows_of(table, weight, design=design, preserved=True, allow_nan=True)

    def _later_rows(self, table: Table) -> Rows:
        design = self.design_
        if self.new_levels_:
            design = design.following({name: levels.labels for name, levels in self.new_levels_.items()})
        return self.rows_of(table, design=design, preserved=self._found.needs_preserved, allow_nan=True)

    def _remover(self, sign: int = -1) -> Any:
        return self._withheld(self._found.remover(sign, new=self.new_levels_, shrink=self.on_unknown == "shrink"))

    def _withheld(self, remove: Any) -> Any:
        """Return the map with NaN for levels that a feature lacked, unless `on_unknown` allows what is expected."""
        if not isinstance(self._found, LinearRemoval) or self._found.random:
            return remove
        return withheld(remove, self.design_, self._found.fit, self._found.moments, self.on_unknown)


def _as_it_is(block: Block) -> Block:
    return block
