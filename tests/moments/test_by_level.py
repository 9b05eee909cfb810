"""Moments by level: those of all rows follow from them, however rows are cut and whatever levels lack."""

from dataclasses import fields

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from residmix.moments.by_level import ByLevel, Grouping, level_of
from residmix.moments.linear import linear_moments, merge_moments
from residmix.rows.block import Block
from residmix.rows.rows import ArrayRows, fold

# Three levels and a reference, in columns 1 to 3 of six.
CODED = np.vstack([np.zeros(3), np.eye(3)])
SITES = Grouping("site", slice(1, 4), CODED)


def rows(n=3000, d=5, seed=0, offset=0.0):
    rng = np.random.default_rng(seed)
    own = rng.integers(0, 4, n)
    design = rng.normal(size=(n, 6)) + offset
    design[:, 1:4] = CODED[own]
    X = rng.normal(size=(n, d)) * (1.0 + own[:, None]) + 10.0 * own[:, None] + offset
    return X, design, own


def same(one, two, rtol=1e-11):
    """Assert that moments agree: means, and scatters relative to the largest of their kind."""
    assert_allclose(one.mean_x, two.mean_x, rtol=rtol)
    assert_allclose(one.mean_a, two.mean_a, rtol=rtol, atol=rtol)
    for name in ("count", "weight", "s_aa", "s_ax", "s_xx"):
        ours, theirs = getattr(one, name), getattr(two, name)
        assert_allclose(ours, theirs, rtol=rtol, atol=rtol * np.abs(theirs).max(initial=0.0))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("block_rows", [64, 700, 3000])
@pytest.mark.parametrize("offset", [0.0, 1e8])
def test_levels_and_all_rows_have_the_moments_of_their_rows(weighted, block_rows, offset):
    X, design, own = rows(offset=offset)
    X, design = np.round(X, 3), np.round(design, 3)
    weight = np.random.default_rng(1).integers(0, 3, len(X)).astype(float) if weighted else None
    found = ByLevel((SITES,)).moments(ArrayRows(X, design, weight=weight, block_rows=block_rows))
    rtol = 1e-11 if offset == 0 else 1e-8
    same(found.linear, linear_moments(Block(0, X, design, weight=weight)), rtol)
    others = design[:, [0, 4, 5]].copy()
    for k in range(4):
        at = own == k
        alone = linear_moments(Block(0, X[at], others[at], weight=None if weight is None else weight[at]))
        same(found.levels["site"][k], alone, rtol)


def test_a_level_that_comes_late_has_an_origin_near_its_rows():
    X, design, own = rows(offset=1e8)
    order = np.argsort(own, kind="stable")
    found = ByLevel((SITES,)).moments(ArrayRows(X[order], design[order], block_rows=256))
    for k, level in enumerate(found.levels["site"]):
        assert np.abs(level.origin_x - X[own == k].mean(axis=0)).max() < 10
        assert_allclose(level.s_xx, ((X[own == k] - X[own == k].mean(axis=0)) ** 2).sum(axis=0), rtol=1e-9)


def test_rows_of_no_level_count_in_the_moments_of_all_rows_as_they_are():
    """As where a missing level has the mean of the levels' columns."""
    X, design, _ = rows()
    design[::50, 1:4] = 0.25
    found = ByLevel((SITES,)).moments(ArrayRows(X, design))
    same(found.linear, linear_moments(Block(0, X, design)))


def test_missing_values_at_one_level_leave_the_others_as_they_are():
    X, design, own = rows()
    plain = ByLevel((SITES,)).moments(ArrayRows(X, design, block_rows=500))
    X[np.flatnonzero(own == 2)[::7], 1] = np.nan
    found = ByLevel((SITES,)).moments(ArrayRows(X, design, block_rows=500))
    direct = fold(ArrayRows(X, design, block_rows=500), linear_moments, merge_moments)
    for field in fields(direct):
        assert_array_equal(getattr(found.linear, field.name), getattr(direct, field.name))
    for k in (0, 1, 3):
        same(found.levels["site"][k], plain.levels["site"][k])
    assert found.levels["site"][2].weight.shape == (5,)


def test_a_level_is_found_by_its_columns_or_as_the_nearest_one():
    _, design, own = rows()
    assert_array_equal(level_of(design, slice(1, 4), CODED), own)
    moved = design + 1e-12
    assert_array_equal(level_of(moved, slice(1, 4), CODED), own)


def test_of_many_levels_blocks_hold_those_that_they_have():
    X, design, _ = rows()
    own = np.random.default_rng(2).integers(0, 200, len(X))
    coded = np.vstack([np.zeros(199), np.eye(199)])
    wide, many = np.hstack([design[:, :1], coded[own]]), Grouping("subject", slice(1, 200), coded)
    found = ByLevel((many,)).moments(ArrayRows(X, wide, block_rows=64))
    same(found.linear, linear_moments(Block(0, X, wide)))
    for k in range(200):
        same(found.levels["subject"][k], linear_moments(Block(0, X[own == k], wide[own == k, :1])))
