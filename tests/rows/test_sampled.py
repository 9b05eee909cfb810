"""Rows kept aside while something else is computed."""

import operator

import numpy as np

from residmix.rows.rows import ArrayRows
from residmix.rows.sampled import SampledRows


def total(block):
    return block.X.sum()


def test_the_first_fold_keeps_the_rows_and_changes_no_sum():
    X = np.random.default_rng(0).normal(size=(5000, 3))
    rows, index = ArrayRows(X, block_rows=64), np.arange(3, 5000, 17)
    sampled = SampledRows(rows, index)
    assert sampled.fold(total, operator.add) == rows.fold(total, operator.add)
    assert np.array_equal(sampled.sample().X, X[index])
    assert sampled.with_block_rows(100).fold(total, operator.add) == rows.with_block_rows(100).fold(total, operator.add)
    assert np.array_equal(sampled.sample().X, X[index])
    assert np.array_equal(SampledRows(rows, index).sample().X, X[index])  # without a fold
