"""Moments by products of the rows' squares are those of the loops."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from residmix.kernels.clusters import cluster_moments
from residmix.mixture.iteration.quadratic import AT_ONCE, QuadraticRows
from residmix.mixture.iteration.short import short_runs
from residmix.mixture.starts.clusters import runs_from_labels
from residmix.rows.rows import ArrayRows

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 3, (4, 300))
X = RNG.normal(size=(300, 3)) + np.array([[0, 0, 0], [3, 0, 0], [0, 3, 1]])[LABELS[0]]
W = RNG.uniform(0.5, 2.0, 300)


@pytest.mark.parametrize("weight", [W, np.ones(300)])
@pytest.mark.parametrize("family", ["full", "tied", "diag", "spherical", "VEV", "EVI"])
def test_runs_go_the_same_way_by_squares_as_by_loops(family, weight):
    columns = np.ascontiguousarray(X.T)
    diagonal = family in ("diag", "spherical", "EVI")
    squares = QuadraticRows.of(X, weight, diagonal=diagonal)
    begun = runs_from_labels(columns, weight, LABELS, 3, family, 1e-4)
    again = runs_from_labels(columns, weight, LABELS, 3, family, 1e-4, squares)
    assert_allclose(again.covariances, begun.covariances, rtol=1e-9, atol=1e-12)
    by_loops = short_runs(ArrayRows(X, weight=weight), begun, reg_covar=1e-4, tol=0.0, max_iter=8)
    by_squares = short_runs(squares, again, reg_covar=1e-4, tol=0.0, max_iter=8)
    assert_allclose(by_squares.values, by_loops.values, rtol=1e-10)
    assert_allclose(by_squares.means, by_loops.means, rtol=1e-6, atol=1e-8)


def test_tiles_add_up_to_the_whole():
    rows = np.tile(X, (5, 1))
    labels = np.tile(LABELS, (60, 5))
    assert rows.shape[0] * labels.shape[0] * 3 > AT_ONCE  # several tiles
    begun = runs_from_labels(np.ascontiguousarray(rows.T), np.ones(1500), labels, 3, "full", 1e-4)

    def sums(squares):
        coefficients, sound = squares.coefficients(begun.weights, begun.means, begun.covariances)
        assert sound.all()
        return squares.sums(coefficients, len(labels))

    many = sums(QuadraticRows.of(rows, np.ones(1500), diagonal=False))
    once = sums(QuadraticRows.of(X, np.full(300, 5.0), diagonal=False))
    assert_allclose(many[0], once[0], rtol=1e-12)
    assert_allclose(many[1], once[1], rtol=1e-10, atol=1e-9)


def test_a_cluster_without_rows_has_no_weight_and_no_scatter():
    squares = QuadraticRows.of(X, W, diagonal=False)
    labels = np.where(LABELS[:1] == 2, 0, LABELS[:1])
    weight, means, covariances = squares.moments(squares.of_clusters(labels, 3))
    alone = cluster_moments(np.ascontiguousarray(X.T), W, labels[0], 3, diagonal=False)
    assert weight[2] == 0
    for found, expected in zip((weight, means.T, (covariances * weight).transpose(2, 0, 1)), alone, strict=True):
        assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


def test_a_component_whose_covariance_is_not_positive_definite_is_told():
    squares = QuadraticRows.of(X, W, diagonal=False)
    covariances = np.repeat(np.eye(3)[:, :, None], 3, axis=2)
    covariances[0, 0, 1] = -1.0
    covariances[:2, :2, 2] = 1.0
    _, sound = squares.coefficients(np.full(3, 1 / 3), np.zeros((3, 3)), covariances)
    assert sound.tolist() == [True, False, False]
