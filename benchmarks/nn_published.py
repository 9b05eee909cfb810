"""The published updates of Metadata Normalization layers, to compare with: they have the defects that they have.

    python benchmarks/nn_published.py

checks the rewrites against closed forms. Written from the formulas in the papers, not from anybody's code. For work use
`residmix.nn.Residualize`.

========================  =====================================================  ===================================
class                     paper                                                  what it gets wrong
========================  =====================================================  ===================================
PublishedMDN              Lu et al., CVPR 2021                                   no projection unless batch = data
PublishedPMDN             Vento et al., MICCAI 2022                              coefficients lag by a learning rate
PublishedRMDN             Shah et al., ICML 2025                                 stale, batch x batch inverse
========================  =====================================================  ===================================

All take ``forward(x, metadata, protected)`` with one row per sample and one regression per element of `x`; the design
is [protected, metadata, 1] and everything but the protected part is subtracted, the intercept too.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor, nn

__all__ = ["PublishedMDN", "PublishedPMDN", "PublishedRMDN"]


class _Published(nn.Module):
    takes_metadata = True
    beta: Tensor

    def __init__(self, num_features: int | tuple[int, ...], num_metadata: int, num_protected: int = 1) -> None:
        super().__init__()
        self.num_features = num_features if isinstance(num_features, int) else prod(num_features)
        self.num_protected = num_protected
        self.width = num_protected + num_metadata + 1

    def _design(self, x: Tensor, metadata: Tensor, protected: Tensor | None) -> Tensor:
        rows = x.shape[0]
        if protected is None:
            protected = x.new_zeros(rows, self.num_protected)
        columns = [protected.view(rows, -1), metadata.view(rows, -1), torch.ones(rows, 1)]
        return torch.cat([column.to(x) for column in columns], 1)

    def _less(self, x: Tensor, design: Tensor, beta: Tensor) -> Tensor:
        p = self.num_protected
        return x - (design[:, p:] @ beta[p:]).view(x.shape)


class PublishedMDN(_Published):
    r"""Metadata Normalization: :math:`\beta = (N/M) (X'X)_{full}^{-1} X_b' F_b`, running average for evaluation.

    Parameters
    ----------
    num_features, num_metadata, num_protected
    design : Tensor, shape (N, p + k)
        Protected and metadata columns of the whole training set.
    momentum : float, default 0.1
    """

    kernel: Tensor

    def __init__(
        self,
        num_features: int | tuple[int, ...],
        num_metadata: int,
        num_protected: int = 1,
        *,
        design: Tensor,
        momentum: float = 0.1,
    ) -> None:
        super().__init__(num_features, num_metadata, num_protected)
        full = torch.cat([design.double(), torch.ones(len(design), 1)], 1)
        self.register_buffer("kernel", (len(design) * torch.linalg.inv(full.T @ full)).float())
        self.register_buffer("beta", torch.zeros(self.width, self.num_features))
        self.momentum = momentum

    def forward(self, x: Tensor, metadata: Tensor, protected: Tensor | None = None) -> Tensor:
        design = self._design(x, metadata, protected)
        if not self.training:
            return self._less(x, design, self.beta)
        beta = self.kernel @ design.T @ x.flatten(1) / x.shape[0]
        with torch.no_grad():
            self.beta.lerp_(beta, self.momentum)
        return self._less(x, design, beta)


class PublishedPMDN(_Published):
    """Penalty form: the coefficients are parameters, trained on ``layer.penalty``, the mean squared regression error.

    The papers alternate two optimisers; give ``beta`` its own parameter group (learning rate 0.045) and add the
    penalty to the loss: it reaches no other parameter.
    """

    def __init__(self, num_features: int | tuple[int, ...], num_metadata: int, num_protected: int = 1) -> None:
        super().__init__(num_features, num_metadata, num_protected)
        self.beta = nn.Parameter(torch.zeros(self.width, self.num_features))
        self.penalty: Tensor | None = None

    def forward(self, x: Tensor, metadata: Tensor, protected: Tensor | None = None) -> Tensor:
        design = self._design(x, metadata, protected)
        if self.training:
            self.penalty = (x.detach().flatten(1) - design @ self.beta).square().sum() / 3
        return self._less(x, design, self.beta.detach())


class PublishedRMDN(_Published):
    r"""Recursive form, one Woodbury step a batch.

    .. math::

        P \leftarrow P / \lambda, \quad K = P X'(I + X P X')^{-1}, \quad
        P \leftarrow P - K X P + \epsilon I, \quad \beta \leftarrow \beta + K (F - X \beta)

    Parameters
    ----------
    num_features, num_metadata, num_protected
    forgetting : float, default 0.999
        lambda, per batch.
    noise : float, default 1e-4
        epsilon, which makes the memory short whatever lambda is.
    """

    P: Tensor

    def __init__(
        self,
        num_features: int | tuple[int, ...],
        num_metadata: int,
        num_protected: int = 1,
        *,
        forgetting: float = 0.999,
        noise: float = 1e-4,
    ) -> None:
        super().__init__(num_features, num_metadata, num_protected)
        self.register_buffer("beta", torch.zeros(self.width, self.num_features))
        self.register_buffer("P", torch.eye(self.width) / 0.01)
        self.forgetting, self.noise = forgetting, noise

    def forward(self, x: Tensor, metadata: Tensor, protected: Tensor | None = None) -> Tensor:
        design = self._design(x, metadata, protected)
        if self.training:
            with torch.no_grad():
                P = self.P / self.forgetting
                inner = torch.eye(x.shape[0]).to(x) + design @ P @ design.T
                gain = P @ design.T @ torch.linalg.inv(inner)
                self.P.copy_(P - gain @ design @ P + self.noise * torch.eye(self.width).to(x))
                self.beta.add_(gain @ (x.flatten(1) - design @ self.beta))
        return self._less(x, design, self.beta)


def main() -> None:
    torch.manual_seed(0)
    x, m, y = torch.randn(90, 3).double(), torch.randn(90, 1).double(), torch.randn(90, 1).double()
    design = torch.cat([y, m, torch.ones(90, 1)], 1)
    least = torch.linalg.lstsq(design, x).solution
    whole = PublishedMDN(3, 1, design=torch.cat([y, m], 1)).double()
    error = whole(x, m, y) - (x - design[:, 1:] @ least[1:])
    print(f"MDN on the whole data set, error   {float(error.abs().max()):.1e}")
    recursive = PublishedRMDN(3, 1, forgetting=1.0, noise=0.0).double()
    for part in torch.arange(90).split(30):
        recursive(x[part], m[part], y[part])
    ridge = torch.linalg.solve(design.T @ design + 0.01 * torch.eye(3), design.T @ x)
    print(f"R-MDN against ridge regression     {float((recursive.beta - ridge).abs().max()):.1e}")
    penalised = PublishedPMDN(3, 1).double()
    inputs = x.clone().requires_grad_()
    penalised(inputs, m, y)
    assert penalised.penalty is not None
    penalised.penalty.backward()
    print(f"PMDN's penalty reaches its inputs  {inputs.grad is not None}")


if __name__ == "__main__":
    main()
