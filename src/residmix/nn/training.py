"""Fit the members of an ensemble side by side, each with its own held-out rows and its own best epoch."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from residmix.nn.distribution import MixtureOfGaussians
from residmix.nn.network import MixtureDensityNetwork
from residmix.threads import n_threads

__all__ = ["History", "Sample", "Schedule", "hold_out", "rng_scope", "train"]


@dataclass(frozen=True)
class Sample:
    """Standardised rows on the training device.

    Attributes
    ----------
    X : Tensor (n, d)
        Or (members, n, d), where every member has its own.
    y : Tensor (n, D)
        NaN where a target is missing.
    weight : Tensor (n,)
    metadata : Tensor (n, q) or None
    protected : Tensor (n, p) or None
    cell : Tensor (D,) or None
        Grid step of the targets, for the interval-censored likelihood.
    """

    X: Tensor
    y: Tensor
    weight: Tensor
    metadata: Tensor | None = None
    protected: Tensor | None = None
    cell: Tensor | None = None

    def inputs(self, rows: Tensor) -> tuple[Tensor, ...]:
        """What the network is called with, for `rows` (members, b)."""
        if self.X.dim() == 3:
            return (self.X.gather(1, rows.unsqueeze(-1).expand(-1, -1, self.X.shape[-1])),)
        if self.metadata is None:
            return (self.X[rows],)
        assert self.protected is not None
        return self.X[rows], self.metadata[rows], self.protected[rows]

    def loss(self, density: MixtureOfGaussians, y: Tensor) -> Tensor:
        """Negative log-likelihood per row."""
        return -(density.log_prob(y) if self.cell is None else density.log_cell_prob(y, self.cell))


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train; every quantity is per member. `report_every` counts epochs, 0 is silence."""

    max_epochs: int = 400
    patience: int = 40
    batch_size: int = 128
    learning_rate: float = 1e-2
    weight_decay: float = 0.1
    clip_norm: float = 5.0
    report_every: int = 0


@dataclass
class History:
    """What happened: held-out loss per epoch and member, and where each member was best."""

    validation: list[list[float]] = field(default_factory=list)
    best_epoch: list[int] = field(default_factory=list)
    best_loss: list[float] = field(default_factory=list)
    n_epochs: int = 0


