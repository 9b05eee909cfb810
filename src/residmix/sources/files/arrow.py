"""Arrow files and streams."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from residmix.sources.array import MemoryTable
from residmix.sources.files.part import WithSchema, cut, distinct, memory_table, stamp_of

__all__ = ["Arrow"]


@dataclass(frozen=True)
class Arrow(WithSchema):
    """An Arrow IPC file or stream, which Feather (version 2) is; its record batches are the runs."""

    @classmethod
    def open(cls, path: Path, **_: Any) -> Arrow:
        stamp = stamp_of(path)
        with pa.memory_map(str(path)) as source:
            schema = _ipc(source).schema
        with pa.memory_map(str(path)) as source:
            runs = tuple(batch.num_rows for batch in _record_batches(_ipc(source)))
        distinct(schema.names)
        return cls(path, runs, stamp, schema.remove_metadata()).with_lists()

    def pieces(self, columns: Sequence[str], piece_rows: int, low: int, high: int) -> Iterator[MemoryTable]:
        with pa.memory_map(str(self.path)) as source:
            reader = _ipc(source, [self.schema.get_field_index(name) for name in columns])
            if isinstance(reader, pa.RecordBatchFileReader):
                for run, first, last in self.runs_in(low, high):
                    yield memory_table(reader.get_batch(run).slice(first, last - first))
            else:
                yield from cut(_record_batches(reader), low, high)


def _ipc(source: pa.NativeFile, fields: list[int] | None = None) -> Any:
    options = pa.ipc.IpcReadOptions(included_fields=fields)
    try:
        return pa.ipc.open_file(source, options=options)
    except pa.ArrowInvalid:
        source.seek(0)
        return pa.ipc.open_stream(source, options=options)


def _record_batches(reader: Any) -> Iterator[pa.RecordBatch]:
    if isinstance(reader, pa.RecordBatchFileReader):
        yield from (reader.get_batch(i) for i in range(reader.num_record_batches))
    else:
        yield from reader
