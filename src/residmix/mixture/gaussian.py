"""GaussianMixture: scikit-learn's estimator, on blocks of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from numbers import Integral, Real
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, DensityMixin, _fit_context
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import _check_sample_weight, validate_data

from residmix.em.callbacks import CallbackSupportMixin, FitTasks, with_callbacks
from residmix.em.loop import Acceleration, EMState, run_em
from residmix.em.observers import FitProgress, Progress
from residmix.em.runs import fingerprint, run_starts
from residmix.errors import DeadComponentWarning, ScaleWarning, keeps_notes, warn
from residmix.mixture.density import MixtureDensity
from residmix.mixture.estep import MixtureMoments, MixtureStep, mixture_block_rows
from residmix.mixture.families.family import COVARIANCE_TYPES
from residmix.mixture.params import MixtureParams, SingularCovarianceError
from residmix.mixture.starts import INIT_PARAMS, check_given, check_goes_on, find_start
from residmix.mixture.step import MixtureEM, overwhelmed_columns, stepwise
from residmix.mixture.vector import pack, unpack
from residmix.rows.rows import ArrayRows, Rows, fold
from residmix.rows.threads import one_blas_thread
from residmix.sources.open import as_table, is_source

__all__ = ["GaussianMixture"]

Floats = NDArray[np.float64]


class GaussianMixture(MixtureDensity, CallbackSupportMixin, DensityMixin, BaseEstimator):
    r"""Mixture of Gaussians, :math:`p(x) = \sum_k \pi_k N(x \mid \mu_k, \Sigma_k)`, fitted by EM.

    A drop-in for `sklearn.mixture.GaussianMixture`: the same parameters, methods and attributes.

    Parameters
    ----------
    n_components : int, default=1
        Number of components, K.
    covariance_type : str, default="full"
        "full", "tied", "diag" or "spherical", or one of mclust's fourteen names, "EII" to "VVV": a letter each for the
        components' volume, shape and orientation, which are Equal, Varying or the Identity.
        "full" is "VVV", "tied" "EEE", "diag" "VVI", "spherical" "VII".
    tol : float, default=1e-6
        EM stops when an iteration gained less than `tol` in log-likelihood per row, and all further ones together
        are expected to gain less than a hundred times that (Aitken's estimate). 0 means exactly `max_iter` iterations.
    reg_covar : float, default=1e-6
        Added to the diagonal of every covariance, in squared units of X: not relative to the data's scale. A
        `ScaleWarning` is given when that is more than a tenth of a column's variance.
    max_iter : int, default=1000
    n_init : int, default=1
        Number of starts that are run to the end; the best one is kept.
    init_params : {"short-em", "kmeans", "k-means++", "random", "random_from_data"}, default="short-em"
        How a start is found. ``"short-em"`` takes the best of ten short EM runs. The others are scikit-learn's.
        All are found on a subsample if there are many rows.
    weights_init : array-like (K,), optional
    means_init : array-like (K, d), optional
    precisions_init : array-like, optional
        Inverse covariances, shaped as `covariances_`.
    learning_decay : float, default=0.7
        Of `partial_fit`: batch t counts for :math:`t^{-decay}` of the estimate, which forgets slowly. Between 0.5 (not
        included) and 1, where all batches count alike.
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
    >>> model = GaussianMixture(n_components=2, random_state=0).fit(X)
    >>> np.sort(model.means_[:, 0])
    array([ 1., 10.])
    """

    _parameter_constraints: dict[str, list[Any]] = {
        "n_components": [Interval(Integral, 1, None, closed="left")],
        "covariance_type": [StrOptions(set(COVARIANCE_TYPES))],
        "tol": [Interval(Real, 0.0, None, closed="left")],
        "reg_covar": [Interval(Real, 0.0, None, closed="left")],
        "max_iter": [Interval(Integral, 0, None, closed="left")],
        "n_init": [Interval(Integral, 1, None, closed="left")],
        "init_params": [StrOptions(set(INIT_PARAMS))],
        "weights_init": ["array-like", None],
        "means_init": ["array-like", None],
        "precisions_init": ["array-like", None],
        "accelerate": ["boolean"],
        "learning_decay": [Interval(Real, 0.5, 1.0, closed="right")],
        "random_state": ["random_state"],
        "warm_start": ["boolean"],
        "verbose": ["verbose"],
        "verbose_interval": [Interval(Integral, 1, None, closed="left")],
        "checkpoint": [str, PathLike, None],
    }

    def __init__(
        self,
        n_components: int = 1,
        *,
        covariance_type: str = "full",
        tol: float = 1e-6,
        reg_covar: float = 1e-6,
        max_iter: int = 1000,
        n_init: int = 1,
        init_params: str = "short-em",
        weights_init: ArrayLike | None = None,
        means_init: ArrayLike | None = None,
        precisions_init: ArrayLike | None = None,
        accelerate: bool = True,
        learning_decay: float = 0.7,
        random_state: Any = None,
        warm_start: bool = False,
        verbose: int = 0,
        verbose_interval: int = 10,
        checkpoint: str | PathLike[str] | None = None,
    ) -> None:
        self.n_components = n_components
        self.covariance_type = covariance_type
        self.tol = tol
        self.reg_covar = reg_covar
        self.max_iter = max_iter
        self.n_init = n_init
        self.init_params = init_params
        self.weights_init = weights_init
        self.means_init = means_init
        self.precisions_init = precisions_init
        self.accelerate = accelerate
        self.learning_decay = learning_decay
        self.random_state = random_state
        self.warm_start = warm_start
        self.verbose = verbose
        self.verbose_interval = verbose_interval
        self.checkpoint = checkpoint

    # -- fitting ------------------------------------------------------------------------------------------------

    @keeps_notes
    @with_callbacks
    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Any, y: Any = None, sample_weight: ArrayLike | None = None) -> GaussianMixture:
        """Estimate the parameters by EM.

        Parameters
        ----------
        X : array-like (n, d), or a table from `residmix.scan`, Dask array or data frame, or callable giving batches
            Of a table, the numeric columns are used.
        y : ignored
        sample_weight : array-like (n,), optional
            Non-negative. A weight of 2 counts a row twice; a weight of 0 leaves it out. A text names a table's column.

        Raises
        ------
        ValueError
            If there are fewer rows than components, or every start led to a singular covariance.
        """
        rows = self._training_rows(X, sample_weight, reset=True)
        with one_blas_thread():
            self._fit_rows(rows, X=X, y=y, sample_weight=sample_weight)
        return self

    @keeps_notes
    @with_callbacks
    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X: Any, y: Any = None, sample_weight: ArrayLike | None = None) -> GaussianMixture:
        """Follow a stream: take in one batch of rows, which isn't needed again.

        The first batch is fitted as by `fit`; so it should be of some hundred rows a component. Each further one is a
        step of stepwise EM (:func:`residmix.mixture.step.stepwise`), with a share of :math:`t^{-decay}`, less if it has
        fewer rows than batches had on average. Goes on from a fitted model; `fit` begins anew. Of a source that hands
        out batches, or a table larger than memory, each batch is a step.

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
                    self._fit_rows(rows, X=batch, sample_weight=sample_weight)
                else:
                    self._step(rows)
        return self

    def _check_goes_on(self, method: str, n_features: int) -> None:
        check_goes_on(self.means_, self.covariances_, self.covariance_type, self.n_components, n_features, method)

    def _step(self, rows: Rows) -> None:
        self._check_goes_on("partial_fit", rows.n_features)
        params = self._params()
        moments = fold(rows, MixtureStep(params), MixtureMoments.merge)
        self.n_batches_ += 1
        self.n_samples_seen_ += moments.rows
        typical = self.n_samples_seen_ / self.n_batches_
        share = self.n_batches_**-self.learning_decay * min(1.0, moments.rows / typical)
        following = stepwise(params, moments, share, reg_covar=self.reg_covar, n_rows=self.n_samples_seen_)
        value = moments.log_likelihood / moments.total
        self._keep(EMState(following, (value, value), self.n_iter_ + 1))

    def _training_rows(self, X: Any, sample_weight: Any, *, reset: bool) -> Rows:
        """Return the checked rows of anything that can be fitted."""
        if is_source(X):
            rows = self._source_rows(as_table(X), sample_weight, reset=reset)
            if reset:
                self._check_enough(rows.n_rows)
            return rows
        if isinstance(X, Iterator):
            raise TypeError(
                "X is an iterator, which can be read only once, but EM reads it many times; give a callable that "
                "returns a new one each time, or use partial_fit"
            )
        X = validate_data(self, X, dtype=[np.float64, np.float32], ensure_min_samples=2 if reset else 1, reset=reset)
        weight, counted = None, len(X)
        if sample_weight is not None:
            weight = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
            counted = int(np.count_nonzero(weight))
            if counted == 0:
                raise ValueError(f"sample_weight is 0 for all {len(X)} rows; at least one must be positive")
        if reset:
            self._check_enough(counted)
        return ArrayRows(X, weight=weight, block_rows=mixture_block_rows(X.shape[1], self.n_components))

    def _check_enough(self, n_rows: int) -> None:
        if n_rows < self.n_components:
            raise ValueError(
                f"Expected n_samples >= n_components but got n_components = {self.n_components}, n_samples = {n_rows}"
            )

    def fit_predict(self, X: Any, y: Any = None, sample_weight: ArrayLike | None = None) -> NDArray[np.intp]:
        """Fit, and return the most probable component of each row (n,)."""
        return self.fit(X, y, sample_weight).predict(X)

    def _fit_rows(self, rows: Rows, **data: Any) -> None:
        given = check_given(
            self.weights_init,
            self.means_init,
            self.precisions_init,
            self.covariance_type,
            self.n_components,
            rows.n_features,
        )
        random_state = check_random_state(self.random_state)
        resume = self.warm_start and hasattr(self, "converged_")
        if resume:
            self._check_goes_on("warm_start", rows.n_features)
        em = MixtureEM(rows, self.reg_covar)
        history = self._history if resume else ()
        tasks = FitTasks(self, GaussianMixture._keep, n_starts=1 if resume else self.n_init, **data)

        def starts() -> Iterator[MixtureParams]:
            failure: SingularCovarianceError | None = None
            found = 0
            for _ in range(1 if resume else self.n_init):
                try:
                    yield self._params() if resume else self._start(rows, given, random_state)
                    found += 1
                except SingularCovarianceError as error:
                    failure = error
            if failure is not None and not found:
                raise failure

        def run(
            i: int, start: MixtureParams | EMState[MixtureParams], keep: Callable[[EMState[MixtureParams]], Any] | None
        ) -> EMState[MixtureParams]:
            report = Progress(self.verbose, self.verbose_interval, i)
            quiet = bool(self.verbose) or tasks.heard

            def callback(state: EMState[MixtureParams]) -> bool:
                report(state)
                if keep is not None:
                    keep(state)
                return iterated(state)

            watched = FitProgress(rows.n_rows, tol=self.tol, max_iter=self.max_iter, then=callback, quiet=quiet)
            with tasks.start(self.max_iter) as iterated, watched:
                ended = self._run(em, start, history, watched)
            report.end(ended)
            return ended

        ended = run_starts(
            em,
            starts,
            run,
            failure=SingularCovarianceError,
            path=self.checkpoint,
            fingerprint=fingerprint(self, rows, resume=resume),
        )
        # the first of equals, so that more starts never change a result they don't improve
        self._keep(max(ended, key=lambda state: state.log_likelihood))
        self.n_batches_, self.n_samples_seen_ = 1, rows.n_rows
        self._warn(rows, em.revived)
        tasks.end()

    def _start(self, rows: Rows, given: dict[str, Floats | None], random_state: Any) -> MixtureParams:
        return find_start(
            rows,
            self.n_components,
            covariance_type=self.covariance_type,
            reg_covar=self.reg_covar,
            init_params=self.init_params,
            random_state=random_state,
            **given,
        )

    def _run(
        self,
        em: MixtureEM,
        start: MixtureParams | EMState[MixtureParams],
        history: tuple[float, ...],
        callback: Callable[[EMState[MixtureParams]], Any],
    ) -> EMState[MixtureParams]:
        return run_em(
            em,
            start,
            tol=self.tol,
            max_iter=self.max_iter,
            accelerate=Acceleration(pack, unpack) if self.accelerate and self.tol > 0 else None,
            history=history,
            evaluate=em.evaluate,
            callback=callback,
        )

    def _keep(self, state: EMState[MixtureParams]) -> None:
        params = state.params
        self.weights_, self.means_ = params.weights, params.means
        self.covariances_, self.precisions_cholesky_ = params.covariances, params.factors
        self.precisions_ = params.precisions()
        self.converged_, self.n_iter_ = state.converged, state.iteration
        self.lower_bound_ = state.log_likelihood
        self.lower_bounds_ = list(state.log_likelihoods[1:])
        self._history = (*getattr(self, "_history", ())[:-1], *state.log_likelihoods)[-3:]

    def _warn(self, rows: Rows, revived: list[list[int]]) -> None:
        if revived:
            warn(
                f"components {revived[-1]} of {self.n_components} lost all their rows and were re-seeded "
                f"({len(revived)} times in this fit); fewer components may fit as well",
                DeadComponentWarning,
            )
        columns = overwhelmed_columns(rows, self.reg_covar)
        if columns.size:
            warn(
                f"reg_covar={self.reg_covar:g} is more than a tenth of the variance of columns "
                f"{columns[:10].tolist()}: the covariances say more about reg_covar than about the data. Scale the "
                "columns or lower reg_covar.",
                ScaleWarning,
            )
        if not self.converged_ and self.max_iter > 0:
            warn(
                "Best performing initialization did not converge. Try different init parameters, or increase "
                "max_iter, tol, or check for degenerate data.",
                ConvergenceWarning,
            )
