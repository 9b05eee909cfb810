"""Moves lead from one optimum to the next."""

import itertools

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score
from sklearn.mixture import GaussianMixture as Reference

from residmix import GaussianMixture
from residmix.mixture.params import make_params
from residmix.mixture.starts import short_runs
from residmix.mixture.starts.moves import moved

RNG = np.random.default_rng(0)
TRUTH = np.repeat([0, 1, 2], 60)
X = np.array([[0.0, 0.0], [7.0, 0.0], [0.0, 40.0]])[TRUTH] + RNG.normal(size=(180, 2))


def one_covers_two():
    """An optimum that EM does not leave: one component for two clusters, two for the third."""
    labels = np.where(TRUTH < 2, 0, 1 + (X[:, 0] > X[TRUTH == 2, 0].mean()))
    return labels, GaussianMixture(3, labels_init=labels).fit(X)


# some moves end in components on a few rows
@pytest.mark.filterwarnings("ignore::residmix.errors.DegenerateComponentWarning")
def test_a_move_leads_out_of_an_optimum_that_em_does_not_leave():
    _, stuck = one_covers_two()
    # the control: EM stays there
    assert adjusted_rand_score(TRUTH, stuck.predict(X)) < 0.7
    best = make_params(stuck.weights_, stuck.means_, stuck.covariances_, "full")
    fits = [GaussianMixture(3, labels_init=labels).fit(X) for labels in moved(X, np.ones(180), best)]
    assert max(adjusted_rand_score(TRUTH, fit.predict(X)) for fit in fits) == 1.0


def test_a_component_of_a_few_rows_is_not_cut():
    labels = np.r_[np.zeros(172), np.ones(8)].astype(int)
    means = np.stack([X[labels == k].mean(axis=0) for k in range(2)])
    far = np.r_[X[:172], X[:8] + 1000.0]
    params = make_params(np.array([172, 8]) / 180, means + [[0, 0], [1000, 1000]], np.array([np.eye(2)] * 2), "full")
    found = moved(far, np.ones(180), params)
    # 8 rows are fewer than 4 for each of three moments: only the large one is cut, and the other one goes
    assert len(found) and all(len(set(one[172:])) == 1 for one in found)


def test_clusters_that_lie_clearly_apart_need_no_moves(monkeypatch):
    asked = []
    monkeypatch.setattr(short_runs, "moved", lambda y, w, params: asked.append(len(y)) or moved(y, w, params))
    apart = np.array([[0.0, 0.0], [20.0, 0.0], [0.0, 20.0]])[TRUTH] + RNG.normal(size=(180, 2))
    assert adjusted_rand_score(TRUTH, GaussianMixture(3, random_state=0).fit_predict(apart)) == 1.0
    assert not asked
    # the control: where they overlap there are
    GaussianMixture(3, random_state=0).fit(apart * 0.1 + RNG.normal(size=(180, 2)))
    assert asked


def small(seed):
    """Clusters of `benchmarks/starts.py` that starts from k-means miss now and then."""
    rng = np.random.default_rng(seed)
    n, d, K = int(rng.integers(80, 400)), int(rng.integers(1, 6)), int(rng.integers(2, 6))
    means = rng.uniform(1, 4) * rng.normal(size=(K, d))
    labels = rng.choice(K, n, p=rng.dirichlet(np.full(K, 5.0)))
    round_ = np.eye(d) * rng.uniform(0.3, 1.5, (K, 1, 1))
    roots = round_ + 0.5 * rng.normal(size=(K, d, d))
    return means[labels] + np.einsum("nij,nj->ni", roots[labels], rng.normal(size=(n, d))), K


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", [1020, 1047, 1050])
def test_fits_are_no_worse_than_the_best_of_ten_starts(seed):
    rows, K = small(seed)
    best = Reference(K, n_init=10, random_state=seed).fit(rows)
    model = GaussianMixture(K, random_state=seed).fit(rows)
    assert len(rows) * (best.score(rows) - model.score(rows)) < 0.1


def test_clusters_that_lie_clearly_apart_need_one_start(monkeypatch):
    runs = []
    plain = short_runs.short_runs
    monkeypatch.setattr(
        short_runs, "short_runs", lambda rows, some, **how: runs.append(some.n_runs) or plain(rows, some, **how)
    )
    apart = np.array([[0.0, 0.0], [20.0, 0.0], [0.0, 20.0]])[TRUTH] + RNG.normal(size=(180, 2))
    model = GaussianMixture(3, random_state=0).fit(apart)
    assert set(runs) == {1}
    np.testing.assert_allclose(model.lower_bound_, GaussianMixture(3, labels_init=TRUTH).fit(apart).lower_bound_)
    # the control: a component too many sits anywhere
    runs.clear()
    GaussianMixture(4, random_state=0).fit(apart)
    assert max(runs) > 10


@pytest.mark.filterwarnings("ignore")
def test_moves_are_tried_again_only_where_they_led_to_another_optimum(monkeypatch):
    tried = []
    monkeypatch.setattr(short_runs, "moved", lambda y, w, params: tried.append(params) or moved(y, w, params))
    counts = []
    for seed in range(20):
        tried.clear()
        rows, K = small(seed)
        GaussianMixture(K, random_state=seed).fit(rows)
        counts.append(len(tried))
        for before, after in itertools.pairwise(tried):
            apart = np.linalg.norm(after.means[:, None] - before.means, axis=2)
            like = (apart <= 0.25) & (np.abs(after.weights[:, None] - before.weights) <= 0.05)
            assert not like.any(axis=1).all()
    assert 1 in counts and max(counts) > 1


def test_runs_on_the_same_way_are_counted_once():
    rng = np.random.default_rng(0)
    weights, means = np.full((40, 2), 0.5), rng.integers(0, 3, (1, 40, 2)) + 0.1 * rng.random((1, 40, 2))
    found = short_runs._different_runs(weights, means, 40)
    # the same whatever the order of the components; each component near one of the other's is enough
    ways = [frozenset(np.floor(run).astype(int)) for run in means[0]]
    expected = [i for i, way in enumerate(ways) if not any(way <= ways[j] for j in range(i))]
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(short_runs._different_runs(weights, means, 3), expected[:3])
    # other weights are another way
    weights[1:, 0] = 0.3
    assert short_runs._different_runs(weights[[0, 0, 1]], means[:, [0, 0, 0]], 3).tolist() == [0, 2]


@pytest.mark.parametrize("family", ["spherical", "full"])
@pytest.mark.parametrize("seed", [0, 5, 8])
def test_a_dense_cluster_within_a_wide_one_is_found(family, seed):
    rng, truth = np.random.default_rng(seed), np.repeat([0, 1, 2, 3], [60, 14, 50, 40])
    centres, spreads = np.array([[0, 0], [0.6, 0.4], [5, 0], [3, 4]]), np.array([1.5, 0.1, 0.7, 0.7])
    rows = centres[truth] + spreads[truth, None] * rng.normal(size=(164, 2))
    known = GaussianMixture(4, covariance_type=family, labels_init=truth).fit(rows)
    for start in range(5):
        model = GaussianMixture(4, covariance_type=family, random_state=start).fit(rows)
        assert len(rows) * (known.lower_bound_ - model.lower_bound_) < 0.1
