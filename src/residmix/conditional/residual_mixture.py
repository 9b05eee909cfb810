"""ResidualMixture: a regression on metadata and a Gaussian mixture of the residual, in two stages or jointly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import _fit_context
from sklearn.utils._param_validation import StrOptions
from sklearn.utils.metadata_routing import UNUSED
from sklearn.utils.validation import validate_data

from residmix.conditional.begin import ConditionalFit
from residmix.conditional.by_group import tell_of_pooled
from residmix.design.terms import find_term
from residmix.em.callbacks import FitTasks, with_callbacks
from residmix.em.runs import fingerprint
from residmix.errors import keeps_notes
from residmix.mixture.doubts.hints import tell_of_doubts
from residmix.mixture.fit import MixtureFit, State
from residmix.mixture.iteration.step import MixtureEM
from residmix.mixture.params import MixtureParams
from residmix.mixture.robust.errors import local_errors
from residmix.removal.residualizer import Residualizer
from residmix.rows.threads import one_blas_thread
from residmix.sources.open import as_table

__all__ = ["ResidualMixture"]

Floats = NDArray[np.float64]


class ResidualMixture(ConditionalFit):
    r"""Mixture of Gaussians with a regression on metadata.

    .. math:: p(x \mid m) = \sum_k \pi_k(m)\, N(x \mid b_0 + B_k' a(m) + \mu_k, \Sigma_k)

    with a(m) the design row that `formula` makes of the metadata m. All components have the same B unless
    ``effects="by-component"``.

    Parameters
    ----------
    n_components : int, list of int or "auto", default 3
        K; from a list, the best by `criterion` is kept.
    formula, preserve, features
        As in :class:`~residmix.Residualizer`; `preserve` works with two stages only.
    estimation : {"two-stage", "joint"}, default "two-stage"
        "two-stage": B by least squares, then the mixture on the residual. "joint": everything together by maximum
        likelihood (ECM). If the *proportions* of the components differ between sites, least squares mistakes this for a
        shift; joint estimation with ``gating="metadata"`` doesn't.
    gating : "constant", "metadata" or str, default "constant"
        Whether the weights depend on the metadata, :math:`\pi_k(m) \propto \exp(\gamma_{k0} + \gamma_k' a(m))`:
        "metadata" with the terms of `formula`, any other string is a formula of their own terms, as ``"age"`` beside
        ``formula="C(site)"``. Its terms needn't be those of the effects, and ``formula="1"`` is for none.
    effects : {"shared", "by-component"}, default "shared"
        Whether all components have the same B or each its own B_k, as if a batch shifts each cell type differently.
        Effects by component are always estimated jointly.
    covariance_by : str, optional
        A factor of the formula, as "site": each component has a covariance for every level, :math:`\Sigma_{g(m) k}`,
        estimated jointly with all else. Levels in which some component has fewer than 2 (d + 1) rows share theirs, and
        `notes_` names them. Normal components with or without gate and effects by component; no noise, tails, trimming,
        priors or gaps.
    covariance_type, n_factors, criterion, noise, distribution, trim, cells, eigenvalue_ratio, prior
        As in :class:`~residmix.GaussianMixture`; the prior applies to the mixture of the residual.
    tol, reg_covar, max_iter, n_init, init_params, search
        As in :class:`~residmix.GaussianMixture`.
    weights_init, means_init, precisions_init, labels_init
        As in :class:`~residmix.GaussianMixture`; `means_init` are means of the residual.
    on_unknown, missing
        As in :class:`~residmix.Residualizer`.
    missing_features : {"error", "em"}, default "error"
        "em": NaN in a feature is a missing value, as with ``missing="em"`` of :class:`~residmix.GaussianMixture`. With
        two stages, the coefficients of each feature are estimated from its observed rows.
    random_state, warm_start, accelerate, verbose, verbose_interval, checkpoint
        As in :class:`~residmix.GaussianMixture`.

    Attributes
    ----------
    coef_ : ndarray (p, d)
        B; with effects by component (K, p, d). Rows of columns that the weights alone depend on are 0.
    intercept_ : ndarray (d,)
        b_0: residuals are ``x - intercept_ - a(m) @ coef_`` and have mean zero, so ``weights_ @ means_`` is zero too.
    weights_ : ndarray (K,)
        Mixing weights; with gating their average over the training rows.
    means_, covariances_, precisions_, precisions_cholesky_ : ndarray
        Of the residual, shaped as in :class:`~residmix.GaussianMixture`. With effects by component
        ``intercept_ + means_`` are the means where all design columns are 0.
    groups_, group_covariances_ : list of lists of str, ndarray (G, K, ...)
        With `covariance_by` only: the levels that have covariances together, and these; `covariances_` and what hangs
        on it are their averages over the rows.
    residual_means_ : ndarray (K, d)
        With effects by component, means of the components among the :meth:`residuals`; else the same as `means_`.
    gate_coef_ : ndarray (K, p) or None
        gamma; rows sum to zero over components. Columns that have effects only are 0.
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
    Meng and Rubin (1993), Biometrika 80:267 (ECM); Dayton and Macready (1988), JASA 83:173 (concomitant variables);
    Gruen and Leisch (2008), J. Stat. Softw. 28(4) (effects by component).

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
        "gating": [str],
        "effects": [StrOptions({"shared", "by-component"})],
        "covariance_by": [str, None],
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
        effects: str = "shared",
        covariance_by: str | None = None,
        covariance_type: str | Sequence[str] = "full",
        n_factors: int | None = None,
        criterion: str = "bic",
        noise: bool = False,
        distribution: str = "gaussian",
        trim: float = 0.0,
        cells: float = 0.0,
        eigenvalue_ratio: float | None = None,
        prior: str | dict[str, Any] | None = None,
        tol: float = 1e-5,
        reg_covar: float | str = 1e-6,
        max_iter: int = 1000,
        n_init: int = 1,
        init_params: str = "short-em",
        search: str | int = "all",
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
        self.n_components, self.formula, self.preserve, self.features = n_components, formula, preserve, features
        self.estimation, self.gating, self.effects = estimation, gating, effects
        self.covariance_by = covariance_by
        self.covariance_type, self.n_factors, self.criterion = covariance_type, n_factors, criterion
        self.noise, self.distribution, self.trim = noise, distribution, trim
        self.cells = cells
        self.eigenvalue_ratio, self.prior = eigenvalue_ratio, prior
        self.tol, self.reg_covar, self.max_iter = tol, reg_covar, max_iter
        self.n_init, self.init_params, self.search = n_init, init_params, search
        self.weights_init = weights_init
        self.means_init = means_init
        self.precisions_init = precisions_init
        self.labels_init = labels_init
        self.on_unknown, self.missing, self.missing_features = on_unknown, missing, missing_features
        self.random_state, self.warm_start, self.accelerate = random_state, warm_start, accelerate
        self.verbose, self.verbose_interval, self.checkpoint = verbose, verbose_interval, checkpoint

    # ---- fitting -----------------------------------------------------------------------------------------------------

    @keeps_notes
    @with_callbacks
    @_fit_context(prefer_skip_nested_validation=True)
    def fit(
        self,
        X: Any,
        y: Any = None,
        *,
        metadata: Any = None,
        sample_weight: Any = None,
        error_covariance: ArrayLike | None = None,
    ) -> Self:
        """Estimate coefficients, mixture and gate.

        Parameters
        ----------
        X : array (n, d), or a table with the features and, if `metadata` isn't given, the metadata columns
        y : ignored
        metadata : array (n,) or (n, p), or table, optional
        sample_weight : array (n,) or str, optional
        error_covariance : array (n, d) or (n, d, d), optional
            As in :meth:`residmix.GaussianMixture.fit`; it is used by joint estimation, but not by least squares.

        Raises
        ------
        ValueError, TypeError
            For input that can't be used, with what to do about it.
        """
        self._check_preserve(error_covariance)
        table = as_table(X, metadata=metadata)
        residualizer = Residualizer(
            self.formula,
            preserve=self.preserve,
            features=self.features,
            on_unknown=self.on_unknown,
            missing=self.missing,
        )
        least_squares_rows, _ = residualizer.fit_to(
            table, table, sample_weight, y=y, quiet=self._quiet, allow_nan=self._gaps_allowed(), codes=False,
            beside=[name for term in self._gate_terms for factor in term for name in factor.columns()],
        )  # fmt: skip
        self.residualizer_ = residualizer
        if residualizer.x_is_features:
            validate_data(self, X, reset=True, skip_check_array=True)
        else:
            self.feature_names_in_, self.n_features_in_ = residualizer.features_, len(residualizer.features_)
        raw = self._given_rows(table, sample_weight, least_squares_rows)
        self._check_enough(int(residualizer.fit_.count.max(initial=0)))
        rows = raw.mapped(self._to_residual)
        errors = local_errors(error_covariance, rows)
        tasks = FitTasks(
            self,
            lambda model, state: ResidualMixture._keep(model, state, rows.n_rows),
            n_starts=self.n_init if not self._joint and not self._is_search() else None,
            X=X,
            y=y,
            metadata=metadata,
            sample_weight=sample_weight,
        )
        joint = self._joint
        with one_blas_thread():
            self._prepare(rows, errors)
            em = MixtureEM(rows, self._floor, joint=joint, errors=errors)
            if self._is_search():
                state, revived = self._search(rows, tasks, joint=joint, errors=errors)
            else:
                self.__dict__.pop("selection_", None)
                starts, found = partial(self._starts, rows), fingerprint(self, raw)
                state, revived = self._best(em, starts, tasks, found, wanted=self._wanted()), em.revived
            state = self._with_own_penalties(em, state)
            self._keep(state, rows.n_rows)
            self._keep_threshold(em, state.params)
            self._tell_of_effects(rows, state, raw)
        self._warn(revived)
        tell_of_doubts(raw, list(residualizer.features_), rows, self._whole(rows), state.params, self._floor)
        tasks.end()
        return self

    def fit_predict(self, X: Any, y: Any = None, *, metadata: Any = None, sample_weight: Any = None) -> NDArray[Any]:
        """Fit, and return the most probable component of each row (n,)."""
        return np.asarray(self.fit(X, metadata=metadata, sample_weight=sample_weight).predict(X, metadata=metadata))

    def fit_transform(self, X: Any, y: Any = None, *, metadata: Any = None, sample_weight: Any = None) -> Any:
        """Fit, and return the residuals of the same rows (n, d), as :meth:`transform` does."""
        return self.fit(X, metadata=metadata, sample_weight=sample_weight).transform(X, metadata=metadata)

    def _keep(self, state: State, n_rows: int) -> None:
        params, to_residual = state.params, self._to_residual
        assert params.coef is not None
        # residuals have mean zero by convention: what the components' means share belongs to the intercept
        common = params.weights @ params.means
        self._params, self._common = replace(params, restraint=None), common
        affine, basis, offset = to_residual.affine, to_residual.effects_basis, to_residual.effects_offset
        self.coef_ = affine.coef + basis @ params.coef
        constant, means = affine.constant - offset @ params.coef + common, params.means - common
        if params.by_component:
            # means where the design is 0, as the formula has it; the part that rows share is their residuals' alone
            at_zero = affine.origin_x + (constant + means - affine.origin_a @ self.coef_)
            self._affine = replace(affine, constant=affine.constant + common)
            self.intercept_ = params.weights @ at_zero
            means = at_zero - self.intercept_
        else:
            self._affine = replace(affine, coef=self.coef_, constant=constant)
            self.intercept_ = affine.origin_x + (constant - affine.origin_a @ self.coef_)
            if self.effects == "by-component":  # there is nothing in which components could differ
                self.coef_ = np.repeat(self.coef_[None], params.n_components, axis=0)
        self._keep_mixture(replace(params, means=means), state)
        self._keep_groups(params)
        self.gate_coef_ = self.gate_intercept_ = None
        if params.gate is not None:
            gate = params.gate.coef
            self.gate_coef_ = gate[:, :-1] @ params.gate.columns_of(to_residual.basis).T
            offset = params.gate.columns_of(to_residual.offset[None])[0]
            self.gate_intercept_ = gate[:, -1] - gate[:, :-1] @ offset - self.gate_coef_ @ affine.origin_a
        self.design_columns_ = list(self._design.column_names[: len(to_residual.basis)])
        self._n_rows = n_rows

    def _keep_groups(self, params: MixtureParams) -> None:
        for name in ("groups_", "group_covariances_"):
            self.__dict__.pop(name, None)
        by = params.by_group
        self._n_groups = 1 if by is None else by.n_groups
        if by is not None and self.covariance_by is not None:
            levels = find_term(self.residualizer_.design_.terms, self.covariance_by, "covariance_by").levels
            self.groups_ = [[str(levels[i]) for i in np.flatnonzero(by.group == g)] for g in range(by.n_groups)]
            self.group_covariances_ = by.covariances
            tell_of_pooled(params, levels)
