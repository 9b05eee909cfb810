"""Input of a GaussianMixture: rows from any kind of data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from sklearn.utils.validation import _check_sample_weight, validate_data

from residmix.mixture.after.using import GaussianDensity
from residmix.mixture.selection.candidates import sizes
from residmix.mixture.starts import check_goes_on
from residmix.rows.rows import ArrayRows, Rows
from residmix.sources.frames import unmasked
from residmix.sources.open import as_table, is_source

__all__ = ["GaussianRows"]


class GaussianRows(GaussianDensity):
    """The part of :class:`residmix.GaussianMixture` that looks at its input."""

    def _training_rows(self, X: Any, sample_weight: Any, *, reset: bool) -> Rows:
        """Return the checked rows of anything that can be fitted."""
        if is_source(X):
            rows = self._source_rows(as_table(X), sample_weight, reset=reset)
            if reset:
                self._check_enough(rows.n_rows)
            return rows
        if isinstance(X, Iterator):
            raise TypeError(
                "X is an iterator, which can be read only once, but EM needs several passes; pass a function that "
                "returns a new iterator, or use partial_fit"
            )
        finite = self._finite()
        least = 2 if reset else 1
        X, dtype = unmasked(X), [np.float64, np.float32]
        X = validate_data(self, X, dtype=dtype, ensure_min_samples=least, ensure_all_finite=finite, reset=reset)
        weight, counted = None, len(X)
        if sample_weight is not None:
            weight = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
            counted = int(np.count_nonzero(weight))
            if counted == 0:
                raise ValueError(f"sample_weight is 0 for all {len(X)} rows; at least one must be positive")
        if reset:
            self._check_enough(counted)
        return ArrayRows(X, weight=weight, block_rows=self._block_rows(X.shape[1]))

    def _check_goes_on(self, method: str, n_features: int) -> None:
        K, kind = self.n_components, self._kind()
        if self._is_search():
            K, kind = self.n_components_, self._family_name
        check_goes_on(self.means_, self.covariances_, kind, K, n_features, method)

    def _check_enough(self, n_rows: int) -> None:
        largest = 1 if isinstance(self.n_components, str) else sizes(self.n_components)[-1]
        if n_rows < largest:
            raise ValueError(
                f"Expected n_samples >= n_components but got n_components = {largest}, n_samples = {n_rows}"
            )
