"""The torch distribution that a mixture density head returns."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from residmix.nn.density import scores
from residmix.nn.density.cells import log_cell

__all__ = ["MixtureOfGaussians"]

_LOG_2PI = math.log(2 * math.pi)


class MixtureOfGaussians(Distribution):
    r""":math:`p(y) = \sum_k \pi_k N(y | \mu_k, \Sigma_k)` for vector targets, one mixture per batch entry.

    The covariances are diagonal (`scale`), full (`scale_tril`) or low-rank plus diagonal (`scale` and `factor`):

    .. math:: \Sigma_k = diag(s_k^2), \quad \Sigma_k = L_k L_k', \quad \Sigma_k = diag(s_k^2) + U_k U_k'

    Everything is computed in log space; no covariance is ever inverted. NaN in a target means "not observed": that
    entry is integrated out exactly, and a row without any observed entry has log density 0.

    Parameters
    ----------
    logits : Tensor (..., K)
        Unnormalised log weights.
    means : Tensor (..., K, D)
    scale : Tensor (..., K, D), optional
        Standard deviations (of the diagonal part).
    scale_tril : Tensor (..., K, D, D), optional
        Lower Cholesky factors.
    factor : Tensor (..., K, D, R), optional
        Low-rank part, added to the diagonal of `scale`.

    Examples
    --------
    >>> import torch
    >>> p = MixtureOfGaussians(torch.zeros(2), torch.tensor([[-5.0], [5.0]]), torch.ones(2, 1))
    >>> p.mean, p.variance
    (tensor([0.]), tensor([26.]))
    >>> p.cdf(torch.tensor([0.0]))
    tensor([0.5000])
    """

    has_rsample = False

    def __init__(
        self,
        logits: Tensor,
        means: Tensor,
        scale: Tensor | None = None,
        *,
        scale_tril: Tensor | None = None,
        factor: Tensor | None = None,
    ) -> None:
        if (scale is None) == (scale_tril is None) or (factor is not None and scale is None):
            raise ValueError("MixtureOfGaussians needs either scale, or scale_tril, or scale and factor")
        batch = means.shape[:-2]
        others = ((logits, 1), (scale, 2), (scale_tril, 3), (factor, 3))
        if any(part is not None and part.shape[:-axes] != batch for part, axes in others):
            batch = torch.broadcast_shapes(batch, *(p.shape[:-axes] for p, axes in others if p is not None))
            logits, means = logits.expand(*batch, -1), means.expand(*batch, -1, -1)
            scale = None if scale is None else scale.expand(*batch, -1, -1)
            scale_tril, factor = (p if p is None else p.expand(*batch, -1, -1, -1) for p in (scale_tril, factor))
        self.logits = logits
        self.means = means
        self.scale = scale
        self.scale_tril = scale_tril
        self.factor = factor
        super().__init__(means.shape[:-2], means.shape[-1:], validate_args=False)

    @property
    def arg_constraints(self) -> dict[str, Any]:
        return {"logits": constraints.real_vector, "means": constraints.independent(constraints.real, 2)}

    @property
    def support(self) -> Any:
        return constraints.real_vector

    def __repr__(self) -> str:
        kind = "full" if self.scale_tril is not None else "diagonal" if self.factor is None else "low-rank"
        return (
            f"MixtureOfGaussians({kind}, components={self.n_components}, "
            f"batch_shape={tuple(self.batch_shape)}, targets={self.event_shape[0]})"
        )

    # ---- parts -------------------------------------------------------------------------------------------

    @property
    def n_components(self) -> int:
        """K."""
        return self.logits.shape[-1]

    @property
    def log_weights(self) -> Tensor:
        """Logarithms of the weights, (..., K)."""
        return torch.log_softmax(self.logits, dim=-1)

    @property
    def weights(self) -> Tensor:
        """Of the components, (..., K); they add up to 1."""
        return torch.softmax(self.logits, dim=-1)

    @property
    def component_scales(self) -> Tensor:
        """Marginal standard deviations of every component and target, (..., K, D)."""
        if self.scale_tril is not None:
            return self.scale_tril.square().sum(-1).sqrt()
        assert self.scale is not None
        if self.factor is None:
            return self.scale
        return (self.scale.square() + self.factor.square().sum(-1)).sqrt()

    @property
    def component_covariances(self) -> Tensor:
        """Covariances of the components, (..., K, D, D)."""
        if self.scale_tril is not None:
            return self.scale_tril @ self.scale_tril.mT
        assert self.scale is not None
        diagonal = torch.diag_embed(self.scale.square())
        return diagonal if self.factor is None else diagonal + self.factor @ self.factor.mT

    # ---- densities ---------------------------------------------------------------------------------------

    def _check_targets(self, value: Tensor) -> None:
        # n targets of shape (n,) would be broadcast: every row against all of them at once.
        D = self.event_shape[0]
        if value.ndim == 0 or value.shape[-1] != D:
            hint = ": use value.unsqueeze(-1)" if D == 1 else ""
            raise ValueError(f"value must have shape (..., {D}), targets last; got {tuple(value.shape)}{hint}")

    def component_log_prob(self, value: Tensor) -> Tensor:
        r""":math:`\log N(y | \mu_k, \Sigma_k)`, shape (..., K)."""
        self._check_targets(value)
        observed = ~torch.isnan(value)
        complete = bool(observed.all())
        seen = observed.unsqueeze(-2)
        if complete:
            gap = value.unsqueeze(-2) - self.means
        else:
            # The second `where` keeps NaN out of the gradient as well.
            clean = torch.where(observed, value, torch.zeros_like(value)).unsqueeze(-2)
            gap = torch.where(seen, clean - self.means, torch.zeros_like(self.means))
        if self.scale_tril is not None:
            distance, log_det = self._full_terms(gap, seen, complete)
        elif self.factor is not None:
            distance, log_det = self._low_rank_terms(gap, seen)
        else:
            assert self.scale is not None
            distance = (gap / self.scale).square().sum(-1)
            log_scale = self.scale.log()
            log_det = (log_scale if complete else torch.where(seen, log_scale, torch.zeros_like(log_scale))).sum(-1)
        constant = 0.5 * _LOG_2PI * (value.shape[-1] if complete else seen.sum(-1).to(distance))
        return -0.5 * distance - log_det - constant

    def _full_terms(self, gap: Tensor, seen: Tensor, complete: bool) -> tuple[Tensor, Tensor]:
        assert self.scale_tril is not None
        tril = self.scale_tril
        if not complete:
            # Rows of missing targets become those of the identity. By QR: rounding may leave L L' indefinite.
            kept = torch.where(seen.unsqueeze(-1), tril, torch.zeros_like(tril))
            unit = torch.diag_embed((~seen).to(tril)).expand_as(kept)
            tril = torch.linalg.qr(torch.cat([kept, unit], dim=-1).mT).R.mT
        shape = torch.broadcast_shapes(tril.shape[:-1], gap.shape)
        tril = tril.expand(*shape, shape[-1])
        z = torch.linalg.solve_triangular(tril, gap.expand(shape).unsqueeze(-1), upper=False).squeeze(-1)
        return z.square().sum(-1), tril.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1)

    def _low_rank_terms(self, gap: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Woodbury and the matrix determinant lemma on the R x R capacitance I + V'V, V = U / s."""
        assert self.scale is not None and self.factor is not None
        scale = torch.where(seen, self.scale, torch.ones_like(self.scale))
        z = gap / scale
        V = torch.where(seen.unsqueeze(-1), self.factor, torch.zeros_like(self.factor)) / scale.unsqueeze(-1)
        eye = torch.eye(V.shape[-1], dtype=V.dtype, device=V.device)
        tril = torch.linalg.cholesky(eye + V.mT @ V)
        u = torch.linalg.solve_triangular(tril, V.mT @ z.unsqueeze(-1), upper=False).squeeze(-1)
        distance = (z.square().sum(-1) - u.square().sum(-1)).clamp_min(0.0)
        return distance, scale.log().sum(-1) + tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of `value` (..., D) in nats; NaN entries are integrated out."""
        return torch.logsumexp(self.log_weights + self.component_log_prob(value), dim=-1)

    def log_cell_prob(self, value: Tensor, width: Tensor) -> Tensor:
        r"""Log of the mean density over the grid cell of `width` (D,) around `value`, for targets recorded on a grid.

        :math:`\log \sum_k \pi_k \prod_j [\Phi(u_{kj}) - \Phi(l_{kj})]/w_j`: exact for diagonal covariances and for
        one target.

        Raises
        ------
        ValueError
            For several targets with full or low-rank covariances, whose boxes have no closed form.
        """
        if self.event_shape[0] > 1 and (self.scale_tril is not None or self.factor is not None):
            raise ValueError("log_cell_prob with several targets needs a diagonal or spherical covariance")
        self._check_targets(value)
        observed = ~torch.isnan(value)
        clean = torch.where(observed, value, torch.zeros_like(value)).unsqueeze(-2)
        scale = self.component_scales
        inside = log_cell((clean - self.means) / scale, 0.5 * width / scale) - width.log()
        inside = torch.where(observed.unsqueeze(-2), inside, torch.zeros_like(inside))
        return torch.logsumexp(self.log_weights + inside.sum(-1), dim=-1)

    def responsibilities(self, value: Tensor) -> Tensor:
        """Posterior probability of the components given `value`, (..., K)."""
        return torch.softmax(self.log_weights + self.component_log_prob(value), dim=-1)

    # ---- moments -----------------------------------------------------------------------------------------

    @property
    def mean(self) -> Tensor:
        """Of the mixture, (..., D)."""
        return (self.weights.unsqueeze(-1) * self.means).sum(-2)

    @property
    def variance(self) -> Tensor:
        """Law of total variance per target, (..., D): within components plus between their means."""
        weight = self.weights.unsqueeze(-1)
        within = self.component_scales.square()
        between = (self.means - self.mean.unsqueeze(-2)).square()
        return (weight * (within + between)).sum(-2)

    @property
    def covariance_matrix(self) -> Tensor:
        """Covariance of the targets, (..., D, D)."""
        weight = self.weights[..., None, None]
        gap = self.means - self.mean.unsqueeze(-2)
        return (weight * (self.component_covariances + gap.unsqueeze(-1) * gap.unsqueeze(-2))).sum(-3)

    # ---- one-dimensional marginals -----------------------------------------------------------------------

    def cdf(self, value: Tensor) -> Tensor:
        """Distribution functions of the one-dimensional marginals at `value` (..., D)."""
        self._check_targets(value)
        z = (value.unsqueeze(-2) - self.means) / self.component_scales
        below: Tensor = torch.special.ndtr(z)
        return (self.weights.unsqueeze(-1) * below).sum(-2)

    def icdf(self, value: Tensor) -> Tensor:
        """Quantiles of the one-dimensional marginals at levels `value`, broadcast to (..., D)."""
        levels = torch.as_tensor(value).detach().cpu().double().numpy()
        quantiles = scores.mixture_quantile(levels, *self.marginal_arrays())
        return torch.from_numpy(quantiles).to(self.means)

    def marginal_arrays(self) -> tuple[Any, Any, Any]:
        """Weights, means and scales of the one-dimensional marginals as float64 arrays of shape (..., D, K)."""
        weights = self.weights.detach().double().unsqueeze(-2).expand(*self.batch_shape, *self.event_shape, -1)
        means, scales = self.means.detach().double().mT, self.component_scales.detach().double().mT
        return weights.cpu().numpy(), means.cpu().numpy(), scales.cpu().numpy()

    # ---- modes and draws ---------------------------------------------------------------------------------

    def modes(self, *, max_iter: int = 500, tol: float = 1e-8) -> tuple[Tensor, Tensor]:
        r"""Climb from every component mean; return the points (..., K, D) and their log densities (..., K).

        The fixed point :math:`y = (\sum r_k \Sigma_k^{-1})^{-1} \sum r_k \Sigma_k^{-1} \mu_k` with r the
        responsibilities at y (Carreira-Perpinan 2000, IEEE PAMI 22) never lowers the density.
        """
        exploded = self._as_full_or_diagonal()
        points = self.means.detach().clone()
        reach = self.component_scales.detach().amin(dim=(-2, -1)).unsqueeze(-1).unsqueeze(-1)
        for _ in range(max_iter):
            share = exploded.responsibilities(points)
            if exploded.scale_tril is not None:
                precision = torch.cholesky_inverse(exploded.scale_tril.squeeze(-4))
                total = torch.einsum("...jk,...kde->...jde", share, precision)
                pull = torch.einsum("...jk,...kd->...jd", share, (precision @ self.means.unsqueeze(-1)).squeeze(-1))
                new = torch.linalg.solve(total, pull)
            else:
                assert exploded.scale is not None
                precision = exploded.scale.squeeze(-3).square().reciprocal()
                new = (share @ (precision * self.means)) / (share @ precision)
            moved = (new - points).abs()
            points = new
            if bool((moved <= tol * reach).all()):
                break
        return points, exploded.log_prob(points)

    @property
    def mode(self) -> Tensor:
        """The highest of the modes found from the component means, (..., D)."""
        points, height = self.modes()
        best = height.argmax(-1)[..., None, None].expand(*self.batch_shape, 1, *self.event_shape)
        return points.gather(-2, best).squeeze(-2)

    def _as_full_or_diagonal(self) -> MixtureOfGaussians:
        """Detached, low rank multiplied out, with one more batch dimension for the K starting points."""
        logits, means = self.logits.detach().unsqueeze(-2), self.means.detach().unsqueeze(-3)
        if self.scale_tril is None and self.factor is None:
            assert self.scale is not None
            return MixtureOfGaussians(logits, means, self.scale.detach().unsqueeze(-3))
        tril = self.scale_tril
        tril = torch.linalg.cholesky(self.component_covariances) if tril is None else tril
        return MixtureOfGaussians(logits, means, scale_tril=tril.detach().unsqueeze(-4))

    def _spread(self, noise: Tensor) -> Tensor:
        """Turn standard normal `noise` (..., K, D + R) into deviations of the components, (..., K, D)."""
        D = self.event_shape[0]
        if self.scale_tril is not None:
            return (self.scale_tril @ noise.unsqueeze(-1)).squeeze(-1)
        assert self.scale is not None
        own = self.scale * noise[..., :D]
        return own if self.factor is None else own + (self.factor @ noise[..., D:].unsqueeze(-1)).squeeze(-1)

    @property
    def _noise_width(self) -> int:
        return self.event_shape[0] + (0 if self.factor is None else self.factor.shape[-1])

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw values of shape ``(*sample_shape, ..., D)``."""
        shape = torch.Size(sample_shape)
        chosen = torch.distributions.Categorical(logits=self.logits, validate_args=False).sample(shape)
        size = (*shape, *self.batch_shape, self.n_components, self._noise_width)
        noise = torch.randn(size, dtype=self.means.dtype, device=self.means.device)
        draws = self.means + self._spread(noise)
        index = chosen[..., None, None].expand(*draws.shape[:-2], 1, draws.shape[-1])
        return draws.gather(-2, index).squeeze(-2)

    @torch.no_grad()
    def entropy(self) -> Tensor:
        """Differential entropy in nats, (...): by quadrature for one target, else with 256 fixed Sobol points.

        Sobol points give about two correct digits.
        """
        if self.event_shape[0] == 1:
            weights, means, scales = (a[..., 0, :] for a in self.marginal_arrays())
            return torch.from_numpy(np.asarray(scores.mixture_entropy(weights, means, scales))).to(self.means)
        uniform = torch.quasirandom.SobolEngine(self._noise_width, scramble=True, seed=0).draw(256).to(self.means)
        total = torch.zeros_like(self.logits)
        for point in torch.special.ndtri(uniform.clamp(1e-6, 1 - 1e-6)):
            at = self.means + self._spread(point.expand(*self.logits.shape, -1))
            total += torch.stack([self.log_prob(at[..., k, :]) for k in range(self.n_components)], dim=-1)
        return -(self.weights * total / len(uniform)).sum(-1)

    # ---- new mixtures from old ---------------------------------------------------------------------------

    def _map(self, logits: Any, means: Any, scale: Any, matrix: Any) -> MixtureOfGaussians:
        return MixtureOfGaussians(
            logits(self.logits),
            means(self.means),
            None if self.scale is None else scale(self.scale),
            scale_tril=None if self.scale_tril is None else matrix(self.scale_tril),
            factor=None if self.factor is None else matrix(self.factor),
        )

    def to(self, *args: Any, **kwargs: Any) -> MixtureOfGaussians:
        """Move or cast every parameter, as ``Tensor.to`` does."""
        move = lambda tensor: tensor.detach().to(*args, **kwargs)  # noqa: E731 (one move, four uses)
        return self._map(move, move, move, move)

    def affine(self, shift: Tensor, scale: Tensor) -> MixtureOfGaussians:
        """The density of ``shift + scale * y`` for `shift` and positive `scale` of shape (D,)."""
        return self._map(
            lambda a: a, lambda a: shift + scale * a, lambda a: scale * a, lambda a: scale.unsqueeze(-1) * a
        )

    def marginal(self, targets: list[int]) -> MixtureOfGaussians:
        """The exact joint density of some of the targets."""
        if self.scale_tril is None:
            return self._map(
                lambda a: a, lambda a: a[..., targets], lambda a: a[..., targets], lambda a: a[..., targets, :]
            )
        upper = torch.linalg.qr(self.scale_tril[..., targets, :].mT).R
        tril = upper.mT * upper.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
        return MixtureOfGaussians(self.logits, self.means[..., targets], scale_tril=tril)

    def pooled(self, log_share: Tensor | None = None) -> MixtureOfGaussians:
        """Merge the first batch dimension (the members of an ensemble) into one mixture of M x K components."""
        M = self.batch_shape[0]
        log_weights = self.log_weights
        share = log_weights.new_full((M,), -math.log(M)) if log_share is None else log_share.to(log_weights)
        log_weights = log_weights + share.reshape(M, *(1,) * (log_weights.dim() - 1))
        where = len(self.batch_shape) - 1

        def merge(parameter: Tensor) -> Tensor:
            return parameter.movedim(0, where).flatten(where, where + 1)

        return MixtureOfGaussians(
            merge(log_weights),
            merge(self.means),
            None if self.scale is None else merge(self.scale),
            scale_tril=None if self.scale_tril is None else merge(self.scale_tril),
            factor=None if self.factor is None else merge(self.factor),
        )
