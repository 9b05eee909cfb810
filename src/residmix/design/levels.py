"""Factors: labels to level indices, level indices to contrast columns."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from residmix.design.columns import Labels, absent, spotted
from residmix.design.formula.expressions import Contrast
from residmix.errors import did_you_mean
from residmix.rows.threads import lazy

__all__ = ["Levels", "sorted_levels"]

Label = str | bool | int | float

UNKNOWN = -2


@dataclass(frozen=True)
class Levels:
    """The levels of one factor, learned in fit, and how they are coded.

    Attributes
    ----------
    column : str
        The metadata column.
    levels : tuple
        Sorted, or in the order of ``C(x, levels=[...])``; the order of the rows doesn't matter.
    counts : tuple of int
        Rows of each level in fit.
    contrast : Contrast
        Treatment coding against the first level unless the formula says otherwise.
    with_missing : bool
        Whether missing values are one more level, the last one.
    """

    column: str
    levels: tuple[Label, ...]
    counts: tuple[int, ...]
    contrast: Contrast
    with_missing: bool = False

    @property
    def n_levels(self) -> int:
        return len(self.levels) + self.with_missing

    @property
    def labels(self) -> tuple[str, ...]:
        return (*map(str, self.levels), *(("(missing)",) if self.with_missing else ()))

    @lazy
    def _index(self) -> dict[Label, int]:
        return {level: index for index, level in enumerate(self.levels)}

    def codes(
        self, labels: Labels, *, on_unknown: str, missing: str, accepted: tuple[Label, ...] = ()
    ) -> tuple[NDArray[np.int32], NDArray[np.bool_] | None, tuple[Label, ...]]:
        """Return level indices with -1 for "the mean of the levels", a mask of unseen levels, and those levels.

        Unseen levels that are in `accepted` don't raise.

        Raises
        ------
        ValueError
            For levels that fit didn't see when `on_unknown` is "error", or "further" for further rows of a fit, and for
            missing values when `missing` is "error".
        """
        distinct, index = labels.distinct, labels.index
        if not distinct:
            return np.empty(len(index), np.int32), None, ()
        codes = np.array([self._index.get(label, UNKNOWN) for label in distinct], dtype=np.int32)[index]
        unknown = codes == UNKNOWN
        if not unknown.any():
            return codes, None, ()
        gaps = unknown & np.array([absent(label) for label in distinct])[index]
        new, first = np.unique(index[unknown & ~gaps], return_index=True)
        strange = tuple(distinct[i] for i in new[np.argsort(first)])
        if gaps.any():
            if missing == "error":
                raise missing_error(self.column, gaps)
            codes[gaps] = len(self.levels) if self.with_missing else -1
            if missing == "mean" or self.with_missing:
                unknown &= ~gaps
        if not unknown.any():
            return codes, None, ()
        if on_unknown != "mean":
            allowed = np.array([label in accepted for label in distinct])[index]
            if (refused := unknown & ~allowed).any():
                strange = tuple(level for level in strange if level not in accepted)
                raise self._unknown_error(strange, refused, further=on_unknown == "further")
        codes[unknown] = -1
        return codes, unknown, strange

    def _unknown_error(
        self, strange: tuple[Label, ...], unknown: NDArray[np.bool_], *, further: bool = False
    ) -> ValueError:
        if not strange:
            return MetadataValueError(
                f"metadata column {self.column!r} has {spotted(unknown, 'missing value')}, but had none in fit, so "
                "they have no level; fill them, or fit on rows that have some",
                "set on_unknown='mean' to use the average of the known levels",
            )
        hint = did_you_mean(str(strange[0]), self.labels)
        if str(strange[0]) in self.labels:
            known_kind, kind = type(self.levels[0]).__name__, type(strange[0]).__name__
            hint = f" (in fit this column held {known_kind}, and here it holds {kind}: convert it)"
        shown = ", ".join(repr(level) for level in strange[:5]) + (", ..." if len(strange) > 5 else "")
        known = ", ".join(repr(level) for level in self.levels[:12]) + (", ..." if self.n_levels > 12 else "")
        remedy = (
            f"write all levels in the formula, as C({self.column}, levels=[...]), or begin with rows that have them"
            if further
            else "set on_unknown='mean' to use the average of the known levels, or call a Residualizer's adapt with "
            "rows of the new level"
        )
        return MetadataValueError(
            f"metadata column {self.column!r} has levels that fit did not see: {shown}, in "
            f"{spotted(unknown, 'row')}{hint}; the known levels are {known}",
            remedy,
        )

    def coded(self, codes: NDArray[np.int32], *, full: bool) -> NDArray[np.float64]:
        """Return contrast columns (b, L - 1), or one indicator per level (b, L) when `full`."""
        return self._rows[full][codes]

    def names(self, label: str, *, full: bool) -> tuple[str, ...]:
        if full:
            return tuple(f"{label}[{level}]" for level in self.labels)
        kept = list(self.labels)
        if self.contrast.name == "contr.treatment":
            del kept[self._base]
            return tuple(f"{label}[T.{level}]" for level in kept)
        kept = kept[1:] if self.contrast.name == "contr.helmert" else kept[:-1]
        return tuple(f"{label}[{self.contrast.name[6].upper()}.{level}]" for level in kept)

    @property
    def _base(self) -> int:
        if self.contrast.base is None:
            return 0
        if self.contrast.base not in self._index:
            raise ValueError(
                f"contr.treatment({self.contrast.base!r}): {self.column!r} has no such level"
                f"{did_you_mean(str(self.contrast.base), self.labels)}"
            )
        return self._index[self.contrast.base]

    @lazy
    def _rows(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Rows by code, reduced and full; the last one, which code -1 indexes, is the mean over the known levels."""
        L = self.n_levels
        full = np.eye(L)
        if self.contrast.name == "contr.treatment":
            reduced = np.delete(full, self._base, axis=1)
        elif self.contrast.name == "contr.sum":
            reduced = np.vstack([np.eye(L - 1), np.full((1, L - 1), -1.0)])
        else:  # Helmert: column j sets level j + 1 against the levels before it
            reduced = np.vstack([np.zeros((1, L - 1)), np.diag(np.arange(1.0, L))]) - np.triu(np.ones((L, L - 1)))
        known = slice(0, len(self.levels))
        return tuple(np.vstack([rows, rows[known].mean(axis=0)]) for rows in (reduced, full))  # type: ignore[return-value]

    def to_dict(self) -> dict[str, Any]:
        return {
            "column": self.column,
            "levels": list(self.levels),
            "counts": list(self.counts),
            "contrast": [self.contrast.name, self.contrast.base],
            "with_missing": self.with_missing,
        }

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> Levels:
        name, base = saved["contrast"]
        levels, counts = tuple(saved["levels"]), tuple(saved["counts"])
        return cls(saved["column"], levels, counts, Contrast(name, base), saved["with_missing"])


class MetadataValueError(ValueError):
    """Values that an option would allow: the message and the remedy, which an estimator may replace by its own."""

    def __str__(self) -> str:
        return "; ".join(self.args)


def missing_error(column: str, missing: NDArray[np.bool_]) -> ValueError:
    return MetadataValueError(
        f"metadata column {column!r} has {spotted(missing, 'missing value')}",
        "set missing='mean' to use the training mean (for a factor, the average of its levels), or "
        "missing='indicator' to give missing values an effect of their own",
    )


def sorted_levels(column: str, found: Iterable[Any]) -> tuple[Label, ...]:
    """Return levels as sorted plain Python values.

    Whole floats become integers: pandas turns integers into floats where something is missing.
    """
    levels = [level.item() if isinstance(level, np.generic) else level for level in found]
    if levels and all(isinstance(level, float) and level.is_integer() for level in levels):
        levels = [int(level) for level in levels]
    kinds = {str if isinstance(level, str) else bool if isinstance(level, bool) else float for level in levels}
    if len(kinds) > 1:
        raise TypeError(f"metadata column {column!r} mixes text, numbers or booleans; convert them all to text")
    return tuple(sorted(set(levels)))
