"""The pieces of a training step, each with the gradient of what it did in closed form.

A fit takes thousands of steps on a few dozen rows, where autograd's bookkeeping costs more than the arithmetic. Every
function here returns its value and a pullback: a function from the gradient of a sum with respect to that value to the
gradients with respect to what the value was made of. They are called once, without autograd.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from residmix.nn.head import MixtureDensityHead

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
    head: MixtureDensityHead, h: Tensor, weight: Tensor, bias: Tensor, y: Tensor, *, complete: bool
) -> tuple[Tensor, Pullback]:
    r"""``-head(h).log_prob(y)`` of a diagonal or spherical head, (members, b); the pullback goes to h, weight and bias.

    With :math:`z = (y - \mu_k) / s_k`, responsibilities :math:`r_k = \pi_k N_k(y) / p(y)` and logits a,

    .. math:: \frac{\partial (-\log p)}{\partial a_k} = \pi_k - r_k, \quad
              \frac{\partial (-\log p)}{\partial \mu_k} = -\frac{r_k z}{s_k}, \quad
              \frac{\partial (-\log p)}{\partial s_k} = \frac{r_k (1 - z^2)}{s_k},

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
    complete : bool
        Whether no target is missing.
    """
    K, D = head.n_components, head.out_features
    raw = torch.baddbmm(bias.mT, weight.mT, h.mT)
    logits, means, spread, _ = raw.split(head._sizes, 1)
    spread = spread.unflatten(1, (K, -1))
    grown = F.softplus(spread)
    damp = (grown / head.max_scale).add_(1).reciprocal_()
    scale = torch.addcmul(head.min_scale.to(raw.dtype).unsqueeze(-1), grown, damp)
    z = (y.mT.unsqueeze(1) - means.unflatten(1, (K, D))).div_(scale)
    log_scale = scale.log()
    observed: int | Tensor = D
    missing = None
    if not complete:
        missing = torch.isnan(y).mT.unsqueeze(1)
        observed = (D - missing.sum(2).squeeze(1)).to(raw.dtype)
        z.masked_fill_(missing, 0.0)
        log_scale = log_scale.masked_fill(missing, 0.0)
    log_weights = torch.log_softmax(logits, 1)
    share = log_weights - torch.addcmul(log_scale, z, z, value=0.5).sum(2)
    top = share.amax(1, keepdim=True)
    total = share.sub_(top).exp_().sum(1, keepdim=True)
    share.div_(total)

    def pullback(gradient: Tensor) -> tuple[Tensor, ...]:
        gradient = gradient.unsqueeze(1)
        part = share * gradient
        of_logits = log_weights.exp().mul_(gradient).sub_(part)
        of_scale = part.unsqueeze(2) / scale
        if missing is not None:
            of_scale.masked_fill_(missing, 0.0)
        of_means = (of_scale * z).neg_()
        of_scale.addcmul_(of_means, z)
        if spread.shape[2] < D:
            of_scale = of_scale.sum(2, keepdim=True)
        of_spread = of_scale.mul_(damp).mul_(damp).mul_(torch.sigmoid(spread))
        of_raw = torch.cat([of_logits, of_means.flatten(1, 2), of_spread.flatten(1, 2)], 1)
        return torch.bmm(of_raw.mT, weight.mT), torch.bmm(of_raw, h).mT, of_raw.sum(2).unsqueeze(1)

    return _HALF_LOG_2PI * observed - total.log_().add_(top).squeeze(1), pullback
