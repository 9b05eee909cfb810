"""The fitted design: which columns it has, the matrix it makes of any rows, and its form on disk."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from copy import copy
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from residmix.design.coding import coded_combinations
from residmix.design.columns import Metadata, open_metadata, plain_matrix, spotted
from residmix.design.formula.expressions import Call, Column
from residmix.design.formula.parser import parse_formula
from residmix.design.formula.tokens import FormulaError
from residmix.design.levels import Levels, missing_error
from residmix.design.reader import RowReader
from residmix.design.survey import Learned
from residmix.design.terms import Combinations, DesignMatrix, Factor, Plan, Term
from residmix.design.transforms.curves import Curve, curves_of, smooth_label
from residmix.errors import did_you_mean
from residmix.rows.checks import all_finite
from residmix.rows.scratch import scratch
from residmix.rows.threads import lazy

__all__ = ["Design"]

MAX_COLUMNS = 20_000


class Design:
    """A fitted map from metadata to design rows; see :func:`residmix.design.fit.fit_design`.

    Attributes
    ----------
    formula, preserve : str or None
        None where every column was taken as it is.
    columns : tuple of str
        Metadata columns that :meth:`matrix` needs.
    preserved_columns : tuple of str
        Further columns that it needs with ``preserved=True``.
    terms : tuple of Term
    column_names : tuple of str, length q
        Dense columns: removed ones first.
    n_removed, n_preserved : int
        Their numbers; q is the sum.
    factors : tuple of Factor
        Absorbed factors.
    array_width : int or None
        Number of columns where the metadata was an array.
    new_levels : dict of str to tuple
        Terms whose unseen levels have codes of their own, behind those of absorbed factors: see :meth:`following`.
    """

    def __init__(
        self,
        formula: str | None,
        preserve: str | None,
        on_unknown: str,
        missing: str,
        array_width: int | None,
        plans: tuple[Plan, ...],
        learned: Learned,
    ) -> None:
        self.formula, self.preserve = formula, preserve
        self.on_unknown, self.missing = on_unknown, missing
        self.array_width = array_width
        self._plans, self._learned = plans, learned
        self.new_levels: dict[str, tuple[Any, ...]] = {}
        self._lay_out()

    @classmethod
    def empty(cls) -> Design:
        """Return the design without metadata: it has no columns and removes nothing."""
        return cls(None, None, "error", "error", None, (), Learned({}, {}, {}, {}))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Numbers of levels of the absorbed factors."""
        return tuple(len(factor.levels) for factor in self.factors)

    def _lay_out(self) -> None:
        terms: list[Term] = []
        factors: list[Factor] = []
        names: list[str] = []
        self.n_removed = 0
        for plan in self._plans:
            smooth = plan.kind == "smooth"
            label = smooth_label(plan.factors) if smooth else ":".join(factor.label for factor in plan.factors)
            levels = self._levels(plan.factors[0]) if len(plan.factors) == 1 else None
            own = list(itertools.islice(self._names(plan), MAX_COLUMNS + 1))
            index = None
            if plan.kind == "absorbed":
                assert levels is not None
                index = len(factors)
                factors.append(Factor(label, levels.labels))
            if plan.kind == "missing":
                label = f"{label}[missing]"
            terms.append(
                Term(
                    name=label,
                    columns=slice(len(names), len(names) + len(own)),
                    preserved=plan.preserved,
                    kind=plan.kind,
                    variables=tuple(dict.fromkeys(name for atom in plan.factors for name in atom.columns())),
                    factor=index,
                    levels=levels.labels if levels else (),
                    counts=levels.counts if levels else (),
                )
            )
            names += own
            if not plan.preserved:
                self.n_removed += len(own)
            if len(names) > MAX_COLUMNS:
                raise FormulaError(
                    f"the design has more than {MAX_COLUMNS} columns at term {label!r}; only main effects of factors "
                    "can do without columns, so leave out the interaction or merge levels"
                )
        self.terms, self.factors, self.column_names = tuple(terms), tuple(factors), tuple(names)
        self.n_preserved = len(names) - self.n_removed
        used = dict.fromkeys(name for term in terms if not term.preserved for name in term.variables)
        self.columns = tuple(used)
        later = dict.fromkeys(name for term in terms if term.preserved for name in term.variables)
        self.preserved_columns = tuple(name for name in later if name not in used)

    @lazy
    def curves(self) -> tuple[Curve, ...]:
        """Its smooth functions; a term by the levels of a factor has one for each."""
        return curves_of(self._plans, self.terms, self._learned.levels, self._learned.states)

    def _levels(self, atom: Column | Call) -> Levels | None:
        return self._learned.levels.get(atom.text)

    def _names(self, plan: Plan) -> Iterator[str]:
        if plan.kind == "absorbed":
            return
        if plan.kind == "missing":
            yield f"{plan.factors[0].label}[missing]"
            return
        for coding in plan.coding:
            parts = []
            for index, full in coding:
                atom = plan.factors[index]
                levels = self._levels(atom)
                if levels is not None:
                    parts.append(levels.names(atom.label, full=full))
                elif (width := self._learned.widths[atom.text]) is None:
                    parts.append((atom.label,))
                else:
                    parts.append(tuple(f"{atom.label}[{j + 1}]" for j in range(width)))
            yield from (":".join(names) for names in product(*parts))

    def levels_of(self, column: str) -> Levels | None:
        """Return the levels of a metadata column that some term uses as a factor, else None."""
        return next((levels for levels in self._learned.levels.values() if levels.column == column), None)

    def __repr__(self) -> str:
        shown = self.formula if self.formula is not None else f"{len(self.terms)} columns"
        return f"Design({shown!r}, n_removed={self.n_removed}, n_preserved={self.n_preserved})"

    # ---- rows to design ----------------------------------------------------------------------------------------------

    def matrix(self, metadata: Any, *, preserved: bool = False, n_rows: int | None = None) -> DesignMatrix:
        """Return the design of some rows.

        Parameters
        ----------
        metadata : array (b, p), or pandas, polars or pyarrow table
            With the columns that fit used, in any order. May be None for a design without columns.
        preserved : bool
            Whether the preserved columns are wanted as well (fit needs them; removal doesn't).
        n_rows : int, optional
            Number of rows where `metadata` is None.

        Raises
        ------
        ValueError
            For unknown columns, levels that fit didn't see, missing and infinite values; each with what to do.
        """
        if metadata is None:
            return self._without_metadata(preserved, n_rows)
        if self._plain and not isinstance(metadata, Metadata) and isinstance(metadata, np.ndarray | list | tuple):
            return DesignMatrix(self._plain_design(metadata))
        source = self._opened(metadata)
        followed = {self._factor_of(name): labels for name, labels in self.new_levels.items()}
        accepted = {atom.text: labels for atom, labels in followed.items()}
        rows = RowReader(source, self._learned, self.on_unknown, self.missing, accepted)
        plans = [plan for plan in self._plans if preserved or not plan.preserved]
        width = len(self.column_names) if preserved else self.n_removed
        dense = scratch((source.n_rows, width), np.float64)
        codes = []
        for plan, term in zip(plans, self.terms, strict=False):
            if plan.kind == "absorbed":
                codes.append(rows.codes(plan.factors[0], plan.preserved))
            elif plan.kind == "missing":
                dense[:, term.columns.start] = rows.missing(plan.factors[0].label)
            else:
                at = term.columns.start
                for coding in plan.coding:
                    part = rows.product(plan, coding)
                    dense[:, at : at + part.shape[1]] = part
                    at += part.shape[1]
        codes += [rows.new_codes(atom, labels) for atom, labels in followed.items()]
        return DesignMatrix(dense, tuple(codes), rows.unknown, rows.unknown_levels)

    def following(self, new_levels: dict[str, tuple[Any, ...]], on_unknown: str | None = None) -> Design:
        """Return the same design with codes for unseen levels, by the names of the factors' terms.

        A row's code is the index of its level among those given; the number of those given for any other unseen level;
        and -1 for a level that fit saw. Dense columns don't change: unseen levels get the average of the known ones.
        """
        changed = copy(self)
        changed.new_levels = new_levels
        changed.on_unknown = on_unknown or self.on_unknown
        return changed

    def _factor_of(self, name: str) -> Column | Call:
        return next(p.factors[0] for p, t in zip(self._plans, self.terms, strict=True) if t.name == name)

    def column_of(self, term: Term) -> str:
        """Return the metadata column of a factor's main effect."""
        return self._learned.levels[self._factor_of(term.name).text].column

    def _without_metadata(self, preserved: bool, n_rows: int | None) -> DesignMatrix:
        needed = self.columns + (self.preserved_columns if preserved else ())
        if needed:
            raise ValueError(f"metadata is needed, with the columns {', '.join(map(repr, needed[:12]))}")
        if n_rows is None:
            raise ValueError("n_rows must be given if metadata is None")
        return DesignMatrix(np.empty((n_rows, 0)))

    @lazy
    def _plain(self) -> bool:
        """Whether design rows are the columns of an array as they are."""
        return self.array_width is not None and self.column_names == tuple(f"m{j}" for j in range(self.array_width))

    def _plain_design(self, metadata: Any) -> NDArray[np.float64]:
        matrix = self._of_width(plain_matrix(metadata)).astype(np.float64, order="C", copy=False)
        if not all_finite(matrix):
            matrix = matrix.copy()  # the caller's own, maybe
            for name, column in zip(self.column_names, matrix.T, strict=True):
                if np.isinf(column).any():
                    raise ValueError(f"metadata column {name!r} holds {spotted(np.isinf(column), 'infinite value')}")
                gaps = np.isnan(column)
                if gaps.any() and self.missing == "error":
                    raise missing_error(name, gaps)
                if gaps.any():
                    column[gaps] = self._learned.fills[name]
        return matrix

    def _of_width(self, matrix: NDArray[Any]) -> NDArray[Any]:
        if self.array_width is not None and matrix.shape[1] != self.array_width:
            raise ValueError(f"metadata has {matrix.shape[1]} columns, but it had {self.array_width} in fit")
        return matrix

    def _opened(self, metadata: Any) -> Metadata:
        source = open_metadata(metadata)
        if self.array_width is None:
            if source.is_array:
                raise ValueError(
                    f"metadata is an array of {len(source.names)} columns, but in fit it was a table with the "
                    f"columns {', '.join(map(repr, (self.columns + self.preserved_columns)[:12]))}; give a table"
                )
            return source
        if not source.is_array:
            if len(source.names) != self.array_width:
                raise ValueError(f"metadata has {len(source.names)} columns, but it had {self.array_width} in fit")
            return source.renamed(tuple(f"m{j}" for j in range(self.array_width)))
        self._of_width(source.native)
        return source

    def level_rows(self, term: Term) -> NDArray[np.float64]:
        """Return the design columns (L, columns) of each level of a factor's main effect, as in ``term.levels``."""
        (plan,) = (p for p, t in zip(self._plans, self.terms, strict=True) if t == term)
        levels = self._levels(plan.factors[0])
        if term.kind != "factor" or levels is None:
            raise ValueError(f"{term.name} is not a factor with columns in the design")
        ((_, full),) = plan.coding[0]
        return levels.coded(np.arange(levels.n_levels, dtype=np.int32), full=full)

    def combinations(self, term: Term) -> Combinations | None:
        """Return the removed columns of an interaction and its factors; None unless all these have columns."""
        pairs = list(zip(self._plans, self.terms, strict=True))
        (atoms,) = (plan.factors for plan, own in pairs if own == term)
        levels = [own for atom in atoms if (own := self._levels(atom)) is not None]
        texts = {atom.text for atom in atoms}
        within = [(p, t) for p, t in pairs if not p.preserved and {atom.text for atom in p.factors} <= texts]
        if len(levels) < len(atoms) or any(plan.kind not in ("factor", "interaction") for plan, _ in within):
            return None
        return Combinations(
            tuple(atom.label for atom in atoms),
            tuple(own.labels for own in levels),
            tuple(len(own.levels) for own in levels),
            np.concatenate([np.arange(t.columns.start, t.columns.stop) for _, t in within]),
            coded_combinations([plan for plan, _ in within], atoms, levels),
        )

    def rows_along(self, name: str, values: list[Any]) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        """Return the design columns whose terms use the metadata column `name` alone, and their rows at some values.

        Raises
        ------
        ValueError
            If there are none, or a term uses it together with other columns.
        """
        mine = [(p, t) for p, t in zip(self._plans, self.terms, strict=True) if name in t.variables]
        together = [term.name for _, term in mine if term.variables != (name,)]
        if not mine or together:
            told = f"{', '.join(together)} uses other columns as well" if together else "no term uses it"
            known = [own for term in self.terms for own in term.variables]
            hint = "" if mine else did_you_mean(name, known)
            raise ValueError(f"there is no effect of {name!r} alone: {told}{hint}")
        absorbed = [term.name for plan, term in mine if plan.kind in ("absorbed", "missing")]
        if absorbed:
            raise ValueError(
                f"{absorbed[0]!r} has so many levels that the design has no columns for them; its "
                "effects are in effects_"
            )
        import pandas as pd

        reader = RowReader(open_metadata(pd.DataFrame({name: values})), self._learned, "error", "error", {})
        parts = [reader.product(plan, coding) for plan, _ in mine for coding in plan.coding]
        columns = np.concatenate([np.arange(term.columns.start, term.columns.stop) for _, term in mine])
        return columns, np.concatenate(parts, axis=1)

    def n_known_levels(self, term: Term) -> int:
        """Return how many levels a factor's main effect has, missing values not among them."""
        levels = self.levels_of(self.column_of(term))
        assert levels is not None
        return len(levels.levels)

    def known_level_rows(self, term: Term) -> NDArray[np.float64]:
        """Return the design columns of each of these levels."""
        return self.level_rows(term)[: self.n_known_levels(term)]

    def same_coding(self, other: Design) -> bool:
        """Tell whether `other` gives the same design rows for the same metadata; counts of levels may differ."""
        return self._coding() == other._coding()

    def _coding(self) -> dict[str, Any]:
        coding = self.to_dict()
        for levels in coding["learned"]["levels"].values():
            del levels["counts"]
        if self.missing == "error":
            del coding["learned"]["fills"]
        return coding

    # ---- saving ------------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Return the design as values that fit into JSON; :meth:`from_dict` restores it exactly."""
        return {
            "formula": self.formula,
            "preserve": self.preserve,
            "on_unknown": self.on_unknown,
            "missing": self.missing,
            "array_width": self.array_width,
            "terms": [
                {
                    "factors": [factor.text for factor in plan.factors],
                    "coding": [[[index, full] for index, full in coding] for coding in plan.coding],
                    "preserved": plan.preserved,
                    "kind": plan.kind,
                }
                for plan in self._plans
            ],
            "learned": self._learned.to_dict(),
        }

    def _to_state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        return self.to_dict(), {}

    @classmethod
    def _from_state(cls, plain: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> Design:
        return cls.from_dict(plain)

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> Design:
        """Return the design that :meth:`to_dict` saved. Its expressions are checked as formulas are."""
        plans = tuple(
            Plan(
                tuple(factor for ((factor,),) in map(parse_formula, term["factors"])),
                tuple(tuple((int(index), bool(full)) for index, full in coding) for coding in term["coding"]),
                term["preserved"],
                term["kind"],
            )
            for term in saved["terms"]
        )
        return cls(
            saved["formula"],
            saved["preserve"],
            saved["on_unknown"],
            saved["missing"],
            saved["array_width"],
            plans,
            Learned.from_dict(saved["learned"]),
        )
