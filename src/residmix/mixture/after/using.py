"""Methods of a fitted GaussianMixture: densities, components, draws, criteria, marginal and conditional mixtures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_array, check_random_state
from sklearn.utils.metadata_routing import UNUSED
from sklearn.utils.validation import check_is_fitted, validate_data

from residmix.errors import did_you_mean
from residmix.mixture.after.methods import AfterPlainFit
from residmix.mixture.density import log_density, most_probable
from residmix.mixture.families.family import FACTOR, family
from residmix.mixture.fit import MixtureFit
from residmix.mixture.iteration.estep import Problem, responsibilities
from residmix.mixture.params import MixtureParams, SingularCovarianceError, conditional, make_params, marginal
from residmix.mixture.robust.tails import expected
from residmix.mixture.starts import check_given
from residmix.rows.block import Block
from residmix.rows.rows import ArrayRows, Rows
from residmix.sources.frames import unmasked
from residmix.sources.open import as_table, is_source
from residmix.sources.output import collect
from residmix.sources.table import Table

__all__ = ["GaussianDensity", "positions"]

Floats = NDArray[np.float64]


def positions(wanted: Iterable[Any], names: NDArray[Any] | None, n_features: int) -> list[int]:
    """Return the indices of features given by name or index; negative ones count from the end.

    Raises
    ------
    ValueError
        For an unknown name, an index out of range, or a repeated feature.
    """
    known = [] if names is None else [str(name) for name in names]
    found = []
    for one in wanted:
        if isinstance(one, str):
            if one not in known:
                listed = ", ".join(known[:10]) or "none, as X had no column names"
                raise ValueError(f"unknown feature {one!r}{did_you_mean(one, known)}; features are: {listed}")
            found.append(known.index(one))
        elif not -n_features <= one < n_features:
            raise ValueError(f"feature {one} doesn't exist; the indices are 0 to {n_features - 1}")
        else:
            found.append(int(one) % n_features)
    if len(set(found)) < len(found):
        raise ValueError(f"features must be distinct, not {list(wanted)}")
    return found


def _expected(problem: Problem, block: Block) -> Floats:
    return expected(problem, np.asarray(block.X, dtype=np.float64), problem.params.log_weights, block.design)


class GaussianDensity(AfterPlainFit, MixtureFit):
    """Methods of a fitted :class:`residmix.GaussianMixture`."""

    __metadata_request__predict = {"out": UNUSED}  # a path is never routed
    __metadata_request__predict_proba = {"out": UNUSED}

    def _model(self) -> MixtureParams:
        check_is_fitted(self)
        noise, weights = None, self.weights_
        if hasattr(self, "noise_weight_"):
            noise = (self.noise_weight_, self.noise_box_)
            weights = weights / max(1 - self.noise_weight_, np.finfo(float).tiny)
        covariances, factors = self.covariances_, self.precisions_cholesky_
        params = MixtureParams(weights, self.means_, covariances, factors, self._family_name)
        dof = getattr(self, "dof_", None)
        cells = getattr(self, "cell_penalties_", None)
        missing, parts, trim = self._gaps_allowed() or cells is not None, None, None
        if hasattr(self, "loadings_"):
            parts = np.concatenate([self.loadings_, np.sqrt(self.own_variances_)[..., None]], axis=2)
        if hasattr(self, "trim_threshold_"):
            trim = float(self.trim), self.trim_threshold_
        if noise is None and dof is None and not missing and parts is None and trim is None:
            return params
        return replace(params, noise=noise, dof=dof, missing=missing, parts=parts, trim=trim, cells=cells)

    def _source_rows(self, table: Table, weight: Any = None, *, reset: bool = False) -> Rows:
        """Return the rows of a table that isn't an array; with `reset`, its columns are stored."""
        if reset or not hasattr(self, "feature_names_in_"):
            names = table.feature_names(exclude=(weight,) if isinstance(weight, str) else ())
        else:
            names = tuple(self.feature_names_in_)
        if reset:
            self.n_features_in_ = len(names)
            self.__dict__.pop("feature_names_in_", None)
            if table.named:
                self.feature_names_in_: NDArray[Any] = np.asarray(names, dtype=object)
        elif len(names) != self.n_features_in_:
            raise ValueError(
                f"X has {len(names)} features, but {type(self).__name__} is expecting {self.n_features_in_} features "
                "as input"
            )
        allow_nan = self._gaps_allowed()
        return table.rows(names, weight=weight, block_rows=self._block_rows(len(names)), allow_nan=allow_nan)

    def _rows(self, X: Any, *given: Any) -> Rows:
        check_is_fitted(self)
        if is_source(X):
            return self._source_rows(as_table(X))
        kinds = [np.float64, np.float32]
        X = validate_data(self, unmasked(X), dtype=kinds, ensure_all_finite=self._finite(), reset=False)
        return ArrayRows(X, block_rows=self._block_rows(X.shape[1]))

    def _gaps_allowed(self) -> bool:
        return getattr(self, "missing", "error") == "em"

    def _finite(self) -> Any:
        return "allow-nan" if self._gaps_allowed() else True

    def impute(self, X: Any) -> Floats:
        """Return X with missing values replaced by their expectation given the other values of the row, (n, d).

        With `cells`, values that are set aside as wrong are replaced, too.

        Parameters
        ----------
        X : array (n, d) or table
            NaN is a missing value. The model needs ``missing="em"`` or `cells`.

        Examples
        --------
        >>> import numpy as np
        >>> from residmix import GaussianMixture
        >>> X = np.array([[0.0, 0.0], [1.0, 2.0], [2.0, 4.1], [3.0, 5.9], [4.0, np.nan]])
        >>> GaussianMixture(1, missing="em").fit(X).impute(X)[4].round(1)
        array([4. , 7.9])
        """
        if not self._has_gaps():
            raise ValueError('impute needs missing="em", or cells=; set one of them and fit again')
        rows, params = self._rows(X), self._model()
        return collect(rows, partial(_expected, Problem.of(params, n_rows=rows.n_rows)))

    def outlier_cells(self, X: Any, *, out: Any = None) -> Any:
        r"""Return which values are set aside as wrong, given the others of their row, (n, d).

        .. math:: \log p(x_{ij} \mid x_{i o}) < -q_j / 2

        with o the other values that are believed, and q the `cell_penalties_`. About 0.3 % of right values are set
        aside, as they are more than three standard deviations from what the others say. The share of a feature has no
        limit here, as rows are judged one by one. After Raymaekers & Rousseeuw (2023), "The cellwise minimum covariance
        determinant estimator", JASA 119.

        Parameters
        ----------
        X : array (n, d) or table
            The model needs `cells`.
        out : path or ndarray, optional
            As in :meth:`score_samples`: a file has a column of booleans for each feature.

        Examples
        --------
        >>> import numpy as np
        >>> from residmix import GaussianMixture
        >>> X = np.random.default_rng(0).normal(size=(200, 3))
        >>> X[7, 1] = 40.0
        >>> model = GaussianMixture(1, cells=0.25).fit(X)
        >>> model.outlier_cells(X)[7]
        array([False,  True, False])
        """
        names = getattr(self, "feature_names_in_", [f"x{j}" for j in range(self.means_.shape[1])])
        return self._outlier_cells(names, out, X)

    def score_samples(self, X: Any, *, error_covariance: ArrayLike | None = None, out: Any = None) -> Any:
        """Return ``log p(x)`` of each row, (n,); or write it to a file, or into an array.

        Parameters
        ----------
        X : array (n, d) or table
        error_covariance : array-like (n, d) or (n, d, d), optional
            Of the measurement errors of these rows, as in `fit`.
        out : path or ndarray, optional
            A Parquet file to write, with the column ``log_density``; its path is returned instead of an array. Or an
            array of float64 to write to.
        """
        return self._per_row(log_density, out, X, errors=error_covariance)

    def score(self, X: Any, y: Any = None, sample_weight: ArrayLike | None = None) -> float:
        """Return the (weighted) mean of ``log p(x)`` over the rows."""
        return self._score(sample_weight, X)

    def predict(self, X: Any, *, error_covariance: ArrayLike | None = None, out: Any = None) -> Any:
        """Return the most probable component of each row, (n,).

        `out` as in :meth:`score_samples`: a file has the column ``component``, an array is of integers (`numpy.intp`).
        """
        return self._per_row(most_probable, out, X, errors=error_covariance)

    def predict_proba(self, X: Any, *, error_covariance: ArrayLike | None = None, out: Any = None) -> Any:
        """Return the probability of each component given the row, (n, K).

        `out` as in :meth:`score_samples`: a file has the columns ``probability_0`` and so on, an array is (n, K).
        """
        return self._per_row(responsibilities, out, X, errors=error_covariance)

    def sample(self, n_samples: int = 1) -> tuple[Floats, NDArray[np.int64]]:
        """Draw rows from the mixture.

        Returns
        -------
        X : ndarray (n_samples, d)
            Ordered by component, the noise last.
        labels : ndarray (n_samples,)
            -1 for noise.
        """
        params = self._model()
        if n_samples < 1:
            raise ValueError(f"Invalid value for 'n_samples': {n_samples}. At least one row must be drawn.")
        random = check_random_state(self.random_state)
        noise, K, d = params.noise, params.n_components, params.n_features
        chances = params.weights if noise is None else np.append(self.weights_, noise[0])
        counts = random.multinomial(n_samples, chances)
        lower = np.linalg.cholesky(params.full_covariances())
        drawn = []
        for k in range(K):
            away = random.standard_normal((counts[k], d)) @ lower[k].T
            if params.dof is not None:
                away /= np.sqrt(random.chisquare(params.dof[k], (counts[k], 1)) / params.dof[k])
            drawn.append(params.means[k] + away)
        if noise is not None:
            drawn.append(random.uniform(*noise[1], size=(counts[K], d)))
        labels = np.arange(K) if noise is None else np.append(np.arange(K), -1)
        return np.concatenate(drawn), np.repeat(labels, counts)

    def bic(self, X: Any, sample_weight: ArrayLike | None = None) -> float:
        """Return the Bayesian information criterion (BIC), ``-2 log L + p log n``: lower is better.

        With weights w, log L is the sum of ``w log p(x)`` and n the sum of w, as if rows were repeated.
        """
        return self._bic(sample_weight, X)

    def aic(self, X: Any, sample_weight: ArrayLike | None = None) -> float:
        """Return Akaike's information criterion (AIC), ``-2 log L + 2 p``: lower is better.

        Weights as in :meth:`bic`."""
        return self._aic(sample_weight, X)

    def icl(self, X: Any, sample_weight: ArrayLike | None = None) -> float:
        """Return the integrated completed likelihood: the BIC plus twice the entropy of the assignments.

        Biernacki, Celeux and Govaert (2000), IEEE PAMI 22:719, on the scale of the BIC: lower is better.
        """
        return self._icl(sample_weight, X)

    # ---- mixtures that follow ----------------------------------------------------------------------------------------

    @classmethod
    def from_parameters(
        cls, weights: ArrayLike, means: ArrayLike, covariances: ArrayLike, covariance_type: str = "full"
    ) -> Self:
        """Return a mixture with given parameters, as if it had been fitted.

        Parameters
        ----------
        weights : array-like (K,)
        means : array-like (K, d)
        covariances : array-like
            Shaped as `covariances_` of the family.
        covariance_type : str

        Examples
        --------
        >>> from residmix import GaussianMixture
        >>> model = GaussianMixture.from_parameters([0.5, 0.5], [[0.0], [4.0]], [[[1.0]], [[1.0]]])
        >>> model.predict([[-1.0], [3.0]])
        array([0, 1])
        """
        if covariance_type.startswith(FACTOR):
            raise ValueError(f'covariances of this shape need covariance_type="full", not {covariance_type!r}')
        centres = check_array(means, dtype=np.float64, input_name="means")
        K, d = centres.shape
        given = check_given(weights, centres, None, covariance_type, K, d)["weights"]
        matrices = check_array(covariances, dtype=np.float64, ensure_2d=False, allow_nd=True, input_name="covariances")
        shape = family(covariance_type).shape_of(K, d)
        if matrices.shape != shape:
            raise ValueError(
                f"covariances must have shape {shape} for {K} components, {d} features and "
                f"covariance_type={covariance_type!r}, not {matrices.shape}"
            )
        if family(covariance_type).matrices and not np.allclose(matrices, matrices.swapaxes(-1, -2)):
            raise ValueError("covariances must be symmetric")
        assert given is not None
        try:
            params = make_params(given, centres, matrices, covariance_type)
        except SingularCovarianceError as error:
            raise ValueError(
                f"covariances of components {error.components.tolist()} aren't positive definite"
            ) from error
        return cls._made(params, None)

    @classmethod
    def _made(cls, params: MixtureParams, names: NDArray[Any] | None) -> Self:
        """Return a mixture with given parameters."""
        kind = "gaussian" if params.dof is None else "t"
        noise = params.noise is not None
        made = cls(params.n_components, covariance_type=params.covariance_type, noise=noise, distribution=kind)
        if params.missing:
            made.set_params(missing="em")
        made._keep_params(params)
        made.n_features_in_ = params.n_features
        made.converged_, made.n_iter_, made.notes_ = True, 0, []
        if names is not None:
            made.feature_names_in_ = names
        return made

    def condition(self, values: Mapping[Any, float]) -> Self:
        r"""Return the conditional mixture of the other features, in order, given values of some.

        .. math:: p(x_a \mid x_b) = \sum_k \pi_k(x_b) N(x_a \mid \mu_{ka} + \Sigma_{kab} \Sigma_{kbb}^{-1} (x_b -
            \mu_{kb}), \Sigma_{kaa} - \Sigma_{kab} \Sigma_{kbb}^{-1} \Sigma_{kba}), \qquad \pi_k(x_b) \propto \pi_k
            N(x_b \mid \mu_{kb}, \Sigma_{kbb})

        Parameters
        ----------
        values : mapping of number or name of a feature to its value

        Examples
        --------
        >>> from residmix import GaussianMixture
        >>> model = GaussianMixture.from_parameters([1.0], [[0.0, 0.0]], [[[1.0, 0.5], [0.5, 1.0]]])
        >>> given = model.condition({1: 2.0})
        >>> given.means_, given.covariances_
        (array([[1.]]), array([[[0.75]]]))
        """
        params, names = self._model(), getattr(self, "feature_names_in_", None)
        known = positions(values, names, params.n_features)
        at = check_array([list(values.values())], dtype=np.float64, ensure_min_features=0, input_name="values")[0]
        others = [j for j in range(params.n_features) if j not in set(known)]
        if not others:
            raise ValueError(f"values are given for all {params.n_features} features; leave at least one feature out")
        return self._made(conditional(params, others, known, at), None if names is None else names[others])

    def marginal(self, features: Iterable[Any]) -> Self:
        """Return the marginal mixture of some features.

        Parameters
        ----------
        features : iterable of numbers or names
            In the order of the result.
        """
        params, names = self._model(), getattr(self, "feature_names_in_", None)
        wanted = positions([features] if isinstance(features, str | int) else list(features), names, params.n_features)
        if not wanted:
            raise ValueError("features is empty; pass at least one")
        return self._made(marginal(params, wanted), None if names is None else names[wanted])
