"""The distribution against scipy, torch, and quadrature; marginals of missing targets; the tails."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from residmix.nn.density.distribution import MixtureOfGaussians

KINDS = ("diagonal", "full", "low-rank")


def make(kind: str, *, n: int = 4, K: int = 3, D: int = 3, seed: int = 0) -> MixtureOfGaussians:
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    logits, means, scale = normal(n, K), 2 * normal(n, K, D), normal(n, K, D).exp()
    if kind == "full":
        tril = 0.5 * normal(n, K, D, D).tril(-1) + torch.diag_embed(scale)
        return MixtureOfGaussians(logits, means, scale_tril=tril)
    return MixtureOfGaussians(logits, means, scale, factor=normal(n, K, D, 2) if kind == "low-rank" else None)


def reference_log_prob(p: MixtureOfGaussians, y: np.ndarray) -> np.ndarray:
    """By scipy, dropping missing targets from mean and covariance."""
    out = []
    for weights, means, covs, value in zip(p.weights, p.means, p.component_covariances, y, strict=True):
        seen = ~np.isnan(value)
        parts = [
            w.item() * stats.multivariate_normal(m.numpy()[seen], c.numpy()[np.ix_(seen, seen)]).pdf(value[seen])
            for w, m, c in zip(weights, means, covs, strict=True)
        ]
        out.append(np.log(sum(parts)))
    return np.array(out)


@pytest.mark.parametrize("kind", KINDS)
def test_log_density_is_scipys_with_all_its_constants(kind) -> None:
    p, y = make(kind), np.random.default_rng(0).normal(size=(4, 3))
    np.testing.assert_allclose(p.log_prob(torch.from_numpy(y)), reference_log_prob(p, y), rtol=1e-10)


def test_the_loss_of_a_standard_normal_contains_log_two_pi() -> None:
    # tonyduan's and lightning-uq-box's losses are 0.919 per target too low.
    p = MixtureOfGaussians(torch.zeros(1), torch.zeros(1, 3), torch.ones(1, 3))
    assert -p.log_prob(torch.zeros(3)).item() == pytest.approx(1.5 * np.log(2 * np.pi))


@pytest.mark.parametrize("kind", KINDS)
def test_missing_targets_are_integrated_out_exactly(kind) -> None:
    p, y = make(kind), np.random.default_rng(1).normal(size=(4, 3))
    y[0, 0] = y[1, 2] = y[2, :2] = np.nan
    np.testing.assert_allclose(p.log_prob(torch.from_numpy(y)), reference_log_prob(p, y), rtol=1e-9)
    y[3] = np.nan
    assert p.log_prob(torch.from_numpy(y))[3].item() == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_missing_targets_put_no_nan_into_gradients(kind) -> None:
    p = make(kind)
    leaves = [t.requires_grad_() for t in (p.logits, p.means, p.scale, p.scale_tril, p.factor) if t is not None]
    y = torch.tensor([[np.nan, 1.0, 2.0], [np.nan] * 3, [0.0, 1.0, 1e6], [1.0, np.nan, np.nan]], dtype=torch.float64)
    p.log_prob(y).sum().backward()
    assert all(torch.isfinite(leaf.grad).all() for leaf in leaves)


@pytest.mark.parametrize("kind", KINDS)
def test_a_million_standard_deviations_away_density_and_gradient_are_finite(kind) -> None:
    p = make(kind).to(torch.float32)
    leaves = [t.requires_grad_() for t in (p.logits, p.means, p.scale, p.scale_tril, p.factor) if t is not None]
    far = 1e6 * p.component_scales.max().detach() * torch.ones(4, 3)
    log = p.log_prob(far)
    log.sum().backward()
    assert torch.isfinite(log).all() and all(torch.isfinite(leaf.grad).all() for leaf in leaves)
    # Control: in probability space the same density is 0 and its log -inf.
    assert torch.isinf((p.weights * p.component_log_prob(far).exp()).sum(-1).log()).all()


def test_extreme_logits_give_finite_gradients_where_the_log_of_softmax_does_not() -> None:
    logits = torch.tensor([200.0, 0.0, -200.0], requires_grad=True)
    MixtureOfGaussians(logits, torch.zeros(3, 1), torch.ones(3, 1)).log_prob(torch.zeros(1)).backward()
    assert torch.isfinite(logits.grad).all()
    naive = torch.tensor([200.0, 0.0, -200.0], requires_grad=True)
    (naive.softmax(-1).log() * torch.tensor([1.0, 1.0, 1.0])).sum().backward()
    assert not torch.isfinite(naive.grad).all()


@pytest.mark.parametrize("kind", KINDS)
def test_moments_are_those_of_draws_of_all_targets(kind) -> None:
    p = make(kind, n=2)
    torch.manual_seed(0)
    draws = p.sample((60_000,))
    assert draws.shape == (60_000, 2, 3)
    sd = p.variance.sqrt()
    # Standard errors: sd/sqrt(60000) = 0.004 sd for the mean, and about 0.02 for entries of the scaled covariance.
    torch.testing.assert_close(draws.mean(0) / sd, p.mean / sd, atol=0.025, rtol=0)
    gap = draws - p.mean
    cov = torch.einsum("snd,sne->nde", gap, gap) / len(draws)
    scale = sd.unsqueeze(-1) * sd.unsqueeze(-2)
    torch.testing.assert_close(cov / scale, p.covariance_matrix / scale, atol=0.12, rtol=0)
    torch.testing.assert_close(p.covariance_matrix.diagonal(dim1=-2, dim2=-1), p.variance)


def test_draws_of_every_target_have_their_own_mean() -> None:
    # sagelywizard/pytorch-mdn gathers the first target only and returns (0, 0, 0).
    p = MixtureOfGaussians(torch.zeros(1), torch.tensor([[0.0, 100.0, 200.0]]), torch.ones(1, 3))
    torch.testing.assert_close(p.sample((500,)).mean(0), torch.tensor([0.0, 100.0, 200.0]), atol=0.3, rtol=0)


def test_torch_agrees_on_mean_variance_cdf_and_density_of_one_target() -> None:
    p = make("diagonal", D=1)
    mix = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(logits=p.logits),
        torch.distributions.Normal(p.means.squeeze(-1), p.scale.squeeze(-1)),
    )
    y = torch.linspace(-3, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(p.mean.squeeze(-1), mix.mean)
    torch.testing.assert_close(p.variance.squeeze(-1), mix.variance)
    torch.testing.assert_close(p.log_prob(y.unsqueeze(-1)), mix.log_prob(y))
    torch.testing.assert_close(p.cdf(y.unsqueeze(-1)).squeeze(-1), mix.cdf(y))


@pytest.mark.parametrize("kind", KINDS)
def test_cdf_of_a_marginal_is_the_integral_of_its_density_and_icdf_inverts_it(kind) -> None:
    p = make(kind, n=1)
    single = p.marginal([1])
    area = integrate.quad(lambda t: single.log_prob(torch.tensor([[t]])).exp().item(), -60, 0.3, limit=400)[0]
    at = torch.full((1, 3), 0.3, dtype=torch.float64)
    assert p.cdf(at)[0, 1].item() == pytest.approx(area, abs=1e-7)
    levels = torch.tensor([[0.01, 0.5, 0.99]], dtype=torch.float64)
    torch.testing.assert_close(p.cdf(p.icdf(levels)), levels, atol=1e-10, rtol=0)


def test_cdf_one_standard_deviation_above_the_mean() -> None:
    p = MixtureOfGaussians(torch.zeros(1), torch.tensor([[3.0]]), torch.tensor([[0.1]]))
    assert p.cdf(torch.tensor([3.1])).item() == pytest.approx(0.8413447, abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_modes_are_stationary_and_none_is_lower_than_its_component_mean(kind) -> None:
    p = make(kind, D=2, n=3)
    points, height = p.modes()
    assert (height >= torch.stack([p.log_prob(p.means[:, k]) for k in range(3)], -1) - 1e-9).all()
    at = p.mode.clone().requires_grad_()
    log = p.log_prob(at)
    log.sum().backward()
    assert at.grad.abs().max() < 1e-4
    torch.testing.assert_close(log.detach(), height.max(-1).values)
    assert points.shape == (3, 3, 2)


def test_the_mode_is_not_the_mean_of_the_heaviest_component() -> None:
    # Two narrow components overlap and together stand higher than the one with the largest weight.
    p = MixtureOfGaussians(
        torch.tensor([0.4, 0.3, 0.3]).log(), torch.tensor([[5.0], [0.0], [0.1]]), torch.tensor([[1.0], [0.5], [0.5]])
    )
    assert p.mode.item() == pytest.approx(0.05, abs=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_affine_change_of_units_shifts_the_log_density_by_the_jacobian(kind) -> None:
    p, y = make(kind), torch.randn(4, 3, dtype=torch.float64)
    shift, scale = torch.tensor([1.0, -2.0, 0.5]).double(), torch.tensor([1e-3, 1.0, 1e3]).double()
    moved = p.affine(shift, scale)
    torch.testing.assert_close(moved.log_prob(shift + scale * y), p.log_prob(y) - scale.log().sum())


@pytest.mark.parametrize("kind", KINDS)
def test_pooling_members_averages_their_densities(kind) -> None:
    p, y = make(kind, n=4), torch.randn(3, dtype=torch.float64)
    average = p.log_prob(y).logsumexp(0) - np.log(4)
    assert p.pooled().log_prob(y).item() == pytest.approx(average.item())
    assert p.pooled().n_components == 12


@pytest.mark.parametrize("kind", KINDS)
def test_entropy_is_minus_the_mean_log_density_of_draws(kind) -> None:
    p = make(kind, n=2)
    torch.manual_seed(1)
    log = -p.log_prob(p.sample((40_000,)))
    # Standard error of the mean of 40000 draws: about 0.01; the 256 Sobol points add about as much.
    torch.testing.assert_close(p.entropy(), log.mean(0), atol=0.05, rtol=0)
    one = make("diagonal", n=2, D=1)
    torch.testing.assert_close(one.entropy(), -one.log_prob(one.sample((40_000,))).mean(0), atol=0.03, rtol=0)


def test_cell_probability_is_the_integral_over_the_box() -> None:
    p, width = make("diagonal", D=2), torch.tensor([0.5, 2.0], dtype=torch.float64)
    y = torch.randn(4, 2, dtype=torch.float64)
    ends = [torch.special.ndtr((y.unsqueeze(-2) + s * width / 2 - p.means) / p.scale) for s in (1, -1)]
    direct = (p.weights * (ends[0] - ends[1]).prod(-1)).sum(-1)
    torch.testing.assert_close(p.log_cell_prob(y, width), direct.log() - width.log().sum())
    tiny = torch.full((2,), 1e-9, dtype=torch.float64)
    torch.testing.assert_close(p.log_cell_prob(y, tiny), p.log_prob(y))


@pytest.mark.parametrize("width", [1e-9, 1e-3, 2e-3, 0.1, 3.0])
def test_cell_probability_and_its_gradient_are_smooth_and_finite_in_the_tails(width) -> None:
    scale = torch.tensor([[1.0]], requires_grad=True)
    mean = torch.tensor([[0.0]], requires_grad=True)
    for y in (0.0, 3.0, -40.0, 1e6):
        p = MixtureOfGaussians(torch.zeros(1), mean, scale)
        log = p.log_cell_prob(torch.tensor([y]), torch.tensor([width]))
        grads = torch.autograd.grad(log, (mean, scale))
        assert torch.isfinite(log) and all(torch.isfinite(g).all() for g in grads)
        if abs(y) < 5:
            exact = stats.norm.cdf(y + width / 2) - stats.norm.cdf(y - width / 2)
            assert log.item() == pytest.approx(np.log(exact / width), abs=1e-4)


def test_cells_of_correlated_targets_are_refused() -> None:
    with pytest.raises(ValueError, match="diagonal or spherical"):
        make("full").log_cell_prob(torch.zeros(4, 3), torch.ones(3))


def test_a_distribution_needs_one_kind_of_scale() -> None:
    with pytest.raises(ValueError, match="scale_tril"):
        MixtureOfGaussians(torch.zeros(1), torch.zeros(1, 1))


def test_targets_without_their_axis_are_refused_not_broadcast():
    # The 5 targets of 5 rows, as (5,), were each row's 5 targets.
    p, y = MixtureOfGaussians(torch.zeros(5, 2), torch.zeros(5, 2, 1), torch.ones(5, 2, 1)), torch.arange(5.0)
    calls = (p.log_prob, p.cdf, p.responsibilities, lambda value: p.log_cell_prob(value, torch.ones(1)))
    for call in calls:
        call(y.unsqueeze(-1))
        with pytest.raises(ValueError, match=r"shape \(\.\.\., 1\).*got \(5,\): use value\.unsqueeze"):
            call(y)


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_broadcast_and_draws_of_every_entry_have_their_own_components(kind: str) -> None:
    whole = make(kind, n=1)
    shared = {"scale": whole.scale, "scale_tril": whole.scale_tril, "factor": whole.factor}
    shared = {name: None if part is None else part[0] for name, part in shared.items()}
    for logits, means in ((whole.logits[0], whole.means.expand(6, 3, 3)), (whole.logits.expand(6, 3), whole.means[0])):
        p = MixtureOfGaussians(logits, means, **shared)
        assert p.batch_shape == (6,) and p.mean.shape == p.icdf(torch.tensor(0.5)).shape == (6, 3)
        torch.testing.assert_close(p.entropy(), whole.entropy().expand(6))
        torch.testing.assert_close(p.variance, whole.variance.expand(6, 3))
    far = MixtureOfGaussians(torch.zeros(2), torch.tensor([[-9.0], [9.0]]).expand(6, 2, 1), torch.ones(2, 1))
    torch.manual_seed(0)
    for shape in ((4,), (6,)):
        draws = far.sample((500, *shape))
        assert draws.shape == (500, *shape, 6, 1)
        # Entries are independent, so their signs are.
        assert (torch.corrcoef(draws.sign().reshape(-1, 6).T) - torch.eye(6)).abs().max() < 0.1
