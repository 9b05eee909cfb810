"""Short runs of EM from many starts; the best few go on, and the best one of these is where EM begins.

Several short runs, the best of them run to the end: Biernacki, Celeux & Govaert (2003), "Choosing starting values for
the EM algorithm", their em-EM strategy, in rounds: fewer and fewer runs, longer and longer.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray

from residmix.kernels.clusters import cluster_moments, lloyd, seed
from residmix.mixture.doubts.spikes import spikes
from residmix.mixture.iteration.estep import mixture_block_rows
from residmix.mixture.iteration.short import short_runs
from residmix.mixture.params import MixtureParams, SingularCovarianceError
from residmix.mixture.starts.clusters import from_labels
from residmix.mixture.starts.directions import directions
from residmix.mixture.starts.sample import Sample, quantiles
from residmix.rows.rows import ArrayRows, Rows

__all__ = ["best_short_run"]

Floats = NDArray[np.float64]
# Log-likelihood per row, and where it was reached.
Run = tuple[float, MixtureParams]

# Starts of each kind: rows nearest to seeds far apart, k-means clusters, and these in a metric of their own.
DRAWN = 4
# The same where rows are few: runs are quick then, and optima many.
DRAWN_AMONG_FEW, FEW_ROWS = 8, 1_000
# Rows that starts are looked for among and the first round is run on, for each parameter of the means.
ROWS_PER_PARAMETER = 20
# Directions of small kurtosis that clusters are sought along, at most.
MOST_DIRECTIONS = 4
LLOYD_ITERATIONS = 10
# Times that k-means clusters are sought in the metric of the clusters before.
METRICS = 3
# Rounds: iterations of each run, and how many runs go on.
ROUNDS = ((4, 10), (10, 4), (30, 1))
SHORT_TOL = 1e-3
# Share of the rows' variance added to every covariance at first: a run must not win by a spike on a few rows.
RIDGE = 1e-3
# Runs that end this close to each other in log-likelihood per row are the same.
SAME = 1e-7


def best_short_run(
    sample: Sample,
    wide: Sample,
    K: int,
    covariance_type: str,
    random_state: np.random.RandomState,
    *,
    reg_covar: float,
) -> MixtureParams:
    """Return the best of many short runs, in the coordinates of the sample; its covariances have `reg_covar` added.

    Parameters
    ----------
    sample : Sample
    wide : Sample
        More rows, or the same, in coordinates of their own, to find directions on.
    reg_covar : float
        In the units of the features. If it's 0, runs that become singular don't count.

    Raises
    ------
    SingularCovarianceError
        If all do.
    """
    few, everything = sample.thinned(ROWS_PER_PARAMETER * K * sample.y.shape[1]), _rows(sample, K)
    runs = [(-np.inf, start) for start in _starts(few, sample, wide, K, covariance_type, random_state)]
    for round_, (iterations, kept) in enumerate(ROUNDS):
        # the last round is without the ridge, which blurs clusters that are flat in some direction: as the fit will be
        last = round_ == len(ROUNDS) - 1
        rows = everything if round_ else _rows(few, K)
        ridge, tol = (sample.ridge(reg_covar), 0.1 * SHORT_TOL) if last else (RIDGE, SHORT_TOL)
        longer, failure = _longer(rows, [params for _, params in runs], ridge, tol, iterations)
        if failure is not None and not longer and not (last and reg_covar > 0):
            raise failure
        runs = _kept(longer or runs, kept, sample)
    return runs[0][1]


def _rows(sample: Sample, K: int) -> Rows:
    weight = None if (sample.w == 1).all() else sample.w
    return ArrayRows(sample.y, weight=weight, block_rows=mixture_block_rows(sample.y.shape[1], K))


def _longer(
    rows: Rows, starts: list[MixtureParams], ridge: float | Floats, tol: float, iterations: int
) -> tuple[list[Run], SingularCovarianceError | None]:
    """Return runs some iterations further, but those that fail, and why one of them does."""
    run = partial(short_runs, rows, reg_covar=ridge, tol=tol, max_iter=iterations)
    try:
        return run(starts), None
    except SingularCovarianceError:
        longer, failure = [], None
        for start in starts:
            try:
                longer += run([start])
            except SingularCovarianceError as error:
                failure = error
        return longer, failure


def _kept(runs: list[Run], wanted: int, sample: Sample) -> list[Run]:
    """Return the likeliest runs that differ, those without spikes first."""
    total = float(sample.w.sum())
    different: list[Run] = []
    for run in sorted(runs, key=lambda run: -run[0]):
        if all(abs(run[0] - other[0]) > SAME for other in different):
            different.append(run)
    spiky = [bool(spikes(params, total, sample.far_from_rest(params))) for _, params in different]
    order = sorted(range(len(different)), key=lambda i: spiky[i])
    return [different[i] for i in order[:wanted]]


def _starts(
    few: Sample, sample: Sample, wide: Sample, K: int, covariance_type: str, random_state: np.random.RandomState
) -> Iterator[MixtureParams]:
    """Yield parameters to begin with, for few of a sample's rows: of clusters in all directions, and in some."""
    columns, w = np.ascontiguousarray(few.y.T), few.w
    drawn = DRAWN_AMONG_FEW if len(w) <= FEW_ROWS else DRAWN
    seeds = seed(columns, w, K, random_state, 3 * drawn)
    near, moved = lloyd(columns, w, seeds[:drawn], 0), lloyd(columns, w, seeds[drawn:], LLOYD_ITERATIONS)
    labels = [*near, *moved[:drawn]]
    if few.whitened:
        labels += [_in_their_own_metric(columns, w, one, K, random_state) for one in (*moved[drawn:], *near)]
        if few.y.shape[1] > 1:
            labels += _in_directions(few, sample, wide, K, random_state)
    else:
        labels += [*moved[drawn:]]
    found, failure = 0, None
    for one in labels:
        try:
            yield from_labels(columns, w, one, K, covariance_type, RIDGE)
            found += 1
        except SingularCovarianceError as error:
            failure = error
    if failure is not None and not found:
        raise failure


