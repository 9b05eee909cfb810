r"""Trimmed likelihood: rows of lowest density are left out.

Of all ways to leave out a share of the rows the one that keeps those of the largest density has the largest
likelihood; so leaving them out anew before each M-step never lowers :math:`\sum_{i\ kept} w_i \log p(x_i)`
(concentration steps: Neykov, Filzmoser, Dimova & Neytchev 2007, "Robust fitting of mixtures using the trimmed
likelihood estimator", Comput. Stat. Data Anal. 52; Garcia-Escudero, Gordaliza, Matran & Mayo-Iscar 2008, "A general
trimming approach to robust cluster analysis", Ann. Stat. 36).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from residmix.rows.block import Block

__all__ = ["Masked", "kept_weights"]

Floats = NDArray[np.float64]


def kept_weights(density: Floats, weight: Floats, share: float) -> tuple[Floats, float]:
    """Return how much of each row's weight is kept (n,), and the log-density that those kept have at least.

    All but `share` of the weights in all; rows of one density are kept alike, so at the edge in part.

    Parameters
    ----------
    density, weight : ndarray (n,)
    share : float
    """
    levels, which = np.unique(np.where(np.isnan(density), -np.inf, density), return_inverse=True)
    sums = np.bincount(which, weight, minlength=len(levels))
    before = np.append(0.0, np.cumsum(sums)[:-1])
    gone = np.clip(share * weight.sum() - before, 0.0, sums)
    part = 1.0 - gone / np.where(sums > 0, sums, 1.0)
    # a level that rounding alone cuts is kept whole
    part = np.where(part > 1 - 1e-9, 1.0, np.where(part < 1e-9, 0.0, part))
    kept = part[which.ravel()] * weight
    return kept, float(levels[np.flatnonzero((part > 0) & (sums > 0))[0]])


@dataclass(frozen=True)
class Masked:
    """Rows with other weights (n,)."""

    weight: Floats

    def __call__(self, block: Block) -> Block:
        return replace(block, weight=self.weight[block.start : block.start + block.n_rows])
