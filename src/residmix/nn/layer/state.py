"""State of a residualizing layer: float64 moment buffers, and the coefficients solved from them."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from math import floor, prod
from numbers import Integral
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from residmix.errors import LeakageWarning, warn
from residmix.nn.layer.batch import Batch
from residmix.nn.layer.carried import drop_carried, restore_carried
from residmix.nn.layer.erase import eraser_factors
from residmix.nn.layer.moments import (
    Moments,
    Solution,
    ageing,
    batch_moments,
    empty_moments,
    merge,
    shrunk,
    solve,
    summed,
)

__all__ = ["Fit", "MomentState"]

# Features up to which their own covariance is kept for a while, and dimensions for each that is erased.
_MOST, _DIMENSIONS = 2048, 20
_MOMENTS = ("weight", "square", "mean", "scatter", "spread")
_SOLUTION = ("coef", "slope", "remainder", "spectrum", "kept")


@dataclass(frozen=True)
class Fit:
    """What a batch is corrected with.

    Attributes
    ----------
    moments : Moments
    solution : Solution
    ready : array, shape ()
        1 once there were rows enough, 0 before.
    erasure : tuple of Tensor, or None
        `left` and `right`, where features are erased.
    """

    moments: Moments
    solution: Solution
    ready: Tensor
    erasure: tuple[Tensor, Tensor] | None


class MomentState(nn.Module):
    """Buffers, forgetting, merging and solving; `Residualize` adds what a forward pass does.

    Parameters
    ----------
    num_features, num_metadata, num_protected : int
    full : bool
        Keep the features' own d x d scatter, which an affine eraser needs.
    horizon, warmup, ridge, rtol, shrink, sync, process_group
        As in `Residualize`.
    """

    weight: Tensor
    square: Tensor
    mean: Tensor
    scatter: Tensor
    spread: Tensor
    spectrum: Tensor
    kept: Tensor
    ready: Tensor
    drift: Tensor
    left: Tensor
    right: Tensor

    def __init__(
        self,
        num_features: int | tuple[int, ...],
        num_metadata: int,
        num_protected: int,
        *,
        full: bool,
        horizon: float | None,
        warmup: int | None,
        ridge: float,
        rtol: float,
        shrink: float,
        sync: bool,
        process_group: dist.ProcessGroup | None,
    ) -> None:
        super().__init__()
        if horizon is not None and horizon <= 1:
            raise ValueError(f"horizon must be a number of samples above 1, or None; got {horizon}")
        widths = num_features if isinstance(num_features, Iterable) else (num_features,)
        for number in (*widths, num_metadata, num_protected):
            if not isinstance(number, Integral):
                raise TypeError(f"num_features, num_metadata and num_protected must be whole numbers; got {number!r}")
        d, num_metadata, num_protected = int(prod(widths)), int(num_metadata), int(num_protected)
        for name, number, least in (("num_features", d, 1), ("num_metadata", num_metadata, 1)):
            if number < least:
                raise ValueError(f"{name} must be at least {least}; got {number}")
        if num_protected < 0 or ridge < 0 or shrink < 0:
            raise ValueError(
                f"num_protected, ridge and shrink must not be negative; got {num_protected}, {ridge} and {shrink}"
            )
        self.num_features, self.num_metadata, self.num_protected = d, num_metadata, num_protected
        self.horizon, self.ridge, self.rtol, self.shrink = horizon, ridge, rtol, shrink
        self.sync, self.process_group = sync, process_group
        k, p = num_metadata, num_protected
        self.warmup = 10 * (p + k + 1) if warmup is None else warmup
        self.full = full
        moments = empty_moments(p + k, d, full)
        shapes: dict[str, tuple[int, ...]] = {name: getattr(moments, name).shape for name in _MOMENTS}
        shapes |= {"coef": (k, d), "slope": (p, k), "remainder": (k, k), "spectrum": (k,)}
        # `ready` is 1 once the coefficients are those of enough rows.
        shapes |= {"ready": (), "drift": ()}
        for name, shape in shapes.items():
            # torch.compile takes a float64 buffer without axes for a number of Python's and loses what is written.
            self.register_buffer(name, torch.zeros(shape or (1,), dtype=torch.float64))
        # In `get_extra_state`, since files made before it existed have to load.
        self.register_buffer("kept", torch.ones(d, dtype=torch.float64), persistent=False)
        for name in ("left", "right"):
            self.register_buffer(name, torch.zeros(d, k, dtype=torch.float64), persistent=full)
        self.frozen = False
        # Whether what is within chance is erased in feature space, see `settle`; moments that are gathered for it.
        self.erases = False
        self._gathered: Moments | None = None
        # Whether a use before the first fit is spoken of, which `finalize` has good reason for.
        self.speaks = True

    @property
    def moments(self) -> Moments:
        """The stored moments; the design columns are the protected ones, then the metadata."""
        return Moments(self.weight[0], self.square[0], self.mean, self.scatter, self.spread)

    def _store(self, moments: Moments) -> None:
        for name in _MOMENTS:
            getattr(self, name).copy_(getattr(moments, name))

    def _solution(self) -> Solution:
        return Solution(*(getattr(self, name) for name in _SOLUTION))

    def _snapshot(self) -> Fit:
        """Copies of the moments and of what was solved from them; a step overwrites the buffers."""
        moments, solution = self.moments, self._solution()
        erasure = (self.left.clone(), self.right.clone()) if self.full else None
        return Fit(
            Moments(*(getattr(moments, name).clone() for name in _MOMENTS)),
            Solution(*(getattr(solution, name).clone() for name in _SOLUTION)),
            self.ready[0].clone(),
            erasure,
        )

    def refresh(self) -> None:
        """Solve for the coefficients from the stored moments, even with few rows."""
        self._solve_from(self.moments, torch.ones_like(self.ready[0], dtype=torch.bool), 0.0)

    @torch.no_grad()
    def _solve_from(self, moments: Moments, enough: Tensor, limit: float) -> None:
        """Put the solution, shrunk unless `limit` is 0, into the buffers if there were rows `enough`."""
        solution = solve(moments, self.num_protected, ridge=self.ridge, rtol=self.rtol)
        if limit:
            solution = shrunk(solution, moments, self.num_protected, limit, self.rtol)
        new = {name: getattr(solution, name) for name in _SOLUTION}
        if self.full:
            new["left"], new["right"] = eraser_factors(moments, self.num_protected, rtol=self.rtol)
        elif self.erases:
            self._erase_no_more()
        for name, value in new.items():
            buffer = getattr(self, name)
            # No question to the device: it would have to finish first.
            buffer.copy_(torch.where(enough, value, buffer))
        self.ready.copy_(self.ready.logical_or(enough))

    def _erase_no_more(self) -> None:
        self.erases = False
        self.left.zero_()
        self.right.zero_()

    def gather(self) -> None:
        """From now on also keep the moments that `settle` needs, unless they are too large."""
        if not self.full and self.num_features <= _MOST:
            self._gathered = empty_moments(self.num_protected + self.num_metadata, self.num_features, True)
            self._gathered = self._gathered.to(self.weight.device)

    @torch.no_grad()
    def settle(self) -> None:
        r"""Solve for the coefficients; for features with slopes within chance, erase instead of subtracting.

        Subtracting slopes estimated from n rows adds their errors, times the metadata, to new rows: a probe then has an
        R2 of about :math:`d / n` on d features without any association. So for features whose slopes aren't significant
        (see `residmix.nn.layer.moments.shrunk`), the covariance with the metadata is removed by an affine map of these
        features, `residmix.nn.layer.erase`. The partial covariance is then 0 up to rounding as well, and no metadata
        are added. This costs k of their dimensions, so it is done only for 20 k features or more.
        """
        moments, self._gathered = self._gathered, None
        if self.distributed:
            self.synchronize()
            if moments is not None:
                moments, _ = summed(moments, moments.weight, self.process_group)
        else:
            self.refresh()
        if moments is None or not self.shrink:
            return
        solution = shrunk(self._solution(), self.moments, self.num_protected, self.shrink, self.rtol)
        chance = ((solution.kept == 0) & moments.varying).nonzero().squeeze(1)
        if len(chance) < _DIMENSIONS * self.num_metadata:
            return
        q = self.num_protected + self.num_metadata
        columns = torch.cat([torch.arange(q, device=chance.device), q + chance])
        own = replace(
            moments,
            mean=moments.mean[columns],
            scatter=moments.scatter[:, columns],
            spread=moments.spread[chance][:, chance],
        )
        self.left[chance], self.right[chance] = eraser_factors(own, self.num_protected, rtol=self.rtol)
        self.kept[chance] = 0.0
        self.erases = True

    def reset(self) -> None:
        """Discard all moments, as after construction."""
        self.erases, self._gathered = False, None
        drop_carried(self)
        with torch.no_grad():
            for buffer in self.buffers(recurse=False):
                buffer.zero_()
            self.kept.fill_(1.0)

    def _warn_if_unfitted(self) -> None:
        if torch.compiler.is_compiling():
            return
        # One question to the device; after a fit, none any more.
        self.speaks = False
        # Learned coefficients need no warm-up.
        if bool(self.ready) or (hasattr(self, "standard_coef") and bool(self.weight)):
            return
        rows = float(self.moments.effective_rows)
        # Forgotten in part, 20 rows are 19.99.
        few = f"only {floor(10 * rows) / 10:g} effective rows yet, of {self.warmup} that its coefficients need"
        seen = few if rows else "no rows yet"
        warn(
            f"a Residualize layer has seen {seen}, so it removes nothing. Train it, call finalize, or load a "
            "checkpoint with its buffers",
            LeakageWarning,
        )

    def freeze(self, frozen: bool = True) -> None:
        """Stop (or resume) updating in training."""
        self.frozen = frozen

    def merge(self, other: MomentState) -> MomentState:
        """Add the moments of `other` (another site, shard or process) and solve again; returns self."""
        if (
            other.scatter.shape != self.scatter.shape
            or other.num_protected != self.num_protected
            or other.full != self.full
        ):
            raise ValueError(f"cannot merge {other!r} into {self!r}; columns, features and space must be the same")
        self._store(merge(self.moments, other.moments.to(self.weight.device)))
        self.refresh()
        return self

    def synchronize(self) -> None:
        """Sum the stored moments of all processes (after `accumulate` on shards) and solve again."""
        together, _ = summed(self.moments, self.weight[0], self.process_group)
        self._store(together)
        self.refresh()

    @property
    def distributed(self) -> bool:
        """Whether batches are added up over processes."""
        return (
            self.sync and dist.is_available() and dist.is_initialized() and dist.get_world_size(self.process_group) > 1
        )

    def _add(self, batch: Batch) -> None:
        full = self.full or self._gathered is not None
        new = batch_moments(batch.design, batch.features(), batch.weight, full=full)
        if self._gathered is not None:
            self._gathered = merge(self._gathered, new)
            new = replace(new, spread=new.spread.diagonal())
        self._store(merge(self.moments, new))

    def _observed(self, batch: Batch, old: Moments, *, differentiable: bool, level: bool) -> tuple[Moments, Moments]:
        """Moments of the batch (of all processes), and the `old` ones after forgetting (`level`: none in the batch)."""
        world = dist.get_world_size(self.process_group) if self.distributed else 1
        rank = dist.get_rank(self.process_group) if self.distributed else 0
        weight, rows, rate = batch.weight, batch.count.sum(), None
        if self.horizon is not None:
            factor, rate = ageing(batch.count, rows, self.horizon, world, rank)
            weight = weight if level else weight * factor
        with nullcontext() if differentiable else torch.no_grad():
            new = batch_moments(batch.design, batch.features(), weight, full=self.full)
        if world > 1:
            if differentiable:
                raise ValueError("grad='through' doesn't work across processes; use grad='project' or sync=False")
            new, rows = summed(new, rows, self.process_group)
            if rate is not None and not level:
                new = new.scaled(torch.exp(rate * (rows - 1)))
        if self.horizon is None or rate is None:
            return new, old
        # Forgetting keeps the total below the horizon; what `finalize` or `merge` left must be no harder to forget.
        most = old.weight.clamp_min(self.horizon)
        return new, old.scaled(self.horizon / most * torch.exp(rate * rows))

    def get_extra_state(self) -> Tensor:
        head = torch.tensor([2.0, float(self.frozen)], dtype=torch.float64)
        erasure = [self.left.cpu().flatten(), self.right.cpu().flatten()] if self.erases else []
        return torch.cat([head, self.kept.cpu(), *erasure])

    def set_extra_state(self, state: Tensor) -> None:
        # Version 1 has nothing after the first two numbers: all slopes are whole.
        self.freeze(bool(state[1]))
        rest = state[2:].to(self.kept)
        d = self.num_features
        self.kept.copy_(rest[:d] if len(rest) else torch.ones_like(self.kept))
        self.erases = len(rest) > d
        if self.erases:
            left, right = rest[d:].view(2, *self.left.shape)
            self.left.copy_(left)
            self.right.copy_(right)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        restore_carried(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        # .half(), .to(dtype) and the like move the buffers but may not take their digits.
        exact = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)
        for name, buffer in exact.items():
            moved = self.get_buffer(name)
            # From "meta" there is nothing to take along.
            setattr(self, name, moved.double() if buffer.is_meta else buffer.to(moved.device))
        return self

    def coefficients(self) -> Tensor:
        """B_m by least squares, float64 (k, d), in units of x per unit of metadata."""
        return self._solution().coef.clone()

    def diagnostics(self) -> dict[str, Any]:
        """Effective rows, rank and condition of the metadata given the protected columns, and what is removed.

        Returns
        -------
        dict
            ``effective_rows``, ``ready`` (warm-up over), ``rank``, ``condition_number``, ``removed`` (d,): share of
            each feature's variance that is removed; ``noise``: k / effective rows, the share of a feature's residual
            variance that errors in the coefficients add; ``drift``: relative change of the coefficients in the last
            `finalize`; ``frozen``.
        """
        moments, p = self.moments, self.num_protected
        coef = self.coefficients() * self.kept
        total = moments.spread.diagonal() if self.full else moments.spread
        taken = torch.einsum("kd,kl,ld->d", coef, moments.design_scatter[p:, p:], coef)
        rows = float(moments.effective_rows)
        kept = self.spectrum[self.spectrum > 0]
        return {
            "effective_rows": rows,
            "ready": bool(self.ready),
            "rank": len(kept),
            "condition_number": float(kept[-1] / kept[0]) if len(kept) else 1.0,
            "removed": torch.where(total > 0, taken / total.clamp_min(1e-300), 0.0),
            "noise": self.num_metadata / rows if rows else float("inf"),
            "drift": float(self.drift),
            "frozen": self.frozen,
        }
