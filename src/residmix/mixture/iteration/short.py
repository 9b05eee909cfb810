"""Several short runs of EM at the same time, which share the overhead of an iteration.

Components of all runs lie along the last axis of every array, so that an operation on small matrices is one on long
vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from residmix.em.loop import REST, ROUNDING
from residmix.kernels.cholesky import many_inverse_cholesky, swept
from residmix.mixture.families.factor import FactorFamily
from residmix.mixture.families.family import Family, family
from residmix.mixture.iteration.estep import MixtureMoments, Problem, mixture_block
from residmix.mixture.iteration.mstep import CANCELLED, DEAD_ROWS
from residmix.mixture.iteration.quadratic import QuadraticRows
from residmix.mixture.params import MixtureParams, SingularCovarianceError, params_as
from residmix.rows.block import Block
from residmix.rows.rows import Rows, fold

__all__ = ["Runs", "joined", "short_runs"]

Floats = NDArray[np.float64]

# Runs that have ended go on beside the others until no more than this share of them is left.
PART = 0.7


@dataclass(frozen=True, slots=True)
class Runs:
    """Mixtures of one size and family, the components of all in a row.

    Attributes
    ----------
    n_components : int
        Of each.
    weights, means : ndarray (C,), (d, C)
    covariances : ndarray (d, d, C), or (d, C) if the family is diagonal
        Made to those of the family, whole.
    covariance_type : str
    values : ndarray (n_runs,)
        Log-likelihoods per row. Of clusters that have met no row as mixtures yet, how likely rows are where each
        belongs to its cluster alone, but for a constant: :math:`\\sum_k \\pi_k (\\log \\pi_k - \\log |\\Sigma_k| / 2)`
        (Symons 1981, Biometrics 37).
    rows : Rows, QuadraticRows or None
        On which these are known, and the next three.
    mass, centres, within : ndarray (C,), (d, C), (d, d, C) or (d, C)
        Rows, means and covariances of the components by what each has of every row.
    """

    n_components: int
    weights: Floats
    means: Floats
    covariances: Floats
    covariance_type: str
    values: Floats
    rows: Any = None
    mass: Floats | None = None
    centres: Floats | None = None
    within: Floats | None = None

    @classmethod
    def of(
        cls, mass: Floats, means: Floats, W: Floats, K: int, covariance_type: str, counts: Floats | None = None
    ) -> Runs:
        """Return runs with the M-step's answers, those left out that are singular.

        Parameters
        ----------
        mass, means : ndarray (C,), (d, C)
            Rows and means of the components.
        counts : ndarray (n_runs, K), optional
            How many rows `W` counts as; `mass` by default.
        W : ndarray (d, d, C), or (d, C) if the family is diagonal
            Covariances within components.
        K : int
        covariance_type : str

        Raises
        ------
        SingularCovarianceError
            If all are.
        """
        of, n = family(covariance_type), mass.reshape(-1, K)
        covariances = _fitted(of, W, n if counts is None else counts, None)
        weights = (n / n.sum(axis=1, keepdims=True)).ravel()
        pivots = _pivots(covariances)
        sound = _positive(pivots).reshape(n.shape).all(axis=1)
        with np.errstate(all="ignore"):
            each = weights * (np.log(weights) - 0.5 * np.log(pivots).sum(axis=0))
        runs = cls(K, weights, means, covariances, covariance_type, each.reshape(n.shape).sum(axis=1))
        if sound.all():
            return runs
        if not sound.any():
            raise SingularCovarianceError(np.arange(K))
        return runs.only(np.flatnonzero(sound))

    @property
    def n_runs(self) -> int:
        return len(self.values)

    def only(self, chosen: NDArray[np.intp]) -> Runs:
        """Return some of the runs."""
        K = self.n_components
        places = (chosen[:, None] * K + np.arange(K)).ravel()
        arrays = self.weights[places], self.means[:, places], self.covariances[..., places]
        more: list[Any] = []
        if self.mass is not None and self.centres is not None and self.within is not None:
            more = [self.mass[places], self.centres[:, places], self.within[..., places]]
        return Runs(K, *arrays, self.covariance_type, self.values[chosen], self.rows, *more)

    def one(self, run: Any) -> MixtureParams:
        """Return the mixture of a run, in its family."""
        return params_as(self.only(np.array([run])).params()[0], self.covariance_type)

    def each(self) -> list[MixtureParams]:
        """Return the mixtures of all runs, in their family."""
        if self.covariance_type != "full":
            return [self.one(run) for run in range(self.n_runs)]
        whole, found = self.params()[0], list[MixtureParams]()
        for begin in range(0, len(whole.weights), self.n_components):
            own = slice(begin, begin + self.n_components)
            arrays = whole.weights[own], whole.means[own], whole.covariances[own], whole.factors[own]
            found.append(MixtureParams(*arrays, "full"))
        return found

    def params(self) -> tuple[MixtureParams, NDArray[np.bool_]]:
        """Return the components of all runs as those of one mixture of free covariances, or free variances, and which
        are sound; factors of the others are 1.
        """
        covariances = np.ascontiguousarray(np.moveaxis(self.covariances, -1, 0))
        if covariances.ndim == 3:
            kind, (factors, failed) = "full", many_inverse_cholesky(covariances)
        else:
            kind, failed = "diag", ~_positive(self.covariances)
            with np.errstate(all="ignore"):
                factors = 1.0 / np.sqrt(covariances)
        if failed.any():
            factors[failed] = np.eye(len(self.means)) if factors.ndim == 3 else 1.0
        return MixtureParams(self.weights, np.ascontiguousarray(self.means.T), covariances, factors, kind), ~failed

    def full(self) -> Floats:
        """Return the covariances as (n_runs, K, d, d)."""
        d = len(self.means)
        whole = self.covariances if self.covariances.ndim == 3 else self.covariances * np.eye(d)[:, :, None]
        return np.moveaxis(whole, -1, 0).reshape(self.n_runs, self.n_components, d, d)


def joined(*several: Runs) -> Runs:
    """Return runs of one size and family as one."""
    first = several[0]
    if len(several) == 1:
        return first

    seen = first.rows if all(runs.rows is first.rows for runs in several) else None
    names = ["weights", "means", "covariances", "values"] + ["mass", "centres", "within"] * (seen is not None)
    arrays = {name: np.concatenate([getattr(runs, name) for runs in several], axis=-1) for name in names}
    return Runs(first.n_components, covariance_type=first.covariance_type, rows=seen, **arrays)


def short_runs(
    rows: Rows | QuadraticRows,
    runs: Runs,
    *,
    reg_covar: float | Floats,
    tol: float,
    max_iter: int,
    hope: float = np.inf,
    bar: float = -np.inf,
    reach: float = 1.0,
) -> Runs:
    """Return runs some iterations of EM further, those left out that become singular.

    Each stops where it would have stopped alone or some iterations later, or when it can't catch up with the best one;
    the best one stops when no other can catch up.

    Parameters
    ----------
    rows : Rows
    runs : Runs
    reg_covar : float, or ndarray as for `residmix.mixture.iteration.mstep.covariances_from_scatter`
    tol, max_iter
        As for `residmix.em.loop.run_em`.
    hope : float
        Multiple of its last gain that a run may still gain.
    bar : float
        Log-likelihood of another run to catch up with.
    reach : float
        How many times as far as EM's own a step goes, below 2. EM's steps end short of the optimum, the more so the
        more clusters overlap; up to twice as far it converges from nearby as well (Peters & Walker 1978, SIAM J. Appl.
        Math. 35). The likelihood may fall for once.

    Raises
    ------
    SingularCovarianceError
        If all become so.
    """
    ridge = _ridge(reg_covar, runs)
    if runs.rows is not rows:
        runs = _judged(rows, runs)[0]
    live, before, last = np.arange(runs.n_runs), np.full(runs.n_runs, np.nan), runs.values
    best, ended = max(bar, float(last.max())), list[tuple[NDArray[np.intp], Runs]]()
    for iteration in range(max_iter + 1):
        if iteration == max_iter:
            ended.append((live, runs))
            break
        if iteration > 0 and tol > 0:
            best = max(best, float(runs.values.max()))
            done = _done(before, last, runs.values, tol, best, hope)
            going = (~done).nonzero()[0]
            # to part takes as long as some iterations of a few runs
            if not len(going):
                ended.append((live, runs))
                break
            if len(going) <= PART * len(live):
                places = done.nonzero()[0]
                ended.append((live[places], runs.only(places)))
                runs, live, last = runs.only(going), live[going], last[going]
        before, last = last, runs.values
        # the first step from clusters is a long one
        runs, sound = _moved_on(rows, runs, ridge, reach if iteration else 1.0)
        if not sound.all():
            kept = np.flatnonzero(sound)
            if not len(kept):
                break
            runs, live, before, last = runs.only(kept), live[kept], before[kept], last[kept]
    if not ended:
        raise SingularCovarianceError(np.arange(runs.n_components))
    if len(ended) == 1:
        return ended[0][1]
    return joined(*(part for _, part in ended)).only(np.argsort(np.concatenate([places for places, _ in ended])))


def _moved_on(rows: Rows | QuadraticRows, runs: Runs, ridge: Floats, reach: float) -> tuple[Runs, NDArray[np.bool_]]:
    """Return runs an iteration further, judged, and which aren't singular; plain ones if one is by a longer step."""
    to = _stepped(rows, runs, ridge)
    if reach > 1.0 and _linear(family(runs.covariance_type)):
        found, sound = _judged(rows, _further(runs, to, reach))
        if sound.all():
            return found, sound
    return _judged(rows, to)


