"""What comes after least squares: effects on the spread, and effects shrunk over features."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from residmix.design.design import Design
from residmix.design.terms import Term
from residmix.effects.combat import shrink_levels
from residmix.effects.later_batches import Frozen
from residmix.effects.level_priors import known_level_rows
from residmix.effects.scale import Scale, fit_scale
from residmix.errors import did_you_mean
from residmix.moments.affine import Affine, WithEffects
from residmix.moments.solve import LinearFit
from residmix.rows.block import Block
from residmix.rows.rows import Rows

__all__ = ["Rescaled", "adjusted", "of_features", "rescaled"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Rescaled:
    r"""Residual with the spread evened out, :math:`r = k + (x - \hat x - k) / f(a)`, or back.

    k are the preserved effects about their mean, which keep their size: only what no effect explains is rescaled.

    Attributes
    ----------
    affine : Affine
        ``x - fitted``, or ``x + fitted`` if its sign is 1: then residuals come in and features go out.
    preserved : ndarray (k, d)
        Coefficients of the preserved columns, which stand behind the removed ones in the design.
    origin : ndarray (k,)
    offset : ndarray (d,)
        Preserved effects are ``(a - origin) @ preserved - offset``.
    scale : Scale
    spreads : tuple of ndarray (L + 2, d)
        Changes of the log standard deviation by level that fit didn't see, whose codes are a block's last ones.
    """

    affine: Affine
    preserved: Array
    origin: Array
    offset: Array
    scale: Scale
    spreads: tuple[Array, ...] = ()

    def __call__(self, block: Block) -> NDArray[Any]:
        assert block.design is not None
        factor = self.scale.factor(block.design)
        for spread, codes in zip(self.spreads, block.codes[len(block.codes) - len(self.spreads) :], strict=True):
            factor *= np.exp(spread[codes])
        kept = (block.design[:, len(self.affine.coef) :] - self.origin) @ self.preserved - self.offset
        exact = replace(block, X=np.asarray(block.X, dtype=np.float64))
        if self.affine.sign < 0:
            out = kept + (self.affine(exact) - kept) / factor
        else:
            out = self.affine(replace(exact, X=kept + (exact.X - kept) * factor))
        return out.astype(block.X.dtype, copy=False)


def of_features(remove: Affine | Rescaled, features: NDArray[np.integer[Any]]) -> Affine | Rescaled:
    """Return the map for some of the features only."""
    if isinstance(remove, Rescaled):
        scale = replace(remove.scale, intercept=remove.scale.intercept[features], coef=remove.scale.coef[:, features])
        affine = of_features(remove.affine, features)
        assert isinstance(affine, Affine)
        spreads = tuple(spread[:, features] for spread in remove.spreads)
        return Rescaled(affine, remove.preserved[:, features], remove.origin, remove.offset[features], scale, spreads)
    some = replace(
        remove,
        origin_x=remove.origin_x[features],
        coef=np.ascontiguousarray(remove.coef[:, features]),
        constant=remove.constant[features],
    )
    if isinstance(some, WithEffects):
        return replace(some, effects=tuple(np.ascontiguousarray(effects[:, features]) for effects in some.effects))
    return some


def rescaled(affine: Affine, fit: LinearFit, scale: Scale, spreads: tuple[Array, ...] = ()) -> Rescaled:
    """Return the map for `affine`, which takes out (or puts back) the first columns of `fit`."""
    kept = slice(len(affine.coef), None)
    offset = np.einsum("dk,kd->d", fit.offset_a[fit.group][:, kept], fit.coef[kept])
    return Rescaled(affine, fit.coef[kept], fit.origin_a[kept], offset, scale, spreads)


def adjusted(
    rows: Rows, fit: LinearFit, design: Design, *, scale: bool, shrinkage: str | None, reference: Any = None
) -> tuple[LinearFit, Scale | None, Frozen | None]:
    """Return the fit with shrunk effects, the effects on the spread if those are to be removed, and what is frozen.

    Raises
    ------
    ValueError
        If there is an absorbed factor, or shrinkage isn't asked for exactly one factor.
    """
    if design.factors:
        raise ValueError(
            f"scale= and shrinkage='eb' need the levels of {design.factors[0].name!r} as columns, but there are "
            f"{len(design.factors[0].levels)} of them; remove such a factor's mean effect only"
        )
    if shrinkage is None:
        return fit, fit_scale(rows, fit.affine(), design.n_removed) if scale else None, None
    factor = _only_factor(design)
    shrunk = shrink_levels(
        rows,
        fit.affine(),
        fit.coef,
        factor.columns,
        design.level_rows(factor),
        design.n_removed,
        spread=scale,
        reference=None if reference is None else _place(design, factor, reference),
        one_row=shrinkage == "eb-one-row",
    )
    constant = fit.constant + shrunk.intercept + fit.origin_a @ shrunk.coef
    applied = replace(fit, coef=fit.coef + shrunk.coef, constant=constant)
    average = known_level_rows(design, factor).mean(axis=0)
    shift = average @ applied.coef[factor.columns] + shrunk.intercept - shrunk.grand
    log_sd = None
    if shrunk.scale is not None:
        log_sd = shrunk.scale.intercept + average @ shrunk.scale.coef[factor.columns]
    return applied, shrunk.scale, Frozen(shrunk.pooled, shift, log_sd, shrinkage == "eb-one-row")


def _place(design: Design, factor: Term, level: Any) -> int:
    """Return which of a factor's levels `level` is."""
    known = design.levels_of(design.column_of(factor))
    assert known is not None
    if level not in known.levels:
        raise ValueError(
            f"reference={level!r} is no level of {factor.name}{did_you_mean(str(level), known.labels)}; there are: "
            f"{', '.join(map(repr, known.levels[:12]))}"
        )
    return known.levels.index(level)


def _only_factor(design: Design) -> Term:
    removed = [term for term in design.terms if not term.preserved]
    factors = [term for term in removed if term.kind == "factor"]
    if len(factors) != 1:
        raise ValueError(
            f"shrinkage='eb' shrinks the effects of one factor, the batch, but {len(factors)} factors are removed "
            f"({', '.join(term.name for term in removed) or 'nothing'}); name one in the formula, as C(batch); batches "
            "from several columns go into one column first"
        )
    return factors[0]
