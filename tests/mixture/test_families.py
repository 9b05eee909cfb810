"""Covariance families: the M-step by hand, vectors and back, and what becomes of a component without rows."""

import warnings

import numpy as np
import pytest
from scipy.linalg import cholesky, solve_triangular

from residmix import GaussianMixture
from residmix.errors import DeadComponentWarning
from residmix.mixture.families.family import ALIASES, FAMILIES
from residmix.mixture.families.family import family as family_of
from residmix.mixture.iteration.estep import log_joint, mixture_block, responsibilities
from residmix.mixture.iteration.mstep import dead_components, m_step
from residmix.mixture.iteration.vector import pack, unpack
from residmix.mixture.params import SingularCovarianceError, make_params, params_from_precisions

RIDGE = 0.01
COVARIANCE_TYPES = (*ALIASES, *FAMILIES)


def example(family, n=400, d=4, K=3):
    rng = np.random.default_rng(3)
    means = 2 * rng.normal(size=(K, d))
    X = means[rng.integers(0, K, n)] + rng.normal(size=(n, d)) * rng.uniform(0.5, 2, d)
    roots = np.eye(d) + 0.3 * rng.normal(size=(K, d, d))
    full = roots @ roots.transpose(0, 2, 1)
    weights = np.array([0.2, 0.3, 0.5])
    of = family_of(family)
    # means beside the clusters, so that the M-step has a way to go
    return X, make_params(weights, means + 0.3, of.fit(of.of_full(full, weights), weights), family)


def by_hand(X, shares):
    """The weighted means and covariances of textbooks, two passes, by numpy."""
    means = np.stack([np.average(X, axis=0, weights=share) for share in shares.T])
    return shares.sum(axis=0), means, np.stack([np.cov(X.T, aweights=share, ddof=0) for share in shares.T])


@pytest.mark.parametrize("family", COVARIANCE_TYPES)
def test_the_m_step_gives_the_weighted_means_and_the_likeliest_covariances(family):
    X, params = example(family)
    after = m_step(mixture_block(X, params), params, reg_covar=RIDGE)
    weight, means, W = by_hand(X, responsibilities(log_joint(X, params)))
    of = family_of(family)
    covariances = of.fit(of.of_full(W + RIDGE * np.eye(4), weight), weight, params.full_covariances())
    # sums of 400 rows in another order: a few units in the 13th place
    np.testing.assert_allclose(after.weights, weight / weight.sum(), rtol=1e-12)
    np.testing.assert_allclose(after.means, means, rtol=1e-11, atol=1e-12)
    # of common axes the angles have settled to 1e-8, the variances to the square of that
    curved = of.orientation == "E" and of.shape == "V"
    np.testing.assert_allclose(after.covariances, covariances, rtol=1e-11, atol=1e-7 if curved else 1e-11)
    assert after.covariances.shape == of.shape_of(3, 4)


