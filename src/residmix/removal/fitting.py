"""Fits, and fits continued with further rows: they differ in where the moments come from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from residmix.design.design import Design
from residmix.effects.effect import Effect
from residmix.effects.mean.regressor import Regressor
from residmix.effects.removal import LinearRemoval
from residmix.moments.linear import LinearMoments, without_moments
from residmix.removal.watch import Watch, look_at_predictions
from residmix.rows.rows import Rows

__all__ = ["fitted", "moments_of", "refitted", "remaining"]


def fitted(
    effect: Effect | Regressor, rows: Rows, design: Design, features: Sequence[Any], watch: Watch
) -> tuple[Any, NDArray[Any] | None, Watch]:
    """Return the result, the training residuals if the fit computes them, and the updated leakage check."""
    if not isinstance(effect, Regressor):
        moments, watch = moments_of(effect, rows, design, watch)
        return effect.estimate(moments, design, features, rows), None, watch
    found, residual = effect.fit(rows, design)
    if design.n_removed and watch.active:
        look_at_predictions(rows, residual, design, features)
    return found, residual, watch


def moments_of(effect: Effect, rows: Rows, design: Design, watch: Watch) -> tuple[Any, Watch]:
    """Return the moments of rows, and the updated leakage check."""
    sampled = watch.over(rows)
    moments = effect.equations(design).moments(sampled)
    # there is something to watch for only if something is taken out
    return moments, watch.seen(sampled) if design.n_removed or design.factors else watch


def refitted(
    effect: Effect, before: LinearRemoval, moments: Any, design: Design, features: Sequence[Any]
) -> LinearRemoval:
    """Return the result for the rows of a fit together with further rows, given as moments.

    Raises
    ------
    ValueError
        If features have missing values beside absorbed factors, whose sums can't be added then.
    """
    ways = effect.equations(design)
    gaps = ways.gaps(before.moments) | ways.gaps(moments)
    if gaps.any():
        factor, some = design.factors[0], [str(features[j]) for j in np.flatnonzero(gaps)[:5]]
        raise ValueError(
            f"partial_fit and merge allow no missing values in features ({', '.join(map(repr, some))}) beside a "
            f"factor with as many levels as {factor.name!r} ({len(factor.levels)}); fit all rows at once, or fill "
            "the missing values"
        )
    return effect.estimate(ways.merge(before.moments, moments), design, features)


def remaining(
    effect: Effect, before: LinearRemoval, rows: Rows, design: Design, features: Sequence[Any]
) -> LinearRemoval:
    """Return the result for the rows of a fit without some of them.

    Raises
    ------
    ValueError
        If sums by level are needed, or see `residmix.moments.linear.without_moments`.
    """
    moments = effect.equations(design).moments(rows)
    if not isinstance(moments, LinearMoments) or not isinstance(before.moments, LinearMoments):
        raise ValueError(
            "forget doesn't work with scale=, shrinkage='eb' or a factor of many levels, which need sums by level; "
            "call fit on the remaining rows"
        )
    return effect.estimate(without_moments(before.moments, moments), design, features)
