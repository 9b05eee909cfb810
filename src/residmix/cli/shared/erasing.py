"""From options to an eraser."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import click

__all__ = ["METHODS", "check_erasing", "make_eraser"]

METHODS = ("linear", "spread", "component", "full")


def check_erasing(chosen: SimpleNamespace) -> None:
    """Raise for options that don't work with an eraser."""
    if chosen.erase is None:
        return
    if chosen.formula is None:
        raise click.UsageError("--erase needs --formula")
    given = {
        "--scale": chosen.scale, "--scale-by": chosen.scale_by, "--covariances": chosen.covariances,
        "--shrinkage": chosen.shrinkage,
        "--joint": chosen.joint, "--gating": chosen.gating,
        "--effects": chosen.effects != "shared", "--family": chosen.family != "full",
        "--factors": chosen.factors, "--noise": chosen.noise, "--t": chosen.student, "--trim": chosen.trim,
        "--cells": chosen.cells,
        "--eigenvalue-ratio": chosen.eigenvalue_ratio, "--prior": chosen.prior,
        "--reg-covar": chosen.reg_covar != 1e-6, "--search": chosen.search != "all",
        "--missing em": chosen.missing == "em",
        "--labels": chosen.labels, "--checkpoint": chosen.checkpoint, "--moments-only": chosen.moments_only,
        "--criterion": chosen.criterion != "bic", "--on-entangled": chosen.on_entangled != "warn",
    }  # fmt: skip
    for option, value in given.items():
        if value:
            raise click.UsageError(f"{option} doesn't work with --erase; leave it out")
    if chosen.components is not None and (chosen.erase in ("linear", "spread") or chosen.components == 0):
        raise click.UsageError(f"-k {chosen.components} doesn't work with --erase {chosen.erase}; leave it out")
    if isinstance(chosen.components, list):
        raise click.UsageError("--erase needs a single number of components, or auto (chosen by held-out rows)")
    if chosen.reference is not None and chosen.erase == "linear":
        raise click.UsageError("--reference doesn't work with --erase linear; leave it out")


def make_eraser(chosen: SimpleNamespace, features: tuple[str, ...]) -> Any:
    """Return the unfitted eraser that options ask for."""
    from residmix.erasure.eraser import Eraser

    return Eraser(
        chosen.formula,
        preserve=chosen.preserve,
        features=list(features),
        method=chosen.erase,
        n_components=chosen.components or "auto",
        reference=_profile(chosen),
        missing=chosen.missing,
        on_unknown=chosen.on_unknown,
        random_state=chosen.seed,
    )


def _profile(chosen: SimpleNamespace) -> dict[str, Any] | None:
    """Return ``site=A,age=40`` as values by column; of one column its value will do."""
    if chosen.reference is None:
        return None
    from residmix.design.formula.parser import formula_columns

    columns = formula_columns(chosen.formula)
    pairs = [pair.partition("=") for pair in chosen.reference.split(",")]
    if len(columns) == 1 and "=" not in chosen.reference:
        return {columns[0]: _value(chosen.reference)}
    if not all(equals for _, equals, _ in pairs):
        raise click.UsageError(
            f"--reference {chosen.reference!r} must have a value for each erased column, such as "
            f"{','.join(f'{name}=...' for name in columns)}"
        )
    return {name.strip(): _value(value) for name, _, value in pairs}


def _value(text: str) -> Any:
    text = text.strip()
    return float(text) if re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", text, re.IGNORECASE) else text
