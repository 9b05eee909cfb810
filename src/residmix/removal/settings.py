"""Turn the parameters of a Residualizer into an effect, and check that they are compatible."""

from __future__ import annotations

from numbers import Real
from typing import Any

from sklearn.utils._param_validation import HasMethods, Interval, StrOptions

from residmix.design.transforms.curves import has_curves
from residmix.effects.covariance.covariance import Covariance
from residmix.effects.effect import Effect
from residmix.effects.mean.blup import Blup
from residmix.effects.mean.least_squares import LeastSquares
from residmix.effects.mean.regressor import Regressor
from residmix.effects.mean.ridge import Ridge
from residmix.effects.mean.smooth import Smooth
from residmix.effects.pooled.combat import EmpiricalBayes
from residmix.effects.spread.spread import Spread
from residmix.errors import DesignWarning, note, warn

__all__ = ["CONSTRAINTS", "effect_of", "refuse_moments_alone", "refuse_new_levels", "warn_of_nothing"]


_KINDS = ("blup", "eb", "eb-one-row", "eb-nonparametric", "eb-robust")

# What each parameter may be; scikit-learn checks it.
CONSTRAINTS: dict[str, Any] = {
    "formula": [str, None],
    "preserve": [str, None],
    "features": "no_validation",  # by the table, which knows its columns
    "alpha": [Interval(Real, 0, None, closed="left"), dict],
    "scale": ["boolean", str],
    "covariance": ["boolean", StrOptions({"shrunk", "scores"}), dict],
    "shrinkage": [StrOptions({"eb", "eb-one-row", "eb-nonparametric", "eb-robust"}), dict, None],
    "reference": "no_validation",
    "residuals": [StrOptions({"in-sample", "loo", "cross-fitted"})],
    "estimator": [HasMethods(["fit", "predict"]), None],
    "cv": "no_validation",  # by what makes the folds
    "groups": [str, None],
    "on_unknown": [StrOptions({"error", "mean", "shrink"})],
    "on_entangled": [StrOptions({"warn", "error"})],
    "missing": [StrOptions({"error", "mean", "indicator"})],
    "check_leakage": ["boolean"],
}


def effect_of(model: Any) -> Effect | Regressor:
    """Return how the effects of a Residualizer are estimated.

    Raises
    ------
    ValueError
        For parameters that contradict each other.
    """
    pooled = _pooled(model.shrinkage)
    if model.reference is not None and not pooled:
        raise ValueError("reference= needs shrinkage='eb'; set it, or leave reference= out")
    if any(kind == "eb-one-row" for _, kind in pooled) and model.scale:
        raise ValueError("shrinkage='eb-one-row' adjusts means only; leave scale= out, or use shrinkage='eb'")
    if isinstance(model.scale, str) and not model.scale.strip():
        raise ValueError("scale='' names no term; name those that the spread depends on, or set True or False")
    harmonizing = model.scale or model.covariance or model.shrinkage is not None or model.alpha != 0
    if model.estimator is not None and harmonizing:
        raise ValueError("scale=, covariance=, shrinkage= and alpha= don't work with estimator=; leave them out")
    if model.groups is not None and model.residuals != "cross-fitted" and model.estimator is None:
        raise ValueError("groups= needs residuals='cross-fitted'; set it, or leave groups= out")
    effect: Effect | Regressor = _with_covariance(model, _effect(model, pooled))
    if model.residuals == "loo" and not effect.exact_loo:
        raise ValueError(
            "residuals='loo' doesn't work with s(), scale=, covariance=, shrinkage= or estimator=; use "
            "residuals='cross-fitted'"
        )
    if model.on_unknown == "shrink":
        refuse_new_levels(model.estimator, "on_unknown='shrink'")
        if pooled:
            raise ValueError(
                "on_unknown='shrink' doesn't work with shrinkage='eb'; use on_unknown='mean', or call adapt with "
                "rows of the new level"
            )
    return effect


def _pooled(shrinkage: Any) -> tuple[tuple[str | None, str], ...]:
    """Return the factors whose effects are pooled, None for the only one, and how."""
    if isinstance(shrinkage, dict):
        for name, kind in shrinkage.items():
            if kind not in _KINDS:
                known = f"{', '.join(map(repr, _KINDS[:-1]))} or {_KINDS[-1]!r}"
                raise ValueError(f"shrinkage[{name!r}] must be {known}, not {kind!r}")
        return tuple((name, kind) for name, kind in shrinkage.items() if kind != "blup")
    return () if shrinkage is None else ((None, shrinkage),)


