"""The head: bounded scales, a start at the mixture of the targets, members side by side."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from residmix.nn import MixtureDensityHead
from residmix.nn.density.head import COVARIANCES


def test_every_spherical_component_has_one_scale_for_all_targets() -> None:
    # tonyduan's code repeats scales in the wrong order: row 0 gets (s1, s2) instead of (s1, s1).
    p = MixtureDensityHead(4, 3, n_components=2, covariance="spherical")(torch.randn(7, 4))
    assert (p.scale == p.scale[..., :1]).all()
    assert (p.scale[:, 0] != p.scale[:, 1]).any()  # but components and rows differ


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("size", [1e-8, 1.0, 1e4])
def test_density_and_gradients_are_finite_and_scales_bounded_for_any_input(covariance, size) -> None:
    head = MixtureDensityHead(5, 3, covariance=covariance, rank=2, min_scale=0.01, max_scale=10.0)
    with torch.no_grad():
        head.linear.bias.mul_(size)
    p = head(size * torch.randn(20, 5))
    loss = -p.log_prob(torch.randn(20, 3)).mean()
    loss.backward()
    assert torch.isfinite(loss) and all(torch.isfinite(w.grad).all() for w in head.parameters())
    diagonal = p.scale if p.scale is not None else p.scale_tril.diagonal(dim1=-2, dim2=-1)
    assert diagonal.min() >= 0.01 and diagonal.max() <= 10.011


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_the_start_is_as_likely_as_the_mixture_it_comes_from(covariance) -> None:
    rng = np.random.default_rng(0)
    y = np.concatenate([rng.normal([-2, 0], 0.3, (150, 2)), rng.normal([2, 1], 0.5, (50, 2))])
    head = MixtureDensityHead(4, 2, 2, covariance=covariance)
    head.initialise(y, random_state=0)
    p = head(torch.zeros(1, 4))
    order = p.means[0, :, 0].argsort()
    assert p.means[0, order, 0].tolist() == pytest.approx([-2, 2], abs=0.1)
    assert p.weights[0, order].tolist() == pytest.approx([0.75, 0.25], abs=0.01)
    log = p.log_prob(torch.as_tensor(y, dtype=torch.float32)).mean().item()
    default = MixtureDensityHead(4, 2, 2, covariance=covariance)(torch.zeros(1, 4))
    # The truth has -1.78 nats; a spherical start is a little off it, a default one is far.
    assert log > -1.95
    assert default.log_prob(torch.as_tensor(y, dtype=torch.float32)).mean().item() < -3


def test_stored_scales_are_standard_deviations() -> None:
    # zuko 1.6.0 stores log variances where log scales are read: a cluster of sd 0.1 gets 0.01.
    y = np.concatenate([np.random.default_rng(1).normal(m, 0.1, (500, 1)) for m in (-1, 1)])
    head = MixtureDensityHead(2, 1, 2)
    head.initialise(y, random_state=0)
    assert head(torch.zeros(1, 2)).scale.flatten().tolist() == pytest.approx([0.1, 0.1], rel=0.15)


@pytest.mark.parametrize("y", [np.zeros((5, 2)), np.full((3, 2), np.nan), np.array([[1.0, np.nan], [np.nan, 2.0]])])
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_the_start_is_finite_for_constant_and_missing_targets(y, covariance) -> None:
    head = MixtureDensityHead(3, 2, 3, covariance=covariance)
    head.initialise(y, random_state=0)
    assert all(torch.isfinite(w).all() for w in head.parameters())
    assert torch.isfinite(head(torch.randn(4, 3)).log_prob(torch.zeros(4, 2))).all()


def test_members_side_by_side_are_separate_heads() -> None:
    many = MixtureDensityHead(4, 2, members=3, covariance="full")
    h, y = torch.randn(3, 6, 4), torch.randn(6, 2)
    together = many(h)
    assert together.batch_shape == (3, 6)
    for m in range(3):
        single = MixtureDensityHead(4, 2, covariance="full")
        with torch.no_grad():
            single.linear.weight.copy_(many.linear.weight[m].T)
            single.linear.bias.copy_(many.linear.bias[m, 0])
        torch.testing.assert_close(single(h[m]).log_prob(y), together.log_prob(y)[m])


def test_a_slope_makes_the_mean_of_every_component_the_line() -> None:
    head = MixtureDensityHead(5, 1, 2)
    head.initialise(np.random.default_rng(0).normal(size=(30, 1)), slope=[[2.0], [-1.0]], random_state=0)
    h = torch.zeros(1, 5)
    h[0, -2:] = torch.tensor([1.0, 3.0])
    moved = head(h).means - head(torch.zeros(1, 5)).means
    torch.testing.assert_close(moved, torch.full_like(moved, -1.0))


def test_wrong_options_are_named() -> None:
    with pytest.raises(ValueError, match="did you mean 'diagonal'"):
        MixtureDensityHead(2, covariance="diagnal")
    with pytest.raises(ValueError, match="n_components must be at least 1"):
        MixtureDensityHead(2, n_components=0)
    with pytest.raises(ValueError, match="min_scale must lie"):
        MixtureDensityHead(2, min_scale=0.0)
