"""The gradient of a residual: subtract in the forward pass, project in the backward pass.

With coefficients fitted on the rows themselves, R = P F and the gradient is P'G: moving the features along the metadata
changes nothing, because the layer undoes it, and the encoder is told so. Coefficients from earlier rows are constants
to autograd, so the encoder receives G whole and keeps being pushed along the metadata, a push that the layer takes back
a moment later. The projected gradient

    G - m~ (m~'m~ + tau S)^{-1} (m - mean)'G

is what the fit would have sent back, computed from the batch's own rows and the stored scatter S of m~ per row
(m~ = what is left of m after the protected columns). The forward value isn't touched: a sample's output still depends
on no other sample. tau keeps a batch of one row from losing its whole gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from residmix.nn import maps as mapping

__all__ = ["remove"]


class _Projected(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, removed: Tensor, change: Tensor, remainder: Tensor, inverse: Tensor, weight: Tensor,
        mask: Tensor | None, maps: str, centre: bool,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(change, remainder, inverse, weight, mask)
        ctx.maps, ctx.centre = maps, centre
        return (x - removed).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad = grads[0]
        change, remainder, inverse, weight, mask = ctx.saved_tensors
        rows = mapping.position_sums(grad, ctx.maps)
        lost = (weight[:, None] * remainder) @ (inverse @ (change.T @ rows))
        if ctx.centre:
            lost = lost + weight[:, None] * (rows.sum(0) / weight.sum().clamp_min(1e-300))
        share = mapping.shares(grad, ctx.maps, mask)
        lost = mapping.broadcast(lost.to(torch.promote_types(grad.dtype, torch.float32)), grad, ctx.maps) * share
        return ((grad - lost).to(grad.dtype), *[None] * 8)


def remove(
    x: Tensor, removed: Tensor, change: Tensor, remainder: Tensor, scatter: Tensor, variance: Tensor, weight: Tensor,
    mask: Tensor | None, maps: str, *, centre: bool,
) -> Tensor:  # fmt: skip
    """Return ``x - removed`` with the projected gradient.

    Parameters
    ----------
    removed : Tensor, broadcastable to x
    change : Tensor, shape (n, k)
        What multiplies the coefficients in the forward pass: m - mean.
    remainder : Tensor, shape (n, k)
        m~.
    scatter : Tensor, shape (k, k)
        tau S, added to the scatter of the batch's own m~.
    variance : Tensor, shape (k,)
        Of the columns of m, the scale against which m~ counts as zero.
    weight : Tensor, shape (n,)
        Weights of the rows in the moments.
    centre : bool
        Whether the features' mean was subtracted too.
    """
    inner = remainder.T @ (weight[:, None] * remainder) + scatter
    scale = torch.where(variance > 0, variance.clamp_min(1e-300).rsqrt(), 0.0)
    values, vectors = torch.linalg.eigh(scale[:, None] * inner * scale)
    inverse = torch.where(values > 1e-10 * weight.sum(), 1.0 / values.clamp_min(1e-300), 0.0)
    inverse = scale[:, None] * ((vectors * inverse) @ vectors.T) * scale
    out: Tensor = _Projected.apply(x, removed, change, remainder, inverse, weight, mask, maps, centre)
    return out
