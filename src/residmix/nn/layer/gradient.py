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

import numpy as np
import torch
from torch import Tensor

from residmix.nn._fast.step import Loss, lost
from residmix.nn.layer import maps as mapping
from residmix.nn.layer.moments import inverse_root, symmetric_eigen

__all__ = ["minus", "projection", "subtract"]


class _Projected(torch.autograd.Function):
    """``x - removed``; `x` comes twice, since its gradient does.

    Autograd adds up the two parts, as of any tensor that is used twice: in place where nobody else holds the first. So
    the gradient of a large map is written where it lies, and what it loses is as large as the map only as a view.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, _: Tensor, removed: Tensor, loss: Loss, mask: Tensor | None, maps: str, inplace: bool
    ) -> Tensor:
        ctx.loss, ctx.mask, ctx.maps = loss, mask, maps
        if inplace:
            ctx.mark_dirty(x)
        return minus(x, removed, inplace)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad, loss = grads[0], ctx.loss
        rows = mapping.position_sums(grad, ctx.maps)
        share = mapping.shares(grad, ctx.maps, ctx.mask)
        factor = -share if isinstance(share, float) else -1.0
        if isinstance(loss.left, np.ndarray) and not torch.is_grad_enabled():
            gone = torch.from_numpy(lost(loss.left, loss.change, loss.share, rows.contiguous().numpy(), factor))
        else:
            left, change, level = map(torch.as_tensor, loss)
            gone = left @ (change.T @ rows.double())
            if len(level):
                gone = gone + level[:, None] * rows.double().sum(0)
            gone = gone * factor
        gone = mapping.broadcast(gone.to(grad.dtype), grad, ctx.maps)
        gone = gone.expand_as(grad) if isinstance(share, float) else gone * share
        return grad, gone, None, None, None, None, None


def minus(x: Tensor, removed: Tensor, inplace: bool) -> Tensor:
    """``x - removed`` in the precision of `x`, rounded once."""
    return x.sub_(removed) if inplace else (x - removed).to(x.dtype)


def subtract(x: Tensor, removed: Tensor, loss: Loss, mask: Tensor | None, maps: str, *, inplace: bool) -> Tensor:
    """`minus`, whose gradient loses `loss`."""
    # Dynamo refuses the same tensor twice.
    same = x.view_as(x) if torch.compiler.is_compiling() else x
    out: Tensor = _Projected.apply(x, same, removed, loss, mask, maps, inplace)
    return out


def projection(
    change: Tensor, remainder: Tensor, scatter: Tensor, variance: Tensor, weight: Tensor, ready: Tensor, *, centre: bool
) -> Loss:
    """What the projected gradient of a batch has lost.

    Parameters
    ----------
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
    ready : Tensor, shape ()
        0 where no coefficients are in use yet: nothing along the metadata is lost.
    centre : bool
        Whether the features' mean was subtracted too.
    """
    weighted, total = weight[:, None] * remainder, weight.sum()
    scale = inverse_root(variance, variance > 0)
    values, vectors = symmetric_eigen(scale[:, None] * (scatter + remainder.T @ weighted) * scale)
    kept = values > 1e-10 * total
    inverse = ready * kept / torch.where(kept, values, 1.0)
    vectors = scale[:, None] * vectors
    left = weighted @ ((vectors * inverse) @ vectors.T)
    return Loss(left, change, weight / (total + (total == 0)) if centre else weight[:0])
