"""Short runs of EM from many starts; the best few continue, and the best of these is the start of EM.

Several short runs, the best of them run to the end: Biernacki, Celeux & Govaert (2003), "Choosing starting values for
the EM algorithm", their em-EM strategy, in rounds: fewer and fewer runs, longer and longer. Where rows are few, runs
are quick and optima many: there the best run tries moves as well (`residmix.mixture.starts.moves`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from residmix.kernels.clusters import lloyd, seed
from residmix.mixture.doubts.spikes import FEW, none_narrow, spikes, spiky
from residmix.mixture.families.family import family
from residmix.mixture.iteration.estep import Problem, log_joint, mixture_block_rows, responsibilities
from residmix.mixture.iteration.quadratic import QuadraticRows
from residmix.mixture.iteration.short import Runs, joined, short_runs
from residmix.mixture.params import MixtureParams, SingularCovarianceError
from residmix.mixture.starts.clusters import runs_from_labels
from residmix.mixture.starts.directions import directions
from residmix.mixture.starts.moves import moved
from residmix.mixture.starts.sample import Sample, quantiles
from residmix.rows.rows import ArrayRows, Rows

__all__ = ["best_short_runs"]

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]

# Rows that starts are looked for among and the first round is run on, for each parameter of the means.
ROWS_PER_PARAMETER = 20
# Directions of small kurtosis that clusters are sought along, at most.
MOST_DIRECTIONS = 4
LLOYD_ITERATIONS = 10
# Iterations from clusters that k-means agrees about.
SETTLING = 6
SHORT_TOL = 1e-3
# Times its last gain that a run may gain yet: it's given up where that isn't enough to be the likeliest.
HOPE = 100.0
# Share of the rows' variance added to every covariance at first: a run must not win by a spike on a few rows.
RIDGE = 3e-4
# The same of runs after moves: clusters that are flat in some direction show.
MOVES_RIDGE = 3e-5
# K-means clusters are the same but for this share of the rows.
UNLIKE = 0.02
# Runs are on the same way if each component of one has one of the other so near, in the rows' standard deviations, and
# of so like a weight.
SAME, SAME_WEIGHT = 0.25, 0.05
# So many are compared with each other at a time.
TOGETHER = 24


@dataclass(frozen=True, slots=True)
class Schedule:
    """How many runs there are, and how long.

    Attributes
    ----------
    drawn : int
        Starts of each kind, rows nearest to seeds far apart and k-means clusters.
    rounds : tuple of (int, int)
        Iterations of each run in each round, and how many runs go on after it; the first round is on few of the rows.
    last : int
        Iterations of the last round.
    moves : int
        How often moves from the best run are tried before that, as long as they pay.
    tried : int
        Moves that are run, of all those whose clusters are likeliest.
    moved : tuple of (int, int)
        The rounds of the runs that moves make.
    reach : float
        How far steps go beside EM's.
    agreed, unsure : float
        Other starts aren't tried if k-means finds the same clusters from this share of its own, and no more than that
        share of the rows may be of other components.
    sure : tuple of (float, float)
        The latter up to which moves aren't tried either: if k-means always finds these clusters, and if it doesn't.
    enough : float
        Different rows for each parameter that this takes: components that fit what they like are sure of any rows.
    """

    drawn: int
    rounds: tuple[tuple[int, int], ...]
    last: int
    moves: int = 0
    tried: int = 0
    moved: tuple[tuple[int, int], ...] = ()
    reach: float = 1.7
    agreed: float = 1.0
    unsure: float = 0.005
    sure: tuple[float, float] = (0.005, 0.005)
    enough: float = 0.0


AMONG_MANY = Schedule(3, ((4, 3), (4, 2)), 8)
# Where rows are few runs are quick and optima many. With rounds of three iterations and 40 moves, twice (full
# covariances) to four times (diagonal ones) as many of 400 random small data sets ended below the best of ten starts of
# scikit-learn's. Six runs are kept, lest all that are left have spikes.
AMONG_FEW = Schedule(
    4, ((4, 8), (4, 6)), 10, 2, 60, ((4, 8), (6, 6)), agreed=0.5, unsure=0.01, sure=(0.005, 0.002), enough=3.0
)
# Numbers, products of features x rows, up to which these take less time than the loops.
MOST_SQUARES = 1 << 18
# Rows that are few.
FEW_ROWS = 500


def best_short_runs(
    sample: Sample,
    wide: Sample,
    K: int,
    covariance_type: str,
    random_state: np.random.RandomState,
    *,
    reg_covar: float,
) -> Iterator[MixtureParams]:
    """Return the best of many short runs, in the coordinates of the sample; their covariances have `reg_covar` added.

    The likeliest comes first, but those with spikes last.

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
    few, schedule = sample.thinned(ROWS_PER_PARAMETER * K * sample.y.shape[1]), AMONG_MANY
    if len(few.w) <= FEW_ROWS:
        schedule = AMONG_FEW
    columns, diagonal = np.ascontiguousarray(few.y.T), family(covariance_type).diagonal
    everything = _rows(sample, K, diagonal)
    rows = everything if few is sample else _rows(few, K, diagonal)
    clusters = lloyd(columns, few.w, seed(columns, few.w, K, random_state, schedule.drawn), LLOYD_ITERATIONS)
    usual, agree = _usual(clusters, few.w, K)
    runs, unsure, reach = None, 1.0, schedule.reach
    parameters = family(covariance_type).n_parameters(K, len(columns)) + K * (len(columns) + 1)
    enough = not schedule.enough or few.has_distinct(schedule.enough * parameters)
    if sample.inside.all() and agree >= schedule.agreed and enough:
        runs, unsure = _settled(clusters[usual : usual + 1], few, rows, K, covariance_type, schedule)
    if runs is None:
        labels = _different(_labels(clusters, columns, few, sample, wide, schedule.drawn, random_state, K), K)
        runs = runs_from_labels(columns, few.w, labels, K, covariance_type, RIDGE, _squares(rows))
        for iterations, kept in schedule.rounds:
            runs = short_runs(rows, runs, reg_covar=RIDGE, tol=SHORT_TOL, max_iter=iterations, hope=HOPE, reach=reach)
            runs, rows = runs.only(_likeliest(runs, kept, sample, RIDGE)), everything
    for _ in range(schedule.moves if unsure > schedule.sure[agree < 1] else 0):
        before, runs = runs, _after_moves(runs, sample, everything, K, schedule)
        if not runs.values[0] > before.values[0] + SHORT_TOL or _same_way(runs, before):
            break
    # the last round is without the ridge, which blurs clusters that are flat in some direction: as the fit will be
    ridge = sample.ridge(reg_covar)
    try:
        tol, most = 0.1 * SHORT_TOL, schedule.last
        runs = short_runs(everything, runs, reg_covar=ridge, tol=tol, max_iter=most, hope=HOPE, reach=reach)
    except SingularCovarianceError:
        if reg_covar == 0:
            raise
    return _without_spikes_first(runs, sample, reg_covar)


