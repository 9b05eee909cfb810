"""One file of each format: its columns, its rows, and how to read some of them."""

from __future__ import annotations

import csv
import io
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import narwhals.stable.v2 as nw
import numpy as np
import pyarrow as pa

from residmix.rows.threads import n_threads
from residmix.sources.array import MemoryTable

__all__ = ["FORMATS", "Part", "one_schema", "open_part", "readable"]

# pandas keeps its row labels in such columns; they are no measurement.
_INDEX = re.compile(r"__index_level_\d+__")


@dataclass(frozen=True)
class Part(ABC):
    """A file that has been looked at: a picklable description, no open handle.

    Attributes
    ----------
    path : Path
    runs : tuple of int
        Row counts of the stretches that can be read without reading what is before them; their sum is `n_rows`.
    """

    path: Path
    runs: tuple[int, ...]

    @property
    def n_rows(self) -> int:
        return sum(self.runs)

    @classmethod
    @abstractmethod
    def open(cls, path: Path) -> Part:
        """Look at the file's header."""

    @abstractmethod
    def head(self) -> MemoryTable:
        """Return its columns as a table without rows."""

    @abstractmethod
    def pieces(self, columns: Sequence[str], piece_rows: int, low: int, high: int) -> Iterator[MemoryTable]:
        """Yield rows ``low:high`` with `columns`, about `piece_rows` at a time."""

    def runs_in(self, low: int, high: int) -> Iterator[tuple[int, int, int]]:
        """Yield (run, first row, last row + 1) inside each run that overlaps ``low:high``."""
        offset = 0
        for run, count in enumerate(self.runs):
            first, last = max(low - offset, 0), min(high - offset, count)
            if first < last:
                yield run, first, last
            offset += count


def open_part(path: Path) -> Part:
    """Look at a file.

    Raises
    ------
    ValueError
        If its ending isn't one we read.
    OSError
        If it can't be read.
    """
    kind = FORMATS.get(path.suffix.lower())
    if kind is None:
        raise ValueError(f"can't read {str(path)!r}: its name must end in {', '.join(FORMATS)}")
    try:
        return kind.open(path)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise OSError(f"can't read {str(path)!r}: {error}") from error


def one_schema(parts: Sequence[Part]) -> list[Part]:
    """Return CSV files with types in common, as if they were one file: a part may be empty or hold whole numbers only.

    Types that don't go together (text and numbers) stay, for the caller to name file and column.
    """
    files = [part for part in parts if isinstance(part, Csv)]
    if len(files) < len(parts):
        return list(parts)
    found: dict[str, dict[pa.DataType, None]] = {}
    for part in files:
        for column in part.schema:
            found.setdefault(column.name, {})[column.type] = None
    common = {name: _common_type(list(types)) for name, types in found.items()}
    return [
        replace(part, schema=pa.schema([(c.name, common[c.name].get(c.type, c.type)) for c in part.schema]))
        for part in files
    ]


def _common_type(types: list[pa.DataType]) -> dict[pa.DataType, pa.DataType]:
    """Return what each of the types becomes: numbers one kind of number, nothing but missing values what there is."""
    numbers = [kind for kind in types if pa.types.is_integer(kind) or pa.types.is_floating(kind)]
    becomes = dict.fromkeys(numbers, pa.int64() if all(map(pa.types.is_integer, numbers)) else pa.float64())
    first = next((kind for kind in types if not pa.types.is_null(kind)), pa.null())
    return {**becomes, pa.null(): becomes.get(first, first)}


def readable(path: Path) -> bool:
    """Tell whether a path found in a folder is data: not hidden, no bookkeeping, of a known format."""
    return path.suffix.lower() in FORMATS and path.is_file() and not path.name.startswith((".", "_"))


def _empty(schema: pa.Schema) -> MemoryTable:
    names = [name for name in schema.names if not _INDEX.fullmatch(name)]
    table = pa.schema([schema.field(name) for name in names]).empty_table()
    return MemoryTable(nw.from_native(table, eager_only=True))


