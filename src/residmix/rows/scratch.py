"""Arrays for a moment: memory that nobody looks at any more is handed out again instead of being given back.

The system clears every page that it gives to a process, which costs about as much as decoding a file into it. So each
thread keeps the few arrays that its last batch needed.
"""

from __future__ import annotations

import math
import sys
import threading
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

__all__ = ["scratch"]

# Larger arrays aren't kept, and no thread keeps more arrays than this.
MOST_BYTES = 1 << 23
KEPT = 8


class _Kept(threading.local):
    def __init__(self) -> None:
        self.buffers: list[NDArray[np.uint8]] = []


_KEPT = _Kept()


def scratch(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Return an array of any content, as `numpy.empty` does.

    A view keeps a reference to the array that owns its memory. So memory is used again only when no array that looks
    at it is left, wherever it went.
    """
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    if not 0 < size <= MOST_BYTES:
        return np.empty(shape, dtype)
    buffers = _KEPT.buffers
    for i in range(len(buffers)):
        # references: the list's and getrefcount's own
        if sys.getrefcount(buffers[i]) == 2 and size <= buffers[i].nbytes <= 4 * size:
            return buffers[i][:size].view(dtype).reshape(shape)
    if len(buffers) == KEPT:
        del buffers[0]
    buffers.append(np.empty(size, np.uint8))
    return buffers[-1][:size].view(dtype).reshape(shape)
