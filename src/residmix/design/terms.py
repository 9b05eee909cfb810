"""Terms of a fitted design, and the matrix that it makes of rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from residmix.design.formula.expressions import Call, Column
from residmix.errors import did_you_mean

__all__ = ["Combinations", "DesignMatrix", "Factor", "Plan", "Term", "find_term"]


@dataclass(frozen=True)
class Factor:
    """An absorbed factor: its codes index `levels`; code -1 stands for the mean of the levels."""

    name: str
    levels: tuple[str, ...]


@dataclass(frozen=True)
class Term:
    """One term of the design, and its columns.

    Attributes
    ----------
    name : str
        As written in the formula, e.g. ``"C(site):age"``.
    columns : slice
        Its columns in the dense design. For an absorbed term, an empty slice.
    preserved : bool
        Whether the effect is estimated but not removed.
    kind : {"numeric", "factor", "spline", "smooth", "interaction", "absorbed", "missing"}
        "spline" stands for any basis of several columns, "smooth" for one whose roughness is penalised; "missing" is
        the indicator of missing values.
    variables : tuple of str
        The metadata columns it uses.
    factor : int or None
        For an absorbed term, the index into ``Design.factors``.
    levels, counts : tuple
        For the main effect of a factor, its levels and their rows in fit; else empty.
    """

    name: str
    columns: slice
    preserved: bool
    kind: str
    variables: tuple[str, ...]
    factor: int | None = None
    levels: tuple[str, ...] = ()
    counts: tuple[int, ...] = ()

    def within(self, other: Term) -> bool:
        """Tell whether the term uses some of another's metadata columns, and no others."""
        return set(self.variables) < set(other.variables)


@dataclass(frozen=True)
class Combinations:
    """The removed effects of an interaction's factors, for each of the c combinations of their levels.

    Attributes
    ----------
    factors : tuple of str
        As written in the formula.
    levels : tuple of tuple of str
        By factor.
    n_known : tuple of int
        Number of levels, not counting the one for missing values.
    columns : ndarray of int (k,)
        Of the design: those of the interaction, and of the factors and their interactions by themselves.
    rows : ndarray (c, k)
        The values of these columns; the last factor's level varies fastest.
    """

    factors: tuple[str, ...]
    levels: tuple[tuple[str, ...], ...]
    n_known: tuple[int, ...]
    columns: NDArray[np.intp]
    rows: NDArray[np.float64]


@dataclass(frozen=True)
class DesignMatrix:
    """The design of some rows.

    Attributes
    ----------
    dense : ndarray (b, q) of float64, C-contiguous
        Columns to remove, then (when asked) those to preserve. No intercept.
    codes : tuple of ndarray (b,) of int32
        Level indices per absorbed factor; -1 for the mean of the levels.
    unknown : ndarray (b,) of bool, or None
        Rows in which a removed factor has a level that fit didn't see. None when there is no such row.
    unknown_levels : dict
        Metadata column -> the unseen levels met in these rows.
    """

    dense: NDArray[np.float64]
    codes: tuple[NDArray[np.int32], ...] = ()
    unknown: NDArray[np.bool_] | None = None
    unknown_levels: dict[str, tuple[Any, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """A term with its coding: ``coding`` lists products of factors, each with whether all levels are written out."""

    factors: tuple[Column | Call, ...]
    coding: tuple[tuple[tuple[int, bool], ...], ...]
    preserved: bool
    kind: str


def find_term(terms: Sequence[Term], name: str, where: str) -> Term:
    """Return the term called `name`, or the only one that uses the metadata column `name`.

    Raises
    ------
    ValueError
        If there is none, or the column is used by several terms.
    """
    exact = [term for term in terms if term.name == name]
    using = exact or [term for term in terms if term.variables == (name,)]
    if len(using) == 1:
        return using[0]
    names = [term.name for term in terms]
    if not names:
        raise ValueError(f"{where} names the term {name!r}, but there is no metadata; give metadata= or a formula")
    if using:
        raise ValueError(
            f"{where}: column {name!r} is in several terms; name one of {', '.join(term.name for term in using)}"
        )
    raise ValueError(f"{where}: unknown term {name!r}{did_you_mean(name, names)}; the terms are {', '.join(names)}")
