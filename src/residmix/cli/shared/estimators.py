"""From options to an estimator."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import click

from residmix.cli.shared.erasing import make_eraser

__all__ = ["components", "count", "load_model", "make_estimator", "remover"]

HARMONIZING = ("scale", "scale_by", "covariances", "shrinkage", "reference")


class _Components(click.ParamType):
    """A number of components, several, or auto."""

    name = "K"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        text = str(value).strip()
        if text == "auto" or isinstance(value, list):
            return value
        span = re.fullmatch(r"(\d+):(\d+)", text)
        sizes = (
            range(int(span[1]), int(span[2]) + 1) if span else [int(k) for k in text.split(",") if k.strip().isdigit()]
        )
        if not len(sizes) or (not span and len(sizes) != text.count(",") + 1):
            self.fail(
                f"{value!r} is not a number of components; use a number such as 3, a range such as 1:8, or auto",
                param,
                ctx,
            )
        if len(sizes) > 1 and min(sizes) < 1:
            self.fail(f"{value!r}: a range must start at 1 or more", param, ctx)
        return list(sizes) if len(sizes) > 1 else sizes[0]


components = _Components()


def make_estimator(chosen: SimpleNamespace, features: tuple[str, ...]) -> Any:
    """Return the unfitted estimator that options ask for: with a mixture, or to harmonize or erase without one."""
    if chosen.erase is not None:
        return make_eraser(chosen, features)
    harmonizing = _harmonizing(chosen)
    K = count(chosen)
    if K and harmonizing:
        raise click.UsageError(
            f"{' and '.join(harmonizing)} work without a mixture only; write --residuals clean.parquet, then run:  "
            f"residmix fit clean.parquet --formula 1 -k {K}"
        )
    if not K and chosen.formula is None:
        raise click.UsageError("there is nothing to do; use --formula, -k, or both")
    if not K:
        from residmix.removal.residualizer import Residualizer

        _refuse_mixture(chosen)
        return Residualizer(
            chosen.formula,
            preserve=chosen.preserve,
            features=list(features),
            scale=chosen.scale_by or chosen.scale,
            covariance=chosen.covariances or False,
            shrinkage=_shrinkage(chosen),
            reference=chosen.reference,
            missing=chosen.missing,
            on_unknown=chosen.on_unknown,
            on_entangled=chosen.on_entangled,
        )
    return _mixture(chosen, K, features)


def count(chosen: SimpleNamespace) -> Any:
    """Return the numbers of components that options ask for; 0 for none."""
    if chosen.components is not None:
        return chosen.components
    return 0 if _harmonizing(chosen) or chosen.moments_only else 3


def _harmonizing(chosen: SimpleNamespace) -> list[str]:
    return [f"--{name.replace('_', '-')}" for name in HARMONIZING if getattr(chosen, name)]


def _mixture(chosen: SimpleNamespace, K: Any, features: tuple[str, ...]) -> Any:
    """Return the unfitted mixture that options ask for."""
    from residmix.conditional.residual_mixture import ResidualMixture
    from residmix.errors import did_you_mean
    from residmix.mixture.families.family import COVARIANCE_TYPES

    family: Any = [name.strip() for name in chosen.family.split(",")]
    for name in family:
        if name not in (known := (*COVARIANCE_TYPES, "auto")):  # scikit-learn would tell of another name
            listed = ", ".join(map(repr, known))
            raise ValueError(f"--family must be one of {listed}, not {name!r}{did_you_mean(name, known)}")
    own = chosen.effects != "shared" or chosen.covariance_by is not None
    return ResidualMixture(
        K,
        formula=chosen.formula or "1",  # without one the mean alone is taken out
        preserve=chosen.preserve,
        features=list(features),
        estimation="joint" if own or chosen.joint or chosen.gating else "two-stage",
        gating=chosen.gating or ("metadata" if chosen.joint else "constant"),
        effects=chosen.effects,
        covariance_by=chosen.covariance_by,
        covariance_type=family if len(family) > 1 else family[0],
        n_factors=chosen.factors,
        criterion=chosen.criterion,
        noise=chosen.noise,
        distribution="t" if chosen.student else "gaussian",
        trim=chosen.trim,
        cells=chosen.cells,
        eigenvalue_ratio=chosen.eigenvalue_ratio,
        search=_search(chosen.search),
        reg_covar=chosen.reg_covar,
        prior=chosen.prior,
        missing="error" if chosen.missing == "em" else chosen.missing,
        missing_features="em" if chosen.missing == "em" else "error",
        on_unknown=chosen.on_unknown,
        random_state=chosen.seed,
        checkpoint=None if chosen.checkpoint is None else str(chosen.checkpoint),
    )


def _refuse_mixture(chosen: SimpleNamespace) -> None:
    """Raise for options of a mixture if there is none."""
    given = {
        "--joint": chosen.joint,
        "--gating": chosen.gating,
        "--stepwise": chosen.stepwise,
        "--covariance-by": chosen.covariance_by,
        "--effects": chosen.effects != "shared",
        "--factors": chosen.factors,
        "--noise": chosen.noise,
        "--t": chosen.student,
        "--trim": chosen.trim,
        "--cells": chosen.cells,
        "--eigenvalue-ratio": chosen.eigenvalue_ratio,
        "--prior": chosen.prior,
        "--reg-covar": chosen.reg_covar != 1e-6,
        "--search": chosen.search != "all",
        "--missing em": chosen.missing == "em",
    }
    for option, value in given.items():
        if value:
            raise click.UsageError(f"{option} needs components; set -k")


def _search(text: str) -> str | int:
    """Return which components are looked at, as the estimator takes it."""
    if text in ("all", "nearest"):
        return text
    if not text.isdigit() or not int(text):
        raise click.UsageError(f"--search must be all, nearest or a number above 0, not {text!r}")
    return int(text)


def _shrinkage(chosen: SimpleNamespace) -> Any:
    """Return ``{term: "blup"}`` for blup, which is by factor, and anything else as it is."""
    if chosen.shrinkage != "blup":
        return chosen.shrinkage
    from residmix.design.formula.parser import parse_formula

    terms = [":".join(factor.label for factor in term) for term in parse_formula(chosen.formula)]
    if len(terms) != 1:
        raise click.UsageError(
            f"--shrinkage blup needs a formula with one factor, but {chosen.formula!r} has {len(terms)} terms; use "
            "Python instead: Residualizer(..., shrinkage={'C(site)': 'blup'})"
        )
    return {terms[0]: "blup"}


def remover(model: Any) -> Any:
    """Return the method that gives a model's residuals, or None."""
    return (
        model.residuals
        if hasattr(model, "means_") and hasattr(model, "residualizer_")
        else getattr(model, "transform", None)
    )


def load_model(path: Any) -> Any:
    """Return the model in a file that this command or `residmix.save` wrote."""
    from residmix.persistence import load

    return load(path)
