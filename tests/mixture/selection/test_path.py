"""Starts from many clusters, merged."""

import numpy as np
from sklearn.metrics import adjusted_rand_score

from residmix.mixture.iteration.estep import log_joint
from residmix.mixture.selection.path import merged_starts
from residmix.rows.rows import ArrayRows


def long_clusters(seed=0):
    """Three parallel strips, which k-means cuts across."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, 900)
    return np.column_stack([rng.normal(scale=8, size=900), 3.0 * labels + 0.3 * rng.normal(size=900)]), labels


def test_every_size_has_a_start_whose_parts_add_up():
    X, labels = long_clusters()
    found = merged_starts(ArrayRows(X), (1, 2, 3, 7), np.random.RandomState(0), 1e-6)
    assert set(found) == {1, 2, 3, 7}
    for K, params in found.items():
        assert params.means.shape == (K, 2)
        np.testing.assert_allclose(params.weights.sum(), 1.0)
        # merging keeps the mean of all
        np.testing.assert_allclose(params.weights @ params.means, X.mean(axis=0), atol=1e-9)
    merged = log_joint(X, found[3]).argmax(axis=1)
    assert adjusted_rand_score(labels, merged) > 0.95


def test_too_few_different_rows_have_no_such_start():
    assert merged_starts(ArrayRows(np.ones((50, 2))), (1, 2), np.random.RandomState(0), 1e-6) == {}
