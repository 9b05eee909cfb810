"""What rows are made of: which features, design columns and weights, in blocks of which length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from residmix.design.design import Design
from residmix.rows.block import Block
from residmix.rows.checks import Finite
from residmix.rows.scratch import scratch
from residmix.sources.frames import fill_rows

if TYPE_CHECKING:
    from residmix.sources.array import MemoryTable

__all__ = ["DEFAULT_BLOCK_ROWS", "NO_METADATA", "Recipe"]

T = TypeVar("T")

DEFAULT_BLOCK_ROWS = 8192
NO_METADATA = Design.empty()


@dataclass(frozen=True)
class Recipe:
    """How pieces of a table become blocks; picklable, so that workers elsewhere can follow it.

    Attributes
    ----------
    features : tuple of str
    finite : Finite
        Looks at every block until a whole pass has been clean.
    design : Design
        Fitted map from metadata to design columns; `preserved` adds the columns that are estimated only.
    weight : str, array (n,) or None
        The column that holds sample weights, or the weights.
    block_rows : int
        Rows in a block.
    dtype : dtype
        Of the features, where they come piece by piece.
    """

    features: tuple[str, ...]
    finite: Finite
    design: Design = field(default=NO_METADATA)
    preserved: bool = False
    weight: Any = None
    block_rows: int = DEFAULT_BLOCK_ROWS
    dtype: np.dtype[Any] = field(default_factory=lambda: np.dtype(np.float64))

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of one table that must be read."""
        names = [*self.features, *self.design.columns, *(self.design.preserved_columns if self.preserved else ())]
        if isinstance(self.weight, str):
            names.append(self.weight)
        return tuple(dict.fromkeys(names))

    def batch(self, pieces: Sequence[MemoryTable], start: int, weight: NDArray[np.float64] | None) -> Block:
        """Return consecutive pieces, whose first row is row `start`, as one long block.

        Every value is made from its own row only, so how the rows were cut into pieces leaves no trace.
        """
        made = [piece.design(self.design, self.preserved) for piece in pieces]
        if isinstance(self.weight, str):
            weight = _joined([piece.weight_column(self.weight) for piece in pieces])
        block = Block(
            start,
            self._matrix(pieces),
            _joined([dense for dense, _ in made]),
            tuple(_joined(list(codes)) for codes in zip(*(codes for _, codes in made), strict=True)),
            weight,
        )
        if not self.finite.proven:
            self.finite(block.X, start)
        return block

    def _matrix(self, pieces: Sequence[MemoryTable]) -> NDArray[Any]:
        """Return the features of all pieces as one matrix; a view, if it is there already."""
        parts = [piece.feature_columns(self.features) for piece in pieces]
        for part in parts:
            for column in [part] if isinstance(part, np.ndarray) else part:
                if not np.can_cast(column.dtype, self.dtype):
                    raise ValueError(
                        f"the first rows have dtype {self.dtype}, later ones {column.dtype}; use one dtype for all "
                        "batches"
                    )
        first = parts[0]
        if len(parts) == 1 and isinstance(first, np.ndarray):
            return np.ascontiguousarray(first, self.dtype)
        whole = scratch((sum(piece.n_rows for piece in pieces), len(self.features)), self.dtype)
        low = 0
        for piece, part in zip(pieces, parts, strict=True):
            rows = whole[low : low + piece.n_rows]
            if isinstance(part, np.ndarray):
                rows[...] = part
            else:
                fill_rows(rows, part)
            low += piece.n_rows
        return whole

    def apply(
        self,
        function: Callable[[Block], T],
        batch: tuple[int, Sequence[MemoryTable], NDArray[np.float64] | None],
    ) -> list[T]:
        """Return `function` of every block of a batch."""
        start, pieces, weight = batch
        long = self.batch(pieces, start, weight)
        return [
            function(long.select(slice(low, low + self.block_rows))) for low in range(0, long.n_rows, self.block_rows)
        ]


def _joined(parts: list[Any]) -> Any:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
