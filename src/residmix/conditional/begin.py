"""Starting values of a mixture given metadata, and checks before its fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import check_random_state

from residmix.conditional.by_group import check_by_group, grouped_starts, grouping_of
from residmix.conditional.coordinates import ToResidual, independent, to_residual, with_gate_columns
from residmix.conditional.density import ConditionalDensity
from residmix.conditional.entangled import tell_of_entangled
from residmix.conditional.own.labels import own_params_of_labels
from residmix.conditional.own.permuted import tell_of_permuted
from residmix.conditional.own.starts import own_starts, with_own_effects
from residmix.conditional.own.unseen import tell_of_unseen
from residmix.conditional.starts import Sought, conditional_starts, constant_gate
from residmix.design.fit import Design, fit_design, joined_designs
from residmix.design.formula.parser import formula_columns
from residmix.errors import CollinearityWarning, note, warn
from residmix.mixture.doubts.spikes import count
from residmix.mixture.fit import State
from residmix.mixture.iteration.step import MixtureEM
from residmix.mixture.params import MixtureParams
from residmix.mixture.selection.candidates import sizes
from residmix.mixture.starts import check_goes_on
from residmix.mixture.starts.labels import check_labels
from residmix.moments.scatter import joint_scatter
from residmix.rows.block import Block
from residmix.rows.rows import Rows
from residmix.sources.table import Table

__all__ = ["ConditionalFit"]

Floats = NDArray[np.float64]

# Names in a warning.
SHOWN = 5


def _design_alone(block: Block) -> Block:
    return replace(block, X=block.X[:, :0])


def _tell_of_aliased(covariance: Floats, gate: NDArray[np.bool_], design: Design, to_residual: ToResidual) -> None:
    """Warn if columns of the gate, of that covariance, are determined by others before them."""
    lost = len(covariance) - to_residual.widths.gate
    if not lost:
        return
    names = [name for name, there in zip(design.column_names, gate, strict=True) if there]
    ranks = [0, *(independent(covariance[:j, :j]) for j in range(1, len(names) + 1))]
    found = [name for name, one, two in zip(names, ranks, ranks[1:], strict=False) if one == two]
    warn(
        f"{lost} of {len(names)} design columns of gating are aliased: {', '.join(found[:SHOWN])}. Many coefficients "
        "give the same weights, and one set is chosen; leave terms out",
        CollinearityWarning,
        columns=found,
    )


class ConditionalFit(ConditionalDensity):
    """The part of :class:`residmix.ResidualMixture` that finds starting values."""

    preserve: str | None
    estimation: str
    covariance_by: str | None
    coef_: Floats
    design_columns_: list[str]

    @property
    def _joint(self) -> bool:
        own = self.effects == "by-component" or getattr(self, "covariance_by", None) is not None
        return self.estimation == "joint" or own

    def _tell_of_effects(self, rows: Rows, state: State, raw: Rows) -> None:
        self._tell_of_gap(rows, state.params)
        if self.cells and not self._joint and self.design_columns_ and self.cell_shares_.any():
            note(
                "effects-of-all-values",
                "effects are least squares of all values, also of those that were set aside as wrong. Use "
                "estimation='joint' for effects without these",
            )
        # what rows tell of effects is asked of the covariances' averages
        params = replace(state.params, by_group=None)
        columns = self.design_columns_
        tell_of_unseen(rows, params, self._to_residual.effects_basis, columns)
        design, own = self.residualizer_.design_, self.covariance_by is not None
        tell_of_permuted(self._whole(raw), self._to_residual, params, design, own)
        if self._joint and self._gated:
            total = count(rows)
            bic = self._n_parameters() * np.log(total) - 2 * total * state.log_likelihood
            coef = self.coef_ if self.coef_.ndim == 2 else np.tensordot(params.weights, self.coef_, 1)
            tell_of_entangled(rows, params, self._to_residual, columns, coef, bic, total)

    def _keep_threshold(self, em: MixtureEM, params: MixtureParams) -> None:
        super()._keep_threshold(em, params)
        if self.trim:
            self._params = replace(self._params, trim=(self.trim, self.trim_threshold_))

    def _given_rows(self, table: Table, sample_weight: Any, rows: Rows) -> Rows:
        """Return rows with the designs of effects and gate, and keep how the mixture's coordinates come of them."""
        residualizer = self.residualizer_
        self.__dict__.pop("_whole_design", None)
        self._check_columns_of_levels(residualizer.design_)
        p = len(residualizer.coef_)
        grouping = None if self.covariance_by is None else grouping_of(residualizer.design_, self.covariance_by)
        self._to_residual = to_residual(residualizer.applied_.affine(p), residualizer.moments_, p, grouping)
        if self._gate_terms:
            design, gate = self._design_with_gate(table)
            self._check_columns_of_levels(design)
            effects = np.arange(len(gate)) < residualizer.design_.n_removed
            if not np.array_equal(effects, gate):
                self._whole_design = design
                rows = residualizer.rows_of(table, sample_weight, design=design, allow_nan=self._gaps_allowed())
                seen = joint_scatter(rows.mapped(_design_alone))
                self._to_residual = with_gate_columns(self._to_residual, seen, effects, gate)
                _tell_of_aliased(
                    seen.covariance[: len(gate), : len(gate)][gate][:, gate], gate, design, self._to_residual
                )
        return rows.with_block_rows(self._block_rows(len(residualizer.features_)))

    def _design_with_gate(self, table: Table) -> tuple[Design, NDArray[np.bool_]]:
        """Return the design of effects and gate, and which of its columns the gate has."""
        if not table.has_metadata and self.formula is None:
            raise ValueError(
                f"gating={self.gating!r} is taken as a formula, which needs metadata; give metadata=, or formula='1' "
                "for metadata without effects"
            )
        design, named = self.residualizer_.design_, formula_columns(self.gating)
        how: dict[str, Any] = {"on_unknown": design.on_unknown, "missing": design.missing}
        try:
            own = fit_design(lambda: table.chunks(named), formula=self.gating, **how)
        except (ValueError, TypeError) as error:
            error.add_note(f"gating={self.gating!r} is taken as a formula; else it's 'constant' or 'metadata'")
            raise
        return joined_designs(design, own)

    def _check_columns_of_levels(self, design: Design) -> None:
        if design.curves and (self._joint or self.gating != "constant"):
            raise ValueError(
                f"joint estimation and gating don't work with {design.curves[0].term}, which needs a penalty; use "
                "estimation='two-stage' with gating='constant', or bs() instead of s()"
            )
        if design.factors and (self._joint or self.gating != "constant"):
            raise ValueError(
                f"joint estimation and gating need a column per level, but {design.factors[0].name!r} has "
                f"{len(design.factors[0].levels)} levels; use estimation='two-stage' with gating='constant', or "
                "merge levels"
            )

    def _check_enough(self, counted: int) -> None:
        """Raise for fewer rows of positive weight than components, or than two."""
        largest = 1 if isinstance(self.n_components, str) else sizes(self.n_components)[-1]
        if counted < max(largest, 2):
            raise ValueError(
                f"Expected n_samples >= n_components but got n_components = {largest}, n_samples = {counted}"
                if counted >= 2
                else f"Found array with {counted} sample(s) of positive weight while a minimum of 2 is required"
            )

    def _check_preserve(self, errors: Any = None) -> None:
        self._n_groups = 1
        if self.covariance_by is not None:
            check_by_group(self)
            if errors is not None:
                raise ValueError(f"covariance_by={self.covariance_by!r} can't be combined with error_covariance")
        if self._joint and self.estimation == "two-stage":
            what = "effects by component" if self.effects == "by-component" else "covariances by level"
            note(
                "estimated-jointly",
                f"{what} are always estimated jointly with the mixture; leave estimation='two-stage' out",
            )
        if self.preserve is not None and self._joint:
            raise ValueError(
                f"preserve={self.preserve!r} needs estimation='two-stage', effects='shared' and no covariance_by, "
                "since joint estimation can't separate preserved effects from removed ones; leave preserve= out, or "
                "set these"
            )

    def _starts(self, rows: Rows) -> list[MixtureParams]:
        return self._with_groups(rows, self._ungrouped_starts(rows))

    def _with_groups(self, rows: Rows, starts: list[MixtureParams]) -> list[MixtureParams]:
        """Return starts with covariances by level, where these are asked for."""
        levels = self._to_residual.levels
        if levels is None:
            return starts
        return grouped_starts(rows, starts, len(levels[1]), finish=self._run, reg_covar=self._floor)

    def _ungrouped_starts(self, rows: Rows) -> list[MixtureParams]:
        if self.warm_start and hasattr(self, "_params"):
            return [self._last_params(rows.n_features)]
        K, kind = self.n_components, self._kind()
        if self.labels_init is not None:
            return [self._with_metadata(self._labelled(rows, K, kind))]
        return self._found_starts(rows, K, kind, self._given_start(rows.n_features))

    def _wanted(self) -> int | None:
        """Return after how many starts others are spare ones; None if all are to be run."""
        if self._joint or self._has_tails():
            return None
        resume = self.warm_start and hasattr(self, "_params")
        return 1 if resume or self.labels_init is not None else self.n_init

    def _with_metadata(self, start: MixtureParams) -> MixtureParams:
        """Return a start whose coefficients are those of least squares and whose weights are constant."""
        widths = self._to_residual.widths
        gate = constant_gate(start.weights, widths.gate) if self._gated else None
        if start.coef is not None:
            return replace(start, gate=gate)
        start = replace(start, coef=np.zeros((widths.effects, start.n_features)), gate=gate)
        return start if self.effects == "shared" else with_own_effects(start)

    def _labelled(self, rows: Rows, K: int, kind: str) -> MixtureParams:
        shared = super()._labelled(rows, K, kind)
        if self.effects == "shared" or not self._to_residual.widths.effects:
            return shared
        labels = check_labels(self.labels_init, rows.n_rows, K)
        how: dict[str, Any] = {"covariance_type": kind, "reg_covar": self._floor}
        return own_params_of_labels(self._whole(rows), labels, K, widths=self._to_residual.widths, **how)

    def _candidate_starts(self, rows: Rows, K: int, kind: str, begun: list[MixtureParams]) -> Iterator[MixtureParams]:
        starts = [self._with_metadata(start) for start in super()._candidate_starts(rows, K, kind, begun)]
        if self._joint and self.labels_init is None:
            starts += self._found_starts(rows, K, kind, dict.fromkeys(("weights", "means", "precisions")))
        yield from self._with_groups(rows, starts)

    def _found_starts(self, rows: Rows, K: int, kind: str, given: dict[str, Floats | None]) -> list[MixtureParams]:
        rows = self._whole(rows)
        sought = Sought(
            K, kind, self._start_floor, self._gated, self._to_residual.widths, check_random_state(self.random_state)
        )
        shared = conditional_starts(
            rows,
            sought,
            joint=self._joint,
            thorough=self._has_tails(),
            n_init=self.n_init,
            init_params=self._init_params,
            given=given,
            finish=self._run,
        )
        if self.effects == "shared":
            return shared
        more = all(value is None for value in given.values())
        return own_starts(rows, shared, sought, more=more, n_init=self.n_init, finish=self._run)

    def _last_params(self, n_features: int) -> MixtureParams:
        """Return where the last fit ended, if this one can go on from there."""
        params, widths = self._params, self._to_residual.widths
        check_goes_on(params.means, params.covariances, self._kind(), self.n_components, n_features, "warm_start")
        last = None if params.gate is None else params.gate.coef.shape[1] - 1
        if params.n_design != widths.effects or last != (widths.gate if self._gated else None):
            raise ValueError(
                f"warm_start continues the last fit, but that has {params.n_design} independent design columns and "
                f"{'no gate' if last is None else f'a gate of {last}'}, and this one {widths.effects} with "
                f"gating={self.gating!r}; fit a clone of the estimator instead"
            )
        if self.effects == "by-component":
            return with_own_effects(params)
        if params.by_component:
            raise ValueError(
                "warm_start continues the last fit, but that has effects='by-component', and this one 'shared'; fit "
                "a clone of the estimator instead"
            )
        # two stages keep the coefficients of least squares, also after a joint fit
        return params if self._joint else replace(params, coef=np.zeros((widths.effects, n_features)))
