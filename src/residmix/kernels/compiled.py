"""How loops are compiled, and arrays as these take them.

The first call of a loop on a machine compiles it, and somebody waits for that: about a second per ten thousand lines
of LLVM code. So what makes much of it is avoided: slices of arrays (numba makes room for the text of an error if one
doesn't fit), arrays and sums made inside, and arguments of several types (a literal number is one of its own).
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

__all__ = ["compiled", "piece", "readable", "readable_weight"]


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


_WITHOUT: dict[str, Any] = {"no_cfunc_wrapper": True}

#: Compile a loop that Python calls. Of what numba makes besides, the entry for C has no user, and division by 0 gives
#: infinity, as numpy's does, instead of a branch to an exception.
compiled: Any = njit(nogil=True, cache=True, error_model="numpy", **_WITHOUT)

#: Make a piece of such loops, which is put into each of them before anything is compiled. Compiled by itself, as numba
#: does otherwise, it would be optimised and turned into machine code twice, and again in every further loop.
piece: Any = njit(nogil=True, inline="always")
