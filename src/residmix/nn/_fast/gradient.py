"""`residmix.nn.layer.gradient.subtract` as one operation of autograd, which copies no map."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from residmix.nn._fast.loops import compiled
from residmix.nn.layer import maps as mapping
from residmix.nn.layer.gradient import Loss, minus

__all__ = ["subtract"]


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
            own = rows.contiguous().numpy()
            gone = torch.from_numpy(compiled(own.dtype == np.float64).lost(*loss, own, factor))
        else:
            left, change, level, kept = map(torch.as_tensor, loss)
            gone = left @ (change.T @ rows.double()) * kept
            if len(level):
                gone = gone + level[:, None] * rows.double().sum(0)
            gone = gone * factor
        gone = mapping.broadcast(gone.to(grad.dtype), grad, ctx.maps)
        gone = gone.expand_as(grad) if isinstance(share, float) else gone * share
        return grad, gone, None, None, None, None, None


def subtract(x: Tensor, removed: Tensor, loss: Loss, mask: Tensor | None, maps: str, *, inplace: bool) -> Tensor:
    """``x - removed``, whose gradient loses `loss`."""
    # Dynamo refuses the same tensor twice.
    same = x.view_as(x) if torch.compiler.is_compiling() else x
    out: Tensor = _Projected.apply(x, same, removed, loss, mask, maps, inplace)
    return out
