"""The file formats, and opening a file by its name."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from residmix.rows.progress import RowProgress
from residmix.sources.files.arrow import Arrow
from residmix.sources.files.csv import Csv, StandardInput, one_schema
from residmix.sources.files.npy import Npy
from residmix.sources.files.parquet import Parquet
from residmix.sources.files.part import Part

__all__ = ["FORMATS", "UNREADABLE", "format_of", "in_common", "open_part", "open_parts", "readable"]

FORMATS: dict[str, type[Part]] = {
    ".parquet": Parquet,
    ".pq": Parquet,
    ".arrow": Arrow,
    ".feather": Arrow,
    ".ipc": Arrow,
    ".csv": Csv,
    ".tsv": Csv,
    ".csv.gz": Csv,
    ".tsv.gz": Csv,
    ".npy": Npy,
}

# What libraries raise when bytes aren't what they should be.
UNREADABLE = (OSError, ValueError, KeyError, TypeError, EOFError, IndexError, zlib.error, pa.ArrowException)


def format_of(path: Path) -> type[Part] | None:
    """Return what a file with this name is read as."""
    if str(path) == "-":
        return StandardInput
    name = path.name.lower()
    return next((kind for ending, kind in FORMATS.items() if name.endswith(ending)), None)


def open_part(path: Path, **options: Any) -> Part:
    """Look at a file.

    Raises
    ------
    ValueError
        If its ending isn't one we read.
    OSError
        If it can't be read.
    """
    kind = format_of(path)
    if kind is None:
        raise ValueError(f"can't read {str(path)!r}: its name must end in {', '.join(FORMATS)}")
    try:
        return kind.open(path, **options)
    except UNREADABLE as error:
        name = "standard input" if kind is StandardInput else repr(str(path))
        raise OSError(f"can't read {name}: {error}") from error


def open_parts(paths: Sequence[Path], **options: Any) -> list[Part]:
    """Look at files; how much of CSV text has been looked at shows in a line of progress."""
    sizes = [_text_size(path) for path in paths]
    if not any(sizes):
        return [open_part(path, **options) for path in paths]
    with RowProgress(sum(sizes) / 1e6, unit="MB") as progress:
        parts = []
        for path in paths:
            places = [0]

            def seen(place: int, places: list[int] = places) -> None:
                progress((place - places[0]) / 1e6)
                places[0] = place

            parts.append(open_part(path, seen=seen, **options))
    return parts


def _text_size(path: Path) -> int:
    """Return the bytes of a CSV file; 0 for what isn't one."""
    kind = format_of(path)
    return path.stat().st_size if kind is Csv and path.is_file() else 0


def in_common(parts: Sequence[Part]) -> list[Part]:
    """Return files with what they can have in common: types of CSV columns, lengths of lists."""
    lists = next((part.lists for part in parts if part.n_rows), ())
    return [part if part.n_rows else replace(part, lists=lists) for part in one_schema(parts)]


def readable(path: Path) -> bool:
    """Tell whether a path found in a folder is data: not hidden, no bookkeeping, of a known format."""
    return format_of(path) is not None and path.is_file() and not path.name.startswith((".", "_"))
