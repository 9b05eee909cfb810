"""Where fits with noise or tails begin."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from residmix.mixture.families.restraint import Restraint
from residmix.mixture.params import MixtureParams, SingularCovarianceError, like, make_params
from residmix.mixture.starts import find_start, subsample
from residmix.rows.block import Block
from residmix.rows.rows import ArrayRows, Rows

__all__ = ["box_of", "tail_starts"]

Floats = NDArray[np.float64]

# The noise's weight, and degrees of freedom, to begin with.
NOISE = 0.1
TAILS = 10.0
# Share of the rows, those with the nearest neighbours, that a start amid noise is found on; which neighbour.
DENSE = 0.7
NEIGHBOUR = 5
# Rows without gaps for each of a component's means and spreads that a start is found on.
ENOUGH = 3


def box_of(rows: Rows) -> Floats:
    """Return the least and largest value of each feature, (2, d), over rows of positive weight.

    Raises
    ------
    ValueError
        If a feature is constant: the noise would have no volume.
    """
    box = np.asarray(rows.fold(_box, _around))
    flat = np.flatnonzero(~(box[1] > box[0]))
    if flat.size:
        named = flat[:10].tolist()
        raise ValueError(f"noise=True needs features that vary, but columns {named} are constant; leave them out")
    return box


def _around(one: Floats, two: Floats) -> Floats:
    return np.stack([np.minimum(one[0], two[0]), np.maximum(one[1], two[1])])


def _box(block: Block) -> Floats:
    x = np.asarray(block.X, dtype=np.float64)
    x = x if block.weight is None else x[block.weight > 0]
    return np.stack([np.fmin.reduce(x, axis=0, initial=np.inf), np.fmax.reduce(x, axis=0, initial=-np.inf)])


def tail_starts(
    rows: Rows,
    whole: Rows,
    starts: Iterable[MixtureParams],
    *,
    noise: bool,
    student: bool,
    missing: bool,
    trim: float,
    cells: bool,
    search: bool,
    restraint: Callable[[int], Restraint | None],
    reg_covar: float,
    random_state: np.random.RandomState,
) -> Iterator[MixtureParams]:
    """Yield each start with noise and tails, and for these one found where rows lie close to each other as well;
    with missing values one found on the rows that have none.

    `whole` are the rows with missing values filled in; if `cells` may be wrong, starts are found on them as well, and
    rows have gaps where values are far out. `restraint` gives what a number of components obeys. Without
    `search` there are the given starts alone.
    """
    box = box_of(rows) if noise else None

    def restrained(start: MixtureParams) -> MixtureParams:
        bound, cut = restraint(start.n_components), (trim, -np.inf) if trim else None
        if bound is not None and bound.ratio is not None:
            weight = np.maximum(start.weights, 1e-12)
            moments = start.family.of_full(start.full_covariances(), weight)
            covariances, _ = bound.fit(start.family, moments, weight, None, None)
            start = like(make_params(start.weights, start.means, covariances, start.covariance_type), start)
        return replace(start, restraint=bound, trim=cut)

    def tailed(start: MixtureParams) -> MixtureParams:
        dof = np.full(start.n_components, TAILS) if student else None
        start = replace(start, noise=None if box is None else (NOISE, box), dof=dof, missing=missing)
        return restrained(start)

    done: set[int] = set()
    for start in starts:
        if start.noise is not None or start.dof is not None or start.missing:
            yield restrained(start)
            continue
        yield tailed(start)
        K = start.n_components
        if K in done or not search:
            continue
        done.add(K)
        others = [_dense_rows(whole, K, random_state)] if noise or trim or student or cells else []
        others += [whole] if cells else []
        others += _complete_rows(rows, K, random_state) if missing else []
        for few in others:
            with suppress(SingularCovarianceError):
                found = find_start(
                    few, K, covariance_type=start.covariance_type, reg_covar=reg_covar, random_state=random_state
                )
                yield tailed(replace(found, coef=start.coef, gate=start.gate))


def _complete_rows(rows: Rows, n_components: int, random_state: np.random.RandomState) -> list[Rows]:
    """Return the rows of a subsample without gaps, if there are enough and others: filled rows lie between clusters."""
    block = subsample(rows, n_components, random_state)
    there = ~np.isnan(np.asarray(block.X)).any(axis=1)
    if there.all() or there.sum() < ENOUGH * n_components * (rows.n_features + 1):
        return []
    x = np.ascontiguousarray(np.asarray(block.X, dtype=np.float64)[there])
    return [ArrayRows(x, weight=None if block.weight is None else block.weight[there])]


def _dense_rows(rows: Rows, n_components: int, random_state: np.random.RandomState) -> Rows:
    """Return the rows of a subsample whose neighbours are near (Byers & Raftery 1998, JASA 93)."""
    block = subsample(rows, n_components, random_state)
    x = np.asarray(block.X, dtype=np.float64)
    spread = x.std(axis=0)
    z = x / np.where(spread > 0, spread, 1.0)
    distance = cKDTree(z).query(z, k=min(NEIGHBOUR + 1, len(z)))[0][:, -1]
    near = distance <= np.quantile(distance, DENSE)
    return ArrayRows(np.ascontiguousarray(x[near]), weight=None if block.weight is None else block.weight[near])
