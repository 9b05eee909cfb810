"""Covariances of each component that differ by group of rows, as by site: those of a group, and their average."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from residmix.mixture.params import MixtureParams
    from residmix.rows.block import Block

__all__ = ["ByGroup", "at_group", "averaged", "groups_of"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ByGroup:
    r"""Covariances :math:`\Sigma_{gk}` of components k in groups g of rows.

    Attributes
    ----------
    covariances, factors : ndarray (G, ...)
        Of each group, shaped as those of a mixture of the family.
    share : ndarray (G, K)
        Of all rows, that groups and components hold.
    group : ndarray of int (L,)
        Which group each level of the factor belongs to; rows come with codes of their level.
    """

    covariances: Floats
    factors: Floats
    share: Floats
    group: NDArray[np.intp]

    @property
    def n_groups(self) -> int:
        return len(self.covariances)


def at_group(params: MixtureParams, g: int) -> MixtureParams:
    """Return the mixture that the rows of one group have."""
    by = params.by_group
    assert by is not None
    return replace(params, covariances=by.covariances[g], factors=by.factors[g], by_group=None)


def averaged(covariances: Floats, share: Floats, kept: tuple[str, ...]) -> Floats:
    """Return the average over groups of covariances (G, ...) as a family keeps them, weighted by shares (G, K)."""
    share = np.maximum(share, 1e-300)
    if kept[0] != "K":
        return np.asarray(np.tensordot(share.sum(axis=1) / share.sum(), covariances, 1))
    part = (share / share.sum(axis=0)).reshape(*share.shape, *(1,) * (covariances.ndim - 2))
    return np.asarray((part * covariances).sum(axis=0))


def groups_of(params: MixtureParams, block: Block) -> list[tuple[int, NDArray[np.intp]]]:
    """Return the groups that a block has rows of, and which these are."""
    by = params.by_group
    assert by is not None
    assert block.codes, "rows of a mixture with covariances by group come with codes of their level"
    own = by.group.take(block.codes[0])
    held = np.bincount(own, minlength=by.n_groups)
    # 16-bit integers are sorted by their digits, in one pass
    order = np.argsort(own.astype(np.int16) if by.n_groups < 1 << 15 else own, kind="stable")
    ends = held.cumsum()
    return [(int(g), order[ends[g] - held[g] : ends[g]]) for g in np.flatnonzero(held)]
