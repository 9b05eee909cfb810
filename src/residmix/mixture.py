"""GaussianMixture: scikit-learn's estimator, on blocks of rows."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from numbers import Integral, Real
from os import PathLike
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp
from sklearn.base import BaseEstimator, DensityMixin, _fit_context
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from residmix.callbacks import FRAMES, CallbackSupportMixin, FitTasks, with_callbacks
from residmix.checkpoint import fingerprint, run_starts
from residmix.em import Acceleration, EMState, run_em
from residmix.errors import DeadComponentWarning, ScaleWarning
from residmix.families import (
    COVARIANCE_TYPES,
    MixtureParams,
    SingularCovarianceError,
    dead_components,
    m_step,
    n_covariance_parameters,
    pack,
    unpack,
)
from residmix.moments.fold import fold
from residmix.moments.kernels import MixtureMoments, MixtureStep, log_joint, mixture_block_rows, responsibilities
from residmix.progress import FitProgress
from residmix.sources.output import collect
from residmix.sources.rows import ArrayRows, Block, Rows
from residmix.sources.table import Table, as_table, is_source
from residmix.starts import INIT_PARAMS, check_given, find_start
from residmix.threads import one_blas_thread

__all__ = ["GaussianMixture"]

Floats = NDArray[np.float64]

# A component that died this often in one fit stays dead: there's no room for it.
MAX_REVIVALS = 5


@dataclass
class MixtureEM:
    """One EM iteration over rows: the `step` that `residmix.em.run_em` asks for."""

    rows: Rows
    reg_covar: float
    revived: list[list[int]] = field(default_factory=list)

    def __call__(self, params: MixtureParams) -> tuple[float, MixtureParams]:
        moments = fold(self.rows, MixtureStep(params), MixtureMoments.merge)
        dead = dead_components(moments)
        revive = len(self.revived) < MAX_REVIVALS
        if dead.any() and revive:
            self.revived.append(np.flatnonzero(dead).tolist())
        following = m_step(moments, params, reg_covar=self.reg_covar, revive=revive)
        return moments.log_likelihood / moments.total, following

    def evaluate(self, params: MixtureParams) -> float:
        """Return the log-likelihood per row."""
        moments = fold(self.rows, MixtureStep(params, with_moments=False), MixtureMoments.merge)
        return moments.log_likelihood / moments.total


@dataclass(frozen=True)
class Scored:
    """`finish` of the block's log-joint (b, K), as a picklable function of blocks."""

    params: MixtureParams
    finish: Callable[[Floats], NDArray[Any]]

    def __call__(self, block: Block) -> NDArray[Any]:
        return self.finish(log_joint(block.X, self.params))


def log_density(joint: Floats) -> Floats:
    """Return log p(x) of log p(x, k), with -inf where no component reaches."""
    return logsumexp(joint, axis=1)


def most_probable(joint: Floats) -> NDArray[np.intp]:
    """Return the component of the largest log p(x, k)."""
    return joint.argmax(axis=1)


