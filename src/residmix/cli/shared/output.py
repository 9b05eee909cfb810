"""Output files: checked before anything is computed, written completely or not at all, never over existing files."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from residmix.atomic import atomic_path, scratch_folder

__all__ = ["check_targets", "write_columns"]

ENDINGS = (".parquet", ".pq", ".csv", ".tsv", ".csv.gz", ".tsv.gz", ".arrow", ".feather")


def check_targets(targets: dict[str, Path | None], *, reads: Sequence[Any] = (), force: bool) -> None:
    """Raise for outputs that can't or mustn't be written, before the work is done.

    Parameters
    ----------
    targets : dict of option -> path
        None and "-" are no files.
    reads : sequence of path
        Files that are read.
    force : bool
        Whether files that exist may be overwritten.
    """
    files = {option: path for option, path in targets.items() if path is not None and str(path) != "-"}
    seen: dict[Path, str] = {}
    for option, path in files.items():
        if path.exists() and any(os.path.exists(source) and path.samefile(source) for source in reads):
            raise click.ClickException(f"the output {str(path)!r} is one of the input files; use another name")
        if path.exists() and not force:
            raise click.ClickException(f"{str(path)!r} exists; use another name, or --force to overwrite it")
        if not path.parent.is_dir():
            raise click.ClickException(f"can't write {str(path)!r}: the folder {str(path.parent)!r} doesn't exist")
        if not os.access(path.parent, os.W_OK):
            raise click.ClickException(
                f"can't write {str(path)!r}: the folder {str(path.parent)!r} is read-only; use a name in another folder"
            )
        other = seen.setdefault(path.resolve(), option)
        if other != option:
            raise click.ClickException(f"{other} and {option} are both {str(path)!r}; use different names")


def check_columns_file(path: Path, option: str, *, h5ad: bool = False) -> None:
    """Raise for a file of columns with an unknown ending."""
    endings = (*ENDINGS, ".h5ad") if h5ad else ENDINGS
    if str(path) != "-" and not path.name.lower().endswith(endings):
        raise click.ClickException(f"{option} {str(path)!r} must end in {', '.join(endings)}, or be - for CSV")


def write_columns(path: Path, write: Callable[[Path], Any], written: Callable[[], Any] | None = None) -> None:
    """Write columns to a file of the kind that its ending says, or as CSV to standard output ("-").

    Parameters
    ----------
    path : path
    write : callable
        Writes them to the Parquet file that it's given; other kinds are made from that, some rows at a time.
    written : callable, optional
        Called before another kind is made.
    """
    if path.suffix.lower() in (".parquet", ".pq"):
        write(path)
        return
    with scratch_folder(None if str(path) == "-" else path) as place:
        parquet = place / "columns.parquet"
        write(parquet)
        if written is not None:
            written()
        if str(path) == "-":
            _csv(_batches(parquet), sys.stdout.buffer, ",")
            return
        with atomic_path(path) as temporary:
            _convert(parquet, temporary, path.name.lower())


def _batches(parquet: Path) -> Any:
    from pyarrow.parquet import ParquetFile

    return ParquetFile(parquet, pre_buffer=False)


def _convert(parquet: Path, temporary: Path, name: str) -> None:
    import pyarrow as pa

    with _batches(parquet) as file:
        if name.endswith((".arrow", ".feather")):
            with pa.ipc.new_file(str(temporary), file.schema_arrow) as writer:
                _copy(file, writer)
            return
        separator = "\t" if ".tsv" in name[-8:] else ","
        with open(temporary, "wb") as raw:
            if not name.endswith(".gz"):
                _csv(file, raw, separator)
                return
            import gzip

            with gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) as packed:
                _csv(file, packed, separator)


def _csv(file: Any, sink: Any, separator: str) -> None:
    from pyarrow import csv

    options = csv.WriteOptions(delimiter=separator, quoting_style="needed")
    with csv.CSVWriter(sink, file.schema_arrow, write_options=options) as writer:
        _copy(file, writer)
    sink.flush()


def _copy(file: Any, writer: Any) -> None:
    """Copy what a Parquet file holds, and show how far it is."""
    from residmix.rows.progress import RowProgress

    with RowProgress(file.metadata.num_rows) as progress:
        for batch in file.iter_batches():
            writer.write_batch(batch)
            progress(batch.num_rows)
