"""ResidualMixture: what the metadata explain, and a mixture of Gaussians of the rest, in two stages or jointly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import _fit_context
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import StrOptions
from sklearn.utils.metadata_routing import UNUSED
from sklearn.utils.validation import validate_data

from residmix.conditional.coordinates import to_residual
from residmix.conditional.density import ConditionalDensity
from residmix.conditional.entangled import tell_of_entangled
from residmix.conditional.starts import conditional_starts, constant_gate
from residmix.design.design import Design
from residmix.em.callbacks import FitTasks, with_callbacks
from residmix.em.runs import fingerprint
from residmix.errors import keeps_notes
from residmix.mixture.doubts.hints import tell_of_doubts
from residmix.mixture.doubts.spikes import count
from residmix.mixture.fit import MixtureFit, State
from residmix.mixture.iteration.step import MixtureEM
from residmix.mixture.params import MixtureParams
from residmix.mixture.selection.candidates import sizes
from residmix.mixture.starts import check_goes_on
from residmix.removal.residualizer import Residualizer
from residmix.rows.rows import Rows
from residmix.rows.threads import one_blas_thread
from residmix.sources.open import as_table

__all__ = ["ResidualMixture"]

Floats = NDArray[np.float64]


class ResidualMixture(ConditionalDensity):
    r"""Mixture of Gaussians around what the metadata explain.

    .. math:: p(x \mid m) = \sum_k \pi_k(m)\, N(x \mid b_0 + B' a(m) + \mu_k, \Sigma_k)

    with a(m) the design row that `formula` makes of the metadata m.

    Parameters
    ----------
    n_components : int, list of int or "auto", default 3
        K; of several the best by `criterion` is kept.
    formula, preserve, features
        As in :class:`~residmix.Residualizer`; `preserve` with two stages only.
    estimation : {"two-stage", "joint"}, default "two-stage"
        B by least squares and the mixture on the residual; or everything by maximum likelihood together (ECM).
        Least squares takes a difference in *proportions* between sites for a shift; joint estimation with
        ``gating="metadata"`` doesn't.
    gating : {"constant", "metadata"}, default "constant"
        Whether the weights depend on the metadata, :math:`\pi_k(m) \propto \exp(\gamma_{k0} + \gamma_k' a(m))`.
    covariance_type, criterion, noise, distribution, tol, reg_covar, max_iter, n_init, init_params
        As in :class:`~residmix.GaussianMixture`.
    weights_init, means_init, precisions_init, labels_init
        As in :class:`~residmix.GaussianMixture`; `means_init` are means of the residual.
    on_unknown, missing
        As in :class:`~residmix.Residualizer`.
    missing_features : {"error", "em"}, default "error"
        "em": NaN in a feature is a missing value, as with ``missing="em"`` of :class:`~residmix.GaussianMixture`; in
        two stages each feature's coefficients are those of the rows that have it.
    random_state, warm_start, accelerate, verbose, verbose_interval, checkpoint
        As in :class:`~residmix.GaussianMixture`.

    Attributes
    ----------
    coef_ : ndarray (p, d)
        B.
    intercept_ : ndarray (d,)
        b_0: residuals are ``x - intercept_ - a(m) @ coef_`` and have mean zero, so ``weights_ @ means_`` is zero too.
    weights_ : ndarray (K,)
        Mixing weights; with gating their average over the training rows.
    means_, covariances_, precisions_, precisions_cholesky_ : ndarray
        Of the residual, shaped as in :class:`~residmix.GaussianMixture`.
    gate_coef_ : ndarray (K, p) or None
        gamma; rows sum to zero over components.
    gate_intercept_ : ndarray (K,) or None
    residualizer_ : Residualizer
        The least-squares fit.
    design_columns_ : list of str
    n_components_, covariance_type_, selection_
        As in :class:`~residmix.GaussianMixture`; the criteria count regression and gate.
    converged_ : bool
    n_iter_ : int
    lower_bound_ : float
        Log-likelihood per row of the training data.
    lower_bounds_ : list of float
    n_features_in_, feature_names_in_
        As everywhere in scikit-learn.

    References
    ----------
    Meng and Rubin (1993), Biometrika 80:267 (ECM); Dayton and Macready (1988), JASA 83:173 (concomitant variables).

    Examples
    --------
    >>> import residmix as rm
    >>> from residmix.data import penguins
    >>> table = penguins()
    >>> features = ["bill_length_mm", "bill_depth_mm", "flipper_length_mm", "body_mass_g"]
    >>> model = rm.ResidualMixture(3, formula="C(sex)", features=features, random_state=0).fit(table)
    >>> model.predict(table).shape
    (333,)
    """

    __metadata_request__fit = {"metadata": True}
    __metadata_request__predict = {"metadata": True, "out": UNUSED}  # a path is never routed
    __metadata_request__predict_proba = {"metadata": True, "out": UNUSED}
    __metadata_request__score = {"metadata": True}

    _parameter_constraints: dict[str, list[Any]] = MixtureFit._parameter_constraints | {
        "formula": [str, None],
        "preserve": [str, None],
        "features": ["array-like", None],
        "estimation": [StrOptions({"two-stage", "joint"})],
        "gating": [StrOptions({"constant", "metadata"})],
        "on_unknown": [StrOptions({"error", "mean", "shrink"})],
        "missing": [StrOptions({"error", "mean", "indicator"})],
        "missing_features": [StrOptions({"error", "em"})],
    }

    def __init__(
        self,
        n_components: int | Sequence[int] | str = 3,
        *,
        formula: str | None = None,
        preserve: str | None = None,
        features: Sequence[str] | None = None,
        estimation: str = "two-stage",
        gating: str = "constant",
        covariance_type: str | Sequence[str] = "full",
        criterion: str = "bic",
        noise: bool = False,
        distribution: str = "gaussian",
        tol: float = 1e-5,
        reg_covar: float = 1e-6,
        max_iter: int = 1000,
        n_init: int = 1,
        init_params: str = "short-em",
        weights_init: ArrayLike | None = None,
        means_init: ArrayLike | None = None,
        precisions_init: ArrayLike | None = None,
        labels_init: ArrayLike | None = None,
        on_unknown: str = "error",
        missing: str = "error",
        missing_features: str = "error",
        random_state: Any = None,
        warm_start: bool = False,
        accelerate: bool = True,
        verbose: int = 0,
        verbose_interval: int = 10,
        checkpoint: Any = None,
    ) -> None:
        self.n_components = n_components
        self.formula = formula
        self.preserve = preserve
        self.features = features
        self.estimation = estimation
        self.gating = gating
        self.covariance_type = covariance_type
        self.criterion = criterion
        self.noise = noise
        self.distribution = distribution
        self.tol = tol
        self.reg_covar = reg_covar
        self.max_iter = max_iter
        self.n_init = n_init
        self.init_params = init_params
        self.weights_init = weights_init
        self.means_init = means_init
        self.precisions_init = precisions_init
        self.labels_init = labels_init
        self.on_unknown = on_unknown
        self.missing = missing
        self.missing_features = missing_features
        self.random_state = random_state
        self.warm_start = warm_start
        self.accelerate = accelerate
        self.verbose = verbose
        self.verbose_interval = verbose_interval
        self.checkpoint = checkpoint

    # ---- fitting -----------------------------------------------------------------------------------------------------

    @keeps_notes
    @with_callbacks
    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Any, y: Any = None, *, metadata: Any = None, sample_weight: Any = None) -> Self:
        """Estimate coefficients, mixture and gate.

        Parameters
        ----------
        X : array (n, d), or a table with the features and, if `metadata` isn't given, the metadata columns
        y : ignored
        metadata : array (n,) or (n, p), or table, optional
        sample_weight : array (n,) or str, optional

        Raises
        ------
        ValueError, TypeError
            For input that can't be used, with what to do about it.
        """
        self._check_preserve()
        table = as_table(X, metadata=metadata)
        residualizer = Residualizer(
            self.formula,
            preserve=self.preserve,
            features=self.features,
            on_unknown=self.on_unknown,
            missing=self.missing,
        )
        least_squares_rows, _ = residualizer.fit_to(
            table, table, sample_weight, y=y, quiet=self._quiet, allow_nan=self._gaps_allowed()
        )
        self.residualizer_ = residualizer
        if residualizer.x_is_features:
            validate_data(self, X, reset=True, skip_check_array=True)
        else:
            self.feature_names_in_, self.n_features_in_ = residualizer.features_, len(residualizer.features_)
        self._check_columns_of_levels(residualizer.design_)
        p = len(residualizer.coef_)
        self._to_residual = to_residual(residualizer.fit_.affine(p), residualizer.moments_, p)
        raw = least_squares_rows.with_block_rows(self._block_rows(len(residualizer.features_)))
        counted = int(residualizer.fit_.count.max(initial=0))
        largest = 1 if isinstance(self.n_components, str) else sizes(self.n_components)[-1]
        if counted < max(largest, 2):
            raise ValueError(
                f"Expected n_samples >= n_components but got n_components = {largest}, n_samples = {counted}"
                if counted >= 2
                else f"Found array with {counted} sample(s) of positive weight while a minimum of 2 is required"
            )
        rows = raw.mapped(self._to_residual)
        tasks = FitTasks(
            self,
            lambda model, state: ResidualMixture._keep(model, state, rows.n_rows),
            n_starts=self.n_init if self.estimation == "two-stage" and not self._is_search() else None,
            X=X,
            y=y,
            metadata=metadata,
            sample_weight=sample_weight,
        )
        joint = self.estimation == "joint"
        with one_blas_thread():
            if self._is_search():
                state, revived = self._search(rows, tasks, joint=joint)
            else:
                self.__dict__.pop("selection_", None)
                em = MixtureEM(rows, self.reg_covar, joint=joint)
                state, revived = self._best(em, partial(self._starts, rows), tasks, fingerprint(self, raw)), em.revived
            self._keep(state, rows.n_rows)
            if joint and self.gating == "metadata":
                total = count(rows)
                bic = self._n_parameters() * np.log(total) - 2 * total * state.log_likelihood
                basis = self._to_residual.basis
                tell_of_entangled(rows, state.params, basis, self.design_columns_, self.coef_, bic, total)
        self._warn(revived)
        tell_of_doubts(raw, list(residualizer.features_), rows, self._whole(rows), state.params)
        tasks.end()
        return self

    def _check_columns_of_levels(self, design: Design) -> None:
        if design.factors and (self.estimation, self.gating) != ("two-stage", "constant"):
            raise ValueError(
                f"joint estimation and gating need a column per level, but {design.factors[0].name!r} has "
                f"{len(design.factors[0].levels)} levels; use estimation='two-stage' with gating='constant', or group "
                "its levels"
            )

    def _check_preserve(self) -> None:
        if self.preserve is not None and self.estimation == "joint":
            raise ValueError(
                f"preserve={self.preserve!r} needs estimation='two-stage': joint estimation would credit the removed "
                "columns with what the preserved ones explain, as its mixture doesn't see them"
            )

    def fit_predict(self, X: Any, y: Any = None, *, metadata: Any = None, sample_weight: Any = None) -> NDArray[Any]:
        """Fit, and return the most probable component of each row (n,)."""
        return self.fit(X, metadata=metadata, sample_weight=sample_weight).predict(X, metadata=metadata)

    def _starts(self, rows: Rows) -> list[MixtureParams]:
        if self.warm_start and hasattr(self, "_params"):
            return [self._last_params(rows.n_features)]
        K, kind = self.n_components, self.covariance_type
        if self.labels_init is not None:
            return [self._with_metadata(self._labelled(rows, K, kind))]
        return self._found_starts(rows, K, kind, self._given_start(rows.n_features))

    def _with_metadata(self, start: MixtureParams) -> MixtureParams:
        """Return a start whose coefficients are those of least squares and whose weights are constant."""
        width = self._to_residual.basis.shape[1]
        gate = constant_gate(start.weights, width) if self.gating == "metadata" else None
        return replace(start, coef=np.zeros((width, start.n_features)), gate=gate)

    def _candidate_starts(self, rows: Rows, K: int, kind: str, begun: list[MixtureParams]) -> Iterator[MixtureParams]:
        yield from map(self._with_metadata, super()._candidate_starts(rows, K, kind, begun))
        if self.estimation == "joint" and self.labels_init is None:
            yield from self._found_starts(rows, K, kind, dict.fromkeys(("weights", "means", "precisions")))

    def _found_starts(self, rows: Rows, K: int, kind: str, given: dict[str, Floats | None]) -> list[MixtureParams]:
        return conditional_starts(
            self._whole(rows),
            K,
            width=self._to_residual.basis.shape[1],
            covariance_type=kind,
            reg_covar=self.reg_covar,
            joint=self.estimation == "joint",
            gated=self.gating == "metadata",
            n_init=self.n_init,
            init_params=self.init_params,
            given=given,
            finish=self._run,
            random_state=check_random_state(self.random_state),
        )

    def _last_params(self, n_features: int) -> MixtureParams:
        """Return where the last fit ended, if this one can go on from there."""
        params, width = self._params, self._to_residual.basis.shape[1]
        check_goes_on(
            params.means, params.covariances, self.covariance_type, self.n_components, n_features, "warm_start"
        )
        gated = self.gating == "metadata"
        if params.n_design != width or (params.gate is not None) != gated:
            raise ValueError(
                f"warm_start goes on from the last fit, but that has {params.n_design} independent design columns and "
                f"{'no' if params.gate is None else 'a'} gate, and this one has {width} with gating={self.gating!r}; "
                "begin anew with a clone of the estimator"
            )
        # two stages keep the coefficients of least squares, also after a joint fit
        return params if self.estimation == "joint" else replace(params, coef=np.zeros((width, n_features)))

    def _keep(self, state: State, n_rows: int) -> None:
        params, to_residual = state.params, self._to_residual
        assert params.coef is not None
        # residuals have mean zero by convention: what the components' means share belongs to the intercept
        common = params.weights @ params.means
        self._params, self._common = params, common
        affine, basis, offset = to_residual.affine, to_residual.basis, to_residual.offset
        self.coef_ = affine.coef + basis @ params.coef
        constant = affine.constant - offset @ params.coef + common
        self._affine = replace(affine, coef=self.coef_, constant=constant)
        self.intercept_ = affine.origin_x + (constant - affine.origin_a @ self.coef_)
        self._keep_mixture(replace(params, means=params.means - common), state)
        self.gate_coef_ = self.gate_intercept_ = None
        if params.gate is not None:
            gate = params.gate.coef
            self.gate_coef_ = gate[:, :-1] @ basis.T
            self.gate_intercept_ = gate[:, -1] - gate[:, :-1] @ offset - self.gate_coef_ @ affine.origin_a
        self.design_columns_ = self.residualizer_.design_columns_
        self._n_rows = n_rows
