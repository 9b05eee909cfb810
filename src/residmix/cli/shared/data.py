"""DATA: files of any kind as one table, samples of its rows, and its complete rows."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import pandas as pd

    from residmix.sources.table import Table

__all__ = ["SHOWN_ROWS", "Data", "complete_rows", "is_h5ad", "open_data", "sampled_rows"]

SHOWN_ROWS = 5000  # that reports look at
HELD_BYTES = 1 << 28  # complete rows of less than this are held in memory, others read anew in each pass


@dataclass(frozen=True)
class Data:
    """What DATA names.

    Attributes
    ----------
    name : str
        As it was typed.
    table : Table
        All columns.
    paths : tuple of path
        Files that are read.
    measured : tuple of str or None
        Columns that may be features: of an .h5ad file those of the matrix. None: any.
    """

    name: str
    table: Table
    paths: tuple[Path, ...]
    measured: tuple[str, ...] | None = None


def is_h5ad(data: Any) -> bool:
    """Tell whether a path names an AnnData file."""
    return str(data).lower().endswith(".h5ad")


def open_data(data: str, options: Any) -> Data:
    """Return the table behind `data`: a file, a folder, a pattern, "-" for CSV on standard input, an .h5ad file.

    Parameters
    ----------
    options : namespace
        What the command was called with: `layer` and `basis`, and what `scan` takes.
    """
    if is_h5ad(data):
        from residmix.anndata import read_h5ad

        table, measured = read_h5ad(data, layer=options.layer, basis=options.basis)
        return Data(data, table, (Path(data),), measured)
    for option in ("layer", "basis"):
        if getattr(options, option, None):
            raise click.UsageError(f"--{option} is for .h5ad files, but {data!r} isn't one; leave it out")
    from residmix.sources import scan
    from residmix.sources.files import find_files

    reading: dict[str, Any] = {
        "sep": options.sep, "decimal": options.decimal, "thousands": options.thousands,
        "na_values": tuple(options.na_values),
    }  # fmt: skip
    if data == "-":
        if sys.stdin.isatty():
            raise click.UsageError("DATA is -, but standard input is a terminal; pipe CSV text into the command")
        return Data(data, scan("-", **reading), ())
    paths = tuple(find_files(data))
    client = None
    if getattr(options, "dask", None):
        from residmix.errors import require_extra

        try:
            from distributed import Client
        except ImportError as error:
            raise require_extra("distributed", "dask", "--dask") from error
        client = Client(options.dask)
        click.get_current_context().call_on_close(client.close)
    return Data(data, scan(data, client=client, **reading), paths)


def frames(table: Table, columns: Sequence[str]) -> Iterator[Any]:
    """Yield the rows in order as narwhals frames of `columns`."""
    import narwhals.stable.v2 as nw

    wanted = list(dict.fromkeys(columns))
    for chunk in table.chunks(wanted):
        frame: Any = nw.from_native(_as_frame(chunk, table, wanted), eager_only=True)
        yield frame.select(wanted)


def _as_frame(chunk: Any, table: Table, wanted: list[str]) -> Any:
    if not hasattr(chunk, "dtype"):
        return chunk
    import pyarrow as pa

    place = {name: j for j, name in enumerate(table.columns)}
    return pa.table({name: chunk[:, place[name]] for name in wanted})


def sampled_rows(table: Table, columns: Sequence[str], most: int = SHOWN_ROWS) -> tuple[pd.DataFrame, int]:
    """Return at most `most` evenly spaced rows of `table`, and how many it has."""
    import numpy as np
    import pandas as pd

    from residmix.rows.sampled import every

    n_rows = table.n_rows
    step = every(n_rows, most)
    parts, seen = [], 0
    for frame in frames(table, columns):
        index = np.arange(-seen % step, len(frame), step)
        parts.append(frame[index.tolist()].to_pandas())
        seen += len(frame)
    return pd.concat(parts, ignore_index=True), seen


def complete_rows(data: Data, columns: Sequence[str], quiet: bool) -> Data:
    """Leave out rows with missing values in `columns`; report how many, and in which columns."""
    from residmix.errors import note
    from residmix.sources import as_table

    wanted = list(dict.fromkeys(columns))
    lacking, rows, kept = dict.fromkeys(wanted, 0), 0, 0
    for frame in frames(data.table, wanted):
        gaps = _gaps(frame)
        for name, count in gaps.sum().items():
            lacking[str(name)] += int(count)
        rows += len(gaps)
        kept += int((~gaps.any(axis=1)).sum())
    lost = {name: count for name, count in sorted(lacking.items(), key=lambda item: -item[1]) if count}
    if kept == rows:
        return data
    told = ", ".join(f"{name} ({count:,})" for name, count in list(lost.items())[:8])
    more = f" and {len(lost) - 8} more columns" if len(lost) > 8 else ""
    if kept == 0:
        raise click.ClickException(
            f"no row is complete; missing values: {told}{more}; use fewer columns (--features), or leave these out "
            "(--exclude)"
        )
    note(
        "dropped-rows",
        f"{rows - kept:,} of {rows:,} rows ({(rows - kept) / rows:.0%}) are left out for missing values: {told}{more}",
        rows=rows, dropped=rows - kept, missing=lost,
    )  # fmt: skip

    def complete() -> Iterator[Any]:
        for frame in frames(data.table, wanted):
            keep = ~_gaps(frame).any(axis=1).to_numpy()
            yield frame.filter(keep.tolist()).to_native()

    if kept * len(wanted) * 8 <= HELD_BYTES:
        import narwhals.stable.v2 as nw

        whole = nw.concat([nw.from_native(frame, eager_only=True) for frame in complete()])
        return replace(data, table=as_table(whole.to_native()))
    return replace(data, table=as_table(complete))


def _gaps(frame: Any) -> Any:
    """Return where values are missing: nulls, and NaN among numbers."""
    return frame.to_pandas().isna()
