"""A sum over numbered pieces by several threads, to the same bits as by one."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from functools import reduce
from typing import Any, Generic, TypeVar

from residmix.rows.threads import as_worker, n_threads, one_blas_thread, worker_pool

__all__ = ["fold_groups", "group_blocks", "ordered_map", "ordered_sum"]

T = TypeVar("T")

# Finished pieces that may wait for an earlier one, per thread: they're what memory goes to.
AHEAD = 4


def ordered_sum(part: Callable[[int], T], n_parts: int, merge: Callable[[T, T], T]) -> T:
    """Return ``merge(... merge(part(0), part(1)) ..., part(n - 1))``, the parts computed by as many hands as there are.

    Whoever has finished a part takes the next one, the calling thread too; and whoever finds the next part in order
    ready adds it. So nobody waits, nothing is handed over, and the sum is the one that a loop would give.

    Parameters
    ----------
    part : callable
        Runs in any thread, with BLAS limited to one.
    n_parts : int
        At least 1.
    merge : callable
        May change and return its first argument.

    Raises
    ------
    Exception
        Of the first part, in order, that failed.
    """
    if n_parts == 1:
        with one_blas_thread():
            return part(0)
    pool = worker_pool()
    with one_blas_thread():
        crew = _Crew(part, n_parts, merge, 1 if pool is None else n_threads())
        if pool is None:
            crew.work()
        else:
            helpers = [pool.submit(crew.work) for _ in range(min(n_threads(), n_parts) - 1)]
            try:
                with as_worker():
                    crew.work()
            finally:
                crew.stop()
                for helper in helpers:
                    # one that hasn't begun has nothing left to do
                    if not helper.cancel():
                        helper.result()
    return crew.total()


class _Crew(Generic[T]):
    """The parts still to compute, those that wait to be added, and the sum so far."""

    def __init__(self, part: Callable[[int], T], n_parts: int, merge: Callable[[T, T], T], hands: int) -> None:
        self._part, self._merge, self._n_parts = part, merge, n_parts
        self._ahead = AHEAD * hands
        self._changed = threading.Condition()
        self._claimed = self._added = 0
        self._adding = self._stopped = False
        self._waiting: dict[int, T] = {}
        self._sum: list[T] = []
        self._errors: dict[int, Exception] = {}

    def work(self) -> None:
        """Compute parts and add them until none is left."""
        try:
            while (index := self._claim()) is not None:
                try:
                    result = self._part(index)
                except Exception as error:
                    self._errors[index] = error
                    return
                self._add(index, result)
        finally:
            self.stop()

    def stop(self) -> None:
        """Let nobody begin another part."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def total(self) -> T:
        """Return the sum, or raise what the first part that failed raised."""
        if self._errors:
            raise self._errors[min(self._errors)]
        return self._sum[0]

    def _claim(self) -> int | None:
        with self._changed:
            while not self._stopped and self._claimed - self._added >= self._ahead and self._claimed < self._n_parts:
                self._changed.wait()
            if self._stopped or self._claimed == self._n_parts:
                return None
            self._claimed += 1
            return self._claimed - 1

    def _add(self, index: int, result: T) -> None:
        with self._changed:
            self._waiting[index] = result
            if self._adding:
                return
            self._adding = True
        while True:
            with self._changed:
                if self._added not in self._waiting:
                    # inside the lock: whoever brings the next part finds that nobody is adding
                    self._adding = False
                    return
                part = self._waiting.pop(self._added)
            if self._sum:
                self._sum[0] = self._merge(self._sum[0], part)
            else:
                self._sum.append(part)
            with self._changed:
                self._added += 1
                self._changed.notify_all()


def group_blocks(n_blocks: int) -> int:
    """Return how many consecutive blocks are summed before the sums are: at most 256 groups come of it."""
    return max(1, -(-n_blocks // 256))


def fold_groups(results: Iterable[T], merge: Callable[[T, T], T], size: int) -> Iterator[T]:
    """Yield the merged results of each run of `size`."""
    results = iter(results)
    for first in results:
        yield reduce(merge, itertools.islice(results, size - 1), first)


def ordered_map(
    function: Callable[[Any], T],
    items: Iterator[Any],
    n_items: int | None = None,
    ahead: int | None = None,
) -> Iterator[T]:
    """Yield ``function(item)`` in the order of `items`, computed by threads.

    Only `ahead` items (default: three a thread) are in flight, so that memory stays bounded when `items` come from a
    file. BLAS runs one thread inside each of ours: the work is already spread.
    """
    pool = None if n_items == 1 else worker_pool()
    with one_blas_thread():
        if pool is None:
            yield from map(function, items)
            return
        pending: deque[Future[T]] = deque(
            pool.submit(function, item) for item in itertools.islice(items, ahead or 3 * n_threads())
        )
        try:
            while pending:
                result = pending.popleft().result()
                pending.extend(pool.submit(function, item) for item in itertools.islice(items, 1))
                yield result
        finally:
            for future in pending:
                future.cancel()
