"""Who hands out rows: arrays, files and clusters. Algorithms see only :class:`Rows`."""

from __future__ import annotations

from residmix.sources.rows import ArrayRows, Block, Rows

__all__ = ["ArrayRows", "Block", "Rows"]
