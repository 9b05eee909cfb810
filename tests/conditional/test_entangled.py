"""Sites with one cluster each: a shift and a gate say the same, and that's told."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import multivariate_normal

import residmix as rm
from residmix.errors import EntangledEffectsWarning
from residmix.mixture.given.gate import log_priors, make_gate
from residmix.mixture.iteration.step import MixtureEM
from residmix.mixture.params import make_params
from residmix.rows.rows import ArrayRows


def sites(share, n=400, seed=0):
    rng = np.random.default_rng(seed)
    site = np.repeat([0.0, 1.0], n // 2)
    cluster = np.where(rng.random(n) < share, site, 1 - site)
    return rng.normal(size=(n, 2)) + 6 * cluster[:, None], site


def fit(share):
    X, site = sites(share)
    return rm.ResidualMixture(2, estimation="joint", gating="metadata", random_state=0).fit(X, metadata=site)


def test_sites_of_one_cluster_each_are_told():
    with pytest.warns(EntangledEffectsWarning, match="can't be separated from the components"):
        model = fit(1.0)
    told = [note for note in model.notes_ if note["kind"] == "entangled-effects"]
    assert told and told[0]["figures"]["bic_of_one"] < told[0]["figures"]["bic"]
    X, site = sites(1.0)
    residual = X - np.stack([X[site == s].mean(axis=0) for s in (0, 1)])[site.astype(int)]
    covariance = residual.T @ residual / len(X)
    density = multivariate_normal(np.zeros(2), covariance).logpdf(residual).sum()
    # two means, two differences between sites, three covariances
    np.testing.assert_allclose(told[0]["figures"]["bic_of_one"], -2 * density + 7 * np.log(len(X)), rtol=1e-9)


def test_sites_that_share_clusters_are_not():
    with warnings.catch_warnings():
        warnings.simplefilter("error", EntangledEffectsWarning)
        fit(0.8)


def test_a_revived_component_takes_half_of_the_prior_that_the_heaviest_one_had():
    rng = np.random.default_rng(0)
    u = rng.normal(size=(300, 1))
    rows = ArrayRows(rng.normal(size=(300, 2)), u)
    gate = make_gate(np.array([[0.3, 1.0], [-0.3, 0.0], [0.0, -1.0]]))
    means = np.array([[0.0, 0.0], [0.5, 0.5], [1e4, 1e4]])  # nothing is near the last one
    mixture = make_params(np.array([0.6, 0.3, 0.1]), means, np.stack([np.eye(2)] * 3), "full")
    em = MixtureEM(rows, 1e-6)
    following = em(replace(mixture, coef=np.zeros((1, 2)), gate=gate))[1]
    assert em.revived == [[2]]
    priors = np.exp(log_priors(u, following.gate.coef))
    heavy = int(np.argmin(np.abs(priors[:, :2] - priors[:, 2:]).max(axis=0)))
    np.testing.assert_allclose(priors[:, heavy], priors[:, 2], rtol=1e-9)
    # the halves are together what the heaviest was: the third keeps its share of rows
    em.revived.clear()
    alone = MixtureEM(rows, 1e-6, revived=[[2]] * 5)(replace(mixture, coef=np.zeros((1, 2)), gate=gate))[1]
    before = np.exp(log_priors(u, alone.gate.coef))
    other = 1 - heavy
    odds = (priors[:, heavy] + priors[:, 2]) / priors[:, other]
    np.testing.assert_allclose(odds, before[:, heavy] / before[:, other], rtol=1e-9)
