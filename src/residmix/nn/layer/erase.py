"""Affine erasure in feature space: what to take from x when no metadata will be there at inference.

LEACE (Belrose et al., NeurIPS 2023, theorem 4.3): the map x -> A x + b that is closest to x, in every norm at once,
among those after which no linear predictor of the metadata beats a constant. With protected columns y that must hold
*given y*: what goes is Z = Cov(x, m | y) = Cov(x, m - Proj_y m), and the covariance Y with the protected columns stays
as it is, as in SPLINCE (Holstege et al., NeurIPS 2025), where Cov(x, m) goes whole. With S = Cov(x) and the inner
product <a, b> = a' S^+ b, both are

    x - Z (N' S^+ Z)^+ N' S^+ (x - mean),    N = Z - Proj_Y Z   (N = Z without protection),

which needs one solve with S and never its square root. The residual R has Cov(R, m | y) = 0 and Cov(R, y) = Y, so that
Cov(R, m) = Y Cov(y)^+ Cov(y, m): for a single y, R^2(m ~ R) = R^2(m ~ y) R^2(y ~ R).
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

from residmix.nn.layer import maps as mapping
from residmix.nn.layer.gradient import minus
from residmix.nn.layer.moments import Moments

__all__ = ["erased", "eraser_factors"]


def _solve_spread(spread: Tensor, varies: Tensor, right: Tensor, rtol: float) -> Tensor:
    """S^+ right for a scatter S of features, 0 where they don't vary.

    Cholesky when S is well conditioned, an eigendecomposition otherwise.
    """
    scale = torch.where(varies, spread.diagonal().clamp_min(1e-300).rsqrt(), 0.0)
    unit = scale[:, None] * spread * scale
    target = scale[:, None] * right
    factor, info = torch.linalg.cholesky_ex(unit)
    if bool(info == 0) and bool(factor.diagonal().min() ** 2 > 1e-6):
        return scale[:, None] * torch.cholesky_solve(target, factor)
    values, vectors = torch.linalg.eigh(unit)
    inverse = torch.where(values > rtol * values[-1], 1.0 / values.clamp_min(1e-300), 0.0)
    solved: Tensor = vectors @ (inverse[:, None] * (vectors.T @ target))
    return scale[:, None] * solved


def _unit_pseudo_inverse(matrix: Tensor, scale: Tensor, rtol: float) -> Tensor:
    """(D M D)-scaled pseudo-inverse of a symmetric M, D = diag(scale), tolerance relative to the scaled columns."""
    values, vectors = torch.linalg.eigh(scale[:, None] * (matrix + matrix.T) / 2 * scale)
    inverse = torch.where(values > rtol, 1.0 / values.clamp_min(1e-300), 0.0)
    unscaled: Tensor = (vectors * inverse) @ vectors.T
    return scale[:, None] * unscaled * scale


def eraser_factors(moments: Moments, num_protected: int, *, rtol: float = 1e-10) -> tuple[Tensor, Tensor]:
    """Factors of the erasure  x -> x - (x - mean) right left'.

    Parameters
    ----------
    moments : Moments
        With the d x d spread.

    Returns
    -------
    left, right : Tensor, shape (d, k)
    """
    p = num_protected
    # Of constants only rounding is left: no features, whose covariance of that size would pass for one.
    varies = moments.varying
    cross = moments.cross.T * varies[:, None]
    metadata = moments.design_scatter.diagonal()[p:]
    # R^2 of each metadata column on the features is at most 1, so this scaling makes rtol a fraction of its variance.
    scale = torch.where(metadata > 0, metadata.clamp_min(1e-300).rsqrt(), 0.0)
    left, kept = cross[:, p:], cross[:, :p]
    if p:
        protected = moments.design_scatter.diagonal()[:p]
        inner = torch.where(protected > 0, protected.clamp_min(1e-300).rsqrt(), 0.0)
        own = _unit_pseudo_inverse(moments.design_scatter[:p, :p], inner, rtol)
        left = left - kept @ (own @ moments.design_scatter[:p, p:])
    whitened = _solve_spread(moments.spread, varies, torch.cat([kept, left], 1), rtol)
    normal, whitened_kept = whitened[:, p:], whitened[:, :p]
    if p:
        inverse = _unit_pseudo_inverse(kept.T @ whitened_kept, inner, rtol)
        normal = normal - whitened_kept @ (inverse @ (whitened_kept.T @ left))
    return left, normal @ _unit_pseudo_inverse(normal.T @ left, scale, rtol)


def erased(
    x: Tensor, maps: str, left: Tensor, right: Tensor, mean: Tensor, level: Tensor | None, inplace: bool
) -> Tensor:
    """``x - (x - mean) right left'`` at every position, less `level` where there is one."""
    last = mapping.features_last(x, maps)
    wide = torch.promote_types(x.dtype, torch.float32)
    # Outside of autocast, whose products have three digits.
    casts = torch.is_autocast_enabled(x.device.type)
    with torch.autocast(x.device.type, enabled=False) if casts else nullcontext():
        change = ((last.to(wide) - mean.to(wide)) @ right.to(wide)) @ left.to(wide).T
    if level is not None:
        change = change + level.to(wide)
    if maps == "channel":
        change = change.movedim(-1, 1)
    return minus(x, change.view(x.shape), inplace)
