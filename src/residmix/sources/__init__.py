"""Who hands out rows: arrays, files and clusters. Algorithms see only :class:`Rows`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from residmix.rows.block import Block
from residmix.rows.rows import ArrayRows, Rows
from residmix.sources.table import Table, as_table

if TYPE_CHECKING:
    from residmix.sources.files import scan

__all__ = ["ArrayRows", "Block", "Rows", "Table", "as_table", "scan"]


def __getattr__(name: str) -> Any:
    if name == "scan":  # the file readers load pyarrow, which rows in memory don't need
        from residmix.sources.files import scan

        return scan
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
