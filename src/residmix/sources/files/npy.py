"""Matrices in numpy's format."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from residmix.sources.array import MemoryTable
from residmix.sources.files.part import Part, stamp_of

__all__ = ["Npy"]


@dataclass(frozen=True)
class Npy(Part):
    """A matrix in numpy's format, memory-mapped; its columns are x0, x1, ..."""

    @classmethod
    def open(cls, path: Path, **_: Any) -> Npy:
        stamp = stamp_of(path)
        matrix = np.load(path, mmap_mode="r", allow_pickle=False)
        if matrix.ndim != 2 or matrix.dtype.kind not in "iufb":
            raise ValueError(
                f"it must hold a matrix of real numbers, but has shape {matrix.shape} and dtype {matrix.dtype}"
            )
        return cls(path, (len(matrix),), stamp)

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
