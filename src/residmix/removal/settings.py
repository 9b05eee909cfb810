"""From a Residualizer's parameters to the effect that they describe, refusing those that don't go together."""

from __future__ import annotations

from numbers import Real
from typing import Any

from sklearn.utils._param_validation import HasMethods, Interval, StrOptions

from residmix.effects.combat import EmpiricalBayes
from residmix.effects.effect import Effect
from residmix.effects.mean.blup import Blup
from residmix.effects.mean.least_squares import LeastSquares
from residmix.effects.mean.regressor import Regressor
from residmix.effects.mean.ridge import Ridge
from residmix.effects.spread import Spread
from residmix.errors import DesignWarning, note, warn

__all__ = ["CONSTRAINTS", "effect_of", "refuse_moments_alone", "refuse_new_levels", "warn_of_nothing"]


# What each parameter may be; scikit-learn checks it.
CONSTRAINTS: dict[str, Any] = {
    "formula": [str, None],
    "preserve": [str, None],
    "features": "no_validation",  # by the table, which knows its columns
    "alpha": [Interval(Real, 0, None, closed="left"), dict],
    "scale": ["boolean"],
    "shrinkage": [StrOptions({"eb", "eb-one-row"}), dict, None],
    "reference": "no_validation",
    "residuals": [StrOptions({"in-sample", "loo", "cross-fitted"})],
    "estimator": [HasMethods(["fit", "predict"]), None],
    "cv": "no_validation",  # by what makes the folds
    "on_unknown": [StrOptions({"error", "mean", "shrink"})],
    "missing": [StrOptions({"error", "mean", "indicator"})],
    "check_leakage": ["boolean"],
}


def effect_of(model: Any) -> Effect:
    """Return how the effects of a Residualizer are estimated.

    Raises
    ------
    ValueError
        For parameters that contradict each other.
    """
    pools = isinstance(model.shrinkage, str)
    if model.reference is not None and not pools:
        raise ValueError("reference= is the batch that shrinkage='eb' adjusts the others to; give shrinkage='eb'")
    if model.shrinkage == "eb-one-row" and model.scale:
        raise ValueError("shrinkage='eb-one-row' is for means only, since one row has no spread; leave out scale=")
    if model.estimator is not None and (model.scale or model.shrinkage is not None or model.alpha != 0):
        raise ValueError("scale, shrinkage and alpha belong to least squares; with estimator= leave them out")
    effect = _effect(model, pools)
    if model.residuals == "loo" and not effect.exact_loo:
        raise ValueError(
            "leave-one-out residuals are exact for least squares of the mean only; with scale=, shrinkage= or "
            "estimator= use residuals='cross-fitted'"
        )
    if model.on_unknown == "shrink":
        refuse_new_levels(model.estimator, "on_unknown='shrink'")
        if pools:
            raise ValueError(
                "on_unknown='shrink' needs effects that weren't pooled over features; with shrinkage='eb' use "
                "on_unknown='mean', and adapt to a new level with some of its rows"
            )
    return effect


def _effect(model: Any, pools: bool) -> Effect:
    if model.estimator is not None:
        return Regressor(model.estimator, model.cv)
    if isinstance(model.shrinkage, dict):
        mean: Effect = _random(model)
    else:
        mean = LeastSquares() if model.alpha == 0 else Ridge(model.alpha)
    if pools:
        return EmpiricalBayes(
            mean, spread=bool(model.scale), one_row=model.shrinkage == "eb-one-row", reference=model.reference
        )
    return Spread(mean) if model.scale else mean


def _random(model: Any) -> Blup:
    if model.alpha != 0:
        raise ValueError("alpha and shrinkage={...: 'blup'} are two penalties; give one of them")
    for name, kind in model.shrinkage.items():
        if kind != "blup":
            raise ValueError(f"shrinkage[{name!r}] must be 'blup', not {kind!r}")
    if not model.shrinkage:
        raise ValueError("shrinkage={} names no factor; give one as {'site': 'blup'}, or leave shrinkage out")
    return Blup(tuple(model.shrinkage))


def refuse_new_levels(estimator: Any, what: str) -> None:
    """Raise where levels have no effects."""
    if estimator is not None:
        raise ValueError(
            f"{what} belongs to least squares, which has effects of levels; with estimator= there are none"
        )


def refuse_moments_alone(model: Any) -> None:
    """Raise where moments aren't enough for a Residualizer to go on from."""
    if any(levels.labels for levels in getattr(model, "new_levels_", {}).values()):
        raise ValueError("partial_fit and merge would leave the levels behind that adapt has learned; adapt last")
    if not effect_of(model).merges:
        names = ("estimator", "scale", "shrinkage")
        name = next(name for name in names if getattr(model, name) not in (None, False))
        raise ValueError(
            f"partial_fit and merge work from moments alone, but {name}={getattr(model, name)!r} needs the rows "
            "again; use fit"
        )


def warn_of_nothing(model: Any, y: Any) -> None:
    """Warn if nothing is taken out: without metadata, or by terms without columns."""
    design = model.design_
    if design.n_removed or design.factors:
        return
    given = model._apart or model.formula is not None
    if not given and y is not None:
        message = (
            "there is no metadata, so only the means are taken out; the second argument of fit is a target, which "
            "is ignored: give metadata= or a formula"
        )
    elif not given:
        message = "there is no metadata, so only the means are taken out; give metadata= or a formula"
    else:
        single = [f"{term.name!r} has one level only ({term.levels[0]!r})" for term in design.terms if term.levels]
        message = (
            f"there is nothing to remove, so only the means are taken out: {' and '.join(single) or 'no term is named'}"
        )
    if given or y is not None or model._named:
        warn(message, DesignWarning, kind="nothing-removed")
    else:  # features alone may be what is meant
        note("nothing-removed", message)
