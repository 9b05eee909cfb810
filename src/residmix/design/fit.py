"""Fit a design: learn levels and knots from a table, so that any rows can be turned into a matrix.

A design row is ``a(m) = [columns to remove, columns to preserve]``, dense float64 and without intercept (solvers add
it), plus one level index per absorbed factor: a factor with so many levels that its columns are never written out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from residmix.design.coding import coded_terms
from residmix.design.columns import Metadata, open_metadata
from residmix.design.design import Design
from residmix.design.formula.expressions import Column, Terms
from residmix.design.formula.parser import parse_formula
from residmix.design.formula.tokens import FormulaError
from residmix.design.survey import Learned, survey
from residmix.design.terms import DesignMatrix, Factor, Plan, Term

__all__ = ["Design", "DesignMatrix", "Factor", "Term", "fit_design", "joined_designs"]

# Columns of interactions that are always let through.
MAX_CROSSED = 300


def fit_design(
    chunks: Callable[[], Iterator[Any]] | None,
    *,
    formula: str | None = None,
    preserve: str | None = None,
    on_unknown: str = "error",
    missing: str = "error",
    absorb_above: int = 200,
) -> Design:
    """Learn a design from metadata: levels of factors, knots of splines, means and spreads.

    Parameters
    ----------
    chunks : callable returning an iterator of arrays (b, p) or tables, or None
        Called once per pass over the rows. The result is the same, bit for bit, however the rows are divided into
        chunks. None means that there is no metadata.
    formula : str, optional
        What to remove (see :mod:`residmix.design.formula.parser`). Without it every column that `preserve` doesn't
        name is taken: numbers as they are; text, categories and truth values as factors. The columns of an array
        are m0, m1, ...
    preserve : str, optional
        A formula of effects to estimate beside them, but not remove.
    on_unknown : {"error", "mean"}
        What to do later with a level that wasn't in these rows: raise, or use the unweighted average of the known
        levels.
    missing : {"error", "mean", "indicator"}
        What to do with missing metadata: raise; put the mean (of the training values of a numeric column, before any
        function is applied; of the levels of a factor); or give it an effect of its own, which is an indicator column
        beside the mean (numeric) or one more level (factor), where fit saw missing values.
    absorb_above : int
        A removed factor with more levels than this is absorbed: the design holds its codes instead of its columns.

    Returns
    -------
    Design

    Raises
    ------
    FormulaError
        If a formula holds something that isn't allowed.
    ValueError, TypeError
        For unknown columns, missing or infinite values, dates, mixed types.

    Warns
    -----
    DesignWarning
        If a column of few distinct integers enters as a number.
    RareLevelWarning
        If a level to remove has fewer than three rows.

    Examples
    --------
    >>> import pandas as pd
    >>> table = pd.DataFrame({"site": ["a", "b", "a", "b"] * 2, "age": range(40, 48)})
    >>> design = fit_design(lambda: iter([table]), formula="site + age")
    >>> design.column_names
    ('site[T.b]', 'age')
    >>> design.matrix(table[:2]).dense
    array([[ 0., 40.],
           [ 1., 41.]])
    """
    for name, value, choices in (
        ("on_unknown", on_unknown, ("error", "mean")),
        ("missing", missing, ("error", "mean", "indicator")),
    ):
        if value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, not {value!r}")
    if chunks is None:
        if formula is not None and parse_formula(formula):
            raise ValueError(f"formula {formula!r} needs metadata; give metadata= or a table as X")
        if preserve is not None and parse_formula(preserve):
            raise ValueError(f"preserve {preserve!r} needs metadata; give metadata= or a table as X")
        return Design(formula, preserve, on_unknown, missing, None, (), Learned({}, {}, {}, {}))
    first = open_metadata(next(iter(chunks())))
    kept = parse_formula(preserve) if preserve is not None else ()
    removed = _every_column(first, kept) if formula is None else parse_formula(formula)
    both = {frozenset(term) for term in removed} & {frozenset(term) for term in kept}
    if both:
        named = ", ".join(sorted(":".join(sorted(f.label for f in term)) for term in both))
        raise ValueError(f"{named} is in both formula and preserve; name each effect in one of them")
    found = survey(chunks, removed, kept, missing)
    plans = coded_terms(removed, kept, found, missing, absorb_above)
    design = Design(
        formula,
        preserve,
        on_unknown,
        missing,
        len(first.names) if first.is_array else None,
        plans,
        found.learned,
    )
    _check_cost(design, found.n_rows)
    found.warn(design.terms)
    return design


def joined_designs(one: Design, other: Design) -> tuple[Design, NDArray[np.bool_]]:
    """Return a design of the removed columns of one, and of those of another that it lacks; and which the other has.

    Both are of the same table. A term counts as the same where its factors are coded alike.
    """

    def removed(design: Design) -> dict[Any, tuple[Plan, int]]:
        pairs = zip(design._plans, design.terms, strict=True)
        widths = [(plan, term.columns.stop - term.columns.start) for plan, term in pairs if not plan.preserved]
        return {(tuple(f.text for f in plan.factors), plan.coding, plan.kind): (plan, width) for plan, width in widths}

    first, second = removed(one), removed(other)
    every = first | {key: value for key, value in second.items() if key not in first}
    has = [np.full(width, key in second) for key, (_, width) in every.items()]
    mine, theirs = one._learned, other._learned
    learned = replace(
        mine,
        levels=theirs.levels | mine.levels,
        fills=theirs.fills | mine.fills,
        states=theirs.states | mine.states,
        widths=theirs.widths | mine.widths,
    )
    plans = tuple(plan for plan, _ in every.values())
    design = Design(one.formula, None, one.on_unknown, one.missing, one.array_width, plans, learned)
    return design, np.concatenate([np.zeros(0, dtype=bool), *has])


def _check_cost(design: Design, n_rows: int) -> None:
    """Refuse interactions with more columns than the rows can estimate; solving costs their number cubed."""
    crossed = [term for term in design.terms if ":" in term.name or term.kind == "smooth"]
    width = sum(term.columns.stop - term.columns.start for term in crossed)
    if width > max(MAX_CROSSED, n_rows):
        raise FormulaError(
            f"the terms {', '.join(term.name for term in crossed)} have {width} columns, too many to estimate from "
            f"{n_rows} rows; leave them out, or merge levels"
        )


def _every_column(first: Metadata, kept: Terms) -> Terms:
    taken = {name for term in kept for factor in term for name in factor.columns()}
    return tuple((Column(name),) for name in first.names if name not in taken)
