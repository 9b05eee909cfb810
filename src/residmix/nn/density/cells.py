"""Probabilities of grid cells under a normal distribution, in logs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["log_cell"]

_LOG_2PI = math.log(2 * math.pi)


def log_cell(middle: Tensor, half: Tensor) -> Tensor:
    """log[Phi(m + h) - Phi(m - h)], with finite values and gradients in both tails and for tiny h."""
    dtype = middle.dtype
    middle, half = -middle.double().abs(), half.double()
    # Below this half-width the difference of two log Phi has lost its digits, and the midpoint rule (error h^2/6,
    # times sinh(mh)/(mh) for the slope across the cell) has not.
    small = half < 1e-3
    h = torch.where(small, torch.ones_like(half), half)
    upper, lower = _log_ndtr(middle + h), _log_ndtr(middle - h)
    ratio = (lower - upper).clamp(max=-1e-30)
    wide = upper + torch.log(-torch.expm1(ratio))
    g = torch.where(small, half, torch.ones_like(half))
    slope = (middle * g).abs()
    slope_safe = slope.clamp_min(1e-3)
    growth = torch.where(
        slope < 1e-3,
        slope.square() / 6,
        slope_safe + torch.log(-torch.expm1(-2 * slope_safe)) - (2 * slope_safe).log(),
    )
    narrow = -0.5 * middle.square() - 0.5 * _LOG_2PI + (2 * g).log() + growth
    return torch.where(small, narrow, wide).to(dtype)


def _log_ndtr(x: Tensor) -> Tensor:
    """log Phi, with Mills' ratio to three terms below -50, where the gradient of torch.special.log_ndtr is wrong."""
    far = x < -50
    tail = torch.where(far, x, torch.full_like(x, -50.0))
    inverse = tail.square().reciprocal()
    asymptotic = -0.5 * tail.square() - (-tail).log() - 0.5 * _LOG_2PI + torch.log1p(inverse * (3 * inverse - 1))
    near = torch.special.log_ndtr(torch.where(far, torch.zeros_like(x), x))
    return torch.where(far, asymptotic, near)