def hold_out(n: int, members: int, fraction: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Choose the held-out rows of every member, (members, n): disjoint between members as long as rows last.

    Examples
    --------
    >>> hold_out(10, 5, 0.2, np.random.default_rng(0)).sum(0)  # every row is held out once
    array([1, 1, 1, 1, 1, 1, 1, 1, 1, 1])
    """
    held = min(max(1, round(fraction * n)), n - 1)
    out = np.zeros((members, n), bool)
    queue = np.empty(0, int)
    for own in out:
        if len(queue) < held:
            queue = np.concatenate([queue, rng.permutation(np.setdiff1d(np.arange(n), queue))])
        own[queue[:held]] = True
        queue = queue[held:]
    return out


@contextmanager
def rng_scope(seed: int, device: torch.device, threads: int | None = None) -> Iterator[None]:
    """Seed torch inside the block only, with `threads` threads; the caller's generator and threads come back."""
    before = torch.get_num_threads()
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        try:
            torch.set_num_threads(max(1, min(threads or before, n_threads())))
            yield
        finally:
            torch.set_num_threads(before)


def _decay_groups(network: MixtureDensityNetwork, weight_decay: float) -> list[dict[str, object]]:
    """Weight decay for matrices only: biases hold the mixture that training starts from."""
    named = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    return [
        {"params": [p for name, p in named if not name.endswith("bias")], "weight_decay": weight_decay},
        {"params": [p for name, p in named if name.endswith("bias")], "weight_decay": 0.0},
    ]


def _clip_by_member(parameters: Sequence[Tensor], limit: float) -> None:
    """Scale each member's gradient to norm <= `limit`; a member with a non-finite gradient sits the step out."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    square = torch.stack([g.flatten(1).square().sum(1) for g in gradients]).sum(0)
    factor = (limit / (square.sqrt() + 1e-12)).clamp(max=1.0)
    sound = torch.isfinite(square)
    for g in gradients:
        g.mul_(factor.reshape(-1, *(1,) * (g.dim() - 1)))
    if not bool(sound.all()):
        for g in gradients:
            g[~sound] = 0.0


def train(network: MixtureDensityNetwork, sample: Sample, held_out: NDArray[np.bool_], schedule: Schedule) -> History:
    """Minimise the negative log-likelihood of every member on its own rows; leave each at its best held-out epoch.

    Parameters
    ----------
    network : MixtureDensityNetwork
        Stacked: every parameter has the members as its first dimension.
    held_out : ndarray (members, n) of bool
        Rows that a member is judged on and never trained on.
    """
    members, n = held_out.shape
    device = sample.X.device
    mask = torch.as_tensor(held_out, device=device)
    n_train = int((~mask).sum(1).min())
    n_batches = max(1, round(n_train / schedule.batch_size))
    edges = [round(i * n_train / n_batches) for i in range(n_batches + 1)]
    weight = sample.weight / sample.weight.mean()
    judge = _Judge(sample, mask, weight)
    parameters = list(network.parameters())
    optimiser = torch.optim.AdamW(
        _decay_groups(network, schedule.weight_decay), lr=schedule.learning_rate, fused=device.type != "mps"
    )
    total = schedule.max_epochs * n_batches
    warm = max(1, total // 20)
    best = [p.detach().clone() for p in parameters]
    history = History(best_epoch=[0] * members)
    lowest = judge(network)
    step = 0
    for epoch in range(1, schedule.max_epochs + 1):
        network.train()
        keys = torch.rand(members, n, device=device).masked_fill_(mask, 2.0)
        order = keys.argsort(dim=1)[:, :n_train]
        for start, stop in itertools.pairwise(edges):
            rows = order[:, start:stop]
            rate = min((step + 1) / warm, 0.5 * (1 + math.cos(math.pi * step / total)))
            for group in optimiser.param_groups:
                group["lr"] = schedule.learning_rate * rate
            density = network(*sample.inputs(rows))
            w = weight[rows]
            loss = (w * sample.loss(density, sample.y[rows])).sum(1) / w.sum(1).clamp_min(1e-12)
            optimiser.zero_grad(set_to_none=True)
            loss.sum().backward()
            _clip_by_member(parameters, schedule.clip_norm)
            optimiser.step()
            step += 1
        loss_now = judge(network)
        better = loss_now < lowest
        lowest = torch.where(better, loss_now, lowest)
        with torch.no_grad():
            for kept, now in zip(best, parameters, strict=True):
                kept[better] = now[better]
        for m in better.nonzero().flatten().tolist():
            history.best_epoch[m] = epoch
        history.validation.append(loss_now.tolist())
        history.n_epochs = epoch
        if schedule.report_every and epoch % schedule.report_every == 0:
            print(f"epoch {epoch:4d}  held-out loss {float(loss_now.mean()):.4f}", file=sys.stderr)
        if epoch - max(history.best_epoch) >= schedule.patience:
            break
    with torch.no_grad():
        for p, kept in zip(parameters, best, strict=True):
            p.copy_(kept)
    network.eval()
    history.best_loss = lowest.tolist()
    return history


class _Judge:
    """Held-out loss of every member."""

    def __init__(self, sample: Sample, mask: Tensor, weight: Tensor) -> None:
        self.sample = sample
        count = int(mask.sum(1).max())
        # Members may hold out different numbers of rows: pad with rows of weight zero.
        rows = (~mask).float().argsort(dim=1, stable=True)[:, :count]
        self.inputs, self.y = sample.inputs(rows), sample.y[rows]
        self.weight = weight[rows] * mask.gather(1, rows)

    @torch.no_grad()
    def __call__(self, network: MixtureDensityNetwork) -> Tensor:
        network.eval()
        loss = self.sample.loss(network(*self.inputs), self.y)
        out = (self.weight * loss).sum(1) / self.weight.sum(1).clamp_min(1e-12)
        return torch.nan_to_num(out, nan=math.inf)
