"""Rows kept aside while something else is computed."""

import operator
import tracemalloc

import numpy as np
import pytest

from residmix.rows.rows import ArrayRows
from residmix.rows.sampled import SampledRows, at_random, evenly, regularly


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


@pytest.mark.parametrize("seeded", [np.random.RandomState, np.random.default_rng])
def test_indices_at_random_are_in_order_and_without_repeats_or_all(seeded):
    for n, most in ((1000, 999), (1000, 300), (100_000, 20)):
        index = at_random(n, most, seeded(0))
        assert len(index) == most
        assert (np.diff(index) > 0).all()
        assert index[0] >= 0 and index[-1] < n
        assert not np.array_equal(index, at_random(n, most, seeded(1)))
    assert np.array_equal(at_random(7, 9, seeded(0)), np.arange(7))


def test_a_few_indices_of_many_need_no_memory_for_all_of_them():
    tracemalloc.start()
    at_random(5_000_000, 20_000, np.random.RandomState(0))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5_000_000  # numpy's choice takes eight bytes a row


@pytest.mark.parametrize("n", [1, 7, 10, 11, 25, 1003])
def test_spaced_indices_are_at_most_so_many_and_all_where_these_are_enough(n):
    even, regular = evenly(n, 10), regularly(n, 10)
    assert even[0] == regular[0] == 0 and even[-1] == n - 1
    assert len(even) == min(n, 10) and len(regular) <= 10
    assert set(np.diff(even, 2)) <= {-1, 0, 1} and len(set(np.diff(regular))) <= 1
