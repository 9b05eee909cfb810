"""The fold that every fit is: rows -> partial statistics, block by block -> their sum, in block order."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from residmix.sources.rows import Block, Rows

__all__ = ["fold"]

S = TypeVar("S")


def fold(
    rows: Rows, partial: Callable[[Block], S], merge: Callable[[S, S], S], sound: Callable[[S], bool] | None = None
) -> S:
    """Return the merged ``si = partial(block i)``, in the fixed order of :meth:`Rows.fold`.

    `partial` may run in any thread or process, and on a cluster `merge` does, too (so both must be picklable there);
    the order of merging depends on the number of blocks only, never on how many hands there are. `merge` may change
    and return its first argument. For `sound`, see there.
    """
    return rows.fold(partial, merge, sound)
