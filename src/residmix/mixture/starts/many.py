"""A start for hundreds of components, at the price of some passes over a subsample."""

from __future__ import annotations

import numpy as np

from residmix.kernels.clusters import lloyd, seed
from residmix.mixture.families.family import family
from residmix.mixture.params import MixtureParams
from residmix.mixture.starts.clusters import from_labels
from residmix.mixture.starts.sample import THINNED, Sample
from residmix.rows.rows import Rows
from residmix.rows.sampled import at_random
from residmix.rows.threads import one_blas_thread

__all__ = ["many_start", "many_start_rows"]

# Rows for each component, twice the number of features where covariances need them; and the most distances at once.
EACH, DISTANCES = 20, 4 * 10**7
# Iterations of k-means: EM does the rest.
ITERATIONS = 10


def many_start_rows(n_components: int, n_features: int, covariance_type: str) -> int:
    """Return how many rows the start is found on."""
    each = EACH if family(covariance_type).diagonal else max(EACH, 2 * n_features)
    return max(10 * THINNED, min(each * n_components, DISTANCES // n_components), 2 * n_components)


def many_start(
    rows: Rows, n_components: int, covariance_type: str, reg_covar: float, random_state: np.random.RandomState
) -> MixtureParams:
    """Return clusters of k-means about seeds of k-means++, in coordinates that don't depend on the features' units.

    The number of distances is rows of the subsample times components for the seeds, and for each iteration.
    """
    size = many_start_rows(n_components, rows.n_features, covariance_type)
    sample = Sample.of(rows.take(at_random(rows.n_rows, size, random_state)), covariance_type)
    columns = np.ascontiguousarray(sample.y.T)
    ridge = 1e-10 if reg_covar > 0 else 0.0
    with one_blas_thread():
        centres = seed(columns, sample.w, n_components, random_state)
        labels = lloyd(columns, sample.w, centres, max_iter=ITERATIONS)[0]
        found = from_labels(columns, sample.w, labels, n_components, covariance_type, ridge)
    return sample.raised(found, reg_covar)
