"""Weighted second moments of (design, features) in torch, and the small solves that turn them into coefficients.

Moments are centred and float64; two of them merge by Chan's formula, so batches, epochs, processes and sites add up to
the moments of their union. Nothing here is larger than q x d (q design columns, d features), or d x d when the
features' own covariance is asked for; no matrix ever has the size of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["Moments", "Solution", "ageing", "batch_moments", "empty_moments", "merge", "solve", "summed"]

# A column whose spread is below this fraction of its mean is constant up to rounding.
_CONSTANT = 64 * torch.finfo(torch.float64).eps
# exp(300) and its square are far from the float64 limit; older rows weigh nothing.
_LARGEST_EXPONENT = 300.0


@dataclass(frozen=True)
class Moments:
    """Weighted moments of rows (a, f), a (q,) the design row without intercept and f (d,) the features.

    Attributes
    ----------
    weight, square : Tensor, shape ()
        Sum of the weights and of their squares; ``weight**2 / square`` is the effective number of rows.
    design_mean : Tensor, shape (q,)
    feature_mean : Tensor, shape (d,)
    design_scatter : Tensor, shape (q, q)
        sum w (a - mean)(a - mean)'.
    cross : Tensor, shape (q, d)
        sum w (a - mean)(f - mean)'.
    spread : Tensor, shape (d,) or (d, d)
        Diagonal or whole of sum w (f - mean)(f - mean)'.
    """

    weight: Tensor
    square: Tensor
    design_mean: Tensor
    feature_mean: Tensor
    design_scatter: Tensor
    cross: Tensor
    spread: Tensor

    def scaled(self, factor: Tensor | float) -> Moments:
        """Multiply every weight by `factor`."""
        return Moments(
            self.weight * factor,
            self.square * factor * factor,
            self.design_mean,
            self.feature_mean,
            self.design_scatter * factor,
            self.cross * factor,
            self.spread * factor,
        )

    def detached(self) -> Moments:
        return Moments(*(getattr(self, item.name).detach() for item in fields(self)))

    def cloned(self) -> Moments:
        return Moments(*(getattr(self, item.name).clone() for item in fields(self)))

    def to(self, device: torch.device) -> Moments:
        return Moments(*(getattr(self, item.name).to(device) for item in fields(self)))

    @property
    def effective_rows(self) -> Tensor:
        """(sum w)^2 / sum w^2, shape (); 0 without rows."""
        return torch.where(self.square > 0, self.weight**2 / self.square.clamp_min(1e-300), 0.0)


@dataclass(frozen=True)
class Solution:
    """Coefficients of the columns to remove, given the protected ones.

    Attributes
    ----------
    coef : Tensor, shape (k, d)
        B_m of  f ~ Y B_Y + m B_m + b0, in units of f per unit of m.
    slope : Tensor, shape (p, k)
        Regression of m on the protected columns, so that m - mean - (Y - mean) slope is what is left of m.
    remainder : Tensor, shape (k, k)
        Scatter of what is left of m.
    rank : Tensor, shape ()
        Directions of m that can be told apart from each other and from the protected columns.
    condition : Tensor, shape ()
        Largest over smallest kept eigenvalue of the remainder's scatter, columns standardised.
    """

    coef: Tensor
    slope: Tensor
    remainder: Tensor
    rank: Tensor
    condition: Tensor


def empty_moments(q: int, d: int, full: bool) -> Moments:
    """Moments of no rows; `full` asks for the d x d spread."""
    shapes: tuple[tuple[int, ...], ...] = ((), (), (q,), (d,), (q, q), (q, d), (d, d) if full else (d,))
    return Moments(*(torch.zeros(shape, dtype=torch.float64) for shape in shapes))


def batch_moments(design: Tensor, features: Tensor, weight: Tensor, *, full: bool) -> Moments:
    """Moments of one batch: `design` (n, q), `features` (n, d), `weight` (n,), all float64."""
    total = weight.sum()
    share = (weight / torch.where(total > 0, total, 1.0)).unsqueeze(1)
    design_mean = (share * design).sum(0)
    # The second line makes up for the rounding of the first: a column 1e10 spreads away from zero keeps its digits.
    design_mean = design_mean + (share * (design - design_mean)).sum(0)
    feature_mean = (share * features).sum(0)
    centred = design - design_mean
    deviation = features - feature_mean
    weighted = centred * weight.unsqueeze(1)
    if full:
        spread = (deviation * weight.unsqueeze(1)).T @ deviation
    else:
        spread = torch.einsum("nd,nd,n->d", deviation, deviation, weight)
    return Moments(
        total, (weight**2).sum(), design_mean, feature_mean, weighted.T @ centred, weighted.T @ deviation, spread
    )


def _outer(delta: Tensor, spread: Tensor) -> Tensor:
    return torch.outer(delta, delta) if spread.ndim == 2 else delta**2


def merge(first: Moments, second: Moments) -> Moments:
    """Moments of the union (Chan, Golub & LeVeque 1983); nothing is squared before it is centred."""
    total = first.weight + second.weight
    share = second.weight / torch.where(total > 0, total, 1.0)
    between = first.weight * share
    design = second.design_mean - first.design_mean
    feature = second.feature_mean - first.feature_mean
    return Moments(
        total,
        first.square + second.square,
        first.design_mean + design * share,
        first.feature_mean + feature * share,
        first.design_scatter + second.design_scatter + between * torch.outer(design, design),
        first.cross + second.cross + between * torch.outer(design, feature),
        first.spread + second.spread + between * _outer(feature, second.spread),
    )


def ageing(count: Tensor, horizon: float, world: int, rank: int) -> tuple[Tensor, Tensor]:
    """Forgetting inside one batch, so that the same rows weigh the same whatever the batch size.

    Row i of process r has position  world * (rows before i on r) + r,  the order in which a distributed sampler deals
    rows out. Its weight after the batch is  lam ** (last position - position), lam = 1 - 1 / horizon.

    Parameters
    ----------
    count : Tensor, shape (n,)
        What each row adds to the age, in samples: 1, or 0 for a row without weight, or 1/T for one of T tokens.

    Returns
    -------
    factor : Tensor, shape (n,)
        Weights of the rows; with several processes up to the common factor lam ** (R - 1), which the caller supplies.
    rate : Tensor, shape ()
        log(lam).
    """
    rate = torch.log1p(torch.tensor(-1.0 / horizon, dtype=torch.float64, device=count.device))
    position = (count.cumsum(0) - count) * world + rank
    exponent = rate * (count.sum() - 1 - position) if world == 1 else -rate * position
    return torch.exp(exponent.clamp_max(_LARGEST_EXPONENT)), rate


def summed(moments: Moments, rows: Tensor, group: dist.ProcessGroup | None) -> tuple[Moments, Tensor]:
    """Add up the moments of all processes by one all_reduce; every process gets the same bits.

    The scatters are summed as they are; the weights and means travel in one slot per process (world x (2 + q + d)
    numbers), from which the scatter between processes follows without cancellation.
    """
    world, rank = dist.get_world_size(group), dist.get_rank(group)
    q, d = moments.cross.shape
    slots = torch.zeros(world, 2 + q + d, dtype=torch.float64, device=moments.weight.device)
    slots[rank] = torch.cat([moments.weight[None], rows[None], moments.design_mean, moments.feature_mean])
    parts = [moments.square, moments.design_scatter, moments.cross, moments.spread, slots]
    flat = torch.cat([part.reshape(-1) for part in parts])
    dist.all_reduce(flat, group=group)
    square, design_scatter, cross, spread, slots = (
        piece.view(part.shape) for piece, part in zip(flat.split([part.numel() for part in parts]), parts, strict=True)
    )
    nothing = empty_moments(q, d, spread.ndim == 2).to(flat.device)
    total = replace(nothing, square=square, design_scatter=design_scatter, cross=cross, spread=spread)
    for slot in slots:
        one = replace(nothing, weight=slot[0], design_mean=slot[2 : 2 + q], feature_mean=slot[2 + q :])
        total = merge(total, one)
    return total, slots[:, 1].sum()


def _pseudo_inverse(matrix: Tensor, rtol: float, ridge: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """Pseudo-inverse of a scatter with unit-scale columns, its rank and condition."""
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    kept = values > rtol
    inverse = torch.where(kept, 1.0 / torch.where(kept, values + ridge, 1.0), 0.0)
    smallest = torch.where(kept, values, torch.inf).min()
    condition = torch.where(kept.any(), values[-1] / smallest, 1.0)
    return (vectors * inverse) @ vectors.T, kept.sum(), condition


def solve(moments: Moments, num_protected: int, *, ridge: float = 0.0, rtol: float = 1e-10) -> Solution:
    """Least squares of the features on [Y, m, 1] from moments; what Y and m share goes to Y.

    By Frisch-Waugh-Lovell with m~ = m - Proj_[Y,1] m:  B_m = (m~'m~)^+ m~'F. Columns are standardised first, so
    the tolerance is relative and units don't matter; a constant column has coefficient 0.

    Parameters
    ----------
    ridge : float
        Added to the scatter of the standardised columns, as a fraction of their variance.
    rtol : float
        Directions of m whose remaining variance is below this fraction of a column's variance are left alone.
    """
    p = num_protected
    diagonal = moments.design_scatter.diagonal()
    varies = diagonal > moments.weight * (_CONSTANT * moments.design_mean) ** 2
    scale = torch.where(varies, diagonal.clamp_min(1e-300).rsqrt(), 0.0)
    scatter = scale[:, None] * moments.design_scatter * scale
    cross = scale[:, None] * moments.cross
    remainder, target = scatter[p:, p:], cross[p:]
    slope = scatter[:p, p:]
    if p:
        slope = _pseudo_inverse(scatter[:p, :p], rtol)[0] @ slope
        remainder = remainder - scatter[p:, :p] @ slope
        target = target - slope.T @ cross[:p]
    inverse, rank, condition = _pseudo_inverse(remainder, rtol, ridge)
    inner = scale[p:]
    units = torch.where(inner > 0, 1.0 / torch.where(inner > 0, inner, 1.0), 0.0)
    return Solution(
        inner[:, None] * (inverse @ target),
        scale[:p, None] * slope * units,
        units[:, None] * remainder * units,
        rank,
        condition,
    )
