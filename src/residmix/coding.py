"""How the factors of each term are coded, so that the design has full rank beside the intercept; and on given rows."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from residmix.columns import Metadata
from residmix.expressions import Call, Column, Terms
from residmix.learning import Learned, Survey
from residmix.levels import missing_error
from residmix.transforms import evaluate

__all__ = ["Plan", "RowReader", "coded_terms"]


@dataclass(frozen=True)
class Plan:
    """A term with its coding: ``coding`` lists products of factors, each with whether all levels are written out."""

    factors: tuple[Column | Call, ...]
    coding: tuple[tuple[tuple[int, bool], ...], ...]
    preserved: bool
    kind: str


def coded_terms(removed: Terms, kept: Terms, found: Survey, missing: str, absorb_above: int) -> tuple[Plan, ...]:
    """Code the factors of every term so that the design has full rank beside the intercept, if the data allow it.

    Each term spans products of subsets of its factors; what earlier terms (or the intercept) span already is left out,
    and the rest is put together with as few products as possible, as in patsy and formulaic.
    """
    learned = found.learned
    spanned: dict[frozenset[str], set[frozenset[int | str]]] = {frozenset(): {frozenset()}}
    plans = []
    for preserved, terms in ((False, removed), (True, kept)):
        used: dict[str, None] = {}
        for term in terms:
            texts = [factor.text for factor in term]
            labelled = [index for index, text in enumerate(texts) if text in learned.levels]
            numeric = tuple(index for index in range(len(term)) if index not in labelled)
            before = spanned.setdefault(frozenset(texts[index] for index in numeric), set())
            pieces: list[frozenset[tuple[int, bool]]] = []
            for mask in product((False, True), repeat=len(labelled)):
                subset = [index for index, chosen in zip(labelled, mask, strict=True) if chosen]
                key = frozenset(texts[index] for index in subset)
                if key not in before:
                    before.add(key)
                    pieces.append(frozenset((index, False) for index in subset))
            coding = tuple(
                tuple(sorted(piece | {(index, True) for index in numeric}))
                for piece in sorted(_joined(pieces), key=lambda piece: (len(piece), sorted(piece)))
            )
            kind = _kind(term, learned)
            if kind == "factor" and not preserved and learned.levels[texts[0]].n_levels > absorb_above:
                kind = "absorbed"
            plans.append(Plan(term, coding, preserved, kind))
            used.update(
                dict.fromkeys(name for factor in term if factor.text not in learned.levels for name in factor.columns())
            )
        if missing == "indicator":
            done = {plan.factors[0].label for plan in plans if plan.kind == "missing"}
            plans += [
                Plan((Column(name),), (), preserved, "missing")
                for name in used
                if name in found.with_missing and name not in done
            ]
    return tuple(plans)


def _joined(pieces: list[frozenset[tuple[int, bool]]]) -> list[frozenset[tuple[int, bool]]]:
    """Replace A and A x (b without reference) by A x (b in full) as long as there are such pairs."""
    pieces = list(pieces)
    while True:
        for long, short in product(sorted(pieces, key=lambda piece: (-len(piece), sorted(piece))), pieces):
            if short < long and len(long) == len(short) + 1:
                ((index, full),) = long - short
                if not full:
                    pieces = [piece for piece in pieces if piece not in (long, short)] + [short | {(index, True)}]
                    break
        else:
            return pieces


def _kind(term: tuple[Column | Call, ...], learned: Learned) -> str:
    if len(term) > 1:
        return "interaction"
    text = term[0].text
    if text in learned.levels:
        return "factor"
    return "numeric" if learned.widths[text] is None else "spline"


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
