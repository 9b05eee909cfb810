"""Seeds, k-means and the clusters' moments against plain numpy."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from residmix.kernels.clusters import cluster_moments, lloyd, seed

RNG = np.random.default_rng(0)
CENTRES = np.array([[0.0, 0.0], [8.0, 0.0], [0.0, 8.0]])
X = CENTRES[RNG.integers(0, 3, 200)] + RNG.normal(size=(200, 2))
W = RNG.uniform(0.5, 2.0, 200)
COLUMNS = np.ascontiguousarray(X.T)


def test_seeds_are_rows_one_in_each_of_well_separated_clusters():
    for state in range(20):
        centres = seed(COLUMNS, W, 3, np.random.RandomState(state))[0]
        assert all((centre == X).all(axis=1).any() for centre in centres)
        assert sorted(((centres[:, None] - CENTRES) ** 2).sum(axis=2).argmin(axis=1)) == [0, 1, 2]


def test_more_seeds_than_different_rows_repeat_rows():
    same = np.ones((2, 5))
    assert_allclose(seed(same, np.ones(5), 3, np.random.RandomState(0))[0], np.ones((3, 2)))


def test_k_means_ends_where_every_row_is_with_its_nearest_mean():
    labels = lloyd(COLUMNS, W, X[None, :3], 100)[0]
    means = np.stack([np.average(X[labels == k], axis=0, weights=W[labels == k]) for k in range(3)])
    assert np.array_equal(labels, ((X[:, None] - means) ** 2).sum(axis=2).argmin(axis=1))
    nearest = ((X[:, None] - X[:3]) ** 2).sum(axis=2).argmin(axis=1)
    assert np.array_equal(lloyd(COLUMNS, W, X[None, :3], 0)[0], nearest)


def test_a_centre_without_rows_stays():
    far = np.vstack([X[:2], [[1e3, 1e3]]])
    assert set(lloyd(COLUMNS, W, far[None], 50)[0]) == {0, 1}


@pytest.mark.parametrize("diagonal", [False, True])
def test_moments_of_clusters_are_those_of_numpy(diagonal):
    labels = RNG.integers(0, 3, 200)
    weight, means, scatter = cluster_moments(COLUMNS, W, labels, 4, diagonal=diagonal)
    for k in range(3):
        x, w = X[labels == k], W[labels == k]
        assert_allclose(weight[k], w.sum())
        assert_allclose(means[k], np.average(x, axis=0, weights=w))
        full = np.cov(x.T, aweights=w, ddof=0) * w.sum()
        assert_allclose(scatter[k], np.diag(full) if diagonal else full, rtol=1e-10)
    assert weight[3] == 0 and not scatter[3].any()
