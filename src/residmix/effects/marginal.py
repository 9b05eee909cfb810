r"""Main effects beside their interactions, which don't depend on a reference level, nor on where a number is 0.

What is shrunk of ``site`` beside ``site:sex`` would be the sites' differences at sex's reference level. So interactions
count less what the effects within them explain over the rows: with their columns I, and M those of the main effects,

.. math:: M b + I c = M (b + E c) + (I - M E) c, \qquad E = S_{MM}^+ S_{MI},

where S are centred scatters. Shrunk is :math:`b + E c`. It depends on the rows and on what the columns span only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from residmix.design.design import Design
from residmix.design.terms import Term
from residmix.moments.linear import LinearMoments

__all__ = ["beside_all", "marginal", "marginal_moments", "own_moments", "recoded", "shared"]

Array = NDArray[np.float64]

# Share of a column's spread that is rounding.
_NOTHING = 1e-10


def marginal(design: Design, moments: LinearMoments, shrunk: Sequence[Term]) -> Array | None:
    """Return U (g, q, q), so that U coef are the coefficients beside interactions that are less what others explain.

    None if no term of the design holds one of the `shrunk` ones and others.
    """
    found = _interactions(design)
    holding = [(term, inside) for term, inside in found if term not in shrunk and any(one in shrunk for one in inside)]
    return _less_explained(moments, holding) if holding else None


def beside_all(design: Design, moments: LinearMoments) -> Array | None:
    """Return U (g, q, q) for coefficients of all interactions less what the terms within them explain, or None."""
    if design.factors:
        return None
    holding = _interactions(design)
    return _less_explained(moments, holding) if holding else None


def _interactions(design: Design) -> list[tuple[Term, list[Term]]]:
    """Return the terms that hold others, each with those."""
    parts = [(term, [one for one in design.terms if one.within(term)]) for term in design.terms]
    return [(term, inside) for term, inside in parts if inside]


def shared(terms: Sequence[Term], moments: LinearMoments) -> Array | None:
    """Return U (g, q, q): removed rows of U coef are coefficients of removed terms with all that preserved ones share.

    A preserved interaction such as ``site:sex`` holds the effect of ``site`` that is removed. Its columns alone would
    leave what is removed to sex's reference level. None if there is no such interaction.
    """
    parts = [(term, set(term.name.split(":"))) for term in terms if term.factor is None]
    holding = []
    for term, own in parts:
        within = [one for one, other in parts if other < own]
        if term.preserved and not all(one.preserved for one in within):
            holding.append((term, within))
    return _less_explained(moments, holding) if holding else None


def _less_explained(moments: LinearMoments, holding: Sequence[tuple[Term, Sequence[Term]]]) -> Array:
    """Return U for interactions, each with the terms within it."""
    changed = np.tile(np.eye(moments.s_aa.shape[1]), (len(moments.s_aa), 1, 1))
    for term, inside in sorted(holding, key=lambda pair: -len(pair[0].variables)):
        within, own = _columns(inside), _columns([term])
        for g, scatter in enumerate(moments.s_aa):
            step = np.eye(len(scatter))
            scale = np.sqrt(np.diag(scatter))[within]
            scale = np.where(scale > 0, scale, 1.0)
            inverse = np.linalg.pinv(scatter[np.ix_(within, within)] / np.outer(scale, scale), hermitian=True)
            across = scatter[np.ix_(within, own)] / scale[:, None]
            step[np.ix_(within, own)] = inverse @ across / scale[:, None]
            changed[g] = step @ changed[g]
    return changed


def recoded(coef: Array, changed: Array) -> Array:
    """Return `changed` (g, q, q) times the coefficients (q, d); g is 1, or d where each feature has its own."""
    return np.asarray(np.einsum("dpq,qd->pd", np.broadcast_to(changed, (coef.shape[1], *changed.shape[1:])), coef))


def marginal_moments(moments: LinearMoments, changed: Array) -> LinearMoments:
    """Return the moments of the columns that :func:`marginal`'s coefficients belong to."""
    columns = np.linalg.inv(changed)
    group = np.zeros(moments.s_ax.shape[1], np.intp) if len(columns) == 1 else np.arange(len(columns))
    across = np.swapaxes(columns, 1, 2)
    return replace(
        moments,
        offset_a=np.einsum("gpq,gp->gq", columns, moments.mean_a) - moments.origin_a,
        s_aa=across @ moments.s_aa @ columns,
        s_ax=np.einsum("dpq,pd->qd", columns[group], moments.s_ax),
    )


def own_moments(moments: LinearMoments, changed: Array) -> LinearMoments:
    """Return the moments of these columns; those that others explain wholly have no spread, where rounding would be."""
    found = marginal_moments(moments, changed)
    diagonal = np.einsum("gqq->gq", moments.s_aa)
    left = np.einsum("gqq->gq", found.s_aa) > _NOTHING * diagonal
    return replace(
        found,
        s_aa=np.where(left[:, :, None] & left[:, None, :], found.s_aa, 0.0),
        s_ax=np.where(left.T, found.s_ax, 0.0),
    )


def _columns(terms: Sequence[Term]) -> NDArray[np.intp]:
    return np.concatenate([np.arange(term.columns.start, term.columns.stop) for term in terms])