def overwhelmed_columns(rows: Rows, reg_covar: float) -> NDArray[np.intp]:
    """Return the columns whose variance, on a thousand rows, is mostly `reg_covar`; constant ones don't count."""
    x = np.asarray(rows.take(np.arange(0, rows.n_rows, max(1, rows.n_rows // 1000))).X, dtype=np.float64)
    variance = x.var(axis=0)
    constant = variance <= (1e-12 * x.mean(axis=0)) ** 2
    return np.flatnonzero(~constant & (variance < 10 * reg_covar))


class Progress:
    """What `verbose` prints: scikit-learn's lines."""

    def __init__(self, verbose: int, interval: int, run: int) -> None:
        self._verbose, self._interval = verbose, interval
        self._began = self._last = perf_counter()
        if verbose:
            print(f"Initialization {run}")

    def __call__(self, state: EMState[MixtureParams]) -> None:
        if not self._verbose or state.iteration % self._interval:
            return
        line = f"  Iteration {state.iteration}"
        if self._verbose > 1:
            now, values = perf_counter(), state.log_likelihoods
            change = values[-1] - values[-2] if len(values) > 1 else math.inf
            line += f"\t time lapse {now - self._last:.5f}s\t ll change {change:.5f}"
            self._last = now
        print(line)

    def end(self, state: EMState[MixtureParams]) -> None:
        """Print how a run ended."""
        if not self._verbose:
            return
        line = f"Initialization {'converged' if state.converged else 'did not converge'}."
        if self._verbose > 1:
            line += f" time lapse {perf_counter() - self._began:.5f}s\t lower bound {state.log_likelihood:.5f}."
        print(line)


class GaussianMixture(CallbackSupportMixin, DensityMixin, BaseEstimator):
    r"""Mixture of Gaussians, :math:`p(x) = \sum_k \pi_k N(x \mid \mu_k, \Sigma_k)`, fitted by EM.

    A drop-in for `sklearn.mixture.GaussianMixture`: the same parameters, methods and attributes.

    Parameters
    ----------
    n_components : int, default=1
        Number of components, K.
    covariance_type : {"full", "tied", "diag", "spherical"}, default="full"
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
        How a start is found. ``"short-em"`` takes the best of eight short EM runs. The others are scikit-learn's.
        All are found on a subsample if there are many rows.
    weights_init : array-like (K,), optional
    means_init : array-like (K, d), optional
    precisions_init : array-like, optional
        Inverse covariances, shaped as `covariances_`.
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
        full (K, d, d), tied (d, d), diag (K, d), spherical (K,).
    converged_ : bool
    n_iter_ : int
    lower_bound_ : float
        Log-likelihood per row of the training data under the attributes above (scikit-learn's is one iteration old).
    lower_bounds_ : list of float
        The same after each iteration.
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
        self.random_state = random_state
        self.warm_start = warm_start
        self.verbose = verbose
        self.verbose_interval = verbose_interval
        self.checkpoint = checkpoint

    # -- fitting ------------------------------------------------------------------------------------------------

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
        if is_source(X):
            rows = self._source_rows(as_table(X), sample_weight, reset=True)
            self._check_enough(rows.n_rows)
            with one_blas_thread():
                self._fit_rows(rows, X=X, y=y, sample_weight=sample_weight)
            return self
        X = validate_data(self, X, dtype=[np.float64, np.float32], ensure_min_samples=2)
        weight, counted = None, len(X)
        if sample_weight is not None:
            weight = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
            counted = int(np.count_nonzero(weight))
            if counted == 0:
                raise ValueError(f"sample_weight is 0 for all {len(X)} rows; at least one must be positive")
        self._check_enough(counted)
        rows = ArrayRows(X, weight=weight, block_rows=mixture_block_rows(X.shape[1], self.n_components))
        with one_blas_thread():
            self._fit_rows(rows, X=X, y=y, sample_weight=sample_weight)
        return self

    def _check_enough(self, n_rows: int) -> None:
        if n_rows < self.n_components:
            raise ValueError(
                f"Expected n_samples >= n_components but got n_components = {self.n_components}, n_samples = {n_rows}"
            )

    def _source_rows(self, table: Table, weight: Any = None, *, reset: bool = False) -> Rows:
        """Return the rows of a table that is no array; `reset` learns which columns they have."""
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
        return table.rows(names, weight=weight, block_rows=mixture_block_rows(len(names), self.n_components))

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
            warnings.warn(
                f"components {revived[-1]} of {self.n_components} lost all their rows and were re-seeded "
                f"({len(revived)} times in this fit); fewer components may fit as well",
                DeadComponentWarning,
                stacklevel=5 + FRAMES,
            )
        columns = overwhelmed_columns(rows, self.reg_covar)
        if columns.size:
            warnings.warn(
                f"reg_covar={self.reg_covar:g} is more than a tenth of the variance of columns "
                f"{columns[:10].tolist()}: the covariances say more about reg_covar than about the data. Scale the "
                "columns or lower reg_covar.",
                ScaleWarning,
                stacklevel=5 + FRAMES,
            )
        if not self.converged_ and self.max_iter > 0:
            warnings.warn(
                "Best performing initialization did not converge. Try different init parameters, or increase "
                "max_iter, tol, or check for degenerate data.",
                ConvergenceWarning,
                stacklevel=5 + FRAMES,
            )

    def _params(self) -> MixtureParams:
        check_is_fitted(self)
        return MixtureParams(
            self.weights_, self.means_, self.covariances_, self.precisions_cholesky_, self.covariance_type
        )

    # -- using --------------------------------------------------------------------------------------------------

    def _per_row(self, X: Any, finish: Callable[[Floats], NDArray[Any]]) -> NDArray[Any]:
        params = self._params()
        if is_source(X):
            rows: Rows = self._source_rows(as_table(X))
        else:
            X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
            rows = ArrayRows(X, block_rows=mixture_block_rows(X.shape[1], params.n_components))
        return collect(rows, Scored(params, finish))

    def score_samples(self, X: Any) -> Floats:
        """Return ``log p(x)`` of each row, (n,)."""
        return self._per_row(X, log_density)

    def score(self, X: Any, y: Any = None, sample_weight: ArrayLike | None = None) -> float:
        """Return the (weighted) mean of ``log p(x)`` over the rows."""
        weights = None if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
        return float(np.average(self.score_samples(X), weights=weights))

    def predict(self, X: Any) -> NDArray[np.intp]:
        """Return the most probable component of each row, (n,)."""
        return self._per_row(X, most_probable)

    def predict_proba(self, X: Any) -> Floats:
        """Return the probability of each component given the row, (n, K)."""
        return self._per_row(X, responsibilities)

    def sample(self, n_samples: int = 1) -> tuple[Floats, NDArray[np.int64]]:
        """Draw rows from the mixture.

        Returns
        -------
        X : ndarray (n_samples, d)
            Ordered by component.
        labels : ndarray (n_samples,)
        """
        params = self._params()
        if n_samples < 1:
            raise ValueError(f"Invalid value for 'n_samples': {n_samples}. At least one row must be drawn.")
        random = check_random_state(self.random_state)
        counts = random.multinomial(n_samples, params.weights)
        d = params.n_features
        lower = np.linalg.cholesky(params.full_covariances())
        drawn = [
            mean + random.standard_normal((count, d)) @ root.T
            for mean, root, count in zip(params.means, lower, counts, strict=True)
        ]
        return np.concatenate(drawn), np.repeat(np.arange(len(counts)), counts)

    def _n_parameters(self) -> int:
        """Return the number of free parameters."""
        K, d = self.means_.shape
        return n_covariance_parameters(self.covariance_type, K, d) + K * d + K - 1

    def bic(self, X: Any) -> float:
        """Return Schwarz's criterion, ``-2 log L + p log n``: the lower, the better."""
        log_density = self.score_samples(X)
        return float(-2 * log_density.sum() + self._n_parameters() * math.log(len(log_density)))

    def aic(self, X: Any) -> float:
        """Return Akaike's criterion, ``-2 log L + 2 p``: the lower, the better."""
        return float(-2 * self.score_samples(X).sum() + 2 * self._n_parameters())
