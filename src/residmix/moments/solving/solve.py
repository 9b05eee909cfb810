"""Least squares from moments: coefficients, rank, aliased columns, residual sums of squares.

The usual path is one pass: centred moments, columns scaled to unit variance, one symmetric eigenproblem. Where the
condition number says that a Gram matrix has lost too many digits, a second pass triangularises the data; where the
residual is tiny beside the effects, a further pass refines the solution with the residuals themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from residmix.kernels.pairs import small
from residmix.kernels.twice import two_sum
from residmix.moments.fit import LinearFit
from residmix.moments.linear import LinearMoments, linear_moments, made_of_numbers, merge_moments
from residmix.moments.solving.aliased import Part
from residmix.moments.solving.second_pass import LeftOver, Triangularize, merge_residual_moments, merge_triangles
from residmix.moments.solving.spectrum import Spectrum, spectra_of, triangular
from residmix.rows.rows import Rows, fold
from residmix.rows.threads import one_blas_thread

__all__ = ["LinearFit", "constant_features", "fit_linear", "fit_moments", "fold_linear", "solve_moments"]

Array = NDArray[np.float64]

_EPS = float(np.finfo(np.float64).eps)
# A Gram matrix costs the square of the condition number: beyond this one, fewer than ten digits would be left.
_GRAM_LIMIT = 1e3
# Where effects are this many times the residual's spread, rounding of the coefficients shows in the residual.
_EFFECT_LIMIT = 1e3
# Of refinement: the worst designs that count as of full rank need three.
_MAX_PASSES = 5


def fit_linear(
    rows: Rows,
    *,
    penalty: Array | None = None,
    parts: Sequence[Part] = (),
    check: Callable[[LinearMoments], None] | None = None,
) -> tuple[LinearFit, LinearMoments]:
    """Fit by least squares in one pass over `rows`, or more where accuracy asks for it.

    Parameters
    ----------
    rows : Rows
        With a dense design; NaN in X is a missing value.
    penalty : ndarray (q, q) or (d, q, q), optional
        Positive semi-definite P: adds ``b' P b`` to the sum of squares, in the design's own units.
    parts : sequence of Part, optional
        The terms, in order, which decides how shared effects are divided (see `residmix.moments.solving.aliased`).
        Default: each column by itself.
    check : callable, optional
        Checks the moments before anything is solved.

    Returns
    -------
    fit : LinearFit
    moments : LinearMoments
        Of the first pass; they merge with those of other rows.
    """
    moments = fold_linear(rows)
    if check is not None:
        check(moments)
    return fit_moments(moments, rows, penalty=penalty, parts=parts), moments


def fold_linear(rows: Rows) -> LinearMoments:
    """Return the moments of all rows, by one ordered fold."""
    step = partial(linear_moments, plain=small(rows.n_rows, rows.n_features))
    return fold(rows, step, merge_moments, made_of_numbers)


def fit_moments(
    moments: LinearMoments, rows: Rows, *, penalty: Array | None = None, parts: Sequence[Part] = ()
) -> LinearFit:
    """Fit from the moments of `rows`, which are read again where accuracy asks for it."""
    spectra = spectra_of(moments, penalty, parts)
    accurate = all(s.condition <= _GRAM_LIMIT and (s.null.shape[1] == 0 or s.spread.count == 0) for s in spectra)
    if accurate:
        fit = _solution(moments, spectra, _gram_coefficients(moments, spectra))
    else:
        task = Triangularize(moments.origin_a, moments.offset_a, moments.origin_x)
        triangle = fold(rows, task, merge_triangles)
        spectra, coefficients = triangular(spectra, triangle)
        fit = _solution(moments, spectra, coefficients)
    if not accurate or _effects_dwarf_residual(fit, spectra):
        fit = _refined(rows, fit, spectra, constant_features(moments))
    return fit


def solve_moments(moments: LinearMoments, *, penalty: Array | None = None, parts: Sequence[Part] = ()) -> LinearFit:
    """Fit from moments alone, if the rows can't be read again (streams, merged fits).

    As :func:`fit_linear`, but the result is less accurate for designs with a condition number above about 1e3, and
    nearly aliased directions count as aliased above about 1e6.
    """
    spectra = spectra_of(moments, penalty, parts)
    return _solution(moments, spectra, _gram_coefficients(moments, spectra))


def constant_features(moments: LinearMoments) -> NDArray[np.bool_]:
    """Return a mask of the features that are constant up to the rounding of their mean, (d,).

    Rounding errors in their moments must not become effects, which scaling would blow up.
    """
    mean = np.abs(moments.origin_x + moments.offset_x)
    weight = np.broadcast_to(moments.weight, mean.shape)
    return np.asarray(np.sqrt(np.maximum(moments.s_xx, 0.0)) <= 8 * _EPS * mean * np.sqrt(weight))


def _gram_coefficients(moments: LinearMoments, spectra: list[Spectrum]) -> list[Array]:
    with one_blas_thread():
        return [s.solve(moments.s_ax[:, s.spread.columns]) for s in spectra]


def _solution(moments: LinearMoments, spectra: list[Spectrum], coefficients: list[Array]) -> LinearFit:
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
        scale=np.array([s.spread.scale for s in spectra]).reshape(len(spectra), q),
        null=tuple(s.null for s in spectra),
        unknown=(unknown := np.zeros((len(spectra), q + 1), dtype=bool)),
    )
    with one_blas_thread():
        for g, (s, coef) in enumerate(zip(spectra, coefficients, strict=True)):
            columns = s.spread.columns
            fit.group[columns] = g
            coef = np.where(constant[columns], 0.0, coef)
            fit.degrees[g], fit.covariance[g] = s.precision()
            if s.null.shape[1]:
                unknown[g, :-1] = s.aliases.unknown
                unknown[g, -1] = s.moves_intercept(moments.origin_a)
            fit.coef[:, columns] = coef
            fit.constant[columns] = moments.offset_x[columns] - s.spread.offset @ coef
            if s.rank < q and s.spread.count > 0:
                fit.aliased.update(_aliased(s))
            # |x - a b|^2 from moments; exact enough unless it is tiny, when a pass over the rows replaces it.
            scatter = moments.s_aa[s.spread.source]
            fit.rss[columns] = moments.s_xx[columns] - np.einsum(
                "kd,kd->d", coef, 2 * moments.s_ax[:, columns] - scatter @ coef
            )
    np.maximum(fit.rss, 0.0, out=fit.rss)
    return fit


def _aliased(s: Spectrum) -> dict[int, tuple[int, ...]]:
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


@one_blas_thread()  # for a few thousand numbers others would only wait
def _effects_dwarf_residual(fit: LinearFit, spectra: list[Spectrum]) -> bool:
    effect = np.zeros(len(fit.constant))
    for s in spectra:
        effect[s.spread.columns] = s.spread.scale @ np.abs(fit.coef[:, s.spread.columns])
    spread = np.sqrt(fit.rss / np.where(fit.weight > 0, fit.weight, 1.0))
    return bool(np.any(effect > _EFFECT_LIMIT * spread))


def _refined(rows: Rows, fit: LinearFit, spectra: list[Spectrum], constant: NDArray[np.bool_]) -> LinearFit:
    r"""Refine the solution with the products of residuals and design, until it doesn't change.

    With the factor R of the design A and residuals r in twice the working precision, a step solves
    :math:`R'R \, \delta = A' r` (corrected seminormal equations: Björck, Linear Algebra Appl. 88, 1987, section 5).
    In the norm :math:`\|A \delta\|` each shrinks the error to about :math:`\kappa \epsilon` of itself. Coefficients
    are kept in two parts meanwhile, since rounding them would leave :math:`\kappa` times as much.
    """
    coef, constant_ = (fit.coef, np.zeros_like(fit.coef)), (fit.constant, np.zeros_like(fit.constant))
    rss, plain = fit.rss, small(rows.n_rows, fit.coef.size)
    for _ in range(_MAX_PASSES):
        task = LeftOver(fit.origin_x, fit.origin_a, coef, constant_, plain)
        left = fold(rows, task, merge_residual_moments)
        rss, change = left.rss, 0.0
        step, shift = np.zeros_like(fit.coef), np.zeros_like(fit.constant)
        with one_blas_thread():
            for s in spectra:
                columns, scale = s.spread.columns, s.spread.scale[:, None]
                total = left.z_r[-1, columns]
                products = left.z_r[:-1, columns] - s.spread.offset[:, None] * total
                if s.spread.penalty is not None:
                    products -= s.spread.weight * scale * (s.spread.penalty @ (scale * coef[0][:, columns]))
                own = np.where(constant[columns], 0.0, s.solve(products))
                step[:, columns] = own
                shift[columns] = total / s.spread.weight - s.spread.offset @ own
                size = np.max(np.abs(coef[0][:, columns] * scale), axis=0, initial=0.0)
                moved = np.max(np.abs(own * scale), axis=0, initial=0.0)
                change = max(change, float(np.max(moved / np.where(size > 0, size, 1.0), initial=0.0)))
        coef, constant_ = _added(coef, step), _added(constant_, shift)
        if change <= 4 * _EPS:
            break
    # the mean of the residual is 0 with coefficients as they are stored
    lost = np.einsum("dk,kd->d", fit.offset_a[fit.group], coef[1])
    return replace(fit, coef=coef[0], constant=constant_[0] + (constant_[1] + lost), rss=rss)


def _added(number: tuple[Array, Array], step: Array) -> tuple[Array, Array]:
    high, lost = two_sum(number[0], step)
    return two_sum(high, number[1] + lost)
