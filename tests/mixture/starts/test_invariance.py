"""Starts, and so labels, don't depend on units, offsets, linear maps or the order of columns."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score

from residmix import GaussianMixture

pytestmark = pytest.mark.filterwarnings("ignore")


def clusters(seed):
    rng = np.random.default_rng(seed)
    n, d, K = int(rng.integers(80, 250)), int(rng.integers(2, 5)), int(rng.integers(2, 5))
    labels = rng.integers(0, K, n)
    spread = rng.normal(size=(K, d, d)) * 0.4 + np.eye(d)
    X = 3 * rng.normal(size=(K, d))[labels] + np.einsum("nij,nj->ni", spread[labels], rng.normal(size=(n, d)))
    return X, K, rng


def labels(X, K, family):
    return GaussianMixture(K, covariance_type=family, reg_covar=0.0, random_state=0).fit(X).predict(X)


@pytest.mark.parametrize("family", ["full", "tied", "diag", "spherical"])
@settings(max_examples=15, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000))
@pytest.mark.slow
def test_the_order_of_columns_changes_no_label(family, seed):
    X, K, rng = clusters(seed)
    order = rng.permutation(X.shape[1])
    assert adjusted_rand_score(labels(X, K, family), labels(X[:, order], K, family)) > 0.99


@pytest.mark.parametrize("family", ["full", "tied"])
@settings(max_examples=15, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000))
def test_a_linear_map_and_an_offset_change_no_label(family, seed):
    X, K, rng = clusters(seed)
    d = X.shape[1]
    mapped = X @ (rng.normal(size=(d, d)) + 2 * np.eye(d)) * 10.0 ** rng.uniform(-2, 2) + rng.normal(size=d)
    assert adjusted_rand_score(labels(X, K, family), labels(mapped, K, family)) > 0.99


@settings(max_examples=15, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000))
def test_other_units_change_no_label_of_diagonal_covariances(seed):
    X, K, rng = clusters(seed)
    units = 10.0 ** rng.uniform(-2, 2, X.shape[1])
    assert adjusted_rand_score(labels(X, K, "diag"), labels(X * units + 1.0, K, "diag")) > 0.99
