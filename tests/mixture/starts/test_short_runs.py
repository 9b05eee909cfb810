"""The best of many starts, from clusters in all directions and in the least normal ones."""

import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from residmix import GaussianMixture, ResidualMixture
from residmix.mixture.iteration.quadratic import QuadraticRows
from residmix.mixture.starts.clusters import from_labels
from residmix.mixture.starts.directions import directions
from residmix.mixture.starts.sample import Sample
from residmix.mixture.starts.short_runs import AMONG_FEW, _settled
from residmix.rows.block import Block


def flattened(d, n, seed, share=0.4):
    """Two clusters along one axis of many, whitened: no distance between rows tells them apart."""
    rng = np.random.default_rng(seed)
    one = rng.random(n) < share
    X = rng.normal(size=(n, d))
    X[:, 0] += np.where(one, 3.0, -3.0)
    X[:, 1:] *= rng.uniform(0.2, 30, d - 1)
    X = X @ np.linalg.qr(rng.normal(size=(d, d)))[0]
    X -= X.mean(axis=0)
    return np.linalg.solve(np.linalg.cholesky(np.cov(X.T)), X.T).T, one


# kurtosis sees nothing at a share of .21, skewness does
@pytest.mark.parametrize("share", [0.4, 0.21])
@pytest.mark.parametrize("seed", range(3))
def test_clusters_in_one_of_thirty_directions_are_found(seed, share):
    X, one = flattened(30, 4000, seed, share)
    assert adjusted_rand_score(one, GaussianMixture(2, random_state=seed).fit_predict(X)) > 0.95
    # the control: k-means doesn't see them
    assert adjusted_rand_score(one, KMeans(2, n_init=1, random_state=0).fit_predict(X)) < 0.5


def test_a_direction_points_the_way_in_which_clusters_lie():
    X, one = flattened(30, 4000, 0)
    truth = X[one].mean(axis=0) - X[~one].mean(axis=0)
    found = directions(X, np.ones(len(X)), 1)
    assert np.abs(found.T @ truth / np.linalg.norm(truth)).max() > 0.95


@pytest.mark.parametrize("seed", range(5))
def test_clusters_that_are_all_flat_alike_are_no_spikes_and_found(seed):
    X = np.array([[1, 2], [1, 4], [1, 0], [10, 2], [10, 4], [10, 0]])
    # a warning would fail here
    model = GaussianMixture(2, random_state=seed).fit(X)
    np.testing.assert_allclose(model.means_[np.argsort(model.means_[:, 0])], [[1, 2], [10, 2]], atol=1e-6)
    assert len(set(model.predict([[0, 0], [12, 3]]))) == 2


@pytest.mark.filterwarnings("ignore::residmix.errors.DegenerateComponentWarning")
def test_a_cluster_that_lies_in_a_plane_by_nature_is_no_spike_and_found():
    rng = np.random.default_rng(0)
    truth = np.repeat([0, 1, 2], 40)
    X = np.array([[0, 0, 0], [2, 0, 0], [0, 2, 0]])[truth] + 0.5 * rng.normal(size=(120, 3))
    X[:40, 2] = X[:40, 0] - X[:40, 1] + 4e-4 * rng.normal(size=40)
    model = GaussianMixture(3, random_state=0).fit(X)
    known = GaussianMixture(3, labels_init=truth).fit(X)
    assert len(X) * (known.lower_bound_ - model.lower_bound_) < 0.1


@pytest.mark.parametrize("code", [-9999.0, 1e6])
def test_codes_and_outliers_do_not_hide_the_clusters(code):
    rng = np.random.default_rng(0)
    truth = np.repeat([0, 1, 2], 60)
    X = np.array([[0, 0], [8, 0], [0, 8]])[truth] + rng.normal(size=(180, 2))
    for times in (1, 9):
        Y = np.vstack([X, np.full((times, 2), code)])
        with pytest.warns() if times > 2 else _nothing():
            labels = GaussianMixture(4, random_state=0).fit_predict(Y)[:180]
        assert adjusted_rand_score(truth, labels) > 0.95


class _nothing:
    def __enter__(self):
        return self

    def __exit__(self, *raised):
        return False


def test_a_cluster_of_one_row_has_a_covariance_drawn_to_that_of_all():
    rng = np.random.default_rng(0)
    columns = rng.normal(size=(2, 101))
    labels = np.r_[np.zeros(100, dtype=np.int64), 1]
    start = from_labels(columns, np.ones(101), labels, 2, "full", 0.0)
    # d + 1 = 3 further rows that have the pooled covariance, beside one that has none
    pooled = 100 * np.cov(columns[:, :100], bias=True) / 101
    np.testing.assert_allclose(start.covariances[1], 3 / 4 * pooled, rtol=1e-12)


@pytest.mark.parametrize("apart", [True, False])
def test_a_cluster_of_few_rows_is_no_sign_of_clear_ones(apart):
    rng = np.random.default_rng(0)
    # ten standard deviations off: two rows, or half of them
    labels = np.repeat([0, 1], [60, 60] if apart else [118, 2])
    y = rng.normal(size=(120, 1)) + 10.0 * labels[:, None]
    sample = Sample.of(Block(0, y, np.empty((120, 0)), (), None), "full")
    own = (sample.y[:, 0] > sample.y[:, 0].mean()).astype(np.int64)[None]
    rows = QuadraticRows.of(sample.y, sample.w, diagonal=False)
    runs, unsure = _settled(own, sample, rows, 2, "full", AMONG_FEW)
    assert (runs is not None) == apart and (unsure < 0.01) == apart


def test_rows_of_which_no_start_can_be_made_are_an_error_that_says_what_to_do():
    # residuals of five rows, of which a factor with a level for nearly each leaves next to nothing
    table = pd.DataFrame(
        {"level": ["u", "v", "w", "u", "x"], "a": [-1.85, 0.87, -1.7, 2.14, 2.0], "b": [1, 3, -0.48, 1.03, -0.01]}
    )
    with warnings.catch_warnings(), pytest.raises(ValueError, match="decrease the number of components"):
        warnings.simplefilter("ignore")
        ResidualMixture(2, formula="level", random_state=0).fit(table)
