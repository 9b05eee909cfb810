"""The triangular factor of the rows: what is constant there stays constant, however far from zero."""

import numpy as np
import pytest

from residmix.moments.linear import linear_moments
from residmix.moments.solving.second_pass import Triangularize, merge_triangles
from residmix.moments.solving.solve import fit_linear
from residmix.rows.block import Block
from residmix.rows.rows import ArrayRows


def site_and_age(seed):
    """Return indicators of three of four sites and an age, and features of which one lacks the last site."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(100, 3000))
    site = rng.permutation(n) % 4
    A = np.column_stack([(site[:, None] == [1, 2, 3]).astype(float), rng.normal(size=n)])
    X = rng.normal(size=(n, 3)) + site[:, None]
    X[site == 3, 1] = np.nan
    return A, X


@pytest.mark.parametrize("weighted", [False, True])
def test_a_column_that_is_constant_in_a_features_rows_has_no_spread_there(weighted):
    A, X = site_and_age(0)
    weight = np.random.default_rng(1).uniform(0.5, 2.0, len(X)) if weighted else None
    moments = linear_moments(Block(0, X, A, (), weight))
    lost = moments.origin_a[2]
    assert moments.offset_a[1, 2] == pytest.approx(-lost)  # the column is zero there, which isn't its origin
    parts = [Block(0, X, A, (), weight).select(rows) for rows in (slice(0, 70), slice(70, None))]
    made = Triangularize(moments.origin_a, moments.offset_a, moments.origin_x)
    factor = merge_triangles(made(parts[0]), made(parts[1])).factors[1]
    assert np.linalg.norm(factor[1:, 3]) < 1e-25
    # control: from the common origin, rounding passes for spread
    made = Triangularize(moments.origin_a, np.zeros((3, 4)), moments.origin_x)
    factor = merge_triangles(made(parts[0]), made(parts[1])).factors[1]
    assert np.linalg.norm(factor[1:, 3]) > 1e-17


def test_a_level_without_values_leaves_the_other_coefficients_exact():
    # with rounding taken for a column, one to eight fits in a hundred were wrong, by up to a hundred
    for seed in range(110):
        A, X = site_and_age(seed)
        fit, _ = fit_linear(ArrayRows(X, A))
        have = ~np.isnan(X[:, 1])
        M = np.column_stack([np.ones(have.sum()), A[have][:, [0, 1, 3]]])
        expected = np.linalg.lstsq(M, X[have, 1], rcond=None)[0]
        np.testing.assert_allclose(fit.coef[:, 1], [*expected[1:3], 0.0, expected[3]], atol=1e-12)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("columns", ["aliased", "ill-conditioned"])
def test_a_single_feature_with_gaps_is_fitted_on_its_rows(columns, weighted):
    # it has one mean of the design, as features without gaps have together
    rng = np.random.default_rng(0)
    age = rng.normal(50.0, 10.0, 3000)
    site = rng.integers(0, 3, len(age))
    A = np.column_stack([site == 1, site == 2, 1.5 * (site == 2)]).astype(float)
    if columns == "ill-conditioned":
        A = np.column_stack([age, age + 1e-4 * rng.normal(size=len(age))])
    X = rng.normal(size=(len(age), 1)) + site[:, None]
    X[::4] = np.nan
    weight = rng.uniform(0.5, 2.0, len(age)) if weighted else None
    fit, _ = fit_linear(ArrayRows(X, A, weight=weight))
    have = ~np.isnan(X[:, 0])
    root = np.ones(len(age)) if weight is None else np.sqrt(weight)
    M = (root[:, None] * np.column_stack([np.ones(len(age)), A / A.std(axis=0)]))[have]
    expected = X[have, 0] - M / root[have, None] @ np.linalg.lstsq(M, root[have] * X[have, 0], rcond=1e-14)[0]
    np.testing.assert_allclose(fit.affine()(Block(0, X, A))[have, 0], expected, atol=1e-9)
    np.testing.assert_allclose(fit.rss[0], np.sum((root[have] * expected) ** 2), rtol=1e-12)
