"""Factor-analytic covariances: what they minimise, how many numbers they are, and clusters in many dimensions."""

import warnings

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.optimize import minimize
from sklearn.decomposition import FactorAnalysis
from sklearn.metrics import adjusted_rand_score

import residmix as rm
from residmix.mixture.families.factor import FactorFamily, aligned, composed, most_factors
from residmix.mixture.families.family import family
from residmix.mixture.iteration.vector import pack, unpack
from residmix.mixture.params import make_params


def scatter(d=6, seed=0):
    """Covariances that are near to three factors' and have no variance that wants to be 0."""
    rng = np.random.default_rng(seed)
    loadings, noise = rng.normal(size=(2, d, 3)), rng.normal(size=(2, d, 200))
    return loadings @ loadings.swapaxes(1, 2) + noise @ noise.swapaxes(1, 2) / 200 * np.array([1.0, 2.0])[:, None, None]


def cost(parts, w):
    S = composed(parts[None])[0]
    return np.linalg.slogdet(S)[1] + np.trace(np.linalg.solve(S, w))


def high(n=1000, d=200, K=4, q=3, seed=0):
    """Clusters a step of half a standard deviation apart in each of many features, amid strong factors."""
    rng = np.random.default_rng(seed)
    loadings, means = rng.normal(size=(K, d, q)), 0.5 * rng.normal(size=(K, d))
    own, labels = rng.uniform(0.5, 2, size=(K, d)), rng.integers(0, K, n)
    X = means[labels] + np.einsum("ndq,nq->nd", loadings[labels], rng.normal(size=(n, q)))
    return X + np.sqrt(own[labels]) * rng.normal(size=(n, d)), labels


@pytest.mark.parametrize("q", [1, 2, 3])
def test_no_round_is_a_loss_and_no_optimiser_finds_likelier_parts(q):
    of, W = FactorFamily(n_factors=q), scatter()
    parts, costs = None, []
    for _ in range(60):
        parts = of.fit_parts(W, parts, 2)
        costs.append([cost(one, w) for one, w in zip(parts, W, strict=True)])
    assert np.diff(costs, axis=0).max() <= 1e-12
    assert (costs[0] > np.array(costs[-1]) + 1e-4).all()
    parts = of.fit_parts(W, parts, 2000)
    for one, w in zip(parts, W, strict=True):

        def loss(x, w=w):
            given = x.reshape(6, q + 1).copy()
            given[:, -1] = np.exp(given[:, -1])
            return cost(given, w)

        start = one.copy()
        start[:, -1] = np.log(start[:, -1])
        assert minimize(loss, start.ravel(), method="BFGS").fun >= cost(one, w) - 1e-5


@pytest.mark.parametrize("q", [1, 2])
def test_parameters_are_as_many_as_the_directions_a_covariance_can_move_in(q):
    d, rng = 6, np.random.default_rng(2)
    x, h = rng.uniform(0.5, 1.5, size=d * (q + 1)), 1e-6

    def covariance(x):
        return composed(x.reshape(1, d, q + 1)).ravel()

    moves = np.stack([(covariance(x + h * e) - covariance(x - h * e)) / (2 * h) for e in np.eye(len(x))])
    assert family(f"factor-{q}").n_parameters(1, d) == np.linalg.matrix_rank(moves, tol=1e-5)
    assert family(f"factor-{q}").n_parameters(3, d) == 3 * family(f"factor-{q}").n_parameters(1, d)


def test_one_component_is_scikit_learns_factor_analysis():
    X = high(400, 8, 1, 2)[0]
    model = rm.GaussianMixture(1, covariance_type="factor", n_factors=2, tol=1e-12, reg_covar=0).fit(X)
    peer = FactorAnalysis(2, tol=1e-10, max_iter=20_000, svd_method="lapack").fit(X)
    assert model.score(X) == pytest.approx(peer.score(X), abs=1e-6)
    assert_allclose(model.covariances_[0], peer.get_covariance(), atol=2e-3)
    assert_allclose(model.own_variances_[0], peer.noise_variance_, atol=2e-3)
    whole = model.loadings_[0] @ model.loadings_[0].T + np.diag(model.own_variances_[0])
    assert_allclose(whole, model.covariances_[0], rtol=1e-12)


