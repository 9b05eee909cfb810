"""The passes over metadata that learn the levels, knots and means of a design."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from residmix.design.columns import Metadata, open_metadata
from residmix.design.doubts.codes import tell_of_codes
from residmix.design.doubts.labels import warn_of_labels, warn_of_text
from residmix.design.formula.expressions import Call, Column, Contrast, Terms
from residmix.design.formula.tokens import FormulaError
from residmix.design.levels import Levels, missing_error, sorted_levels
from residmix.design.transforms.apply import evaluate, learn, recut
from residmix.errors import DesignWarning, RareLevelWarning, warn
from residmix.rows.checks import all_finite
from residmix.rows.sampled import every

if TYPE_CHECKING:
    from residmix.design.terms import Term

__all__ = ["Learned", "Survey", "survey"]

KEPT_ROWS = 1 << 22  # rows up to which numeric columns are kept between the passes of one fit
FEW = 12  # distinct integers below which a numeric column looks like codes
_FIRST = 256
RARE = 3
LOOKED_AT = 10_000  # rows of the first chunk in which codes for missing values are looked for


@dataclass(frozen=True)
class Learned:
    """What a design remembers, keyed by the text of the expression or, for `fills`, by the column's name.

    Attributes
    ----------
    levels : dict of Levels
        Of every factor.
    fills : dict of float
        Training mean of the numeric columns, where missing values are to be replaced by it.
    states : dict
        Of the stateful functions: knots, bounds, means, coefficients.
    widths : dict of int or None
        Columns of a numeric expression; None for a single one.
    """

    levels: dict[str, Levels]
    fills: dict[str, float]
    states: dict[str, dict[str, Any]]
    widths: dict[str, int | None]

    def to_dict(self) -> dict[str, Any]:
        return {
            "levels": {text: levels.to_dict() for text, levels in self.levels.items()},
            "fills": dict(self.fills),
            "states": {text: dict(state) for text, state in self.states.items()},
            "widths": dict(self.widths),
        }

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> Learned:
        levels = {text: Levels.from_dict(item) for text, item in saved["levels"].items()}
        return cls(levels, dict(saved["fills"]), dict(saved["states"]), dict(saved["widths"]))


class _Tally:
    """What one pass finds out about one column."""

    def __init__(self, name: str, *, as_labels: bool) -> None:
        self.name, self.as_labels = name, as_labels
        self.kind = "empty"
        self.counts: Counter[Any] = Counter()
        self.few: set[float] | None = set()
        self.sample: NDArray[Any] = np.empty(0)
        self.rows = self.missing = 0
        self.first_missing = -1

    def add(self, source: Metadata) -> None:
        cells = source.read(self.name)
        if cells.missing is not None:
            if not self.missing:
                self.first_missing = self.rows + int(cells.missing.argmax())
            self.missing += int(cells.missing.sum())
        self.rows += source.n_rows
        if cells.kind == "empty":
            return
        if self.kind not in ("empty", cells.kind):
            raise TypeError(
                f"metadata column {self.name!r} holds numbers in some rows and text in others; convert it to one of "
                "them"
            )
        self.kind = cells.kind
        if cells.kind == "label" or self.as_labels:
            for label, n in source.labels(self.name).counts():
                self.counts[label] += n
        elif cells.values is not None:
            self._look_for_codes(cells.values)

    def add_numbers(self, values: NDArray[Any]) -> None:
        """Add rows of an array of finite numbers."""
        self.rows += len(values)
        self.kind = "number"
        self._look_for_codes(values)

    def _look_for_codes(self, values: NDArray[Any]) -> None:
        """Note the distinct values while they are few whole numbers, and some of the first."""
        if not len(self.sample):
            self.sample = values[:: every(len(values), LOOKED_AT)]
        for part in (values[:_FIRST], values):  # most columns show at once that they aren't
            if self.few is not None:
                part = part[~np.isnan(part)] if part.dtype.kind == "f" else part
                found = set() if np.any(part != np.floor(part)) else set(np.unique(part).tolist())
                whole = bool(found) or not len(part)
                self.few = self.few | found if whole and len(self.few | found) <= FEW else None

    def refuse_missing(self) -> ValueError:
        mask = np.zeros(self.first_missing + self.missing, dtype=bool)
        mask[self.first_missing :] = True
        return missing_error(self.name, mask)


@dataclass
class Survey:
    """What was learned, and what the warnings need."""

    learned: Learned
    with_missing: frozenset[str]
    tallies: dict[str, _Tally]

    @property
    def n_rows(self) -> int:
        return max((tally.rows for tally in self.tallies.values()), default=0)

    def warn(self, terms: Iterable[Term]) -> None:
        """Warn of codes used as numbers, of numbers and dates used as labels, and of levels with too few rows."""
        terms = list(terms)
        coded = self._warn_of_codes()
        for name, seen in self.tallies.items():
            warn_of_labels(name, seen.counts)
        for term in terms:
            tally = self.tallies.get(term.name)
            if term.kind == "numeric" and tally is not None and tally.few is not None and term.name not in coded:
                distinct = len(tally.few)
                if distinct >= 3 and tally.rows >= 5 * distinct:
                    warn(
                        f"metadata column {term.name!r} holds only {distinct} distinct integers and is used as a "
                        f"number. Write C({term.name}) if they are codes of categories, or I({term.name}) if they "
                        "are numbers",
                        DesignWarning,
                        kind="codes-as-numbers",
                        column=term.name,
                        distinct=distinct,
                    )
            elif tally is not None and term.kind in ("factor", "absorbed"):
                warn_of_text(term.name, list(tally.counts), tally.rows)
        rare = [
            f"{term.name}={level} ({count} row{'s' if count > 1 else ''})"
            for term in terms
            if not term.preserved
            for level, count in zip(term.levels, term.counts, strict=False)
            if 0 < count < RARE
        ]
        if rare:
            more = f" and {len(rare) - 8} more" if len(rare) > 8 else ""
            warn(
                f"too few rows to estimate the effect of {', '.join(rare[:8])}{more}: fewer than {RARE} rows each. "
                "Merge such levels, or shrink their effects (shrinkage=)",
                RareLevelWarning,
            )

    def _warn_of_codes(self) -> set[str]:
        """Warn of numbers that may be codes for missing values; return the columns that hold some."""
        # columns are looked at together, but for those whose first values came later
        by_length: dict[int, list[_Tally]] = {}
        for tally in self.tallies.values():
            if len(tally.sample):
                by_length.setdefault(len(tally.sample), []).append(tally)
        coded: set[str] = set()
        for n, looked in by_length.items():
            x = np.column_stack([tally.sample for tally in looked]).astype(np.float64, copy=False)
            coded |= tell_of_codes(x, [tally.name for tally in looked], looked[0].rows / n, metadata=True)
        return coded


def survey(chunks: Callable[[], Iterator[Any]], removed: Terms, kept: Terms, missing: str) -> Survey:
    """Learn everything that the terms need, in as few passes as possible."""
    atoms = tuple(dict.fromkeys(factor for term in removed + kept for factor in term))
    factors = {atom for atom in atoms if isinstance(atom, Call) and atom.function == "C"}
    names = dict.fromkeys(name for atom in atoms for name in atom.columns())
    labelled = {name for atom in factors for name in atom.columns()}
    tallies = {name: _Tally(name, as_labels=name in labelled) for name in names}
    # of columns that enter as they are there's nothing to learn; gaps are refused where the design is made
    as_it_is = missing == "error" and all(isinstance(atom, Column) for atom in atoms)
    for chunk in chunks():
        source = open_metadata(chunk)
        if source.is_array and not labelled and (as_it_is or all_finite(source.native)):
            # nothing but finite numbers, which say no more: there's no need to look at each column by itself
            columns = dict(zip(source.names, source.native.T, strict=True))
            for name, tally in tallies.items():
                tally.add_numbers(columns[name])
            continue
        for tally in tallies.values():
            tally.add(source)
    gaps = frozenset(name for name, tally in tallies.items() if tally.missing)
    if missing == "error" and gaps:
        raise tallies[min(gaps)].refuse_missing()

    levels = {}
    for atom in atoms:
        name = next(atom.columns())
        if atom in factors or (isinstance(atom, Column) and tallies[name].kind != "number"):
            levels[atom.text] = _levels(atom, tallies[name], missing)
    numeric = [atom for atom in atoms if atom.text not in levels]
    for atom in numeric:
        for name in atom.columns():
            if tallies[name].kind == "label":
                raise TypeError(f"{atom.label} needs numbers, but metadata column {name!r} holds text or booleans")

    numbers = _Numbers(chunks)
    fills = {}
    if missing != "error":
        for name in dict.fromkeys(name for atom in numeric for name in atom.columns()):
            center = learn(Call("center", Column(name)), partial(numbers.values, Column(name), {}))
            assert center is not None
            fills[name] = center["center"]
    states: dict[str, dict[str, Any]] = {}
    widths: dict[str, int | None] = {}
    for atom in numeric:
        for call in atom.calls():
            if call.text not in states:
                state = learn(call, partial(numbers.values, call.argument, states))
                if state is not None:
                    states[call.text] = state
        sample = np.empty(0) if isinstance(atom, Column) else next(numbers.values(atom, states), np.empty(0))
        widths[atom.text] = None if sample.ndim == 1 else sample.shape[1]
    return Survey(Learned(levels, fills, states, widths), gaps, tallies)


def _levels(atom: Column | Call, tally: _Tally, missing: str) -> Levels:
    options = dict(atom.options) if isinstance(atom, Call) else {}
    contrast = options.get("contrast") or Contrast("contr.treatment")
    if not isinstance(contrast, Contrast):
        raise FormulaError(f"{atom.label}: the contrast must be contr.treatment, contr.sum or contr.helmert")
    found = sorted_levels(tally.name, tally.counts)
    counts: dict[Any, int] = {}
    for level, count in tally.counts.items():
        counts[level] = counts.get(level, 0) + count
    given = options.get("levels")
    if given is not None:
        if not isinstance(given, tuple) or len(set(given)) != len(given):
            raise FormulaError(f"{atom.label}: levels must be a list without repeats")
        strange = [level for level in found if level not in given]
        if strange:
            raise ValueError(
                f"metadata column {tally.name!r} holds {strange[0]!r}, which is not among the levels of {atom.label}"
            )
        found = given  # type: ignore[assignment]
    with_missing = missing == "indicator" and tally.missing > 0
    if not found:
        raise ValueError(f"metadata column {tally.name!r} has no values; leave it out")
    rows = tuple(counts.get(level, 0) for level in found) + ((tally.missing,) if with_missing else ())
    return Levels(tally.name, found, rows, contrast, with_missing)


class _Numbers:
    """Numeric columns in blocks of fixed length, kept between passes when they are short."""

    def __init__(self, chunks: Callable[[], Iterator[Any]]) -> None:
        self._chunks = chunks
        self._kept: dict[tuple[str, ...], list[dict[str, NDArray[np.float64]]]] = {}

    def values(self, expression: Any, states: dict[str, dict[str, Any]]) -> Iterator[NDArray[np.float64]]:
        names = tuple(dict.fromkeys(expression.columns()))
        for block in self._blocks(names):
            yield evaluate(expression, block, states)

    def _blocks(self, names: tuple[str, ...]) -> Iterator[dict[str, NDArray[np.float64]]]:
        if names in self._kept:
            yield from self._kept[names]
            return
        held: list[dict[str, NDArray[np.float64]]] | None = []
        rows = 0
        for block in recut(self._complete(names)):
            rows += len(block[names[0]])
            if held is not None:
                held.append(block)
                held = held if rows * len(names) <= KEPT_ROWS else None
            yield block
        if held is not None:
            self._kept[names] = held

    def _complete(self, names: tuple[str, ...]) -> Iterator[dict[str, NDArray[np.float64]]]:
        """Yield the rows in which none of the columns is missing."""
        for chunk in self._chunks():
            source = open_metadata(chunk)
            columns = {name: source.numbers(name) for name in names}
            gaps = [missing for _, missing in columns.values() if missing is not None]
            keep = ~np.logical_or.reduce(gaps) if gaps else slice(None)
            yield {name: values[keep] for name, (values, _) in columns.items()}
