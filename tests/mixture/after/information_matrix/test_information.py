"""Standard errors: those of the likelihood's curvature, and of fits to new draws."""

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from scipy.stats import multivariate_normal

import residmix as rm
from residmix.mixture.after.information_matrix.scores import Layout, block_scores
from residmix.mixture.after.information_matrix.tangents import half, tangents
from residmix.mixture.families.family import FAMILIES
from residmix.mixture.iteration.estep import Problem
from residmix.rows.block import Block


def clouds(n=400, seed=0):
    rng = np.random.default_rng(seed)
    first = rng.normal(size=(n // 2, 2)) @ np.array([[1.0, 0.5], [0.0, 1.0]])
    return np.concatenate([first, 1.5 * rng.normal(size=(n - n // 2, 2)) + [3.0, 1.0]])


def curvature(function, at):
    """Return minus the second derivatives, by central differences."""
    step = 1e-4 * np.maximum(np.abs(at), 0.1)
    n = len(at)
    found = np.empty((n, n))
    for i in range(n):
        for j in range(i + 1):
            one, two = np.eye(n)[i] * step[i], np.eye(n)[j] * step[j]
            value = function(at + one + two) - function(at + one - two) - function(at - one + two)
            found[i, j] = found[j, i] = -(value + function(at - one - two)) / (4 * step[i] * step[j])
    return found


def test_one_component_has_the_errors_of_a_normal_sample():
    X = clouds()
    model = rm.GaussianMixture(1, reg_covar=0.0).fit(X)
    S, n = model.covariances_[0], len(X)
    for errors in (model.standard_errors_, model.standard_errors(X)):
        assert errors.weights == [0.0]
        assert_allclose(errors.means[0], np.sqrt(np.diag(S) / n), rtol=1e-10)
        assert_allclose(errors.covariances[0], np.sqrt((S**2 + np.outer(np.diag(S), np.diag(S))) / n), rtol=1e-10)


@pytest.mark.parametrize("tied", [False, True])
def test_errors_of_rows_are_those_of_the_curvature_of_scipys_likelihood(tied):
    X = clouds()
    kind = "tied" if tied else "full"
    model = rm.GaussianMixture(2, covariance_type=kind, tol=1e-13, reg_covar=0.0, random_state=0).fit(X)

    def covariance(part):
        return np.array([[part[0], part[1]], [part[1], part[2]]])

    def likelihood(theta):
        w, means, parts = theta[0], theta[1:5].reshape(2, 2), theta[5:].reshape(-1, 3)
        both = [multivariate_normal(means[k], covariance(parts[-1 if tied else k])) for k in range(2)]
        return np.log(w * both[0].pdf(X) + (1 - w) * both[1].pdf(X)).sum()

    matrices = model.covariances_[None] if tied else model.covariances_
    theta = np.concatenate([model.weights_[:1], model.means_.ravel(), matrices[:, [0, 0, 1], [0, 1, 1]].ravel()])
    expected = np.sqrt(np.diag(np.linalg.inv(curvature(likelihood, theta))))
    errors = model.standard_errors(X)
    found = errors.covariances[None] if tied else errors.covariances
    found = np.concatenate([errors.weights[:1], errors.means.ravel(), found[:, [0, 0, 1], [0, 1, 1]].ravel()])
    assert_allclose(found, expected, rtol=2e-3)
    assert errors.weights[0] == pytest.approx(errors.weights[1])


def test_errors_are_those_of_fits_to_new_draws():
    X = clouds(1000)
    model = rm.GaussianMixture(2, random_state=0).fit(X)
    fits = []
    for seed in range(40):
        drawn = model.set_params(random_state=seed).sample(len(X))[0]
        start = {"weights_init": model.weights_, "means_init": model.means_, "precisions_init": model.precisions_}
        again = rm.GaussianMixture(2, **start).fit(drawn)
        fits.append(np.concatenate([again.weights_, again.means_.ravel(), again.covariances_.ravel()]))
    errors = model.standard_errors_
    found = np.concatenate([errors.weights, errors.means.ravel(), errors.covariances.ravel()])
    ratio = found / np.std(fits, axis=0, ddof=1)
    assert abs(np.exp(np.log(ratio).mean()) - 1) < 0.07
    assert np.abs(ratio - 1).max() < 0.35  # those of 60 fits are themselves known to 9 %


@pytest.mark.parametrize("settings", [{"distribution": "t"}, {"noise": True}, {"covariance_type": "VEV"}, {}])
def test_expected_scores_are_zero_and_derivatives_of_the_density(settings):
    X = np.concatenate([clouds(), np.random.default_rng(1).uniform(-9, 9, size=(40, 2))])
    model = rm.GaussianMixture(2, tol=1e-12, reg_covar=0.0, random_state=0, **settings).fit(X)
    params = model._model()
    directions = tangents(params.family, params.full_covariances())
    layout = Layout.of(params, 6 if directions is None else directions.shape[1], 0)
    scores, _ = block_scores(Problem.of(params), layout, directions, Block(0, X))
    mean = np.abs(scores.mean(axis=0)) / np.sqrt((scores**2).mean(axis=0))
    assert mean[: layout.covariances.stop].max() < 1e-3
    assert np.abs(scores).max() > 0.1  # of single rows they aren't


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_moves_in_as_many_directions_as_it_has_parameters(name):
    X = np.random.default_rng(0).normal(size=(300, 3)) @ np.array([[1, 0.5, 0.2], [0, 2, 0.3], [0, 0, 0.5]])
    model = rm.GaussianMixture(2, covariance_type=name, random_state=0).fit(X + np.repeat([[0], [6]], 150, axis=0))
    params = model._model()
    found = tangents(params.family, params.full_covariances())
    n = 2 * len(half(3)[0]) if found is None else np.linalg.matrix_rank(found)
    assert n == params.family.n_parameters(2, 3)
    errors = model.standard_errors_
    assert errors.covariances.shape == model.covariances_.shape
    assert np.isfinite(errors.covariances).all()


def test_factors_move_in_as_many_directions_as_they_have_parameters():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(400, 2)) @ rng.normal(size=(2, 6)) + rng.normal(size=(400, 6))
    X += np.repeat([[0], [8]], 200, axis=0)
    model = rm.GaussianMixture(2, covariance_type="factor", n_factors=2, random_state=0).fit(X)
    params = model._model()
    found = tangents(params.family, params.full_covariances(), params.parts)
    assert np.linalg.matrix_rank(found) == found.shape[1] == params.family.n_parameters(2, 6)
    errors, free = model.standard_errors_, rm.GaussianMixture(2, random_state=0).fit(X).standard_errors_
    assert np.isfinite(errors.covariances).all()
    # fewer parameters are known better
    assert errors.covariances.mean() < free.covariances.mean()


def test_weights_count_as_rows_and_errors_survive_a_file(tmp_path):
    X = clouds()
    once = rm.GaussianMixture(2, tol=1e-9, random_state=0).fit(X)
    heavy = rm.GaussianMixture(2, tol=1e-9, random_state=0).fit(X, sample_weight=np.full(len(X), 4.0))
    assert_allclose(heavy.standard_errors_.means, once.standard_errors_.means / 2, rtol=1e-3)
    observed = heavy.standard_errors(X, sample_weight=np.full(len(X), 4.0))
    assert_allclose(observed.means, once.standard_errors(X).means / 2, rtol=1e-3)
    rm.save(heavy, tmp_path / "model")
    assert np.array_equal(rm.load(tmp_path / "model").standard_errors_.means, heavy.standard_errors_.means)


def test_gaps_make_errors_larger():
    X = clouds()
    gaps = X.copy()
    gaps[np.random.default_rng(0).random(X.shape) < 0.3] = np.nan
    model = rm.GaussianMixture(1, missing="em", reg_covar=0.0).fit(gaps)
    ratio = model.standard_errors(gaps).means / np.sqrt(np.diag(model.covariances_[0]) / len(X))
    assert ((ratio > 1.05) & (ratio < 1 / np.sqrt(0.6))).all()
    with pytest.raises(AttributeError, match="features have missing values; call standard_errors"):
        model.standard_errors_  # noqa: B018


def test_a_mixture_without_rows_has_no_errors():
    model = rm.GaussianMixture.from_parameters([1.0], [[0.0]], [[[1.0]]])
    with pytest.raises(AttributeError, match="made from parameters"):
        model.standard_errors_  # noqa: B018


def test_what_rows_do_not_determine_is_nan():
    X = np.column_stack([clouds(), np.zeros(400)])
    rows = np.random.default_rng(0).normal(size=(4, 5))
    few = rm.GaussianMixture(1).fit(np.random.default_rng(1).normal(size=(200, 5)))
    assert np.isfinite(rm.GaussianMixture(2, random_state=0).fit(X).standard_errors_.means).all()
    assert np.isfinite(few.standard_errors(rows).means).all()


def test_too_many_parameters_are_refused():
    X = np.random.default_rng(0).normal(size=(150, 120))
    model = rm.GaussianMixture(1).fit(X)
    with pytest.raises(ValueError, match="7380 parameters is too large"):
        model.standard_errors(X)


@pytest.mark.parametrize("share", [0.0, 1e-310, 1e-12])
def test_noise_of_no_rows_leaves_the_errors_of_the_others(share):
    X = clouds()
    plain = rm.GaussianMixture(2, random_state=0).fit(X)
    noisy = rm.GaussianMixture(2, noise=True, random_state=0).fit(X)
    for name in ("means_", "covariances_", "precisions_cholesky_"):
        setattr(noisy, name, getattr(plain, name))
    noisy.weights_, noisy.noise_weight_ = plain.weights_ * (1 - share), share
    for found, expected in (
        (noisy.standard_errors(X), plain.standard_errors(X)),
        (noisy.standard_errors_, plain.standard_errors_),
    ):
        assert np.isnan(found.noise_weight)
        # draws of their own
        assert_allclose(found.means, expected.means, rtol=0.05)
        assert_allclose(found.weights, expected.weights, rtol=0.05)
    assert_allclose(noisy.standard_errors(X).covariances, plain.standard_errors(X).covariances, rtol=1e-9)


def test_shares_of_components_that_are_alike_have_no_errors():
    # differences of 1e-16 in their scores aren't information: 1e13 was said to be the error of a weight
    X = np.random.default_rng(0).normal(size=(300, 2))
    model = rm.GaussianMixture.from_parameters([0.3, 0.7], np.zeros((2, 2)), [np.eye(2)] * 2)
    assert np.isnan(model.standard_errors(X).weights).all()


def test_a_component_of_weight_0_is_named():
    X = clouds()
    model = rm.GaussianMixture.from_parameters([1.0, 0.0], [[0.0, 0.0], [3.0, 1.0]], [np.eye(2)] * 2)
    with pytest.raises(ValueError, match=r"components \[1\] have weight 0"):
        model.standard_errors(X)


def test_trimmed_models_have_tables_without_errors():
    X = clouds()
    model = rm.GaussianMixture(2, trim=0.1, random_state=0).fit(X)
    assert not hasattr(model, "standard_errors_")
    table = model.tidy()
    assert table.std_error.isna().all() and table.estimate.notna().all()


@pytest.mark.parametrize("unit", [1e-150, 1e-80, 3.0, 1e80, 1e130])
@pytest.mark.parametrize("settings", [{}, {"noise": True}, {"distribution": "t"}, {"covariance_type": "EEV"}])
def test_errors_have_the_features_unit(unit, settings):
    # information about covariances of 1e-160 is 1e320 and more: there were infinities, and an error
    X = clouds(300)
    one = rm.GaussianMixture(2, reg_covar=0.0, random_state=0, **settings).fit(X)
    other = rm.GaussianMixture(2, reg_covar=0.0, random_state=0, **settings).fit(X * unit)
    order, place = (np.argsort(model.means_[:, 0]) for model in (one, other))
    for found, expected in (
        (other.standard_errors(X * unit), one.standard_errors(X)),
        (other.standard_errors_, one.standard_errors_),
    ):
        assert_allclose(found.means[place] / unit, expected.means[order], rtol=0.05)
        assert_allclose(found.covariances[place] / unit / unit, expected.covariances[order], rtol=0.05)
        assert_allclose(found.weights[place], expected.weights[order], rtol=0.05)
    assert_allclose(other.tidy().std_error.to_numpy() > 0, True)


@pytest.mark.parametrize("estimation", ["two-stage", "joint"])
def test_errors_of_coefficients_have_the_features_unit(estimation):
    X, age = clouds(300), np.random.default_rng(3).normal(size=300)
    settings = {"formula": "age", "estimation": estimation, "reg_covar": 0.0, "random_state": 0}
    one, other = (
        rm.ResidualMixture(2, **settings)
        .fit(rows, metadata=pd.DataFrame({"age": age}))
        .standard_errors(rows, metadata=pd.DataFrame({"age": age}))
        for rows in (X, X * 1e-120)
    )
    # two fits end where tol lets them
    for name in ("coef", "intercept"):
        assert_allclose(other[name] / 1e-120, one[name], rtol=0.02)
    assert_allclose(np.sort(other.means / 1e-120, axis=0), np.sort(one.means, axis=0), rtol=0.02)
