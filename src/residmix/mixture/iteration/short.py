"""Several short runs of EM at the same time, which share the overhead of an iteration."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from residmix.em.loop import has_converged
from residmix.kernels.cholesky import many_inverse_cholesky
from residmix.mixture.families.factor import FactorFamily
from residmix.mixture.families.family import Family, family
from residmix.mixture.iteration.estep import MixtureMoments, Problem, mixture_block
from residmix.mixture.iteration.mstep import dead_components, keep_where_cancelled, with_ridge
from residmix.mixture.iteration.quadratic import QuadraticRows
from residmix.mixture.params import MixtureParams, SingularCovarianceError, params_as
from residmix.rows.block import Block
from residmix.rows.rows import Rows, fold

__all__ = ["Runs", "joined", "short_runs"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Runs:
    """Mixtures of one size and family, the components of all in one row, as those of one mixture.

    Attributes
    ----------
    params : MixtureParams
        Of all components, run by run. Where a family's components know of each other, as those of the family that has
        as many numbers a component: "diag" or "full".
    n_runs : int
    covariance_type : str
    values : ndarray (n_runs,)
        Log-likelihoods per row.
    """

    params: MixtureParams
    n_runs: int
    covariance_type: str
    values: Floats

    @classmethod
    def of(cls, weights: Floats, means: Floats, W: Floats, n: Floats, covariance_type: str) -> Runs:
        """Return runs with the M-step's answers, those left out that are singular.

        Parameters
        ----------
        weights : ndarray (n_runs, K)
            Each run's sum to one.
        means : ndarray (n_runs K, d)
        W : ndarray (n_runs K, d, d) or (n_runs K, d)
            Covariances within components; their diagonals if the family is diagonal.
        n : ndarray (n_runs, K)
            Rows of the components.
        covariance_type : str

        Raises
        ------
        SingularCovarianceError
            If all are.
        """
        of, (count, K) = family(covariance_type), weights.shape
        covariances = _fitted(of, W, n, None)
        params, sound = _made(weights.ravel(), means, covariances, _joint_type(covariance_type), K)
        if not sound.any():
            raise SingularCovarianceError(np.arange(K))
        runs = cls(params, count, covariance_type, np.full(count, -np.inf))
        return runs if sound.all() else runs.only(np.flatnonzero(sound))

    def only(self, chosen: NDArray[np.intp]) -> Runs:
        """Return some of the runs."""
        K = len(self.params.weights) // self.n_runs
        places = (chosen[:, None] * K + np.arange(K)).ravel()
        p = self.params
        part = replace(
            p,
            weights=p.weights[places],
            means=p.means[places],
            covariances=p.covariances[places],
            factors=p.factors[places],
        )
        return replace(self, params=part, n_runs=len(chosen), values=self.values[chosen])

    def one(self, run: Any) -> MixtureParams:
        """Return the mixture of a run, in its family."""
        alone = self.only(np.array([run])).params
        return params_as(alone, self.covariance_type)


def short_runs(
    rows: Rows | QuadraticRows,
    runs: Runs,
    *,
    reg_covar: float | Floats,
    tol: float,
    max_iter: int,
    hope: float = np.inf,
) -> Runs:
    """Return runs some iterations of EM further, those left out that become singular.

    Each stops where it would have stopped alone, or when it can't catch up with the best one; the best one stops when
    no other can catch up.

    Parameters
    ----------
    rows : Rows
    runs : Runs
    reg_covar : float, or ndarray as for `residmix.mixture.iteration.mstep.covariances_from_scatter`
    tol, max_iter
        As for `residmix.em.loop.run_em`.
    hope : float
        Multiple of its last gain that a run may still gain.

    Raises
    ------
    SingularCovarianceError
        If all become so.
    """
    live, values = np.arange(runs.n_runs), np.full((max_iter + 1, runs.n_runs), -np.inf)
    ended: list[tuple[NDArray[np.intp], Runs]] = []
    for iteration in range(max_iter + 1):
        moments = _moments(rows, runs)
        values[iteration, live] = moments.log_likelihood / moments.total
        runs = replace(runs, values=values[iteration, live])
        done = np.full(len(live), iteration == max_iter)
        if iteration > 0 and tol > 0:
            so_far = values[max(iteration - 2, 0) : iteration + 1]
            done |= [has_converged(tuple(so_far[:, run]), tol)[0] for run in live]
            done |= runs.values + hope * (runs.values - so_far[-2, live]) < values[: iteration + 1].max()
            if hope < np.inf and len(live) - np.count_nonzero(done) < 2:
                done[:] = True
        if done.any():
            places = np.flatnonzero(done)
            ended.append((live[places], runs.only(places)))
            if done.all():
                break
        following, sound = _stepped(moments, runs, reg_covar)
        kept = np.flatnonzero(~done & sound)
        if not len(kept):
            break
        runs, live = (following if len(kept) == len(live) else following.only(kept)), live[kept]
    if not ended:
        raise SingularCovarianceError(np.arange(len(runs.params.weights) // runs.n_runs))
    return _in_order(ended)


def _moments(rows: Rows | QuadraticRows, runs: Runs) -> MixtureMoments:
    if isinstance(rows, QuadraticRows):
        return rows.moments(runs.params, runs.n_runs)
    problem = Problem.of(runs.params, n_rows=rows.n_rows, runs=runs.n_runs)
    return fold(rows, partial(_block, problem), MixtureMoments.merge)


def _in_order(ended: list[tuple[NDArray[np.intp], Runs]]) -> Runs:
    """Return the runs that have ended, in the order in which they came."""
    if len(ended) == 1:
        return ended[0][1]
    return joined(*(runs for _, runs in ended)).only(np.argsort(np.concatenate([places for places, _ in ended])))


def joined(*several: Runs) -> Runs:
    """Return runs of one size and family as one."""
    first = several[0]
    return Runs(
        replace(
            first.params,
            weights=np.concatenate([runs.params.weights for runs in several]),
            means=np.concatenate([runs.params.means for runs in several]),
            covariances=np.concatenate([runs.params.covariances for runs in several]),
            factors=np.concatenate([runs.params.factors for runs in several]),
        ),
        sum(runs.n_runs for runs in several),
        first.covariance_type,
        np.concatenate([runs.values for runs in several]),
    )


def _block(problem: Problem, block: Block) -> MixtureMoments:
    return mixture_block(block.X, problem, weight=block.weight)


def _stepped(moments: MixtureMoments, runs: Runs, reg_covar: float | Floats) -> tuple[Runs, NDArray[np.bool_]]:
    """Return the M-step of all runs, and which of them aren't singular; see `residmix.mixture.iteration.mstep`."""
    params, K, of = runs.params, len(runs.params.weights) // runs.n_runs, family(runs.covariance_type)
    dead = dead_components(moments)
    if dead.any():
        moments, params = _without_dead(moments, params, dead, K)
    n = moments.weight.reshape(runs.n_runs, K)
    W = with_ridge(params.family.within(moments.scatter, moments.shift, moments.weight), reg_covar)
    e = moments.shift / moments.weight[:, None]
    covariances = keep_where_cancelled(_fitted(of, W, n, params.covariances), e, params, np.zeros(len(e), dtype=bool))
    means = params.means + e
    weights = (n / n.sum(axis=1, keepdims=True)).ravel()
    made, sound = _made(weights, means, covariances, params.covariance_type, K)
    return replace(runs, params=made), sound


