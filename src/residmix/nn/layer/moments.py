"""Weighted second moments of (design, features), and the small solves that turn them into coefficients.

Moments are centred and float64; two of them merge by Chan's formula, so batches, epochs, processes and sites add up to
the moments of their union. Nothing here is larger than q x d (q design columns, d features), or d x d when the
features' own covariance is asked for; no matrix ever has the size of the batch.

On the CPU small batches of the default estimator take the same steps in compiled loops, see `residmix.nn._fast.step`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = [
    "CONSTANT",
    "Moments",
    "Solution",
    "ageing",
    "batch_moments",
    "empty_moments",
    "inverse_root",
    "merge",
    "shrunk",
    "solve",
    "summed",
    "symmetric_eigen",
]

# A column whose spread is below this fraction of its mean is constant up to rounding.
CONSTANT = 64 * torch.finfo(torch.float64).eps
# exp(300) and its square are far from the float64 limit; older rows weigh nothing.
_LARGEST_EXPONENT = 300.0


@dataclass(frozen=True)
class Moments:
    """Weighted moments of rows (a, f), a (q,) the design row without intercept and f (d,) the features.

    Attributes
    ----------
    weight, square : Tensor, shape ()
        Sum of the weights and of their squares; ``weight**2 / square`` is the effective number of rows.
    mean : Tensor, shape (q + d,)
        Of the design columns, then of the features.
    scatter : Tensor, shape (q, q + d)
        sum w (a - mean)(z - mean)', z = (a, f). Design and features share tensors because every operation on so small
        ones costs the same few microseconds, whatever its size.
    spread : Tensor, shape (d,) or (d, d)
        Diagonal or whole of sum w (f - mean)(f - mean)'.
    """

    weight: Tensor
    square: Tensor
    mean: Tensor
    scatter: Tensor
    spread: Tensor

    @property
    def design_mean(self) -> Tensor:
        return self.mean[: len(self.scatter)]

    @property
    def feature_mean(self) -> Tensor:
        return self.mean[len(self.scatter) :]

    @property
    def design_scatter(self) -> Tensor:
        """(q, q): sum w (a - mean)(a - mean)'."""
        return self.scatter[:, : len(self.scatter)]

    @property
    def cross(self) -> Tensor:
        """(q, d): sum w (a - mean)(f - mean)'."""
        return self.scatter[:, len(self.scatter) :]

    def scaled(self, factor: Tensor) -> Moments:
        """Multiply every weight by `factor`."""
        return Moments(
            self.weight * factor,
            self.square * (factor * factor),
            self.mean,
            self.scatter * factor,
            self.spread * factor,
        )

    def detached(self) -> Moments:
        return Moments(*(getattr(self, item.name).detach() for item in fields(self)))

    def to(self, device: torch.device) -> Moments:
        return Moments(*(getattr(self, item.name).to(device) for item in fields(self)))

    @property
    def varying(self) -> Tensor:
        """Which features vary by more than the rounding of their mean, bool (d,)."""
        spread = self.spread.diagonal() if self.spread.ndim == 2 else self.spread
        return spread > self.weight * (CONSTANT * self.feature_mean) ** 2

    @property
    def effective_rows(self) -> Tensor:
        """(sum w)^2 / sum w^2, shape (); 0 without rows."""
        return self.weight**2 / (self.square + (self.square == 0))


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
    spectrum : Tensor, shape (k,)
        Eigenvalues of the remainder's scatter, columns of m standardised to a scatter of 1, in rising order; 0 for
        directions of m that cannot be told apart from others or from the protected columns.
    kept : Tensor, shape (d,)
        Share of each feature's slopes that is made use of: 1, but for `shrunk`.
    """

    coef: Tensor
    slope: Tensor
    remainder: Tensor
    spectrum: Tensor
    kept: Tensor


def empty_moments(q: int, d: int, full: bool) -> Moments:
    """Moments of no rows; `full` asks for the d x d spread."""
    shapes: tuple[tuple[int, ...], ...] = ((), (), (q + d,), (q, q + d), (d, d) if full else (d,))
    return Moments(*(torch.zeros(shape, dtype=torch.float64) for shape in shapes))


def batch_moments(design: Tensor, features: Tensor, weight: Tensor, *, full: bool) -> Moments:
    """Moments of one batch: `design` (n, q), `features` (n, d), `weight` (n,), all float64."""
    total = weight.sum()
    share = weight / (total + (total == 0))
    design_mean = share @ design
    centred = design - design_mean
    # Makes up for the rounding of the mean: a column 1e10 spreads away from zero keeps its digits.
    rounding = share @ centred
    centred = centred - rounding
    feature_mean = share @ features
    deviation = features - feature_mean
    weighted = (centred * weight[:, None]).T
    spread = (deviation * weight[:, None]).T @ deviation if full else weight @ deviation**2
    return Moments(
        total,
        weight @ weight,
        torch.cat([design_mean + rounding, feature_mean]),
        torch.cat([weighted @ centred, weighted @ deviation], 1),
        spread,
    )


def merge(first: Moments, second: Moments) -> Moments:
    """Moments of the union (Chan, Golub & LeVeque 1983); nothing is squared before it is centred."""
    q = len(first.scatter)
    total = first.weight + second.weight
    share = second.weight / (total + (total == 0))
    between = first.weight * share
    delta = second.mean - first.mean
    feature = delta[q:]
    outer = feature[:, None] * feature if second.spread.ndim == 2 else feature**2
    return Moments(
        total,
        first.square + second.square,
        first.mean + delta * share,
        first.scatter + second.scatter + (delta[:q] * between)[:, None] * delta,
        first.spread + second.spread + between * outer,
    )


def ageing(count: Tensor, rows: Tensor, horizon: float, world: int, rank: int) -> tuple[Tensor, float]:
    """Forgetting inside one batch, so that the same rows weigh the same whatever the batch size.

    Row i of process r has position  world * (rows before i on r) + r,  the order in which a distributed sampler deals
    rows out. Its weight after the batch is  lam ** (last position - position), lam = 1 - 1 / horizon.

    Parameters
    ----------
    count : Tensor, shape (n,)
        What each row adds to the age, in samples: 1, or 0 for a row without weight, or 1/T for one of T tokens.
    rows : Tensor, shape ()
        Their sum.

    Returns
    -------
    factor : Tensor, shape (n,)
        Weights of the rows; with several processes up to the common factor lam ** (R - 1), which the caller supplies.
    rate : float
        log(lam).
    """
    rate = math.log1p(-1.0 / horizon)
    before = count.cumsum(0) - count
    if world == 1:
        return torch.exp(rate * (rows - 1 - before)), rate
    exponent = -rate * (before * world + rank)
    return torch.exp(torch.where(exponent < _LARGEST_EXPONENT, exponent, _LARGEST_EXPONENT)), rate


def summed(moments: Moments, rows: Tensor, group: dist.ProcessGroup | None) -> tuple[Moments, Tensor]:
    """Add up the moments of all processes by one all_reduce; every process gets the same bits.

    The scatters are summed as they are; the weights and means travel in one slot per process (world x (2 + q + d)
    numbers), from which the scatter between processes follows without cancellation.
    """
    world, rank = dist.get_world_size(group), dist.get_rank(group)
    q, d = moments.cross.shape
    slots = torch.zeros(world, 2 + q + d, dtype=torch.float64, device=moments.weight.device)
    slots[rank] = torch.cat([moments.weight[None], rows[None], moments.mean])
    parts = [moments.square, moments.scatter, moments.spread, slots]
    flat = torch.cat([part.reshape(-1) for part in parts])
    dist.all_reduce(flat, group=group)
    square, scatter, spread, slots = (
        piece.view(part.shape) for piece, part in zip(flat.split([part.numel() for part in parts]), parts, strict=True)
    )
    nothing = empty_moments(q, d, spread.ndim == 2).to(flat.device)
    total = replace(nothing, square=square, scatter=scatter, spread=spread)
    for slot in slots:
        total = merge(total, replace(nothing, weight=slot[0], mean=slot[2:]))
    return total, slots[:, 1].sum()


def inverse_root(values: Tensor, where: Tensor) -> Tensor:
    """1 / sqrt(values) `where` that is true, 0 elsewhere."""
    return where / torch.sqrt(torch.where(where, values, 1.0))


def symmetric_eigen(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and vectors of a symmetric matrix; of one column, the usual case, without LAPACK."""
    if len(matrix) == 1:
        return matrix[0], torch.ones_like(matrix)
    values, vectors = torch.linalg.eigh(matrix)
    return values, vectors


