"""One batch as rows: checked, detached, float64, one row per sample or per token."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from residmix.nn.layer import maps as mapping

__all__ = ["Batch", "assemble", "check_width", "columns", "not_finite", "row_weights", "true_where_counted"]


@dataclass(frozen=True)
class Batch:
    """Rows of a batch.

    Attributes
    ----------
    x : Tensor
        What is to be corrected; tokens as rows when the metadata differ between tokens.
    maps : str
    design : Tensor, shape (n, p + k)
        Protected columns (none where nothing is fitted), then metadata.
    num_protected : int
    weight : Tensor, shape (n,)
        In the moments.
    count : Tensor, shape (n,)
        What each row adds to the age, in samples.
    mask : Tensor or None
        Positions that count in the mean over positions, boolean.
    whole : bool
        Whether every row has weight.
    absent : Tensor of bool (n, k), or None
        Metadata that were NaN.
    """

    x: Tensor
    maps: str
    design: Tensor
    num_protected: int
    weight: Tensor
    count: Tensor
    mask: Tensor | None
    whole: bool
    absent: Tensor | None = None

    @property
    def metadata(self) -> Tensor:
        """(n, k)."""
        return self.design[:, self.num_protected :]

    @property
    def protected(self) -> Tensor:
        """(n, p)."""
        return self.design[:, : self.num_protected]

    def features(self) -> Tensor:
        """Features of each row, float64 (n, d); 0 where they have no weight, which NaN times 0 is not."""
        rows = mapping.pooled(self.x, self.maps, self.mask).double()
        return rows if self.whole else torch.where(self.weight[:, None] > 0, rows, 0.0)

    def metadata_or(self, mean: Tensor) -> Tensor:
        """The metadata (n, k), with `mean` where they were NaN: that of the fit in use, so nothing is corrected."""
        return self.metadata if self.absent is None else torch.where(self.absent, mean, self.metadata)

    def filled(self, mean: Tensor) -> Batch:
        """NaN metadata replaced by their `mean` (k,) (no correction), such rows without weight."""
        absent = self.metadata.isnan()
        whole = ~absent.any(1)
        return replace(
            self,
            design=torch.cat([self.protected, torch.where(absent, mean, self.metadata)], 1),
            weight=self.weight * whole,
            count=self.count * whole,
            absent=absent,
        )


def check_width(x: Tensor, maps: str, num_features: int) -> None:
    """Raise if `x` isn't floating point, or has another number of features."""
    if not x.is_floating_point():
        raise TypeError(f"x must have a floating-point dtype; got {x.dtype}")
    if x.ndim < 2:
        raise ValueError(f"x must have at least two axes, samples and features; got shape {tuple(x.shape)}")
    found = mapping.features_of(x, maps)
    if found != num_features:
        raise ValueError(
            f"x of shape {tuple(x.shape)} has {found} features with maps={maps!r}; "
            f"the layer was built for {num_features}"
        )


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


def columns(values: Tensor | None, width: int, x: Tensor, maps: str, name: str) -> Tensor:
    """`values` as float64 columns (n, width), or (n, ..., width) of tokens; checked."""
    if width == 0:
        return x.new_zeros(x.shape[0], 0, dtype=torch.float64)
    if values is None:
        raise ValueError(f"{name} must be passed to forward, one row of {width} column(s) per sample; got None")
    if not isinstance(values, Tensor):
        raise TypeError(f"{name} must be a tensor, as torch.as_tensor makes one; got {type(values).__name__}")
    values = values.detach().to(device=x.device, dtype=torch.float64)
    if values.ndim == 1:
        values = values.unsqueeze(1)
    per_token = maps == "token" and values.ndim == x.ndim > 2 and values.shape[:-1] == x.shape[:-1]
    if values.shape[-1] != width or not (per_token or (values.ndim == 2 and values.shape[0] == x.shape[0])):
        expected = f"({x.shape[0]}, {width})"
        raise ValueError(
            f"{name} must have shape {expected} for x of shape {tuple(x.shape)}; got {tuple(values.shape)}"
        )
    return values


def true_where_counted(mask: Tensor, x: Tensor, maps: str) -> Tensor:
    """`mask`, checked, as truth values."""
    expected = mapping.mask_shape(x, maps)
    if mask.shape != expected:
        raise ValueError(f"mask must have shape {expected} for maps={maps!r}; got {tuple(mask.shape)}")
    if mask.dtype == torch.bool:
        return mask
    if not torch.compiler.is_compiling() and not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError("mask must be boolean (or 0 and 1), true where a position counts; it has other values")
    return mask != 0


def row_weights(x: Tensor, sample_weight: Tensor | None, mask: Tensor | None) -> Tensor:
    """Weights of the samples, float64 (n,); 0 for one of which no position counts in the boolean `mask`."""
    weight = torch.ones(x.shape[0], dtype=torch.float64, device=x.device)
    if sample_weight is not None:
        if sample_weight.shape != weight.shape:
            raise ValueError(f"sample_weight must have shape ({x.shape[0]},); got {tuple(sample_weight.shape)}")
        weight = sample_weight.detach().to(weight)
        if len(x) and not torch.compiler.is_compiling():
            # Arrays of numpy where that is free: a small step pays for each call of torch.
            values = weight.numpy() if weight.is_cpu else weight
            if not (values.min() >= 0 and math.isfinite(values.sum())):
                raise ValueError("sample_weight must be finite and not negative; use 0 to leave a row out")
    if mask is not None:
        weight = weight * mask.unsqueeze(-1).flatten(1).any(1)
    return weight


def assemble(
    x: Tensor,
    metadata: Tensor | None,
    protected: Tensor | None,
    sample_weight: Tensor | None,
    mask: Tensor | None,
    *,
    maps: str,
    widths: tuple[int, int],
    flatten: bool,
) -> Batch:
    """Check the arguments of a forward pass and put them into rows.

    Parameters
    ----------
    widths : (int, int)
        Columns of metadata and of protected.
    flatten : bool
        Take every token as a row even if its metadata are the sample's.
    """
    meta = columns(metadata, widths[0], x, maps, "metadata")
    kept = columns(protected, widths[1], x, maps, "protected")
    mask = mask if mask is None else true_where_counted(mask, x, maps)
    weight, whole = row_weights(x, sample_weight, mask), sample_weight is None and mask is None
    if maps != "token" or x.ndim == 2 or not (flatten or meta.ndim > 2 or kept.ndim > 2):
        design = torch.cat([kept, meta], 1)
        count = weight if whole else (weight > 0).double()
        return Batch(x, maps, design, widths[1], weight, count, mask, whole)
    # A sample counts as one, however many tokens it has: its tokens share its weight and its age.
    share = torch.ones(x.shape[:-1], dtype=torch.float64, device=x.device) if mask is None else mask.double()
    share = share / share.flatten(1).sum(1).clamp_min(1e-300).view(-1, *[1] * (x.ndim - 2))
    weight = mapping.flatten_tokens(weight.unsqueeze(1), x).squeeze(1) * share.flatten()
    count = torch.where(weight > 0, share.flatten(), 0.0)
    rows = x.reshape(-1, x.shape[-1])
    design = torch.cat([mapping.flatten_tokens(kept, x), mapping.flatten_tokens(meta, x)], 1)
    return Batch(rows, "element", design, widths[1], weight, count, None, whole)
