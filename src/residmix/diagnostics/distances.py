"""Distance correlations of features with metadata, and how often permuted rows reach them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from residmix.diagnostics.dependence import Variable
from residmix.rows.threads import one_blas_thread

__all__ = ["distance_correlation", "distance_dependence"]

Array = NDArray[np.float64]
Single = NDArray[np.float32]

# Distances of permuted values that are held together, for one matrix product.
_AT_ONCE = 1 << 18
# Groups of features whose distances are held together: 2 MB each for 700 rows.
_GROUPS = 36
# Of the largest possible statistic: what may separate sums of the same terms in another order, in single precision.
_EQUAL = 1e-5


@one_blas_thread()
def distance_dependence(
    groups: Sequence[Array], variables: Sequence[Variable], n_permutations: int, rng: np.random.Generator
) -> tuple[Array, Array]:
    r"""Return bias-corrected squared distance correlations (groups, variables), and permutation p-values.

    :math:`\langle \tilde A, \tilde B \rangle / \sqrt{\langle \tilde A, \tilde A \rangle \langle \tilde B, \tilde B
    \rangle}` with :math:`\tilde A` the U-centred distances among the rows of a group of features, and
    :math:`\tilde B` among the values of a variable: absolute differences of numbers, 0 or 1 for equal or other levels
    (Székely and Rizzo 2014, Annals of Statistics 42:2382). It is 0 on average without dependence, may be negative, and
    is positive for dependence of any form once rows are many. U-centring is a projection, so permuting the rows of
    the variable needs no new centring: :math:`\langle \tilde A, \pi(\tilde B) \rangle = \langle \tilde A, \pi(B)
    \rangle`. Statistics are computed in double precision; those of permutations in single precision, and one that is
    closer than :math:`10^{-5}` counts as reached. All groups and variables are judged by the same permutations.

    Parameters
    ----------
    groups : list of ndarray (n, k)
        Features without missing values. n squared numbers of 4 bytes are held per group, of 36 groups at a time.
    """
    n = len(groups[0])
    others = np.array([_u_centred(_apart(_unit(variable), bool(variable.levels))) for variable in variables])
    others.shape = len(variables), n * n
    orders = rng.permuted(np.tile(np.arange(n), (n_permutations, 1)), axis=1)
    parts = [
        _of_groups(groups[begin : begin + _GROUPS], variables, others, orders)
        for begin in range(0, len(groups), _GROUPS)
    ]
    statistics, exceeding = (np.concatenate(part) for part in zip(*parts, strict=True))
    return statistics, (1 + exceeding) / (1 + n_permutations)


def _of_groups(
    groups: Sequence[Array], variables: Sequence[Variable], others: Array, orders: NDArray[np.integer]
) -> tuple[Array, Array]:
    """Return the statistics, and how many permutations reach them."""
    n = len(groups[0])
    products, squares = np.empty((len(groups), len(variables))), np.empty(len(groups))
    # Pairs of rows are counted once: the other half of the matrix is 0.
    pairs = np.empty((len(groups), n, n), dtype=np.float32)
    for g, group in enumerate(groups):
        centred = _u_centred(_between(_spread_one(group)))
        products[g], squares[g] = others @ centred.ravel() / 2, np.vdot(centred, centred) / 2
        pairs[g] = np.triu(centred, 1)
    norms = np.sqrt(squares[:, None] * np.einsum("vp,vp->v", others, others) / 2)
    # A constant leaves rounding only: no distances, no dependence.
    scale = np.where(norms > 1e-12 * n * n, norms, np.inf)
    exceeding = np.empty(products.shape)
    for v, variable in enumerate(variables):
        chances = _permuted(pairs, _unit(variable)[orders], bool(variable.levels))
        exceeding[:, v] = np.sum(chances >= (products - _EQUAL * norms)[:, v, None], axis=1)
    return products / scale, exceeding


def distance_correlation(x: Array, y: Array) -> float:
    """Return the bias-corrected squared distance correlation of rows of x (n, k) and y (n, l), Euclidean distances.

    The statistic of :func:`distance_dependence`, for columns taken as they are; 0 if one of the two is constant.
    """
    a, b = _u_centred(_between(x)), _u_centred(_between(y))
    norm = float(np.sqrt(np.vdot(a, a) * np.vdot(b, b)))
    return float(np.vdot(a, b)) / norm if norm > 0 else 0.0


def _permuted(pairs: Single, values: Array, levels: bool) -> Array:
    """Return the sums (groups, permutations) of products with distances among `values` (permutations, n)."""
    groups, n, _ = pairs.shape
    single, total = values.astype(np.float32), np.zeros((groups, len(values)))
    begin = 0
    while begin < n:
        end = begin + max(1, _AT_ONCE // (len(values) * (n - begin)))
        apart = _apart(single[:, begin:], levels, end - begin).reshape(len(values), -1)
        total += pairs[:, begin:end, begin:].reshape(groups, -1) @ apart.T
        begin = end
    return total


def _spread_one(features: Array) -> Array:
    spread = features.std(axis=0)
    return np.asarray((features - features.mean(axis=0)) / np.where(spread > 0, spread, 1.0))


def _unit(variable: Variable) -> Array:
    """Return level indices as they are, and numbers from 0 to 1, which single precision holds wherever they lie."""
    values = variable.values
    return values if variable.levels else np.asarray((values - values.min()) / (np.ptp(values) or 1.0))


def _apart(values: NDArray[Any], levels: bool, first: int | None = None) -> NDArray[Any]:
    """Return the distances (..., first, n) of the first of n values from all: whether levels differ, or by how much."""
    one, all_ = values[..., :first, None], values[..., None, :]
    if levels:
        return np.asarray(np.not_equal(one, all_), dtype=values.dtype)
    apart = one - all_
    np.abs(apart, out=apart)
    return np.asarray(apart)


def _between(rows: Array) -> Array:
    """Return the Euclidean distances (n, n) of rows (n, k)."""
    from scipy.spatial.distance import pdist, squareform

    return np.asarray(_apart(rows[:, 0], levels=False) if rows.shape[1] == 1 else squareform(pdist(rows)))


def _u_centred(distances: Array) -> Array:
    """U-centre distances (n, n) in place."""
    n = len(distances)
    rows = distances.sum(axis=0)
    share = rows / (n - 2) - rows.sum() / (2 * (n - 1) * (n - 2))
    distances -= share
    distances -= share[:, None]
    np.fill_diagonal(distances, 0.0)
    return np.asarray(distances)
