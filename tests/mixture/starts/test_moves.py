"""Moves lead from one optimum to the next."""

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
