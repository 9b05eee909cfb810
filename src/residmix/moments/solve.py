"""Least squares from moments: coefficients, rank, aliased columns, residual sums of squares.

The usual path is one pass: centred moments, columns scaled to unit variance, one symmetric eigenproblem. Where the
condition number says that a Gram matrix has lost too many digits, a second pass triangularises the data; where the
residual is tiny beside the effects, a further pass refines the solution with the residuals themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from residmix.moments.affine import Affine, LeftOver, merge_residual_moments
from residmix.moments.linear import LinearMoments, linear_moments, made_of_numbers, merge_moments
from residmix.moments.tsqr import Triangle, Triangularize, merge_triangles
from residmix.rows.rows import Rows, fold
from residmix.rows.threads import one_blas_thread

__all__ = ["LinearFit", "constant_features", "fit_linear", "solve_moments"]

Array = NDArray[np.float64]

_EPS = float(np.finfo(np.float64).eps)
# A Gram matrix costs the square of the condition number: beyond this one, fewer than ten digits would be left.
_GRAM_LIMIT = 1e3
# Where effects are this many times the residual's spread, rounding of the coefficients shows in the residual.
_EFFECT_LIMIT = 1e3


@dataclass
class LinearFit:
    """Solution of ``x ~ constant + (a - origin_a) coef`` for d features on q design columns.

    Attributes
    ----------
    coef : ndarray (q, d)
        Of minimum norm, with the intercept as one of the coefficients, when the design has not full rank.
    constant : ndarray (d,)
        ``x - origin_x = constant + (a - origin_a) coef``.
    origin_a, origin_x : ndarray (q,), (d,)
    offset_a : ndarray (n_groups, q)
        Mean of the design is ``origin_a + offset_a[group[j]]`` over the rows that feature j has.
    group : ndarray of int (d,)
        Features with the same rows share a group; there is one unless values are missing or penalties differ.
    covariance : ndarray (n_groups, q, q)
        Of the coefficients, for a residual variance of 1.
    rank : int
        Of the centred design, so the intercept isn't counted; the smallest over groups.
    condition_number : float
        Of the centred design with columns scaled to unit variance, over its range; the largest over groups.
    degrees : ndarray (n_groups,)
        Effective number of columns: the rank, or with a penalty the trace of the hat matrix; without intercept.
    aliased : dict of int to tuple of int
        Column that the columns before it determine, to those columns; -1 stands for the intercept.
    rss, tss : ndarray (d,)
        Weighted sums of squares of the residual, and of the centred feature.
    count, weight : ndarray (d,)
        Rows of positive weight and sum of weights, by feature.
    """

    coef: Array
    constant: Array
    origin_a: Array
    origin_x: Array
    offset_a: Array
    group: NDArray[np.int64]
    covariance: Array
    rank: int
    condition_number: float
    degrees: Array
    aliased: dict[int, tuple[int, ...]]
    rss: Array
    tss: Array
    count: Array
    weight: Array

    @property
    def intercept(self) -> Array:
        """Prediction where every design column is 0, (d,)."""
        return self.origin_x + (self.constant - self.origin_a @ self.coef)

    @property
    def residual_degrees(self) -> Array:
        """Rows less intercept less effective columns, (d,); never below 0."""
        return np.maximum(self.count - 1.0 - self.degrees[self.group], 0.0)

    def affine(self, n_removed: int | None = None) -> Affine:
        """Return the map to the residual, which takes out the first `n_removed` columns and the mean."""
        kept = slice(len(self.coef) if n_removed is None else n_removed, None)
        # A preserved effect stays, but not its mean: the residual is centred.
        mean_kept = np.einsum("dk,kd->d", self.offset_a[self.group][:, kept], self.coef[kept])
        return Affine(self.origin_x, self.origin_a[: kept.start], self.coef[: kept.start], self.constant + mean_kept)


@dataclass
class _Spread:
    """Where the design columns lie, and how far they spread, for one group of features."""

    source: int  # which of the moments' groups this is
    columns: NDArray[np.int64]  # the features
    count: float
    weight: float
    offset: Array  # (q,)
    scale: Array  # (q,), 1 for columns that don't vary
    varies: NDArray[np.bool_]  # (q,)
    mean_over_spread: Array  # (q,)
    penalty: Array | None  # (q, q), for scaled columns, per unit of weight


@dataclass
class _Spectrum:
    """Centred normal equations of one group of features, columns scaled to unit variance, diagonalised."""

    spread: _Spread
    roots: Array  # (k, q), roots' roots is the scaled scatter per unit of weight
    vectors: Array  # (q, used)
    values: Array  # (used,), eigenvalues of the scaled scatter, penalty included
    null: Array  # (q, q - used)
    rank: int  # of the design itself
    condition: float
    tolerance: float

    def solve(self, products: Array) -> Array:
        """Return coefficients (q, k) for right-hand sides (q, k), both in original units."""
        scale = self.spread.scale[:, None]
        scaled = np.where(self.spread.varies[:, None], products, 0.0) / (scale * self.spread.weight)
        return (self.vectors @ ((self.vectors.T @ scaled) / self.values[:, None])) / scale


def fit_linear(
    rows: Rows, *, penalty: Array | None = None, check: Callable[[LinearMoments], None] | None = None
) -> tuple[LinearFit, LinearMoments]:
    """Fit by least squares in one pass over `rows`, or more where accuracy asks for it.

    Parameters
    ----------
    rows : Rows
        With a dense design; NaN in X means that the feature lacks the row.
    penalty : ndarray (q, q) or (d, q, q), optional
        Positive semi-definite P: adds ``b' P b`` to the sum of squares, in the design's own units.
    check : callable, optional
        Looks at the moments before anything is solved.

    Returns
    -------
    fit : LinearFit
    moments : LinearMoments
        Of the first pass; they merge with those of other rows.
    """
    moments = fold(rows, linear_moments, merge_moments, made_of_numbers)
    if check is not None:
        check(moments)
    spectra = _spectra(moments, penalty)
    accurate = all(s.condition <= _GRAM_LIMIT and (s.null.shape[1] == 0 or s.spread.count == 0) for s in spectra)
    if accurate:
        fit = _solution(moments, spectra, _gram_coefficients(moments, spectra))
    else:
        task = Triangularize(moments.origin_a, moments.origin_x, per_feature=len(moments.weight) > 1)
        triangle = fold(rows, task, merge_triangles)
        spectra, coefficients = _triangular(spectra, triangle)
        fit = _solution(moments, spectra, coefficients)
    if not accurate or _effects_dwarf_residual(fit, spectra):
        for _ in range(2):
            fit, change = _refined(rows, fit, spectra, constant_features(moments))
            if change <= 4 * _EPS:
                break
    return fit, moments


def solve_moments(moments: LinearMoments, *, penalty: Array | None = None) -> LinearFit:
    """Fit from moments alone, where the rows can't be seen again (streams, merged fits).

    As :func:`fit_linear`, but designs whose condition number is above about 1e3 keep fewer digits, and above about 1e6
    their nearly aliased directions count as aliased.
    """
    spectra = _spectra(moments, penalty)
    return _solution(moments, spectra, _gram_coefficients(moments, spectra))


def constant_features(moments: LinearMoments) -> NDArray[np.bool_]:
    """Tell which features don't vary, up to the rounding of their mean, (d,).

    The rounding in their moments must not become effects: tiny as these are, a scaler makes pure metadata of them.
    """
    mean = np.abs(moments.origin_x + moments.offset_x)
    weight = np.broadcast_to(moments.weight, mean.shape)
    return np.asarray(np.sqrt(np.maximum(moments.s_xx, 0.0)) <= 8 * _EPS * mean * np.sqrt(weight))


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


def _spectra(moments: LinearMoments, penalty: Array | None) -> list[_Spectrum]:
    spectra = []
    with one_blas_thread():  # the number of threads must not change the last bits
        for g, columns in _groups(moments, penalty):
            weight = float(moments.weight[g]) or 1.0
            scatter = moments.s_aa[g] / weight
            scale = np.sqrt(np.maximum(np.diagonal(scatter), 0.0))
            mean = np.abs(moments.origin_a + moments.offset_a[g])
            # Rounding of a constant leaves a spread of a few units in its last place.
            varies = scale > 8 * _EPS * mean
            scale = np.where(varies, scale, 1.0)
            gram = np.where(np.outer(varies, varies), scatter / scale[:, None] / scale, 0.0)
            own = penalty if penalty is None or penalty.ndim == 2 else penalty[columns[0]]
            own = None if own is None else own / scale[:, None] / scale / weight
            values, vectors = np.linalg.eigh(gram)
            roots = np.sqrt(np.maximum(values, 0.0))[:, None] * vectors.T
            if own is not None:
                values, vectors = np.linalg.eigh(gram + own)
            spread = _Spread(
                g, columns, float(moments.count[g]), weight, moments.offset_a[g], scale, varies, mean / scale, own
            )
            # A Gram matrix carries rounding of order eps: singular values below its root mean nothing.
            tolerance = np.sqrt(_EPS * 16 * max(len(scale), 1))
            singular = np.sqrt(np.maximum(values[::-1], 0.0))
            spectra.append(_spectrum(spread, roots, singular, vectors[:, ::-1].T, tolerance))
    return spectra


def _spectrum(spread: _Spread, roots: Array, singular: Array, right: Array, tolerance: float) -> _Spectrum:
    used = int(np.count_nonzero(singular > tolerance * np.max(singular, initial=0.0)))
    rank = used
    if spread.penalty is not None:
        own = np.linalg.svd(roots, compute_uv=False)
        rank = int(np.count_nonzero(own > tolerance * np.max(own, initial=0.0)))
    return _Spectrum(
        spread=spread,
        roots=roots,
        vectors=right[:used].T,
        values=singular[:used] ** 2,
        null=right[used:].T,
        rank=rank,
        condition=float(singular[0] / singular[used - 1]) if used else 1.0,
        tolerance=tolerance,
    )


def _gram_coefficients(moments: LinearMoments, spectra: list[_Spectrum]) -> list[Array]:
    with one_blas_thread():
        return [s.solve(moments.s_ax[:, s.spread.columns]) for s in spectra]


def _triangular(spectra: list[_Spectrum], triangle: Triangle) -> tuple[list[_Spectrum], list[Array]]:
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
            roots = np.where(s.varies, factor[1:, 1:] / s.scale / root, 0.0)
            stacked = [roots]
            if s.penalty is not None:
                values, vectors = np.linalg.eigh(s.penalty)
                stacked.append(np.sqrt(np.maximum(values, 0.0))[:, None] * vectors.T)
            stacked.append(np.zeros((max(len(s.scale) - len(roots), 0), len(s.scale))))
            left, singular, right = np.linalg.svd(np.vstack(stacked), full_matrices=False)
            # A column is only known to its own rounding, which counts relative to its spread.
            known = _EPS * (np.max(s.mean_over_spread, initial=1.0) + np.sqrt(max(s.count, len(s.scale))))
            new = _spectrum(s, roots, singular, right, 8 * known)
            scaled = left[: len(roots), : len(new.values)].T @ products[1:] / np.sqrt(new.values)[:, None]
            better.append(new)
            coefficients.append((new.vectors @ scaled) / s.scale[:, None] / root)
    return better, coefficients


def _solution(moments: LinearMoments, spectra: list[_Spectrum], coefficients: list[Array]) -> LinearFit:
    q, d = moments.s_ax.shape
    constant = constant_features(moments)
    seen = [s for s in spectra if s.spread.count > 0]  # a feature without a value says nothing of the design
    fit = LinearFit(
        coef=np.empty((q, d)),
        constant=np.empty(d),
        origin_a=moments.origin_a,
        origin_x=moments.origin_x,
        offset_a=np.array([s.spread.offset for s in spectra]).reshape(len(spectra), q),
        group=np.empty(d, dtype=np.int64),
        covariance=np.empty((len(spectra), q, q)),
        rank=min((s.rank for s in seen), default=0),
        condition_number=max((s.condition for s in seen), default=1.0),
        degrees=np.empty(len(spectra)),
        aliased={},
        rss=np.empty(d),
        tss=moments.s_xx,
        count=np.broadcast_to(moments.count, d).copy(),
        weight=np.broadcast_to(moments.weight, d).copy(),
    )
    with one_blas_thread():
        for g, (s, coef) in enumerate(zip(spectra, coefficients, strict=True)):
            columns, scale = s.spread.columns, s.spread.scale
            coef = _of_least_norm(np.where(constant[columns], 0.0, coef), moments, s)
            fit.coef[:, columns] = coef
            fit.constant[columns] = moments.offset_x[columns] - s.spread.offset @ coef
            fit.group[columns] = g
            inverse = (s.vectors / s.values) @ s.vectors.T
            if s.spread.penalty is None:
                fit.degrees[g] = s.rank
            else:
                hat = inverse @ (s.roots.T @ s.roots)
                fit.degrees[g] = np.trace(hat)
                inverse = hat @ inverse
            fit.covariance[g] = inverse / scale[:, None] / scale / s.spread.weight
            if s.rank < q and s.spread.count > 0:
                fit.aliased.update(_aliased(s))
            # |x - a b|^2 from moments; exact enough unless it is tiny, when a pass over the rows replaces it.
            scatter = moments.s_aa[s.spread.source]
            fit.rss[columns] = moments.s_xx[columns] - np.einsum(
                "kd,kd->d", coef, 2 * moments.s_ax[:, columns] - scatter @ coef
            )
    np.maximum(fit.rss, 0.0, out=fit.rss)
    return fit


def _of_least_norm(coef: Array, moments: LinearMoments, s: _Spectrum) -> Array:
    """Move `coef` along the null space of [a 1] to where the norm of coefficients and intercept is least."""
    if s.null.shape[1] == 0:
        return coef
    directions = s.null / s.spread.scale[:, None]
    mean = moments.origin_a + s.spread.offset
    basis, _ = np.linalg.qr(np.vstack([directions, -mean @ directions]))
    columns = s.spread.columns
    intercept = (moments.origin_x + moments.offset_x)[columns] - mean @ coef
    return coef - basis[:-1] @ (basis.T @ np.vstack([coef, intercept]))


def _aliased(s: _Spectrum) -> dict[int, tuple[int, ...]]:
    """Find the columns that the ones before them determine, by Gram-Schmidt in the order of the columns."""
    found: dict[int, tuple[int, ...]] = {}
    kept: list[int] = []
    basis = np.empty((len(s.roots), 0))
    for j in range(len(s.spread.scale)):
        column = s.roots[:, j]
        if not s.spread.varies[j]:
            found[j] = (-1,)
            continue
        rest = column - basis @ (basis.T @ column)
        rest -= basis @ (basis.T @ rest)
        norm = float(np.linalg.norm(rest))
        if norm <= 16 * s.tolerance:
            shares = np.abs(np.linalg.lstsq(s.roots[:, kept], column, rcond=None)[0])
            found[j] = tuple(k for k, share in zip(kept, shares, strict=True) if share > 1e-6 * shares.max())
        else:
            kept.append(j)
            basis = np.column_stack([basis, rest / norm])
    return found


def _effects_dwarf_residual(fit: LinearFit, spectra: list[_Spectrum]) -> bool:
    effect = np.zeros(len(fit.constant))
    for s in spectra:
        effect[s.spread.columns] = s.spread.scale @ np.abs(fit.coef[:, s.spread.columns])
    spread = np.sqrt(fit.rss / np.where(fit.weight > 0, fit.weight, 1.0))
    return bool(np.any(effect > _EFFECT_LIMIT * spread))


def _refined(
    rows: Rows, fit: LinearFit, spectra: list[_Spectrum], constant: NDArray[np.bool_]
) -> tuple[LinearFit, float]:
    """Solve once more for what the residuals still hold of the design; return the largest relative change too."""
    left = fold(rows, LeftOver(fit.affine()), merge_residual_moments)
    coef, offset = fit.coef.copy(), fit.constant.copy()
    change = 0.0
    with one_blas_thread():
        for s in spectra:
            columns, scale = s.spread.columns, s.spread.scale[:, None]
            total = left.z_r[-1, columns]
            products = left.z_r[:-1, columns] - s.spread.offset[:, None] * total
            if s.spread.penalty is not None:
                products -= s.spread.weight * scale * (s.spread.penalty @ (scale * fit.coef[:, columns]))
            step = np.where(constant[columns], 0.0, s.solve(products))
            coef[:, columns] += step
            offset[columns] += total / s.spread.weight - s.spread.offset @ step
            size = np.max(np.abs(fit.coef[:, columns] * scale), axis=0, initial=0.0)
            moved = np.max(np.abs(step * scale), axis=0, initial=0.0)
            change = max(change, float(np.max(moved / np.where(size > 0, size, 1.0), initial=0.0)))
    return replace(fit, coef=coef, constant=offset, rss=left.rss), change