def _linear(of: Family) -> bool:
    """Tell whether sums and multiples of a family's covariances are of it."""
    return of.shared or of.name in ("VVV", "VVI", "VII")


def _further(runs: Runs, to: Runs, reach: float) -> Runs:
    """Return what lies beyond an iteration's answer, in its direction; weights no nearer to 0 than by a factor of 5."""
    more = reach - 1.0
    n = np.maximum(to.weights + more * (to.weights - runs.weights), 0.2 * to.weights).reshape(-1, runs.n_components)
    weights = (n / n.sum(axis=1, keepdims=True)).ravel()
    means = to.means + more * (to.means - runs.means)
    covariances = to.covariances + more * (to.covariances - runs.covariances)
    return Runs(runs.n_components, weights, means, covariances, runs.covariance_type, runs.values)


def _done(before: Floats, last: Floats, now: Floats, tol: float, best: float, hope: float) -> NDArray[np.bool_]:
    """Tell which runs have converged, as `residmix.em.loop.has_converged` tells of one, or can't catch up; all of them
    if but one could go on. `before` is NaN where there's none.
    """
    gain = now - last
    done: NDArray[np.bool_] = now + hope * gain < best if hope < np.inf else np.zeros(len(now), dtype=bool)
    if gain.min() < tol:
        earlier = last - before
        with np.errstate(all="ignore"):
            ratio = np.where(np.isnan(before), 0.999, np.where(earlier > 0, gain / earlier, 1.0))
            settled = (gain < tol) & (ratio < 1) & (gain * ratio < REST * tol * (1 - ratio))
        done |= settled | (gain <= ROUNDING * np.abs(now))
    if hope < np.inf and len(now) - np.count_nonzero(done) < 2:
        done[:] = True
    return done