def _pseudo_inverse(matrix: Tensor, rtol: float, ridge: float = 0.0) -> tuple[Tensor, Tensor]:
    """Pseudo-inverse of a scatter with unit-scale columns, and its eigenvalues, those below `rtol` put to 0."""
    values, vectors = symmetric_eigen(matrix)
    kept = values > rtol
    inverse = kept / torch.where(kept, values + ridge, 1.0)
    return (vectors * inverse) @ vectors.T, values * kept


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
    p, q = num_protected, len(moments.scatter)
    diagonal = moments.scatter.diagonal()
    varies = diagonal > moments.weight * (CONSTANT * moments.design_mean) ** 2
    scale = inverse_root(diagonal, varies)
    units = scale * diagonal
    rows = scale[:, None] * moments.scatter
    gram, cross = rows[:, :q] * scale, rows[:, q:]
    remainder, target, slope = gram[p:, p:], cross[p:], gram[:p, p:]
    if p:
        slope = _pseudo_inverse(gram[:p, :p], rtol)[0] @ slope
        remainder = remainder - slope.T @ gram[:p, p:]
        target = target - slope.T @ cross[:p]
    inverse, spectrum = _pseudo_inverse(remainder, rtol, ridge)
    return Solution(
        scale[p:, None] * (inverse @ target),
        scale[:p, None] * slope * units[p:],
        units[p:, None] * remainder * units[p:],
        spectrum,
        torch.ones_like(moments.feature_mean),
    )


