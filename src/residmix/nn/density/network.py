"""Backbone, residualizing layer and head in one module."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from residmix.nn.density.distribution import MixtureOfGaussians
from residmix.nn.density.head import EnsembleLinear, MixtureDensityHead

__all__ = ["DenseTrunk", "Masks", "MemberWise", "MixtureDensityNetwork"]


class Masks:
    """Dropout masks of networks side by side, each from its own generator: the same whoever else is there.

    A block of them is drawn at once, 16 random bits for each, because torch draws one at a time.
    """

    def __init__(self, generators: Sequence[np.random.Generator], rate: float, device: torch.device) -> None:
        self.generators, self.rate, self.device = list(generators), rate, device
        self.block = torch.empty(len(self.generators), 0, device=device)
        self.used = 0

    def __call__(self, shape: torch.Size) -> Tensor:
        """0 with probability `rate` and 1 / (1 - rate) else; `shape` begins with the number of networks."""
        size = shape[1:].numel()
        if self.used + size > self.block.shape[1]:
            length = max(size, 2**18)
            bits = np.stack([g.integers(0, 2**16, length, dtype=np.uint16) for g in self.generators])
            kept = np.multiply(bits >= round(self.rate * 2**16), np.float32(1 / (1 - self.rate)), dtype=np.float32)
            self.block, self.used = torch.as_tensor(kept, device=self.device), 0
        out = self.block[:, self.used : self.used + size].view(shape)
        self.used += size
        return out

    def keep(self, index: Tensor) -> None:
        """Go on with these networks."""
        self.generators = [self.generators[i] for i in index.tolist()]
        self.block = self.block[index]


class DenseTrunk(nn.Module):
    """A multilayer perceptron for tables: SiLU, dropout, and a skip connection that concatenates the input.

    The representation is [MLP(x), x], so that a linear head on it contains the linear model.

    Parameters
    ----------
    in_features : int
    hidden : sequence of int, default=(128, 128)
    dropout : float, default=0.1
    members : int, optional
        Number of stacked networks, as in `MixtureDensityHead`.
    clip : float, default=8
        The input of the perceptron is ``x / sqrt(1 + (x / clip)^2)``, which bounds outliers and hardly changes values
        within a few standard deviations. The concatenated input is x itself.

    Examples
    --------
    >>> import torch
    >>> DenseTrunk(5, (16,))(torch.zeros(3, 5)).shape
    torch.Size([3, 21])
    """

    def __init__(
        self,
        in_features: int,
        hidden: Sequence[int] = (128, 128),
        *,
        dropout: float = 0.1,
        members: int | None = None,
        clip: float = 8.0,
    ) -> None:
        super().__init__()
        widths = [in_features, *hidden]
        pairs = list(itertools.pairwise(widths))
        self.layers = nn.ModuleList(
            nn.Linear(a, b) if members is None else EnsembleLinear(members, a, b) for a, b in pairs
        )
        self.dropout = dropout
        self.members = members
        self.clip = clip
        self.out_features = widths[-1] + in_features if hidden else in_features

    def forward(self, x: Tensor, masks: Masks | None = None) -> Tensor:
        """Representation of `x`; `masks` draws the factors of dropout in place of torch's one generator."""
        if self.members is not None and x.dim() == 2:
            x = x.unsqueeze(0).expand(self.members, -1, -1)
        if not len(self.layers):
            return x
        h = x * torch.rsqrt(1 + (x / self.clip).square())
        for layer in self.layers:
            h = F.silu(layer(h))
            h = F.dropout(h, self.dropout, self.training) if masks is None else h * masks(h.shape)
        return torch.cat([h, x], dim=-1)


class MemberWise(nn.Module):
    """One residualizing layer per member of an ensemble, since each has its own representation."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, metadata: Tensor, protected: Tensor | None = None, **options: Tensor) -> Tensor:
        def own(value: Tensor | None, m: int, dims: int) -> Tensor | None:
            return value if value is None or value.dim() == dims else value[m]

        return torch.stack(
            [
                layer(
                    x[m],
                    own(metadata, m, 2),
                    own(protected, m, 2),
                    **{name: own(value, m, 1) for name, value in options.items()},
                )
                for m, layer in enumerate(self.layers)
            ]
        )


class MixtureDensityNetwork(nn.Module):
    r"""backbone -> residualize -> head: :math:`p(y | h(x) - B'(m - \bar m))`.

    Parameters
    ----------
    backbone : Module
        Maps the input to a representation (b, q).
    head : MixtureDensityHead
        On q features.
    residualize : Module, optional
        A `residmix.nn.Residualize` on q features, or anything called as ``layer(h, metadata, protected)``. Its
        guarantee holds for linear dependence of the tensor that enters the head on the metadata. It doesn't cover the
        spread and the weights, which are nonlinear functions of that tensor: see `residmix.nn.density_report`.

    Examples
    --------
    >>> import torch
    >>> network = MixtureDensityNetwork(DenseTrunk(4, (8,)), MixtureDensityHead(12, 2))
    >>> network(torch.zeros(3, 4)).log_prob(torch.zeros(3, 2)).shape
    torch.Size([3])
    """

    def __init__(self, backbone: nn.Module, head: MixtureDensityHead, residualize: nn.Module | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.residualize = residualize
        self.head = head

    def representation(
        self,
        x: Tensor,
        metadata: Tensor | None = None,
        protected: Tensor | None = None,
        **options: Tensor,
    ) -> Tensor:
        """The tensor that enters the head.

        Raises
        ------
        ValueError
            If metadata is given and there is no residualize layer.
        """
        h: Tensor = self.backbone(x)
        if self.residualize is None:
            if metadata is not None:
                raise ValueError(
                    "metadata was given, but this network has no residualize layer; leave metadata "
                    "out, or add the layer"
                )
            return h
        out: Tensor = self.residualize(h, metadata, protected, **options)
        return out

    def forward(
        self,
        x: Tensor,
        metadata: Tensor | None = None,
        protected: Tensor | None = None,
        **options: Tensor,
    ) -> MixtureOfGaussians:
        """Mixture given `x`; the other arguments are those of `Residualize.forward`."""
        density: MixtureOfGaussians = self.head(self.representation(x, metadata, protected, **options))
        return density
