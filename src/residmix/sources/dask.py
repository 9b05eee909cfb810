"""Rows on a Dask cluster: parameters are sent to the workers, and sums come back.

A task says which rows it means and nothing else, so it can run again wherever a worker is left. Blocks begin at
multiples of ``block_rows`` of the whole, whatever the partitions, and sums are merged in block order: the answer is
that of a single process, bit for bit, also when workers are lost on the way.
"""

from __future__ import annotations

import pickle
import sys
import uuid
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import accumulate, cycle, repeat
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from residmix.rows.block import Block
from residmix.rows.ordered import fold_groups, group_blocks
from residmix.rows.rows import Rows
from residmix.rows.statistic import Statistic
from residmix.rows.threads import one_blas_thread
from residmix.sources.array import MemoryTable, clean_metadata
from residmix.sources.files import FileTable
from residmix.sources.recipe import Recipe
from residmix.sources.stream import StreamTable, beside, recut
from residmix.sources.workers import await_workers, check_workers

__all__ = ["ClusterFiles", "ClusterRows", "ClusterTable"]

T = TypeVar("T")


# What a pass does is put into each of its tasks up to this size, and sent once to each worker above.
INLINE_BYTES = 1 << 18

# Of a pass over files: enough that workers finish together, few enough that the scheduler isn't what takes time.
TASKS_A_THREAD = 4


@dataclass(frozen=True)
class Work:
    """What one pass does with every range of rows."""

    recipe: Recipe
    function: Callable[[Block], Any]
    merge: Callable[[Any, Any], Any] | None
    group: int
    batch_rows: int

    def run(self, start: int, weight: NDArray[np.float64] | None, pieces: Iterator[MemoryTable]) -> list[Any]:
        """Return the results of the blocks, or the sums of groups of blocks, in a range that begins at row `start`."""
        with one_blas_thread():
            results = self._results(start, weight, pieces)
            return list(results if self.merge is None else fold_groups(results, self.merge, self.group))

    def _results(self, start: int, weight: NDArray[np.float64] | None, pieces: Iterator[MemoryTable]) -> Iterator[Any]:
        low = 0
        for batch in recut(pieces, self.batch_rows):
            high = low + sum(piece.n_rows for piece in batch)
            part = None if weight is None else weight[low:high]
            yield from self.recipe.apply(self.function, (start + low, batch, part))
            low = high


class ClusterTable(StreamTable):
    """A table whose rows the workers of a cluster reach by themselves."""

    @abstractmethod
    def client(self) -> Any:
        """Return the cluster's client, or None to compute in this process."""

    @abstractmethod
    def bounds(self) -> list[int]:
        """Return the rows where reading can begin without waste: ascending, without 0, the last is `n_rows`."""

    @abstractmethod
    def tasks(self, columns: tuple[str, ...]) -> Callable[[Any, Any, int, int, Any], Any]:
        """Return ``submit(client, work, start, stop, weight) -> Future``; `work` is for :func:`unpacked`."""

    @abstractmethod
    def where(self, start: int, stop: int) -> str:
        """Say where rows ``start:stop`` live, for messages."""

    def check(self) -> None:
        """Raise OSError if what is read isn't what it was."""

    def task_rows(self, batch_rows: int, threads: int) -> int:
        """Return how many rows a task has at least: a batch, since all that a task is given is in memory at once."""
        return batch_rows

    def unreadable(self, client: Any, start: int, stop: int) -> str | None:
        """Say which of several places in rows ``start:stop`` can't be read, if one can't and that must be tried out."""
        return None

    def rows_of(self, recipe: Recipe) -> Rows:
        client = self.client()
        return super().rows_of(recipe) if client is None else ClusterRows(self, *self.settled(recipe), client)


