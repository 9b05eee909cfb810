"""CSV files: text that is cut into stretches of whole lines, each parsed once."""

from __future__ import annotations

import gzip
import io
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
from pyarrow import compute, csv

from residmix.rows.threads import n_threads
from residmix.sources.array import MemoryTable
from residmix.sources.files.kept import Kept
from residmix.sources.files.part import Part, WithSchema, distinct, memory_table, stamp_of

__all__ = ["Csv", "StandardInput", "TextOptions", "one_schema"]

_CSV_BYTES = 1 << 22
_BLOCK_BYTES = 1 << 20  # of a stretch, parsed by a thread each
_SPOOL_BYTES = 1 << 26  # of standard input, in memory


@dataclass(frozen=True)
class TextOptions:
    """How numbers and columns are written in CSV text.

    Attributes
    ----------
    sep : str or None
        Separator of columns. None: a comma, or a tab in ``.tsv`` files.
    decimal, thousands : str
        Decimal point and thousands separator of numbers; None: no thousands separator.
    na_values : tuple of str
        Texts that mean a missing value, in addition to the empty text, NA, NaN, null and similar.
    """

    sep: str | None = None
    decimal: str = "."
    thousands: str | None = None
    na_values: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, value in (("sep", self.sep), ("decimal", self.decimal), ("thousands", self.thousands)):
            if value is not None and (not isinstance(value, str) or len(value) != 1 or not value.isascii()):
                raise ValueError(f"{name} must be one ASCII character; got {value!r}")
        if self.decimal == self.thousands:
            raise ValueError(f"decimal and thousands are both {self.decimal!r}; use two different characters")
        if isinstance(self.na_values, str) or not all(isinstance(value, str) for value in self.na_values):
            raise ValueError(f"na_values must be a list of strings; got {self.na_values!r}")

    def separator(self, path: Path) -> str:
        """Return what is between the columns of a file."""
        named = path.name.lower().removesuffix(".gz")
        separator = self.sep or ("\t" if named.endswith(".tsv") else ",")
        if separator in (self.decimal, self.thousands) and self.sep is not None:
            raise ValueError(f"sep is {separator!r}, the same as decimal or thousands; use different characters")
        if separator == self.decimal:
            raise ValueError(f"decimal and the column separator are both {separator!r}; set sep= (often ';')")
        return separator

    def numbers_of(self, column: pa.ChunkedArray) -> pa.ChunkedArray | None:
        """Return text of which every value is a number with separators of thousands, or a plain one, as numbers."""
        assert self.thousands is not None
        between, point = re.escape(self.thousands), re.escape(self.decimal)
        number = rf"^\s*[-+]?([0-9]{{1,3}}({between}[0-9]{{3}})+|[0-9]+)?({point}[0-9]*)?([eE][-+]?[0-9]+)?\s*$"
        if compute.all(compute.match_substring_regex(column, number)).as_py() is False:
            return None
        plain = compute.replace_substring(compute.utf8_trim_whitespace(column), self.thousands, "")
        try:
            return plain_numbers(plain, self.decimal)
        except pa.ArrowInvalid:
            return None


def plain_numbers(column: pa.ChunkedArray, decimal: str) -> pa.ChunkedArray:
    """Return text of numbers as numbers."""
    return compute.replace_substring(column, decimal, ".").cast(pa.float64())


