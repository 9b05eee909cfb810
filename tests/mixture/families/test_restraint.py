"""Bounds on eigenvalues and priors: exact minima, posteriors that never fall, mclust's numbers."""

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp
from scipy.stats import invgamma, invwishart, multivariate_normal

import residmix as rm
from residmix.mixture.families.family import FAMILIES, family
from residmix.mixture.families.restraint import Prior, truncated
from residmix.mixture.params import make_params

FIXTURES = Path(__file__).parents[2] / "fixtures"
# mclust.R and mclust_prior.R made them
DATA = json.loads((FIXTURES / "mclust.json").read_text())
PRIOR = json.loads((FIXTURES / "mclust_prior.json").read_text())


def loss(values, n, t):
    return (n[:, None] * (np.log(t) + values / t)).sum()


@pytest.mark.parametrize("ratio", [1.0, 3.0, 50.0])
@pytest.mark.parametrize("seed", range(5))
def test_truncated_eigenvalues_are_the_likeliest_within_the_bound(ratio, seed):
    rng = np.random.default_rng(seed)
    values, n = np.exp(3 * rng.normal(size=(4, 3))), rng.uniform(1, 50, 4)
    values[0, 0] = 0.0 if seed == 0 else values[0, 0]
    found = truncated(values, n, ratio)
    assert found.max() <= ratio * found.min() * (1 + 1e-12)

    def clipped(log):
        return loss(values, n, np.clip(values, np.exp(log), ratio * np.exp(log)))

    grid = np.linspace(-12, 12, 2000)
    near = grid[np.argmin([clipped(log) for log in grid])]
    best = minimize_scalar(clipped, bounds=(near - 0.05, near + 0.05), method="bounded", options={"xatol": 1e-12})
    assert loss(values, n, found) == pytest.approx(best.fun, abs=1e-8)
    # and no values within the bound do better
    for _ in range(300):
        other = np.clip(found * np.exp(0.1 * rng.normal(size=found.shape)), found.min(), ratio * found.min())
        assert loss(values, n, other) >= loss(values, n, found) - 1e-9


def test_what_is_within_the_bound_stays():
    values = np.array([[1.0, 2.0], [3.0, 4.0]])
    assert truncated(values, np.ones(2), 4.0) is values


@pytest.mark.parametrize("kind", ["full", "tied", "diag", "spherical", "EII", "EEI"])
def test_fits_keep_the_bound_and_never_fall(kind):
    X = np.array(DATA["iris"]["X"])
    plain = rm.GaussianMixture(3, covariance_type=kind, random_state=0, reg_covar=0, tol=1e-9).fit(X)
    setting = {"covariance_type": kind, "eigenvalue_ratio": 6.0, "random_state": 0, "reg_covar": 0, "tol": 1e-9}
    model = rm.GaussianMixture(3, **setting).fit(X)
    values = np.linalg.eigvalsh(model._model().full_covariances())
    assert values.max() <= 6 * values.min() * (1 + 1e-9)
    assert np.diff(model.lower_bounds_).min(initial=0) > -1e-11
    before = np.linalg.eigvalsh(plain._model().full_covariances())
    assert (before.max() > 6 * before.min()) == (kind not in ("spherical", "EII"))


def test_no_component_sits_on_a_few_rows_within_the_bound():
    rng = np.random.default_rng(0)
    X = np.vstack([rng.normal(size=(100, 2)), np.full((4, 2), 0.5) + 1e-5 * rng.normal(size=(4, 2))])
    labels = np.repeat([0, 1], [100, 4])
    with pytest.warns(rm.errors.DegenerateComponentWarning):
        spike = rm.GaussianMixture(2, labels_init=labels, reg_covar=0).fit(X)
    assert np.linalg.eigvalsh(spike.covariances_).min() < 1e-9
    model = rm.GaussianMixture(2, labels_init=labels, eigenvalue_ratio=10.0, reg_covar=0).fit(X)
    assert np.linalg.eigvalsh(model.covariances_).min() > 0.01


@pytest.mark.parametrize("kind", ["VII", "VVI", "EEE", "VVV"])
@pytest.mark.parametrize("name", ["iris", "faithful", "diabetes"])
def test_mclusts_default_prior_leads_where_mclust_goes(name, kind):
    # of its other families mclust's M-steps leave parts of the prior out (the scale of EII, the mean of EEI)
    X = np.array(DATA[name]["X"])
    for K, runs in PRIOR[name].items():
        labels = DATA[name]["runs"][K]["labels"]
        setting = {"covariance_type": kind, "labels_init": labels, "reg_covar": 0.0, "tol": 1e-14, "max_iter": 20_000}
        model = rm.GaussianMixture(int(K), prior="mclust", **setting).fit(X)
        assert model.score(X) * len(X) == pytest.approx(runs[kind]["log_likelihood"], abs=1e-5)
        assert model.bic(X) == pytest.approx(
            -2 * runs[kind]["log_likelihood"] + model._n_parameters() * np.log(len(X)), abs=3e-5
        )
        logs = np.linalg.slogdet(model._model().full_covariances())[1]
        assert_allclose(logs, runs[kind]["log_dets"], rtol=1e-5, atol=1e-5)
        if K != "1":
            plain = rm.GaussianMixture(int(K), **setting).fit(X)
            assert plain.score(X) > model.score(X) + 1e-4


