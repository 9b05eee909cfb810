"""New rows with levels or combinations that had no rows in fit: NaN, or an expected effect."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from residmix.design.design import Design
from residmix.effects.unmeasured.combinations import completed, empty, without_rows
from residmix.effects.unmeasured.levels import Lost, averaged, unmeasured
from residmix.moments.affine import WithEffects
from residmix.moments.fit import LinearFit
from residmix.moments.linear import Moments
from residmix.rows.block import Block

__all__ = ["Refused", "Withheld", "refused", "refused_of_gate", "settled", "withheld"]


def settled(design: Design, fit: LinearFit, moments: Moments) -> LinearFit:
    """Return the fit with expected effects for levels and combinations without rows."""
    return completed(design, averaged(design, fit, moments), moments)


@dataclass(frozen=True)
class Withheld:
    """The result of `remove`, but NaN where the feature had no rows of that level or combination in fit.

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
        for columns, rows, lacking in self.lost:
            own = block.design[:, columns]
            for row, features in zip(rows, lacking, strict=True):
                out[np.ix_(np.flatnonzero((own == row).all(axis=1)), np.flatnonzero(features))] = np.nan


def withheld(remove: Any, design: Design, fit: LinearFit, moments: Moments, on_unknown: str) -> Any:
    """Return the map for new rows: NaN where nothing was measured, or the expected effect if `on_unknown` allows it."""
    if on_unknown != "error":
        return _with_average(remove)
    levels = [one.lost for one in unmeasured(design, fit, moments) if one.term.factor is None]
    lost = (*levels, *(one.lost for one in empty(design, fit, moments)))
    return Withheld(remove, lost) if lost else remove


@dataclass(frozen=True)
class Refused:
    """Return a block unchanged, or raise if it has a combination of levels that had no rows in fit.

    Attributes
    ----------
    lost : tuple of (str, Lost)
        With the names of the terms.
    remedy : str
    """

    lost: tuple[tuple[str, Lost], ...]
    remedy: str = "set on_unknown='mean' to use the sum of the effects of its levels"

    def __call__(self, block: Block) -> Block:
        for name, (columns, rows, _) in self.lost:
            own = block.design[:, columns]
            for row in rows:
                if len(found := np.flatnonzero((own == row).all(axis=1))):
                    raise ValueError(
                        f"row {block.start + found[0]} has a combination of levels in {name!r} that had no rows in "
                        f"fit, so its effect is unknown; {self.remedy}"
                    )
        return block


def refused(design: Design, fit: LinearFit, moments: Moments) -> Refused | None:
    """Return the check of new rows for combinations without rows in any feature; None if there are none."""
    lost = []
    for one in empty(design, fit, moments):
        columns, rows, lacking = one.lost
        every = (lacking == (fit.count > 0)).all(axis=1)
        if every.any():
            lost.append((one.term.name, (columns, rows[every], lacking[every])))
    return Refused(tuple(lost)) if lost else None


def refused_of_gate(design: Design, mean: NDArray[np.float64]) -> Refused | None:
    """Return the same for a design of effects and gate whose columns have that mean, (q,)."""
    lost = [
        (term.name, (own.columns, own.rows[lacking], np.ones((int(lacking.sum()), 1), dtype=bool)))
        for term, own, lacking in without_rows(design, mean)
    ]
    return Refused(tuple(lost)) if lost else None


def _with_average(remove: Any) -> Any:
    """Return the map whose absorbed factors have the average effect, the last row, in place of NaN."""
    if isinstance(remove, WithEffects):
        filled = tuple(np.where(np.isnan(effects), effects[-1], effects) for effects in remove.effects)
        return replace(remove, effects=filled)
    return remove
