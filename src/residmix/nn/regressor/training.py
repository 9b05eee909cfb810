"""Fit the members of an ensemble side by side, each with its own held-out rows and its own best epoch."""

from __future__ import annotations

import itertools
import math
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from residmix.nn.density.network import DenseTrunk, Masks, MemberWise, MixtureDensityNetwork
from residmix.rows.threads import n_threads

__all__ = [
    "History",
    "Running",
    "Sample",
    "Schedule",
    "automatic_batches",
    "automatic_epochs",
    "hold_out",
    "rng_scope",
    "thread_scope",
    "train",
]

# In an epoch, where the table is large enough.
_BATCHES = 24
# Epochs of a table of any size, unless fewer are allowed.
_FEWEST = 40
# Batches whose rows are gathered at once.
_GATHERED = 16


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

    @classmethod
    def of(cls, *, device: str, **columns: NDArray[np.floating[Any]] | None) -> Sample:
        """Take arrays to a device in float32; "auto" is a GPU if torch sees one."""
        automatic = "cuda" if torch.cuda.is_available() else "cpu"
        where = torch.device(automatic if device == "auto" else device)
        given = {name: array for name, array in columns.items() if array is not None}
        return cls(**{name: torch.as_tensor(array, dtype=torch.float32, device=where) for name, array in given.items()})

    def inputs(self, rows: Tensor) -> tuple[Tensor, ...]:
        """What the network is called with, for `rows` (members, b)."""
        if self.X.dim() == 3:
            return (self.X.gather(1, rows.unsqueeze(-1).expand(-1, -1, self.X.shape[-1])),)
        if self.metadata is None:
            return (self.X[rows],)
        assert self.protected is not None
        return self.X[rows], self.metadata[rows], self.protected[rows]


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train; every quantity is per member. `report_every` counts epochs, 0 is silence."""

    max_epochs: int = 400
    patience: int = 60
    batch_size: int = 128
    learning_rate: float = 1e-2
    weight_decay: float = 0.1
    clip_norm: float = 5.0
    report_every: int = 0


@dataclass
class History:
    """What happened: held-out loss per epoch and member (NaN once it has ended), and where each member was best."""

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


def automatic_batches(n_train: float) -> tuple[int, float]:
    """Batch size for about 24 batches an epoch, and a factor for the patience where so many would be too small.

    Held-out losses jump about as much between the short epochs of a small table, but less is learned in one: a member
    then needs more of them to show that it gets better.

    Examples
    --------
    >>> automatic_batches(2400), automatic_batches(96)
    ((100, 1.0), (16, 2.0))
    """
    batch = int(min(max(n_train / _BATCHES, 16), 256))
    return batch, max(1.0, math.sqrt(_BATCHES * batch / n_train))


def automatic_epochs(n_train: float, batch: int, most: int) -> int:
    """Epochs for as many steps as `most` epochs of 24 batches take: a large table teaches as much in fewer epochs.

    Examples
    --------
    >>> automatic_epochs(2400, 100, 400), automatic_epochs(42_500, 256, 400), automatic_epochs(1e6, 256, 400)
    (400, 58, 40)
    """
    return min(most, max(_FEWEST, math.ceil(most * min(1.0, _BATCHES * batch / n_train))))


# Torch has one generator for all threads: fits side by side would draw from each other's.
_drawing = threading.Lock()


@contextmanager
def rng_scope(seed: int) -> Iterator[None]:
    """Seed torch inside the block only, which one thread enters at a time; the caller's generator comes back."""
    with _drawing, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


@contextmanager
def thread_scope(threads: int) -> Iterator[None]:
    """Let torch compute with at most `threads` threads inside the block, and no more than it has outside.

    What torch has is what ``torch.set_num_threads`` or ``OMP_NUM_THREADS`` say; ``RESIDMIX_NUM_THREADS`` says less.
    """
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(max(1, min(threads, n_threads(), before)))
        yield
    finally:
        torch.set_num_threads(before)


