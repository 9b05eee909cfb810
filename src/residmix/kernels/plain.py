"""What the compiled loops compute, in plain numpy: the twins of `residmix.kernels.loops`.

Rows are (n, m), weights (n,) or (0,) where all are 1, priors (n, K) or (0, 0) where there are none.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from residmix.kernels.cholesky import inverse_cholesky, inverse_triangles

__all__ = [
    "NOTHING",
    "UNREACHED",
    "add_effects",
    "centred_products",
    "full_joint",
    "full_of_vector",
    "full_parameters",
    "full_sums",
    "locate_levels",
    "scaled_joint",
    "scaled_sums",
    "single_sums",
    "squared_distances",
    "subtract_rows",
    "sum_levels",
    "tied_gram",
    "turn_axes",
    "vector_of_full",
]

Floats = NDArray[np.float64]

# The log-density that stands for "no component reaches this row".
UNREACHED = -1e300

# A share this small (of one row) leaves no trace in any sum.
NOTHING = 1e-25

# exp of less than this is 0
_VANISHED = -800.0

# -- mixtures --------------------------------------------------------------------------------------------------------


def full_joint(rows: Floats, means: Floats, factors: Floats, constant: Floats, prior: Floats) -> Floats:
    """Return ``constant[k] + prior[i, k] - |(x_i - mean_k)' factor_k|**2 / 2``, (n, K), of a row's last d columns."""
    return _joined(_full_squares(rows, means, factors), constant, prior).T


def full_sums(
    rows: Floats,
    d: int,
    centres: Floats,
    factors: Floats,
    constant: Floats,
    prior: Floats,
    weight: Floats,
    moments: bool = True,
    runs: int = 1,
) -> tuple[Any, Floats, Floats, Floats]:
    """Return the log-likelihood and the moments of one block; the density is of the last d of a row's m columns.

    Parameters
    ----------
    rows, centres : (n, m), (K, m)
    factors : (K, d, d)
        Upper triangular.
    constant, prior, weight : (K,), (n, K), (n,)
    moments : bool
        Nothing else than the log-likelihood is asked for if it is False.
    runs : int
        How many mixtures the K components are of, as many of each.

    Returns
    -------
    log_likelihood : float, or ndarray (runs,) if there are several
        ``sum_i w_i log p(x_i)``.
    mass, shift, scatter : (K,), (K, m), (K, m, m)
        Sums over rows of ``w_i p(k | x_i)``, times ``row_i - centre_k``, and times its square.
    """
    joint = _joined(_full_squares(rows, centres[:, -d:], factors), constant, prior)
    log_likelihood, shares = _shares(joint, weight, runs=runs)
    gap = _gaps(rows, centres)
    weighted = shares[:, None] * gap
    return log_likelihood, shares.sum(axis=1), weighted.sum(axis=2), weighted @ gap.transpose(0, 2, 1)


def single_sums(
    rows: NDArray[np.float32],
    centres: Floats,
    factors: Floats,
    constant: Floats,
    prior: Floats,
    weight: Floats,
    moments: bool = True,
) -> tuple[Any, Floats, Floats, Floats]:
    """Return what `full_sums` does; the loop takes products in single precision, and is as exact as that."""
    given = np.asarray(rows, dtype=np.float64), rows.shape[1], centres, factors, constant, prior, weight
    return full_sums(*given, moments)


def full_parameters(
    weight: Floats, shift: Floats, scatter: Floats, means: Floats, floor: float, cancelled: float, ridge: float
) -> tuple[Floats, Floats, Floats, Floats] | None:
    """Return weights, means, full covariances and their factors (see `inverse_cholesky`) from moments about `means`.

    None if a component has no more than `floor` rows, a mean moves by more than the root of `cancelled` standard
    deviations, so that its covariance would be rounding errors, or a covariance isn't positive definite.

    Parameters
    ----------
    weight, shift, scatter : (K,), (K, d), (K, d, d)
    ridge : float
        Added to the diagonals of covariances.
    """
    if not weight.min() > floor:
        return None
    e = shift / weight[:, None]
    with np.errstate(all="ignore"):
        covariances = 0.5 * (scatter + scatter.swapaxes(1, 2)) / weight[:, None, None] - e[:, :, None] * e[:, None, :]
        covariances += ridge * np.eye(e.shape[1])
        if (e**2 > cancelled * np.abs(covariances.diagonal(0, 1, 2))).any():
            return None
        factors, failed = inverse_cholesky(covariances)
    return None if failed.any() else (weight / weight.sum(), means + e, covariances, factors)


@lru_cache(maxsize=32)
def _triangle(d: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
    """Return rows and columns of an upper triangle's entries, row by row, and which of these are on the diagonal."""
    rows, columns = np.triu_indices(d)
    return rows, columns, np.flatnonzero(rows == columns)


