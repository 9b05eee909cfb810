"""Methods of fitted mixtures, with and without metadata: densities, components, criteria."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, DensityMixin

from residmix.mixture.families.family import FACTOR, factor_name, family
from residmix.mixture.iteration.beyond import settle_beyond
from residmix.mixture.iteration.estep import Problem, mixture_block_rows, normalised, responsibilities
from residmix.mixture.iteration.step import block_log_joint
from residmix.mixture.params import MixtureParams
from residmix.mixture.robust.errors import check_errors
from residmix.mixture.robust.trimming import kept_weights
from residmix.mixture.selection.candidates import sizes
from residmix.rows.block import Block
from residmix.rows.checks import check_weight
from residmix.rows.rows import Rows
from residmix.sources.output import delivered
from residmix.surfaces import SummaryOfMixture

__all__ = ["MixtureDensity", "entropies", "log_density", "most_probable"]

Floats = NDArray[np.float64]


def log_density(joint: Floats) -> Floats:
    """Return log p(x) from log p(x, k); -inf where all are -inf."""
    return normalised(joint)[1]


def entropies(joint: Floats) -> Floats:
    """Return the entropy of each row's shares from log p(x, k)."""
    share = responsibilities(joint)
    return np.asarray(-np.sum(share * np.log(np.where(share > 0, share, 1.0)), axis=1))


def most_probable(joint: Floats) -> NDArray[np.intp]:
    """Return the component of the largest log p(x, k)."""
    return np.asarray(joint.argmax(axis=1))


def most_probable_or_noise(joint: Floats) -> NDArray[np.intp]:
    """Return the same where the last column is noise, which is -1."""
    found = joint.argmax(axis=1)
    return np.where(found == joint.shape[1] - 1, -1, found)


def _finished(
    problem: Problem, finish: Callable[[Floats], NDArray[Any]], errors: Floats | None, block: Block
) -> NDArray[Any]:
    joint = block_log_joint(problem, block, errors)
    trim = problem.params.trim
    if trim is not None and finish not in (log_density, entropies):
        # one more column, which is everything for rows that would be trimmed
        out = log_density(joint) < trim[1]
        column = np.where(out, 0.0, -np.inf)
        joint = np.column_stack([np.where(out[:, None], -np.inf, joint), column])
        return finish(joint)
    # a density is 0 so far out, a share isn't
    return finish(joint if finish is log_density else settle_beyond(joint, block.X, problem.params))


class MixtureDensity(SummaryOfMixture, DensityMixin, BaseEstimator, ABC):
    """Methods that mixtures with and without metadata share; `given` is the metadata, or nothing."""

    n_components: Any
    covariance_type: Any
    random_state: Any
    noise: bool
    distribution: str
    trim: float
    n_components_: int
    noise_weight_: float
    noise_box_: Floats
    dof_: Floats
    covariance_type_: str
    weights_: Floats
    means_: Floats
    covariances_: Floats
    precisions_cholesky_: Floats
    n_features_in_: int
    n_factors_: int

    @abstractmethod
    def _model(self) -> MixtureParams:
        """Return the parameters."""

    @abstractmethod
    def _rows(self, X: Any, *given: Any) -> Rows:
        """Return rows in the coordinates of the parameters."""

    def _per_row(
        self, finish: Callable[[Floats], NDArray[Any]], out: Any, X: Any, *given: Any, errors: Any = None
    ) -> Any:
        rows = self._rows(X, *given)
        params = self._model()
        problem = Problem.of(params, n_rows=rows.n_rows)
        own = None if errors is None else check_errors(errors, rows.n_rows, rows.n_features)
        if own is not None and params.cells is not None:
            raise ValueError("error_covariance= doesn't work with cells=; leave it out, or fit without cells")
        function = partial(_finished, problem, finish, own)
        if finish is responsibilities:
            names = [f"probability_{k}" for k in range(params.n_components)]
            names += ["probability_noise"] if params.noise is not None else []
            names += ["probability_trimmed"] if params.trim is not None else []
            return delivered(rows, function, names, out, dtype=np.float64)
        if finish is most_probable:
            if params.noise is not None or params.trim is not None:
                function = partial(_finished, problem, most_probable_or_noise, own)
            return delivered(rows, function, ["component"], out, dtype=np.intp, flat=True)
        name = "entropy" if finish is entropies else "log_density"
        return delivered(rows, function, [name], out, dtype=np.float64, flat=True)

    def _score(self, sample_weight: ArrayLike | None, X: Any, *given: Any) -> float:
        density = self._per_row(log_density, None, X, *given)
        return float(np.average(density, weights=check_weight(sample_weight, len(density))))

    # ---- judging -----------------------------------------------------------------------------------------------------

    @property
    def _family_name(self) -> str:
        # models of version 0.1 have no covariance_type_
        name = str(getattr(self, "covariance_type_", self.covariance_type))
        return factor_name(self.n_factors_) if name == FACTOR and hasattr(self, "n_factors_") else name

    def _n_parameters(self) -> int:
        """Return the number of free parameters."""
        return self._count(len(self.means_), self._family_name, self.means_.shape[1])

    def _count(self, K: int, kind: str, d: int) -> int:
        """Return the number of free parameters of K components of a family; the box of noise is taken as known."""
        tails = int(getattr(self, "noise", False)) + (K if getattr(self, "distribution", "") == "t" else 0)
        return family(kind).n_parameters(K, d) + K * d + K - 1 + tails

    def _block_rows(self, n_features: int) -> int:
        return mixture_block_rows(n_features, sizes(self.n_components)[-1])

    def _bic(self, sample_weight: ArrayLike | None, X: Any, *given: Any) -> float:
        log_likelihood, n, _ = self._log_likelihood(sample_weight, X, *given)
        return -2 * log_likelihood + self._n_parameters() * math.log(n)

    def _aic(self, sample_weight: ArrayLike | None, X: Any, *given: Any) -> float:
        return -2 * self._log_likelihood(sample_weight, X, *given)[0] + 2 * self._n_parameters()

    def _icl(self, sample_weight: ArrayLike | None, X: Any, *given: Any) -> float:
        log_likelihood, n, weight = self._log_likelihood(sample_weight, X, *given)
        entropy = self._per_row(entropies, None, X, *given)
        doubt = float(entropy.sum() if weight is None else weight @ entropy)
        return -2 * log_likelihood + self._n_parameters() * math.log(n) + 2 * doubt

    def _log_likelihood(
        self, sample_weight: ArrayLike | None, X: Any, *given: Any
    ) -> tuple[float, float, Floats | None]:
        """Return the (weighted) sum of the rows' log-densities, and their weights: the sum, and each; None for 1.

        With trimming as many of the rows are left out as in the fit, one at the edge in part, so that the criteria of
        several models are about as many rows.
        """
        density = self._per_row(log_density, None, X, *given)
        weight = check_weight(sample_weight, len(density))
        if hasattr(self, "trim_threshold_"):
            weight = kept_weights(density, np.ones(len(density)) if weight is None else weight, self.trim)[0]
        if weight is None:
            return float(density.sum()), float(len(density)), None
        counted = weight > 0  # a row that no component reaches may have weight 0
        return float(weight[counted] @ density[counted]), float(weight.sum()), weight