def _table(batch: pa.RecordBatch | pa.Table) -> MemoryTable:
    table = pa.Table.from_batches([batch]) if isinstance(batch, pa.RecordBatch) else batch
    return MemoryTable(nw.from_native(table, eager_only=True))


def _cut(batches: Iterator[pa.RecordBatch], low: int, high: int) -> Iterator[MemoryTable]:
    """Yield rows ``low:high`` of consecutive batches."""
    offset = 0
    for batch in batches:
        if offset >= high:
            return
        first, last = max(low - offset, 0), min(high - offset, batch.num_rows)
        if first < last:
            yield _table(batch.slice(first, last - first))
        offset += batch.num_rows


@dataclass(frozen=True)
class Parquet(Part):
    """A Parquet file; its row groups are the runs."""

    schema: pa.Schema = field(repr=False)

    @classmethod
    def open(cls, path: Path) -> Parquet:
        from pyarrow.parquet import ParquetFile

        with ParquetFile(path) as file:
            groups = range(file.metadata.num_row_groups)
            runs = tuple(file.metadata.row_group(group).num_rows for group in groups)
            return cls(path, runs, file.schema_arrow.remove_metadata())

    def head(self) -> MemoryTable:
        return _empty(self.schema)

    def pieces(self, columns: Sequence[str], piece_rows: int, low: int, high: int) -> Iterator[MemoryTable]:
        from pyarrow.parquet import ParquetFile

        # pre_buffer=True, the default, would hold whole row groups, and in some releases the whole file; a buffer
        # makes the reader take pages as they come instead of whole column chunks.
        with ParquetFile(self.path, pre_buffer=False, buffer_size=1 << 18) as file:
            for run, first, last in self.runs_in(low, high):
                batches = file.iter_batches(
                    min(piece_rows, self.runs[run]), [run], list(columns), use_threads=n_threads() > 1
                )
                yield from _cut(batches, first, last)
                # what decoding used stays in the allocator's hands otherwise, in those of each of its threads
                pa.default_memory_pool().release_unused()


@dataclass(frozen=True)
class Arrow(Part):
    """An Arrow IPC file or stream, which Feather (version 2) is; its record batches are the runs."""

    schema: pa.Schema = field(repr=False)

    @classmethod
    def open(cls, path: Path) -> Arrow:
        with pa.memory_map(str(path)) as source:
            schema = _ipc(source).schema
        with pa.memory_map(str(path)) as source:
            runs = tuple(batch.num_rows for batch in _record_batches(_ipc(source)))
        return cls(path, runs, schema.remove_metadata())

    def head(self) -> MemoryTable:
        return _empty(self.schema)

    def pieces(self, columns: Sequence[str], piece_rows: int, low: int, high: int) -> Iterator[MemoryTable]:
        with pa.memory_map(str(self.path)) as source:
            reader = _ipc(source, [self.schema.get_field_index(name) for name in columns])
            if isinstance(reader, pa.RecordBatchFileReader):
                for run, first, last in self.runs_in(low, high):
                    yield _table(reader.get_batch(run).slice(first, last - first))
            else:
                yield from _cut(_record_batches(reader), low, high)


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


_CSV_BYTES = 1 << 22


