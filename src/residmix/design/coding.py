"""How the factors of each term are coded, so that the design has full rank beside the intercept; and on given rows."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

from residmix.design.formula.expressions import Call, Column, Terms
from residmix.design.levels import Levels
from residmix.design.survey import Learned, Survey
from residmix.design.terms import Plan
from residmix.design.transforms.curves import check_curves, curve_of

__all__ = ["coded_combinations", "coded_terms"]


def coded_terms(removed: Terms, kept: Terms, found: Survey, missing: str, absorb_above: int) -> tuple[Plan, ...]:
    """Code the factors of every term so that the design has full rank beside the intercept, if the data allow it.

    Each term spans products of subsets of its factors; what earlier terms (or the intercept) span already is left out,
    and the rest is put together with as few products as possible, as in patsy and formulaic.
    """
    learned = found.learned
    check_curves((*removed, *kept), learned.levels)
    spanned: dict[frozenset[str], set[frozenset[int | str]]] = {frozenset(): {frozenset()}}
    plans = []
    for preserved, terms in ((False, removed), (True, kept)):
        used: dict[str, None] = {}
        for term in terms:
            if curve_of(term) is not None:
                # a curve for every level, so that none is a reference
                plans.append(Plan(term, (tuple((index, True) for index in range(len(term))),), preserved, "smooth"))
                used.update(_numeric_columns(term, learned))
                continue
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
            used.update(_numeric_columns(term, learned))
        if missing == "indicator":
            done = {plan.factors[0].label for plan in plans if plan.kind == "missing"}
            plans += [
                Plan((Column(name),), (), preserved, "missing")
                for name in used
                if name in found.with_missing and name not in done
            ]
    return tuple(plans)


def _numeric_columns(term: tuple[Column | Call, ...], learned: Learned) -> dict[str, None]:
    return dict.fromkeys(name for factor in term if factor.text not in learned.levels for name in factor.columns())


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


def coded_combinations(
    plans: Sequence[Plan], atoms: Sequence[Column | Call], levels: Sequence[Levels]
) -> NDArray[np.float64]:
    """Return columns (c, k) of plans of some factors in each combination of levels, the last varying fastest."""
    grid = np.indices([own.n_levels for own in levels]).reshape(len(levels), -1)
    texts = [atom.text for atom in atoms]
    parts = []
    for plan in plans:
        for coding in plan.coding:
            whole = np.ones((grid.shape[1], 1))
            for index, full in coding:
                at = texts.index(plan.factors[index].text)
                part = levels[at].coded(grid[at].astype(np.int32), full=full)
                whole = (whole[:, :, None] * part[:, None, :]).reshape(len(whole), -1)
            parts.append(whole)
    return np.hstack(parts)
