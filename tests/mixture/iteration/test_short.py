"""Runs side by side are the runs alone."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.stats import multivariate_normal

from residmix.em.loop import run_em
from residmix.mixture.iteration.short import short_runs
from residmix.mixture.iteration.step import MixtureEM
from residmix.mixture.params import SingularCovarianceError
from residmix.mixture.starts.clusters import from_labels, runs_from_labels
from residmix.rows.rows import ArrayRows

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 3, (4, 200))
X = RNG.normal(size=(200, 3)) + np.array([[0, 0, 0], [3, 0, 0], [0, 3, 1]])[LABELS[0]]
W = RNG.uniform(0.5, 2.0, 200)
COLUMNS = np.ascontiguousarray(X.T)


@pytest.mark.parametrize("family", ["full", "tied", "diag", "spherical", "EEI", "VEI", "EVE", "VEV", "EEE"])
def test_runs_side_by_side_end_where_they_end_alone(family):
    rows = ArrayRows(X, weight=W)
    together = runs_from_labels(COLUMNS, W, LABELS, 3, family, 1e-3)
    alone = [from_labels(COLUMNS, W, labels, 3, family, 1e-3) for labels in LABELS]
    for run, start in enumerate(alone):
        assert_allclose(together.one(run).covariances, start.covariances, rtol=1e-9)
    ended = short_runs(rows, together, reg_covar=1e-3, tol=0.0, max_iter=6)
    for run, start in enumerate(alone):
        state = run_em(MixtureEM(rows, 1e-3), start, tol=0.0, max_iter=6)
        assert_allclose(ended.values[run], state.log_likelihood, rtol=1e-9)
        assert_allclose(ended.one(run).means, state.params.means, rtol=1e-6, atol=1e-8)


def test_a_run_that_cannot_catch_up_is_given_up_and_the_best_one_is_not():
    rows = ArrayRows(X, weight=W)
    starts = runs_from_labels(COLUMNS, W, LABELS, 3, "full", 1e-3)
    whole = short_runs(rows, starts, reg_covar=1e-3, tol=1e-9, max_iter=40)
    hopeful = short_runs(rows, starts, reg_covar=1e-3, tol=1e-9, max_iter=40, hope=1.0)
    # the first starts from the clusters, the others from random labels
    assert whole.values.argmax() == hopeful.values.argmax() == 0
    assert hopeful.values[1:].max() < whole.values[1:].max()


def test_a_run_that_becomes_singular_is_left_out_and_if_all_do_it_is_an_error():
    flat = X.copy()
    flat[:40, 0] = 50.0
    rows, columns = ArrayRows(flat), np.ascontiguousarray(flat.T)
    apart = np.where(np.arange(200) < 40, 0, 1)
    labels = np.stack([apart, (np.arange(200) % 2)])
    starts = runs_from_labels(columns, np.ones(200), labels, 2, "full", 0.0)
    ended = short_runs(rows, starts, reg_covar=0.0, tol=0.0, max_iter=3)
    assert ended.n_runs == 1
    with pytest.raises(SingularCovarianceError):
        short_runs(rows, starts.only(np.array([0])), reg_covar=0.0, tol=0.0, max_iter=3)


@pytest.mark.parametrize("family", ["full", "tied", "diag", "spherical"])
def test_longer_steps_come_nearer_to_the_same_optimum(family):
    rows = ArrayRows(X, weight=W)
    starts = runs_from_labels(COLUMNS, W, LABELS[:1], 3, family, 1e-3)
    end = short_runs(rows, starts, reg_covar=1e-3, tol=0.0, max_iter=400)
    far = short_runs(rows, starts, reg_covar=1e-3, tol=0.0, max_iter=400, reach=1.7)
    assert_allclose(far.values, end.values, rtol=1e-9)
    # plain steps aren't quite there yet
    assert_allclose(far.means, end.means, atol=1e-4)
    plain, longer = (short_runs(rows, starts, reg_covar=1e-3, tol=0.0, max_iter=12, reach=by) for by in (1.0, 1.7))
    assert (far.values - longer.values)[0] < 0.8 * (far.values - plain.values)[0]


def test_families_that_are_no_linear_space_keep_to_plain_steps():
    rows = ArrayRows(X, weight=W)
    starts = runs_from_labels(COLUMNS, W, LABELS, 3, "VEV", 1e-3)
    plain, longer = (short_runs(rows, starts, reg_covar=1e-3, tol=0.0, max_iter=5, reach=reach) for reach in (1.0, 1.7))
    assert_allclose(longer.means, plain.means, rtol=0)


def test_clusters_alone_are_as_likely_as_the_densities_of_their_own_rows():
    # many rows a cluster, so that what steadies them hardly counts
    labels = np.stack([LABELS[0], LABELS[0] ^ (np.arange(200) < 1)]) % 3
    starts = runs_from_labels(COLUMNS, np.ones(200), labels, 3, "full", 0.0)
    expected = []
    for one in labels:
        own = [(X[one == k], (one == k).mean()) for k in range(3)]
        expected.append(
            sum(
                np.log(share) * len(x) + multivariate_normal(x.mean(axis=0), np.cov(x.T, bias=True)).logpdf(x).sum()
                for x, share in own
            )
            / 200
        )
    constant = 1.5 * (1 + np.log(2 * np.pi))
    assert_allclose(starts.values - constant, expected, atol=0.03)
