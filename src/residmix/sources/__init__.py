"""Who hands out rows: arrays, files and clusters. Algorithms see only :class:`Rows`."""

from __future__ import annotations

from residmix.sources.rows import ArrayRows, Block, Rows
from residmix.sources.table import Table, as_table

__all__ = ["ArrayRows", "Block", "Rows", "Table", "as_table"]
