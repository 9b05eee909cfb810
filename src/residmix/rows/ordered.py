"""Work items processed by several threads: results in order, or a sum bitwise equal to that of one thread."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import reduce
from operator import length_hint
from typing import Any, Generic, TypeVar

from residmix.rows.threads import as_worker, n_threads, one_blas_thread, worker_pool

__all__ = ["fold_groups", "group_blocks", "ordered_map", "ordered_sum"]

T = TypeVar("T")

# Finished pieces that may wait for an earlier one, per thread: they're what memory goes to.
AHEAD = 4


def ordered_sum(function: Callable[[Any], T], items: Iterable[Any], merge: Callable[[T, T], T]) -> T:
    """Return ``merge(... merge(f(item 0), f(item 1)) ..., f(item n - 1))``, computed by as many hands as there are.

    Each thread, including the calling one, takes the next item when it has finished one, and adds the next result in
    order if it is ready. So no thread waits, and the sum is that of a loop.

    Parameters
    ----------
    function : callable
        Runs in any thread, with BLAS limited to one.
    items : iterable
        At least one.
    merge : callable
        May change and return its first argument.

    Raises
    ------
    Exception
        Of the first item, in order, that failed.
    """
    most = length_hint(items, 1 << 30)
    pool = None if most == 1 else worker_pool()
    with one_blas_thread():
        if pool is None:
            return reduce(merge, map(function, items))
        hands = min(n_threads(), most)
        crew = _Crew(function, items, AHEAD * hands)
        total: list[T] = []

        def add(result: T) -> None:
            total[:] = [merge(total[0], result)] if total else [result]

        with _helped(crew, [pool.submit(crew.work, add) for _ in range(hands - 1)]), as_worker():
            crew.work(add)
        crew.raise_first()
        return total[0]


def ordered_map(function: Callable[[Any], T], items: Iterable[Any], ahead: int | None = None) -> Iterator[T]:
    """Yield ``function(item)`` in the order of `items`, computed by threads.

    Only `ahead` items (default: three a thread) are in flight, so that memory stays bounded when `items` come from a
    file. They are taken one by one in the threads too, so that reading one goes on beside work on another. BLAS runs
    one thread inside each of ours: the work is already spread.
    """
    pool = None if length_hint(items, 2) == 1 else worker_pool()
    with one_blas_thread():
        if pool is None:
            yield from map(function, items)
            return
        crew = _Crew(function, items, ahead or 3 * n_threads())
        # a task for each item: one that waited for the caller to go on would keep a thread from other work
        with _helped(crew, []) as tasks:
            tasks += [pool.submit(crew.step) for _ in range(crew.ahead)]
            for result in crew.results():
                tasks[:] = [*(task for task in tasks if not task.done()), pool.submit(crew.step)]
                yield result


@contextmanager
def _helped(crew: _Crew[Any], tasks: list[Future[Any]]) -> Iterator[list[Future[Any]]]:
    """Let nobody begin anything more in the end, and wait for those who have begun."""
    try:
        yield tasks
    finally:
        crew.stop()
        for task in tasks:
            # one that hasn't begun has nothing left to do
            if not task.cancel():
                task.result()


class _Crew(Generic[T]):
    """The items still to come, the results that wait for an earlier one, and how many have been given on in order."""

    def __init__(self, function: Callable[[Any], T], items: Iterable[Any], ahead: int) -> None:
        self._function, self._items, self.ahead = function, iter(items), ahead
        self._taking = threading.Lock()  # an iterator is read by one thread at a time
        self._changed = threading.Condition()
        self._taken = self._given = 0
        self._giving = self._stopped = False
        self._ready: dict[int, T] = {}
        self._errors: dict[int, BaseException] = {}

    def step(self) -> bool:
        """Take the next item and compute its result; return False if there is none."""
        with self._taking:
            index = self._taken
            if self._stopped:
                return False
            try:
                item = next(self._items)
            except StopIteration:
                self.stop()
                return False
            except BaseException as error:
                self._fail(index, error)
                return False
            self._taken = index + 1
        try:
            result = self._function(item)
        except BaseException as error:
            self._fail(index, error)
            return False
        with self._changed:
            self._ready[index] = result
            self._changed.notify_all()
        return True

    def work(self, add: Callable[[T], None]) -> None:
        """Compute results and add them until none is left."""
        try:
            while self._has_room() and self.step():
                while (found := self._next()) is not None:
                    add(found[0])
                    with self._changed:
                        self._giving = False
                        self._given += 1
                        self._changed.notify_all()
        finally:
            self.stop()

    def results(self) -> Iterator[T]:
        """Yield the results in order as they come, in the thread that asks."""
        while True:
            with self._changed:
                while self._given not in self._ready:
                    if self._given in self._errors:
                        raise self._errors[self._given]
                    if self._stopped and self._given >= self._taken:
                        return
                    self._changed.wait()
                result = self._ready.pop(self._given)
                self._given += 1
            yield result

    def stop(self) -> None:
        """Let nobody begin another item."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def raise_first(self) -> None:
        """Raise what the first item that failed raised, if one did."""
        if self._errors:
            raise self._errors[min(self._errors)]

    def _fail(self, index: int, error: BaseException) -> None:
        self._errors[index] = error
        self.stop()

    def _has_room(self) -> bool:
        """Wait until few enough results wait for an earlier one."""
        if self._taken - self._given < self.ahead:  # others only make room
            return not self._stopped
        with self._changed:
            while not self._stopped and self._taken - self._given >= self.ahead:
                self._changed.wait()
            return not self._stopped

    def _next(self) -> tuple[T] | None:
        """Return the next result in order, if it's ready and nobody is adding; the caller is the one who adds then."""
        with self._changed:
            if self._giving or self._given not in self._ready:
                return None
            self._giving = True
            return (self._ready.pop(self._given),)


def group_blocks(n_blocks: int) -> int:
    """Return how many consecutive blocks are summed before the sums are: at most 256 groups come of it."""
    return max(1, -(-n_blocks // 256))


def fold_groups(results: Iterable[T], merge: Callable[[T, T], T], size: int) -> Iterator[T]:
    """Yield the merged results of each run of `size`."""
    results = iter(results)
    for first in results:
        yield reduce(merge, itertools.islice(results, size - 1), first)
