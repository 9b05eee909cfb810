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
from residmix.nn.moments import Array, inverse_root, namespace, symmetric_eigen

__all__ = ["remove"]


class _Projected(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, removed: Tensor, left: Tensor, change: Tensor, share: Tensor | None, mask: Tensor | None,
        maps: str,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(left, change, share, mask)
        ctx.maps = maps
        return (x - removed).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad = grads[0]
        left, change, share, mask = ctx.saved_tensors
        rows = mapping.position_sums(grad, ctx.maps)
        lost = left @ (change.T @ rows)
        if share is not None:
            lost = lost + share[:, None] * rows.sum(0)
        lost = mapping.broadcast(lost.to(torch.promote_types(grad.dtype, torch.float32)), grad, ctx.maps)
        return ((grad - lost * mapping.shares(grad, ctx.maps, mask)).to(grad.dtype), *[None] * 6)


def remove(
    x: Tensor, removed: Tensor, change: Array, remainder: Array, scatter: Array, variance: Array, weight: Array,
    ready: Array, mask: Tensor | None, maps: str, *, centre: bool,
) -> Tensor:  # fmt: skip
    """Return ``x - removed`` with the projected gradient.

    Parameters
    ----------
    removed : Tensor, broadcastable to x
    change : array, shape (n, k)
        What multiplies the coefficients in the forward pass: m - mean.
    remainder : array, shape (n, k)
        m~.
    scatter : array, shape (k, k)
        tau S, added to the scatter of the batch's own m~.
    variance : array, shape (k,)
        Of the columns of m, the scale against which m~ counts as zero.
    weight : array, shape (n,)
        Weights of the rows in the moments.
    ready : array, shape ()
        0 where no coefficients are in use yet: nothing along the metadata is lost.
    centre : bool
        Whether the features' mean was subtracted too.
    """
    weighted, total = weight[:, None] * remainder, weight.sum()
    scale = inverse_root(variance, variance > 0)
    values, vectors = symmetric_eigen(scale[:, None] * (scatter + remainder.T @ weighted) * scale)
    kept = values > 1e-10 * total
    inverse = ready * kept / namespace(values).where(kept, values, 1.0)
    vectors = scale[:, None] * vectors
    left = torch.as_tensor(weighted @ ((vectors * inverse) @ vectors.T))
    share = torch.as_tensor(weight / (total + (total == 0))) if centre else None
    out: Tensor = _Projected.apply(x, removed, left, torch.as_tensor(change), share, mask, maps)
    return out