def _after_moves(runs: Runs, sample: Sample, rows: Rows | QuadraticRows, K: int, schedule: Schedule) -> Runs:
    """Return the likeliest of some runs and of those that come of moves from the best of them."""
    labels = moved(sample.y, sample.w, runs.one(0))
    if not len(labels):
        return runs
    columns, kind, bar = np.ascontiguousarray(sample.y.T), runs.covariance_type, float(runs.values.max())
    new = runs_from_labels(columns, sample.w, labels, K, kind, MOVES_RIDGE, _squares(rows))
    # clusters alone tell nearly as well as some iterations what a move may gain
    new = new.only(np.sort(_order(new.values)[: schedule.tried]))
    run = partial(short_runs, reg_covar=MOVES_RIDGE, tol=SHORT_TOL, hope=HOPE, bar=bar, reach=schedule.reach)
    for iterations, kept in schedule.moved:
        new = run(rows, new, max_iter=iterations)
        new = new.only(_likeliest(new, kept, sample, MOVES_RIDGE))
    both = joined(runs, new)
    return both.only(_likeliest(both, kept, sample, MOVES_RIDGE))


def _usual(labels: Labels, w: Floats, K: int) -> tuple[int, float]:
    """Return which of some clusterings (runs, n) most are like, and how many are, as a share."""
    runs = len(labels)
    member = (labels[:, None] == np.arange(K)[:, None]).reshape(runs * K, -1).astype(np.float64)
    common = ((member * w) @ member.T).reshape(runs, K, runs, K)
    like = common.max(axis=3).sum(axis=1) >= (1 - UNLIKE) * w.sum()
    counts = like.sum(axis=1)
    usual = int(counts.argmax())
    return usual, float(counts[usual] / runs)