@dataclass(frozen=True)
class Csv(WithSchema):
    """A CSV file with a header line; runs of whole lines, whose types have been settled over all of them.

    A value may not contain a line break, as pyarrow's own reader assumes when it cuts a file into blocks.

    Attributes
    ----------
    offsets : tuple of int
        Where each run begins in the text.
    header : bytes
    line_end : bytes
    options : TextOptions
    grouped : frozenset of str
        Columns of numbers with separators of thousands.
    kept : tuple of int
        The numbers of the runs among what was kept.
    """

    offsets: tuple[int, ...] = field(repr=False)
    header: bytes = field(repr=False)
    line_end: bytes = field(repr=False)
    options: TextOptions = field(repr=False)
    grouped: frozenset[str] = field(repr=False)
    kept: tuple[int, ...] = field(repr=False, compare=False)

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        text: TextOptions = TextOptions(),
        kept: Kept | None = None,
        seen: Callable[[int], None] | None = None,
        **_: Any,
    ) -> Csv:
        stamp = stamp_of(path)
        with _opened(path) as file:
            return cls._of(path, stamp, file, text, kept, seen)

    @classmethod
    def _of(
        cls,
        path: Path,
        stamp: tuple[int, int],
        file: IO[bytes],
        options: TextOptions,
        kept: Kept | None,
        seen: Callable[[int], None] | None = None,
    ) -> Csv:
        line_end = _line_end(file)
        header = _line(file, line_end)
        if not header.strip():
            nothing: tuple[int, ...] = ()
            return cls(path, (), stamp, pa.schema([]), (), header, line_end, options, frozenset(), nothing)
        offset = len(header)
        header = _checked_header(path, header, options).rstrip(b"\r\n") + b"\n"
        part = cls(path, (), stamp, pa.schema([]), (), header, line_end, options, frozenset(), ())
        runs: list[int] = []
        offsets: list[int] = []
        numbers: list[int] = []
        schemas: list[pa.Schema] = []
        grouped: set[str] = set()
        while chunk := file.read(_CSV_BYTES):
            chunk += _line(file, line_end)
            table = part.parse(chunk, grouped=grouped)
            if table.num_rows:
                runs.append(table.num_rows)
                offsets.append(offset)
                schemas.append(table.schema)
                if kept is not None:
                    numbers.append(kept.add(table))
            offset += len(chunk)
            if seen is not None:
                seen(_place(file))
        schema = _settled(schemas) if schemas else part.parse(b"").schema
        part = replace(
            part,
            runs=tuple(runs),
            schema=schema,
            offsets=tuple(offsets),
            grouped=frozenset(name for name in grouped if pa.types.is_floating(schema.field(name).type)),
            kept=tuple(numbers),
        )
        if kept is not None:
            part._keep_text(file, schemas, kept)
        return part

    def _keep_text(self, file: IO[bytes], schemas: Sequence[pa.Schema], kept: Kept) -> None:
        """Parse once more the runs of columns that looked like numbers there and are text elsewhere."""
        for run, schema in enumerate(schemas):
            if any(
                pa.types.is_string(kind) and not _castable(schema.field(i).type, kind)
                for i, kind in enumerate(self.schema.types)
            ):
                kept.put(self.kept[run], self.parse(self._text(file, run), self.schema))

    def pieces(self, columns: Sequence[str], piece_rows: int, low: int, high: int) -> Iterator[MemoryTable]:
        schema = pa.schema([self.schema.field(name) for name in columns])
        with _opened(self.path) as file:
            for run, first, last in self.runs_in(low, high):
                table = self.parse(self._text(file, run), schema)
                yield memory_table(table.slice(first, last - first))

    def kept_pieces(self, kept: Kept, columns: Sequence[str], low: int, high: int) -> Iterator[MemoryTable]:
        """Yield rows from what was kept when the file was looked at."""
        schema = pa.schema([self.schema.field(name) for name in columns])
        for run, first, last in self.runs_in(low, high):
            table = kept.get(self.kept[run], columns).slice(first, last - first)
            yield memory_table(table if table.schema == schema else table.cast(schema, safe=False))

    def _text(self, file: IO[bytes], run: int) -> bytes:
        file.seek(self.offsets[run])
        return file.read(_CSV_BYTES) + _line(file, self.line_end)

    def parse(self, lines: bytes, schema: pa.Schema | None = None, grouped: set[str] | None = None) -> pa.Table:
        """Return lines as a table, of the columns and types of a schema if there is one.

        Columns whose numbers have separators of thousands are added to `grouped`, or turned into numbers if they are
        known.
        """
        types = None if schema is None else {f.name: pa.string() if f.name in self.grouped else f.type for f in schema}
        table = _read(self.header + lines, self.options.separator(self.path), self.options, types)
        if self.options.thousands is None or not table.num_rows:
            return table
        for i, name in enumerate(table.column_names):
            if pa.types.is_string(table.field(i).type) and (grouped is not None or name in self.grouped):
                numbers = self.options.numbers_of(table.column(i))
                if numbers is not None:
                    table = table.set_column(i, name, numbers)
                    if grouped is not None:
                        grouped.add(name)
        return table


@dataclass(frozen=True)
class StandardInput(Csv):
    """CSV text from standard input, which is kept since it can be read only once."""

    @property
    def name(self) -> str:
        return "standard input"

    @classmethod
    def open(cls, path: Path, *, text: TextOptions = TextOptions(), kept: Kept | None = None, **_: Any) -> Csv:
        with tempfile.SpooledTemporaryFile(_SPOOL_BYTES) as spooled:
            shutil.copyfileobj(sys.stdin.buffer, spooled)
            if not spooled.tell():
                raise ValueError("nothing came")
            spooled.seek(0)
            part = cls._of(path, (0, 0), spooled, text, kept)
        if kept is not None and kept.failure is not None:
            raise kept.failure
        return part

    def check(self, *, size_only: bool = False) -> None:
        """Nothing can have changed."""


def _opened(path: Path) -> Any:
    return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else open(path, "rb")


