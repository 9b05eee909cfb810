"""EM that sets wrong values aside: in turns with iterations, those values are chosen that cost more than they tell.

With the choice fixed, the objective (`residmix.mixture.robust.cells`) is the likelihood of rows with missing values
less a constant, so iterations are those of ``missing="em"`` and never lower it; a choice changes only what gains. So
the objective never falls, and the choice, of which there are finitely many, comes to rest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from residmix.em.loop import EMState
from residmix.mixture.iteration.step import MixtureEM, rows_and_priors
from residmix.mixture.params import MixtureParams
from residmix.mixture.robust.cells import set_aside
from residmix.rows.block import Block
from residmix.rows.rows import Rows

__all__ = ["Choice", "run_aside"]

Floats = NDArray[np.float64]
Bits = NDArray[np.uint8]
State = EMState[MixtureParams]

# Iterations between two choices, at most.
ITERATIONS = 10


@dataclass(frozen=True)
class Choice:
    """Values that are set aside, of all rows.

    Attributes
    ----------
    bits : ndarray of uint8 (n, d / 8)
        A bit for each value.
    cost : float
        What they cost, per row.
    shares : ndarray (d,)
        Of the values of each feature.
    """

    bits: Bits
    cost: float
    shares: Floats

    @classmethod
    def nothing(cls, rows: Rows) -> Choice:
        """Return that of no value."""
        d = rows.n_features
        return cls(np.zeros((rows.n_rows, -(-d // 8)), dtype=np.uint8), 0.0, np.zeros(d))

    def __call__(self, block: Block) -> Block:
        """Return the block with NaN for what is set aside."""
        x = np.array(block.X, dtype=np.float64)
        x[_flags(self.bits, block)] = np.nan
        return replace(block, X=x)

    def again(self, rows: Rows, params: MixtureParams, penalties: Floats, limit: float) -> Choice:
        """Return the choice at `params`: no row is worth less, and of no feature more is set aside than `limit`."""
        found = list(rows.map(partial(_chosen, params, penalties, self.bits)))
        bits, gain, weight = (np.concatenate(parts) for parts in list(zip(*found, strict=True))[:3])
        there = np.sum([part[3] for part in found], axis=0)
        d = rows.n_features
        _within(bits, self.bits, gain, weight, limit * there)
        weights = _sums(bits, weight, d)
        shares = weights / np.where(there > 0, there, 1.0)
        return Choice(bits, float(weights @ penalties) / 2 / float(weight.sum()), shares)


def _flags(bits: Bits, block: Block) -> NDArray[np.bool_]:
    own = bits[block.start : block.start + block.n_rows]
    return np.unpackbits(own, axis=1, count=block.X.shape[1]).astype(bool)


def _chosen(params: MixtureParams, penalties: Floats, bits: Bits, block: Block) -> tuple[Bits, Floats, Floats, Floats]:
    """Return a block's new choice, what each row gains by it, its weight, and the weights of the values there are."""
    (x, given), before = rows_and_priors(params, block), _flags(bits, block)
    weight = np.ones(len(x)) if block.weight is None else block.weight
    flags, gain = set_aside(params, x, penalties, given, before)
    return np.packbits(flags, axis=1), gain, weight, weight @ ~np.isnan(x)


def _sums(bits: Bits, weight: Floats, d: int) -> Floats:
    """Return the weight of what is set aside of each feature (d,)."""
    found = [weight @ ((bits[:, j // 8] >> (7 - j % 8)) & 1) for j in range(d)]
    return np.array(found, dtype=np.float64)


def _within(bits: Bits, before: Bits, gain: Floats, weight: Floats, limit: Floats) -> None:
    """Undo, in place, the changes that gain least, while of a feature more is set aside than the limit (d,)."""
    d = len(limit)
    while True:
        over = _sums(bits, weight, d) - limit * (1 + 1e-12)
        j = int(over.argmax())
        if not over[j] > 0:
            return
        byte, shift = j // 8, 7 - j % 8
        new = np.flatnonzero((bits[:, byte] >> shift) & ~(before[:, byte] >> shift) & 1)
        order = new[np.argsort(gain[new], kind="stable")]
        undone = order[: int(np.searchsorted(np.cumsum(weight[order]), over[j])) + 1]
        bits[undone] = before[undone]


def run_aside(
    em: MixtureEM,
    start: MixtureParams,
    penalties: Floats,
    limit: float,
    run: Callable[..., State],
    *,
    tol: float,
    max_iter: int,
    callback: Callable[[State], Any] | None = None,
    **how: Any,
) -> tuple[State, Choice]:
    """Run EM and choices in turns; return how it ended, and what is set aside.

    The state's values are those of the objective per row.

    Parameters
    ----------
    em : MixtureEM
    start : MixtureParams
    penalties : ndarray (d,)
    limit : float
        Share of the values of a feature that may be set aside.
    run : callable
        ``run(em, params, tol=, max_iter=, callback=, **how)``: an ordinary run.
    """
    params, choice = replace(start, missing=True, cells=None), Choice.nothing(em.rows)
    values: tuple[float, ...] = ()
    done, ended = 0, False
    while True:
        following = choice.again(em.rows, params, penalties, limit)
        if ended and (following.bits == choice.bits).all():
            break
        choice = following
        inner = replace(em, rows=em.rows.mapped(choice))

        def told(state: State, cost: float = choice.cost, before: tuple[float, ...] = values) -> Any:
            return callback is not None and callback(_joined(state, before, cost, penalties))

        left = max_iter - done
        state = run(inner, params, tol=tol, max_iter=min(ITERATIONS, left), callback=told, **how)
        em.total = inner.total
        joined = _joined(state, values, choice.cost, penalties)
        gained = joined.log_likelihood - values[-1] if values else np.inf
        params, values, done = state.params, joined.log_likelihoods, joined.iteration
        ended = state.converged or gained < tol
        if done >= max_iter:
            break
    return replace(joined, converged=ended), choice


def _joined(state: State, before: tuple[float, ...], cost: float, penalties: Floats) -> State:
    """Return a run's state with what went before it; a choice counts with the iteration it follows."""
    values = (*before[:-1], *(value - cost for value in state.log_likelihoods))
    params = replace(state.params, cells=penalties)
    return EMState(params, values, state.iteration + max(len(before) - 1, 0), state.converged)
