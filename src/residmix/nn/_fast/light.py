"""Training steps of small batches on the CPU: arrays in, compiled loops, arrays out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from residmix.nn._fast.step import Memory, step
from residmix.nn.layer import maps as mapping
from residmix.nn.layer.batch import columns, row_weights, true_where_counted
from residmix.nn.layer.gradient import minus, subtract
from residmix.nn.layer.recall import CORNER, Recall, may_return
from residmix.nn.layer.state import Fit, MomentState

__all__ = ["LightState", "not_finite"]

# Multiplications in the largest product up to which a step is taken in compiled loops, on one core.
_LIGHT = 2**26


def not_finite(design: Any, num_protected: int) -> ValueError:
    """Error for a design (n, p + k) that isn't finite: protected columns, then metadata."""
    bad = ~np.isfinite(np.asarray(design))
    protected = not bad[:, num_protected:].any()
    part = bad[:, :num_protected] if protected else bad[:, num_protected:]
    what = "NaN" if np.isnan(np.asarray(design)).any() else "infinite"
    way = "leave them out" if protected else "fill them in, or use missing='mean' for NaN (no correction there)"
    return ValueError(
        f"{'protected columns' if protected else 'metadata'} are {what} in {int(part.any(1).sum())} row(s); {way}"
    )


class LightState(MomentState):
    """State of a layer that can take a whole training step without torch; the attributes are `Residualize`'s."""

    estimator: str
    space: str
    grad: str
    center: str
    maps: str
    missing: str
    _latest: Recall[Fit | Memory]

    def _check_width(self, x: Tensor) -> None:
        if not x.is_floating_point():
            raise TypeError(f"x must hold floating-point numbers, as residuals are; got {x.dtype}")
        if x.ndim < 2:
            raise ValueError(f"x must have an axis of samples and one of features; got shape {tuple(x.shape)}")
        if mapping.features_of(x, self.maps) != self.num_features:
            raise ValueError(
                f"x of shape {tuple(x.shape)} has {mapping.features_of(x, self.maps)} features with maps="
                f"{self.maps!r}; the layer was built for {self.num_features}"
            )

    def _light(self, x: Tensor, *columns: Tensor | None) -> bool:
        """Whether this training step is taken in compiled loops, see `residmix.nn._fast.step`."""
        q = self.num_protected + self.num_metadata
        return (
            self.estimator == "prior"
            and self.space == "sample"
            and self.missing == "error"
            and len(x) * q * (q + self.num_features) <= _LIGHT
            and x.is_cpu
            and self.weight.is_cpu
            and all(values is None or values.ndim <= 2 for values in columns)
            and not self.distributed
            and not torch.compiler.is_compiling()
        )

    def _light_step(
        self, x: Tensor, metadata: Tensor | None, protected: Tensor | None, sample_weight: Tensor | None,
        mask: Tensor | None, inplace: bool,
    ) -> Tensor:  # fmt: skip
        """`read` and `_training_step` of the prior's coefficients."""
        self._check_width(x)
        p, n = self.num_protected, len(x)
        design = np.empty((n, p + self.num_metadata))
        design[:, p:] = columns(metadata, self.num_metadata, x, self.maps, "metadata").numpy()
        design[:, :p] = columns(protected, p, x, self.maps, "protected").numpy()
        if not math.isfinite(design.sum()):
            raise not_finite(design, p)
        mask = mask if mask is None else true_where_counted(mask, x, self.maps)
        features = np.ascontiguousarray(mapping.pooled(x.detach(), self.maps, mask).numpy())
        weight = count = np.ones(n)
        if sample_weight is not None or mask is not None:
            weight = np.ascontiguousarray(row_weights(x, sample_weight, mask).numpy())
            count = (weight > 0).astype(np.float64)
            if not weight.all():
                # As in `Batch.features`.
                features = np.where(weight[:, None] > 0, features, 0)
        memory, again = self._memory(), self._latest.again
        if again or may_return():
            mark = np.concatenate([features[:CORNER, :CORNER].ravel(), design[:CORNER].ravel()])
            if again:
                kept = self._latest.find(mark)
                assert isinstance(kept, Memory)
                memory = kept
            else:
                self._latest.keep(mark, Memory(*(values.copy() for values in memory)))
        rows = np.empty(features.shape, features.dtype)
        loss = step(
            memory, design, features, weight, count, p, float(self.horizon or 0), float(self.warmup),
            float(self.ridge), float(self.rtol), self.center != "none", self.center == "features",
            self.grad == "project", not again, rows,
        )  # fmt: skip
        removed = mapping.broadcast(torch.from_numpy(rows), x, self.maps)
        if self.grad != "project":
            return minus(x, removed, inplace)
        return subtract(x, removed, loss, mask, self.maps, inplace=inplace)