def _settled(
    labels: Labels, few: Sample, rows: Rows | QuadraticRows, K: int, covariance_type: str, schedule: Schedule
) -> tuple[Runs | None, float]:
    """Return the run that begins at the clusters that k-means finds from many places, if these are so clear that other
    starts needn't be tried: no component sits on a few rows, and few rows could be of two of them; and the share of
    these rows, 1 if there's none such run.
    """
    runs = runs_from_labels(few.y.T, few.w, labels, K, covariance_type, RIDGE, _squares(rows))
    runs = short_runs(rows, runs, reg_covar=RIDGE, tol=SHORT_TOL, max_iter=SETTLING, reach=schedule.reach)
    # far outside a few rows may be a component of their own, but that's no sign of clear clusters
    least = float(runs.weights.min()) * float(few.w.sum())
    if least <= FEW * family(covariance_type).rows_needed(few.y.shape[1]) or _spiky(runs, few, RIDGE)[0]:
        return None, 1.0
    shares = responsibilities(log_joint(few.y, Problem.of(runs.one(0), n_rows=len(few.y))))
    unsure = 1.0 - float(np.average(shares.max(axis=1), weights=few.w))
    return (runs, unsure) if unsure <= schedule.unsure else (None, 1.0)


def _squares(rows: Rows | QuadraticRows) -> QuadraticRows | None:
    return rows if isinstance(rows, QuadraticRows) else None


def _rows(sample: Sample, K: int, diagonal: bool) -> Rows | QuadraticRows:
    """Return the rows as runs want them: as their squares if there aren't too many."""
    n, d = sample.y.shape
    products = d if diagonal else d * (d + 1) // 2
    # squares of rows far outside would eat the digits of the others
    if n * (1 + d + products) <= MOST_SQUARES and sample.inside.all():
        return QuadraticRows.of(sample.y, sample.w, diagonal=diagonal)
    weight = None if (sample.w == 1).all() else sample.w
    return ArrayRows(sample.y, weight=weight, block_rows=mixture_block_rows(d, K))


def _likeliest(runs: Runs, wanted: int, sample: Sample, ridge: float) -> NDArray[np.intp]:
    """Return the likeliest runs that differ, in a component's weight or in where it is, those with spikes last."""
    order = _order(runs.values)
    weights, means = runs.weights.reshape(runs.n_runs, -1), runs.means.reshape(len(runs.means), runs.n_runs, -1)
    # those behind are seldom asked for
    for size in (2 * wanted, len(order)):
        front = order[:size]
        few = _spiky(runs.only(front), sample, ridge)
        first = front[~few] if size < len(order) else front[np.argsort(few, kind="stable")]
        found = first[_different_runs(weights[first], means[:, first], wanted)]
        if len(found) == wanted or size >= len(order):
            break
    # what sits on a few rows now may grow yet: the likeliest one goes on, too
    if few[0] and order[0] not in found:
        found = np.append(found, order[0])
    return found


def _order(values: Floats) -> NDArray[np.intp]:
    """Sort runs, the likeliest first; rounding must not decide which of two that are alike is."""
    return np.argsort(-np.round(values, 9), kind="stable")


def _different_runs(weights: Floats, means: Floats, wanted: int) -> NDArray[np.intp]:
    """Return the first runs, weights (r, K) and means (d, r, K), that aren't on the way of one before them: where each
    component has one of that run near it.
    """
    chosen, left = list[int](), np.arange(len(weights))
    while len(left) and len(chosen) < wanted:
        few, left = left[:TOGETHER], left[TOGETHER:]
        if chosen:
            few = few[~_on_the_way(weights, means, few, np.array(chosen)).any(axis=1)]
        known = list[int]()
        for i, before in enumerate(_on_the_way(weights, means, few, few).tolist()):
            if not any(before[j] for j in known):
                known.append(i)
        chosen += few[known].tolist()
    return np.array(chosen[:wanted], dtype=np.intp)


