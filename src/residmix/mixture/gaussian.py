"""GaussianMixture: scikit-learn's estimator, on blocks of rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain
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
from residmix.errors import keeps_notes
from residmix.mixture.after.reading import GaussianRows
from residmix.mixture.doubts.floor import tell_of_scale
from residmix.mixture.doubts.hints import tell_of_doubts
from residmix.mixture.fit import MixtureFit, State
from residmix.mixture.iteration.step import MixtureEM
from residmix.mixture.iteration.stepwise import stepwise
from residmix.mixture.params import MixtureParams, SingularCovarianceError
from residmix.mixture.robust.errors import local_errors
from residmix.mixture.starts import find_starts
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
        Number of components, K. From a list, the best by `criterion` is kept; "auto" is 1 to 9.
    covariance_type : str, list of str or "auto", default="full"
        "full", "tied", "diag" or "spherical", or one of mclust's fourteen names, "EII" to "VVV": the three letters are
        volume, shape and orientation, each Equal, Varying or the Identity. "full" is "VVV", "tied" "EEE", "diag" "VVI",
        "spherical" "VII". "factor" is for many features: few factors, and a unique variance for each feature. From a
        list, the best by `criterion` is kept; "auto" is all fourteen.
    n_factors : int, optional
        Number of factors of "factor". Default: the best of 1 to 6 by `criterion`.
    criterion : {"bic", "icl", "aic", "cv"}, default="bic"
        Criterion to choose between candidates: the Bayesian or Akaike's information criterion, the integrated completed
        likelihood, or the log-likelihood in five-fold cross-validation. Candidates that fail, or have a component on a
        few nearly equal rows, are never chosen; a note names them.
    noise : bool, default=False
        Whether to add a uniform component over the bounding box of the rows, for rows that belong to no cluster. Its
        label is -1, its probability the last column of `predict_proba`.
    distribution : {"gaussian", "t"}, default="gaussian"
        "t": Student-t components, which are robust to outliers. `covariances_` are their scale matrices; the degrees of
        freedom are estimated.
    trim : float, default=0.0
        Share of the rows to leave out, those with the lowest density; below 0.5. Their label is -1, and the last column
        of `predict_proba` is for them. Criteria count the remaining rows.
    cells : float, default=0.0
        Largest share of each feature's values to set aside as wrong amid rows that are right; below 0.5, such as 0.25.
        They count as missing, at a price each: see :meth:`outlier_cells`.
    eigenvalue_ratio : float, optional
        Upper bound of the ratio of the largest to the smallest eigenvalue, over all covariances, which prevents
        components on a few rows. For "full", "tied", "diag", "spherical", "EII" and "EEI"; it depends on the units of
        the features.
    prior : "mclust" or dict, optional
        Conjugate prior; the fit maximises the posterior, and `lower_bound_` is the log-posterior per row. Criteria use
        the likelihood at this maximum. The prior of a mean given its covariance is normal about "mean", with the weight
        of "shrinkage" rows; that of a covariance is inverse Wishart with "dof" and "scale" (inverse gamma for diagonal
        families); that of the weights is Dirichlet with "dirichlet". "mclust" stands for the mean of X, 0.01, d + 2,
        the covariance of X over :math:`K^{2/d}`, and 1. These are also the defaults for missing keys of a dict (Fraley
        & Raftery 2007, J. Classification 24:155).
    missing : {"error", "em"}, default="error"
        "em": NaN in X is a missing value, in every method. The fit is maximum likelihood given the observed values,
        which is valid if values are missing at random. See :meth:`impute`.
    tol : float, default=1e-6
        EM stops when an iteration gains less than `tol` in log-likelihood per row, and all further iterations together
        are expected to gain less than ``100 * tol`` (Aitken's estimate). With 0, EM runs exactly `max_iter` iterations.
    reg_covar : float or "relative", default=1e-6
        Added to the diagonal of every covariance, in squared units of X. There is a `ScaleWarning` if it is more than a
        tenth of a column's variance. "relative" is 1e-6 of the smallest variance of a column, stored as `reg_covar_`.
    max_iter : int, default=1000
    n_init : int, default=1
        Number of starts run to convergence; the best result is kept.
    init_params : {"short-em", "kmeans", "k-means++", "random", "random_from_data"}, default="short-em"
        How starts are found. ``"short-em"`` takes the best of many short EM runs, and doesn't depend on the units of
        the features. The others are scikit-learn's, and do. With many rows, all use a subsample.
    search : {"all", "nearest"} or int, default="all"
        Components that the E-step looks at for each row; for hundreds of components. "nearest": the 8 likeliest, as far
        as is known from earlier iterations; an int is their number. `lower_bound_` is that of the log-likelihood over
        these, and a note says what so many miss if that's more than 0.1 %. Methods of the fitted model look at all.
    weights_init : array-like (K,), optional
    means_init : array-like (K, d), optional
    precisions_init : array-like, optional
        Inverse covariances, shaped as `covariances_`.
    labels_init : array-like (n,), optional
        A label for each row, with `n_components` distinct labels. EM starts with an M-step for these labels, without a
        search.
    learning_decay : float, default=0.7
        For `partial_fit`: the weight of batch t is :math:`t^{-decay}`, so that old batches are forgotten slowly. Above
        0.5 and at most 1; with 1 all batches have the same weight.
    forgetting : float, optional
        For `partial_fit`, on streams that drift: the weight of the newest batch, between 0 and 1. Weights of older
        batches fall by the factor ``1 - forgetting`` per batch, so about ``2 / forgetting`` batches count. Default:
        weights by `learning_decay`.
    accelerate : bool, default=True
        Extrapolate every second iteration (SQUAREM), undone if the log-likelihood falls. This takes a third of the
        iterations or fewer if clusters overlap. Not used with ``tol=0``, which means textbook EM.
    random_state : int, RandomState or None
    warm_start : bool, default=False
        Start from the parameters of the last fit.
    verbose : int, default=0
    verbose_interval : int, default=10
    checkpoint : path, optional
        A file that holds the state of the fit after each iteration. If the process dies, the same call to `fit`
        continues from there, with a bitwise equal result. The file is removed at the end.

    Attributes
    ----------
    weights_ : ndarray (K,)
    means_ : ndarray (K, d)
    covariances_, precisions_, precisions_cholesky_ : ndarray
        full (K, d, d), tied (d, d), diag (K, d), spherical (K,); of the other families (K, d, d).
    n_components_, covariance_type_ : int, str
        The fitted (or chosen) values.
    loadings_, own_variances_ : ndarray (K, d, q), (K, d)
        Only of "factor": each covariance is ``loadings_ @ loadings_.T + diag(own_variances_)``; q is `n_factors_`.
    trim_threshold_ : float
        Only with `trim`: the lowest log-density of the rows that are kept.
    cell_penalties_, cell_shares_ : ndarray (d,)
        Only with `cells`: twice what a value that is set aside costs its row's log-density, and how many were in `fit`.
    noise_weight_, noise_box_ : float, ndarray (2, d)
        Only with noise. `weights_` are those of the components, and add up to ``1 - noise_weight_``.
    dof_ : ndarray (K,)
        Degrees of freedom, only with "t".
    selection_ : dict of lists
        Only if there was a choice: covariance_type (mclust's names), n_components, log_likelihood, n_parameters, bic,
        icl, aic, converged (and cv) of each candidate. Lower is better; infinite for candidates that are left out.
    converged_ : bool
    n_iter_ : int
    lower_bound_ : float
        Log-likelihood per row of the training data at the final parameters (scikit-learn's is that before the last
        M-step).
    lower_bounds_ : list of float
        The same after each iteration.
    n_batches_, n_samples_seen_ : int
        Batches and rows so far; `fit` counts as one batch.
    n_features_in_, feature_names_in_
        As everywhere in scikit-learn.

    Notes
    -----
    All results are float64. Of float32 X, products are in single precision where no digit that counts is lost by it.

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
        cells: float = 0.0,
        eigenvalue_ratio: float | None = None,
        prior: str | dict[str, Any] | None = None,
        missing: str = "error",
        tol: float = 1e-6,
        reg_covar: float | str = 1e-6,
        max_iter: int = 1000,
        n_init: int = 1,
        init_params: str = "short-em",
        search: str | int = "all",
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
        self.trim, self.cells = trim, cells
        self.eigenvalue_ratio = eigenvalue_ratio
        self.prior = prior
        self.missing = missing
        self.tol = tol
        self.reg_covar = reg_covar
        self.max_iter = max_iter
        self.n_init = n_init
        self.init_params = init_params
        self.search = search
        self.weights_init = weights_init
        self.means_init = means_init
        self.precisions_init = precisions_init
        self.labels_init = labels_init
        self.accelerate = accelerate
        self.learning_decay, self.forgetting = learning_decay, forgetting
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
            Non-negative weights, or the name of a table's column. A weight of 2 counts a row twice; a weight of 0
            leaves it out.
        error_covariance : array-like (n, d) or (n, d, d), optional
            Variances or covariances of each row's known measurement errors: the mixture then describes the values
            without these errors (Bovy, Hogg & Roweis 2011, "Extreme deconvolution", Ann. Appl. Stat. 5).

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
        """Update the fit with one batch of rows of a stream.

        The first batch is fitted as by `fit`, so it should have some hundred rows per component. Each further one is a
        step of stepwise EM (`residmix.mixture.iteration.stepwise`), with the weight :math:`t^{-decay}`, or
        `forgetting` if that is given; batches of less weight than average count less. A fitted model is updated; `fit`
        starts anew. If X is a source of batches, or a table larger than memory, each batch is a step.

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

    def _step(self, rows: Rows) -> None:
        self._check_streams()
        self._check_goes_on("partial_fit", rows.n_features)
        params = self._model()
        moments = MixtureEM(rows, self._floor).moments(params)
        self._weight_seen = self._weight_of_fit() + moments.total
        self.n_batches_ += 1
        self.n_samples_seen_ += moments.rows
        share = self.n_batches_**-self.learning_decay if self.forgetting is None else self.forgetting
        share *= min(1.0, moments.total * self.n_batches_ / self._weight_seen)
        following = stepwise(params, moments, share, reg_covar=self._floor, n_rows=self.n_samples_seen_)
        value = moments.log_likelihood / moments.total
        self._keep(State(following, (value, value), self.n_iter_ + 1))

    def fit_predict(self, X: Any, y: Any = None, sample_weight: ArrayLike | None = None) -> NDArray[np.intp]:
        """Fit, and return the most probable component of each row (n,)."""
        return np.asarray(self.fit(X, y, sample_weight).predict(X))

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
        em = MixtureEM(rows, self._floor, errors=errors, single=self._coarse)
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
        state = self._with_own_penalties(MixtureEM(rows, self._floor, single=self._coarse), state)
        self._keep(state)
        self._keep_threshold(MixtureEM(rows, self._floor, errors=errors), state.params)
        self.n_batches_, self.n_samples_seen_ = 1, rows.n_rows
        self._warn(revived)
        tell_of_scale(rows, self._floor)
        tell_of_doubts(
            rows, getattr(self, "feature_names_in_", None), rows, self._whole(rows), state.params, self._floor
        )
        self._tell_of_gap(rows, state.params)
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
        others: list[Iterator[MixtureParams]] = []
        random_state = check_random_state(self.random_state)
        for _ in range(self.n_init):
            try:
                found = find_starts(
                    whole,
                    self.n_components,
                    covariance_type=self._kind(),
                    reg_covar=self._start_floor,
                    init_params=self._init_params,
                    random_state=random_state,
                    **given,
                )
                yield next(found)
                others.append(found)
            except SingularCovarianceError as error:
                failure = error
                self._failed += 1
        if failure is not None and not others:
            raise failure
        if not self._has_tails():
            yield from chain.from_iterable(others)

    def _keep(self, state: State) -> None:
        self._keep_mixture(state.params, state)
        self._history = (*getattr(self, "_history", ())[:-1], *state.log_likelihoods)[-3:]
