"""Seeds, k-means and the clusters' moments against plain numpy; factors on both sides of where LAPACK takes over."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from residmix.kernels.cholesky import SMALL, inverse_cholesky, inverse_triangles
from residmix.kernels.clusters import cluster_moments, lloyd, seed

RNG = np.random.default_rng(0)
CENTRES = np.array([[0.0, 0.0], [8.0, 0.0], [0.0, 8.0]])
X = CENTRES[RNG.integers(0, 3, 200)] + RNG.normal(size=(200, 2))
W = RNG.uniform(0.5, 2.0, 200)
COLUMNS = np.ascontiguousarray(X.T)


def test_seeds_are_rows_one_in_each_of_well_separated_clusters():
    for state in range(20):
        centres = seed(COLUMNS, W, 3, np.random.RandomState(state))
        assert all((centre == X).all(axis=1).any() for centre in centres)
        assert sorted(((centres[:, None] - CENTRES) ** 2).sum(axis=2).argmin(axis=1)) == [0, 1, 2]


def test_more_seeds_than_different_rows_repeat_rows():
    same = np.ones((2, 5))
    assert_allclose(seed(same, np.ones(5), 3, np.random.RandomState(0)), np.ones((3, 2)))


def test_k_means_ends_where_every_row_is_with_its_nearest_mean():
    labels = lloyd(COLUMNS, W, X[:3], 100)
    means = np.stack([np.average(X[labels == k], axis=0, weights=W[labels == k]) for k in range(3)])
    assert np.array_equal(labels, ((X[:, None] - means) ** 2).sum(axis=2).argmin(axis=1))
    nearest = ((X[:, None] - X[:3]) ** 2).sum(axis=2).argmin(axis=1)
    assert np.array_equal(lloyd(COLUMNS, W, X[:3], 0), nearest)


def test_a_centre_without_rows_stays():
    far = np.vstack([X[:2], [[1e3, 1e3]]])
    assert set(lloyd(COLUMNS, W, far, 50)) == {0, 1}


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


@pytest.mark.parametrize("d", [1, 5, SMALL, SMALL + 1])
def test_factors_and_inverses_on_both_sides_of_lapack(d):
    root = RNG.normal(size=(3, d, 2 * d)) * 10.0 ** RNG.uniform(-3, 3, d)[:, None]
    matrices = root @ root.transpose(0, 2, 1)
    factors, failed = inverse_cholesky(matrices)
    assert not failed.any()
    assert not np.tril(factors, -1).any()
    whitened = factors.transpose(0, 2, 1) @ matrices @ factors
    assert_allclose(whitened, np.broadcast_to(np.eye(d), (3, d, d)), atol=1e-9)
    inverses = inverse_triangles(factors)
    assert not np.tril(inverses, -1).any()
    # back in units of each column's spread
    spread = np.sqrt(matrices.diagonal(0, 1, 2))
    again = (inverses.transpose(0, 2, 1) @ inverses - matrices) / spread[:, :, None] / spread[:, None, :]
    assert_allclose(again, 0.0, atol=1e-10)


@pytest.mark.parametrize("d", [3, SMALL + 1])
def test_what_has_no_factor_is_told(d):
    matrices = np.stack([np.eye(d), np.ones((d, d)) - 0.1 * np.eye(d), np.full((d, d), np.nan), -np.eye(d)])
    assert inverse_cholesky(matrices)[1].tolist() == [False, True, True, True]
