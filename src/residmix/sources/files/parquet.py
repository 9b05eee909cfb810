"""Parquet files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from residmix.rows.threads import n_threads
from residmix.sources.array import MemoryTable
from residmix.sources.files.part import WithSchema, cut, distinct, stamp_of

__all__ = ["Parquet"]


@dataclass(frozen=True)
class Parquet(WithSchema):
    """A Parquet file; its row groups are the runs."""

    @classmethod
    def open(cls, path: Path, **_: Any) -> Parquet:
        from pyarrow.parquet import ParquetFile

        stamp = stamp_of(path)
        with ParquetFile(path, pre_buffer=False) as file:
            groups = range(file.metadata.num_row_groups)
            runs = tuple(file.metadata.row_group(group).num_rows for group in groups)
            schema = file.schema_arrow.remove_metadata()
        distinct(schema.names)
        return cls(path, runs, stamp, schema).with_lists()

    def pieces(self, columns: Sequence[str], piece_rows: int, low: int, high: int) -> Iterator[MemoryTable]:
        from pyarrow.parquet import ParquetFile

        # pre_buffer=True, the default, would hold whole row groups, and in some releases the whole file; a buffer
        # makes the reader take pages as they come instead of whole column chunks.
        with ParquetFile(self.path, pre_buffer=False, buffer_size=1 << 18) as file:
            for run, first, last in self.runs_in(low, high):
                batches = file.iter_batches(
                    min(piece_rows, self.runs[run]), [run], list(columns), use_threads=n_threads() > 1
                )
                yield from cut(batches, first, last)
                # what decoding used stays in the allocator's hands otherwise, in those of each of its threads
                pa.default_memory_pool().release_unused()
