"""The affine map of a linear eraser on blocks of rows, and its warnings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from residmix.errors import DesignWarning, EntangledEffectsWarning, warn
from residmix.moments.erase import Erasure
from residmix.rows.block import Block

__all__ = ["AffineMap", "affine_block_rows", "tell_of"]

# Above this canonical correlation, erased and preserved directions share more than 9/10 of their variance.
_ENTANGLED = 0.95


@dataclass(frozen=True)
class AffineMap:
    """Block to ``x - L R (x - mean)``, in the dtype of X."""

    mean: NDArray[np.float64]
    left: NDArray[np.float64]
    right: NDArray[np.float64]

    def __call__(self, block: Block) -> NDArray[Any]:
        part = (block.X - self.mean) @ self.right.T
        return (block.X - part @ self.left.T).astype(block.X.dtype, copy=False)


def affine_block_rows(width: int) -> int:
    """Rows in a block: about 16 MB of float64."""
    return int(np.clip(2**21 // max(width, 1), 256, 8192))


def tell_of(found: Erasure, n_erased: int, metadata: Sequence[str], varies: bool) -> None:
    d, k = found.left.shape
    if metadata and not varies:
        warn(
            f"nothing is erased, because these metadata are constant: {', '.join(map(repr, metadata[:8]))}",
            DesignWarning,
        )
    elif n_erased == 0:
        warn("there is no metadata, so nothing is erased; pass metadata=, or a formula", DesignWarning)
    elif k == d:
        warn(
            f"{n_erased} design columns erase all {d} directions of feature space, so only the mean is left. Erase "
            "fewer terms, or use a Residualizer",
            DesignWarning,
        )
    if found.entangled > _ENTANGLED:
        warn(
            "erased and preserved effects have nearly the same direction in feature space (canonical correlation "
            f"{found.entangled:.4f}), which amplifies noise. Preserve or erase fewer terms",
            EntangledEffectsWarning,
        )
