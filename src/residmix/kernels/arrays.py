"""Arrays as loops and their twins take them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["readable", "readable_weight"]


def readable(array: NDArray[Any]) -> NDArray[Any]:
    """Return an array in C order for a loop that only reads it; a copy only where the order is another.

    Numba compiles a loop once more for arrays that mustn't be written (memory maps, columns of pandas), which takes
    seconds. Such an array is handed over as an alias without the lock, which keeps the array itself alive.
    """
    if not array.flags.c_contiguous:
        return np.ascontiguousarray(array)
    if array.flags.writeable:
        return array
    unlocked = {**array.__array_interface__, "data": (array.ctypes.data, False)}
    return np.asarray(SimpleNamespace(__array_interface__=unlocked, array=array))


def readable_weight(weight: NDArray[np.float64] | None) -> NDArray[np.float64]:
    """Return the weights of rows for such a loop: an empty array where there are none."""
    return np.empty(0) if weight is None else readable(weight)
