"""What a fitted Gaussian mixture is used for: densities, components, samples, criteria."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp
from sklearn.utils import check_random_state
from sklearn.utils.metadata_routing import UNUSED
from sklearn.utils.validation import check_is_fitted, validate_data

from residmix.mixture.estep import log_joint, mixture_block_rows, responsibilities
from residmix.mixture.families.family import family
from residmix.mixture.params import MixtureParams
from residmix.rows.block import Block
from residmix.rows.checks import check_weight
from residmix.rows.rows import ArrayRows, Rows
from residmix.sources.open import as_table, is_source
from residmix.sources.output import delivered
from residmix.sources.table import Table

__all__ = ["MixtureDensity"]

Floats = NDArray[np.float64]


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


def per_row(rows: Rows, scored: Any, n_components: int, out: Any) -> Any:
    """Return what a `scored` block, whose `finish` is one of the three below, is of all rows: see `delivered`."""
    if scored.finish is responsibilities:
        return delivered(rows, scored, [f"probability_{k}" for k in range(n_components)], out, dtype=np.float64)
    if scored.finish is most_probable:
        return delivered(rows, scored, ["component"], out, dtype=np.intp, flat=True)
    return delivered(rows, scored, ["log_density"], out, dtype=np.float64, flat=True)


def most_probable(joint: Floats) -> NDArray[np.intp]:
    """Return the component of the largest log p(x, k)."""
    return joint.argmax(axis=1)


class MixtureDensity:
    """The methods of a mixture that has been fitted."""

    __metadata_request__predict = {"out": UNUSED}  # a path is never routed
    __metadata_request__predict_proba = {"out": UNUSED}

    n_components: int
    covariance_type: str
    random_state: Any
    weights_: Floats
    means_: Floats
    covariances_: Floats
    precisions_cholesky_: Floats
    n_features_in_: int

    def _params(self) -> MixtureParams:
        check_is_fitted(self)
        return MixtureParams(
            self.weights_, self.means_, self.covariances_, self.precisions_cholesky_, self.covariance_type
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

    def _per_row(self, X: Any, finish: Callable[[Floats], NDArray[Any]], out: Any) -> Any:
        params = self._params()
        if is_source(X):
            rows: Rows = self._source_rows(as_table(X))
        else:
            X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
            rows = ArrayRows(X, block_rows=mixture_block_rows(X.shape[1], params.n_components))
        return per_row(rows, Scored(params, finish), params.n_components, out)

    def score_samples(self, X: Any, *, out: Any = None) -> Any:
        """Return ``log p(x)`` of each row, (n,); or write it to a file, or into an array.

        Parameters
        ----------
        X : array (n, d) or table
        out : path or ndarray, optional
            A Parquet file with the column ``log_density``, written as it comes; its path is returned in place of an
            array. Or an array of float64 to put it in.
        """
        return self._per_row(X, log_density, out)

    def score(self, X: Any, y: Any = None, sample_weight: ArrayLike | None = None) -> float:
        """Return the (weighted) mean of ``log p(x)`` over the rows."""
        density = self.score_samples(X)
        return float(np.average(density, weights=check_weight(sample_weight, len(density))))

    def predict(self, X: Any, *, out: Any = None) -> Any:
        """Return the most probable component of each row, (n,).

        `out` as in :meth:`score_samples`: a file has the column ``component``, an array is of integers (`numpy.intp`).
        """
        return self._per_row(X, most_probable, out)

    def predict_proba(self, X: Any, *, out: Any = None) -> Any:
        """Return the probability of each component given the row, (n, K).

        `out` as in :meth:`score_samples`: a file has the columns ``probability_0`` and so on, an array is (n, K).
        """
        return self._per_row(X, responsibilities, out)

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
        return family(self.covariance_type).n_parameters(K, d) + K * d + K - 1

    def bic(self, X: Any) -> float:
        """Return Schwarz's criterion, ``-2 log L + p log n``: the lower, the better."""
        density = self.score_samples(X)
        return float(-2 * density.sum() + self._n_parameters() * math.log(len(density)))

    def aic(self, X: Any) -> float:
        """Return Akaike's criterion, ``-2 log L + 2 p``: the lower, the better."""
        return float(-2 * self.score_samples(X).sum() + 2 * self._n_parameters())
