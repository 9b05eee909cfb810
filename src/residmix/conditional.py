"""ResidualMixture: what the metadata explain, and a mixture of Gaussians of the rest, in two stages or jointly."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from residmix._validation import check_choice, check_number
from residmix.checkpoint import fingerprint, run_starts
from residmix.em import EMState, run_em
from residmix.errors import DeadComponentWarning
from residmix.families import COVARIANCE_TYPES, SingularCovarianceError, n_covariance_parameters
from residmix.gating import log_priors
from residmix.joint import ConditionalEM, ConditionalParams, ToResidual, conditional_log_joint
from residmix.joint_starts import constant_gate, joint_starts
from residmix.moments.kernels import mixture_block_rows, responsibilities
from residmix.moments.levels import FactorMoments
from residmix.residualizer import Residualizer
from residmix.sources.output import collect
from residmix.sources.rows import Block, Rows
from residmix.sources.table import Table, as_table
from residmix.starts import INIT_PARAMS, check_given, find_start

__all__ = ["ResidualMixture"]

Floats = NDArray[np.float64]
# Directions of the design whose variance is below this share of the largest are aliased.
ALIASED = 1e-12


@dataclass(frozen=True)
class Scored:
    """log p(x, k | m) of a block, or what `finish` makes of it, as a picklable function of blocks."""

    to_residual: ToResidual
    params: ConditionalParams
    finish: str

    def __call__(self, block: Block) -> NDArray[Any]:
        joint = conditional_log_joint(self.to_residual(block), self.params)
        if self.finish == "density":
            return logsumexp(joint, axis=1)
        return joint.argmax(axis=1) if self.finish == "label" else responsibilities(joint)


class ResidualMixture(DensityMixin, BaseEstimator):
    r"""Mixture of Gaussians around what the metadata explain.

    .. math:: p(x \mid m) = \sum_k \pi_k(m)\, N(x \mid b_0 + B' a(m) + \mu_k, \Sigma_k)

    with a(m) the design row that `formula` makes of the metadata m.

    Parameters
    ----------
    n_components : int, default 3
        K.
    formula, preserve, features
        As in :class:`~residmix.Residualizer`.
    estimation : {"two-stage", "joint"}, default "two-stage"
        B by least squares and the mixture on the residual; or everything by maximum likelihood together (ECM).
        Least squares takes a difference in *proportions* between sites for a shift; joint estimation with
        ``gating="metadata"`` doesn't.
    gating : {"constant", "metadata"}, default "constant"
        Whether the weights depend on the metadata, :math:`\pi_k(m) \propto \exp(\gamma_{k0} + \gamma_k' a(m))`.
    covariance_type, tol, reg_covar, max_iter, n_init, init_params, weights_init, means_init, precisions_init, \
random_state, warm_start
        As in :class:`~residmix.GaussianMixture`; `means_init` are means of the residual.
    checkpoint : path, optional
        A file that holds the state of EM after each iteration. If the process dies, the same fit goes on from there,
        to the same bits; when it's done the file is removed.

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
    __metadata_request__predict = {"metadata": True}
    __metadata_request__predict_proba = {"metadata": True}
    __metadata_request__score = {"metadata": True}

    def __init__(
        self,
        n_components: int = 3,
        *,
        formula: str | None = None,
        preserve: str | None = None,
        features: Sequence[str] | None = None,
        estimation: str = "two-stage",
        gating: str = "constant",
        covariance_type: str = "full",
        tol: float = 1e-5,
        reg_covar: float = 1e-6,
        max_iter: int = 1000,
        n_init: int = 1,
        init_params: str = "short-em",
        weights_init: ArrayLike | None = None,
        means_init: ArrayLike | None = None,
        precisions_init: ArrayLike | None = None,
        on_unknown: str = "error",
        missing: str = "error",
        random_state: Any = None,
        warm_start: bool = False,
        checkpoint: Any = None,
    ) -> None:
        self.n_components = n_components
        self.formula = formula
        self.preserve = preserve
        self.features = features
        self.estimation = estimation
        self.gating = gating
        self.covariance_type = covariance_type
        self.tol = tol
        self.reg_covar = reg_covar
        self.max_iter = max_iter
        self.n_init = n_init
        self.init_params = init_params
        self.weights_init = weights_init
        self.means_init = means_init
        self.precisions_init = precisions_init
        self.on_unknown = on_unknown
        self.missing = missing
        self.random_state = random_state
        self.warm_start = warm_start
        self.checkpoint = checkpoint

    # ---- fitting -----------------------------------------------------------------------------------------------------

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
        self._check()
        table = as_table(X, metadata=metadata)
        residualizer = Residualizer(
            self.formula,
            preserve=self.preserve,
            features=self.features,
            on_unknown=self.on_unknown,
            missing=self.missing,
        )
        residualizer.fit(table, sample_weight=sample_weight)
        self.residualizer_ = residualizer
        if residualizer.design_ is None or residualizer._apart:
            validate_data(self, X, reset=True, skip_check_array=True)
        else:
            self.feature_names_in_, self.n_features_in_ = residualizer.features_, len(residualizer.features_)
        design = residualizer.design_
        if design is not None and design.factors and (self.estimation, self.gating) != ("two-stage", "constant"):
            raise ValueError(
                f"joint estimation and gating need a column per level, but {design.factors[0].name!r} has "
                f"{len(design.factors[0].levels)} levels; use estimation='two-stage' with gating='constant', or group "
                "its levels"
            )
        self._to_residual = _to_residual(residualizer)
        raw = self._table_rows(table, sample_weight)
        counted = int(residualizer.fit_.count.max(initial=0))
        if counted < max(self.n_components, 2):
            raise ValueError(
                f"Expected n_samples >= n_components but got n_components = {self.n_components}, n_samples = {counted}"
                if counted >= 2
                else f"Found array with {counted} sample(s) of positive weight while a minimum of 2 is required"
            )
        rows = raw.mapped(self._to_residual)
        self._keep(self._best(rows), rows.n_rows)
        return self

    def fit_predict(self, X: Any, y: Any = None, *, metadata: Any = None, sample_weight: Any = None) -> NDArray[Any]:
        """Fit, and return the most probable component of each row (n,)."""
        return self.fit(X, metadata=metadata, sample_weight=sample_weight).predict(X, metadata=metadata)

    def _check(self) -> None:
        check_choice("estimation", self.estimation, ("two-stage", "joint"))
        check_choice("gating", self.gating, ("constant", "metadata"))
        check_choice("covariance_type", self.covariance_type, COVARIANCE_TYPES)
        check_choice("init_params", self.init_params, INIT_PARAMS)
        check_number("n_components", self.n_components, low=1, integral=True)
        check_number("n_init", self.n_init, low=1, integral=True)
        check_number("max_iter", self.max_iter, low=0, integral=True)
        check_number("tol", self.tol, low=0)
        check_number("reg_covar", self.reg_covar, low=0)

    def _best(self, rows: Rows) -> EMState[ConditionalParams]:
        """Run every start to the end; return the likeliest."""
        joint, gated = self.estimation == "joint", self.gating == "metadata"
        em = ConditionalEM(rows, self.reg_covar, joint=joint)
        ended = run_starts(
            em,
            lambda: self._starts(rows, joint, gated),
            lambda _, start, keep: run_em(
                em, start, tol=self.tol, max_iter=self.max_iter, evaluate=em.evaluate, callback=keep
            ),
            failure=SingularCovarianceError,
            path=self.checkpoint,
            fingerprint=fingerprint(self, rows.n_rows, rows.n_features),
        )
        best = max(ended, key=lambda state: state.log_likelihood)
        if em.revived:
            warnings.warn(
                f"components {em.revived[-1]} of {self.n_components} lost all their rows and were re-seeded; fewer "
                "components may fit as well",
                DeadComponentWarning,
                stacklevel=3,
            )
        if not best.converged and self.max_iter > 0 and self.tol > 0:
            warnings.warn(
                f"EM did not converge in {self.max_iter} iterations; raise max_iter or tol",
                ConvergenceWarning,
                stacklevel=3,
            )
        return best

    def _starts(self, rows: Rows, joint: bool, gated: bool) -> list[ConditionalParams]:
        """Return where to begin: joint estimation also where two stages end, so that it can't do worse."""
        if self.warm_start and hasattr(self, "_params"):
            return [self._params]
        r, d = self._to_residual.basis.shape[1], rows.n_features
        given = check_given(
            self.weights_init, self.means_init, self.precisions_init, self.covariance_type, self.n_components, d
        )
        random_state = check_random_state(self.random_state)
        coef = np.zeros((r, d))
        starts = []
        for _ in range(self.n_init):
            mixture = find_start(
                rows,
                self.n_components,
                covariance_type=self.covariance_type,
                reg_covar=self.reg_covar,
                init_params=self.init_params,
                random_state=random_state,
                **given,
            )
            start = ConditionalParams(mixture, coef, constant_gate(mixture.weights, r) if gated else None)
            if joint:
                stage = ConditionalEM(rows, self.reg_covar, joint=False)
                # a start that collapses here is judged, and reported, where all starts are run
                with suppress(SingularCovarianceError):
                    start = run_em(stage, start, tol=self.tol, max_iter=self.max_iter).params
            starts.append(start)
            if joint and all(value is None for value in given.values()):
                starts += joint_starts(
                    rows,
                    self.n_components,
                    covariance_type=self.covariance_type,
                    reg_covar=self.reg_covar,
                    gated=gated,
                    random_state=random_state,
                )
        return starts

    def _keep(self, state: EMState[ConditionalParams], n_rows: int) -> None:
        params, to_residual = state.params, self._to_residual
        # residuals have mean zero by convention: what the components' means share belongs to the intercept
        mixture = params.mixture
        common = mixture.weights @ mixture.means
        mixture = replace(mixture, means=mixture.means - common)
        self._params, self._common = params, common
        affine, basis, offset = to_residual.affine, to_residual.basis, to_residual.offset
        self.coef_ = affine.coef + basis @ params.coef
        constant = affine.constant - offset @ params.coef + common
        self._affine = replace(affine, coef=self.coef_, constant=constant)
        self.intercept_ = affine.origin_x + (constant - affine.origin_a @ self.coef_)
        self.weights_, self.means_ = mixture.weights, mixture.means
        self.covariances_, self.precisions_cholesky_ = mixture.covariances, mixture.factors
        self.precisions_ = mixture.precisions()
        self.gate_coef_ = self.gate_intercept_ = None
        if params.gate is not None:
            gate = params.gate.coef
            self.gate_coef_ = gate[:, :-1] @ basis.T
            self.gate_intercept_ = gate[:, -1] - gate[:, :-1] @ offset - self.gate_coef_ @ affine.origin_a
        self.design_columns_ = self.residualizer_.design_columns_
        self.converged_, self.n_iter_ = state.converged, state.iteration
        self.lower_bound_, self.lower_bounds_ = state.log_likelihood, list(state.log_likelihoods[1:])
        self._n_rows = n_rows

    def _table_rows(self, table: Any, sample_weight: Any = None) -> Rows:
        residualizer = self.residualizer_
        return table.rows(
            residualizer._columns(table),
            design=residualizer.design_,
            weight=sample_weight,
            preserved=False,
            block_rows=mixture_block_rows(len(residualizer.features_), self.n_components),
        )

    # ---- using -------------------------------------------------------------------------------------------------------

    def _rows(self, X: Any, metadata: Any) -> Rows:
        check_is_fitted(self)
        residualizer = self.residualizer_
        if residualizer.design_ is None or not residualizer.design_.columns:
            metadata = None
        elif residualizer._apart and metadata is None and not isinstance(X, Table):
            raise ValueError("metadata is needed: this model was fitted with metadata=; pass it here too")
        table = as_table(X, metadata=metadata)
        if residualizer.design_ is None or residualizer._apart:
            validate_data(self, X, reset=False, skip_check_array=True)
        return self._table_rows(table)

    def _collect(self, X: Any, metadata: Any, finish: str) -> NDArray[Any]:
        rows = self._rows(X, metadata)
        return collect(rows, Scored(self._to_residual, self._params, finish))

    def score_samples(self, X: Any, *, metadata: Any = None) -> Floats:
        """Return ``log p(x | m)`` of each row, (n,)."""
        return self._collect(X, metadata, "density")

    def score(self, X: Any, y: Any = None, *, metadata: Any = None, sample_weight: ArrayLike | None = None) -> float:
        """Return the (weighted) mean of ``log p(x | m)`` over the rows."""
        weights = None if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
        return float(np.average(self.score_samples(X, metadata=metadata), weights=weights))

    def predict(self, X: Any, *, metadata: Any = None) -> NDArray[np.intp]:
        """Return the most probable component of each row, (n,)."""
        return self._collect(X, metadata, "label")

    def predict_proba(self, X: Any, *, metadata: Any = None) -> Floats:
        """Return the probability of each component given row and metadata, (n, K)."""
        return self._collect(X, metadata, "share")

    def residuals(self, X: Any, *, metadata: Any = None) -> NDArray[Any]:
        """Return ``x - intercept_ - a(m) @ coef_``, (n, d), in the dtype of X."""
        rows = self._rows(X, metadata)
        return collect(rows, self._affine)

    def sample(self, n_samples: int | None = None, *, metadata: Any = None) -> tuple[Floats, NDArray[np.intp]]:
        """Draw features given metadata.

        Parameters
        ----------
        n_samples : int, optional
            How many rows, for a model without metadata. Default 1.
        metadata : array (n, p) or table, optional
            One row is drawn for each; needed if the model has metadata.

        Returns
        -------
        X : ndarray (n, d)
        labels : ndarray (n,)
        """
        check_is_fitted(self)
        design = self.residualizer_.design_
        a = np.empty((1 if n_samples is None else n_samples, 0))
        codes: tuple[NDArray[np.integer[Any]], ...] = ()
        if design is not None and design.columns:
            if metadata is None:
                raise ValueError("sample needs metadata=: the model is conditional on it, one row is drawn for each")
            # a table makes of text in an array what fit made of it
            parts = as_table(np.zeros((len(metadata), 1)), metadata=metadata).chunks(None)
            matrices = [design.matrix(part) for part in parts]
            a = np.concatenate([matrix.dense for matrix in matrices])
            codes = tuple(np.concatenate(code) for code in zip(*(m.codes for m in matrices), strict=True))
        if len(a) < 1:
            raise ValueError(f"Invalid value for 'n_samples': {n_samples}. At least one row must be drawn.")
        random = check_random_state(self.random_state)
        n, params = len(a), self._params
        u = (a - self._affine.origin_a) @ self._to_residual.basis - self._to_residual.offset
        prior = np.tile(self.weights_, (n, 1)) if params.gate is None else np.exp(log_priors(u, params.gate.coef))
        labels = np.minimum((random.random_sample((n, 1)) > prior.cumsum(axis=1)).sum(axis=1), len(self.weights_) - 1)
        lower = np.linalg.cholesky(params.mixture.full_covariances())
        noise = np.einsum("nij,nj->ni", lower[labels], random.standard_normal((n, self.means_.shape[1])))
        drawn = Block(0, self.means_[labels] + noise, a, codes)
        return replace(self._affine, sign=1)(drawn), labels

    # ---- judging -----------------------------------------------------------------------------------------------------

    def _n_parameters(self) -> int:
        """Return the number of free parameters: mixture, regression and gate; the residual's mean is the intercept."""
        K, d = self.means_.shape
        r = self._to_residual.basis.shape[1]
        mixture = n_covariance_parameters(self.covariance_type, K, d) + K * d + K - 1
        design = self.residualizer_.design_
        absorbed = sum(len(factor.levels) - 1 for factor in design.factors) if design is not None else 0
        return mixture + (r + absorbed) * d + ((K - 1) * r if self.gate_coef_ is not None else 0)

    def bic(self, X: Any, *, metadata: Any = None) -> float:
        """Return Schwarz's criterion, ``-2 log L + p log n``, regression and gate counted: the lower, the better."""
        log_density = self.score_samples(X, metadata=metadata)
        return float(-2 * log_density.sum() + self._n_parameters() * math.log(len(log_density)))

    def aic(self, X: Any, *, metadata: Any = None) -> float:
        """Return Akaike's criterion, ``-2 log L + 2 p``: the lower, the better."""
        return float(-2 * self.score_samples(X, metadata=metadata).sum() + 2 * self._n_parameters())

    def icl(self, X: Any, *, metadata: Any = None) -> float:
        """Return the integrated completed likelihood: the BIC plus twice the entropy of the assignments.

        Biernacki, Celeux and Govaert (2000), IEEE PAMI 22:719, on the scale of the BIC: the lower, the better.
        """
        share = self.predict_proba(X, metadata=metadata)
        entropy = -np.sum(share * np.log(np.where(share > 0, share, 1.0)))
        return self.bic(X, metadata=metadata) + 2 * float(entropy)


def _to_residual(residualizer: Residualizer) -> ToResidual:
    """Return the map to least-squares residuals and to orthonormal, centred coordinates of the removed design."""
    p = len(residualizer.coef_)
    moments, affine = residualizer.moments_, residualizer.fit_.affine(p)
    if isinstance(moments, FactorMoments):  # effects of thousands of levels: two stages only, which need no basis
        return ToResidual(affine, np.empty((p, 0)), np.empty(0))
    scatter = moments.s_aa[0][:p, :p] / moments.weight[0]
    scale = np.sqrt(np.diag(scatter))
    scale = np.where(scale > 0, scale, 1.0)
    values, vectors = np.linalg.eigh(scatter / scale[:, None] / scale) if p else (np.empty(0), np.empty((0, 0)))
    kept = values > ALIASED * max(values[-1], 0.0) if p else np.zeros(0, dtype=bool)
    basis = vectors[:, kept] / np.sqrt(values[kept]) / scale[:, None]
    offset = (moments.mean_a[0][:p] - affine.origin_a) @ basis
    return ToResidual(affine, basis, offset)