def _without_dead(
    moments: MixtureMoments, params: MixtureParams, dead: NDArray[np.bool_], K: int
) -> tuple[MixtureMoments, MixtureParams]:
    """Give each component without rows half of the moments of its run's heaviest one, moved along its longest axis."""
    parts = moments.weight.copy(), moments.shift.copy(), moments.scatter.copy()
    weight, shift, scatter = parts
    means, full = params.means.copy(), params.full_covariances()
    for k in np.flatnonzero(dead):
        run = slice(k // K * K, k // K * K + K)
        heavy = run.start + int(np.argmax(weight[run]))
        values, vectors = np.linalg.eigh(full[heavy])
        step = 0.5 * vectors[:, -1] * np.sqrt(max(values[-1], 0.0))
        for part in parts:
            part[heavy] *= 0.5
            part[k] = part[heavy]
        centre = means[heavy].copy()
        means[k], means[heavy] = centre + step, centre - step
    return replace(moments, weight=weight, shift=shift, scatter=scatter), replace(params, means=means)


def _joint_type(covariance_type: str) -> str:
    of = family(covariance_type)
    if isinstance(of, FactorFamily):
        return "full"
    return covariance_type if not of.linked else "diag" if of.diagonal else "full"


def _fitted(of: Family, W: Floats, n: Floats, previous: Floats | None) -> Floats:
    """Return the covariances of all runs, as they are kept in them, from those within components."""
    if isinstance(of, FactorFamily):  # found for each when the runs are over
        return W
    if not of.linked:
        return of.fit(W, n.ravel())
    count, K = n.shape
    each = W.reshape(count, K, *W.shape[1:])
    if of.shared and not of.diagonal:
        pooled = np.einsum("rk,rkij->rij", n / n.sum(axis=1, keepdims=True), each)
        return np.repeat(pooled, K, axis=0)
    before = None if previous is None else previous.reshape(each.shape)
    fitted = np.empty(each.shape)
    for run in range(count):
        so_far = None if before is None else before[run]
        if so_far is not None and of.diagonal:
            so_far = so_far[:, :, None] * np.eye(so_far.shape[1])
        found = of.full(of.fit(each[run], n[run], so_far), K, W.shape[-1])
        fitted[run] = np.diagonal(found, axis1=1, axis2=2) if of.diagonal else found
    return fitted.reshape(W.shape)


def _made(
    weights: Floats, means: Floats, covariances: Floats, kind: str, K: int
) -> tuple[MixtureParams, NDArray[np.bool_]]:
    """Return parameters with their factors, and which runs have them all."""
    of = family(kind)
    if of.matrices:
        factors, failed = many_inverse_cholesky(covariances)
    else:
        rows = covariances.reshape(len(covariances), -1)
        failed = np.asarray(~((rows > 0) & np.isfinite(rows)).all(axis=1))
        with np.errstate(all="ignore"):
            factors = 1.0 / np.sqrt(covariances)
    return MixtureParams(weights, means, covariances, factors, kind), np.asarray(~failed.reshape(-1, K).any(axis=1))
