"""Training of an ensemble whose parameters lie side by side in one matrix, with hand-written gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from residmix.nn._fast.pullbacks import Pullback, head_loss, traced, trunk_output
from residmix.nn.density.network import DenseTrunk, Masks
from residmix.nn.regressor.training import Running

__all__ = ["SideBySide"]


class SideBySide(Running):
    """`Running` whose parameters are one matrix, with a row for each member.

    Norms of gradients and the optimiser's steps then take one operation for all layers; the network gets its parameters
    back at the end.
    """

    def prepare(self) -> None:
        """Lay the parameters out, those that decay first."""
        named = list(self.network.named_parameters())
        self.order = sorted(range(len(named)), key=lambda i: named[i][0].endswith("bias"))
        self.parameters = [named[i][1] for i in self.order]
        self.n_decaying = sum(math.prod(p.shape[1:]) for name, p in named if not name.endswith("bias"))
        self.matrix = torch.cat([p.detach().flatten(1) for p in self.parameters], 1)
        self.moments = [torch.zeros_like(self.matrix) for _ in range(2)]
        self.fused = self.sample.X.device.type != "mps"
        self.n_steps = torch.zeros((), device=self.sample.X.device if self.fused else "cpu")
        self.complete = not bool(self.sample.y.isnan().any())
        self._look()

    def _look(self) -> None:
        """Look at the matrix as weight and bias of every layer; the head's comes last."""
        views = dict(zip(self.order, self.pieces(self.matrix), strict=True))
        *self.trunk, self.last = [(views[i], views[i + 1]) for i in range(0, len(views), 2)]

    def values(self) -> Tensor:
        """A copy of all parameters, (members, P)."""
        return self.matrix.clone()

    def traced_losses(self, batch: Sequence[Tensor], mask: Masks | None = None) -> tuple[Tensor, Pullback]:
        """`losses`, and the pullback to the parameters."""
        x, *given, y = batch
        backbone, head, residualize = self.network.backbone, self.network.head, self.network.residualize
        clip = backbone.clip if isinstance(backbone, DenseTrunk) else math.inf
        h, to_trunk = trunk_output(x, self.trunk, clip, mask)
        to_removal = None
        if residualize is not None:
            h, to_removal = traced(lambda h: residualize(h, *given), h)
        loss, to_head = head_loss(head, h, *self.last, y, cell=self.sample.cell, complete=self.complete)

        def pullback(gradient: Tensor) -> tuple[Tensor, ...]:
            of_h, *of_last = to_head(gradient)
            if to_removal is not None:
                (of_h,) = to_removal(of_h)
            return *to_trunk(of_h), *of_last

        return loss, pullback

    def losses(self, batch: Sequence[Tensor], mask: Masks | None = None) -> Tensor:
        """Negative log-likelihood of every row, (members, b)."""
        return self.traced_losses(batch, mask)[0]

    @torch.no_grad()
    def descend(self, batch: Sequence[Tensor], share: Tensor, rate: float) -> None:
        """One step; each member's gradient is scaled to `clip_norm`, one that isn't finite sits the step out."""
        _, pullback = self.traced_losses(batch, self.masks)
        gradients = pullback(share)
        gradient = torch.cat([gradients[i].flatten(1) for i in self.order], 1)
        norm = torch.linalg.vector_norm(gradient, dim=1, keepdim=True)
        highest = self.schedule.clip_norm
        if not float(norm.max()) <= highest:
            gradient.mul_(highest / norm.clamp_min(highest))
            gradient[~torch.isfinite(norm).squeeze(1)] = 0.0
        self.matrix[:, : self.n_decaying].mul_(1 - rate * self.schedule.weight_decay)
        adamw(
            [self.matrix],
            [gradient],
            [self.moments[0]],
            [self.moments[1]],
            [],
            [self.n_steps],
            fused=self.fused,
            amsgrad=False,
            maximize=False,
            beta1=0.9,
            beta2=0.999,
            lr=rate,
            weight_decay=0.0,
            eps=1e-8,
        )

    def select(self, index: Tensor) -> None:
        """Rows of the matrix and of the optimiser's moments, for the members that go on."""
        self.matrix, *self.moments = (part[index] for part in (self.matrix, *self.moments))
        self._look()
