"""Starts of joint estimation: which need no other beside them, and which are the same."""

from dataclasses import replace

import numpy as np
import pytest

from residmix.conditional.coordinates import Widths
from residmix.conditional.starts import Group, Sought, best_of_short, conditional_starts, constant_gate, groups_of
from residmix.conditional.starts.groups import as_likely_as_groups
from residmix.conditional.starts.short import short_run
from residmix.em.loop import run_em
from residmix.mixture.iteration.step import MixtureEM
from residmix.mixture.params import make_params
from residmix.rows.rows import ArrayRows

SHIFT = np.array([2.0, -3.0])


def two_sites(apart, share=0.3, n=1200, seed=0):
    """Return rows, their orthonormal design (n, 1), and what the clusters are: `share` of cluster 1 at site 0."""
    rng = np.random.default_rng(seed)
    site, cluster = np.arange(n) % 2, (rng.random(n) < np.where(np.arange(n) % 2, 0.6, share)).astype(int)
    x = apart * cluster[:, None] * [1.0, 1.0] + site[:, None] * SHIFT + rng.normal(size=(n, 2))
    return ArrayRows(x, 2.0 * site[:, None] - 1.0), cluster


def sought(gated=True):
    return Sought(2, "full", 1e-6, gated, Widths(1, 1), np.random.RandomState(0))


def found(rows, **options):
    settings = {"joint": True, "thorough": False, "n_init": 1, "init_params": "short-em", "given": {"means": None}}

    def finish(em, start):
        return run_em(em, start, tol=1e-5, max_iter=50)

    return conditional_starts(rows, sought(), finish=finish, **{**settings, **options})


def truth(apart):
    means = apart * np.array([[0.0, 0.0], [1.0, 1.0]]) + SHIFT / 2
    mixture = make_params(np.array([0.55, 0.45]), means, np.repeat(np.eye(2)[None], 2, axis=0), "full")
    return replace(mixture, coef=SHIFT[None] / 2, gate=constant_gate(mixture.weights, 1))


@pytest.mark.parametrize(
    ("apart", "share", "away", "enough"),
    [(6.0, 0.3, 0.0, True), (1.5, 0.3, 0.0, False), (6.0, 0.0, 0.0, False), (6.0, 0.3, 1.0, False)],
    ids=["clear", "overlapping", "lacking a cluster", "another shift"],
)
def test_a_mixture_is_enough_if_it_is_as_likely_as_the_groups_own_and_clear(apart, share, away, enough):
    rows, _ = two_sites(apart, share)
    block = rows.take(np.arange(rows.n_rows))
    groups = [
        Group.of(block, index, sought(), "full") for index in groups_of(block.design, 2, 2, np.random.RandomState(0))
    ]
    params = short_run(block, truth(apart), sought()).params
    params = replace(params, coef=params.coef + away)
    assert as_likely_as_groups(params, block, groups) is enough


def test_clear_clusters_need_one_start():
    rows, cluster = two_sites(6.0)
    (start,) = found(rows)
    np.testing.assert_allclose(start.coef[0], SHIFT / 2, atol=0.1)
    np.testing.assert_allclose(np.sort(start.weights), np.sort([np.mean(cluster), 1 - np.mean(cluster)]), atol=0.02)
    # where another likelihood will be the fit's, it isn't enough
    assert len(found(rows, thorough=True)) > 1


def test_overlapping_clusters_begin_with_two_stages():
    rows, _ = two_sites(1.5)
    starts = found(rows)
    assert [bool(start.coef.any()) for start in starts] == [False] + [True] * (len(starts) - 1)
    assert len(starts) > 1


def test_runs_that_end_where_another_does_are_left_out():
    rows, _ = two_sites(6.0)
    block = rows.take(np.arange(rows.n_rows))
    one = truth(6.0)
    swapped = replace(one, weights=one.weights[::-1], means=one.means[::-1], covariances=one.covariances[::-1],
                      factors=one.factors[::-1], gate=replace(one.gate, coef=one.gate.coef[::-1]))  # fmt: skip
    elsewhere = replace(one, means=np.zeros((2, 2)) + [[0.0], [0.1]], coef=np.zeros((1, 2)))
    ended = best_of_short(block, [elsewhere, one, swapped], sought(), (3, 3))
    values = [MixtureEM(rows, 1e-6).evaluate(params) for params in ended]
    assert len(ended) <= 2
    assert values == sorted(values, reverse=True)
    np.testing.assert_allclose(ended[0].coef[0], SHIFT / 2, atol=0.1)
