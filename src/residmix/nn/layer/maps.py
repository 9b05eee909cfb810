"""How a tensor of any shape becomes rows and features, and how a correction goes back onto the tensor.

==========  ==================  ==============================================  ==========================
``maps``    x                   a row's features                                metadata
==========  ==================  ==============================================  ==========================
element     (n, ...)            every element                                   (n, k)
channel     (n, C, ...)         mean of each channel over the positions         (n, k)
token       (n, ..., C)         mean of each channel over the tokens            (n, k), or (n, ..., k)
==========  ==================  ==============================================  ==========================
"""

from __future__ import annotations

import math
from math import prod

import torch
from torch import Tensor

__all__ = ["MAPS", "broadcast", "features_last", "features_of", "flatten_tokens", "pooled", "position_sums", "shares"]

MAPS = ("element", "channel", "token")


def features_of(x: Tensor, maps: str) -> int:
    """Number of features of one row of `x`."""
    if maps == "element":
        return prod(x.shape[1:])
    return x.shape[1] if maps == "channel" else x.shape[-1]


def mask_shape(x: Tensor, maps: str) -> tuple[int, ...]:
    """Shape a mask must have: that of `x` without the feature axis."""
    if maps == "channel":
        return (x.shape[0], *x.shape[2:])
    return tuple(x.shape[:1]) if maps == "element" else tuple(x.shape[:-1])


def _positions(x: Tensor, maps: str) -> tuple[int, ...]:
    return tuple(range(2, x.ndim)) if maps == "channel" else tuple(range(1, x.ndim - 1))


def pooled(x: Tensor, maps: str, mask: Tensor | None) -> Tensor:
    """Features of each row (n, d), float32 or float64; a boolean `mask` (n, positions) tells which positions count."""
    wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
    if maps == "element":
        return wide.flatten(1)
    axes = _positions(x, maps)
    if not axes:
        return wide
    if mask is None:
        return wide.mean(axes)
    axis = 1 if maps == "channel" else -1
    share = mask.to(wide.dtype)
    share = (share / share.flatten(1).sum(1).clamp_min(1e-30).view(-1, *[1] * (share.ndim - 1))).unsqueeze(axis)
    rows = (wide * share).sum(axes)
    if not torch.compiler.is_compiling() and math.isnan(float(rows.detach().sum())):
        # What is masked may be NaN, which times 0 isn't 0; a choice takes twice as long as a product.
        rows = (torch.where(mask.unsqueeze(axis), wide, 0.0) * share).sum(axes)
    return rows


def broadcast(rows: Tensor, x: Tensor, maps: str) -> Tensor:
    """View (n, d) `rows` so that it lines up with `x`."""
    if maps == "element":
        return rows.view(x.shape)
    ones = [1] * len(_positions(x, maps))
    shape = (rows.shape[0], rows.shape[1], *ones) if maps == "channel" else (rows.shape[0], *ones, rows.shape[1])
    return rows.view(shape)


def features_last(x: Tensor, maps: str) -> Tensor:
    """View of `x` with the features on the last axis, for maps that mix features."""
    if maps == "element":
        return x.flatten(1)
    return x.movedim(1, -1) if maps == "channel" else x


def flatten_tokens(values: Tensor, x: Tensor) -> Tensor:
    """Repeat per-sample `values` (n, c) over the tokens of `x` (n, ..., C), or flatten per-token ones: (tokens, c)."""
    if values.ndim == 2 and x.ndim > 2:
        values = values.view(values.shape[0], *[1] * (x.ndim - 2), values.shape[1])
        values = values.expand(*x.shape[:-1], values.shape[-1])
    return values.flatten(0, -2)


def position_sums(x: Tensor, maps: str) -> Tensor:
    """Sum over the positions (n, d), float32 or float64."""
    wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
    axes = () if maps == "element" else _positions(x, maps)
    return wide.sum(axes) if axes else wide.flatten(1)


def shares(x: Tensor, maps: str, mask: Tensor | None) -> Tensor | float:
    """What each position contributes to the mean of its row, broadcastable to `x`."""
    axes = () if maps == "element" else _positions(x, maps)
    if not axes or mask is None:
        return x.shape[0] * features_of(x, maps) / max(x.numel(), 1)
    share = mask.to(torch.promote_types(x.dtype, torch.float32))
    share = share / share.flatten(1).sum(1).clamp_min(1e-30).view(-1, *[1] * (share.ndim - 1))
    return share.unsqueeze(1 if maps == "channel" else -1)