def shrunk(solution: Solution, moments: Moments, num_protected: int, limit: float, rtol: float = 1e-10) -> Solution:
    r"""Take slopes for chance where they can't be told from 0, as James & Stein (1961) would.

    With F the statistic of all k slopes of a feature, given the protected columns, `kept` is
    :math:`(1 - c / F)_+`, c = `limit`. Without noise F is infinite, and nothing changes.
    """
    p, q = num_protected, len(moments.scatter)
    full = moments.spread.ndim == 2
    left = moments.spread.diagonal() if full else moments.spread
    if p:
        scale = inverse_root(moments.scatter.diagonal()[:p], moments.scatter.diagonal()[:p] > 0)
        own = scale[:, None] * moments.scatter[:p, :p] * scale
        cross = scale[:, None] * moments.cross[:p]
        left = left - (cross * (_pseudo_inverse(own, rtol)[0] @ cross)).sum(0)
    explained = (solution.coef * (solution.remainder @ solution.coef)).sum(0)
    rank = (solution.spectrum > 0).sum().clamp_min(1)
    freedom = (moments.effective_rows - q - 1).clamp_min(1.0)
    chance = limit * rank * (left - explained).clamp_min(0.0)
    kept = (1 - chance / (explained * freedom).clamp_min(1e-300)).clamp_min(0.0)
    # Compilers of older releases of torch know no dataclasses.replace.
    return Solution(solution.coef, solution.slope, solution.remainder, solution.spectrum, kept)