class ClusterRows(Rows):
    """Rows that the workers of a cluster read and compute on."""

    local = False

    def __init__(self, table: ClusterTable, recipe: Recipe, weight: NDArray[np.float64] | None, client: Any) -> None:
        self._table, self._recipe, self._weight, self._client = table, recipe, weight, client
        self.n_rows, self.n_features = table.n_rows, len(recipe.features)
        self.dtype, self.block_rows, self.paths = recipe.dtype, recipe.block_rows, table.paths

    def with_block_rows(self, block_rows: int) -> ClusterRows:
        recipe = replace(self._recipe, block_rows=block_rows)
        return ClusterRows(self._table, recipe, self._weight, self._client)

    def map(self, function: Callable[[Block], T]) -> Iterator[T]:
        return self._run(function, None, 1)

    def total(self, statistic: Statistic[T]) -> T:
        group = group_blocks(-(-self.n_rows // self.block_rows))
        total: T = reduce(statistic.merge, self._run(statistic.step, statistic.merge, group))
        return total

    def _ranges(self, unit: int, least: int) -> Iterator[tuple[int, int]]:
        """Yield ranges of rows for a task each: whole units, at least `least` rows, begun where reading is cheap."""
        start = 0
        for bound in self._table.bounds():
            stop = min(-(-bound // unit) * unit, self.n_rows)
            if stop - start >= least or (stop == self.n_rows and stop > start):
                yield start, stop
                start = stop

    def _run(self, function: Any, merge: Any, group: int) -> Iterator[Any]:
        import cloudpickle

        table, recipe, client = self._table, self._recipe, self._client
        table.check()
        wanted = table.piece_rows(len(recipe.columns))
        batch_rows = max(1, wanted // self.block_rows) * self.block_rows
        work = Work(recipe, function, merge, group, batch_rows)
        threads = await_workers(client)
        check_workers(client, threads)
        carried = _carried(client, cloudpickle.dumps(work), threads)
        submit = table.tasks(recipe.columns)
        n_threads = max(1, sum(threads.values()))
        ranges = deque(self._ranges(group * self.block_rows, table.task_rows(wanted, n_threads)))
        pending: deque[tuple[Any, tuple[int, int]]] = deque()
        # A window: results that nobody has taken yet don't pile up on the workers.
        window = 3 * n_threads
        try:
            while ranges or pending:
                while ranges and len(pending) < window:
                    start, stop = ranges.popleft()
                    weight = None if self._weight is None else self._weight[start:stop]
                    pending.append((submit(client, next(carried), start, stop, weight), (start, stop)))
                future, (start, stop) = pending[0]
                results = self._result(future, start, stop, alone=window == 1)
                if results is None:
                    client.cancel([future for future, _ in pending])
                    ranges.extendleft(reversed([bounds for _, bounds in pending]))
                    pending.clear()
                    window = 1
                    continue
                pending.popleft()
                yield from results
        finally:
            client.cancel([future for future, _ in pending])
        recipe.finite.proven = True

    def _result(self, future: Any, start: int, stop: int, alone: bool) -> list[Any] | None:
        """Return the results of a task, or None if it should be tried again on its own.

        Dask blames every task that was with a worker when it died. Only one that kills workers when nothing else
        runs is to blame.
        """
        from distributed import KilledWorker

        where = f"rows {start} to {stop} ({self._table.where(start, stop)})"
        try:
            found: list[Any] = future.result()
            return found
        except KilledWorker as error:
            if not alone:
                return None
            raise RuntimeError(
                f"the workers died repeatedly on {where}; use smaller partitions or row groups, or give each worker "
                "more memory"
            ) from error
        except Exception as error:
            culprit = self._table.unreadable(self._client, start, stop)
            error.add_note(f"{culprit} can't be read" if culprit else f"while a worker computed on {where}")
            raise


def _carried(client: Any, packed: bytes, workers: Iterable[str]) -> Iterator[Any]:
    """Yield, for one task after the other, what its argument `work` is: the bytes, or a future of them.

    Dask sends a task where the data are that it needs, so one future for all would bring all work to one worker. There
    is one for each worker. They are tasks, not scattered data: the scheduler can make them again when workers are lost.
    """
    if len(packed) <= INLINE_BYTES or not workers:
        yield from repeat(packed)
    name = f"residmix-{uuid.uuid4().hex}"
    copies = [
        client.submit(bytes, packed, key=f"{name}-{i}", workers=[worker], allow_other_workers=True, pure=False)
        for i, worker in enumerate(workers)
    ]
    yield from cycle(copies)


def unpacked(packed: bytes) -> Work:
    """Unpickle inside a task, where what can't be imported is an error; in a message it would stop the worker."""
    work: Work = pickle.loads(packed)
    return work


class ClusterFiles(ClusterTable):
    """Files that the workers read by themselves.

    Parameters
    ----------
    files : FileTable
    given : distributed.Client
    metadata : ndarray (n, p) or frame, optional
        Beside the files, in the memory of this process.
    """

    files: FileTable

    def __init__(self, files: FileTable, given: Any, metadata: Any = None) -> None:
        head = MemoryTable(files.head.X, None if metadata is None else metadata[:0], files.columns)
        super().__init__(head, files.n_rows, files.batch_rows)
        self.files, self._client, self._metadata, self.paths = files, given, metadata, files.paths

    def with_metadata(self, metadata: Any) -> ClusterFiles:
        metadata = clean_metadata(metadata)
        if len(metadata) != self.n_rows:
            raise ValueError(f"X has {self.n_rows} rows but metadata has {len(metadata)}; pass the same rows")
        return ClusterFiles(self.files, self._client, metadata)

    def client(self) -> Any:
        return self._client

    def check(self) -> None:
        self.files.check()

    def bounds(self) -> list[int]:
        return list(accumulate(run for part in self.files.parts for run in part.runs))

    def pieces(self, columns: Sequence[str] | None, piece_rows: int) -> Iterator[MemoryTable]:
        read = None if columns is None else [name for name in columns if name in self.columns]
        return beside(self.files.pieces(read, piece_rows), self._metadata)

    def task_rows(self, batch_rows: int, threads: int) -> int:
        # a task reads batch by batch, however long it is, and each costs a few milliseconds
        return max(batch_rows, self.n_rows // (TASKS_A_THREAD * threads))

    def tasks(self, columns: tuple[str, ...]) -> Callable[[Any, Any, int, int, Any], Any]:
        def submit(client: Any, work: Any, start: int, stop: int, weight: Any) -> Any:
            metadata = None if self._metadata is None else self._metadata[start:stop]
            files, before = self.files.covering(start, stop)
            # A name of its own each time: Dask remembers under it how often workers died.
            key = f"residmix-rows-{start}-{uuid.uuid4().hex}"
            return client.submit(_run_on_files, work, files, before, start, stop, weight, metadata, key=key, pure=False)

        return submit

    def where(self, start: int, stop: int) -> str:
        offsets = [0, *accumulate(part.n_rows for part in self.files.parts)]
        names = [
            str(part.path)
            for part, low, high in zip(self.files.parts, offsets, offsets[1:], strict=False)
            if low < stop and start < high
        ]
        return names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"


def _run_on_files(
    packed: bytes, files: FileTable, before: int, start: int, stop: int, weight: Any, metadata: Any
) -> list[Any]:
    work = unpacked(packed)
    columns = [name for name in work.recipe.columns if name in files.columns]
    pieces = files.pieces(columns, work.batch_rows, start - before, stop - before)
    return work.run(start, weight, beside(pieces, metadata))


def default_client() -> Any:
    """Return the Dask client of this context, as Dask's own collections find it, or None."""
    distributed = sys.modules.get("distributed")
    if distributed is None:
        return None
    try:
        client = distributed.default_client()
    except ValueError:
        return None
    return client if client.status == "running" else None
