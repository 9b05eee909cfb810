"""Rosenblatt's transform: normal scores of the right mixture, one to one, and finite however far away a row is."""

import numpy as np
import pytest
from scipy.stats import kstest, multivariate_normal, norm

from residmix.erasure.transport.rosenblatt import Mixtures, from_scores, to_scores


def mixtures(rng, n, K, d, G=2):
    square = rng.normal(size=(G, K, d, d))
    factors = np.linalg.cholesky(square @ square.transpose(0, 1, 3, 2) + 0.3 * np.eye(d))
    log_weights = np.log(rng.dirichlet(np.full(K, 2.0), n))
    means = rng.normal(0, 2, (1, K, d)) + rng.normal(size=(n, 1, d))
    spread = np.exp(rng.normal(0, 0.3, (n, K, d)))
    return Mixtures(log_weights, means, factors, rng.integers(0, G, n), spread)


def draw(rng, given):
    n, _, d = given.means.shape
    k = (rng.random((n, 1)) > np.exp(given.log_weights).cumsum(axis=1)).sum(axis=1)
    noise = np.einsum("nij,nj->ni", given.factors[given.group, k], rng.normal(size=(n, d)))
    return given.means[np.arange(n), k] + given.spread[np.arange(n), k] * noise


def covariance(given, i, g, k):
    root = given.spread[i, k][:, None] * given.factors[g, k]
    return root @ root.T


@pytest.mark.parametrize(("K", "d"), [(1, 3), (2, 1), (3, 4)])
def test_there_and_back_is_where_one_began(rng, K, d):
    given = mixtures(rng, 500, K, d)
    x = draw(rng, given)
    assert np.abs(from_scores(to_scores(x, given), given) - x).max() < 1e-9


def test_scores_of_the_mixtures_rows_are_independent_standard_normal_ones_and_of_others_are_not(rng):
    given = mixtures(rng, 20_000, 3, 3)
    x = draw(rng, given)
    z = to_scores(x, given)
    assert min(kstest(z[:, j], "norm").pvalue for j in range(3)) > 1e-3
    # squares and products as well: no dependence of second order is left
    both = np.column_stack([z, z**2])
    assert np.abs(np.corrcoef(both.T) - np.eye(6)).max() < 0.04
    other = Mixtures(given.log_weights, given.means, given.factors, 1 - given.group, given.spread)
    wrong = to_scores(x, other)
    assert np.abs(np.corrcoef(np.column_stack([wrong, wrong**2]).T) - np.eye(6)).max() > 0.1


def test_the_first_score_is_that_of_the_marginal_distribution(rng):
    given = mixtures(rng, 50, 2, 2)
    x = draw(rng, given)
    sd = given.factors[given.group][:, :, 0, 0] * given.spread[:, :, 0]
    marginal = (np.exp(given.log_weights) * norm.cdf((x[:, :1] - given.means[:, :, 0]) / sd)).sum(axis=1)
    assert np.allclose(norm.cdf(to_scores(x, given)[:, 0]), marginal, rtol=1e-10)


def test_the_density_is_that_of_the_scores_times_the_slopes(rng):
    # change of variables: p(x) = prod_j phi(z_j) dz_j/dx_j, with slopes by central differences
    given = mixtures(rng, 20, 3, 2)
    x, h = draw(rng, given), 1e-5
    log_p = -0.5 * (to_scores(x, given) ** 2).sum(axis=1) - np.log(2 * np.pi)
    for j in range(2):
        step = np.eye(2)[j] * h
        log_p += np.log((to_scores(x + step, given)[:, j] - to_scores(x - step, given)[:, j]) / (2 * h))
    expected = [
        np.log(
            sum(
                np.exp(given.log_weights[i, k])
                * multivariate_normal.pdf(x[i], given.means[i, k], covariance(given, i, g, k))
                for k in range(3)
            )
        )
        for i, g in enumerate(given.group)
    ]
    assert np.allclose(log_p, expected, atol=1e-5)


def test_scores_grow_with_each_feature_given_the_ones_before(rng):
    given = mixtures(rng, 1, 3, 2, G=1)
    many = Mixtures(*(np.repeat(part, 400, axis=0) for part in (given.log_weights, given.means)), given.factors,
                    np.zeros(400, dtype=int), np.repeat(given.spread, 400, axis=0))  # fmt: skip
    x = np.column_stack([np.zeros(400), np.linspace(-30, 30, 400)])
    assert (np.diff(to_scores(x, many)[:, 1]) > 0).all()


def test_rows_a_million_standard_deviations_away_stay_finite_and_come_back_where_one_component_rules(rng):
    given = mixtures(rng, 200, 3, 3)
    x = draw(rng, given) * 1e6
    z = to_scores(x, given)
    back = from_scores(z, given)
    assert np.isfinite(z).all()
    assert np.isfinite(back).all()
    one = mixtures(rng, 200, 1, 3)
    far = draw(rng, one) * 1e6
    assert np.allclose(from_scores(to_scores(far, one), one), far, rtol=1e-9)
