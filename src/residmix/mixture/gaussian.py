"""GaussianMixture: scikit-learn's estimator, on blocks of rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from numbers import Real
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import _fit_context
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions

from residmix.em.callbacks import FitTasks, with_callbacks
from residmix.em.runs import fingerprint
from residmix.errors import ScaleWarning, keeps_notes, warn
from residmix.mixture.after.reading import GaussianRows
from residmix.mixture.doubts.hints import tell_of_doubts
from residmix.mixture.fit import MixtureFit, State
from residmix.mixture.iteration.step import MixtureEM, overwhelmed_columns, stepwise
from residmix.mixture.params import MixtureParams, SingularCovarianceError
from residmix.mixture.robust.errors import local_errors
from residmix.mixture.starts import check_goes_on, find_starts
from residmix.rows.rows import Rows
from residmix.rows.threads import one_blas_thread
from residmix.sources.open import as_table, is_source

__all__ = ["GaussianMixture"]

Floats = NDArray[np.float64]


class GaussianMixture(GaussianRows):
    r"""Mixture of Gaussians, :math:`p(x) = \sum_k \pi_k N(x \mid \mu_k, \Sigma_k)`, fitted by EM.

    A drop-in for `sklearn.mixture.GaussianMixture`: the same parameters, methods and attributes.

    Parameters
    ----------
    n_components : int, list of int or "auto", default=1
        Number of components, K. Of several the best by `criterion` is kept; "auto" is 1 to 9.
    covariance_type : str, list of str or "auto", default="full"
        "full", "tied", "diag" or "spherical", or one of mclust's fourteen names, "EII" to "VVV": a letter each for the
        components' volume, shape and orientation, which are Equal, Varying or the Identity.
        "full" is "VVV", "tied" "EEE", "diag" "VVI", "spherical" "VII". "factor" is for many features: few factors and
        a variance of its own for each feature. Of several the best by `criterion` is kept; "auto" is all fourteen.
    n_factors : int, optional
        Of "factor"; default: 1 to 6, chosen by `criterion`.
    criterion : {"bic", "icl", "aic", "cv"}, default="bic"
        What decides between several: the Bayesian or Akaike's criterion, the integrated completed likelihood, or the
        log-likelihood of every fifth row under a fit to the others. Candidates that fail, or have a component on a few
        rows that are all but equal, are never chosen, and noted.
    noise : bool, default=False
        Whether rows may belong to no component: one more has a uniform density in the box that the rows lie in. Its
        label is -1, its probability the last column of `predict_proba`.
    distribution : {"gaussian", "t"}, default="gaussian"
        "t": Student-t components, whose means and covariances hardly depend on rows far out; `covariances_` are their
        scale matrices, and degrees of freedom are estimated.
    trim : float, default=0.0
        Share of the rows, those of least density, that count for nothing, below 0.5. Their label is -1, and the last
        column of `predict_proba` theirs. Criteria are of the rows kept.
    eigenvalue_ratio : float, optional
        The largest eigenvalue of all covariances is at most this many times the smallest, so that no component sits
        on a few rows. For "full", "tied", "diag", "spherical", "EII" and "EEI"; units of the features count.
    prior : "mclust" or dict, optional
        The fit maximises the posterior, and so `lower_bound_` is its logarithm a row; criteria take the likelihood
        there. Given covariances means are normal about "mean", as "shrinkage" rows there; covariances are inverse
        Wishart with "dof" and "scale" (variances of diagonal families inverse gamma), weights Dirichlet with
        "dirichlet". "mclust" is the mean of X, 0.01, d + 2, the covariance of X over :math:`K^{2/d}`, and 1, which
        a dict's missing keys stand for, too (Fraley & Raftery 2007, J. Classification 24:155).
    missing : {"error", "em"}, default="error"
        "em": NaN in X is a missing value, in every method. The fit is maximum likelihood given the values that are
        there, which is right where it doesn't depend on the missing values that they are missing. See :meth:`impute`.
    tol : float, default=1e-6
        EM stops when an iteration gained less than `tol` in log-likelihood per row, and all further ones together
        are expected to gain less than a hundred times that (Aitken's estimate). 0 means exactly `max_iter` iterations.
    reg_covar : float or "relative", default=1e-6
        Added to the diagonal of every covariance, in squared units of X; a `ScaleWarning` tells when that is more than
        a tenth of a column's variance. "relative" is 1e-6 of the least variance of a column: `reg_covar_`.
    max_iter : int, default=1000
    n_init : int, default=1
        Number of starts that are run to the end; the best one is kept.
    init_params : {"short-em", "kmeans", "k-means++", "random", "random_from_data"}, default="short-em"
        How a start is found. ``"short-em"`` takes the best of many short EM runs, whatever the features' units. The
        others are scikit-learn's, in the features' own units. All are found on a subsample if there are many rows.
    weights_init : array-like (K,), optional
    means_init : array-like (K, d), optional
    precisions_init : array-like, optional
        Inverse covariances, shaped as `covariances_`.
    labels_init : array-like (n,), optional
        `n_components` different labels, one a row: EM begins with their M-step and without a search.
    learning_decay : float, default=0.7
        Of `partial_fit`: batch t counts for :math:`t^{-decay}` of the estimate, which forgets slowly. Between 0.5 (not
        included) and 1, where all batches count alike.
    forgetting : float, optional
        Of `partial_fit`: every batch counts for this share of the estimate, the one before it for ``1 - forgetting`` of
        that, and so on. For streams that drift: the estimate is of the last ``2 / forgetting`` batches or so, and
        never settles. Default: `learning_decay` rules.
    accelerate : bool, default=True
        Extrapolate every second iteration (SQUAREM), and take it back where the log-likelihood fell: a third of the
        iterations or fewer where clusters overlap. Never with ``tol=0``, which stands for textbook iterations.
    random_state : int, RandomState or None
    warm_start : bool, default=False
        Go on from the last fit's parameters.
    verbose : int, default=0
    verbose_interval : int, default=10
    checkpoint : path, optional
        A file that holds the state of the fit after each iteration. If the process dies, the same fit goes on from
        there, to the same bits; when it's done the file is removed.

    Attributes
    ----------
    weights_ : ndarray (K,)
    means_ : ndarray (K, d)
    covariances_, precisions_, precisions_cholesky_ : ndarray
        full (K, d, d), tied (d, d), diag (K, d), spherical (K,); of the other families (K, d, d).
    n_components_, covariance_type_ : int, str
        What was fitted; of several, what was chosen.
    loadings_, own_variances_ : ndarray (K, d, q), (K, d)
        Only of "factor": each covariance is ``loadings_ @ loadings_.T + diag(own_variances_)``; q is `n_factors_`.
    trim_threshold_ : float
        Only with `trim`: the log-density that the rows kept have at least.
    noise_weight_, noise_box_ : float, ndarray (2, d)
        Only with noise; `weights_` are of the components alone, and add up to the rest.
    dof_ : ndarray (K,)
        Degrees of freedom, only with "t".
    selection_ : dict of lists
        Only where there was something to choose: covariance_type (mclust's names), n_components, log_likelihood,
        n_parameters, bic, icl, aic, converged (and cv) of each candidate. The lower a criterion the better; infinite
        for what isn't considered.
    converged_ : bool
    n_iter_ : int
    lower_bound_ : float
        Log-likelihood per row of the training data under the attributes above (scikit-learn's is one iteration old).
    lower_bounds_ : list of float
        The same after each iteration.
    n_batches_, n_samples_seen_ : int
        Batches and rows so far; `fit` counts as one batch.
    n_features_in_, feature_names_in_
        As everywhere in scikit-learn.

    Notes
    -----
    All numbers are float64, also if X is float32.

    Examples
    --------
    >>> import numpy as np
    >>> from residmix import GaussianMixture
    >>> X = np.array([[1, 2], [1, 4], [1, 0], [10, 2], [10, 4], [10, 0]])
    >>> model = GaussianMixture(n_components=2, random_state=3).fit(X)
    >>> model.means_.round(3)
    array([[10.,  2.],
           [ 1.,  2.]])
    >>> model.predict([[0, 0], [12, 3]])
    array([1, 0])
    """

    _parameter_constraints: dict[str, list[Any]] = MixtureFit._parameter_constraints | {
        "missing": [StrOptions({"error", "em"})],
        "learning_decay": [Interval(Real, 0.5, 1.0, closed="right")],
        "forgetting": [Interval(Real, 0.0, 1.0, closed="right"), None],
    }

    def __init__(
        self,
        n_components: int | Sequence[int] | str = 1,
        *,
        covariance_type: str | Sequence[str] = "full",
        n_factors: int | None = None,
        criterion: str = "bic",
        noise: bool = False,
        distribution: str = "gaussian",
        trim: float = 0.0,
        eigenvalue_ratio: float | None = None,
        prior: str | dict[str, Any] | None = None,
        missing: str = "error",
        tol: float = 1e-6,
        reg_covar: float | str = 1e-6,
        max_iter: int = 1000,
        n_init: int = 1,
        init_params: str = "short-em",
        weights_init: ArrayLike | None = None,
        means_init: ArrayLike | None = None,
        precisions_init: ArrayLike | None = None,
        labels_init: ArrayLike | None = None,
        accelerate: bool = True,
        learning_decay: float = 0.7,
        forgetting: float | None = None,
        random_state: Any = None,
        warm_start: bool = False,
        verbose: int = 0,
        verbose_interval: int = 10,
        checkpoint: str | PathLike[str] | None = None,
    ) -> None:
        self.n_components = n_components
        self.covariance_type = covariance_type
        self.n_factors = n_factors
        self.criterion = criterion
        self.noise = noise
        self.distribution = distribution
        self.trim = trim
        self.eigenvalue_ratio = eigenvalue_ratio
        self.prior = prior
        self.missing = missing
        self.tol = tol
        self.reg_covar = reg_covar
        self.max_iter = max_iter
        self.n_init = n_init
        self.init_params = init_params
        self.weights_init = weights_init
        self.means_init = means_init
        self.precisions_init = precisions_init
        self.labels_init = labels_init
        self.accelerate = accelerate
        self.learning_decay = learning_decay
        self.forgetting = forgetting
        self.random_state = random_state
        self.warm_start = warm_start
        self.verbose = verbose
        self.verbose_interval = verbose_interval
        self.checkpoint = checkpoint

    # -- fitting ------------------------------------------------------------------------------------------------

    @keeps_notes
    @with_callbacks
    @_fit_context(prefer_skip_nested_validation=True)
    def fit(
        self,
        X: Any,
        y: Any = None,
        sample_weight: ArrayLike | None = None,
        *,
        error_covariance: ArrayLike | None = None,
    ) -> GaussianMixture:
        """Estimate the parameters by EM.

        Parameters
        ----------
        X : array-like (n, d), or a table from `residmix.scan`, Dask array or data frame, or callable giving batches
            Of a table, the numeric columns are used.
        y : ignored
        sample_weight : array-like (n,), optional
            Non-negative. A weight of 2 counts a row twice; a weight of 0 leaves it out. A text names a table's column.
        error_covariance : array-like (n, d) or (n, d, d), optional
            Variances or covariances of each row's known measurement errors: the mixture is then of what was measured,
            without them (Bovy, Hogg & Roweis 2011, "Extreme deconvolution", Ann. Appl. Stat. 5).

        Raises
        ------
        ValueError
            If there are fewer rows than components, or every start led to a singular covariance.
        """
        rows = self._training_rows(X, sample_weight, reset=True)
        errors = local_errors(error_covariance, rows)
        with one_blas_thread():
            self._fit_rows(rows, errors, X=X, y=y, sample_weight=sample_weight)
        return self

    @keeps_notes
    @with_callbacks
    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X: Any, y: Any = None, sample_weight: ArrayLike | None = None) -> GaussianMixture:
        """Follow a stream: take in one batch of rows, which isn't needed again.

        The first batch is fitted as by `fit`; so it should be of some hundred rows a component. Each further one is a
        step of stepwise EM (`residmix.mixture.iteration.step.stepwise`), with a share of :math:`t^{-decay}`, or of
        `forgetting` if that is given; less if it has fewer rows than batches had on average. Goes on from a fitted
        model; `fit` begins anew. Of a source that hands out batches, or a table larger than memory, each batch is a
        step.

        Parameters
        ----------
        X, sample_weight
            As in `fit`.
        y : ignored
        """
        tables = as_table(X).batches() if is_source(X) or isinstance(X, Iterator) else [X]
        for batch in tables:
            first = not hasattr(self, "n_batches_")
            rows = self._training_rows(batch, sample_weight, reset=first)
            with one_blas_thread():
                if first:
                    self._fit_rows(rows, None, X=batch, sample_weight=sample_weight)
                else:
                    self._step(rows)
        return self

    def _check_goes_on(self, method: str, n_features: int) -> None:
        K, kind = self.n_components, self._kind()
        if self._is_search():
            K, kind = self.n_components_, self._family_name
        check_goes_on(self.means_, self.covariances_, kind, K, n_features, method)

    def _step(self, rows: Rows) -> None:
        self._check_streams()
        self._check_goes_on("partial_fit", rows.n_features)
        params = self._model()
        moments = MixtureEM(rows, self._floor).moments(params)
        self.n_batches_ += 1
        self.n_samples_seen_ += moments.rows
        self._weight_seen = self._weight_of_fit() + moments.total
        typical = self.n_samples_seen_ / self.n_batches_
        share = self.n_batches_**-self.learning_decay if self.forgetting is None else self.forgetting
        share *= min(1.0, moments.rows / typical)
        following = stepwise(params, moments, share, reg_covar=self._floor, n_rows=self.n_samples_seen_)
        value = moments.log_likelihood / moments.total
        self._keep(State(following, (value, value), self.n_iter_ + 1))

    def fit_predict(self, X: Any, y: Any = None, sample_weight: ArrayLike | None = None) -> NDArray[np.intp]:
        """Fit, and return the most probable component of each row (n,)."""
        return self.fit(X, y, sample_weight).predict(X)

    def _fit_rows(self, rows: Rows, errors: Floats | None, **data: Any) -> None:
        self._prepare(rows, errors)
        if self._is_search():
            tasks = FitTasks(self, GaussianMixture._keep, n_starts=None, **data)
            state, revived = self._search(rows, tasks, errors=errors)
            self._ended(rows, tasks, state, revived, errors)
            return
        given = self._given_start(rows.n_features)
        resume = self.warm_start and hasattr(self, "converged_")
        if resume:
            self._check_goes_on("warm_start", rows.n_features)
        em = MixtureEM(rows, self._floor, errors=errors)
        tasks = FitTasks(self, GaussianMixture._keep, n_starts=1 if resume else self.n_init, **data)
        starts = partial(self._starts, rows, given, resume)
        history = self._history if resume else ()
        self.__dict__.pop("selection_", None)
        wanted = 1 if resume or self.labels_init is not None else self.n_init
        # with noise, tails, trimming or gaps there are starts of their own kind, all of which are run
        wanted_of_all = None if self._has_tails() else wanted
        state = self._best(em, starts, tasks, fingerprint(self, rows, resume=resume), history, wanted_of_all)
        self._ended(rows, tasks, state, em.revived, errors)

    def _ended(
        self, rows: Rows, tasks: FitTasks, state: State, revived: list[list[int]], errors: Floats | None
    ) -> None:
        self._keep(state)
        self._keep_threshold(MixtureEM(rows, self._floor, errors=errors), state.params)
        self.n_batches_, self.n_samples_seen_ = 1, rows.n_rows
        self._warn(revived)
        self._warn_of_scale(rows)
        tell_of_doubts(rows, getattr(self, "feature_names_in_", None), rows, self._whole(rows), state.params)
        tasks.end()

    def _starts(self, rows: Rows, given: dict[str, Floats | None], resume: bool) -> Iterator[MixtureParams]:
        if resume:
            yield self._model()
            return
        if self.labels_init is not None:
            yield self._labelled(rows, self.n_components, self._kind())
            return
        whole = self._whole(rows)
        failure: SingularCovarianceError | None = None
        others: list[MixtureParams] = []
        found, random_state = 0, check_random_state(self.random_state)
        for _ in range(self.n_init):
            try:
                best, *more = find_starts(
                    whole,
                    self.n_components,
                    covariance_type=self._kind(),
                    reg_covar=self._start_floor,
                    init_params=self.init_params,
                    random_state=random_state,
                    **given,
                )
                yield best
                others += more
                found += 1
            except SingularCovarianceError as error:
                failure = error
                self._failed += 1
        if failure is not None and not found:
            raise failure
        if not self._has_tails():
            yield from others

    def _keep(self, state: State) -> None:
        self._keep_mixture(state.params, state)
        self._history = (*getattr(self, "_history", ())[:-1], *state.log_likelihoods)[-3:]

    def _warn_of_scale(self, rows: Rows) -> None:
        columns = overwhelmed_columns(rows, self._floor)
        if columns.size:
            warn(
                f"reg_covar={self._floor:g} is more than a tenth of the variance of columns "
                f"{columns[:10].tolist()}: the covariances say more about reg_covar than about the data. Scale the "
                "columns or lower reg_covar.",
                ScaleWarning,
                columns=columns.tolist(),
            )
