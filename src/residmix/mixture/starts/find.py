"""Starting parameters for EM, found on a subsample."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from residmix.kernels.clusters import lloyd, seed
from residmix.mixture.families.factor import FactorFamily
from residmix.mixture.families.family import family
from residmix.mixture.params import MixtureParams, SingularCovarianceError, make_params, params_from_precisions
from residmix.mixture.starts.clusters import from_labels, from_shares
from residmix.mixture.starts.directions import enough_rows
from residmix.mixture.starts.factors import factor_start
from residmix.mixture.starts.many import many_start
from residmix.mixture.starts.sample import Sample, subsample, subsample_rows
from residmix.mixture.starts.short_runs import best_short_runs
from residmix.rows.rows import Rows
from residmix.rows.sampled import at_random
from residmix.rows.threads import one_blas_thread

__all__ = ["INIT_PARAMS", "find_start", "find_starts"]

Floats = NDArray[np.float64]

INIT_PARAMS = ("short-em", "kmeans", "k-means++", "random", "random_from_data")


def find_start(rows: Rows, n_components: int, **options: Any) -> MixtureParams:
    """Return the first of `find_starts`."""
    return next(find_starts(rows, n_components, **options))


def find_starts(
    rows: Rows,
    n_components: int,
    *,
    covariance_type: str,
    reg_covar: float,
    random_state: np.random.RandomState,
    init_params: str = "short-em",
    weights: Floats | None = None,
    means: Floats | None = None,
    precisions: Floats | None = None,
) -> Iterator[MixtureParams]:
    """Yield starting parameters for EM, most promising first; most methods give only one.

    Parameters
    ----------
    rows : Rows
    init_params : str
        ``"short-em"``: the best of several short EM runs; ``"kmeans"``: k-means clusters; ``"k-means++"``: rows
        nearest to seeds far apart; ``"random_from_data"``: rows nearest to random rows; ``"random"``: random shares.
        Distances are in the features' own units but for the first. ``"many"``: `many_start`, where others take long.
    weights, means, precisions : ndarray, optional
        Given parameters; the others are found, from clusters around `means` if these are given.
    """
    if weights is not None and means is not None and precisions is not None:
        yield params_from_precisions(weights, means, precisions, covariance_type)
        return
    if isinstance(family(covariance_type), FactorFamily) and means is None and init_params == "short-em":
        block = subsample(rows, n_components, random_state)
        find = partial(find_start, n_components=n_components, reg_covar=reg_covar, random_state=random_state)
        with one_blas_thread():
            found = factor_start(block, n_components, covariance_type, reg_covar, find)
        yield found if weights is None else replace(found, weights=weights)
        return
    if init_params == "many" and means is None:
        found = many_start(rows, n_components, covariance_type, reg_covar, random_state)
        yield _with_given(found, weights, means, precisions)
        return
    sample = Sample.of(subsample(rows, n_components, random_state), covariance_type)
    # one BLAS thread: the number of threads must not change where a start lies
    with one_blas_thread():
        if means is not None:
            labels = lloyd(np.ascontiguousarray(sample.y.T), sample.w, sample.lowered(means)[None], max_iter=0)[0]
            starts = iter([_of_labels(sample, labels, n_components, covariance_type, reg_covar)])
        elif init_params == "short-em" and n_components > 1:
            wide = _wide(rows, sample, n_components, covariance_type, random_state)
            best = best_short_runs(sample, wide, n_components, covariance_type, random_state, reg_covar=reg_covar)
            starts = _raised(sample, best)
        else:
            starts = iter([_one_start(sample, n_components, covariance_type, reg_covar, random_state, init_params)])
    while True:
        with one_blas_thread():
            start = next(starts, None)
        if start is None:
            return
        yield _with_given(start, weights, means, precisions)


def _raised(sample: Sample, found: Iterable[MixtureParams]) -> Iterator[MixtureParams]:
    """Yield the mixtures of x for mixtures of y, but for those with a covariance that has no inverse in x's units.

    Raises
    ------
    SingularCovarianceError
        If all have one.
    """
    some, failure = False, None
    for one in found:
        try:
            raised = sample.raised(one)
        except SingularCovarianceError as error:
            failure = error
            continue
        some = True
        yield raised
    if failure is not None and not some:
        raise failure


def _with_given(
    start: MixtureParams, weights: Floats | None, means: Floats | None, precisions: Floats | None
) -> MixtureParams:
    """Return a start with the values that the user gives."""
    if weights is None and means is None and precisions is None:
        return start
    weights = start.weights if weights is None else weights
    means = start.means if means is None else means
    if precisions is not None:
        return params_from_precisions(weights, means, precisions, start.covariance_type)
    return make_params(weights, means, start.covariances, start.covariance_type, start.parts)


def _wide(
    rows: Rows, sample: Sample, n_components: int, covariance_type: str, random_state: np.random.RandomState
) -> Sample:
    """Return more rows where directions want more than the sample has, or the same."""
    wanted, had = enough_rows(rows.n_features), subsample_rows(n_components, rows.n_features)
    if not sample.whitened or min(wanted, rows.n_rows) <= had:
        return sample
    return Sample.of(rows.take(at_random(rows.n_rows, wanted, random_state)), covariance_type)


def _ridge(reg_covar: float) -> float:
    """Return what keeps covariances in the sample's coordinates regular, if they are to be."""
    return 1e-10 if reg_covar > 0 else 0.0


def _of_labels(
    sample: Sample, labels: NDArray[np.int64], K: int, covariance_type: str, reg_covar: float
) -> MixtureParams:
    found = from_labels(np.ascontiguousarray(sample.y.T), sample.w, labels, K, covariance_type, _ridge(reg_covar))
    return sample.raised(found, reg_covar)


def _one_start(
    sample: Sample,
    K: int,
    covariance_type: str,
    reg_covar: float,
    random_state: np.random.RandomState,
    kind: str,
) -> MixtureParams:
    y, w = sample.y, sample.w
    if kind == "random":
        shares = random_state.uniform(size=(len(y), K))
        shares *= (w / shares.sum(axis=1))[:, None]
        return sample.raised(from_shares(y, shares, covariance_type, _ridge(reg_covar)), reg_covar)
    # distances as the features' units make them, as with scikit-learn: whoever asks for k-means means these
    z = sample.unscaled()
    columns = np.ascontiguousarray(z.T)
    if kind == "random_from_data":
        centres = z[None, random_state.choice(len(z), K, replace=False)]
    else:
        centres = seed(columns, w, K, random_state)
    labels = lloyd(columns, w, centres, max_iter=300 if kind == "kmeans" else 0)[0]
    return _of_labels(sample, labels, K, covariance_type, reg_covar)
