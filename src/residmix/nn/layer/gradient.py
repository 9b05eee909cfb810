"""The gradient of a residual: subtract in the forward pass, project in the backward pass.

With coefficients fitted on the rows themselves, R = P F and the gradient is P'G: moving the features along the metadata
changes nothing, because the layer removes it, and the gradient reflects this. Coefficients from earlier rows are
constants to autograd, so the encoder would receive all of G, including a part along the metadata that the layer removes
anyway. The projected gradient

    G - m~ (m~'m~ + tau S)^{-1} (m - mean)'G

is that of a fit on the batch, computed from the batch's own rows and the stored scatter S of m~ per row (m~ is the
residual of m on the protected columns). The forward value isn't touched: a sample's output still depends on no other
sample. tau keeps a batch of one row from losing its whole gradient.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from residmix.nn.layer import maps as mapping
from residmix.nn.layer.moments import inverse_root, symmetric_eigen

__all__ = ["Loss", "minus", "projection", "subtract"]


class Loss(NamedTuple):
    """What the gradient G of a batch loses, ``left @ (change' G) * kept + share 1'G``; arrays or tensors.

    Attributes
    ----------
    left, change : (n, k)
    share : (n,)
        No elements unless the features are centred.
    kept : (d,)
        As in `residmix.nn.layer.moments.Solution`: where slopes are taken for chance, nothing is undone.
    """

    left: Any
    change: Any
    share: Any
    kept: Any


def minus(x: Tensor, removed: Tensor, inplace: bool) -> Tensor:
    """``x - removed`` in the precision of `x`, rounded once."""
    return x.sub_(removed) if inplace else (x - removed).to(x.dtype)


def subtract(x: Tensor, removed: Tensor, loss: Loss, mask: Tensor | None, maps: str) -> Tensor:
    """`minus`, whose gradient loses `loss`: the value of one expression, the gradient of another."""
    left, change, level, kept = map(torch.as_tensor, loss)
    rows = mapping.pooled(x, maps, mask).double()
    gone = change @ (left.T @ rows) * kept
    if len(level):
        gone = gone + level @ rows
    linear = x - mapping.broadcast(gone, x, maps)
    return minus(x, removed, inplace=False).detach() + (linear - linear.detach()).to(x.dtype)


def projection(
    change: Tensor,
    remainder: Tensor,
    scatter: Tensor,
    variance: Tensor,
    weight: Tensor,
    ready: Tensor,
    kept: Tensor,
    *,
    centre: bool,
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
    kept : Tensor, shape (d,)
    centre : bool
        Whether the features' mean was subtracted too.
    """
    weighted, total = weight[:, None] * remainder, weight.sum()
    scale = inverse_root(variance, variance > 0)
    values, vectors = symmetric_eigen(scale[:, None] * (scatter + remainder.T @ weighted) * scale)
    solid = values > 1e-10 * total
    inverse = ready * solid / torch.where(solid, values, 1.0)
    vectors = scale[:, None] * vectors
    left = weighted @ ((vectors * inverse) @ vectors.T)
    return Loss(left, change, weight / (total + (total == 0)) if centre else weight[:0], kept)
