"""The tile kernels against plain numpy, and what must not change their answers."""

from dataclasses import replace

import numpy as np
import pytest
from numba import njit
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from residmix.kernels.compiled import WIDTH, integer, kernel, load, loop, store
from residmix.kernels.writers.exp import vector_exp
from residmix.mixture.iteration.estep import Problem, log_joint, mixture_block, mixture_block_rows
from residmix.mixture.iteration.step import MixtureEM
from residmix.mixture.params import make_params
from residmix.rows.rows import ArrayRows

FAMILIES = ["full", "tied", "diag", "spherical"]


def problem(n, d, K, family, seed=0):
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(K, d))
    X = rng.normal(size=(n, d)) + means[rng.integers(0, K, n)]
    roots = rng.normal(size=(K, d, d)) / np.sqrt(d) + np.eye(d)
    # plus 1: well conditioned, so that scipy's eigenvalues are as exact as our triangles
    full = roots @ roots.transpose(0, 2, 1) + np.eye(d)
    covariances = {
        "full": full,
        "tied": full[0],
        "diag": np.diagonal(full, axis1=1, axis2=2).copy(),
        "spherical": full[:, 0, 0].copy(),
    }[family]
    weights = rng.dirichlet(np.full(K, 5.0))
    return X, make_params(weights, means, covariances, family)


def reference(X, params, log_prior=None, weight=None, extra=None, centre=0.0):
    """Moments by the definitions, with scipy's densities."""
    w = np.ones(len(X)) if weight is None else weight
    prior = np.log(params.weights) if log_prior is None else log_prior
    density = [
        multivariate_normal(mean, covariance).logpdf(X)
        for mean, covariance in zip(params.means, params.full_covariances(), strict=True)
    ]
    joint = np.stack(density, axis=1) + prior
    log_density = logsumexp(joint, axis=1)
    shares = np.exp(joint - log_density[:, None]) * w[:, None]
    rows = [X - mean for mean in params.means]
    if extra is not None:
        rows = [np.hstack([extra - centre, deviation]) for deviation in rows]
    shift = np.stack([share @ row for share, row in zip(shares.T, rows, strict=True)])
    scatter = np.stack([(row * share[:, None]).T @ row for share, row in zip(shares.T, rows, strict=True)])
    return joint, shares.sum(axis=0), shift, scatter, w @ log_density


def reduced(scatter, family):
    if family == "tied":
        return scatter.sum(axis=0)
    if family == "full":
        return scatter
    diagonal = np.diagonal(scatter, axis1=1, axis2=2)
    # of a ball no more than the sum counts
    return np.broadcast_to(diagonal.mean(axis=1)[:, None], diagonal.shape) if family == "spherical" else diagonal


