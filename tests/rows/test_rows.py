"""Rows in blocks: order, groups, and what is refused on the way."""

from __future__ import annotations

import operator

import numpy as np
import pytest

from residmix.rows.block import Block
from residmix.rows.checks import Finite, check_weight
from residmix.rows.ordered import group_blocks
from residmix.rows.rows import ArrayRows, fold


def block_sum(block):
    return block.X.sum(axis=0)


def test_blocks_are_contiguous_and_equal_for_every_memory_order(rng):
    X = rng.normal(size=(1000, 5))
    wide = np.zeros((1000, 11))
    wide[:, 1::2] = X
    for same in (X, np.asfortranarray(X), wide[:, 1::2], X[::-1][::-1]):
        blocks = list(ArrayRows(same, block_rows=300).map(lambda block: block))
        assert [block.start for block in blocks] == [0, 300, 600, 900]
        assert all(block.X.flags.c_contiguous for block in blocks)
        assert np.array_equal(np.concatenate([block.X for block in blocks]), X)


def test_a_contiguous_array_is_never_copied(rng):
    X = rng.normal(size=(100, 4))
    assert all(np.shares_memory(block.X, X) for block in ArrayRows(X, block_rows=32).map(lambda block: block))


def test_rows_that_are_taken_are_copied_only_if_they_are_some(rng):
    X = rng.normal(size=(1000, 3))
    rows = ArrayRows(X, weight=np.arange(1000.0))
    everything = rows.take(np.arange(1000))
    assert np.shares_memory(everything.X, X)
    assert everything.start == 0
    for index in (np.arange(0, 1000, 7), np.arange(1000)[::-1], np.r_[np.arange(999), 0]):
        taken = rows.take(index)
        assert not np.shares_memory(taken.X, X)
        assert np.array_equal(taken.X, X[index])
        assert np.array_equal(taken.weight, index)


@pytest.mark.parametrize(("n", "d"), [(0, 3), (7, 3), (1000, 400), (40, 90_000)])
def test_tiles_are_the_rows_of_a_block_in_order(n, d):
    block = Block(5, np.empty((n, d)), design=np.arange(n, dtype=float)[:, None])
    tiles = list(block.tiles())
    assert [row for run, _ in tiles for row in range(n)[run]] == list(range(n))
    assert all(np.array_equal(tile.design[:, 0], np.arange(n)[run]) for run, tile in tiles)
    assert all(np.shares_memory(tile.X, block.X) for _, tile in tiles)
    assert len(tiles) == {0: 0, 7: 1, 1000: 4, 40: 3}[n]


def test_columns_are_gathered_block_by_block(rng):
    X = rng.normal(size=(100, 4))
    rows = ArrayRows(X, block_rows=32, columns=np.array([2, 0]))
    assert rows.n_features == 2
    assert np.array_equal(np.concatenate(list(rows.map(lambda block: block.X))), X[:, [2, 0]])
    assert np.array_equal(rows.take(np.array([3, 50])).X, X[[3, 50]][:, [2, 0]])


@pytest.mark.parametrize(("n_blocks", "size"), [(1, 1), (256, 1), (257, 2), (512, 2), (513, 3), (25600, 100)])
def test_there_are_at_most_256_groups(n_blocks, size):
    assert group_blocks(n_blocks) == size
    assert -(-n_blocks // size) <= 256


def test_the_fold_merges_in_order_inside_groups_then_over_groups():
    rows = ArrayRows(np.arange(600.0)[:, None], block_rows=1)
    shape = fold(rows, lambda block: [int(block.X[0, 0])], lambda a, b: [*a, "+", b] if len(b) > 1 else a + b)
    assert group_blocks(600) == 3
    assert shape[:3] == [0, 1, 2]
    assert shape[3:7] == ["+", [3, 4, 5], "+", [6, 7, 8]]


def test_the_fold_has_the_same_bits_for_any_number_of_threads(rng, monkeypatch):
    X = rng.normal(size=(5000, 3)) * 10.0 ** rng.uniform(-8, 8, size=(5000, 1))
    sums = []
    for threads in ("1", "2", "5"):
        monkeypatch.setenv("RESIDMIX_NUM_THREADS", threads)
        sums.append(fold(ArrayRows(X, block_rows=7), block_sum, operator.add).tobytes())
    assert len(set(sums)) == 1
    # the control: another grouping does change bits on these data
    assert fold(ArrayRows(X, block_rows=11), block_sum, operator.add).tobytes() != sums[0]


@pytest.mark.parametrize(
    ("value", "text"), [(np.nan, "NaN"), (np.inf, r"infinity \(\+inf\)"), (-np.inf, r"infinity \(-inf\)")]
)
def test_a_value_that_is_no_number_is_refused_with_its_row_and_column(rng, value, text):
    X = rng.normal(size=(1000, 3))
    X[777, 1] = value
    rows = ArrayRows(X, block_rows=100, finite=Finite(("a", "b", "c")))
    with pytest.raises(ValueError, match=f"{text}: row 777, column 'b'"):
        fold(rows, block_sum, operator.add)
    with pytest.raises(ValueError, match="row 777, column 'b'"):
        rows.take(np.array([5, 777, 800]))
    assert np.array_equal(rows.take(np.array([5])).X, X[[5]])


def test_nan_passes_when_allowed_but_infinity_never_does(rng):
    X = rng.normal(size=(10, 2))
    X[3, 0] = np.nan
    list(ArrayRows(X, finite=Finite("ab", allow_nan=True)).map(block_sum))
    X[5, 1] = np.inf
    with pytest.raises(ValueError, match="row 5, column 'b'"):
        list(ArrayRows(X, finite=Finite("ab", allow_nan=True)).map(block_sum))


def test_huge_finite_values_are_not_taken_for_infinite():
    X = np.full((50, 2), 1.7e308)
    assert len(list(ArrayRows(X, finite=Finite("ab")).map(len_of))) == 1


def len_of(block):
    return block.n_rows


def test_a_clean_pass_is_looked_at_once(rng):
    finite = Finite("ab")
    rows = ArrayRows(rng.normal(size=(10, 2)), block_rows=4, finite=finite)
    next(iter(rows.map(len_of)))
    assert not finite.proven
    list(rows.with_block_rows(3).map(len_of))
    assert finite.proven


@pytest.mark.parametrize(
    ("weight", "text"),
    [
        ([1.0, 2.0], "each of the 3 rows; got shape"),
        ([1.0, -2.0, 1.0], "row 1 has -2.0"),
        ([1.0, 2.0, np.nan], "row 2 has nan"),
        ([np.inf, 2.0, 1.0], "row 0 has inf"),
        ([0.0, 0.0, 0.0], "is 0 for every row"),
        (["a", "b", "c"], "must hold numbers"),
    ],
)
def test_weights_that_cannot_be_weights_are_refused(weight, text):
    with pytest.raises(ValueError, match=text):
        check_weight(weight, 3)


def test_weights_are_numbers_one_a_row():
    assert check_weight(None, 3) is None
    assert check_weight(1, 3) is None
    assert np.array_equal(check_weight([1, 0, 2], 3), [1.0, 0.0, 2.0])
    assert check_weight(np.float32([1, 0, 2]), 3).dtype == np.float64
