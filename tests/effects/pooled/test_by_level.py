"""Sums by level: those of parts are merged to those of all rows."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from residmix.effects.pooled.by_level import level_ranges, level_sums, merge_ranges, merge_sums


@pytest.mark.parametrize("weighted", [False, True])
def test_sums_and_ranges_of_parts_are_those_of_all_rows(rng, weighted):
    values, own = rng.normal(size=(90, 3)) * [1, 5, 0.1] + [0, 100, -3], rng.integers(0, 4, 90)
    own[:30][own[:30] == 3] = 0  # a level that the first part lacks
    values[rng.random(values.shape) < 0.1] = np.nan
    weight = rng.uniform(0.5, 3, 90) if weighted else None
    parts = [slice(0, 30), slice(30, 37), slice(37, 90)]

    def of(rows):
        w = None if weight is None else weight[rows]
        return level_sums(values[rows].copy(), own[rows], 4, w), level_ranges(values[rows], own[rows], 4, w)

    sums, ranges = of(parts[0])
    for part in parts[1:]:
        more, wider = of(part)
        sums, ranges = merge_sums(sums, more), merge_ranges(ranges, wider)
    for k in range(4):
        for j in range(3):
            here = (own == k) & ~np.isnan(values[:, j])
            x, w = values[here, j], np.ones(here.sum()) if weight is None else weight[here]
            mean = np.average(x, weights=w)
            assert_allclose([part[k, j] for part in sums], [w.sum(), mean, w @ (x - mean) ** 2], rtol=1e-10)
            assert [part[k, j] for part in ranges] == [len(x), x.min(), x.max()]
