"""Starting values of a mixture given metadata, and checks before its fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import check_random_state

from residmix.conditional.by_group import check_by_group, grouped_starts
from residmix.conditional.density import ConditionalDensity
from residmix.conditional.entangled import tell_of_entangled
from residmix.conditional.own.labels import own_params_of_labels
from residmix.conditional.own.permuted import tell_of_permuted
from residmix.conditional.own.starts import own_starts, with_own_effects
from residmix.conditional.own.unseen import tell_of_unseen
from residmix.conditional.starts import conditional_starts, constant_gate
from residmix.design.design import Design
from residmix.errors import note
from residmix.mixture.doubts.spikes import count
from residmix.mixture.fit import State
from residmix.mixture.iteration.step import MixtureEM
from residmix.mixture.params import MixtureParams
from residmix.mixture.selection.candidates import sizes
from residmix.mixture.starts import check_goes_on
from residmix.mixture.starts.labels import check_labels
from residmix.rows.rows import Rows

__all__ = ["ConditionalFit"]

Floats = NDArray[np.float64]


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
        # what rows tell of effects is asked of the covariances' averages
        params = replace(state.params, by_group=None)
        basis, columns = self._to_residual.basis, self.design_columns_
        tell_of_unseen(rows, params, basis, columns)
        design, own = self.residualizer_.design_, self.covariance_by is not None
        tell_of_permuted(self._whole(raw), self._to_residual, params, design, own)
        if self._joint and self.gating == "metadata":
            total = count(rows)
            bic = self._n_parameters() * np.log(total) - 2 * total * state.log_likelihood
            coef = self.coef_ if self.coef_.ndim == 2 else np.tensordot(params.weights, self.coef_, 1)
            tell_of_entangled(rows, params, basis, columns, coef, bic, total)

    def _keep_threshold(self, em: MixtureEM, params: MixtureParams) -> None:
        super()._keep_threshold(em, params)
        if self.trim:
            self._params = replace(self._params, trim=(self.trim, self.trim_threshold_))

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
        width = self._to_residual.basis.shape[1]
        gate = constant_gate(start.weights, width) if self.gating == "metadata" else None
        if start.coef is not None:
            return replace(start, gate=gate)
        start = replace(start, coef=np.zeros((width, start.n_features)), gate=gate)
        return start if self.effects == "shared" or not width else with_own_effects(start)

    def _labelled(self, rows: Rows, K: int, kind: str) -> MixtureParams:
        shared = super()._labelled(rows, K, kind)
        if self.effects == "shared" or not self._to_residual.basis.shape[1]:
            return shared
        labels = check_labels(self.labels_init, rows.n_rows, K)
        return own_params_of_labels(self._whole(rows), labels, K, covariance_type=kind, reg_covar=self._floor)

    def _candidate_starts(self, rows: Rows, K: int, kind: str, begun: list[MixtureParams]) -> Iterator[MixtureParams]:
        starts = [self._with_metadata(start) for start in super()._candidate_starts(rows, K, kind, begun)]
        if self._joint and self.labels_init is None:
            starts += self._found_starts(rows, K, kind, dict.fromkeys(("weights", "means", "precisions")))
        yield from self._with_groups(rows, starts)

    def _found_starts(self, rows: Rows, K: int, kind: str, given: dict[str, Floats | None]) -> list[MixtureParams]:
        rows, random_state = self._whole(rows), check_random_state(self.random_state)
        alike: dict[str, Any] = {
            "covariance_type": kind,
            "reg_covar": self._start_floor,
            "gated": self.gating == "metadata",
            "n_init": self.n_init,
            "finish": self._run,
            "random_state": random_state,
        }
        width, joint = self._to_residual.basis.shape[1], self._joint
        shared = conditional_starts(
            rows, K, width=width, joint=joint, init_params=self._init_params, given=given, **alike
        )
        if self.effects == "shared":
            return shared
        return own_starts(rows, shared, more=all(value is None for value in given.values()), **alike)

    def _last_params(self, n_features: int) -> MixtureParams:
        """Return where the last fit ended, if this one can go on from there."""
        params, width = self._params, self._to_residual.basis.shape[1]
        check_goes_on(params.means, params.covariances, self._kind(), self.n_components, n_features, "warm_start")
        gated = self.gating == "metadata"
        if params.n_design != width or (params.gate is not None) != gated:
            raise ValueError(
                f"warm_start continues the last fit, but that has {params.n_design} independent design columns and "
                f"{'no' if params.gate is None else 'a'} gate, and this one {width} with gating={self.gating!r}; fit "
                "a clone of the estimator instead"
            )
        if self.effects == "by-component":
            return with_own_effects(params)
        if params.by_component:
            raise ValueError(
                "warm_start continues the last fit, but that has effects='by-component', and this one 'shared'; fit "
                "a clone of the estimator instead"
            )
        # two stages keep the coefficients of least squares, also after a joint fit
        return params if self._joint else replace(params, coef=np.zeros((width, n_features)))
