"""p values of outliers: calibrated, whatever the mixture."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import stats

import residmix as rm


def clouds(rng, n=600):
    return np.concatenate(
        [rng.normal(size=(n // 2, 3)), 2 * rng.normal(size=(n // 3, 3)) + 3, 0.5 * rng.normal(size=(n // 6, 3)) - 2]
    )


@pytest.mark.parametrize("settings", [{}, {"noise": True}, {"distribution": "t"}, {"covariance_type": "VEI"}])
@pytest.mark.parametrize("K", [1, 3])
def test_p_values_of_rows_that_come_from_the_mixture_are_uniform(settings, K):
    rng = np.random.default_rng(0)
    X = clouds(rng)
    if "noise" in settings:
        X = np.concatenate([X, rng.uniform(-10, 10, size=(60, 3))])
    model = rm.GaussianMixture(K, random_state=0, **settings).fit(X)
    several = [model.set_params(random_state=seed).sample(20_000)[0] for seed in range(5)]
    # one such test fails by chance in 1 % of the seeds, and a little more often as tails are integrals by sampling
    uniform = [stats.kstest(model.outlier_pvalues(fresh), "uniform").pvalue for fresh in several]
    assert np.median(uniform) > 0.05
    # the test sees rows from elsewhere
    assert stats.kstest(model.outlier_pvalues(1.3 * several[0]), "uniform").pvalue < 1e-10


def test_one_normal_component_is_a_chi_squared_test():
    X = np.random.default_rng(0).normal(size=(50, 4))
    model = rm.GaussianMixture(1).fit(X)
    away = X * 5 - model.means_
    distance = np.einsum("ni,ij,nj->n", away, model.precisions_[0], away)
    assert_allclose(model.outlier_pvalues(5 * X), stats.chi2.sf(distance, 4), rtol=1e-9)


def test_one_t_component_is_an_f_test():
    X = np.random.default_rng(0).standard_t(4, size=(200, 2))
    model = rm.GaussianMixture(1, distribution="t").fit(X)
    away = X * 5 - model.means_
    distance = np.einsum("ni,ij,nj->n", away, model.precisions_[0], away)
    assert_allclose(model.outlier_pvalues(5 * X), stats.f.sf(distance / 2, 2, model.dof_[0]), rtol=1e-8)


def test_tails_of_several_components_are_those_of_a_quadrature():
    model = rm.GaussianMixture.from_parameters([0.5, 0.5], [[0.0, 0.0], [1.0, 1.0]], [np.eye(2), 2 * np.eye(2)])
    axis = np.linspace(-40, 41, 1201)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    density = model.score_samples(grid)
    mass = np.exp(density) * (axis[1] - axis[0]) ** 2
    rows = np.array([[2.0, 2.0], [4.0, 4.0], [6.0, 6.0], [10.0, 10.0]])
    expected = [mass[density <= at].sum() for at in model.score_samples(rows)]
    assert expected[-1] < 1e-17
    assert_allclose(model.outlier_pvalues(rows), expected, rtol=0.03)


@pytest.mark.slow
def test_rows_with_gaps_are_judged_by_what_is_there():
    rng = np.random.default_rng(0)
    X = clouds(rng)
    X[rng.random(X.shape) < 0.1] = np.nan
    model = rm.GaussianMixture(3, missing="em", random_state=0).fit(X)
    fresh = model.set_params(random_state=5).sample(6_000)[0]
    fresh[rng.random(fresh.shape) < 0.3] = np.nan
    there = ~np.isnan(fresh).all(axis=1)
    p = model.outlier_pvalues(fresh)
    assert stats.kstest(p[there], "uniform").pvalue > 0.01
    assert (p[~there] == 1).all()
    assert_allclose(p[:50], [model.outlier_pvalues(row[None])[0] for row in fresh[:50]], rtol=1e-9)


def test_a_row_far_outside_the_box_of_the_noise_is_an_outlier():
    rng = np.random.default_rng(0)
    X = np.concatenate([rng.normal(size=(200, 2)), rng.uniform(-9, 9, size=(40, 2))])
    model = rm.GaussianMixture(1, noise=True, random_state=0).fit(X)
    assert model.outlier_pvalues([[1e4, 0.0]])[0] < 1e-6


def test_p_values_are_the_same_twice_and_go_to_files(tmp_path):
    X = clouds(np.random.default_rng(0))
    model = rm.GaussianMixture(3, random_state=0).fit(X)
    p = model.outlier_pvalues(X)
    rm.save(model, tmp_path / "model")
    assert np.array_equal(rm.load(tmp_path / "model").outlier_pvalues(X), p)
    path = model.outlier_pvalues(X, out=tmp_path / "p.parquet")
    import pyarrow.parquet as pq

    assert np.array_equal(pq.read_table(path)["p_value"].to_numpy(), p)