def train(
    network: MixtureDensityNetwork,
    sample: Sample,
    held_out: NDArray[np.bool_],
    schedule: Schedule,
    seeds: Sequence[int],
    running: type[Running] | None = None,
    whose: str = "",
) -> History:
    """Minimise the negative log-likelihood of every member on its own rows; leave each at its best held-out epoch.

    A member draws from its own generator and ends when it has not improved for `patience` epochs, so it becomes what
    it would have become alone. The others go on without it.

    Parameters
    ----------
    network : MixtureDensityNetwork
        Stacked: every parameter has the members as its first dimension.
    held_out : ndarray (members, n) of bool
        Rows that a member is judged on and never trained on.
    seeds : sequence of int
        One per member.
    running : type, default=Running
        Who takes the steps: autograd and an optimiser of torch, or something quicker that gives the same.
    whose : str
        Added to the losses that are printed.
    """
    members = len(held_out)
    rows = [np.flatnonzero(~own) for own in held_out]
    n_train = min(map(len, rows))
    n_batches = max(1, round(n_train / schedule.batch_size))
    edges = [round(i * n_train / n_batches) for i in range(n_batches + 1)]
    total = schedule.max_epochs * n_batches
    warm = max(1, total // 20)
    weight = sample.weight / sample.weight.mean()
    generators = [np.random.default_rng(seed) for seed in seeds]
    history = History(best_epoch=[0] * members)
    with (running or Running)(network, sample, held_out, schedule, generators) as state:
        best = state.values()
        lowest = state.judge()
        step = 0
        for epoch in range(1, schedule.max_epochs + 1):
            network.train()
            order = np.stack([generators[m].permutation(rows[m])[:n_train] for m in state.members])
            for first in range(0, n_batches, _GATHERED):
                cuts = edges[first : first + _GATHERED + 1]
                chosen = torch.as_tensor(order[:, cuts[0] : cuts[-1]], device=sample.X.device)
                gathered = (*state.sample.inputs(chosen), sample.y[chosen], weight[chosen])
                for start, stop in itertools.pairwise(cut - cuts[0] for cut in cuts):
                    rate = min((step + 1) / warm, 0.5 * (1 + math.cos(math.pi * step / total)))
                    *batch, own = (part[:, start:stop] for part in gathered)
                    # By the number of rows, not by their weights: a light batch must not count as much as a heavy one.
                    state.descend(batch, own / (stop - start), schedule.learning_rate * rate)
                    step += 1
            loss_now, values = state.judge(), state.values()
            record = [math.nan] * members
            for i, m in enumerate(state.members):
                record[m] = loss_now[i]
                if loss_now[i] < lowest[m]:
                    lowest[m], history.best_epoch[m] = loss_now[i], epoch
                    best[m] = values[i]
            history.validation.append(record)
            history.n_epochs = epoch
            if schedule.report_every and epoch % schedule.report_every == 0:
                print(f"epoch {epoch:4d}  held-out loss {np.mean(loss_now):.4f}{whose}", file=sys.stderr)
            going = [epoch - history.best_epoch[m] < schedule.patience for m in state.members]
            if not any(going):
                break
            if not all(going):
                state.keep(np.flatnonzero(going))
    state.restore(best)
    network.eval()
    history.best_loss = lowest
    return history


class Running:
    """The members that are still in training; matrices decay, biases don't: they hold the mixture to begin with."""

    def __init__(
        self,
        network: MixtureDensityNetwork,
        sample: Sample,
        held_out: NDArray[np.bool_],
        schedule: Schedule,
        generators: Sequence[np.random.Generator],
    ) -> None:
        self.network, self.sample, self.schedule = network, sample, schedule
        self.members = list(range(len(held_out)))
        self.layers = network.residualize.layers if isinstance(network.residualize, MemberWise) else None
        self.masks = None
        if isinstance(network.backbone, DenseTrunk) and network.backbone.dropout:
            self.masks = Masks(generators, network.backbone.dropout, sample.X.device)
        mask = torch.as_tensor(held_out, device=sample.X.device)
        count = int(mask.sum(1).max())
        # Members may hold out different numbers of rows: pad with rows of weight zero.
        rows = (~mask).float().argsort(dim=1, stable=True)[:, :count]
        weight = sample.weight[rows] * mask.gather(1, rows)
        share = weight / weight.sum(1, keepdim=True).clamp_min(1e-12)
        self.judged = (*sample.inputs(rows), sample.y[rows], share)
        self.prepare()

    def prepare(self) -> None:
        """Set up the optimiser."""
        named = list(self.network.named_parameters())
        decaying = [p for name, p in named if not name.endswith("bias")]
        others = [p for name, p in named if name.endswith("bias")]
        groups = [
            {"params": decaying, "weight_decay": self.schedule.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        self.parameters = [p for _, p in named]
        self.optimiser = torch.optim.AdamW([group for group in groups if group["params"]])

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        if self.layers is not None:
            assert isinstance(self.network.residualize, MemberWise)
            self.network.residualize.layers = self.layers

    def values(self) -> Tensor:
        """A copy of all parameters, (members, P)."""
        return torch.cat([p.detach().flatten(1) for p in self.parameters], 1)

    def restore(self, values: Tensor) -> None:
        """Give the network `values` of all members, in memory of its own."""
        for p, value in zip(self.parameters, self.pieces(values), strict=True):
            p.data, p.grad = value.clone(memory_format=torch.contiguous_format), None

    def pieces(self, matrix: Tensor) -> list[Tensor]:
        """Views of a matrix with a row for each member, one in the shape of each parameter."""
        shapes = [p.shape[1:] for p in self.parameters]
        parts = matrix.split([math.prod(shape) for shape in shapes], 1)
        return [part.view(-1, *shape) for part, shape in zip(parts, shapes, strict=True)]

    def losses(self, batch: Sequence[Tensor], mask: Masks | None = None) -> Tensor:
        """Negative log-likelihood of every row, (members, b); `batch` is what the network takes, then the targets."""
        x, *given, y = batch
        network = self.network
        h = network.backbone(x) if mask is None else network.backbone(x, mask)
        if network.residualize is not None:
            h = network.residualize(h, *given)
        density, cell = network.head(h), self.sample.cell
        found: Tensor = density.log_prob(y) if cell is None else density.log_cell_prob(y, cell)
        return -found

    def descend(self, batch: Sequence[Tensor], share: Tensor, rate: float) -> None:
        """One step; each member's gradient is scaled to `clip_norm`, one that isn't finite sits the step out.

        `share` (members, b) is what each row has in the loss of its member.
        """
        loss = self.losses(batch, self.masks)
        self.optimiser.zero_grad()
        (share * loss).sum().backward()
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = torch.linalg.vector_norm(torch.cat([g.flatten(1) for g in gradients], 1), dim=1)
        factor = (self.schedule.clip_norm / norm).clamp(max=1.0)
        for g in gradients:
            own = factor.view(-1, *[1] * (g.dim() - 1))
            g.copy_(torch.where(own.isfinite() & (own > 0), g * own, 0.0))
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.step()

    @torch.no_grad()
    def judge(self) -> list[float]:
        """Held-out loss of every member in training."""
        self.network.eval()
        *batch, share = self.judged
        loss = self.losses(batch)
        return [float(value) for value in torch.nan_to_num((share * loss).sum(1), nan=math.inf).tolist()]

    def keep(self, going: NDArray[np.intp]) -> None:
        """Go on with these of the members in training."""
        index = torch.as_tensor(going, device=self.sample.X.device)
        self.members = [self.members[i] for i in going]
        self.judged = tuple(part[index] for part in self.judged)
        if self.sample.X.dim() == 3:
            self.sample = replace(self.sample, X=self.sample.X[index])
        if self.masks is not None:
            self.masks.keep(index)
        if isinstance(self.network.residualize, MemberWise):
            self.network.residualize.layers = nn.ModuleList(self.network.residualize.layers[i] for i in going)
        self.select(index)

    def select(self, index: Tensor) -> None:
        """Parameters and what the optimiser remembers of them, for the members that go on."""
        for p in self.parameters:
            p.data, p.grad = p.data[index], None
            remembered = self.optimiser.state[p]
            for name, value in remembered.items():
                if isinstance(value, Tensor) and value.dim():
                    remembered[name] = value[index]
