"""Memory is handed out again when nobody looks at it, and never before."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from residmix.rows.scratch import KEPT, MOST_BYTES, scratch


def address(array):
    return array.__array_interface__["data"][0]


def test_memory_that_nobody_sees_is_used_again():
    def addresses():
        first = scratch((101, 7), np.float64)
        where = [address(first)]
        del first
        where.append(address(scratch((101, 7), np.float64)))
        where.append(address(scratch((100, 13), np.float32)))
        return where

    # a thread of its own, which has kept nothing yet
    with ThreadPoolExecutor(1) as pool:
        assert len(set(pool.submit(addresses).result())) == 1


def test_memory_that_someone_sees_is_left_alone():
    first = scratch((101, 7), np.float64)
    first[...] = 3.0
    view = first[5:9].T[::2]
    del first
    for _ in range(2 * KEPT):
        scratch((101, 7), np.float64)[...] = -1.0
    assert (view == 3.0).all()


def test_what_is_large_or_empty_is_not_kept():
    large = scratch((MOST_BYTES + 8,), np.uint8)
    assert large.base is None
    assert scratch((0, 3), np.float64).shape == (0, 3)