def test_vectors_lead_back_whatever_way_the_loadings_are_turned():
    of, W = FactorFamily(n_factors=2), scatter()
    parts = of.fit_parts(W, None, 50)
    params = make_params(np.array([0.4, 0.6]), np.zeros((2, 6)), composed(parts), "factor-2", parts)
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])
    turned = np.concatenate([parts[..., :2] @ turn, parts[..., 2:]], axis=2)
    assert_allclose(aligned(turned, parts), parts, atol=1e-12)
    other = make_params(params.weights, params.means, params.covariances, "factor-2", turned)
    assert_allclose(pack(other, params), pack(params, params), atol=1e-12)
    assert_allclose(unpack(pack(params, params), params).covariances, params.covariances, rtol=1e-12)
    # a covariance alone is taken apart again
    apart = make_params(params.weights, params.means, params.covariances, "factor-2").parts
    assert_allclose(composed(apart), params.covariances, atol=1e-3)


@pytest.mark.slow
def test_few_rows_in_many_dimensions_are_found_where_full_covariances_can_not():
    X, labels = high()
    model = rm.GaussianMixture(4, covariance_type="factor", n_factors=3, random_state=0).fit(X)
    assert adjusted_rand_score(labels, model.predict(X)) >= 0.9
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        full = rm.GaussianMixture(4, init_params="kmeans", random_state=0, max_iter=20, tol=1e-3).fit(X)
    assert adjusted_rand_score(labels, full.predict(X)) < 0.3
    assert model._n_parameters() == 4 * (200 * 3 + 200 - 3) + 4 * 200 + 3


@pytest.mark.slow
def test_the_number_of_factors_is_chosen_and_the_likelihood_never_falls(tmp_path):
    X = high(300, 8, 2, 2)[0]
    model = rm.GaussianMixture(2, covariance_type="factor", random_state=0).fit(X)
    assert model.n_factors_ == 2
    assert model.covariance_type_ == "factor"
    assert model.loadings_.shape == (2, 8, 2)
    assert model.selection_["covariance_type"] == [f"factor-{q}" for q in range(1, 5)]
    assert model.bic(X) == pytest.approx(min(model.selection_["bic"]))
    assert np.diff(model.lower_bounds_).min(initial=0) > -1e-10
    rm.save(model, tmp_path / "model")
    again = rm.load(tmp_path / "model")
    assert_allclose(again.score_samples(X), model.score_samples(X))
    assert again.bic(X) == model.bic(X)
    # far from a start: all of the way up
    far = rm.GaussianMixture(2, covariance_type="factor", n_factors=2, init_params="random", random_state=1, tol=1e-8)
    far.fit(X)
    assert far.n_iter_ > 5
    assert np.diff(far.lower_bounds_).min() > -1e-10
    warm = far.set_params(warm_start=True).fit(X)
    assert warm.lower_bounds_[0] >= far.lower_bound_ - 1e-10


@pytest.mark.slow
def test_factors_around_a_regression(tmp_path):
    X, labels = high(500, 10, 2, 1)
    site = np.random.default_rng(0).integers(0, 3, 500)
    shifted = X + 2.0 * labels[:, None] + site[:, None] * np.arange(10.0)
    for estimation in ("two-stage", "joint"):
        model = rm.ResidualMixture(
            2, formula="C(m0)", covariance_type="factor", n_factors=1, estimation=estimation, random_state=0
        ).fit(shifted, metadata=site)
        assert adjusted_rand_score(labels, model.predict(shifted, metadata=site)) > 0.9
        assert np.diff(model.lower_bounds_).min(initial=0) > -1e-9
        assert model.n_factors_ == 1
        rm.save(model, tmp_path / "model")
        again = rm.load(tmp_path / "model").score(shifted, metadata=site)
        assert again == pytest.approx(model.score(shifted, metadata=site))


def test_most_factors_is_ledermanns_bound():
    assert [most_factors(d) for d in (3, 4, 5, 6, 10, 15)] == [1, 1, 2, 3, 6, 10]
    for d in (3, 7, 20, 200):
        q = most_factors(d)
        assert (d - q) ** 2 >= d + q
        assert (d - q - 1) ** 2 < d + q + 1
