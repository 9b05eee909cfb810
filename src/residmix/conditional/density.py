"""Methods of a fitted mixture given metadata: density, components, draws, criteria."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from residmix.conditional.after import AfterFitGiven
from residmix.conditional.coordinates import ToResidual
from residmix.conditional.given import components_given, covariances_given, located, weighed
from residmix.conditional.own.effect import ExpectedEffect
from residmix.effects.unmeasured.later import refused
from residmix.mixture.density import log_density, most_probable
from residmix.mixture.families.family import family
from residmix.mixture.fit import MixtureFit
from residmix.mixture.gaussian import GaussianMixture
from residmix.mixture.given.by_group import at_group
from residmix.mixture.given.gate import log_priors
from residmix.mixture.given.scores import MarginalScores
from residmix.mixture.iteration.estep import Problem, responsibilities
from residmix.mixture.params import MixtureParams
from residmix.mixture.robust.cells import believed
from residmix.mixture.robust.tails import expected
from residmix.moments.affine import Affine
from residmix.moments.inference import removed_degrees
from residmix.removal.transformer import refuse_frames
from residmix.rows.block import Block
from residmix.rows.rows import Rows
from residmix.sources.open import as_table
from residmix.sources.output import collect, delivered

__all__ = ["ConditionalDensity"]

Floats = NDArray[np.float64]


def _imputed(problem: Problem, to_residual: ToResidual, block: Block) -> Floats:
    params, x = problem.params, np.asarray(block.X, dtype=np.float64)
    seen = to_residual(block)
    prior = params.log_weights
    if params.gate is not None:
        prior = log_priors(seen.design, params.gate.coef)
    residual = seen.X.copy()
    effect: Any = 0.0
    if params.coef is not None and not params.by_component:
        effect = params.columns_of(seen.design) @ params.coef
    filled = expected(problem, residual - effect, prior, seen.design) + effect
    whole = replace(to_residual.affine, sign=1)(replace(block, X=filled))
    out = np.isnan(x if params.cells is None else believed(params, residual - effect, prior)[0])
    return np.where(out, whole, x)


class ConditionalDensity(TransformerMixin, AfterFitGiven, MixtureFit):
    """Methods of a fitted :class:`residmix.ResidualMixture`."""

    effects: str
    gate_coef_: Floats | None
    _to_residual: ToResidual
    _affine: Affine
    _params: MixtureParams
    _common: Floats
    # groups of rows with covariances of their own
    _n_groups: int = 1

    def _model(self) -> MixtureParams:
        return self._params

    def _gaps_allowed(self) -> bool:
        return getattr(self, "missing_features", "error") == "em"

    def _table_rows(self, table: Any, sample_weight: Any = None) -> Rows:
        residualizer = self.residualizer_
        block_rows, allow_nan = self._block_rows(len(residualizer.features_)), self._gaps_allowed()
        how: dict[str, Any] = {"design": self._design, "block_rows": block_rows, "allow_nan": allow_nan}
        rows = residualizer.rows_of(table, sample_weight, **how)
        if residualizer.on_unknown == "error":
            checks = refused(residualizer.design_, residualizer.fit_, residualizer.moments_), self._refused_of_gate()
            for check in checks:
                rows = rows if check is None else rows.mapped(check)
        return rows

    # ---- using -------------------------------------------------------------------------------------------------------

    def _feature_rows(self, X: Any, metadata: Any) -> Rows:
        check_is_fitted(self)
        table = self.residualizer_.open_rows(X, metadata, check=False, design=self._design)
        if self.residualizer_.x_is_features:
            validate_data(self, X, reset=False, skip_check_array=True)
        return self._table_rows(table)

    def _rows(self, X: Any, *given: Any) -> Rows:
        return self._feature_rows(X, *given).mapped(self._to_residual)

    def score_samples(
        self, X: Any, *, metadata: Any = None, error_covariance: ArrayLike | None = None, out: Any = None
    ) -> Any:
        """Return ``log p(x | m)`` of each row, (n,); or write it to a file, or into an array.

        Parameters
        ----------
        X, metadata, error_covariance
            As in fit.
        out : path or ndarray, optional
            A Parquet file to write, with the column ``log_density``; its path is returned instead of an array. Or an
            array of float64 to write to.
        """
        return self._per_row(log_density, out, X, metadata, errors=error_covariance)

    def score(self, X: Any, y: Any = None, *, metadata: Any = None, sample_weight: ArrayLike | None = None) -> float:
        """Return the (weighted) mean of ``log p(x | m)`` over the rows."""
        return self._score(sample_weight, X, metadata)

    def predict(
        self, X: Any, *, metadata: Any = None, error_covariance: ArrayLike | None = None, out: Any = None
    ) -> Any:
        """Return the most probable component of each row, (n,).

        `out` as in :meth:`score_samples`: a file has the column ``component``, an array is of integers (`numpy.intp`).
        """
        return self._per_row(most_probable, out, X, metadata, errors=error_covariance)

    def predict_proba(
        self, X: Any, *, metadata: Any = None, error_covariance: ArrayLike | None = None, out: Any = None
    ) -> Any:
        """Return the probability of each component given row and metadata, (n, K).

        `out` as in :meth:`score_samples`: a file has the columns ``probability_0`` and so on, an array is (n, K).
        """
        return self._per_row(responsibilities, out, X, metadata, errors=error_covariance)

    @property
    def residual_means_(self) -> Floats:
        """Means of the components among the residuals, (K, d); `means_`, unless effects are by component."""
        return self._params.means - self._common

    def residuals(self, X: Any, *, metadata: Any = None, out: Any = None) -> Any:
        r"""Return ``x - intercept_ - a(m) @ coef_``, (n, d), in the dtype of X.

        With ``effects="by-component"`` the effects of the components are averaged by their probabilities, and metadata
        are centred: :math:`x - b - \sum_k p(k \mid x, m) B_k' (a(m) - \bar a)`, whose mean is zero, too.

        Parameters
        ----------
        X, metadata
            As in fit.
        out : path or ndarray, optional
            A Parquet file to write the residuals to; its path is returned instead of an array. Or an array to write to,
            which may be X itself.
        """
        rows: Rows = self._feature_rows(X, metadata)
        function: Callable[[Block], NDArray[Any]] = self._affine
        if self._params.by_component:
            problem = Problem.of(self._params, n_rows=rows.n_rows)
            function = ExpectedEffect(problem, self._to_residual, self._common)
        return delivered(rows, function, self.residualizer_.features_, out)

    def transform(self, X: Any, *, metadata: Any = None, out: Any = None) -> Any:
        """Return what :meth:`residuals` does, (n, d), so that a model is a step of a pipeline: what follows sees no
        effect of the metadata. After ``set_output(transform="pandas")`` it is a frame with the features' names.

        Parameters
        ----------
        X, metadata, out
            As in `residuals`.

        Examples
        --------
        >>> import residmix as rm
        >>> from sklearn.decomposition import PCA
        >>> from sklearn.pipeline import make_pipeline
        >>> from residmix.data import penguins
        >>> table, features = penguins(), ["bill_length_mm", "body_mass_g"]
        >>> model = rm.ResidualMixture(3, formula="C(sex)", features=features, random_state=0)
        >>> make_pipeline(model, PCA(1)).fit_transform(table).shape
        (333, 1)
        """
        check_is_fitted(self)
        if out is not None:
            refuse_frames(self)
        return self.residuals(X, metadata=metadata, out=out)

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[Any]:
        """Return the names of the features, which are also the names of what `transform` gives."""
        check_is_fitted(self)
        return np.asarray(self.residualizer_.features_, dtype=object)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    def z_scores(self, X: Any, *, metadata: Any = None, out: Any = None) -> Any:
        r"""Return :math:`\Phi^{-1}(F_j(x_j \mid m))`, (n, d): the z-score of each value.

        F is the distribution function of the feature's marginal mixture given the metadata, so skewed and clustered
        features have normal scores as well.

        Parameters
        ----------
        X, metadata
            As in fit.
        out : path or ndarray, optional
            A Parquet file, or an array of float64, to write to.
        """
        return self._scores(X, metadata, out, centiles=False)

    def centiles(self, X: Any, *, metadata: Any = None, out: Any = None) -> Any:
        """Return the centile (0 to 100) of each value among rows with the same metadata, (n, d).

        Parameters
        ----------
        X, metadata, out
            As in `z_scores`.

        Examples
        --------
        >>> import residmix as rm
        >>> from residmix.data import penguins
        >>> table, features = penguins(), ["bill_length_mm", "body_mass_g"]
        >>> model = rm.ResidualMixture(3, formula="C(sex)", features=features, random_state=0).fit(table)
        >>> centiles = model.centiles(table)
        >>> bool(abs((centiles < 25).mean() - 0.25) < 0.03)
        True
        """
        return self._scores(X, metadata, out, centiles=True)

    def _scores(self, X: Any, metadata: Any, out: Any, *, centiles: bool) -> Any:
        rows = self._rows(X, metadata)
        if self._params.noise is not None:
            raise ValueError(
                "z_scores and centiles don't work with noise=True, where a row may belong to no "
                "component; fit without noise"
            )
        return delivered(rows, MarginalScores(self._params, centiles), self.residualizer_.features_, out)

    def impute(self, X: Any, *, metadata: Any = None) -> Floats:
        """Return the features with missing values replaced by their expectation, given all else, (n, d).

        With `cells`, values that are set aside as wrong are replaced, too.

        Parameters
        ----------
        X, metadata
            As in fit; NaN is a missing value. The model needs ``missing_features="em"`` or `cells`.
        """
        if not self._has_gaps():
            raise ValueError('impute needs missing_features="em", or cells=; set one of them and fit again')
        rows, params = self._feature_rows(X, metadata), self._params
        problem = Problem.of(params, n_rows=rows.n_rows)
        return collect(rows, partial(_imputed, problem, self._to_residual))

    def sample(self, n_samples: int | None = None, *, metadata: Any = None) -> tuple[Floats, NDArray[np.intp]]:
        """Draw features given metadata.

        Parameters
        ----------
        n_samples : int, optional
            Number of rows, for a model without metadata; default 1. With metadata, one row is drawn for each of their
            rows.
        metadata : array (n, p) or table, optional
            One row is drawn for each; needed if the model has metadata.

        Returns
        -------
        X : ndarray (n, d)
        labels : ndarray (n,)
        """
        check_is_fitted(self)
        a, codes = self._design_rows(metadata, 1 if n_samples is None else n_samples)
        if n_samples is not None and n_samples != len(a):
            raise ValueError(
                f"n_samples={n_samples}, but one row is drawn for each of the {len(a)} rows of metadata; leave "
                "n_samples out, or repeat rows of metadata"
            )
        if len(a) < 1:
            raise ValueError(f"Invalid value for 'n_samples': {n_samples}. At least one row must be drawn.")
        random = check_random_state(self.random_state)
        n, params, prior = len(a), self._params, np.exp(weighed(self._to_residual, self._params, a))
        labels = np.minimum((random.random_sample((n, 1)) > prior.cumsum(axis=1)).sum(axis=1), len(self.weights_) - 1)
        covariances, group = covariances_given(self._to_residual, params, a)
        away = np.einsum(
            "nij,nj->ni",
            np.linalg.cholesky(covariances)[group, labels],
            random.standard_normal((n, self.means_.shape[1])),
        )
        if params.dof is not None:
            away /= np.sqrt(random.chisquare(params.dof[labels]) / params.dof[labels])[:, None]
        drawn = located(self._to_residual, params, labels, a, codes, away)
        if params.noise is not None:
            weight, box = params.noise
            outside = random.random_sample(n) < weight
            labels[outside] = -1
            noise = Block(0, random.uniform(*box, size=drawn.shape), a, codes)
            drawn[outside] = replace(self._to_residual.affine, sign=1)(noise)[outside]
        return drawn, labels

    def _design_rows(self, metadata: Any, n: int) -> tuple[Floats, tuple[NDArray[np.integer[Any]], ...]]:
        """Return the design rows of metadata and the codes of absorbed factors; n empty rows without metadata."""
        design = self._design
        if not design.columns:
            return np.empty((n, 0)), ()
        if metadata is None:
            raise ValueError(
                "metadata= is needed, since the model was fitted with metadata; pass one row of "
                "metadata per row of the result"
            )
        # a table makes of text in an array what fit made of it
        parts = as_table(np.zeros((len(metadata), 1)), metadata=metadata).chunks(None)
        matrices = [design.matrix(part) for part in parts]
        codes = tuple(np.concatenate(code) for code in zip(*(m.codes for m in matrices), strict=True))
        return np.concatenate([matrix.dense for matrix in matrices]), codes

    # ---- mixtures that follow ----------------------------------------------------------------------------------------

    def at(self, metadata: Any = None) -> GaussianMixture:
        r"""Return the mixture of the features for one row of metadata, p(x | m), in the units of X.

        Parameters
        ----------
        metadata : array (1, p) or table of one row, optional
            Needed if the model has metadata.

        Examples
        --------
        >>> import residmix as rm
        >>> from residmix.data import penguins
        >>> table, features = penguins(), ["bill_length_mm", "body_mass_g"]
        >>> model = rm.ResidualMixture(2, formula="C(sex)", features=features, random_state=0).fit(table)
        >>> male = model.at(table[table.sex == "male"][:1])
        >>> round(float(male.weights_ @ male.means_[:, 1]))
        4546
        """
        check_is_fitted(self)
        a, codes = self._design_rows(metadata, 1)
        if len(a) != 1:
            raise ValueError(f"metadata must have one row, not {len(a)}")
        given, noise = components_given(self, metadata), self._params.noise
        if noise is not None:
            both = Block(0, noise[1], np.repeat(a, 2, axis=0), tuple(np.repeat(code, 2) for code in codes))
            noise = noise[0], replace(self._to_residual.affine, sign=1)(both)
        weights, means = np.exp(given.log_weights[0]), given.means[0]
        own = self._params if self._params.by_group is None else at_group(self._params, int(given.group[0]))
        params = replace(own, weights=weights, means=means, coef=None, gate=None, noise=noise)
        return GaussianMixture._made(params, getattr(self, "feature_names_in_", None))

    def condition(self, values: Mapping[Any, float], *, metadata: Any = None) -> GaussianMixture:
        """Return the conditional mixture of the other features, given values of some and one row of metadata.

        The same as ``at(metadata).condition(...)``; see :meth:`residmix.GaussianMixture.condition`.
        """
        return self.at(metadata).condition(values)

    def marginal(self, features: Iterable[Any], *, metadata: Any = None) -> GaussianMixture:
        """Return the marginal mixture of some features for one row of metadata: ``at(metadata).marginal(...)``."""
        return self.at(metadata).marginal(features)

    # ---- judging -----------------------------------------------------------------------------------------------------

    def _count(self, K: int, kind: str, d: int) -> int:
        """Return the number of free parameters: mixture, regression and gate; the residual's mean is the intercept.

        A curve counts with its effective degrees of freedom.
        """
        widths, design = self._to_residual.widths, self.residualizer_.design_
        times = K if self.effects == "by-component" else 1
        gate = (K - 1) * widths.gate if self._gated else 0
        regression: float = times * widths.effects * d - self.residualizer_.saved_degrees
        if design.factors:  # least squares, whose effects all components share
            regression = int(removed_degrees(self.residualizer_.fit_, design.n_removed).sum())
        more = (self._n_groups - 1) * family(kind).n_parameters(K, d)
        return super()._count(K, kind, d) + regression + gate + more  # type: ignore[return-value]

    def bic(self, X: Any, *, metadata: Any = None, sample_weight: ArrayLike | None = None) -> float:
        """Return the BIC, ``-2 log L + p log n``, with p including regression and gate: lower is better.

        With weights w, log L is the sum of ``w log p(x | m)`` and n the sum of w, as if rows were repeated.
        """
        return self._bic(sample_weight, X, metadata)

    def aic(self, X: Any, *, metadata: Any = None, sample_weight: ArrayLike | None = None) -> float:
        """Return the AIC, ``-2 log L + 2 p``: lower is better. Weights as in :meth:`bic`."""
        return self._aic(sample_weight, X, metadata)

    def icl(self, X: Any, *, metadata: Any = None, sample_weight: ArrayLike | None = None) -> float:
        """Return the integrated completed likelihood: the BIC plus twice the entropy of the assignments.

        Biernacki, Celeux and Govaert (2000), IEEE PAMI 22:719, on the scale of the BIC: lower is better.
        """
        return self._icl(sample_weight, X, metadata)
