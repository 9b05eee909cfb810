"""The head: a representation in, a mixture of Gaussians out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.cluster import KMeans
from torch import Tensor, nn
from torch.nn import functional as F

from residmix.errors import did_you_mean
from residmix.nn.density.distribution import MixtureOfGaussians

__all__ = ["COVARIANCES", "EnsembleLinear", "MixtureDensityHead", "hold_means"]

COVARIANCES = ("spherical", "diagonal", "full", "low-rank")
Covariance = Literal["spherical", "diagonal", "full", "low-rank"]

# |L_ij / L_ii| and |U_ij / s_i| stay below this, so every correlation stays below 0.9995.
TILT = 30.0


class EnsembleLinear(nn.Module):
    """The linear layers of `members` networks side by side: (members, b, in) or (b, in) -> (members, b, out).

    One batched product does the work of all members; on small layers it costs little more than one member alone.
    """

    def __init__(self, members: int, in_features: int, out_features: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(max(in_features, 1))
        self.weight = nn.Parameter(torch.empty(members, in_features, out_features).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(members, 1, out_features).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 2:
            x = x.unsqueeze(0).expand(self.weight.shape[0], -1, -1)
        return torch.baddbmm(self.bias, x, self.weight)


class MixtureDensityHead(nn.Module):
    r"""One linear layer from a representation h to a mixture of Gaussians over the targets.

    .. math:: p(y | h) = \sum_k \pi_k(h) N(y | \mu_k(h), \Sigma_k(h)), \quad
              s(h) = s_{min} + softplus(r) / (1 + softplus(r) / s_{max})

    Weights enter as logits, standard deviations between `min_scale` and `min_scale + max_scale`. A full covariance is
    given by its Cholesky factor :math:`L = diag(s) (I + T)` with T strictly lower triangular and bounded, a low-rank
    one by :math:`diag(s^2) + diag(s) V V' diag(s)` with V bounded: never singular, never infinite. The bounds assume
    targets with a spread of about 1; `MDNRegressor` standardises its targets.

    Parameters
    ----------
    in_features : int
        Width of the representation.
    out_features : int, default=1
        Number of targets D.
    n_components : int, default=3
    covariance : {"diagonal", "spherical", "full", "low-rank"}
    rank : int, default=1
        Columns of V when `covariance` is "low-rank".
    min_scale, max_scale : float
        Bounds of the standard deviations.
    members : int, optional
        Number of stacked heads (the members of an ensemble). The representation is then (members, b, in_features), and
        the members are the first batch dimension of the distribution.

    References
    ----------
    C. Bishop (1994), Mixture density networks, Aston NCRG/94/004.

    Examples
    --------
    >>> import torch
    >>> head = MixtureDensityHead(8, out_features=2, covariance="full")
    >>> head(torch.zeros(5, 8)).log_prob(torch.zeros(5, 2)).shape
    torch.Size([5])
    """

    min_scale: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int = 1,
        n_components: int = 3,
        *,
        covariance: Covariance = "diagonal",
        rank: int = 1,
        min_scale: float | ArrayLike = 1e-3,
        max_scale: float = 1e3,
        members: int | None = None,
    ) -> None:
        super().__init__()
        if covariance not in COVARIANCES:
            hint = did_you_mean(str(covariance), COVARIANCES)
            raise ValueError(f"covariance must be one of {', '.join(COVARIANCES)}, got {covariance!r}{hint}")
        for name, value in (("out_features", out_features), ("n_components", n_components), ("rank", rank)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        # In numpy, since on torch's device "meta" there is nothing to compare.
        least = np.asarray(min_scale, dtype=np.float32)
        if not (least > 0).all() or not (least < max_scale).all():
            raise ValueError(f"min_scale must lie in (0, max_scale={max_scale}), got {min_scale!r}")
        self.in_features = in_features
        self.out_features = out_features
        self.n_components = n_components
        self.covariance = covariance
        self.rank = rank
        self.max_scale = float(max_scale)
        self.members = members
        self.register_buffer("min_scale", torch.as_tensor(least.copy()).expand(out_features).clone())
        D, K = out_features, n_components
        tilts = {"full": D * (D - 1) // 2, "low-rank": D * rank}.get(covariance, 0)
        self._sizes = (K, K * D, K if covariance == "spherical" else K * D, K * tilts)
        width = sum(self._sizes)
        self.linear: nn.Module = (
            nn.Linear(in_features, width) if members is None else EnsembleLinear(members, in_features, width)
        )
        with torch.no_grad():
            # Training starts close to the mixture in the bias, whatever the representation.
            self._weight().mul_(0.1)

    def extra_repr(self) -> str:
        return (
            f"{self.in_features} -> {self.out_features}, n_components={self.n_components}, "
            f"covariance={self.covariance!r}, members={self.members}"
        )

    def _weight(self) -> Tensor:
        """Weights of the linear layer as (..., in_features, width), a view."""
        weight: Tensor = self.linear.weight  # type: ignore[assignment]  # both kinds of layer have a tensor here
        return weight.mT if self.members is None else weight

    def forward(self, h: Tensor) -> MixtureOfGaussians:
        """Mixture given the representation `h`, (n, in_features); of an ensemble (members, n, in_features)."""
        return self.distribution(self.linear(h))

    def distribution(self, raw: Tensor) -> MixtureOfGaussians:
        """Turn the output of the linear layer into the mixture it parameterises."""
        K, D = self.n_components, self.out_features
        logits, means, spread, tilt = raw.split(self._sizes, dim=-1)
        means = means.unflatten(-1, (K, D))
        grown = F.softplus(spread).unflatten(-1, (K, -1))
        scale = (self.min_scale.to(raw.dtype) + grown / (1 + grown / self.max_scale)).expand_as(means)
        if self.covariance == "full":
            lower = TILT * torch.tanh(tilt.unflatten(-1, (K, -1)) / TILT)
            tril = torch.eye(D, dtype=raw.dtype, device=raw.device).repeat(*lower.shape[:-1], 1, 1)
            row, column = torch.tril_indices(D, D, -1, device=raw.device)
            tril[..., row, column] = lower
            return MixtureOfGaussians(logits, means, scale_tril=scale.unsqueeze(-1) * tril)
        if self.covariance == "low-rank":
            V = TILT * torch.tanh(tilt.unflatten(-1, (K, D, self.rank)) / TILT)
            return MixtureOfGaussians(logits, means, scale, factor=scale.unsqueeze(-1) * V)
        return MixtureOfGaussians(logits, means, scale)

    # ---- start -------------------------------------------------------------------------------------------

    @torch.no_grad()
    def initialise(
        self,
        targets: ArrayLike,
        *,
        sample_weight: ArrayLike | None = None,
        slope: ArrayLike | None = None,
        random_state: int | None = None,
        member: int | None = None,
    ) -> None:
        """Start from a mixture of Gaussians fitted to the targets: its parameters become the bias of the head.

        Parameters
        ----------
        targets : array_like (n, D)
            Targets to fit the mixture to; rows with NaN are left out. With `slope`, the residuals of the linear model.
        slope : array_like (q, D), optional
            Coefficients of the last q columns of the representation, added to the mean of every component, so that
            the network starts as the linear model with mixture noise.
        member : int, optional
            Initialise only this member.
        """
        start = _mixture_of(np.asarray(targets, float), sample_weight, self.n_components, random_state)
        weights, means, covariances = (torch.as_tensor(a, dtype=torch.float64) for a in start)
        floor = self.min_scale.double()
        if self.covariance == "full":
            jitter = torch.diag_embed((2 * floor).square())
            tril = torch.linalg.cholesky(covariances + jitter)
            scale = tril.diagonal(dim1=-2, dim2=-1)
            row, column = torch.tril_indices(self.out_features, self.out_features, -1)
            tilt = (tril / scale.unsqueeze(-1))[..., row, column].flatten()
        else:
            scale = covariances.diagonal(dim1=-2, dim2=-1).sqrt()
            if self.covariance == "spherical":
                scale = scale.square().mean(-1, keepdim=True).sqrt()
                floor = floor.mean()
            tilt = torch.zeros(self._sizes[3], dtype=torch.float64)
            if self.covariance == "low-rank":
                # A factor of exactly zero is a saddle: break it, small against the scales.
                generator = torch.Generator().manual_seed(0 if random_state is None else random_state)
                tilt = 0.1 * torch.randn(self._sizes[3], dtype=torch.float64, generator=generator)
        grown = (scale - floor).clamp_min(0.5 * floor).clamp_max(0.5 * self.max_scale)
        grown = grown / (1 - grown / self.max_scale)
        spread = torch.where(grown > 20, grown, torch.log(torch.expm1(grown.clamp_max(20))))
        bias = torch.cat([weights.log(), means.flatten(), spread.flatten(), tilt])
        layer_bias: Tensor = self.linear.bias  # type: ignore[assignment]  # as in _weight
        layer_bias = layer_bias if member is None else layer_bias[member]
        layer_bias.copy_(bias.to(layer_bias).expand_as(layer_bias))
        if slope is not None:
            line = torch.as_tensor(np.asarray(slope, float)).to(layer_bias)
            weight = self._weight() if member is None else self._weight()[member]
            weight = weight[..., -line.shape[0] :, :]
            weight.zero_()
            K = self.n_components
            weight[..., K : K + self._sizes[1]] = line.repeat(1, K)


@torch.no_grad()
def hold_means(head: MixtureDensityHead, targets: Sequence[int]) -> None:
    """Fix the means of all components at 0 for these targets."""
    K, D = head.n_components, head.out_features
    for j in targets:
        columns = K + j + D * torch.arange(K)
        head._weight()[..., columns] = 0.0
        bias: Tensor = head.linear.bias  # type: ignore[assignment]  # as in _weight
        bias[..., columns] = 0.0


def _mixture_of(
    targets: NDArray[np.float64], sample_weight: ArrayLike | None, K: int, random_state: int | None
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Weights (K,), means (K, D) and covariances (K, D, D) of a mixture by k-means, finite whatever the targets."""
    weight = np.ones(len(targets)) if sample_weight is None else np.asarray(sample_weight, float)
    known = ~np.isnan(targets).any(axis=1) & (weight > 0)
    if known.sum() < 2:
        # Too few complete rows: fill with column means, which marginal densities don't care about.
        with np.errstate(invalid="ignore"):
            filler = np.where(np.isnan(targets).all(0), 0.0, np.nansum(targets, 0))
            filler = filler / np.maximum((~np.isnan(targets)).sum(0), 1)
        targets, known = np.where(np.isnan(targets), filler, targets), weight > 0
    rows, weight = targets[known], weight[known] / weight[known].sum()
    D = rows.shape[1]
    distinct = len(np.unique(rows, axis=0))
    centre = weight @ rows
    pooled = (rows - centre).T @ ((rows - centre) * weight[:, None]) + 1e-12 * np.eye(D)
    k = min(K, distinct)
    labels = np.zeros(len(rows), int)
    if k > 1:
        spread = np.sqrt(np.diag(pooled))
        km = KMeans(k, n_init=3, random_state=random_state).fit((rows - centre) / spread, sample_weight=weight)
        labels = km.labels_
    weights, means = np.full(K, 1e-2 / K), np.tile(centre, (K, 1))
    covariances = np.tile(pooled, (K, 1, 1))
    for j in range(k):
        own = labels == j
        share = weight[own].sum()
        if share <= 0:
            continue
        weights[j] += share
        means[j] = weight[own] @ rows[own] / share
        gap = rows[own] - means[j]
        # Shrink towards the pooled covariance as if D + 1 rows more had been seen: small clusters stay round.
        extra = (D + 1) / len(rows)
        covariances[j] = (gap.T @ (gap * weight[own][:, None]) + extra * pooled / k**2) / (share + extra)
    return weights / weights.sum(), means, covariances
