"""Normal equations of the features, diagonalised: from centred moments, or from a triangular factor of the rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from residmix.moments.linear import LinearMoments
from residmix.moments.solving.aliased import Aliases, Part, aliases_of, own_columns
from residmix.moments.solving.second_pass import Triangle
from residmix.rows.threads import lazy, one_blas_thread

__all__ = ["Spectrum", "Spread", "spectra_of", "triangular"]

Array = NDArray[np.float64]

_EPS = float(np.finfo(np.float64).eps)


@dataclass
class Spread:
    """Where the design columns lie, and how far they spread, for one group of features."""

    source: int  # which of the moments' groups this is
    columns: NDArray[np.int64]  # the features
    count: float
    weight: float
    offset: Array  # (q,)
    scale: Array  # (q,), 1 for columns that don't vary
    varies: NDArray[np.bool_]  # (q,)
    doubtful: NDArray[np.bool_]  # (q,), columns that may be a constant away from the origin: only the rows can tell
    mean_over_spread: Array  # (q,)
    penalty: Array | None  # (q, q), for scaled columns, per unit of weight


@dataclass
class Spectrum:
    """Centred normal equations of one group of features, columns scaled to unit variance, diagonalised."""

    spread: Spread
    roots: Array  # (k, q), roots' roots is the scaled scatter per unit of weight
    vectors: Array  # (q, used)
    values: Array  # (used,), eigenvalues of the scaled scatter, penalty included
    null: Array  # (q, q - used)
    rank: int  # of the design itself
    condition: float
    tolerance: float
    parts: Sequence[Part]

    def solve(self, products: Array) -> Array:
        """Return coefficients (q, k) for right-hand sides (q, k), both in original units."""
        scale = self.spread.scale[:, None]
        scaled = np.where(self.spread.varies[:, None], products, 0.0) / (scale * self.spread.weight)
        return self.settled(self.vectors @ ((self.vectors.T @ scaled) / self.values[:, None])) / scale

    @lazy
    def aliases(self) -> Aliases:
        return aliases_of(self.roots, self.null, self.parts, 16 * self.tolerance)

    def settled(self, scaled: Array) -> Array:
        """Return the coefficients of scaled columns that fit as these do, with least contributions."""
        return self.aliases.project @ scaled if self.null.shape[1] else scaled

    def moves_intercept(self, origin_a: Array) -> bool:
        """Tell whether the prediction where every column is 0 is left open: a reference level without rows.

        A column that is one value throughout says nothing, and leaves the intercept what it is without it.
        """
        at_zero = np.where(self.spread.varies, (origin_a + self.spread.offset) / self.spread.scale, 0.0)
        moved = np.abs(at_zero @ self.aliases.within)
        return bool(moved.max(initial=0.0) > 1e-6 * np.abs(at_zero).max(initial=0.0))

    def precision(self) -> tuple[float, Array]:
        """Return the effective number of columns, and coefficients' covariance (q, q) for a residual variance of 1."""
        inverse = (self.vectors / self.values) @ self.vectors.T
        degrees = float(self.rank)
        if self.spread.penalty is not None:
            hat = inverse @ (self.roots.T @ self.roots)
            degrees = float(np.trace(hat))
            inverse = hat @ inverse
        scale = self.spread.scale
        return degrees, self.settled(self.settled(inverse).T) / scale[:, None] / scale / self.spread.weight


def _groups(moments: LinearMoments, penalty: Array | None) -> list[tuple[int, NDArray[np.int64]]]:
    """Return (index of the moments, features) for features that share one system of normal equations."""
    d = len(moments.offset_x)
    if penalty is not None and penalty.ndim == 3:
        return [(j if len(moments.weight) > 1 else 0, np.array([j])) for j in range(d)]
    if len(moments.weight) == 1:
        return [(0, np.arange(d))]
    groups: dict[bytes, list[int]] = {}
    for j in range(d):
        key = moments.weight[j].tobytes() + moments.offset_a[j].tobytes() + moments.s_aa[j].tobytes()
        groups.setdefault(key, []).append(j)
    return [(members[0], np.array(members)) for members in groups.values()]


