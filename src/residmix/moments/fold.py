"""The fold that every fit is: rows -> partial statistics, block by block -> their sum, in block order."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import TypeVar

from residmix.sources.rows import Block, Rows

__all__ = ["fold"]

S = TypeVar("S")


def fold(rows: Rows, partial: Callable[[Block], S], merge: Callable[[S, S], S]) -> S:
    """Return ``merge(... merge(merge(s0, s1), s2) ..., sn)`` with ``si = partial(block i)``.

    `partial` may run in any thread or process; `merge` runs here, strictly in block order, so the result doesn't
    depend on how many hands there are. `merge` may change and return its first argument.
    """
    return reduce(merge, rows.map(partial))
