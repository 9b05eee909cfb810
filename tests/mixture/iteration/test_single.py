"""Rows of float32: products in single precision, where that leaves the answer what it is."""

import numpy as np
import pytest

from residmix import GaussianMixture
from residmix.kernels.pairs import single_sums
from residmix.mixture.iteration import estep
from residmix.mixture.iteration.estep import Problem, mixture_block
from residmix.mixture.iteration.step import MixtureEM
from residmix.mixture.params import make_params
from residmix.rows.rows import ArrayRows


@pytest.fixture
def used(monkeypatch):
    """How many blocks went through the loop."""
    seen = []

    def counted(*arguments):
        seen.append(len(arguments[0]))
        return single_sums(*arguments)

    monkeypatch.setattr(estep, "single_sums", counted)
    return seen


def problem(n=4000, d=12, K=3, offset=0.0, seed=0):
    rng = np.random.default_rng(seed)
    means = offset + 2.0 * rng.normal(size=(K, d))
    X = (means[rng.integers(0, K, n)] + rng.normal(size=(n, d))).astype(np.float32)
    return X, make_params(np.full(K, 1 / K), means, np.stack([np.eye(d)] * K), "full")


def moments(X, params, **options):
    return mixture_block(X, Problem.of(params, single=True), **options)


@pytest.mark.parametrize("offset", [0.0, 1e5])
def test_moments_of_float32_rows_are_those_of_the_same_numbers_in_float64(used, offset):
    X, params = problem(offset=offset)
    ours, theirs = moments(X, params), moments(X.astype(np.float64), params)
    assert used == [4000]
    n = len(X)
    assert abs(ours.log_likelihood - theirs.log_likelihood) < 3e-7 * n
    for one, two in [(ours.weight, theirs.weight), (ours.shift, theirs.shift), (ours.scatter, theirs.scatter)]:
        np.testing.assert_allclose(one, two, atol=3e-7 * n)


def test_the_likelihood_alone_has_the_same_bits():
    X, params = problem()
    assert moments(X, params, with_moments=False).log_likelihood == moments(X, params).log_likelihood


@pytest.mark.parametrize("offset", [0.0, 1e5])
def test_a_fit_of_float32_rows_ends_where_that_of_the_same_numbers_in_float64_does(used, offset):
    X, _ = problem(n=6000, K=4, offset=offset)
    one, two = (GaussianMixture(4, random_state=0).fit(each) for each in (X, X.astype(np.float64)))
    assert used
    assert one.converged_ and abs(one.lower_bound_ - two.lower_bound_) < 1e-6
    np.testing.assert_allclose(one.means_, two.means_, atol=1e-4)
    np.testing.assert_allclose(one.covariances_, two.covariances_, atol=1e-4)
    assert one.means_.dtype == one.covariances_.dtype == np.float64


def test_a_fit_to_more_digits_is_in_double_precision(used):
    X, _ = problem()
    one, two = (GaussianMixture(3, random_state=0, tol=1e-10).fit(each) for each in (X, X.astype(np.float64)))
    assert not used
    np.testing.assert_array_equal(one.means_, two.means_)


@pytest.mark.parametrize("kind", ["few features", "determined", "huge value", "infinitesimal"])
def test_where_digits_would_be_lost_rows_are_taken_in_double_precision(used, kind):
    X, params = problem(d=4 if kind == "few features" else 12)
    if kind == "determined":  # the first feature is the second and a thousandth of its own
        root = np.eye(12)
        root[0, :2] = 1e-3, 1.0
        X = (X @ root.T).astype(np.float32)
        params = make_params(params.weights, params.means @ root.T, np.stack([root @ root.T] * 3), "full")
    elif kind == "huge value":
        X[7, 3] = 3e38
    elif kind == "infinitesimal":
        X *= np.float32(1e-25)
        params = make_params(params.weights, params.means * 1e-25, params.covariances * 1e-50, "full")
    ours, theirs = moments(X, params), moments(X.astype(np.float64), params)
    assert not used
    assert ours.log_likelihood == theirs.log_likelihood
    np.testing.assert_array_equal(ours.scatter, theirs.scatter)


def test_components_of_few_rows_get_the_same_from_panels(used):
    X, params = problem(K=2)
    X[:40] += 30.0  # one tile has some of them, the others none
    params = make_params(
        np.array([0.9, 0.1]), np.stack([params.means[0], params.means[0] + 30.0]), params.covariances, "full"
    )
    ours, theirs = moments(X, params), moments(X.astype(np.float64), params)
    assert used
    np.testing.assert_allclose(ours.scatter, theirs.scatter, rtol=1e-6, atol=1e-6 * np.abs(theirs.scatter).max())


def test_threads_leave_the_bits(used, monkeypatch):
    X, params = problem(n=30_000)

    def run(threads):
        monkeypatch.setenv("RESIDMIX_NUM_THREADS", str(threads))
        return MixtureEM(ArrayRows(X, block_rows=2048), 0.0, single=True).moments(params)

    one, four = run(1), run(4)
    assert used and one.log_likelihood == four.log_likelihood
    np.testing.assert_array_equal(one.scatter, four.scatter)