def posterior(params, X, prior):
    """Log-likelihood and log-prior by scipy, up to a constant."""
    full = params.full_covariances()
    parts = zip(params.weights, params.means, full, strict=True)
    value = logsumexp([np.log(w) + multivariate_normal(m, S).logpdf(X) for w, m, S in parts], axis=0).sum()
    d, of = X.shape[1], params.family
    value += sum(
        multivariate_normal(prior.mean, S / prior.strength).logpdf(m) for m, S in zip(params.means, full, strict=True)
    )
    spread = np.trace(prior.scale) / d
    for S in full[:1] if of.shared else full:
        if not of.diagonal:
            value += invwishart(prior.dof, prior.scale).logpdf(S)
        else:
            variances = np.diag(S)[:1] if of.isotropic else np.diag(S)
            value += invgamma(prior.dof / 2, scale=spread / 2).logpdf(variances).sum()
    return value + (prior.dirichlet - 1) * np.log(params.weights).sum()


def test_the_density_of_the_prior_is_scipys_up_to_a_constant():
    X, rng = np.array(DATA["iris"]["X"]), np.random.default_rng(0)
    prior = Prior(X.mean(axis=0), 0.5, 7.0, np.cov(X.T), 2.0)
    for kind in ("VVV", "EEE", "VVI", "EEI", "VII", "EII"):
        of, gaps = family(kind), []
        for _ in range(3):
            W = np.stack([np.cov(rng.normal(size=(9, 4)).T) for _ in range(2)])
            n = np.array([3.0, 7.0])
            weights = rng.dirichlet([3, 3])
            params = make_params(weights, rng.normal(size=(2, 4)) + X.mean(axis=0), of.fit(of.of_full(W, n), n), kind)
            by_us = prior.log_density(params)
            by_us += rm.GaussianMixture._made(params, None).score(X) * len(X)
            gaps.append(by_us - posterior(params, X, prior))
        assert_allclose(gaps, gaps[0], atol=1e-8)


@pytest.mark.parametrize("kind", [*FAMILIES, "factor"])
def test_the_posterior_never_falls_and_is_what_is_reported(kind):
    X = np.array(DATA["iris"]["X"])[::2]
    setting = {"covariance_type": kind, "random_state": 0, "reg_covar": 0.0, "tol": 1e-9}
    setting |= {"n_factors": 1, "tol": 1e-6} if kind == "factor" else {}
    prior = {"shrinkage": 2.0, "dof": 9.0, "dirichlet": 3.0}
    model = rm.GaussianMixture(3, prior=prior, **setting).fit(X)
    assert model.converged_
    assert np.diff(model.lower_bounds_).min(initial=0) > -1e-11
    assert model.lower_bound_ != pytest.approx(model.score(X), abs=1e-3)
    # a step away in any of some directions is less likely a posteriori
    if kind in ("VVV", "EEE", "VVI", "VII"):
        scale = np.cov(X.T) / 3 ** (2 / 4)
        known, best = Prior(X.mean(axis=0), 2.0, 9.0, scale, 3.0), model._model()
        top, rng = posterior(best, X, known), np.random.default_rng(0)
        for _ in range(30):
            turn = np.eye(4) + 0.01 * (rng.normal(size=(4, 4)) if not best.family.diagonal else 0)
            full = turn @ (best.full_covariances() * np.exp(0.02 * rng.normal())) @ turn.T
            means = best.means + 0.02 * rng.normal(size=best.means.shape)
            weights = best.weights * np.exp(0.02 * rng.normal(size=3))
            of = best.family
            moved = make_params(weights / weights.sum(), means, of.fit(of.of_full(full, weights), weights), kind)
            assert posterior(moved, X, known) < top


def test_a_prior_keeps_components_of_few_rows_regular():
    rng = np.random.default_rng(0)
    X = np.vstack([rng.normal(size=(50, 3)), [[9.0, 9.0, 9.0], [9.1, 9.0, 9.0]]])
    labels = np.repeat([0, 1], [50, 2])
    with pytest.raises(ValueError, match="ill-defined"):
        rm.GaussianMixture(2, labels_init=labels, reg_covar=0.0).fit(X)
    model = rm.GaussianMixture(2, labels_init=labels, reg_covar=0.0, prior="mclust").fit(X)
    assert np.linalg.eigvalsh(model.covariances_).min() > 0.01
    assert model.predict(X)[-1] == 1


def test_a_search_compares_likelihoods_not_posteriors():
    X = np.array(DATA["faithful"]["X"])
    model = rm.GaussianMixture([1, 2, 3], prior="mclust", random_state=0).fit(X)
    best = int(np.argmin(model.selection_["bic"]))
    assert model.selection_["log_likelihood"][best] == pytest.approx(model.score(X) * len(X), rel=1e-9)
    assert model.bic(X) == pytest.approx(model.selection_["bic"][best], rel=1e-9)


def test_joint_coefficients_with_a_prior_never_fall():
    rng = np.random.default_rng(1)
    site, labels = rng.integers(0, 2, 300), rng.integers(0, 2, 300)
    X = rng.normal(size=(300, 2)) + 4 * labels[:, None] + site[:, None]
    setting = {"formula": "C(m0)", "estimation": "joint", "random_state": 0, "tol": 1e-9, "reg_covar": 0.0}
    model = rm.ResidualMixture(2, prior={"shrinkage": 20.0}, **setting).fit(X, metadata=site)
    assert np.diff(model.lower_bounds_).min(initial=0) > -1e-11
    assert_allclose(model.coef_, 1.0, atol=0.4)