def _effect(model: Any, pooled: tuple[tuple[Any, str], ...]) -> Effect | Regressor:
    if model.estimator is not None:
        return Regressor(model.estimator, model.cv)
    mean = _mean(model)
    formula = model.scale if isinstance(model.scale, str) else None
    if not pooled:
        return Spread(mean, formula) if model.scale else mean
    options = {"spread": bool(model.scale), "reference": model.reference, "formula": formula}
    if pooled[0][0] is None:
        return EmpiricalBayes(mean, kind=pooled[0][1], **options)
    return EmpiricalBayes(mean, factors=pooled, **options)


def _with_covariance(model: Any, effect: Any) -> Any:
    """Return the effect that also brings covariances to the pooled one, where that is asked for."""
    asked = model.covariance
    if not asked:
        return effect
    if not model.scale:
        raise ValueError("covariance= needs scale=True; set it, or leave covariance= out")
    if model.reference is not None:
        raise ValueError(
            "covariance= doesn't work with reference=, since it changes every level; leave one of them out"
        )
    if not isinstance(asked, dict):
        return Covariance(effect, "shrunk" if asked is True else asked)
    if len(asked) != 1:
        raise ValueError(f"covariance={asked!r} must name one factor, as {{'site': 'shrunk'}}")
    ((name, kind),) = asked.items()
    if kind not in ("shrunk", "scores"):
        raise ValueError(f"covariance[{name!r}] must be 'shrunk' or 'scores', not {kind!r}")
    return Covariance(effect, kind, name)


def _mean(model: Any) -> Effect:
    named = model.shrinkage if isinstance(model.shrinkage, dict) else None
    if named is not None and not named:
        raise ValueError("shrinkage={} names no factor; name one, as in {'site': 'blup'}, or leave shrinkage out")
    random = tuple(name for name, kind in (named or {}).items() if kind == "blup")
    if any(text is not None and has_curves(text) for text in (model.formula, model.preserve)):
        if model.alpha != 0:
            raise ValueError("alpha= doesn't work with s(); leave alpha= out, or use bs() instead of s()")
        return Smooth(random)
    if random and model.alpha != 0:
        raise ValueError("alpha= doesn't work with shrinkage={...: 'blup'}; use one of them")
    if random:
        return Blup(random)
    return LeastSquares() if model.alpha == 0 else Ridge(model.alpha)


def refuse_new_levels(estimator: Any, what: str) -> None:
    """Raise where levels have no effects."""
    if estimator is not None:
        raise ValueError(f"{what} doesn't work with estimator=, which has no effects of levels; leave one of them out")


def refuse_moments_alone(model: Any) -> None:
    """Raise if moments aren't enough to continue the fit of a Residualizer."""
    if any(levels.labels for levels in getattr(model, "new_levels_", {}).values()):
        raise ValueError("partial_fit and merge would lose the levels that adapt has learned; call adapt last")
    if not effect_of(model).merges(model.design_):
        names = ("estimator", "scale", "covariance", "shrinkage")
        name = next(name for name in names if getattr(model, name) not in (None, False))
        raise ValueError(
            f"partial_fit and merge don't work with {name}={getattr(model, name)!r} and this design, which need all "
            "rows; use fit"
        )


def warn_of_nothing(model: Any, y: Any) -> None:
    """Warn if nothing is removed: without metadata, or if no term has columns; add a note for a factor of one level."""
    design = model.design_
    single = [term for term in design.terms if len(term.levels) == 1 and term.columns.start == term.columns.stop]
    if design.n_removed or design.factors:
        for term in single:
            what = "kept" if term.preserved else "removed"
            note(
                "one-level",
                f"{term.name!r} has one level only ({term.levels[0]!r}), so there is nothing to be {what} for it",
                term=term.name,
                level=str(term.levels[0]),
            )
        return
    given = model._apart or model.formula is not None
    if not given and y is not None:
        message = (
            "there is no metadata, so only the means are removed. The second argument of fit is an ignored target: "
            "pass metadata=, or a formula"
        )
    elif not given:
        message = "there is no metadata, so only the means are removed; pass metadata=, or a formula"
    else:
        shown = [f"{term.name!r} has one level only ({term.levels[0]!r})" for term in single if not term.preserved]
        message = (
            f"there is nothing to remove, so only the means are removed: {' and '.join(shown) or 'no term is named'}"
        )
    if given or y is not None or model._named:
        warn(message, DesignWarning, kind="nothing-removed")
    else:  # features alone may be what is meant
        note("nothing-removed", message)
