"""How mixtures are fitted, with metadata and without: starts, runs, and what is told of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from numbers import Integral, Real
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils._param_validation import Interval, StrOptions

from residmix.em.callbacks import CallbackSupportMixin, FitTasks
from residmix.em.loop import Acceleration, EMState, run_em
from residmix.em.observers import FitProgress, Progress
from residmix.em.runs import run_starts
from residmix.errors import DeadComponentWarning, warn
from residmix.mixture.density import MixtureDensity
from residmix.mixture.families.family import COVARIANCE_TYPES
from residmix.mixture.labels import check_labels, params_of_labels
from residmix.mixture.params import MixtureParams, SingularCovarianceError
from residmix.mixture.starts import INIT_PARAMS, check_given
from residmix.mixture.step import MixtureEM
from residmix.mixture.vector import pack, unpack
from residmix.rows.rows import Rows

__all__ = ["MixtureFit"]

Floats = NDArray[np.float64]
State = EMState[MixtureParams]


class MixtureFit(CallbackSupportMixin, MixtureDensity):
    """The half of a mixture's estimator that EM needs."""

    tol: float
    reg_covar: float
    max_iter: int
    n_init: int
    init_params: str
    weights_init: ArrayLike | None
    means_init: ArrayLike | None
    precisions_init: ArrayLike | None
    labels_init: ArrayLike | None
    accelerate: bool
    warm_start: bool
    verbose: int
    verbose_interval: int
    checkpoint: str | PathLike[str] | None
    converged_: bool

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
        "labels_init": ["array-like", None],
        "accelerate": ["boolean"],
        "random_state": ["random_state"],
        "warm_start": ["boolean"],
        "verbose": ["verbose"],
        "verbose_interval": [Interval(Integral, 1, None, closed="left")],
        "checkpoint": [str, PathLike, None],
    }

    @property
    def _quiet(self) -> bool:
        """Whether somebody else tells of the fit's progress."""
        return bool(self.verbose) or bool(getattr(self, "_skl_callbacks", None))

    def _given_start(self, n_features: int) -> dict[str, Floats | None]:
        """Return the user's starting values, checked."""
        values = self.weights_init, self.means_init, self.precisions_init
        return check_given(*values, self.covariance_type, self.n_components, n_features)

    def _labelled(self, rows: Rows) -> MixtureParams:
        """Return the M-step's answer to the user's labels."""
        if any(value is not None for value in (self.weights_init, self.means_init, self.precisions_init)):
            raise ValueError("labels_init says where EM begins, and so do weights_init, means_init and precisions_init")
        labels = check_labels(self.labels_init, rows.n_rows, self.n_components)
        kind, reg_covar = self.covariance_type, self.reg_covar
        return params_of_labels(rows, labels, self.n_components, covariance_type=kind, reg_covar=reg_covar)

    def _best(
        self,
        em: MixtureEM,
        starts: Callable[[], Iterable[MixtureParams]],
        tasks: FitTasks,
        fingerprint: str,
        history: tuple[float, ...] = (),
    ) -> State:
        """Run every start to the end; return the likeliest."""

        def run(i: int, start: MixtureParams | State, keep: Callable[[State], Any] | None) -> State:
            report = Progress(self.verbose, self.verbose_interval, i)

            def callback(state: State) -> bool:
                report(state)
                if keep is not None:
                    keep(state)
                return iterated(state)

            with tasks.start(self.max_iter) as iterated:
                ended = self._run(em, start, callback, history)
            report.end(ended)
            return ended

        path = self.checkpoint
        ended = run_starts(em, starts, run, failure=SingularCovarianceError, path=path, fingerprint=fingerprint)
        # the first of equals, so that more starts never change a result they don't improve
        return max(ended, key=lambda state: state.log_likelihood)

    def _run(
        self,
        em: MixtureEM,
        start: MixtureParams | State,
        callback: Callable[[State], Any] | None = None,
        history: tuple[float, ...] = (),
    ) -> State:
        watched = FitProgress(em.rows.n_rows, tol=self.tol, max_iter=self.max_iter, then=callback, quiet=self._quiet)
        with watched:
            return run_em(
                em,
                start,
                tol=self.tol,
                max_iter=self.max_iter,
                accelerate=Acceleration(pack, unpack) if self.accelerate and self.tol > 0 else None,
                history=history,
                evaluate=em.evaluate,
                callback=watched,
            )

    def _keep_mixture(self, params: MixtureParams, state: State) -> None:
        self.weights_, self.means_ = params.weights, params.means
        self.covariances_, self.precisions_cholesky_ = params.covariances, params.factors
        self.precisions_ = params.precisions()
        self.converged_, self.n_iter_ = state.converged, state.iteration
        self.lower_bound_, self.lower_bounds_ = state.log_likelihood, list(state.log_likelihoods[1:])

    def _warn(self, revived: list[list[int]]) -> None:
        if revived:
            warn(
                f"components {revived[-1]} of {self.n_components} lost all their rows and were re-seeded "
                f"({len(revived)} times in this fit); fewer components may fit as well",
                DeadComponentWarning,
                components=revived[-1],
                times=len(revived),
            )
        if not self.converged_ and self.max_iter > 0 and self.tol > 0:
            warn(
                "Best performing initialization did not converge. Try different init parameters, or increase "
                "max_iter, tol, or check for degenerate data.",
                ConvergenceWarning,
                iterations=self.max_iter,
            )
