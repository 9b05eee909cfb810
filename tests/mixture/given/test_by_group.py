"""Rows are told apart by the group whose covariances they have."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from residmix.mixture.given.by_group import groups_of
from residmix.mixture.iteration.groups import with_groups
from residmix.mixture.params import make_params
from residmix.rows.block import Block


@pytest.mark.parametrize("n_groups", [1, 3, 40_000])
def test_groups_have_all_their_rows_in_order(n_groups):
    rng = np.random.default_rng(0)
    mixture = make_params(np.ones(1), np.zeros((1, 1)), np.ones((1, 1)), "diag")
    group = np.concatenate([np.arange(n_groups), rng.integers(n_groups, size=7)])
    params = with_groups(mixture, np.ones((n_groups, 1)), group)
    own = rng.integers(len(group), size=200)
    weight = rng.random(200)
    block = Block(5, rng.normal(size=(200, 2)), rng.normal(size=(200, 3)), (own,), weight)
    found = groups_of(params, block)
    assert [g for g, _ in found] == sorted(set(group[own].tolist()))
    for g, rows in found:
        assert_array_equal(rows, np.flatnonzero(group[own] == g))
        part = block.select(rows)
        assert_array_equal(part.X, block.X[rows])
        assert_array_equal(part.design, block.design[rows])
        assert_array_equal(part.codes[0], own[rows])
        assert_array_equal(part.weight, weight[rows])
    assert replace(block, weight=None).select(found[0][1]).weight is None
