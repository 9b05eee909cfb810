"""Profiles: the few distinct rows that a design of factors has."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["profiles"]

Array = NDArray[np.float64]

# What is computed once a profile pays where rows are several times as many; a glance at so many rows tells.
_FEWER, _GLANCE = 4, 256


def profiles(design: Array) -> tuple[NDArray[np.int64], Array] | None:
    """Return which profile each row of a design (b, q) has, (b,), and the profiles (m, q); None if there are many.

    Examples
    --------
    >>> codes, found = profiles(np.repeat([[0.0, 1.0], [1.0, 0.0]], 4, axis=0))
    >>> codes.tolist(), found.tolist()
    ([0, 0, 0, 0, 1, 1, 1, 1], [[0.0, 1.0], [1.0, 0.0]])
    """
    n, q = design.shape
    # equal rows have equal keys, or all but rounding
    key = design @ np.cos(np.arange(1.0, q + 1.0))
    glance = key[:: max(1, n // _GLANCE)]
    if _FEWER * len(np.unique(glance)) > 2 * len(glance):
        return None
    _, first, codes = np.unique(key, return_index=True, return_inverse=True)
    found = design[first]
    if _FEWER * len(first) > n or not np.array_equal(found[codes], design):
        return None
    return codes, found
