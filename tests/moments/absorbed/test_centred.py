"""Directions that hardly meet are told apart in closed form, and as by a dense factorisation."""

import numpy as np
import pytest
from scipy import sparse

from residmix.moments.absorbed import centred
from residmix.moments.absorbed.centred import Centred

NOTHING = 1e-9


def indicators(groups):
    """Columns of indicators of the levels of some factors."""
    return np.hstack([np.eye(codes.max() + 1)[codes] for codes in groups])


def scatter(kind, n=600, seed=0):
    """G, t, W of some contributions (n, m)."""
    rng = np.random.default_rng(seed)
    sub = np.r_[np.arange(40), rng.integers(0, 40, n - 40)]
    site = sub % 8
    columns = {
        "nested": indicators([sub]),
        "not all levels": indicators([sub])[:, 1:],
        "one level has it all": indicators([np.r_[np.zeros(n - 3, int), 1, 2, 3]]),
        "levels of two factors": indicators([site, sub]),
        "beside columns": np.column_stack([indicators([sub]), rng.normal(size=n), (site < 3) * 1.0, site * 1.0]),
        "some don't move": np.column_stack([indicators([sub]), np.zeros((n, 5))]),
    }[kind]
    weight = rng.uniform(0.5, 2.0, n)
    columns = columns / np.maximum(np.sqrt(weight @ columns**2), 1e-300)
    return columns.T @ (weight[:, None] * columns), columns.T @ weight, weight.sum()


KINDS = [
    "nested",
    "not all levels",
    "one level has it all",
    "levels of two factors",
    "beside columns",
    "some don't move",
]


@pytest.mark.parametrize("kind", KINDS)
def test_pivots_span_everything_and_solve_their_equations(kind):
    products, total, weight = scatter(kind)
    whole = products - np.outer(total, total) / weight
    found = Centred(sparse.csr_array(products), total, weight).independent(NOTHING)
    dense = Centred(products, total, weight).independent(NOTHING)
    assert len(found.pivots) == len(dense.pivots) == np.linalg.matrix_rank(whole, 1e-8)
    assert sorted([*found.pivots, *found.others]) == list(range(len(whole)))
    right = np.random.default_rng(1).normal(size=(len(found.pivots), 3))
    np.testing.assert_allclose(whole[np.ix_(found.pivots, found.pivots)] @ found.solve(right), right, atol=1e-8)
    np.testing.assert_allclose(whole[:, found.others], whole[:, found.pivots] @ found.made, atol=1e-10)


def test_thousands_of_levels_are_never_written_out():
    levels = 200_000  # whose table would take 320 GB
    weight = np.random.default_rng(0).integers(1, 9, levels).astype(float)
    products = sparse.csr_array(sparse.diags_array(np.ones(levels)))
    found = Centred(products, np.sqrt(weight), weight.sum()).independent(NOTHING)
    assert len(found.pivots) == levels - 1
    (other,) = found.others
    # all levels together contribute nothing once they are centred
    np.testing.assert_allclose(found.made[:, 0], -np.sqrt(weight[found.pivots] / weight[other]), rtol=1e-8)


def test_directions_that_all_meet_are_factored_densely(monkeypatch):
    monkeypatch.setattr(centred, "_MEETING", 3)
    products, total, weight = scatter("levels of two factors")
    found = Centred(sparse.csr_array(products), total, weight).independent(NOTHING)
    dense = Centred(products, total, weight).independent(NOTHING)
    np.testing.assert_array_equal(found.pivots, dense.pivots)
