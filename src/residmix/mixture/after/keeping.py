"""What a fit leaves in the estimator: its parameters, how it ended, and what is to be told."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning

from residmix.em.loop import EMState
from residmix.errors import DeadComponentWarning, note, warn
from residmix.mixture.density import MixtureDensity
from residmix.mixture.families.family import FACTOR
from residmix.mixture.params import MixtureParams

__all__ = ["MixtureKept"]

# Features that a note names, and the share of the limit from which on it counts as reached.
SHOWN, ALMOST = 10, 0.98
# Of the rows that are noise: a share that is told of, and one that leaves components nothing.
MOST, ALL = 0.5, 1 - 1e-6

State = EMState[MixtureParams]


class MixtureKept(MixtureDensity):
    """The part of a mixture's estimator that keeps what was fitted."""

    max_iter: int
    tol: float
    trim: float
    cells: float
    cell_shares_: NDArray[np.float64]
    converged_: bool
    # of a fit under way
    _failed: int = 0

    def _is_search(self) -> bool:
        raise AssertionError

    def _keep_mixture(self, params: MixtureParams, state: State) -> None:
        self._keep_params(params)
        self.converged_, self.n_iter_ = state.converged, state.iteration
        self.lower_bound_, self.lower_bounds_ = state.log_likelihood, list(state.log_likelihoods[1:])

    def _keep_params(self, params: MixtureParams) -> None:
        self.n_components_, self.covariance_type_ = params.n_components, params.covariance_type
        self.weights_, self.means_ = params.weights, params.means
        for name in (
            "noise_weight_",
            "noise_box_",
            "dof_",
            "n_factors_",
            "loadings_",
            "own_variances_",
            "trim_threshold_",
            "cell_penalties_",
        ):
            self.__dict__.pop(name, None)
        if params.parts is not None:
            self.covariance_type_, self.n_factors_ = FACTOR, params.parts.shape[2] - 1
            self.loadings_, self.own_variances_ = params.parts[..., :-1], params.parts[..., -1] ** 2
        if params.noise is not None:
            self.noise_weight_, self.noise_box_ = params.noise
            self.weights_ = params.weights * (1 - self.noise_weight_)
        if params.cells is not None:
            self.cell_penalties_ = params.cells
        if params.dof is not None:
            self.dof_ = params.dof
        self.covariances_, self.precisions_cholesky_ = params.covariances, params.factors
        self.precisions_ = params.precisions()

    def _tell_of_cells(self) -> None:
        """Note how many values of which features were set aside."""
        shares = getattr(self, "cell_shares_", np.zeros(0))
        if not shares.any():
            return
        called = [str(name) for name in getattr(self, "feature_names_in_", range(len(shares)))]
        order = np.argsort(-shares, kind="stable")
        most = ", ".join(f"{called[j]} ({100 * shares[j]:.2g} %)" for j in order[:SHOWN] if shares[j] > 0)
        figures = {"share": float(shares.mean()), "features": dict(zip(called, shares.tolist(), strict=True))}
        message = f"{100 * shares.mean():.2g} % of the values were set aside as wrong, by feature: {most}"
        note("cells-set-aside", message + (", ..." if np.count_nonzero(shares) > SHOWN else ""), **figures)
        full = [called[j] for j in order if shares[j] > ALMOST * self.cells]
        if full:
            note(
                "cells-at-limit",
                f"as many values of {', '.join(full[:SHOWN])} were set aside as cells={self.cells:g} allows. Raise it, "
                "or look at these features",
                features=full,
            )

    def _tell_of_noise(self) -> None:
        """Tell where the noise takes most rows, so that the components say little about them."""
        share = getattr(self, "noise_weight_", 0.0)
        if share > ALL:
            warn(
                "all rows are noise, and no component has any: rows spread as evenly as the noise, or components that "
                "are too wide (reg_covar, prior). Use noise=False",
                DeadComponentWarning,
                kind="all-noise",
                share=share,
            )
        elif share > MOST:
            message = f"{100 * share:.3g} % of the rows are noise, so the components describe few of them"
            note("mostly-noise", message, share=share)

    def _warn(self, revived: list[list[int]]) -> None:
        if self._failed and not self._is_search():
            several = f"{self._failed} starts" if self._failed > 1 else "1 start"
            note(
                "failed-starts",
                f"{several} led to a singular covariance and {'were' if self._failed > 1 else 'was'} left out. Use "
                "fewer components, or raise reg_covar",
                count=self._failed,
            )
        self.__dict__.pop("_failed", None)
        self.__dict__.pop("_restraint", None)
        self._tell_of_cells()
        self._tell_of_noise()
        if revived and not self.trim:  # a component whose rows are trimmed begins anew, as it should
            warn(
                f"components {revived[-1]} of {self.n_components_} lost all their rows and were re-seeded "
                f"({len(revived)} times in this fit). Use fewer components",
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
