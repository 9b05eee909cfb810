"""Components of one fit found again in another."""

import numpy as np
import pytest

import residmix as rm


def model(means, covariance_type="full"):
    K, d = np.shape(means)
    shapes = {"full": np.tile(np.eye(d), (K, 1, 1)), "spherical": np.ones(K)}
    return rm.GaussianMixture.from_parameters(np.full(K, 1 / K), means, shapes[covariance_type], covariance_type)


def test_a_permutation_is_found_also_between_families():
    rng = np.random.default_rng(0)
    means, order = rng.normal(size=(6, 3)) * 5, rng.permutation(6)
    other = model(means[order] + 0.1 * rng.normal(size=(6, 3)), "spherical")
    found, distance = rm.match_components(model(means), other, return_distance=True)
    assert np.array_equal(order[found], np.arange(6))
    assert distance.max() < 0.1


def test_the_sum_of_distances_decides_and_not_the_nearest_first():
    found = rm.match_components(model([[0.0], [1.0]]), model([[0.9], [-5.0]]))
    # pairing 1 with .9, the nearest two, would leave 0 with -5 as well: it's the same here; greedy from 0 errs
    assert found.tolist() == [1, 0]


def test_covariances_tell_apart_what_means_do_not():
    wide = rm.GaussianMixture.from_parameters([0.5, 0.5], [[0.0], [0.0]], [1.0, 25.0], "spherical")
    narrow = rm.GaussianMixture.from_parameters([0.5, 0.5], [[0.0], [0.0]], [24.0, 1.1], "spherical")
    assert rm.match_components(wide, narrow).tolist() == [1, 0]


def test_fewer_components_leave_some_without_a_partner():
    found, distance = rm.match_components(model([[0.0], [5.0], [9.0]]), model([[9.0], [0.0]]), return_distance=True)
    assert found.tolist() == [1, -1, 0]
    assert np.isnan(distance[1])


def test_mixtures_of_other_features_are_refused():
    with pytest.raises(ValueError, match="2 and 1 features"):
        rm.match_components(model([[0.0, 1.0]]), model([[0.0]]))