def vector_of_full(weights: Floats, means: Floats, factors: Floats, scale: Floats) -> Floats:
    """Return log-weights, means over `scale` (d,), and the factors' upper triangles, row by row, times it.

    On the diagonals of the factors, (K, d, d) or one for all (1, d, d), are logarithms.
    """
    rows, columns, on = _triangle(len(scale))
    triangles = factors[:, rows, columns] * scale[rows]
    triangles[:, on] = np.log(triangles[:, on])
    logs = np.log(np.maximum(weights, np.finfo(float).tiny))
    return np.concatenate([logs, (means / scale).ravel(), triangles.ravel()])


def full_of_vector(vector: Floats, scale: Floats, K: int, largest: float) -> tuple[Floats, Floats, Floats, Floats]:
    """Return the weights, means, covariances and factors that `vector_of_full` made a vector of, of K components.

    Logarithms on the diagonals are cut off at `largest`; the weights add up to one whatever the vector.
    """
    d = len(scale)
    rows, columns, on = _triangle(d)
    weights, means = np.exp(vector[:K] - vector[:K].max()), vector[K : K + K * d].reshape(K, d) * scale
    triangles = vector[K + K * d :].reshape(-1, len(rows)).copy()
    triangles[:, on] = np.exp(np.clip(triangles[:, on], -largest, largest))
    factors = np.zeros((len(triangles), d, d))
    factors[:, rows, columns] = triangles / scale[rows]
    inverses = inverse_triangles(factors)
    with np.errstate(over="ignore"):  # at the edge of what is valid
        return weights / weights.sum(), means, inverses.swapaxes(1, 2) @ inverses, factors


def scaled_joint(rows: Floats, means: Floats, factors: Floats, constant: Floats, prior: Floats) -> Floats:
    """Return ``constant[k] + prior[i, k] - |(x_i - mean_k) * factor_k|**2``, (n, K); `factors` are (K, d) or (K, 1)."""
    return _joined(_scaled_squares(_gaps(rows, means), factors), constant, prior).T


def scaled_sums(
    rows: Floats,
    means: Floats,
    factors: Floats,
    constant: Floats,
    prior: Floats,
    weight: Floats,
    moments: bool = True,
    runs: int = 1,
) -> tuple[Any, Floats, Floats, Floats]:
    """Return what `full_sums` does, with the diagonals (K, d) of the scatters alone.

    Of factors (K, 1) no more than the diagonals' sums count: all their entries are the mean.
    """
    gap = _gaps(rows, means)
    joint = _joined(_scaled_squares(gap, factors), constant, prior)
    log_likelihood, shares = _shares(joint, weight, runs=runs)
    weighted = shares[:, None] * gap
    with np.errstate(over="ignore"):
        scatter = np.multiply(weighted, gap, out=gap).sum(axis=2)
    if factors.shape[1] == 1:
        scatter[:] = scatter.mean(axis=1, keepdims=True)
    return log_likelihood, shares.sum(axis=1), weighted.sum(axis=2), scatter


