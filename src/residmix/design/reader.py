"""RowReader: metadata in, design rows out."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from residmix.design.columns import Metadata
from residmix.design.formula.expressions import Call, Column
from residmix.design.levels import missing_error
from residmix.design.survey import Learned
from residmix.design.terms import Plan
from residmix.design.transforms.apply import evaluate

__all__ = ["RowReader"]


class RowReader:
    """The factors of a design on one set of rows, each read once."""

    def __init__(
        self,
        source: Metadata,
        learned: Learned,
        on_unknown: str,
        missing: str,
        accepted: dict[str, tuple[Any, ...]] | None = None,
    ) -> None:
        self._source, self._learned, self._accepted = source, learned, accepted or {}
        self._on_unknown, self._missing = on_unknown, missing
        self._numbers: dict[str, NDArray[np.float64]] = {}
        self._gaps: dict[str, NDArray[np.bool_] | None] = {}
        self._codes: dict[str, NDArray[np.int32]] = {}
        self._unseen: dict[str, NDArray[np.bool_] | None] = {}
        self.unknown: NDArray[np.bool_] | None = None
        self.unknown_levels: dict[str, tuple[Any, ...]] = {}

    def numbers(self, name: str) -> NDArray[np.float64]:
        if name not in self._numbers:
            values, gaps = self._source.numbers(name)
            if gaps is not None:
                if self._missing == "error":
                    raise missing_error(name, gaps)
                values = np.where(gaps, self._learned.fills[name], values)
            self._numbers[name], self._gaps[name] = values, gaps
        return self._numbers[name]

    def missing(self, name: str) -> NDArray[np.bool_] | float:
        self.numbers(name)
        gaps = self._gaps[name]
        return 0.0 if gaps is None else gaps

    def codes(self, atom: Column | Call, preserved: bool) -> NDArray[np.int32]:
        if atom.text not in self._codes:
            levels = self._learned.levels[atom.text]
            labels = self._source.labels(levels.column)
            codes, unknown, strange = levels.codes(
                labels,
                on_unknown=self._on_unknown,
                missing=self._missing,
                accepted=self._accepted.get(atom.text, ()),
            )
            self._codes[atom.text], self._unseen[atom.text] = codes, unknown
            if unknown is not None and not preserved:
                self.unknown = unknown if self.unknown is None else self.unknown | unknown
                self.unknown_levels[levels.column] = strange
        return self._codes[atom.text]

    def new_codes(self, atom: Column | Call, labels: tuple[Any, ...]) -> NDArray[np.int32]:
        """Return the index in `labels` of unseen levels, their number for any other one, and -1 for known levels."""
        self.codes(atom, False)
        codes = np.full(self._source.n_rows, -1, dtype=np.int32)
        unseen = self._unseen[atom.text]
        if unseen is not None:
            code = {label: place for place, label in enumerate(labels)}
            found = self._source.labels(self._learned.levels[atom.text].column)
            new = np.array([code.get(label, len(labels)) for label in found.distinct], dtype=np.int32)
            codes[unseen] = new[found.index[unseen]]
        return codes

    def product(self, plan: Plan, coding: tuple[tuple[int, bool], ...]) -> NDArray[np.float64]:
        parts = [self._coded(plan.factors[index], full, plan.preserved) for index, full in coding]
        whole = parts[0]
        for part in parts[1:]:
            width = whole.shape[1] * part.shape[1]
            whole = (whole[:, :, None] * part[:, None, :]).reshape(len(whole), width)
        return whole

    def _coded(self, atom: Column | Call, full: bool, preserved: bool) -> NDArray[np.float64]:
        if atom.text in self._learned.levels:
            return self._learned.levels[atom.text].coded(self.codes(atom, preserved), full=full)
        columns = {name: self.numbers(name) for name in dict.fromkeys(atom.columns())}
        values = evaluate(atom, columns, self._learned.states)
        return values[:, None] if values.ndim == 1 else values
