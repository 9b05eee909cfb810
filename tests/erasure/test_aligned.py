"""Groups are aligned, one to one, and components found in what they have in common, whatever the groups' shapes."""

import numpy as np
import pytest
from scipy.integrate import trapezoid
from sklearn.metrics import adjusted_rand_score, roc_auc_score

from residmix.erasure.transport.aligned import aligned, find_groups, prior_rows
from residmix.erasure.transport.groups import kept_patterns
from residmix.erasure.transport.transport import Asked, fit_transport

NUMBERS = np.array([], dtype=np.intp)


def sites(rng, n=3000):
    """Two sites of opposite correlations and shares, one twice as wide: clusters differ less than the sites do."""
    site = rng.integers(2, size=n)
    cluster = (rng.random(n) < np.where(site == 0, 0.7, 0.3)).astype(int)
    x = rng.normal(size=(n, 3)) * np.where(site == 1, 2.0, 1.0)[:, None]
    x[:, 0] = rng.normal(size=n) + np.where(cluster == 1, 2.5, -2.5)
    x[:, 1] += np.where(site == 0, 0.6, -0.6) * x[:, 0] + site
    mixing = np.array([[1, 0.3, 0.2], [-0.2, 1, 0.5], [0.4, 0, 1]])
    return x @ mixing, site[:, None].astype(float), cluster


@pytest.fixture
def drawn(rng):
    return sites(rng)


def test_aligned_groups_have_the_same_mean_and_covariance_and_come_back(drawn):
    x, a, _ = drawn
    weight = np.ones(len(x))
    fitted = aligned(x, a, weight, 1, np.array([0]), NUMBERS, kept_patterns(a, np.array([0])))
    u = fitted.into(x, a)
    one, two = (u[a[:, 0] == level] for level in (0, 1))
    assert np.abs(one.mean(axis=0) - two.mean(axis=0)).max() < 1e-10
    np.testing.assert_allclose(np.cov(one.T), np.cov(two.T), rtol=0.05, atol=0.05)  # a prior of five rows apart
    before = [np.cov(x[a[:, 0] == level].T) for level in (0, 1)]
    assert np.abs(before[0] - before[1]).max() > 1.0
    np.testing.assert_allclose(fitted.out_of(u, a), x, atol=1e-10)
    # the slope is that of the map
    jacobian = np.array(
        [(fitted.into(x[:9] + h, a[:9]) - fitted.into(x[:9] - h, a[:9])) / 2e-6 for h in 1e-6 * np.eye(3)]
    )
    found = np.linalg.slogdet(jacobian.transpose(1, 0, 2))[1]
    np.testing.assert_allclose(fitted.log_slope(a[:9]), found, atol=1e-6)


def test_groups_are_found_by_all_their_columns_and_others_are_none(rng):
    a = rng.integers(0, 2, size=(500, 6)).astype(float)
    columns = np.array([0, 2, 5])
    patterns = kept_patterns(a, columns)
    found = find_groups(a, columns, patterns)
    np.testing.assert_array_equal(patterns[found], a[:, columns])
    a[3, 2] = 0.5
    assert find_groups(a, columns, patterns)[3] == len(patterns) == 8
    assert (find_groups(a, columns[:0], kept_patterns(a, columns[:0])) == 0).all()  # without any, all are one


def test_it_does_not_depend_on_units_and_mixing_of_the_features(rng, drawn):
    x, a, _ = drawn
    weight, patterns, mixing = (
        np.ones(len(x)),
        kept_patterns(a, np.array([0])),
        rng.normal(size=(3, 3)) * [1e3, 1, 1e-3],
    )
    plain = aligned(x, a, weight, 1, np.array([0]), NUMBERS, patterns).into(x, a)
    mixed = aligned(x @ mixing, a, weight, 1, np.array([0]), NUMBERS, patterns).into(x @ mixing, a)
    inside = [np.cov(made[a[:, 0] == 0].T) for made in (plain, mixed)]
    np.testing.assert_allclose(mixing.T @ inside[0] @ mixing, inside[1], rtol=0.05, atol=0.05 * np.abs(inside[1]).max())


