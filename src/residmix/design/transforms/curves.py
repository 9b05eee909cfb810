"""Curves of a design: which columns each smooth function has, and the penalty on its roughness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from residmix.design.formula.expressions import Call, Column
from residmix.design.formula.parser import parse_formula
from residmix.design.formula.tokens import FormulaError
from residmix.design.levels import Levels
from residmix.design.terms import Plan, Term
from residmix.design.transforms.apply import evaluate
from residmix.design.transforms.smooth import roughness
from residmix.errors import DesignWarning, warn

__all__ = ["Curve", "check_curves", "curve_of", "curves_of", "has_curves", "smooth_label"]


@dataclass(frozen=True)
class Curve:
    """A smooth function with its own smoothing parameter.

    Attributes
    ----------
    name : str
        That of the term; with a level where each level has a curve, as ``"s(age, by=sex)[F]"``.
    term : str
    level : str or None
    atom : Call
        The argument of the function.
    by : str or None
        Name of the factor that it differs by, or of the number that it is multiplied with.
    columns : ndarray of int (w,)
        In the design.
    penalty : ndarray (w, w)
        P, so that :math:`b'Pb` is the integral of the squared second derivative, in units of the variable's range.
    bounds : (float, float)
        Range of the argument.
    states : dict
        What the functions of the formula have learned.
    """

    name: str
    term: str
    level: str | None
    atom: Call
    by: str | None
    columns: NDArray[np.intp]
    penalty: NDArray[np.float64]
    bounds: tuple[float, float]
    states: Mapping[str, dict[str, Any]] = field(repr=False)

    @property
    def variables(self) -> tuple[str, ...]:
        """Metadata columns that it is a function of."""
        return tuple(dict.fromkeys(self.atom.columns()))

    def rows(self, values: Sequence[float]) -> NDArray[np.float64]:
        """Return its columns (v, w) at values of its only variable.

        Raises
        ------
        ValueError
            If it has several.
        """
        if len(self.variables) > 1:
            raise ValueError(f"{self.name} is a function of {' and '.join(self.variables)}, not of one column")
        return evaluate(self.atom, {self.variables[0]: np.asarray(values, dtype=np.float64)}, self.states)


def curve_of(factors: Sequence[Column | Call]) -> int | None:
    """Return which factor of a term is a smooth function; None if none is."""
    return next((i for i, f in enumerate(factors) if isinstance(f, Call) and f.function == "s"), None)


def smooth_label(factors: Sequence[Column | Call]) -> str:
    """Return the name of a term with a smooth function: ``"s(age, by=sex)"``."""
    at = curve_of(factors)
    assert at is not None
    own, beside = factors[at].label, [factor.label for i, factor in enumerate(factors) if i != at]
    return own if not beside else f"{own[:-1]}, by={beside[0]})"


def curves_of(
    plans: Sequence[Plan], terms: Sequence[Term], levels: Mapping[str, Levels], states: Mapping[str, dict[str, Any]]
) -> tuple[Curve, ...]:
    """Return all curves, in the order of the terms and of the levels."""
    found = []
    for plan, term in zip(plans, terms, strict=True):
        if plan.kind != "smooth":
            continue
        at = curve_of(plan.factors)
        assert at is not None
        atom, beside = plan.factors[at], [factor for i, factor in enumerate(plan.factors) if i != at]
        assert isinstance(atom, Call)
        state = states[atom.text]
        penalty, bounds = roughness(state), (state["lower_bound"], state["upper_bound"])
        own = [levels[factor.text] for factor in beside if factor.text in levels]
        by = beside[0].label if beside else None
        names = own[0].labels if own else (None,)
        grid = np.arange(term.columns.start, term.columns.stop).reshape(
            (len(names), -1) if at and own else (-1, len(names))
        )
        columns = grid if at and own else grid.T
        for level, mine in zip(names, columns, strict=True):
            name = term.name if level is None else f"{term.name}[{level}]"
            found.append(Curve(name, term.name, level, atom, by, mine, penalty, bounds, states))
    return tuple(found)


def check_curves(terms: Sequence[tuple[Column | Call, ...]], labelled: Mapping[str, Any]) -> None:
    """Refuse a curve beside curves by the levels of a factor; warn if the factor itself isn't a term.

    Parameters
    ----------
    terms : sequence
        Removed and preserved ones.
    labelled : mapping
        Has the texts of the factors among what terms are made of.
    """
    alone = {term[0].text for term in terms if len(term) == 1}
    own = {name for term in terms if len(term) == 1 and curve_of(term) is None for name in term[0].columns()}
    for term in terms:
        at = curve_of(term)
        if at is None or len(term) == 1:
            continue
        (by,) = (factor for i, factor in enumerate(term) if i != at)
        if by.text in labelled and term[at].text in alone:
            raise FormulaError(
                f"{smooth_label(term)} already has a curve for each level, so {term[at].label} can't be a term as "
                f"well; write {by.label} + {smooth_label(term)}"
            )
        if next(by.columns()) not in own:
            what = "the curves of all levels have the same mean" if by.text in labelled else "the curve has mean zero"
            warn(
                f"{smooth_label(term)} is in the formula without {by.label}, so {what}. Add {by.label} to the formula",
                DesignWarning,
            )


def has_curves(text: str) -> bool:
    """Return whether a formula has smooth functions s()."""
    return any(curve_of(term) is not None for term in parse_formula(text))