def _ridge(reg_covar: float | Floats, runs: Runs) -> Floats:
    """Return what is added to variances (d, C) or covariances (d, d, C)."""
    added, d = np.asarray(reg_covar, dtype=np.float64), len(runs.means)
    if runs.covariances.ndim == 2:
        return np.broadcast_to(added, (d,))[:, None]
    return (added if added.ndim == 2 else np.eye(d) * added)[:, :, None]


def _stepped(rows: Rows | QuadraticRows, runs: Runs, ridge: Floats) -> Runs:
    """Return the M-step of all runs; see `residmix.mixture.iteration.mstep`."""
    K, mass, means, W = runs.n_components, runs.mass, runs.centres, runs.within
    assert mass is not None and means is not None and W is not None
    W = W + ridge
    n = mass.reshape(-1, K)
    total = n.sum(axis=1, keepdims=True)
    dead = mass <= DEAD_ROWS * total[0, 0] / rows.n_rows
    if dead.any():
        mass, means, W = _without_dead(mass, means, W, dead, K)
        n = mass.reshape(-1, K)
    covariances = _fitted(family(runs.covariance_type), W, n, runs.covariances)
    return Runs(K, (n / total).ravel(), means, covariances, runs.covariance_type, runs.values)


def _judged(rows: Rows | QuadraticRows, runs: Runs) -> tuple[Runs, NDArray[np.bool_]]:
    """Return runs with their log-likelihoods and moments on some rows, and which of them aren't singular."""
    K, count = runs.n_components, runs.n_runs
    if isinstance(rows, QuadraticRows):
        coefficients, each = rows.coefficients(runs.weights, runs.means, runs.covariances)
        log_likelihood, sums = rows.sums(coefficients, count)
        values = log_likelihood / rows.total
        found = rows.moments(sums)
    else:
        values, each, found = _by_loops(rows, runs)
    arrays = runs.weights, runs.means, runs.covariances
    return Runs(K, *arrays, runs.covariance_type, values, rows, *found), np.asarray(each.reshape(count, K).all(axis=1))