@pytest.mark.parametrize("family", ["full", "tied", "diag", "spherical"])
def test_the_covariances_of_the_plain_families_are_those_of_textbooks(family):
    X, params = example(family)
    after = m_step(mixture_block(X, params), params, reg_covar=RIDGE)
    weight, _, full = by_hand(X, responsibilities(log_joint(X, params)))
    variances = np.diagonal(full, axis1=1, axis2=2)
    expected = {
        "full": full + RIDGE * np.eye(4),
        "tied": np.average(full, axis=0, weights=weight) + RIDGE * np.eye(4),
        "diag": variances + RIDGE,
        "spherical": variances.mean(axis=1) + RIDGE,
    }[family]
    np.testing.assert_allclose(after.covariances, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("family", COVARIANCE_TYPES)
def test_factors_are_the_inverse_transposed_cholesky_factors(family):
    _, params = example(family)
    expected = [
        solve_triangular(cholesky(covariance, lower=True), np.eye(4), lower=True).T
        for covariance in params.full_covariances()
    ]
    np.testing.assert_allclose(params.full_factors(), expected, rtol=1e-12, atol=1e-14)
    log_det = -0.5 * np.linalg.slogdet(params.full_covariances())[1]
    np.testing.assert_allclose(params.log_det, log_det, rtol=1e-12)


@pytest.mark.parametrize("family", COVARIANCE_TYPES)
def test_precisions_lead_back_to_the_covariances(family):
    _, params = example(family)
    again = params_from_precisions(params.weights, params.means, params.precisions(), family)
    np.testing.assert_allclose(again.covariances, params.covariances, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(again.factors, params.factors, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("family", COVARIANCE_TYPES)
def test_any_vector_is_a_mixture_and_unpacking_undoes_packing(family):
    _, params = example(family)
    vector = pack(params, params)
    again = unpack(vector, params)
    for name in ("weights", "means", "covariances", "factors"):
        np.testing.assert_allclose(getattr(again, name), getattr(params, name), rtol=1e-12, atol=1e-14)
    moved = unpack(vector + np.random.default_rng(0).normal(size=vector.size), params)
    assert np.isclose(moved.weights.sum(), 1.0)
    assert (np.linalg.eigvalsh(moved.full_covariances()) > 0).all()


@pytest.mark.parametrize("family", COVARIANCE_TYPES)
def test_steps_between_packed_vectors_do_not_know_the_units(family):
    # steps, since the logarithms of variances move by a constant
    X, params = example(family)
    after = m_step(mixture_block(X, params), params, reg_covar=0.0)
    kilo = [make_params(point.weights, 1e3 * point.means, 1e6 * point.covariances, family) for point in (params, after)]
    step = pack(after, params) - pack(params, params)
    np.testing.assert_allclose(pack(kilo[1], kilo[0]) - pack(kilo[0], kilo[0]), step, rtol=1e-9, atol=1e-11)
    assert np.abs(step).max() > 0.01


@pytest.mark.parametrize("family", ["full", "diag", "spherical"])
def test_an_error_names_the_singular_component(family):
    _, params = example(family)
    covariances = params.covariances.copy()
    covariances[1] = 0.0
    with pytest.raises(SingularCovarianceError, match=r"\[1\]") as caught:
        make_params(params.weights, params.means, covariances, family)
    assert caught.value.components.tolist() == [1]


def with_a_dead_component(family):
    """The third component is so far from all rows that none of them has any share in it."""
    X, params = example(family)
    means = params.means.copy()
    means[2] = 1e4
    return X, make_params(params.weights, means, params.covariances, family)


@pytest.mark.parametrize("family", COVARIANCE_TYPES)
def test_a_dead_component_takes_half_of_the_heaviest(family):
    X, params = with_a_dead_component(family)
    moments = mixture_block(X, params)
    assert dead_components(moments).tolist() == [False, False, True]
    left = m_step(moments, params, reg_covar=RIDGE, revive=False)
    revived = m_step(moments, params, reg_covar=RIDGE)
    assert left.weights[2] == 0.0
    np.testing.assert_array_equal(left.means[2], params.means[2])
    heavy = int(np.argmax(left.weights))
    assert revived.weights[2] == revived.weights[heavy] == left.weights[heavy] / 2
    # the halves lie one standard deviation apart along the longest axis, about the old mean
    np.testing.assert_allclose((revived.means[2] + revived.means[heavy]) / 2, left.means[heavy], rtol=1e-12)
    gap = revived.means[2] - revived.means[heavy]
    variance = np.linalg.eigvalsh(left.full_covariances()[heavy])[-1]
    np.testing.assert_allclose(gap @ gap, variance, rtol=1e-10)


@pytest.mark.parametrize("family", COVARIANCE_TYPES)
def test_a_fit_seeds_a_dead_component_anew_and_says_so(family):
    X, params = with_a_dead_component(family)
    model = GaussianMixture(
        3,
        covariance_type=family,
        weights_init=params.weights,
        means_init=params.means,
        precisions_init=params.precisions(),
    )
    with pytest.warns(DeadComponentWarning, match=r"components \[2\] of 3 .*\(1 times"):
        model.fit(X)
    assert (model.weights_ > 0.05).all()
    # the control: with a living third component nothing is said
    alive = example(family)[1]
    model.set_params(means_init=alive.means)
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeadComponentWarning)
        model.fit(X)