def _on_the_way(weights: Floats, means: Floats, of: NDArray[np.intp], to: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Tell of each run whether it's on the way of each of some others, (runs, others)."""
    d, _, K = means.shape
    one, other = means[:, of].reshape(d, -1), means[:, to].reshape(d, -1)
    # rows are centred and of unit variance: no digits are lost that matter here
    squared = np.einsum("dc,dc->c", one, one)[:, None] + np.einsum("dc,dc->c", other, other)
    near = squared - 2.0 * (one.T @ other) <= SAME**2
    near &= np.abs(weights[of].reshape(-1, 1) - weights[to].ravel()) <= SAME_WEIGHT
    return np.asarray(near.reshape(len(of), K, len(to), K).any(axis=3).all(axis=1))


def _same_way(runs: Runs, before: Runs) -> bool:
    """Tell whether the first run of each is on the way to the same optimum."""
    K = runs.n_components
    weights = np.stack([runs.weights[:K], before.weights[:K]])
    return len(_different_runs(weights, np.stack([runs.means[:, :K], before.means[:, :K]], axis=1), 2)) == 1


def _spiky(runs: Runs, sample: Sample, ridge: float) -> NDArray[np.bool_]:
    """Tell which runs have a component on a few rows amid the others."""
    of, (d, K) = family(runs.covariance_type), (len(runs.means), runs.n_components)
    if of.shared:
        return np.zeros(runs.n_runs, dtype=bool)
    far = sample.beyond(runs.means.T).reshape(-1, K)
    weights = runs.weights.reshape(-1, K)
    return spiky(weights, runs.full(), ridge, float(sample.w.sum()), far, of.rows_needed(d))


def _without_spikes_first(runs: Runs, sample: Sample, reg_covar: float) -> Iterator[MixtureParams]:
    if runs.n_runs == 1:
        yield runs.one(0)
        return
    total, ridge = float(sample.w.sum()), sample.ridge(reg_covar)
    ordered = runs.only(_order(runs.values))

    def spiky(params: MixtureParams) -> bool:
        return bool(spikes(params, total, sample.far_from_rest(params), ridge))

    first = ordered.one(0)
    if not none_narrow(first) and spiky(first):
        yield from sorted(ordered.each(), key=spiky)
        return
    yield first
    yield from ordered.only(np.arange(1, runs.n_runs)).each()


def _labels(
    clusters: Labels,
    columns: Floats,
    few: Sample,
    sample: Sample,
    wide: Sample,
    drawn: int,
    random_state: np.random.RandomState,
    K: int,
) -> Labels:
    """Return clusterings (runs, n) of few of a sample's rows, in all directions, those given included, and in some."""
    w, moved = few.w, _different(clusters, K)
    labels = [moved, lloyd(columns, w, seed(columns, w, K, random_state, drawn), 0)]
    if few.whitened:
        labels.append(_in_their_own_metric(columns, w, moved, K))
        if len(columns) > 1:
            labels.append(_in_directions(few, sample, wide, K, random_state))
    return np.concatenate(labels)


def _different(labels: Labels, K: int) -> Labels:
    """Return the clusterings that differ by more than the clusters' numbers."""
    # numbered in the order in which they begin
    member = labels[:, None] == np.arange(K)[:, None]
    first = np.where(member.any(axis=2), member.argmax(axis=2), labels.shape[1])
    rank = np.argsort(np.argsort(first, axis=1), axis=1).astype(np.int32)
    known: dict[bytes, int] = {}
    for run, renamed in enumerate(np.take_along_axis(rank, labels, axis=1)):
        known.setdefault(renamed.tobytes(), run)
    return labels[list(known.values())]


def _in_directions(few: Sample, sample: Sample, wide: Sample, K: int, random_state: np.random.RandomState) -> Labels:
    """Return k-means clusters along the least normal directions, one by one and together."""
    # far rows would be clusters of their own in any direction
    inside, d = wide.inside, few.y.shape[1]
    found = directions(wide.y[inside], wide.w[inside], min(max(2, K - 1), MOST_DIRECTIONS))
    if wide is not sample:
        found = sample.back @ (wide.to @ found)
        found /= np.sqrt((found**2).sum(axis=0))
    along = few.y @ found
    ends = along[few.inside].min(axis=0), along[few.inside].max(axis=0)
    bounded = np.ascontiguousarray(np.clip(along, *ends).T)
    evenly = np.stack([_evenly(one, few.w, K) for one in bounded])
    labels = lloyd(bounded[:, None], few.w, evenly[:, :, None], LLOYD_ITERATIONS)
    if K == 2:
        return labels
    first = bounded[: min(K - 1, d, MOST_DIRECTIONS)]
    return np.concatenate([labels, lloyd(first, few.w, seed(first, few.w, K, random_state), LLOYD_ITERATIONS)])


def _in_their_own_metric(columns: Floats, w: Floats, labels: Labels, K: int) -> Labels:
    """Return k-means clusters by distances in the units of the scatter within given clusters.

    Whitened rows lie apart by least where clusters do; this undoes it, whatever linear map rows went through (Art,
    Gnanadesikan & Kettenring 1982, "Data-based metrics for cluster analysis", Utilitas Mathematica 21A).
    """
    d, runs = len(columns), np.arange(len(labels))[:, None]
    share = (labels[:, None] == np.arange(K)[:, None]) * w
    counts = share.sum(axis=2, keepdims=True)
    means = (share @ columns.T) / np.where(counts > 0, counts, 1.0)
    gap = columns.T - means[runs, labels]
    within = (gap * w[:, None]).swapaxes(1, 2) @ gap / w.sum() + RIDGE * np.eye(d)
    to = np.linalg.inv(np.linalg.cholesky(within))
    return lloyd(to @ columns, w, means @ to.swapaxes(1, 2), LLOYD_ITERATIONS)


def _evenly(values: Floats, w: Floats, K: int) -> Floats:
    """Return K quantiles, evenly spread."""
    return quantiles(values, w, (np.arange(K) + 0.5) / K)