def _place(file: Any) -> int:
    """Return how much of a file on disk has been read, packed or not."""
    packed: Any = getattr(file, "fileobj", None)  # of a GzipFile
    return int((file if packed is None else packed).tell())


def _line_end(file: IO[bytes]) -> bytes:
    r"""Return what ends the lines: ``\n``, also after ``\r``, or the lone ``\r`` of old programs."""
    before, found = b"", b"\n"
    while block := file.read(1 << 16):
        text = before + block
        if (at := text.find(b"\r")) >= 0 and b"\n" not in text[:at]:
            following = text[at + 1 : at + 2] or file.read(1)
            found = b"\n" if following == b"\n" else b"\r"
            break
        if b"\n" in text:
            break
    file.seek(0)
    return found


def _line(file: IO[bytes], end: bytes) -> bytes:
    """Return the rest of a line."""
    if end == b"\n":
        return file.readline()
    parts: list[bytes] = []
    while block := file.read(1 << 16):
        at = block.find(end)
        if at >= 0:
            parts.append(block[: at + 1])
            file.seek(at + 1 - len(block), io.SEEK_CUR)
            break
        parts.append(block)
    return b"".join(parts)


def _checked_header(path: Path, header: bytes, options: TextOptions) -> bytes:
    """Return a header; raise ValueError if it isn't UTF-8, is separated otherwise, or names a column twice."""
    separator = options.separator(path)
    try:
        line = header.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError("its header isn't UTF-8 text; save it as UTF-8") from None
    if "\0" in line:
        raise ValueError("its header has a zero byte, so it isn't text; save it as UTF-8 text")
    if separator not in line:
        for other in (";", "\t", ",", "|"):
            if other in line:
                remedy = f"; give sep={other!r}" if options.sep is None else ""
                raise ValueError(
                    f"its columns are separated by {other!r}, not by {separator!r}{remedy}: {line.strip()[:60]!r}"
                )
    text = line.removeprefix("\ufeff").rstrip("\r\n")
    quoted = '"' in text
    distinct(
        _read(header.rstrip(b"\r\n") + b"\n", separator, options, None).column_names
        if quoted
        else text.split(separator)
    )
    return header


def _read(text: bytes, separator: str, options: TextOptions, types: dict[str, pa.DataType] | None) -> pa.Table:
    # in blocks by threads, unless a line may be longer than a block, or columns are what takes time
    wide = text.find(b"\n") > _BLOCK_BYTES // 16
    block = len(text) + 1 if wide else _BLOCK_BYTES
    null_values = [*csv.ConvertOptions().null_values, *options.na_values]
    while True:
        try:
            return csv.read_csv(
                io.BytesIO(text),
                read_options=csv.ReadOptions(use_threads=n_threads() > 1 and not wide, block_size=block),
                parse_options=csv.ParseOptions(delimiter=separator),
                convert_options=csv.ConvertOptions(
                    column_types=types,
                    include_columns=None if types is None else list(types),
                    strings_can_be_null=True,
                    null_values=null_values,
                    decimal_point=options.decimal,
                ),
            )
        except pa.ArrowInvalid:
            # a line that is longer than a block says so in several ways
            if block > len(text):
                raise
            block = len(text) + 1


def _settled(schemas: Sequence[pa.Schema]) -> pa.Schema:
    """Return the types that all stretches can be read as: where they don't go together, the column is text."""
    kinds: dict[str, dict[pa.DataType, None]] = {}
    for schema in dict.fromkeys(schemas):
        for column in schema:
            kinds.setdefault(column.name, {})[column.type] = None
    return pa.schema([(name, _one_type(list(found))) for name, found in kinds.items()])


def _one_type(found: list[pa.DataType]) -> pa.DataType:
    if len(found) == 1:
        return found[0]
    try:
        fields = [pa.schema([("x", kind)]) for kind in found]
        return pa.unify_schemas(fields, promote_options="permissive").field("x").type
    except pa.ArrowException:
        return pa.string()


def _castable(kind: pa.DataType, to: pa.DataType) -> bool:
    return bool(kind == to or pa.types.is_null(kind))


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


def _common_type(types: Iterable[pa.DataType]) -> dict[pa.DataType, pa.DataType]:
    """Return what each of the types becomes: numbers one kind of number, nothing but missing values what there is."""
    kinds = list(types)
    numbers = [kind for kind in kinds if pa.types.is_integer(kind) or pa.types.is_floating(kind)]
    becomes = dict.fromkeys(numbers, pa.int64() if all(map(pa.types.is_integer, numbers)) else pa.float64())
    first = next((kind for kind in kinds if not pa.types.is_null(kind)), pa.null())
    return {**becomes, pa.null(): becomes.get(first, first)}
