"""Clusters of a transport: which components are one, what directions tell them apart, and how they're divided."""

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from residmix.erasure.transport.clusters import MISTAKEN, apart, divided, kept_shares, merged, telling


def shares_at(distance, rng, n=40_000):
    """Probabilities of two components of unit spread, of rows drawn from both."""
    x = rng.normal(size=n) + distance * (np.arange(n) % 2)
    dense = np.stack([norm.pdf(x), norm.pdf(x, distance)], axis=1)
    return dense / dense.sum(axis=1, keepdims=True)


def mistaken(distance):
    """The probability that a row of one of them is taken for one of the other, by quadrature."""
    return quad(lambda x: norm.pdf(x) * norm.pdf(x, distance) / (norm.pdf(x) + norm.pdf(x, distance)), -12, 12)[0]


@pytest.mark.parametrize("distance", [2.0, 2.8, 3.2, 4.0])
def test_two_components_are_one_cluster_if_rows_are_mistaken_too_often(rng, distance):
    assert mistaken(2.95) > MISTAKEN > mistaken(3.05)
    found = merged(shares_at(distance, rng), np.ones(40_000))
    assert (found[0] == found[1]) == (mistaken(distance) > MISTAKEN)


def test_a_small_component_inside_a_large_one_is_of_its_cluster_and_a_far_one_is_not(rng):
    x = np.concatenate([rng.normal(size=9500), 3 * rng.normal(size=500), rng.normal(14, 1, 3000)])
    dense = np.stack([9500 * norm.pdf(x), 3000 * norm.pdf(x, 14), 500 * norm.pdf(x, scale=3)], axis=1)
    assert merged(dense / dense.sum(axis=1, keepdims=True), np.ones(len(x))).tolist() == [0, 1, 0]


@pytest.mark.parametrize("distance", [2.0, 4.0])
def test_components_are_apart_where_rows_of_one_are_not_taken_for_the_other_and_rare_ones_do_not_count(rng, distance):
    share, weight = shares_at(distance, rng), np.ones(40_000)
    assert apart(share, weight, 2) == (mistaken(distance) < MISTAKEN)
    rare = np.column_stack([0.99 * share[:, 0], 0.01 * share[:, 0], share[:, 1]])  # in the middle of the first
    assert apart(rare, weight, 2) == apart(share, weight, 2)
    assert not apart(np.column_stack([0.7 * share[:, 0], 0.3 * share[:, 0], share[:, 1]]), weight, 2)


def test_kept_shares_are_the_rows_own_between_clusters_and_the_targets_within(rng):
    own, target = (np.log(rng.dirichlet(np.ones(5), 7)) for _ in range(2))
    clusters = np.array([0, 1, 0, 2, 1])
    kept = np.exp(kept_shares(own, target, clusters))
    for c in range(3):
        here = clusters == c
        np.testing.assert_allclose(kept[:, here].sum(axis=1), np.exp(own[:, here]).sum(axis=1))
        within = np.exp(target[:, here]) / np.exp(target[:, here]).sum(axis=1, keepdims=True)
        np.testing.assert_allclose(kept[:, here] / kept[:, here].sum(axis=1, keepdims=True), within)
    np.testing.assert_array_equal(kept_shares(own, target, np.arange(5)), own)


def test_the_first_direction_tells_all_clusters_apart_where_fishers_leaves_two_together(rng):
    means = np.zeros((3, 6))
    means[:, :2] = [[-5, 0], [5, 2.5], [5, -2.5]]
    mixing = rng.normal(size=(6, 6))
    covariance = mixing.T @ mixing
    basis = telling(
        (means @ mixing)[None], np.repeat(covariance[None], 3, axis=0), np.full((1, 3), 1 / 3), np.arange(3)
    )
    np.testing.assert_allclose(basis.T @ covariance @ basis, np.eye(6), atol=1e-8)
    labels = rng.integers(3, size=3000)
    x = (rng.normal(size=(3000, 6)) + means[labels]) @ mixing

    def nearest(direction):
        where = np.sort(means @ mixing @ direction / np.sqrt(direction @ covariance @ direction))
        return np.diff(where).min()

    fisher = LinearDiscriminantAnalysis(solver="eigen").fit(x, labels).scalings_[:, 0]
    assert nearest(fisher) < 1
    assert nearest(basis[:, 0]) > 3.6  # 4 is the most that any direction has


def test_clusters_are_divided_by_their_shape_whatever_their_place_and_spread_in_a_group(rng):
    n = 4000
    group, labels = rng.integers(2, size=n), rng.integers(2, size=n)
    wide = rng.random(n) < 0.3
    u = rng.normal(size=(n, 2)) * np.where(wide, 5.0, 1.0)[:, None] * (1 + 2 * group)[:, None]
    u += 10 * labels[:, None] + 3 * (group * labels)[:, None]
    part = divided(u, group, labels, np.ones(n), 2, 0)
    for cluster in (0, 1):
        for g in (0, 1):
            here = (labels == cluster) & (group == g)
            agree = (part[here] == wide[here]).mean()
            assert max(agree, 1 - agree) > 0.85
    assert divided(u[:6], group[:6], labels[:6], np.ones(6), 3, 0) is None


def test_directions_are_found_where_two_means_are_the_same_at_some_metadata():
    means = np.array([[[0.0, 0, 0], [0, 0, 0], [5, 0, 1]], [[0.0, 0, 0], [4, 1, 0], [5, 0, 1]]])
    basis = telling(means, np.repeat(np.eye(3)[None], 3, axis=0), np.full((2, 3), 1 / 3), np.arange(3))
    assert np.isfinite(basis).all() and np.linalg.cond(basis) < 1e3
