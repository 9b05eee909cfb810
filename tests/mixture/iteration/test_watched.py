"""Rehearsals of a run: passes that are told are those that come, and a close call is judged by more rows."""

import numpy as np
import pytest

from residmix.mixture.iteration import watched
from residmix.mixture.iteration.step import MixtureEM
from residmix.mixture.params import make_params
from residmix.rows.rows import ArrayRows
from residmix.rows.sampled import SampledRows, evenly


@pytest.fixture
def problem(rng):
    centres = np.array([[0.0, 0.0], [4.0, 0.0]])
    X = rng.normal(size=(40_000, 2)) + centres[rng.integers(2, size=40_000)]
    start = make_params(np.full(2, 0.5), centres + 0.5, np.stack([np.eye(2)] * 2), "full")
    return MixtureEM(ArrayRows(X), 1e-6), start


def rehearse(problem, monkeypatch, counts=None):
    em, start = problem
    sizes = []

    def passes(few, start, how):
        sizes.append(few.rows.n_rows)
        return (counts[len(sizes) - 1], True) if counts else counted(few, start, how)

    counted = watched._passes
    monkeypatch.setattr(watched, "_passes", passes)
    sampled = SampledRows(em.rows, evenly(em.rows.n_rows, 2000))
    state = watched.EMState(start, (-1.0,), 1)
    return watched._rehearsed(em, sampled, start, {"tol": 1e-5, "max_iter": 100, "accelerate": None}, state), sizes


def test_halves_that_agree_are_enough(problem, monkeypatch):
    (low, high, ended), sizes = rehearse(problem, monkeypatch)
    passes, _ = watched._passes(*problem, {"tol": 1e-5, "max_iter": 100, "accelerate": None})
    assert ended
    assert sizes[:2] == [1000, 1000]
    assert len(sizes) == 3  # and the run itself
    assert low - 1 <= passes - 1 <= high + 1


@pytest.mark.parametrize(
    ("counts", "told"), [((8, 19, 8), (7, 7)), ((8, 19, 19), (18, 18)), ((8, 19, 12), (7, 11)), ((8, 9), (7, 8))]
)
def test_halves_that_differ_are_judged_by_all_rows(problem, monkeypatch, counts, told):
    found, sizes = rehearse(problem, monkeypatch, counts)
    assert found == (*told, True)
    assert sizes == [1000, 1000, 2000][: len(counts)]
