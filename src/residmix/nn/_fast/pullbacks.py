"""The pieces of a training step, each with the gradient of what it did in closed form.

A fit takes thousands of steps on a few dozen rows, where autograd's bookkeeping costs more than the arithmetic. Every
function here returns its value and a pullback: a function from the gradient of a sum with respect to that value to the
gradients with respect to what the value was made of. They are called once, without autograd.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from residmix.nn.density.head import TILT, MixtureDensityHead

__all__ = ["Pullback", "head_loss", "traced", "trunk_output"]

Pullback = Callable[[Tensor], tuple[Tensor, ...]]

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


def traced(function: Callable[..., Tensor], *inputs: Tensor) -> tuple[Tensor, Pullback]:
    """Value of a function of tensors and its pullback to all of them, by autograd."""
    with torch.enable_grad():
        leaves = [each.detach().requires_grad_() for each in inputs]
        value = function(*leaves)
    return value.detach(), lambda gradient: torch.autograd.grad(value, leaves, gradient)


def trunk_output(
    x: Tensor,
    parameters: Sequence[tuple[Tensor, Tensor]],
    clip: float,
    mask: Callable[[torch.Size], Tensor] | None,
) -> tuple[Tensor, Pullback]:
    """What a `DenseTrunk` of several members makes of `x` (members, b, d); the pullback goes to its parameters.

    Parameters
    ----------
    parameters : sequence of (Tensor, Tensor)
        Weight (members, in, out) and bias (members, 1, out) of every layer.
    clip : float
        As in `DenseTrunk`.
    mask : callable, optional
        Dropout: makes the factors for activations of a given shape.
    """
    if not parameters:
        return x, lambda _: ()
    inputs, sums, masks = [], [], []
    h = x * torch.rsqrt((x / clip).square_().add_(1))
    for weight, bias in parameters:
        inputs.append(h)
        sums.append(torch.baddbmm(bias, h, weight))
        h = F.silu(sums[-1])
        if mask is not None:
            masks.append(mask(h.shape))
            h.mul_(masks[-1])
    width = h.shape[-1]

    def pullback(gradient: Tensor) -> tuple[Tensor, ...]:
        out: list[Tensor] = []
        gradient = gradient[..., :width]
        for i in reversed(range(len(parameters))):
            if masks:
                gradient = gradient * masks[i]
            gradient = torch.ops.aten.silu_backward(gradient, sums[i])
            out = [torch.bmm(inputs[i].mT, gradient), gradient.sum(1, keepdim=True), *out]
            if i:
                gradient = torch.bmm(gradient, parameters[i][0].mT)
        return tuple(out)

    return torch.cat([h, x], dim=-1), pullback


def head_loss(
    head: MixtureDensityHead,
    h: Tensor,
    weight: Tensor,
    bias: Tensor,
    y: Tensor,
    *,
    cell: Tensor | None = None,
    complete: bool = False,
) -> tuple[Tensor, Pullback]:
    r"""``-head(h).log_prob(y)``, or with grid cells that of `log_cell_prob`; the pullback goes to h, weight and bias.

    With logits a, responsibilities :math:`r_k = \pi_k N_k(y) / p(y)` and :math:`t_k = -\log N_k(y)`,

    .. math:: \frac{\partial (-\log p)}{\partial a_k} = \pi_k - r_k, \quad
              \frac{\partial (-\log p)}{\partial t_k} = r_k,

    and with g = softplus(r) the scales :math:`s = s_{min} + g / (1 + g / s_{max})` have
    :math:`\partial s / \partial r = \sigma(r) / (1 + g / s_{max})^2`. Rows come last inside, what they are described
    by before them: sums over components then run over long rows, and the products, whose results are narrow, take a
    third of the time.

    Parameters
    ----------
    h : Tensor (members, b, in_features)
    weight, bias : Tensor (members, in_features, width), (members, 1, width)
        Of the head's linear layer.
    y : Tensor (members, b, D)
    cell : Tensor (D,), optional
        Steps of the grid.
    complete : bool
        Whether no target is known to be missing.

    Returns
    -------
    Tensor (members, b), Pullback
    """
    K, D, covariance = head.n_components, head.out_features, head.covariance
    term: Callable[..., tuple[Tensor, Callable[[Tensor], list[Tensor]]]] = _diagonal
    if D > 1 or covariance == "low-rank":
        term = {"full": _full, "low-rank": _low_rank}.get(covariance, _diagonal)
    missing = None if complete else torch.isnan(y).mT.unsqueeze(1)
    if (term is _full and missing is not None) or (term is _low_rank and cell is not None):
        # A factor without some of its rows is no longer triangular; a cell needs the marginal scale.
        return _by_autograd(head, h, weight, bias, y, cell)
    if cell is not None:
        term = functools.partial(_cells, cell=cell)

    raw = torch.baddbmm(bias.mT, weight.mT, h.mT)
    logits, means, spread, tilt = raw.split(head._sizes, 1)
    spread = spread.unflatten(1, (K, -1))
    grown = F.softplus(spread)
    damp = (grown / head.max_scale).add_(1).reciprocal_()
    scale = torch.addcmul(head.min_scale.to(raw.dtype).unsqueeze(-1), grown, damp)
    gap = y.mT.unsqueeze(1) - means.unflatten(1, (K, D))
    if missing is not None:
        gap.masked_fill_(missing, 0.0)
    cost, to_parts = term(gap, scale, tilt, missing)
    log_weights = torch.log_softmax(logits, 1)
    share = log_weights - cost
    top = share.amax(1, keepdim=True)
    total = share.sub_(top).exp_().sum(1, keepdim=True)
    share.div_(total)

    def pullback(gradient: Tensor) -> tuple[Tensor, ...]:
        gradient = gradient.unsqueeze(1)
        part = share * gradient
        of_logits = log_weights.exp().mul_(gradient).sub_(part)
        of_means, of_scale, *of_tilt = to_parts(part.unsqueeze(2))
        if spread.shape[2] < D:
            of_scale = of_scale.sum(2, keepdim=True)
        of_spread = of_scale.mul_(damp).mul_(damp).mul_(torch.sigmoid(spread))
        of_raw = torch.cat([of_logits, of_means.flatten(1, 2), of_spread.flatten(1, 2), *of_tilt], 1)
        return torch.bmm(of_raw.mT, weight.mT), torch.bmm(of_raw, h).mT, of_raw.sum(2).unsqueeze(1)

    return total.log_().add_(top).squeeze(1).neg_(), pullback


def _by_autograd(
    head: MixtureDensityHead, h: Tensor, weight: Tensor, bias: Tensor, y: Tensor, cell: Tensor | None
) -> tuple[Tensor, Pullback]:
    def loss(h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        density = head.distribution(torch.baddbmm(bias, h, weight))
        return -(density.log_prob(y) if cell is None else density.log_cell_prob(y, cell))

    return traced(loss, h, weight, bias)


# Each of the following makes t = -log N_k(y), (members, K, b), of gaps y - mu and scales (members, K, D, b), raw tilts
# (members, K tilts, b) and a mask of missing targets (members, 1, D, b) or None; and the pullback to means, scales and
# raw tilts, from (members, K, 1, b).


def _log_terms(scale: Tensor, missing: Tensor | None) -> Tensor:
    """Logs of the scales, with the constant of the density; 0 for missing targets."""
    out = scale.log().add_(_HALF_LOG_2PI)
    return out if missing is None else out.masked_fill_(missing, 0.0)


def _over_scale(part: Tensor, scale: Tensor, missing: Tensor | None) -> Tensor:
    out = part / scale
    return out if missing is None else out.masked_fill_(missing, 0.0)


def _diagonal(
    gap: Tensor, scale: Tensor, tilt: Tensor, missing: Tensor | None
) -> tuple[Tensor, Callable[[Tensor], list[Tensor]]]:
    r"""With z = gap / s: :math:`\partial t / \partial \mu = -z / s, \partial t / \partial s = (1 - z^2) / s`."""
    z = gap / scale

    def pullback(part: Tensor) -> list[Tensor]:
        of_scale = _over_scale(part, scale, missing)
        of_means = (of_scale * z).neg_()
        return [of_means, of_scale.addcmul_(of_means, z)]

    return torch.addcmul(_log_terms(scale, missing), z, z, value=0.5).sum(2), pullback


def _full(
    gap: Tensor, scale: Tensor, tilt: Tensor, missing: Tensor | None
) -> tuple[Tensor, Callable[[Tensor], list[Tensor]]]:
    r"""With u = gap / s and z = (I + T)^-1 u: :math:`\partial t / \partial u = (I + T)^{-T} z = v` and

    :math:`\partial t / \partial T_{ij} = -v_i z_j`. Row by row, for all components and rows of the table together.
    """
    K, D = scale.shape[1:3]
    lower = torch.tanh(tilt.unflatten(1, (K, -1)) / TILT)
    rows = (TILT * lower).split(list(range(1, D)), 2)
    u = gap / scale
    z = u.clone()
    for i, row in enumerate(rows, 1):
        z[:, :, i].sub_((row * z[:, :, :i]).sum(2))

    def pullback(part: Tensor) -> list[Tensor]:
        v = part * z
        for i in reversed(range(1, D)):
            v[:, :, :i].addcmul_(rows[i - 1], v[:, :, i : i + 1], value=-1)
        of_lower = torch.cat([v[:, :, i : i + 1] * z[:, :, :i] for i in range(1, D)], 2)
        of_tilt = of_lower.mul_(lower.square().sub_(1))
        return [(v / scale).neg_(), torch.addcmul(part, v, u, value=-1).div_(scale), of_tilt.flatten(1, 2)]

    return torch.addcmul(_log_terms(scale, missing), z, z, value=0.5).sum(2), pullback


def _low_rank(
    gap: Tensor, scale: Tensor, tilt: Tensor, missing: Tensor | None
) -> tuple[Tensor, Callable[[Tensor], list[Tensor]]]:
    r"""With C = I + V'V, c = C^-1 V'z and e = z - V c: :math:`z'(I + V V')^{-1} z = e'e + c'c`,

    :math:`\partial t / \partial z = e` and :math:`\partial t / \partial V = V C^{-1} - e c'`.
    """
    K, D = scale.shape[1:3]
    bent = torch.tanh(tilt.unflatten(1, (K, D, -1)) / TILT)
    V = TILT * bent
    if missing is not None:
        V.masked_fill_(missing.unsqueeze(3), 0.0)
    z = gap / scale
    gram = (V.unsqueeze(4) * V.unsqueeze(3)).sum(2).movedim(-1, 2)
    tril = torch.linalg.cholesky(gram.add_(torch.eye(V.shape[3], dtype=V.dtype, device=V.device)))
    inverse = torch.cholesky_inverse(tril).movedim(2, -1)
    c = (inverse * (V * z.unsqueeze(3)).sum(2).unsqueeze(2)).sum(3)
    e = z - (V * c.unsqueeze(2)).sum(3)
    half_log_det = tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def pullback(part: Tensor) -> list[Tensor]:
        of_scale = _over_scale(part, scale, missing)
        of_means = (part * e).div_(scale).neg_()
        of_scale.addcmul_(of_means, z)
        of_V = (V.unsqueeze(4) * inverse.unsqueeze(2)).sum(3).addcmul_(e.unsqueeze(3), c.unsqueeze(2), value=-1)
        of_tilt = of_V.mul_(part.unsqueeze(3)).mul_(1 - bent.square())
        return [of_means, of_scale, of_tilt.flatten(1, 3)]

    cost = torch.addcmul(_log_terms(scale, missing), e, e, value=0.5).sum(2)
    return cost.add_(half_log_det).add_(c.square().sum(2), alpha=0.5), pullback


def _cells(
    gap: Tensor, scale: Tensor, tilt: Tensor, missing: Tensor | None, *, cell: Tensor
) -> tuple[Tensor, Callable[[Tensor], list[Tensor]]]:
    r"""With z = gap / s, h = w / 2s and Mills' ratio R = (1 - Phi) / phi, of the cell's two ends a, b = \|z\| -+ h,

    .. math:: P = \phi(a) [R(a) - R(b) E], \quad E = e^{-2 |z| h}, \quad
              \frac{\partial \log P}{\partial |z|} = \frac{E - 1}{R(a) - R(b) E}, \quad
              \frac{\partial \log P}{\partial h} = \frac{E + 1}{R(a) - R(b) E},

    which stay finite in the tails. The relative error of P is 1e-16 / h, in float64.
    """
    # Below -30 the near end changes nothing any more, and its ratio would become infinite.
    z, half = (gap / scale).double(), (0.5 * cell.unsqueeze(-1) / scale).double()
    size = z.abs()
    near = (size - half).clamp_min_(-30.0)
    decay = (size * half).mul_(-2)
    E = decay.exp()
    rest = _mills(near) - _mills(size + half) * E
    log_p = torch.addcmul(rest.log(), near, near, value=-0.5).sub_(_HALF_LOG_2PI)
    cost = cell.double().log().unsqueeze(-1) - log_p
    if missing is not None:
        cost.masked_fill_(missing, 0.0)

    def pullback(part: Tensor) -> list[Tensor]:
        flow = part / rest
        if missing is not None:
            flow.masked_fill_(missing, 0.0)
        of_z = (flow * decay.expm1()).mul_(z.sign()).neg_()
        of_half = (flow * (E + 1)).neg_()
        of_scale = (of_z * z).addcmul_(of_half, half).div_(scale).neg_()
        return [(of_z / scale).neg_().to(gap.dtype), of_scale.to(gap.dtype)]

    return cost.sum(2).to(gap.dtype), pullback


def _mills(x: Tensor) -> Tensor:
    scaled: Tensor = torch.special.erfcx(x * math.sqrt(0.5))
    return scaled.mul_(math.sqrt(0.5 * math.pi))
