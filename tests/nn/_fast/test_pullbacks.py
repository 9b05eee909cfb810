"""The closed-form gradients of a training step against autograd's through the same network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from residmix.nn._fast.pullbacks import trunk_output
from residmix.nn._fast.trainer import SideBySide
from residmix.nn.regressor.fitting import Plan, Removal, plan_network
from residmix.nn.regressor.training import Sample, Schedule

M, N, B = 2, 40, 9


def rows(
    D: int, *, missing: bool = False, cell: float | None = None, removal: bool = False, far: float = 9.0
) -> Sample:
    g = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    X, y = normal(N, 4), 2 * normal(N, D)
    X[0] = 50.0  # where the clip of the trunk bends
    y[1] = far
    if missing:
        y[2, 0] = y[3, 1:] = y[4] = torch.nan
    columns = {"metadata": normal(N, 1), "protected": normal(N, 1)} if removal else {}
    weight = 0.5 + torch.rand(N, generator=g, dtype=torch.float64)
    return Sample(X, y, weight, **columns, cell=None if cell is None else torch.full((D,), cell, dtype=torch.float64))


def running(
    sample: Sample, covariance: str = "diagonal", *, rank: int = 1, removal: Removal | None = None
) -> SideBySide:
    torch.manual_seed(1)
    D = sample.y.shape[1]
    plan = Plan(4, D, 3, covariance, rank, (6, 5), 0.0, M, (0.1,) * D, removal)
    network = plan_network(plan).double()
    with torch.no_grad():
        for p in network.head.parameters():
            p.mul_(4)
    held = np.arange(N) % 4 == np.arange(M)[:, None]
    return SideBySide(network, sample, held, Schedule(), [np.random.default_rng(m) for m in range(M)])


def batch_of(sample: Sample) -> tuple[list[Tensor], Tensor]:
    chosen = torch.stack([torch.arange(B), torch.arange(B).flip(0)])
    return [*sample.inputs(chosen), sample.y[chosen]], sample.weight[chosen] / B


def by_autograd(run: SideBySide, batch: list[Tensor], share: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    *inputs, y = batch
    density = run.network(*inputs)
    cell = run.sample.cell
    loss = -(density.log_prob(y) if cell is None else density.log_cell_prob(y, cell))
    return loss.detach(), torch.autograd.grad((share * loss).sum(), list(run.network.parameters()))


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize(
    ("covariance", "rank"), [("diagonal", 1), ("spherical", 1), ("full", 1), ("low-rank", 1), ("low-rank", 2)]
)
@pytest.mark.parametrize("D", [1, 3])
def test_loss_and_gradients_are_autograds(covariance, rank, D, missing) -> None:
    for far in (9.0, 1e6):
        compare(rows(D, missing=missing and D > 1, far=far), covariance, rank)


@pytest.mark.parametrize("covariance", ["diagonal", "full", "low-rank"])
def test_so_they_are_on_grid_cells(covariance) -> None:
    for far, cell in ((9.0, 0.3), (9.0, 100.0), (1e6, 0.3)):  # some cells hold everything
        compare(rows(1, cell=cell, far=far), covariance)
        if covariance == "diagonal":
            compare(rows(3, missing=True, cell=cell, far=far), covariance)


def test_a_continuous_target_may_stand_beside_a_gridded_one() -> None:
    sample = rows(2, cell=0.3)
    assert sample.cell is not None
    sample.cell[1] = 1e-9  # P is known to 1e-16 / h
    compare(sample, "diagonal", tolerance=1e-6)


def compare(sample: Sample, covariance: str, rank: int = 1, tolerance: float = 1e-10) -> None:
    run, (batch, share) = running(sample, covariance, rank=rank), batch_of(sample)
    loss, pullback = run.traced_losses(batch)
    expected, gradients = by_autograd(run, batch, share)
    torch.testing.assert_close(loss, expected, rtol=tolerance, atol=tolerance)
    for ours, theirs in zip(pullback(share), gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=10 * tolerance, atol=10 * tolerance)


def test_the_gradient_passes_through_a_residualizing_layer() -> None:
    sample, removal = rows(1, removal=True), Removal(1, 1)
    batch, share = batch_of(sample)
    one, other = (running(sample, removal=removal) for _ in range(2))
    one.network.train()
    other.network.train()
    loss, pullback = one.traced_losses(batch)
    expected, gradients = by_autograd(other, batch, share)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(pullback(share), gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_dropout_masks_apply_there_and_back() -> None:
    g = torch.Generator().manual_seed(0)
    x, w, v = (torch.randn(M, *shape, generator=g, dtype=torch.float64) for shape in ((B, 3), (3, 6), (6, 5)))
    parameters = [
        (w.requires_grad_(), torch.zeros(M, 1, 6).double()),
        (v.requires_grad_(), torch.ones(M, 1, 5).double()),
    ]
    masks = [2.0 * (torch.rand(M, B, width, generator=g) < 0.5).double() for width in (6, 5)]
    h = x / torch.sqrt(1 + (x / 8) ** 2)
    for (weight, bias), mask in zip(parameters, masks, strict=True):
        h = F.silu(h @ weight + bias) * mask
    h = torch.cat([h, x], -1)
    gradient = torch.randn(h.shape, generator=g, dtype=torch.float64)
    expected = torch.autograd.grad(h, [w, v], gradient)
    queue = list(masks)
    with torch.no_grad():
        value, pullback = trunk_output(x, parameters, 8.0, lambda _: queue.pop(0))
        ours = pullback(gradient)
    torch.testing.assert_close(value, h)
    torch.testing.assert_close((ours[0], ours[2]), expected)