@pytest.mark.slow
def test_components_are_the_clusters_that_sites_share_not_the_sites(drawn, rng):
    x, a, cluster = drawn
    fitted = fit_transport(Asked(x, a, np.ones(len(x)), np.array([True]), None, True, 0), 2)
    labels = fitted.labels(x, a)
    assert adjusted_rand_score(cluster, labels) > 0.95  # over both sites: the same number is the same cluster
    # and in a component transport rows stay in theirs
    y, a_y, cluster_y = sites(rng)
    moved = fitted.forward(y, a_y)
    np.testing.assert_allclose(fitted.backward(moved, a_y), y, atol=1e-8)
    # along one direction for both sites
    scores = moved @ np.linalg.lstsq(moved - moved.mean(axis=0), cluster_y - cluster_y.mean(), rcond=None)[0]
    assert roc_auc_score(cluster_y, scores) > 0.99


def test_the_density_of_the_transport_integrates_to_one(rng):
    x = np.where(rng.random(2000) < 0.4, rng.normal(-2, 0.5, 2000), rng.normal(2, 1.0, 2000))[:, None]
    a = rng.integers(2, size=(2000, 1)).astype(float)
    x = x * np.where(a == 1, 1.7, 1.0) + a
    fitted = fit_transport(Asked(x, a, np.ones(2000), np.array([True]), None, False, 0), 2)
    grid = np.linspace(-15, 15, 4001)[:, None]
    for level in (0.0, 1.0):
        density = np.exp(fitted.log_density(grid, np.full_like(grid, level)))
        assert trapezoid(density, grid[:, 0]) == pytest.approx(1.0, abs=1e-4)


def test_a_direction_in_which_one_group_hardly_varies_is_aligned_by_its_own_rows(rng):
    n = 2000
    group = (np.arange(n) % 2).astype(float)[:, None]
    turn = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    x = rng.normal(size=(n, 4)) * np.where(group == 1, [1, 1, 1, 0.01], 1.0) @ turn
    patterns = np.array([[0.0], [1.0]])
    made = aligned(x, group, np.ones(n), 1, np.array([0]), np.array([], dtype=int), patterns)
    u = made.into(x, group)
    one, other = (np.cov(u[group[:, 0] == g].T) for g in (0, 1))
    np.testing.assert_allclose(np.linalg.eigvals(np.linalg.solve(one, other)).real, 1.0, atol=0.02)
    assert prior_rows(4, 0.0) == 6.0
    assert prior_rows(4, 1000.0) < 1e-3


def test_the_log_slope_is_that_of_finite_differences_where_groups_and_spreads_differ(rng):
    x, site, _ = sites(rng)
    age = rng.uniform(20, 80, len(x))
    x, a = x * np.exp(0.02 * age)[:, None], np.column_stack([site, age])
    groups = np.array([0])
    fitted = aligned(x, a, np.ones(len(x)), 2, groups, np.array([1]), kept_patterns(a, groups))
    some, step = slice(0, 50), 1e-4
    columns = [
        (fitted.into(x[some] + step * e, a[some]) - fitted.into(x[some] - step * e, a[some])) / (2 * step)
        for e in np.eye(3)
    ]
    slopes = np.linalg.slogdet(np.stack(columns, axis=1))[1]
    assert np.ptp(slopes) > 1
    np.testing.assert_allclose(fitted.log_slope(a[some]), slopes, atol=1e-6)


@pytest.mark.slow
def test_a_fit_to_all_rows_aligns_groups_by_all_of_them(drawn):
    x, a, _ = drawn
    asked = Asked(x, a, np.ones(len(x)), np.array([True]), None, False, 0)
    begun = fit_transport(asked.only(np.arange(300)), 2)
    whole = fit_transport(asked, 2, begun=begun)
    share = begun.cluster_shares(x, a)

    def unlike(fitted):
        """Return how far covariances within clusters are from those of the other group."""
        within = []
        for level in (0, 1):
            here = a[:, 0] == level
            u, each = fitted.aligned.into(x[here], a[here]), share[here]
            means = (each.T @ u) / each.sum(axis=0)[:, None]
            away = u[:, None] - means
            within.append(np.einsum("nk,nki,nkj->ij", each, away, away) / here.sum())
        return np.abs(np.linalg.eigvals(np.linalg.solve(*within)).real - 1).max()

    assert unlike(whole) < 0.02
    assert unlike(begun) > 0.1