def tied_gram(
    rows: Floats, origin: Floats, rotation: Floats, means: Floats, constant: Floats, prior: Floats, weight: Floats
) -> tuple[float, Floats]:
    """Return the log-likelihood and ``sum_i w_i z_i z_i'`` of ``z_i = [p(k | x_i), y_i - sum_k p(k | x_i) mean_k]``.

    The density is that of `scaled_joint`, with factors of 1, for ``y = (row - origin)' rotation``.
    """
    y = (rows - origin) @ rotation
    joint = _joined(_scaled_squares(_gaps(y, means), np.ones((len(means), 1))), constant, prior)
    log_likelihood, shares = _shares(joint, weight, weighted=False)
    # a row that no component reaches has no share in anything
    rest = np.where(shares.any(axis=0), (y - shares.T @ means).T, 0.0)
    z = np.vstack([shares, rest])
    return log_likelihood, (z * weight if weight.size else z) @ z.T


def _full_squares(rows: Floats, means: Floats, factors: Floats) -> Floats:
    K, d = means.shape
    # one product for all components, about one of the means, lest an offset eat the digits
    origin = means[0]
    with np.errstate(over="ignore", invalid="ignore"):
        z = factors.transpose(0, 2, 1).reshape(K * d, d) @ (rows[:, -d:] - origin).T
        z -= ((means - origin)[:, None] @ factors).reshape(K * d, 1)
        return np.asarray(-0.5 * np.square(z, out=z).reshape(K, d, len(rows)).sum(axis=1))


def _gaps(rows: Floats, means: Floats) -> Floats:
    """Return the rows less each mean, (K, d, n): numpy is quick along long rows."""
    return np.asarray(np.ascontiguousarray(rows.T) - means[:, :, None])


def _scaled_squares(gap: Floats, factors: Floats) -> Floats:
    with np.errstate(over="ignore", invalid="ignore"):
        z = gap * factors[:, :, None]
        return np.asarray(-np.square(z, out=z).sum(axis=1))


def _joined(logs: Floats, constant: Floats, prior: Floats) -> Floats:
    logs += constant[:, None]
    if prior.size:
        logs += prior.T
    return logs


