"""Smooth functions of the metadata: penalised splines whose smoothness is estimated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from residmix.design.design import Design
from residmix.design.terms import Term
from residmix.effects.mean.blup import Blup
from residmix.effects.mean.curved import Coordinates, Curved, coordinates, curved, penalised
from residmix.effects.mean.least_squares import LeastSquares
from residmix.effects.mean.reml import Solved, solved, variance_ratios
from residmix.effects.random.predicted import RandomEffects, level_indicators
from residmix.effects.removal import LinearRemoval, Smooths
from residmix.effects.unmeasured.later import settled
from residmix.moments.equations import Equations
from residmix.moments.linear import LinearMoments
from residmix.rows.rows import Rows
from residmix.rows.threads import one_blas_thread

__all__ = ["Smooth"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Smooth:
    r"""Least squares with a penalty on the roughness of each smooth function f_t,

    .. math:: \sum_i w_i |x_i - c - a_i' B|^2 + \sum_t \lambda_t \int f_t''(u)^2 du,

    u the variable in units of its range. Each feature has its own :math:`\lambda_t`, by restricted maximum likelihood
    (:mod:`residmix.effects.mean.reml`). The estimate needs only the moments of least squares, so fits can be merged.

    Attributes
    ----------
    random : tuple of str
        Terms whose effects are random, as in :class:`~residmix.effects.mean.blup.Blup`, beside the functions.

    References
    ----------
    Wood, "Fast stable restricted maximum likelihood and marginal likelihood estimation of semiparametric generalized
    linear models", JRSS B 73, 2011.
    """

    random: tuple[str, ...] = ()

    exact_loo: ClassVar[bool] = False
    columns_up_to: ClassVar[int] = 2_000

    def check(self, design: Design) -> None:
        """Raise ValueError for levels without columns."""
        if self.random:
            Blup(self.random).check(design)
            if Blup(self.random).lines(design):
                raise ValueError(
                    "random slopes don't work with s(); use bs() instead of s(), or random intercepts alone"
                )
        if design.factors:
            raise ValueError(
                f"s() needs a column per level, but {design.factors[0].name!r} has {len(design.factors[0].levels)} "
                "levels; merge levels, or use bs() instead of s()"
            )

    def merges(self, design: Design) -> bool:
        return True

    def equations(self, design: Design) -> Equations:
        return LeastSquares().equations(design)

    def estimate(
        self, moments: Any, design: Design, features: Sequence[Any], rows: Rows | None = None
    ) -> LinearRemoval:
        found = LeastSquares().estimate(moments, design, features, rows)
        terms = Blup(self.random).terms(design) if self.random else []
        where = coordinates(design, terms)
        linear: LinearMoments = moments.linear
        with one_blas_thread():
            beside = curved(linear, where)
            ratios = variance_ratios(beside.own, beside.turned, beside.total, beside.degrees, where.parts)
            effects = solved(beside.own, beside.turned, beside.total, ratios, where.parts)
            coef = penalised(linear, where, beside, effects.effects)
        offset = np.einsum("dq,qd->d", np.broadcast_to(linear.offset_a, coef.T.shape), coef)
        fit = replace(found.fit, coef=coef, constant=linear.offset_x - offset)
        shrunk = settled(design, fit, moments)
        smooths, random = _told(linear, design, where, beside, ratios, effects, terms)
        return replace(found, shrunk=shrunk, smooth=smooths, random=random)


def _told(
    moments: LinearMoments,
    design: Design,
    where: Coordinates,
    beside: Curved,
    ratios: Array,
    found: Solved,
    terms: list[Term],
) -> tuple[Smooths, dict[str, RandomEffects]]:
    straight = beside.straight(where)
    n = len(design.curves)
    degrees = np.maximum(beside.degrees - found.kept.sum(axis=0), 0.0)
    smooths = Smooths(
        names=tuple(curve.name for curve in design.curves),
        smoothness=1.0 / ratios[:n],
        edf=straight + found.kept[:n],
        reference=straight + found.reference[:n],
        rss=np.maximum(found.rest - found.penalty, 0.0),
        residual_degrees=degrees,
    )
    noise = found.rest / np.maximum(beside.degrees, 1.0)
    random = {}
    for t, term in enumerate(terms):
        start, turn = level_indicators(design.level_rows(term))
        shares = start + moments.mean_a[:, term.columns] @ turn  # (g, L)
        rows = np.broadcast_to((moments.weight[:, None] * shares).T, (len(start), len(noise)))
        effects = found.effects[where.parts[n + t]]
        random[term.name] = RandomEffects(effects, 1.0 / ratios[n + t], rows.copy(), noise)
    return smooths, random
