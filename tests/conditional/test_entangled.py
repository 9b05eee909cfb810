"""Sites with one cluster each: a shift and a gate say the same, and that's told."""

import warnings

import numpy as np
import pytest

import residmix as rm
from residmix.errors import EntangledEffectsWarning


def sites(share, n=400, seed=0):
    rng = np.random.default_rng(seed)
    site = np.repeat([0.0, 1.0], n // 2)
    cluster = np.where(rng.random(n) < share, site, 1 - site)
    return rng.normal(size=(n, 2)) + 6 * cluster[:, None], site


def fit(share):
    X, site = sites(share)
    return rm.ResidualMixture(2, estimation="joint", gating="metadata", random_state=0).fit(X, metadata=site)


def test_sites_of_one_cluster_each_are_told():
    with pytest.warns(EntangledEffectsWarning, match="fit alike"):
        model = fit(1.0)
    told = [note for note in model.notes_ if note["kind"] == "entangled-effects"]
    assert told and told[0]["figures"]["bic_of_one"] < told[0]["figures"]["bic"]


def test_sites_that_share_clusters_are_not():
    with warnings.catch_warnings():
        warnings.simplefilter("error", EntangledEffectsWarning)
        fit(0.8)
