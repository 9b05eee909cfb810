"""Rosenblatt's transform: scores are standard normal, grow with each feature, and the density is their Jacobian."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import kstest, norm

from residmix.erasure.transport.rosenblatt import Mixtures, from_scores, to_scores

D, K = 4, 3


def law(rng, n):
    """Return a mixture of three Gaussians that overlap, the same for all rows but for spreads that differ."""
    factors = np.tril(0.4 * rng.normal(size=(1, K, D, D)))
    factors[..., range(D), range(D)] = rng.uniform(0.6, 1.4, (1, K, D))
    spread = np.exp(0.3 * rng.normal(size=(n, 1, 1))) * np.ones((n, K, D))
    log_weights = np.tile(np.log([0.5, 0.3, 0.2]), (n, 1))
    means = np.tile(1.5 * rng.normal(size=(1, K, D)), (n, 1, 1))
    return Mixtures(log_weights, means, factors, np.zeros(n, dtype=np.intp), spread)


def drawn(rng, given):
    n = len(given.means)
    k = (rng.random((n, 1)) > np.exp(given.log_weights).cumsum(axis=1)).sum(axis=1)
    noise = np.einsum("nij,nj->ni", given.factors[0, k], rng.normal(size=(n, D)))
    return given.means[np.arange(n), k] + given.spread[np.arange(n), k] * noise


def log_density(x, given):
    from scipy.special import logsumexp

    logs = []
    for k in range(K):
        e = np.linalg.solve(given.factors[0, k], ((x - given.means[:, k]) / given.spread[:, k]).T).T
        jacobian = np.log(np.diag(given.factors[0, k])).sum() + np.log(given.spread[:, k]).sum(axis=1)
        logs.append(given.log_weights[:, k] + norm.logpdf(e).sum(axis=1) - jacobian)
    return logsumexp(logs, axis=0)


@pytest.fixture
def given(rng):
    return law(rng, 4000)


@pytest.mark.parametrize("plain", [False, True])
def test_scores_of_the_laws_own_rows_are_independent_and_standard_normal(rng, given, plain):
    x = drawn(rng, given)
    z = to_scores(x, given, plain=plain)
    for j in range(D):
        assert kstest(z[:, j], "norm").pvalue > 1e-3
    wrong = to_scores(
        x, replace(given, log_weights=given.log_weights[:, ::-1]), plain=plain
    )  # of another law's weights
    assert min(kstest(wrong[:, j], "norm").pvalue for j in range(D)) < 1e-6
    for transformed in (z, z**2, np.abs(z)):
        assert np.abs(np.corrcoef(transformed.T) - np.eye(D)).max() < 4.5 / np.sqrt(len(z))


@pytest.mark.parametrize("plain", [False, True])
def test_the_density_is_that_of_the_scores_times_the_slopes(rng, given, plain):
    """p(x) = prod phi(z_j) dz_j / dx_j, as z_j depends on x_1 ... x_j alone."""
    x, h = drawn(rng, given)[:200], 1e-6
    part = Mixtures(given.log_weights[:200], given.means[:200], given.factors, given.group[:200], given.spread[:200])
    z, slopes = to_scores(x, part, plain=plain), np.empty_like(x)
    for j in range(D):
        step = h * np.eye(D)[j]
        up, down = (to_scores(x + sign * step, part, plain=plain) for sign in (1, -1))
        slopes[:, j] = (up - down)[:, j] / (2 * h)
        assert np.abs((up - down)[:, :j]).max(initial=0.0) == 0
    assert slopes.min() > 0  # monotone in each conditional
    np.testing.assert_allclose(norm.logpdf(z).sum(axis=1) + np.log(slopes).sum(axis=1), log_density(x, part), atol=1e-6)


@pytest.mark.parametrize("plain", [False, True])
def test_rows_come_back_to_eight_digits_and_the_scores_of_any_row_do(rng, given, plain):
    x = drawn(rng, given)
    assert np.abs(from_scores(to_scores(x, given, plain=plain), given, plain=plain) - x).max() < 1e-8
    # one number up to a million standard deviations away
    far = x.copy()
    far[:, -1] *= 10.0 ** rng.integers(1, 7, size=len(x))
    back = from_scores(to_scores(far, given, plain=plain), given, plain=plain)
    assert (np.abs(back - far) / np.maximum(np.abs(far), 1.0)).max() < 1e-8
    # All of them. Given others so far out, components lie far from each other, and what lies in the gap between two has
    # the score of its edge.
    far = x * 10.0 ** rng.integers(1, 7, size=(len(x), 1))
    z = to_scores(far, given, plain=plain)
    back = from_scores(z, given, plain=plain)
    assert np.isfinite(z).all() and np.isfinite(back).all()
    again = to_scores(back, given, plain=plain)
    assert np.median(np.abs(back - far).max(axis=1) / np.abs(far).max(axis=1)) < 1e-12
    assert np.quantile(np.abs(again - z).max(axis=1) / np.maximum(np.abs(z).max(axis=1), 1.0), 0.9) < 1e-8


def test_growing_a_feature_grows_its_score_from_tail_to_tail(rng):
    steps = np.linspace(-1e3, 1e3, 4001)
    given = law(rng, len(steps))
    alike = Mixtures(given.log_weights, given.means, given.factors, given.group, np.ones_like(given.spread))
    for j in range(D):
        x = np.zeros((len(steps), D))
        x[:, j] = steps
        assert (np.diff(to_scores(x, alike)[:, j]) > 0).all()


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("seed", [13, 25, 29])
def test_steps_that_go_to_and_fro_for_ever_are_noticed(seed, plain):
    # of a million such mixtures there are three whose quantiles Newton's steps never reach, here
    rng = np.random.default_rng(seed)
    n, K = 20_000, int(rng.integers(2, 5))
    means, own = rng.normal(size=(n, K, 1)), np.exp(rng.uniform(-5, 1, (n, K, 1)))
    weights = np.log(rng.dirichlet(np.ones(K), n) + 1e-9)
    law = Mixtures(weights, means, np.ones((1, K, 1, 1)), np.zeros(n, dtype=np.int64), own)
    z = rng.normal(size=(n, 1))
    np.testing.assert_allclose(to_scores(from_scores(z, law, plain=plain), law, plain=plain), z, atol=1e-9)