def spectra_of(moments: LinearMoments, penalty: Array | None, parts: Sequence[Part]) -> list[Spectrum]:
    """Return the spectrum of each group of features; `parts` are the terms, by default each column by itself."""
    spectra = []
    parts = parts or own_columns(len(moments.origin_a))
    with one_blas_thread():  # the number of threads must not change the last bits
        for g, columns in _groups(moments, penalty):
            weight = float(moments.weight[g]) or 1.0
            scatter = moments.s_aa[g] / weight
            scale = np.sqrt(np.maximum(np.diagonal(scatter), 0.0))
            mean = np.abs(moments.origin_a + moments.offset_a[g])
            # Rounding of a constant leaves a spread of a few units in its last place; where it isn't the origin of the
            # products, the root of that.
            varies = scale > 8 * _EPS * mean
            doubtful = varies & (scale <= 64 * np.sqrt(_EPS) * np.abs(moments.offset_a[g]))
            varies &= ~doubtful
            scale = np.where(varies, scale, 1.0)
            gram = np.where(np.outer(varies, varies), scatter / scale[:, None] / scale, 0.0)
            own = penalty if penalty is None or penalty.ndim == 2 else penalty[columns[0]]
            own = None if own is None else own / scale[:, None] / scale / weight
            values, vectors = np.linalg.eigh(gram)
            roots = np.sqrt(np.maximum(values, 0.0))[:, None] * vectors.T
            if own is not None:
                values, vectors = np.linalg.eigh(gram + own)
            spread = Spread(
                g,
                columns,
                float(moments.count[g]),
                weight,
                moments.offset_a[g],
                scale,
                varies,
                doubtful,
                mean / scale,
                own,
            )
            # A Gram matrix carries rounding of order eps: singular values below its root mean nothing.
            tolerance = np.sqrt(_EPS * 16 * max(len(scale), 1))
            singular = np.sqrt(np.maximum(values[::-1], 0.0))
            spectra.append(_spectrum(spread, roots, singular, vectors[:, ::-1].T, tolerance, parts))
    return spectra


def _spectrum(
    spread: Spread, roots: Array, singular: Array, right: Array, tolerance: float, parts: Sequence[Part]
) -> Spectrum:
    used = int(np.count_nonzero(singular > tolerance * np.max(singular, initial=0.0)))
    rank = used
    if spread.penalty is not None:
        own = np.linalg.svd(roots, compute_uv=False)
        rank = int(np.count_nonzero(own > tolerance * np.max(own, initial=0.0)))
    return Spectrum(
        spread=spread,
        roots=roots,
        vectors=right[:used].T,
        values=singular[:used] ** 2,
        null=right[used:].T,
        rank=rank,
        condition=float(singular[0] / singular[used - 1]) if used else 1.0,
        tolerance=tolerance,
        parts=parts,
    )


def _resolved(s: Spread, spread: Array) -> Spread:
    """Return where columns lie that moments left in doubt, from their spread (q,) in a triangular factor."""
    rounding = 32 * _EPS * (np.where(s.varies, 0.0, s.mean_over_spread) + np.abs(s.offset))
    varies = s.doubtful & (spread > rounding)
    scale = np.where(varies, spread, s.scale)
    return replace(s, varies=s.varies | varies, scale=scale, mean_over_spread=s.mean_over_spread * s.scale / scale)


def triangular(spectra: list[Spectrum], triangle: Triangle) -> tuple[list[Spectrum], list[Array]]:
    """Return spectra and coefficients with the digits of a QR factorisation of the rows."""
    better, coefficients = [], []
    several = len(triangle.factors) > 1
    with one_blas_thread():
        for old in spectra:
            s = old.spread
            factor = triangle.factors[s.columns[0] if several else 0]
            products = (
                np.hstack([triangle.products[j] for j in s.columns]) if several else triangle.products[0][:, s.columns]
            )
            root = np.sqrt(s.weight)
            if s.doubtful.any():
                s = _resolved(s, np.linalg.norm(factor[1:, 1:], axis=0) / root)
            roots = np.where(s.varies, factor[1:, 1:] / s.scale / root, 0.0)
            stacked = [roots]
            if s.penalty is not None:
                values, vectors = np.linalg.eigh(s.penalty)
                stacked.append(np.sqrt(np.maximum(values, 0.0))[:, None] * vectors.T)
            stacked.append(np.zeros((max(len(s.scale) - len(roots), 0), len(s.scale))))
            left, singular, right = np.linalg.svd(np.vstack(stacked), full_matrices=False)
            # A column is only known to its own rounding, which counts relative to its spread.
            known = _EPS * (np.max(s.mean_over_spread, initial=1.0) + np.sqrt(max(s.count, len(s.scale))))
            new = _spectrum(s, roots, singular, right, 8 * known, old.parts)
            scaled = left[: len(roots), : len(new.values)].T @ products[1:] / np.sqrt(new.values)[:, None]
            better.append(new)
            coefficients.append(new.settled(new.vectors @ scaled) / s.scale[:, None] / root)
    return better, coefficients