# d on both sides of every switch: fewer than a group of 4 columns, tails of 1 to 3, columns and panels
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("d", [1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 23, 24, 33, 48, 65])
def test_moments_are_those_of_the_definitions(d, family):
    X, params = problem(211, d, 3, family)
    joint, mass, shift, scatter, log_likelihood = reference(X, params)
    moments = mixture_block(X, params)
    np.testing.assert_allclose(log_joint(X, params), joint, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(moments.weight, mass, rtol=1e-11)
    # sums of terms of both signs: relative to the size of the terms
    np.testing.assert_allclose(moments.shift, shift, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(moments.scatter, reduced(scatter, family), rtol=1e-10, atol=1e-10)
    assert moments.log_likelihood == pytest.approx(log_likelihood, rel=1e-12)
    assert (moments.total, moments.rows) == (211.0, 211)


@pytest.mark.parametrize("separation", [0.0, 20.0])
@pytest.mark.parametrize("d", [13, 26, 64])
def test_columns_and_panels_give_the_same_moments(d, separation, monkeypatch):
    X, params = problem(500, d, 6, "full")
    far = separation * np.arange(6.0)[:, None]
    X[::2] += far[np.arange(250) % 5]
    params = make_params(params.weights, params.means + far, params.covariances, "full")
    _, mass, shift, scatter, log_likelihood = reference(X, params)
    # some of the components hold few rows of a tile, some all: both ways at work in one block, and each alone
    for dense in (-1.0, 0.3, 1.0):
        monkeypatch.setattr("residmix.kernels.loops.blocks.DENSE", ((np.inf, dense),))
        moments = mixture_block(X, params)
        np.testing.assert_allclose(moments.weight, mass, rtol=1e-11)
        np.testing.assert_allclose(moments.shift, shift, rtol=1e-10, atol=1e-10 * mass.max())
        np.testing.assert_allclose(moments.scatter, scatter, rtol=1e-10, atol=1e-11 * scatter.max())
        assert moments.log_likelihood == pytest.approx(log_likelihood, rel=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("d", [4, 30])
def test_extra_columns_priors_and_weights_join_the_scatter(d, family):
    X, params = problem(150, d, 3, family)
    rng = np.random.default_rng(1)
    extra, centre = rng.normal(size=(150, 2)), np.array([0.5, -1.0])
    prior = np.log(rng.dirichlet(np.ones(3), size=150))
    weight = rng.integers(0, 3, 150).astype(float)
    _, mass, shift, scatter, log_likelihood = reference(X, params, prior, weight, extra, centre)
    moments = mixture_block(X, params, log_prior=prior, weight=weight, extra=extra, extra_centre=centre)
    np.testing.assert_allclose(moments.weight, mass, rtol=1e-11)
    np.testing.assert_allclose(moments.shift, shift, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(moments.scatter, scatter, rtol=1e-10, atol=1e-10)
    assert moments.log_likelihood == pytest.approx(log_likelihood, rel=1e-12)
    assert moments.rows == np.count_nonzero(weight)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_weight_of_two_is_a_row_twice_and_a_weight_of_zero_is_no_row(family):
    X, params = problem(120, 3, 2, family)
    weight = np.arange(120) % 3.0
    weighted = mixture_block(X, params, weight=weight)
    repeated = mixture_block(np.repeat(X, weight.astype(int), axis=0), params)
    for name in ("weight", "shift", "scatter", "log_likelihood"):
        np.testing.assert_allclose(getattr(weighted, name), getattr(repeated, name), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("family", FAMILIES)
def test_bits_do_not_depend_on_threads(family, monkeypatch):
    X, params = problem(5000, 6, 3, family)
    rows = ArrayRows(X, block_rows=512)

    def run(threads):
        monkeypatch.setenv("RESIDMIX_NUM_THREADS", str(threads))
        return MixtureEM(rows, 0.0).moments(params)

    one, four = run(1), run(4)
    assert one.log_likelihood == four.log_likelihood
    assert np.array_equal(one.scatter, four.scatter) and np.array_equal(one.shift, four.shift)


@pytest.mark.parametrize("family", FAMILIES)
def test_float32_rows_are_computed_in_float64(family):
    X, params = problem(300, 4, 2, family)
    single = X.astype(np.float32)
    ours, theirs = mixture_block(single, params), mixture_block(single.astype(np.float64), params)
    assert ours.log_likelihood == theirs.log_likelihood
    assert np.array_equal(ours.scatter, theirs.scatter)


def test_read_only_and_strided_rows_are_read_as_they_are():
    X, params = problem(200, 5, 2, "full")
    frozen = X.copy()
    frozen.flags.writeable = False
    strided = np.repeat(X, 2, axis=1)[:, ::2]
    expected = mixture_block(X, params).scatter
    for variant in (frozen, strided, np.asfortranarray(X)):
        assert np.array_equal(mixture_block(variant, params).scatter, expected)


@pytest.mark.parametrize("d", [3, 12])
@pytest.mark.parametrize("family", ["full", "diag", "spherical"])
def test_a_large_offset_costs_no_digits(family, d):
    # 1e8 standard deviations off: E[x^2] - mean^2 would have no digit left
    X, params = problem(500, d, 2, family)
    moved = make_params(params.weights, params.means + 1e8, params.covariances, family)
    # the offset rounds the rows themselves to 1.5e-8, so compare with rows rounded alike
    expected = mixture_block(
        (X + 1e8) - 1e8, make_params(params.weights, (params.means + 1e8) - 1e8, params.covariances, family)
    )
    found = mixture_block(X + 1e8, moved)
    np.testing.assert_allclose(found.scatter, expected.scatter, rtol=1e-11)
    np.testing.assert_allclose(found.shift, expected.shift, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_that_no_component_reaches_leave_finite_moments(family):
    X, params = problem(50, 3, 2, family)
    X[7] = 1e200
    moments = mixture_block(X, params)
    assert np.isfinite(moments.log_likelihood)
    assert np.isfinite(moments.scatter).all() and np.isfinite(moments.shift).all()


def test_merged_blocks_are_the_whole():
    X, params = problem(400, 5, 3, "full")
    whole = mixture_block(X, params)
    parts = mixture_block(X[:150], params).merge(mixture_block(X[150:], params))
    np.testing.assert_allclose(parts.scatter, whole.scatter, rtol=1e-12, atol=1e-11)
    assert (parts.total, parts.rows) == (400.0, 400)


@kernel
def exp_in_place(b, x, n):
    """x = exp(x), n vectors."""

    def body(i, _):
        row = b.mul(i, integer(WIDTH))
        store(b, vector_exp(b, load(b, x, row)), x, row)
        return []

    loop(b, n, [], body)


@njit
def _exp(x):
    exp_in_place(x, x.size // WIDTH)


def test_the_vector_exponential_is_right_to_an_ulp_or_so():
    x = -np.concatenate([np.geomspace(1e-20, 649, 40_000), np.linspace(0, 40, 40_000)])
    mine = x.copy()
    _exp(mine)
    exact = np.exp(x.astype(np.longdouble))
    ulps = np.abs(mine - exact) / np.spacing(np.exp(x))
    assert ulps.max() < 1.5


def test_the_vector_exponential_of_what_is_out_of_range_is_zero():
    x = np.resize([-np.inf, np.nan, -651.0, -1e300], 16)
    _exp(x)
    assert np.array_equal(x, np.zeros(16))


def test_block_length_depends_on_the_problem_alone():
    assert mixture_block_rows(4, 5) > mixture_block_rows(128, 8) >= 1024


@pytest.mark.parametrize("d", [3, 32])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_likelihood_alone_has_the_bits_of_the_whole_step(d, family):
    X, params = problem(501, d, 3, family)
    weight = np.random.default_rng(1).uniform(0.0, 2.0, 501)
    whole = mixture_block(X, params, weight=weight)
    alone = mixture_block(X, params, weight=weight, with_moments=False)
    assert alone.log_likelihood == whole.log_likelihood
    assert (alone.total, alone.rows) == (whole.total, whole.rows)


def test_a_prepared_mixture_with_other_weights_has_their_density():
    X, params = problem(50, 3, 4, "full")
    other = replace(params, weights=np.array([0.7, 0.1, 0.1, 0.1]))
    prepared = replace(Problem.of(params), params=other)
    np.testing.assert_allclose(log_joint(X, prepared), log_joint(X, other), rtol=1e-13)