def _by_loops(rows: Rows, runs: Runs) -> tuple[Floats, NDArray[np.bool_], tuple[Floats, Floats, Floats]]:
    params, each = runs.params()
    problem = Problem.of(params, n_rows=rows.n_rows, runs=runs.n_runs)
    moments = fold(rows, partial(_block, problem), MixtureMoments.merge)
    mass = np.maximum(moments.weight, DEAD_ROWS * moments.total / moments.rows)
    e = moments.shift / mass[:, None]
    W = params.family.within(moments.scatter, moments.shift, mass)
    if W.ndim == 3:
        W = 0.5 * (W + W.swapaxes(1, 2))
    # where a mean jumped so far that no digits are left, the covariance stays, and the next iteration is exact
    jumped = (e**2 > CANCELLED * np.abs(params.family.diagonals(W))).any(axis=1)
    if jumped.any():
        W = np.where(jumped.reshape(-1, *(1,) * (W.ndim - 1)), params.covariances, W)
    found = moments.weight, (params.means + e).T, np.moveaxis(W, 0, -1)
    return np.atleast_1d(moments.log_likelihood / moments.total), each, found


def _block(problem: Problem, block: Block) -> MixtureMoments:
    return mixture_block(block.X, problem, weight=block.weight)


def _without_dead(
    mass: Floats, means: Floats, W: Floats, dead: NDArray[np.bool_], K: int
) -> tuple[Floats, Floats, Floats]:
    """Give each component without rows half of its run's heaviest one, cut along its longest axis."""
    mass, means, W = mass.copy(), means.copy(), W.copy()
    for k in np.flatnonzero(dead):
        run = slice(k // K * K, k // K * K + K)
        heavy = run.start + int(np.argmax(mass[run]))
        own = W[..., heavy]
        values, vectors = np.linalg.eigh(own if own.ndim == 2 else np.diag(own))
        step = 0.5 * vectors[:, -1] * np.sqrt(max(values[-1], 0.0))
        mass[heavy] *= 0.5
        mass[k], W[..., k] = mass[heavy], own
        means[:, k], means[:, heavy] = means[:, heavy] + step, means[:, heavy] - step
    return mass, means, W


def _fitted(of: Family, W: Floats, n: Floats, previous: Floats | None) -> Floats:
    """Return the covariances of all runs from those within components, n (runs, K) rows of each."""
    # factors are found for each when the runs are over
    if isinstance(of, FactorFamily) or of.free or of.name == "VVI":
        return W
    if of.name == "VII":
        return np.broadcast_to(W.mean(axis=0), W.shape)
    count, K = n.shape
    if of.shared and not of.diagonal:
        each = W.reshape(*W.shape[:2], count, K)
        pooled = (each * (n / n.sum(axis=1, keepdims=True))).sum(axis=3)
        return np.repeat(pooled, K, axis=2)
    fitted = np.empty(W.shape)
    for run in range(count):
        own = slice(run * K, run * K + K)
        before = None
        if previous is not None:
            before = np.moveaxis(previous[..., own], -1, 0)
            before = before if before.ndim == 3 else before[:, :, None] * np.eye(len(W))
        found = of.full(of.fit(np.moveaxis(W[..., own], -1, 0), n[run], before), K, len(W))
        found = np.diagonal(found, axis1=1, axis2=2) if of.diagonal else found
        fitted[..., own] = np.moveaxis(found, 0, -1)
    return fitted


def _pivots(covariances: Floats) -> Floats:
    """Return what the determinants of covariances are the products of, (d, C)."""
    return covariances if covariances.ndim == 2 else swept(covariances.copy())[1]


def _positive(pivots: Floats) -> NDArray[np.bool_]:
    """Tell which covariances are positive definite."""
    return np.asarray((pivots.min(axis=0) > 0) & (pivots.max(axis=0) < np.inf))
