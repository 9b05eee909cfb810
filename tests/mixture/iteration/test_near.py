"""An E-step over near components: a lower bound that never decreases, from few evaluations."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn.cluster import KMeans

import residmix as rm
from residmix.mixture.given.gate import make_gate
from residmix.mixture.iteration import near, refreshed
from residmix.mixture.iteration.estep import Problem, log_joint, mixture_block
from residmix.mixture.iteration.step import MixtureEM, block_moments, own_problems
from residmix.mixture.params import make_params, params_as
from residmix.rows.block import Block
from residmix.rows.rows import ArrayRows

K, D, N = 30, 4, 3_000


def clusters(n=N, K=K, d=D, apart=3.0, seed=0):
    rng = np.random.default_rng(seed)
    roots = np.eye(d) + 0.3 * rng.normal(size=(K, d, d))
    label = rng.integers(0, K, n)
    return np.einsum("ij,ijk->ik", rng.normal(size=(n, d)), roots[label]) + (apart * rng.normal(size=(K, d)))[label]


def mixture_of(kind, seed=1, K=K, d=D):
    rng = np.random.default_rng(seed)
    roots = np.eye(d) + 0.3 * rng.normal(size=(K, d, d))
    full = make_params(rng.dirichlet(np.ones(K)), 3.0 * rng.normal(size=(K, d)), roots @ roots.swapaxes(1, 2), "full")
    return params_as(full, kind)


def agree(one, two, **how):
    for name in ("weight", "shift", "scatter", "log_likelihood", "total", "rows"):
        mine, theirs = np.asarray(getattr(one, name)), np.asarray(getattr(two, name))
        assert mine.shape == theirs.shape
        assert_allclose(mine, theirs, atol=1e-8 * max(1.0, np.abs(theirs).max()), **how)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", ["full", "tied", "diag", "spherical", "VEV", "EEI"])
def test_sets_of_all_components_give_the_moments_of_all(kind, weighted):
    X, params = clusters(), mixture_of(kind)
    weight = np.random.default_rng(2).integers(0, 3, N).astype(float) if weighted else None
    sets = np.tile(np.arange(K, dtype=np.int32), (N, 1))
    problem = Problem.of(params)
    found = near.near_block(X, problem, own_problems(problem, weighted=True), sets, weight=weight)
    agree(found, mixture_block(X, params, weight=weight), rtol=1e-9)


@pytest.mark.parametrize("effects", ["shared", "own"])
def test_so_they_do_with_a_gate_and_effects(effects):
    rng = np.random.default_rng(3)
    X, u = clusters(), rng.normal(size=(N, 2))
    coef = 0.3 * rng.normal(size=(2, D) if effects == "shared" else (K, 2, D))
    params = replace(mixture_of("full"), coef=coef, gate=make_gate(rng.normal(size=(K, 3))))
    problem = Problem.of(params, full=True)
    alone = own_problems(problem, weighted=False), np.tile(np.arange(K, dtype=np.int32), (N, 1))
    block = Block(0, X, u)
    found = block_moments(problem, block, with_design=True, near=alone)
    agree(found, block_moments(problem, block, with_design=True), rtol=1e-9)


def test_the_bound_is_the_density_over_the_set():
    X, params = clusters(), mixture_of("full")
    joint = log_joint(X, params)
    sets = np.sort(np.random.default_rng(4).permuted(np.tile(np.arange(K), (N, 1)), axis=1)[:, :5]).astype(np.int32)
    bound = MixtureEM(ArrayRows(X), 1e-6, near=sets).evaluate(params)
    assert_allclose(bound, np.logaddexp.reduce(np.take_along_axis(joint, sets, 1), axis=1).mean(), rtol=1e-12)
    best, found = refreshed.all_sets(ArrayRows(X), params, 5)
    assert np.array_equal(best, np.sort(np.argsort(-joint, axis=1)[:, :5], axis=1))
    assert bound < found < np.logaddexp.reduce(joint, axis=1).mean()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "diag", "tied", "VEV"])
def test_the_bound_never_decreases_and_ends_near_the_exact_fit(kind):
    X = clusters(6_000)
    labels = KMeans(K, n_init=1, random_state=0).fit(X).labels_
    how = {"covariance_type": kind, "random_state": 0, "tol": 1e-5, "labels_init": labels}
    some, every = (rm.GaussianMixture(K, search=search, **how).fit(X) for search in ("nearest", "all"))
    steps = np.diff(some.lower_bounds_)
    assert some.converged_ and (steps >= -1e-12 * abs(some.lower_bound_)).all()
    exact = some.score(X)
    assert some.lower_bound_ <= exact <= some.lower_bound_ + 1e-3 * abs(exact)
    assert exact > every.score(X) - 2e-3 * abs(exact)


@pytest.mark.slow
def test_few_evaluations_are_enough(monkeypatch):
    X, many = clusters(40_000, K=200, d=16), 200
    counted = [0]

    def counting(function, each):
        def counts(*arguments):
            counted[0] += each(*arguments)
            return function(*arguments)

        return counts

    monkeypatch.setattr(near, "near_joint", counting(near.near_joint, lambda X, own, sets, prior: (sets >= 0).sum()))
    monkeypatch.setattr(
        refreshed, "block_log_joint", counting(refreshed.block_log_joint, lambda problem, block: block.n_rows * many)
    )
    model = rm.GaussianMixture(many, covariance_type="diag", search="nearest", random_state=0, tol=0, max_iter=50)
    model.fit(X)
    assert counted[0] < 0.1 * 50 * many * len(X)
    assert model.score(X) - model.lower_bound_ < 1e-3 * abs(model.lower_bound_)


def test_threads_and_chunks_change_no_bit(tmp_path, monkeypatch):
    X = clusters(20_000)
    np.save(tmp_path / "rows.npy", X)
    model = rm.GaussianMixture(K, search="nearest", random_state=0, tol=0, max_iter=5)
    first = model.fit(X).means_
    second = model.fit(rm.scan(tmp_path / "rows.npy")).means_
    monkeypatch.setenv("RESIDMIX_NUM_THREADS", "1")
    third = model.fit(X).means_
    assert np.array_equal(first, second) and np.array_equal(first, third)


def test_as_many_as_there_are_is_all_of_them():
    X = clusters(500)
    few = rm.GaussianMixture(3, random_state=0).fit(X)
    assert np.array_equal(few.means_, rm.GaussianMixture(3, search=3, random_state=0).fit(X).means_)


def test_a_note_says_what_few_components_miss():
    X = clusters(2_000, apart=0.7)
    model = rm.GaussianMixture(K, covariance_type="diag", search=2, random_state=0, tol=1e-3).fit(X)
    told = [note for note in model.notes_ if note["kind"] == "near-components"]
    assert told and told[0]["figures"]["missing"] > 1e-3 * abs(told[0]["figures"]["log_likelihood"])
    wide = rm.GaussianMixture(K, covariance_type="diag", search=25, random_state=0, tol=1e-3).fit(X)
    assert not [note for note in wide.notes_ if note["kind"] == "near-components"]


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"noise": True}, "noise=True"),
        ({"distribution": "t"}, "distribution"),
        ({"trim": 0.1}, "trim=0.1"),
        ({"missing": "em"}, "missing values"),
        ({"covariance_type": ["full", "diag"]}, "several candidates"),
        ({"checkpoint": "state"}, "checkpoint"),
    ],
)
def test_what_looks_at_all_components_is_refused(settings, match):
    with pytest.raises(ValueError, match=match):
        rm.GaussianMixture(10, search="nearest", **settings).fit(clusters(500))
    with pytest.raises(ValueError, match="search"):
        rm.GaussianMixture(10, search="near").fit(clusters(500))


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"estimation": "joint", "gating": "metadata"}, {"effects": "by-component"}])
def test_given_metadata_the_bound_is_near_the_likelihood_too(settings):
    rng = np.random.default_rng(6)
    site = rng.integers(0, 2, 4_000)
    X = clusters(4_000, K=15) + site[:, None] * np.array([1.0, 0.0, -1.0, 0.5])
    how = {"random_state": 0, "tol": 1e-4, "max_iter": 60, **settings}
    model = rm.ResidualMixture(15, search=6, formula=None, **how).fit(X, metadata=site.astype(float))
    exact = model.score(X, metadata=site.astype(float))
    assert (np.diff(model.lower_bounds_) >= -1e-12 * abs(exact)).all()
    assert model.lower_bound_ <= exact < model.lower_bound_ + 1e-3 * abs(exact)
