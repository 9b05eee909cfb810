"""The rows that starts are found on, in coordinates that don't depend on the units of the features."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from residmix.mixture.families.family import family
from residmix.mixture.params import MixtureParams, make_params
from residmix.rows.block import Block
from residmix.rows.rows import Rows
from residmix.rows.sampled import at_random
from residmix.rows.threads import lazy

__all__ = ["Sample", "quantiles", "subsample", "subsample_rows"]

Floats = NDArray[np.float64]

# Pairs of quantiles whose distance stands for the spread, and that distance in standard deviations of a normal.
QUANTILES = ((0.25, 0.75, 1.349), (0.1, 0.9, 2.563), (0.02, 0.98, 4.107))
# How many such spreads off the median a row is outside, and how many typical distances from the middle.
OUTSIDE = 30.0
OUTSIDE_DISTANCE = 20.0
# Beyond this the squares of values overflow, or are about to.
LARGEST = 1e140
# Directions of less than this share of the largest variance don't count.
FLAT = 1e-10
# Rows that a thinned sample has at least.
THINNED = 1_000
# Different rows for each direction that whitening needs.
FEW = 3


def subsample_rows(n_components: int, n_features: int) -> int:
    """Return how many rows starts are found on: enough to see every component's covariance."""
    return max(10_000, 20 * n_components * n_features)


def subsample(rows: Rows, n_components: int, random_state: np.random.RandomState) -> Block:
    """Return the rows that starts are found on."""
    size = subsample_rows(n_components, rows.n_features)
    return rows.take(at_random(rows.n_rows, size, random_state))


