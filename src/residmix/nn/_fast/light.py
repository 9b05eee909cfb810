"""Training steps of small batches on the CPU: arrays in, compiled loops, arrays out."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from residmix.nn import _torch
from residmix.nn._fast.gradient import subtract
from residmix.nn._fast.loops import Memory, compiled
from residmix.nn.layer import maps as mapping
from residmix.nn.layer.batch import check_width, columns, not_finite, row_weights, true_where_counted
from residmix.nn.layer.gradient import minus
from residmix.nn.layer.recall import CORNER, may_return

if TYPE_CHECKING:
    from residmix.nn.layer.residualize import Residualize

__all__ = ["is_light", "light_step"]

# Multiplications in the largest product up to which a step is taken in compiled loops, on one core.
_LIGHT = 2**26


def is_light(layer: Residualize, x: Tensor, *columns: Tensor | None) -> bool:
    """Whether a training step can be taken in compiled loops, and is small enough to be quicker there."""
    q = layer.num_protected + layer.num_metadata
    return (
        layer.estimator == "prior"
        and layer.space == "sample"
        and layer.missing == "error"
        and len(x) * q * (q + layer.num_features) <= _LIGHT
        and x.is_cpu
        and layer.weight.is_cpu
        and all(values is None or values.ndim <= 2 for values in columns)
        and not layer.distributed
        and not torch.compiler.is_compiling()
        and compiled(x.dtype == torch.float64) is not None
    )


def light_step(
    layer: Residualize, x: Tensor, metadata: Tensor | None, protected: Tensor | None, sample_weight: Tensor | None,
    mask: Tensor | None, inplace: bool,
) -> Tensor:  # fmt: skip
    """One training step of the prior's coefficients: what `Residualize.read` and its training step do."""
    check_width(x, layer.maps, layer.num_features)
    p, n = layer.num_protected, len(x)
    design = np.empty((n, p + layer.num_metadata))
    design[:, p:] = columns(metadata, layer.num_metadata, x, layer.maps, "metadata").numpy()
    design[:, :p] = columns(protected, p, x, layer.maps, "protected").numpy()
    if not math.isfinite(design.sum()):
        raise not_finite(design, p)
    mask = mask if mask is None else true_where_counted(mask, x, layer.maps)
    features = np.ascontiguousarray(mapping.pooled(x.detach(), layer.maps, mask).numpy())
    weight = count = np.ones(n)
    if sample_weight is not None or mask is not None:
        weight = np.ascontiguousarray(row_weights(x, sample_weight, mask).numpy())
        count = (weight > 0).astype(np.float64)
        if not weight.all():
            # As in `Batch.features`.
            features = np.where(weight[:, None] > 0, features, 0)
    buffers, latest = _torch.buffers(layer), layer.latest
    memory, again = Memory(*(buffers[name].numpy() for name in Memory._fields)), latest.again
    if again or may_return():
        mark = np.concatenate([features[:CORNER, :CORNER].ravel(), design[:CORNER].ravel()])
        if again:
            kept = latest.find(mark)
            assert isinstance(kept, Memory)
            memory = kept
        else:
            latest.keep(mark, Memory(*(values.copy() for values in memory)))
    rows = np.empty(features.shape, features.dtype)
    loss = compiled(features.dtype == np.float64).step(
        memory, design, features, weight, count, p, float(layer.horizon or 0), float(layer.warmup),
        float(layer.ridge), float(layer.rtol), float(layer.shrink), layer.center != "none", layer.center == "features",
        layer.grad == "project", not again, rows,
    )  # fmt: skip
    removed = mapping.broadcast(torch.from_numpy(rows), x, layer.maps)
    if layer.grad != "project":
        return minus(x, removed, inplace)
    return subtract(x, removed, loss, mask, layer.maps, inplace=inplace)
