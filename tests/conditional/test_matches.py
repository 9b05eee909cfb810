"""Matches of groups' clusters: what merging keeps and costs, and that any cluster may be the one in common."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from residmix.conditional.starts.matches import likely_matches
from residmix.mixture.params import make_params
from residmix.mixture.selection.merging import merged_down


def mixtures(p, m, d, seed=0):
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(p, m, d, d))
    return rng.uniform(1, 9, (p, m)), rng.normal(size=(p, m, d)) * 3, root @ root.swapaxes(2, 3) + np.eye(d)


def moments(rows, means, covariances):
    mean = rows @ means / rows.sum()
    gap = means - mean
    second = covariances + gap[:, :, None] * gap[:, None, :]
    return rows.sum(), mean, np.tensordot(rows, second, 1) / rows.sum()


@pytest.mark.parametrize("left", [1, 2, 4])
def test_merging_keeps_rows_mean_and_covariance_of_the_whole(left):
    given = mixtures(3, 5, 2)
    _, *found = merged_down(left, *given)
    for i in range(3):
        before, after = (moments(*(part[i] for part in parts)) for parts in (given, found))
        for one, two in zip(before, after, strict=True):
            assert_allclose(two, one, rtol=1e-12)


def test_the_cheapest_pair_is_merged_first_at_the_cost_of_the_formula():
    rows, means, covariances = mixtures(1, 4, 3, seed=3)

    def cost(i, j):
        pair = [i, j]
        both, _, covariance = moments(rows[0, pair], means[0, pair], covariances[0, pair])
        logs = np.linalg.slogdet(covariances[0, pair])[1]
        return 0.5 * (both * np.linalg.slogdet(covariance)[1] - rows[0, pair] @ logs)

    expected = min(cost(i, j) for i in range(4) for j in range(i))
    assert_allclose(merged_down(3, rows, means, covariances)[0], expected, rtol=1e-12)


def test_merging_a_component_with_its_copy_costs_nothing():
    rows, means, covariances = mixtures(1, 2, 3)
    twice = (np.tile(rows, 2), np.tile(means, (1, 2, 1)), np.tile(covariances, (1, 2, 1, 1)))
    cost, *found = merged_down(2, *twice)
    assert_allclose(cost, 0.0, atol=1e-10)
    assert_allclose(np.sort(found[0]), np.sort(2 * rows))


def test_groups_are_matched_by_the_cluster_they_share_though_each_is_mostly_another():
    # 20 % of either group is the flat cluster, as two halves; the rest is a long one here and a round one there
    flat, long, round_ = np.diag([9.0, 0.1]), np.diag([0.1, 25.0]), np.diag([1.0, 1.0])
    shift = np.array([7.0, -4.0])
    means = np.array([[0.0, 0.0], [0.0, 0.0], [5.0, 5.0]]), np.array([[0.0, 0.0], [0.0, 0.0], [-6.0, 9.0]]) + shift
    weights = np.array([0.1, 0.1, 0.8])
    one = make_params(weights, means[0], np.stack([flat, flat, long]), "full")
    two = make_params(weights, means[1], np.stack([flat, flat, round_]), "full")
    mixture, shifts = likely_matches([one, two], [500.0, 400.0])[0]
    assert_allclose(shifts[1], shift)
    assert_allclose(np.sort(mixture.weights * 900), [180.0, 320.0, 400.0])


@pytest.mark.parametrize("seed", range(5))
def test_of_three_groups_matches_are_kept_by_the_cost_of_all_merges(seed):
    sizes, every = [300.0, 200.0, 500.0], []
    for k in range(3):
        _, means, covariances = mixtures(1, 2, 2, seed=3 * seed + k)
        every.append(make_params(np.array([0.4, 0.6]), means[0], covariances[0], "full"))

    def joined(before, group, k, l):
        rows, means, covariances, cost, shifts = before
        more = every[group]
        shift = more.means[l] - means[k]
        parts = (
            [rows, sizes[group] * more.weights],
            [means, more.means - shift],
            [covariances, more.full_covariances()],
        )
        paid, *left = merged_down(2, *(np.concatenate(part)[None] for part in parts))
        return (*(part[0] for part in left), cost + paid[0], [*shifts, shift])

    paths = [(sizes[0] * every[0].weights, every[0].means, every[0].full_covariances(), 0.0, [np.zeros(2)])]
    for group in (1, 2):
        paths = [joined(path, group, k, l) for path in paths for k in (0, 1) for l in (0, 1)]
    found = likely_matches(every, sizes, kept=16)
    assert len(found) == 16
    for (_, shifts), path in zip(found, sorted(paths, key=lambda path: path[3]), strict=True):
        assert_allclose(shifts, path[4])
