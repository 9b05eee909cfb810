"""A statistic is one value: of changed blocks, beside what is observed, and the same sum wherever the rows are."""

import operator

import numpy as np
import pytest

from residmix.rows.block import Block
from residmix.rows.checks import Finite
from residmix.rows.rows import ArrayRows
from residmix.rows.statistic import Statistic


def total(block):
    return float(block.X.sum())


def doubled(block):
    return Block(block.start, 2.0 * block.X)


def seen(block):
    return [block.start]


X = np.random.default_rng(0).normal(size=(1000, 3))
ROWS = ArrayRows(X, block_rows=64)
SUM = Statistic(total, operator.add)


def test_of_changed_blocks_and_beside_what_is_observed():
    plain = ROWS.total(SUM)
    np.testing.assert_allclose(plain, X.sum(), rtol=1e-12)
    assert ROWS.total(SUM.of(doubled)) == ROWS.mapped(doubled).total(SUM)
    np.testing.assert_allclose(ROWS.total(SUM.of(doubled)), 2.0 * plain, rtol=1e-12)
    assert ROWS.total(SUM.beside(seen)) == (plain, list(range(0, 1000, 64)))
    assert ROWS.fold(total, operator.add) == plain


@pytest.mark.parametrize("made", [lambda own: own, lambda own: own.of(doubled), lambda own: own.beside(seen)])
def test_what_a_statistic_tells_of_a_block_is_lost_where_the_block_is_another(made):
    wrong = X.copy()
    wrong[700, 1] = np.inf
    looked = []

    class Look(Finite):
        def __call__(self, X, start, index=None):
            looked.append(start)
            super().__call__(X, start, index)

    sound = Statistic(total, operator.add, np.isfinite)
    rows = ArrayRows(wrong, block_rows=64, finite=Look(["a", "b", "c"]))
    with pytest.raises(ValueError, match="infinity"):
        rows.total(made(sound))
    # only the block that can't be sound is looked at, unless nothing is told of what it held
    changed = made(sound).sound is None
    assert (len(looked) > 1) == changed
