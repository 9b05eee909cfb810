"""Components merged to clusters: as mclust's clustCombi does it."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from scipy.special import xlogy

import residmix as rm

FIXTURES = Path(__file__).parents[2] / "fixtures"
IRIS = np.array(json.loads((FIXTURES / "mclust.json").read_text())["iris"]["X"])
CASES = json.loads((FIXTURES / "clustcombi.json").read_text())


def same_partition(one, two):
    return len(set(zip(one, two, strict=True))) == len(set(one)) == len(set(two))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"K={len(case['weights'])}")
def test_clusters_entropies_and_the_choice_are_those_of_mclust(case):
    K = len(case["weights"])
    means = np.array(case["means"]).reshape(K, 4)
    covariances = np.array(case["covariances"]).reshape(K, 4, 4)
    model = rm.GaussianMixture.from_parameters(case["weights"], means, covariances)
    merged = model.merge_components(IRIS)
    assert_allclose(merged.entropy_["entropy"], case["entropy"], rtol=1e-6, atol=1e-6)
    for n, clusters in enumerate(case["clusters"], 1):
        assert same_partition(merged.with_clusters(n).clusters_, clusters)
    assert merged.n_clusters_ == case["chosen"]


def test_a_cluster_that_takes_three_components_is_one_again():
    rng = np.random.default_rng(0)
    angle = rng.uniform(0, np.pi, 600)
    moon = np.column_stack([np.cos(angle), np.sin(angle)]) * 4 + 0.3 * rng.normal(size=(600, 2))
    X = np.concatenate([moon, rng.normal(size=(200, 2)) * 0.3 - [0, 4], rng.normal(size=(200, 2)) * 0.3 + [9, 0]])
    truth = np.repeat([0, 1, 2], [600, 200, 200])
    model = rm.GaussianMixture([4, 5, 6], random_state=0).fit(X)
    for merged in (model.merge_components(), model.merge_components(X)):
        assert merged.n_clusters_ == 3
        assert same_partition(merged.predict(X), truth)
        assert not same_partition(model.predict(X), truth)
        assert_allclose(merged.predict_proba(X).sum(axis=1), 1)


def test_clusters_that_are_apart_stay():
    X = np.random.default_rng(0).normal(size=(400, 2)) + np.repeat([[0, 0], [8, 0], [0, 8], [8, 8]], 100, axis=0)
    model = rm.GaussianMixture(4, random_state=0).fit(X)
    assert model.merge_components().n_clusters_ == 4
    assert model.merge_components(n_clusters=2).n_clusters_ == 2
    assert np.array_equal(model.merge_components(n_clusters=4).predict(X), model.predict(X))


def test_weights_count_as_repeated_rows():
    rng = np.random.default_rng(0)
    X, times = rng.normal(size=(100, 2)), rng.integers(0, 4, 100)
    model = rm.GaussianMixture(3, random_state=0).fit(X)
    weighted = model.merge_components(X, sample_weight=times)
    assert_allclose(
        weighted.entropy_["entropy"], model.merge_components(np.repeat(X, times, axis=0)).entropy_["entropy"]
    )
    with pytest.raises(ValueError, match="sample_weight= needs X"):
        model.merge_components(sample_weight=times)


def test_noise_is_no_cluster():
    rng = np.random.default_rng(0)
    X = np.concatenate([rng.normal(size=(300, 2)), rng.normal(size=(300, 2)) + 1.5, rng.uniform(-9, 9, size=(60, 2))])
    model = rm.GaussianMixture(2, noise=True, random_state=0).fit(X)
    merged = model.merge_components(n_clusters=1)
    assert merged.predict_proba(X).shape == (660, 2)
    assert np.array_equal(merged.predict(X) == -1, merged.predict_proba(X)[:, 1] > 0.5)
    assert (merged.predict(X) == -1).any()
    with pytest.raises(ValueError, match="'n_clusters' parameter of merge_components"):
        model.merge_components(n_clusters=3)


def test_the_entropy_is_that_of_the_rows_shares_with_the_noises():
    rng = np.random.default_rng(0)
    X = np.concatenate([rng.normal(size=(200, 2)), rng.normal(size=(200, 2)) + [3, 0], rng.uniform(-8, 8, (60, 2))])
    model = rm.GaussianMixture(2, noise=True, random_state=0).fit(X)
    shares = model.predict_proba(X)
    shares = np.column_stack([shares, 1 - shares.sum(axis=1)]) if shares.shape[1] == 2 else shares
    assert_allclose(shares.sum(axis=1), 1)
    expected = -xlogy(shares, np.maximum(shares, 0)).sum()
    assert_allclose(model.merge_components(X).entropy_["entropy"][-1], expected, rtol=1e-6)


def test_one_component_is_one_cluster():
    X = np.random.default_rng(0).normal(size=(50, 2))
    for merged in (rm.GaussianMixture(1).fit(X).merge_components(X), rm.GaussianMixture(1).fit(X).merge_components()):
        assert merged.clusters_.tolist() == merged.with_clusters(1).clusters_.tolist() == [0]
        assert (merged.predict(X) == 0).all() and (merged.predict_proba(X) == 1).all()


def test_covariances_by_level_are_merged_without_rows():
    rng = np.random.default_rng(0)
    site, cluster = np.repeat([0.0, 1.0], 150), np.arange(300) % 3
    X = rng.normal(size=(300, 2)) * (1 + site[:, None]) + np.array([[0, 0], [1.5, 0], [40, 0]])[cluster]
    settings = {"formula": "C(site)", "covariance_by": "site", "estimation": "joint", "labels_init": cluster}
    model = rm.ResidualMixture(3, **settings).fit(X, metadata=pd.DataFrame({"site": site}))
    merged = model.merge_components(n_clusters=2)
    far = np.argmax(model.means_[:, 0])
    assert (merged.clusters_ == merged.clusters_[far]).sum() == 1
