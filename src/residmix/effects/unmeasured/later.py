"""Later rows of levels and combinations that a fit had no rows of: NaN, or what is expected of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from residmix.design.design import Design
from residmix.effects.unmeasured.combinations import completed, empty
from residmix.effects.unmeasured.levels import Lost, averaged, unmeasured
from residmix.moments.affine import WithEffects
from residmix.moments.fit import LinearFit
from residmix.moments.linear import Moments
from residmix.rows.block import Block

__all__ = ["Refused", "Withheld", "refused", "settled", "withheld"]


def settled(design: Design, fit: LinearFit, moments: Moments) -> LinearFit:
    """Return the fit with what is expected of levels, and of combinations, that no row tells of."""
    return completed(design, averaged(design, fit, moments), moments)


@dataclass(frozen=True)
class Withheld:
    """What `remove` gives of a block, but NaN in rows such as the feature was never measured in.

    Attributes
    ----------
    remove : callable
    lost : tuple of Lost
    """

    remove: Any
    lost: tuple[Lost, ...]

    def __call__(self, block: Block) -> NDArray[Any]:
        out = self.remove(block)
        self._withhold(block, out)
        return np.asarray(out)

    def _withhold(self, block: Block, out: NDArray[Any]) -> None:
        assert block.design is not None
        for columns, rows, lacking in self.lost:
            own = block.design[:, columns]
            for row, features in zip(rows, lacking, strict=True):
                out[np.ix_(np.flatnonzero((own == row).all(axis=1)), np.flatnonzero(features))] = np.nan


def withheld(remove: Any, design: Design, fit: LinearFit, moments: Moments, on_unknown: str) -> Any:
    """Return the map for later rows: what is unmeasured gives NaN, or what is expected where unknown levels may."""
    if on_unknown != "error":
        return _with_average(remove)
    levels = [one.lost for one in unmeasured(design, fit, moments) if one.term.factor is None]
    lost = (*levels, *(one.lost for one in empty(design, fit, moments)))
    return Withheld(remove, lost) if lost else remove


@dataclass(frozen=True)
class Refused:
    """Block as it is, but an error for rows such as the fit had none of.

    Attributes
    ----------
    lost : tuple of (str, Lost)
        With the names of the terms.
    """

    lost: tuple[tuple[str, Lost], ...]

    def __call__(self, block: Block) -> Block:
        assert block.design is not None
        for name, (columns, rows, _) in self.lost:
            own = block.design[:, columns]
            for row in rows:
                if len(found := np.flatnonzero((own == row).all(axis=1))):
                    raise ValueError(
                        f"row {block.start + found[0]} has a combination of levels in {name!r} that no row of the fit "
                        "had, so its effect can't be estimated; give on_unknown='mean' for the sum of what the levels "
                        "do elsewhere"
                    )
        return block


def refused(design: Design, fit: LinearFit, moments: Moments) -> Refused | None:
    """Return the check of later rows for combinations that no feature has rows of; None if there are none."""
    lost = []
    for one in empty(design, fit, moments):
        columns, rows, lacking = one.lost
        every = (lacking == (fit.count > 0)).all(axis=1)
        if every.any():
            lost.append((one.term.name, (columns, rows[every], lacking[every])))
    return Refused(tuple(lost)) if lost else None


def _with_average(remove: Any) -> Any:
    """Return the map whose absorbed factors have the average effect, the last row, in place of NaN."""
    if isinstance(remove, WithEffects):
        filled = tuple(np.where(np.isnan(effects), effects[-1], effects) for effects in remove.effects)
        return replace(remove, effects=filled)
    return remove
