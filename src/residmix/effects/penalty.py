"""Ridge penalties in the terms of a formula."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from residmix.errors import did_you_mean
from residmix.validation import check_number

if TYPE_CHECKING:
    from residmix.design.fit import Design, Term

__all__ = ["find_term", "ridge_penalty", "term_penalty"]

Array = NDArray[np.float64]


def find_term(design: Design, name: str, where: str) -> Term:
    """Return the term called `name`, or the only one that uses the metadata column `name`.

    Raises
    ------
    ValueError
        If there is none, or the column is used by several terms.
    """
    exact = [term for term in design.terms if term.name == name]
    using = exact or [term for term in design.terms if term.variables == (name,)]
    if len(using) == 1:
        return using[0]
    names = [term.name for term in design.terms]
    if using:
        raise ValueError(f"{where}: {name!r} is in several terms: {', '.join(term.name for term in using)}; name one")
    raise ValueError(f"{where}: unknown term {name!r}{did_you_mean(name, names)}; the terms are {', '.join(names)}")


def term_penalty(design: Design, term: Term) -> Array:
    r"""Return P so that :math:`b'Pb` is the sum of squares of what is to be shrunk.

    For numeric terms those are the coefficients. For a factor they are the effects of all levels less their mean, so
    that the choice of the reference level makes no difference: with treatment coding :math:`P = I - 11'/L`.
    """
    width = term.columns.stop - term.columns.start
    if term.kind != "factor":
        return np.eye(width)
    levels = design.level_rows(term)
    centred = levels - levels.mean(axis=0)
    return centred.T @ centred


def ridge_penalty(design: Design | None, alpha: Any) -> Array | None:
    """Return the (q, q) penalty for `alpha`, a number for all that is removed or a number per term; None for 0.

    Raises
    ------
    TypeError, ValueError
        For what is no number, is negative, or names no term.
    """
    if isinstance(alpha, dict):
        for name, value in alpha.items():
            check_number(f"alpha[{name!r}]", value, low=0.0)
        if design is None:
            if alpha:
                raise ValueError("alpha names terms, but there is no metadata and so no term")
            return None
        strengths = [(find_term(design, name, "alpha"), float(value)) for name, value in alpha.items()]
    else:
        check_number("alpha", alpha, low=0.0)
        if design is None or alpha == 0:
            return None
        strengths = [(term, float(alpha)) for term in design.terms if not term.preserved]
    penalty = np.zeros((len(design.column_names),) * 2)
    for term, strength in strengths:
        penalty[term.columns, term.columns] += strength * term_penalty(design, term)
    return penalty if penalty.any() else None