@dataclass(frozen=True)
class Csv(Part):
    """A CSV file with a header line; runs of whole lines, whose types have been settled over all of them.

    A value may not contain a line break, as pyarrow's own reader assumes when it cuts a file into blocks.
    """

    schema: pa.Schema = field(repr=False)
    offsets: tuple[int, ...] = field(repr=False)
    header: bytes = field(repr=False)

    @classmethod
    def open(cls, path: Path) -> Csv:
        runs: list[int] = []
        offsets: list[int] = []
        schema: pa.Schema | None = None
        with open(path, "rb") as file:
            header = file.readline()
            _check_header(header, "\t" if path.suffix.lower() == ".tsv" else ",")
            offset = file.tell()
            while chunk := file.read(_CSV_BYTES):
                chunk += file.readline()
                table = _parse(path, header + chunk)
                if table.num_rows:
                    # Types that a stretch can't tell (all empty, or whole numbers only) give way to later ones.
                    schemas = [table.schema] if schema is None else [schema, table.schema]
                    schema = pa.unify_schemas(schemas, promote_options="permissive")
                    runs.append(table.num_rows)
                    offsets.append(offset)
                offset += len(chunk)
        if schema is None:
            schema = _parse(path, header).schema if header.strip() else pa.schema([])
        return cls(path, tuple(runs), schema, tuple(offsets), header)

    def head(self) -> MemoryTable:
        return _empty(self.schema)

    def pieces(self, columns: Sequence[str], piece_rows: int, low: int, high: int) -> Iterator[MemoryTable]:
        with open(self.path, "rb") as file:
            for run, first, last in self.runs_in(low, high):
                file.seek(self.offsets[run])
                chunk = file.read(_CSV_BYTES) + file.readline()
                types = {name: self.schema.field(name).type for name in columns}
                table = _parse(self.path, self.header + chunk, types)
                yield _table(table.slice(first, last - first))


def _check_header(header: bytes, separator: str) -> None:
    """Raise ValueError if a header isn't UTF-8, is separated otherwise, or names a column twice."""
    try:
        line = header.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError("its heading is no UTF-8 text; save it as UTF-8") from None
    if separator not in line:
        for other in (";", "\t", ",", "|"):
            if other in line:
                raise ValueError(f"its columns are separated by {other!r}, not by {separator!r}: {line.strip()[:60]!r}")
    names = next(csv.reader([line], delimiter=separator), [])
    for i, name in enumerate(names):
        if name in names[:i]:
            raise ValueError(f"it has two columns named {name!r}; rename or drop one")


def _parse(path: Path, text: bytes, types: dict[str, pa.DataType] | None = None) -> pa.Table:
    from pyarrow import csv as reader

    return reader.read_csv(
        io.BytesIO(text),
        read_options=reader.ReadOptions(use_threads=n_threads() > 1),
        parse_options=reader.ParseOptions(delimiter="\t" if path.suffix.lower() == ".tsv" else ","),
        convert_options=reader.ConvertOptions(
            column_types=types, include_columns=None if types is None else list(types), strings_can_be_null=True
        ),
    )


@dataclass(frozen=True)
class Npy(Part):
    """A matrix in numpy's format, memory-mapped; its columns are x0, x1, ..."""

    @classmethod
    def open(cls, path: Path) -> Npy:
        matrix = np.load(path, mmap_mode="r", allow_pickle=False)
        if matrix.ndim != 2 or matrix.dtype.kind not in "iufb":
            raise ValueError(
                f"it must hold a matrix of real numbers; it has shape {matrix.shape} and dtype {matrix.dtype}"
            )
        return cls(path, (len(matrix),))

    def matrix(self) -> np.ndarray[Any, Any]:
        """Return the mapped matrix."""
        return np.asarray(np.load(self.path, mmap_mode="r", allow_pickle=False))

    def head(self) -> MemoryTable:
        return _floats(self.matrix()[:0])

    def pieces(self, columns: Sequence[str], piece_rows: int, low: int, high: int) -> Iterator[MemoryTable]:
        matrix = self.matrix()
        for start in range(low, high, piece_rows):
            yield _floats(matrix[start : min(start + piece_rows, high)])


def _floats(matrix: np.ndarray[Any, Any]) -> MemoryTable:
    return MemoryTable(matrix if matrix.dtype in (np.float32, np.float64) else matrix.astype(np.float64))


FORMATS: dict[str, type[Part]] = {
    ".parquet": Parquet,
    ".pq": Parquet,
    ".arrow": Arrow,
    ".feather": Arrow,
    ".ipc": Arrow,
    ".csv": Csv,
    ".tsv": Csv,
    ".npy": Npy,
}
