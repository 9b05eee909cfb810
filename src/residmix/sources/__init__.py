"""Data sources: arrays, files and clusters. Algorithms see only :class:`Rows`."""

from residmix.rows.block import Block
from residmix.rows.rows import ArrayRows, Rows
from residmix.sources.open import as_table, scan
from residmix.sources.table import Table

__all__ = ["ArrayRows", "Block", "Rows", "Table", "as_table", "scan"]