def _shares(joint: Floats, weight: Floats, *, weighted: bool = True, runs: int = 1) -> tuple[Any, Floats]:
    """Return ``sum_i w_i log p(x_i)`` and w_i p(k | x_i) (K, n), or without w_i: 0 where no component reaches."""
    K, n = joint.shape
    joint = joint.reshape(runs, K // runs, n)
    # NaN is passed over, as a component that isn't there
    top = np.fmax.reduce(joint, axis=1, initial=UNREACHED)
    shares = joint - top[:, None]
    np.exp(np.fmax(shares, _VANISHED, out=shares), out=shares)
    total = shares.sum(axis=1)
    total[total == 0] = 1.0
    logs = top + np.log(total)
    shares *= ((weight if weighted and weight.size else 1.0) / total)[:, None]
    found = logs @ weight if weight.size else logs.sum(axis=1)
    return float(found[0]) if runs == 1 else found, shares.reshape(K, n)


# -- least squares ---------------------------------------------------------------------------------------------------


def centred_products(
    X: NDArray[np.floating], A: Floats, origin_x: Floats, origin_a: Floats, weight: Floats
) -> tuple[Floats, Floats, Floats, Floats, Floats]:
    """Return the weighted sums of ``x = X - origin_x`` and ``a = A - origin_a``, and of their products.

    Returns
    -------
    sum_x, sum_a : ndarray (d,), (q,)
    aa, ax : ndarray (q, q), (q, d)
    squares : ndarray (d,)
        Of x, each column with itself.
    """
    x, a = X - origin_x, A - origin_a
    if weight.size:
        weighted = a * weight[:, None]
        return weight @ x, weight @ a, weighted.T @ a, weighted.T @ x, np.einsum("i,ij,ij->j", weight, x, x)
    return x.sum(axis=0), a.sum(axis=0), a.T @ a, a.T @ x, np.einsum("ij,ij->j", x, x)


def subtract_rows(
    X: NDArray[np.floating],
    design: Floats,
    origin_x: Floats,
    origin_a: Floats,
    coef: Floats,
    constant: Floats,
    sign: float,
    effects: Floats,
    codes: NDArray[np.integer[Any]],
    out: NDArray[np.floating],
) -> None:
    """Write ``X + sign * (origin_x + (design - origin_a) coef + constant + effects[codes])`` to `out`, in its dtype.

    Only the first p columns of `design` are read, for `coef` (p, d). Without codes there are no effects; code -1 finds
    the last one: the mean of the levels. The loop has the same bits: it adds in this order.
    """
    row = X + sign * origin_x + sign * constant
    if codes.size:
        row += sign * effects[codes]
    p = len(coef)
    factors = sign * (design[:, :p] - origin_a)
    for first in range(0, p // 4 * 4, 4):
        total = factors[:, first, None] * coef[first]
        for k in range(first + 1, first + 4):
            total += factors[:, k, None] * coef[k]
        row += total
    for k in range(p // 4 * 4, p):
        row += factors[:, k, None] * coef[k]
    out[...] = row


def add_effects(out: Floats, effects: Floats, codes: NDArray[np.integer[Any]], sign: float) -> None:
    """Add ``sign * effects[codes]`` to `out` (n, d); code -1 finds the last row of the effects."""
    out += sign * effects[codes]


def locate_levels(codes: NDArray[np.integer[Any]], size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return which of `size` levels occur, in the order in which they first do, and each row's place among them."""
    levels, first, local = np.unique(codes, return_index=True, return_inverse=True)
    order = np.argsort(first)
    return levels[order].astype(np.int64), np.argsort(order)[local]


def sum_levels(
    values: NDArray[np.floating],
    origin: Floats,
    codes: NDArray[np.int64],
    weight: Floats,
    sums: Floats,
    squares: Floats,
) -> None:
    """Add each row less the origin to the sums of its level, and its squares to `squares`, all weighted."""
    rows = values - origin
    weighted = rows * weight[:, None] if weight.size else rows
    np.add.at(sums, codes, weighted)
    squares += np.einsum("ij,ij->j", weighted, rows)


def squared_distances(columns: Floats, centres: Floats) -> Floats:
    """Return those of rows, given as columns (d, n), to centres (K, d), (K, n): of equal rows exactly 0."""
    found = np.zeros((len(centres), columns.shape[1]))
    gap = np.empty(found.shape)
    for column, centre in zip(columns, centres.T, strict=True):
        np.subtract(column, centre[:, None], out=gap)
        found += np.square(gap, out=gap)
    return found


# -- covariances -----------------------------------------------------------------------------------------------------


def turn_axes(W: Floats, D: Floats, precision: Floats) -> float:
    """Turn each pair of axes where sum_kj precision_kj W_kjj is least, and W and D with them; return the largest sine.

    With the axis u = c e_i + s e_j in place of e_i the sum is u' M u and what doesn't depend on u, M the sum over k of
    (precision_ki - precision_kj) times the pair's block of W_k: so u is its eigenvector of the smaller eigenvalue.
    """
    largest, unturned = 0.0, np.eye(len(D))
    for i in range(len(D)):
        for j in range(i + 1, len(D)):
            pair, more = slice(i, j + 1, j - i), precision[:, i] - precision[:, j]
            own, _, cross, other = (more @ W[:, pair, pair].reshape(len(W), 4)).tolist()
            angle = 0.5 * math.atan2(-2.0 * cross, other - own)
            c, s = math.cos(angle), math.sin(angle)
            if not abs(s) > 0.0:
                continue
            largest, turn = max(largest, abs(s)), unturned.copy()
            turn[i, i] = turn[j, j] = c
            turn[i, j], turn[j, i] = -s, s
            W[...] = turn.T @ (W @ turn)
            D[...] = D @ turn
    return largest
