"""Triangular factors of stacks of matrices."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from residmix.kernels.cholesky import (
    inverse_cholesky,
    inverse_factor,
    inverse_triangles,
    inverted,
    many_inverse_cholesky,
    swept,
)

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("d", [1, 5, 40])
@pytest.mark.parametrize("factored", [inverse_cholesky, many_inverse_cholesky])
def test_factors_whiten_and_inverses_invert(d, factored):
    root = RNG.normal(size=(3, d, 2 * d)) * 10.0 ** RNG.uniform(-3, 3, d)[:, None]
    matrices = root @ root.transpose(0, 2, 1)
    factors, failed = factored(matrices)
    assert not failed.any()
    assert not np.tril(factors, -1).any()
    whitened = factors.transpose(0, 2, 1) @ matrices @ factors
    assert_allclose(whitened, np.broadcast_to(np.eye(d), (3, d, d)), atol=1e-9)
    inverses = inverse_triangles(factors)
    assert not np.tril(inverses, -1).any()
    # back in units of each column's spread
    spread = np.sqrt(matrices.diagonal(0, 1, 2))
    again = (inverses.transpose(0, 2, 1) @ inverses - matrices) / spread[:, :, None] / spread[:, None, :]
    assert_allclose(again, 0.0, atol=1e-10)


@pytest.mark.parametrize("d", [3, 40])
@pytest.mark.parametrize("factored", [inverse_cholesky, many_inverse_cholesky])
def test_what_has_no_factor_is_told(d, factored):
    matrices = np.stack([np.eye(d), np.ones((d, d)) - 0.1 * np.eye(d), np.full((d, d), np.nan), -np.eye(d)])
    assert factored(matrices)[1].tolist() == [False, True, True, True]
    # of positive diagonals too
    assert factored(matrices[:2])[1].tolist() == [False, True]


@pytest.mark.parametrize("d", [0, 1, 64, 65, 130, 301])
def test_the_inverse_factor_by_halves_is_that_of_lapack(d):
    root = RNG.normal(size=(d, 2 * d))
    matrix = root @ root.T / max(d, 1) + np.eye(d)
    kept = matrix.copy()
    found = inverse_factor(matrix)
    assert_allclose(found, np.linalg.inv(np.linalg.cholesky(matrix)), atol=1e-13)
    assert not np.triu(found, 1).any()
    assert_allclose(matrix, kept, rtol=0)


@pytest.mark.parametrize("place", [0, 70, 199])
def test_the_inverse_factor_refuses_what_is_not_positive_definite_wherever_it_shows(place):
    for value in (-1.0, np.nan):
        matrix = np.eye(200)
        matrix[place, place] = value
        with pytest.raises(np.linalg.LinAlgError, match="200 rows is not positive definite"):
            inverse_factor(matrix)


@pytest.mark.parametrize("d", [1, 4, 12])
def test_swept_matrices_are_inverses_and_pivots_multiply_to_determinants(d):
    root = RNG.normal(size=(30, d, 2 * d))
    matrices = root @ root.transpose(0, 2, 1)
    inverses, pivots = swept(np.moveaxis(matrices, 0, -1).copy())
    assert_allclose(np.moveaxis(inverses, -1, 0) @ matrices, np.broadcast_to(np.eye(d), matrices.shape), atol=1e-8)
    assert_allclose(np.log(pivots).sum(axis=0), np.linalg.slogdet(matrices)[1], rtol=1e-10, atol=1e-10)


def test_a_matrix_that_is_not_positive_definite_has_a_pivot_that_says_so():
    matrices = np.stack([np.eye(3), np.ones((3, 3)) - 0.1 * np.eye(3), np.full((3, 3), np.nan), -np.eye(3)])
    pivots = swept(np.moveaxis(matrices, 0, -1).copy())[1]
    assert (pivots.min(axis=0) > 0).tolist() == [True, False, False, False]


@pytest.mark.parametrize("count", [2, 200])
def test_few_and_many_matrices_have_the_same_inverses_and_determinants(count):
    roots = np.random.default_rng(0).normal(size=(count, 4, 6))
    matrices = np.ascontiguousarray((roots @ roots.swapaxes(1, 2)).transpose(1, 2, 0))
    inverse, pivots = inverted(matrices)
    assert_allclose(
        inverse.transpose(2, 0, 1) @ matrices.transpose(2, 0, 1), np.eye(4) * np.ones((count, 1, 1)), atol=1e-9
    )
    assert_allclose(pivots.prod(axis=0), np.linalg.det(matrices.transpose(2, 0, 1)), rtol=1e-9)
    matrices[:, :, 1] = -np.eye(4)
    assert inverted(matrices)[1][:, 1].min() <= 0