@dataclass(frozen=True)
class Sample:
    """Rows in coordinates ``y = (x - centre) @ to``, in an order that depends on neither units nor columns.

    Attributes
    ----------
    y : ndarray (n, d)
    w : ndarray (n,)
        Positive.
    inside : ndarray of bool (n,)
        Rows that aren't far outside: the coordinates are theirs.
    centre : ndarray (d,)
    to, back : ndarray (d, d) or (d,)
        A map and its inverse; if the family of covariances knows nothing but units, a factor for each feature.
    whitened : bool
        Whether y has the identity for its covariance, up to a rotation: for families that a linear map doesn't leave.
    """

    y: Floats
    w: Floats
    inside: NDArray[np.bool_]
    centre: Floats
    to: Floats
    back: Floats
    whitened: bool

    @classmethod
    def of(cls, block: Block, covariance_type: str) -> Sample:
        """Return a block's rows of positive weight, those left out whose squares overflow.

        Raises
        ------
        ValueError
            If that's nearly all.
        """
        x = np.asarray(block.X, dtype=np.float64)
        w = np.ones(len(x)) if block.weight is None else block.weight
        if block.weight is not None:
            x, w = x[w > 0], w[w > 0]
        # ends first, which are soon found: numpy is slow along short rows
        if not (x.min() > -LARGEST and x.max() < LARGEST):
            bounded = (np.abs(x) < LARGEST).all(axis=1)
            if 2 * w[bounded].sum() <= w.sum():
                columns = np.flatnonzero((np.abs(x) >= LARGEST).any(axis=0))
                raise ValueError(
                    f"values in columns {columns[:10].tolist()} are too large (up to {np.abs(x).max():.3g}), because "
                    "their squares overflow; divide these columns by a constant"
                )
            x, w = x[bounded], w[bounded]
        ends, middle, spread = _robust(x, w)
        inside: NDArray[np.bool_] = np.ones(len(x), dtype=bool)
        if not (np.abs(ends - middle) <= OUTSIDE * spread).all():
            near = np.all(np.abs(x - middle) <= OUTSIDE * spread, axis=1)
            inside = near if 2 * w[near].sum() > w.sum() else inside
        of = family(covariance_type)
        # few rows are whitened to the corners of a simplex, all as far apart
        corners = len(x) < 100 * x.shape[1] and not _has_distinct(x[inside], FEW * (x.shape[1] + 1))
        affine = of.affine and not corners
        for _ in range(2):
            within = (x, w) if inside.all() else (x[inside], w[inside])
            centre, to, back = _coordinates(*within, middle, spread, affine, of.unit_free)
            y = _apply(x - centre, to)
            distance = np.sqrt(np.einsum("ij,ij->i", y, y))
            near = distance <= OUTSIDE_DISTANCE * max(float(quantiles(distance, w, np.array([0.5]))[0]), 1e-300)
            if not affine or near[inside].all() or 2 * w[inside & near].sum() <= w.sum():
                break
            inside &= near
        order = _order(x, y, w, inside)
        return cls(y.take(order, axis=0), w.take(order), inside.take(order), centre, to, back, affine)

    def thinned(self, size: int) -> Sample:
        """Return every so many rows, at least `size` and 1,000, or all."""
        step = max(1, len(self.y) // max(size, THINNED))
        if step == 1:
            return self
        y, w = np.ascontiguousarray(self.y[::step]), np.ascontiguousarray(self.w[::step])
        return replace(self, y=y, w=w, inside=self.inside[::step])

    def has_distinct(self, wanted: float) -> bool:
        """Tell whether so many rows differ by more than rounding, whatever their weights are and however often they
        come.
        """
        # one feature shows it most often
        if np.count_nonzero(np.diff(np.sort(self.y[:, 0])) > 1e-8) + 1 >= wanted:
            return True
        return _has_distinct(np.round(self.y, 8), wanted)

    def lowered(self, points: Floats) -> Floats:
        """Return points of x in the coordinates of y."""
        return np.ascontiguousarray(_apply(points - self.centre, self.to))

    def unscaled(self) -> Floats:
        """Return the rows in the features' units, about the centre."""
        return np.ascontiguousarray(_apply(self.y, self.back))

    def ridge(self, reg_covar: float) -> Floats:
        """Return what `reg_covar` on the covariances of x adds to those of y: (d, d), or (d,) to their diagonals."""
        return reg_covar * (self.to**2 if self.to.ndim == 1 else self.to.T @ self.to)

    def far_from_rest(self, params: MixtureParams) -> NDArray[np.bool_]:
        """Tell which components of a mixture of y lie farther out than every row inside."""
        return self.beyond(params.means)

    def beyond(self, points: Floats) -> NDArray[np.bool_]:
        """Tell which points of y (..., d) lie farther out than every row inside."""
        return np.asarray(np.sqrt((points**2).sum(axis=-1)) > self._reach)

    @lazy
    def _reach(self) -> float:
        return float(np.sqrt((self.y[self.inside] ** 2).sum(axis=1).max()))

    def far(self, means: Floats) -> NDArray[np.bool_]:
        """Tell which means of a mixture of x lie farther out than every row inside."""
        return self.beyond(self.lowered(means))

    def raised(self, params: MixtureParams, reg_covar: float = 0.0) -> MixtureParams:
        """Return the mixture of x for a mixture of y, with `reg_covar` added to its covariances."""
        of, back = params.family, self.back
        means = self.centre + _apply(params.means, back)
        if back.ndim == 1:
            covariances = of.scaled(params.covariances, back)
        else:
            covariances = back.T @ params.covariances @ back
            covariances = 0.5 * (covariances + np.swapaxes(covariances, -1, -2))
        if reg_covar:
            ridge = reg_covar * np.eye(len(means[0])) if of.matrices else reg_covar
            covariances = covariances + ridge
        parts = params.parts
        if parts is not None:
            parts = parts * back[:, None]
            parts[..., -1] = np.sqrt(parts[..., -1] ** 2 + reg_covar)
        return make_params(params.weights, means, covariances, params.covariance_type, parts)


def _apply(values: Floats, to: Floats) -> Floats:
    return values * to if to.ndim == 1 else values @ to


def quantiles(values: Floats, w: Floats, shares: NDArray[np.float64]) -> Floats:
    """Return the smallest values that such shares of the weights don't exceed."""
    if (w == 1).all():
        places = _places(len(values), shares)
        return np.asarray(np.partition(values, np.unique(places))[places])
    order = np.argsort(values, kind="stable")
    sums = np.cumsum(w[order])
    return np.asarray(values[order[np.searchsorted(sums, shares * sums[-1])]])


def _places(n: int, shares: NDArray[np.float64]) -> NDArray[np.intp]:
    """Return where, among n sorted values of weight 1, the first is that such shares don't exceed."""
    return np.maximum(np.ceil(shares * n).astype(np.intp) - 1, 0)


def _has_distinct(x: Floats, wanted: float) -> bool:
    """Tell whether so many rows differ."""
    known: set[bytes] = set()
    for row in x + 0.0:  # which has no -0
        if len(known) >= wanted:
            break
        known.add(row.tobytes())
    return len(known) >= wanted


def _robust(x: Floats, w: Floats) -> tuple[Floats, Floats, Floats]:
    """Return the columns' least and largest values (2, d), medians, and spreads: distances of quantiles, the closest
    that isn't 0.
    """
    shares = np.array([0.5, *(share for below, above, _ in QUANTILES for share in (below, above))])
    if (w == 1).all():
        # as columns: to part them at so many places takes five times as long
        ordered = np.sort(x.T, axis=1).T
        ends, found = ordered[[0, -1]], ordered[_places(len(x), shares)]
    else:
        ends = np.stack([x.min(axis=0), x.max(axis=0)])
        found = np.stack([quantiles(column, w, shares) for column in x.T], axis=1)
    middle, spread = found[0], np.zeros(x.shape[1])
    for (_, _, normal), below, above in zip(QUANTILES, found[1::2], found[2::2], strict=True):
        distance = (above - below) / normal
        spread = np.where(spread > 0, spread, np.where(distance > 1e-12 * np.abs(middle), distance, 0.0))
    missing = ~(spread > 0)
    if missing.any():
        mean = np.average(x, axis=0, weights=w)
        deviation = np.sqrt(np.average((x - mean) ** 2, axis=0, weights=w))
        spread = np.where(missing & (deviation > 1e-12 * np.abs(mean)), deviation, spread)
    return ends, middle, np.where(spread > 0, spread, 1.0)


def _coordinates(
    x: Floats, w: Floats, middle: Floats, spread: Floats, affine: bool, unit_free: bool
) -> tuple[Floats, Floats, Floats]:
    """Return centre, map and inverse that make the rows' covariance the identity, or variances 1, or these alike."""
    z = (x - middle) / spread
    mean = np.average(z, axis=0, weights=w)
    z -= mean
    centre, d = middle + mean * spread, x.shape[1]
    if affine:
        covariance = (z * w[:, None]).T @ z / w.sum()
        scale = np.sqrt(np.where(np.diag(covariance) > 0, np.diag(covariance), 1.0))
        values, vectors = np.linalg.eigh(covariance / scale / scale[:, None])
        roots = np.sqrt(np.where(values > FLAT * values[-1], values, 1.0))
        units = spread * scale
        return centre, vectors / units[:, None] / roots, (vectors * roots).T * units
    deviation = np.sqrt(np.average(z**2, axis=0, weights=w)) * spread
    if not unit_free:
        deviation = np.full(d, np.sqrt(np.mean(deviation**2)))
    deviation = np.where(deviation > 0, deviation, 1.0)
    return centre, 1 / deviation, deviation


def _order(x: Floats, y: Floats, w: Floats, inside: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Sort rows along their skewest direction: rows in another order, features in other units draw the same."""
    squared = np.einsum("ij,ij->i", y, y)
    chosen = slice(None) if inside.all() else inside
    skew = (w[chosen] * squared[chosen]) @ y[chosen] / w[chosen].sum()
    length = float(np.linalg.norm(skew))
    along = y @ (skew / length) if length > 1e-8 * y.shape[1] else squared
    # rounding must not decide what comes first
    first = np.round(along, 8)
    order = np.argsort(first)
    if (np.diff(first[order]) > 0).all():
        return order
    return np.lexsort((x[:, 0], np.round(squared, 7), first))
