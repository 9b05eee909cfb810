"""Twice the working precision, against exact rational arithmetic."""

from fractions import Fraction

import numpy as np

from residmix.kernels.twice import products_twice, residual_twice


def test_sums_and_products_of_two_parts_are_exact_to_twice_the_digits():
    rng = np.random.default_rng(0)
    X, A = rng.normal(size=(40, 2)) * 1e8, rng.normal(size=(40, 3)) + 1e5
    origin_x, origin_a = rng.normal(size=2), rng.normal(size=3)
    coef, constant = [(rng.normal(size=s), 1e-17 * rng.normal(size=s)) for s in ((3, 2), (2,))]
    weight = rng.uniform(size=40)
    high, low = products_twice(A, origin_a, residual_twice(X, A, origin_x, origin_a, coef, constant), weight)
    F = np.vectorize(lambda v: Fraction(float(v)), otypes=[object])
    z, b = F(A) - F(origin_a), F(coef[0]) + F(coef[1])
    r = F(X) - F(origin_x) - F(constant[0]) - F(constant[1]) - z @ b
    right = np.column_stack([z, F(np.ones(40))]).T @ (F(weight)[:, None] * r)
    error = np.abs((F(high) + F(low) - right) / right).max()
    assert 0 < error < 1e-27  # 106 bits, less what cancels
    assert np.abs((F(high) - right) / right).max() > 1e-20  # what plain numbers leave