def _in_directions(
    few: Sample, sample: Sample, wide: Sample, K: int, random_state: np.random.RandomState
) -> list[NDArray[np.int64]]:
    """Return k-means clusters along the least normal directions, one by one and together."""
    # far rows would be clusters of their own in any direction
    inside, d = wide.inside, few.y.shape[1]
    found = directions(wide.y[inside], wide.w[inside], min(max(2, K - 1), MOST_DIRECTIONS))
    if wide is not sample:
        found = sample.back @ (wide.to @ found)
        found /= np.sqrt((found**2).sum(axis=0))
    together = [list(range(min(K - 1, d, MOST_DIRECTIONS)))] if K > 2 else []
    labels = []
    for chosen in [[j] for j in range(found.shape[1])] + together:
        projected = (few.y @ found[:, chosen]).T
        within = projected[:, few.inside]
        bounded = np.ascontiguousarray(np.clip(projected, *_ends(within)))
        alone = len(chosen) == 1
        centres = _evenly(bounded[0], few.w, K)[None, :, None] if alone else seed(bounded, few.w, K, random_state)
        labels.append(lloyd(bounded, few.w, centres, 30)[0])
    return labels


def _in_their_own_metric(
    columns: Floats, w: Floats, labels: NDArray[np.int64], K: int, random_state: np.random.RandomState
) -> NDArray[np.int64]:
    """Return k-means clusters by distances in the units of the scatter within given clusters, and once more.

    Whitened rows lie apart by least where clusters do; this undoes it, whatever linear map rows went through (Art,
    Gnanadesikan & Kettenring 1982, "Data-based metrics for cluster analysis", Utilitas Mathematica 21A).
    """
    d = len(columns)
    for again in range(METRICS):
        _, _, scatter = cluster_moments(columns, w, labels, K, diagonal=False)
        within = scatter.sum(axis=0) / w.sum() + RIDGE * np.eye(d)
        scaled = np.ascontiguousarray(np.linalg.solve(np.linalg.cholesky(within), columns))
        if again == 0:
            centres = seed(scaled, w, K, random_state)
        else:
            centres = cluster_moments(scaled, w, labels, K, diagonal=True)[1][None]
        labels = lloyd(scaled, w, centres, LLOYD_ITERATIONS)[0]
    return labels


def _ends(values: Floats) -> tuple[Floats, Floats]:
    return values.min(axis=1, keepdims=True), values.max(axis=1, keepdims=True)


def _evenly(values: Floats, w: Floats, K: int) -> Floats:
    """Return K quantiles, evenly spread."""
    return quantiles(values, w, (np.arange(K) + 0.5) / K)
