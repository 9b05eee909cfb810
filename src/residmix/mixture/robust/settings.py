"""Settings for trimming, priors, bounds and regularisation, and checks that they are compatible."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from inspect import signature
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils._param_validation import Interval, StrOptions, validate_parameter_constraints

from residmix.errors import check_number, did_you_mean
from residmix.mixture.families.factor import most_factors
from residmix.mixture.families.family import FACTOR, factor_name, family
from residmix.mixture.families.restraint import BOUNDED, Prior, Restraint
from residmix.mixture.iteration.refreshed import tell_of_gap
from residmix.mixture.iteration.step import MixtureEM
from residmix.mixture.params import MixtureParams
from residmix.mixture.selection.candidates import is_search, kinds, sizes
from residmix.rows.block import Block
from residmix.rows.memory import machine_bytes, told_bytes
from residmix.rows.rows import Rows

__all__ = ["MixtureSettings"]

Floats = NDArray[np.float64]

# Numbers of factors that are tried.
MOST_FACTORS = 6
# What `reg_covar="relative"` is of the least variance of a feature.
RELATIVE = 1e-6
# Components that are looked at for a row with search="nearest".
NEAREST = 8
# mclust's: rows that the prior of a mean counts for.
SHRINKAGE = 0.01
PRIOR_KEYS = ("mean", "shrinkage", "dof", "scale", "dirichlet")


class MixtureSettings:
    """The part of a mixture's estimator that knows these settings."""

    n_components: Any
    covariance_type: Any
    n_factors: int | None
    noise: bool
    distribution: str
    trim: float
    cells: float = 0.0  # models of earlier versions have none
    eigenvalue_ratio: float | None
    prior: Any
    search: str | int = "all"  # models of earlier versions have none
    init_params: str
    checkpoint: Any
    reg_covar: Any
    reg_covar_: float
    trim_threshold_: float
    # of a fit under way
    _restraint: Restraint | None = None
    _failed: int = 0
    _parameter_constraints: dict[str, list[Any]]

    _settings_constraints: dict[str, list[Any]] = {
        "n_factors": [Interval(Integral, 1, None, closed="left"), None],
        "trim": [Interval(Real, 0.0, 0.5, closed="left")],
        "cells": [Interval(Real, 0.0, 0.5, closed="left")],
        "eigenvalue_ratio": [Interval(Real, 1.0, None, closed="left"), None],
        "prior": [StrOptions({"mclust"}), dict, None],
        "reg_covar": [Interval(Real, 0.0, None, closed="left"), StrOptions({"relative"})],
    }

    @classmethod
    @cache
    def _defaults(cls) -> dict[str, Any]:
        """Return the parameters' defaults, by name; scikit-learn reads the signature anew each time."""
        return {name: own.default for name, own in sorted(signature(cls).parameters.items())}

    @classmethod
    def _get_param_names(cls) -> list[str]:
        return list(cls._defaults())

    def _validate_params(self) -> None:
        """Raise unless the parameters satisfy their constraints; those left alone do, and aren't looked at."""
        # models of earlier versions lack some
        own = {name: getattr(self, name) for name in self._get_param_names()}
        changed = {name: value for name, value in own.items() if value is not self._defaults()[name]}
        validate_parameter_constraints(self._parameter_constraints, changed, caller_name=type(self).__name__)

    def _kinds(self, n_features: int) -> tuple[str, ...]:
        """Return the families that are tried; of factor-analytic ones those of all numbers of factors."""
        found: list[str] = []
        for kind in kinds(self.covariance_type):
            if kind != FACTOR:
                found.append(kind)
            elif self.n_factors is not None:
                found.append(factor_name(self.n_factors))
            else:
                found += [factor_name(q) for q in range(1, min(MOST_FACTORS, most_factors(n_features)) + 1)]
        return tuple(found)

    def _kind(self) -> str:
        """Return the family where there's one."""
        if self.covariance_type == FACTOR and self.n_factors is not None:
            return factor_name(self.n_factors)
        return str(self.covariance_type)

    @property
    def _floor(self) -> float:
        """What is added to the variances."""
        given = getattr(self, "reg_covar_", self.reg_covar)
        return RELATIVE if isinstance(given, str) else float(given)

    @property
    def _start_floor(self) -> float:
        """Return the same for starts, which need one where a restraint keeps the fit itself regular."""
        return self._floor if self._restraint is None else max(self._floor, 1e-300)

    @property
    def _n_near(self) -> int:
        """How many components are looked at for each row; 0 for all."""
        if self.search == "all":
            return 0
        size = NEAREST if self.search == "nearest" else int(self.search)
        return 0 if size >= self.n_components else size

    @property
    def _init_params(self) -> str:
        """How starts are found."""
        return "many" if self._n_near and self.init_params == "short-em" else self.init_params

    def _gaps_allowed(self) -> bool:
        """Whether features may be missing."""
        return False

    def _has_gaps(self) -> bool:
        """Whether some values don't count, as they are missing or set aside."""
        return self._gaps_allowed() or bool(self.cells)

    def _check_settings(self, n_features: int, *, errors: bool = False) -> None:
        """Raise for settings that contradict each other."""
        tried = [family(kind) for kind in self._kinds(n_features)]
        if self.n_factors is not None and FACTOR not in kinds(self.covariance_type):
            raise ValueError(f'n_factors={self.n_factors} needs covariance_type="factor", not {self.covariance_type!r}')
        if FACTOR in kinds(self.covariance_type) and n_features < 3:
            raise ValueError(f'covariance_type="factor" needs at least 3 features, not {n_features}; use "full"')
        if self.n_factors is not None and self.n_factors > most_factors(n_features):
            raise ValueError(
                f"n_factors={self.n_factors} is too many for {n_features} features; use at most "
                f"{most_factors(n_features)}"
            )
        refuse_too_large(self._kinds(n_features), min(sizes(self.n_components)), n_features)
        unbound = [of.name for of in tried if of.name not in BOUNDED]
        if self.eigenvalue_ratio is not None and unbound:
            raise ValueError(
                f"eigenvalue_ratio={self.eigenvalue_ratio:g} needs a covariance_type among {', '.join(BOUNDED)} (or "
                f"full, tied, diag, spherical); it doesn't work with {', '.join(unbound)}"
            )
        if self.trim and self.noise:
            raise ValueError(f"trim={self.trim:g} can't be combined with noise=True; use one of them")
        if self.prior is not None and self.distribution == "t":
            raise ValueError('prior= needs distribution="gaussian", not "t"')
        if self.search != "all":
            self._check_near(errors)
        if self.cells:
            self._check_cells(errors)
        if errors and self.distribution == "t":
            raise ValueError('error_covariance= needs distribution="gaussian", not "t"')

    def _check_cells(self, errors: bool) -> None:
        """Raise for settings that setting values aside doesn't go with."""
        given = {
            "noise=True": self.noise,
            'distribution="t"': self.distribution == "t",
            f"trim={self.trim:g}": self.trim,
            "error_covariance=": errors,
            'effects="by-component"': getattr(self, "effects", "shared") != "shared",
            "covariance_by=": getattr(self, "covariance_by", None) is not None,
            "checkpoint=": self.checkpoint is not None,
        }
        for name, there in given.items():
            if there:
                raise ValueError(f"cells={self.cells:g} doesn't work with {name}; leave one of them out")

    def _check_near(self, errors: bool) -> None:
        """Raise for settings whose E-step looks at all components."""
        given = {
            "noise=True": self.noise,
            'distribution="t"': self.distribution == "t",
            f"trim={self.trim:g}": self.trim,
            f"cells={self.cells:g}": self.cells,
            "missing values": self._gaps_allowed(),
            "error_covariance=": errors,
            "covariance_by=": getattr(self, "covariance_by", None) is not None,
            "checkpoint=": self.checkpoint is not None,
            "several candidates": is_search(self.n_components, self.covariance_type) or self._kind() == FACTOR,
        }
        for name, there in given.items():
            if there:
                raise ValueError(f"search={self.search!r} doesn't work with {name}; use search='all'")

    def _whole(self, rows: Rows) -> Rows:
        raise AssertionError

    def _prepare(self, rows: Rows, errors: Floats | None = None) -> None:
        """Check the settings, and learn from the rows what they leave to them."""
        self._check_settings(rows.n_features, errors=errors is not None)
        if self.search != "all" and not rows.local:
            raise ValueError(f"search={self.search!r} needs rows in this process, not on a cluster; use search='all'")
        if self.cells and not rows.local:
            raise ValueError(f"cells={self.cells:g} needs rows in this process, not on a cluster; load X, or use trim")
        for name in ("reg_covar_", "_restraint", "_failed"):
            self.__dict__.pop(name, None)
        centre, scatter, n = None, None, 0.0
        if self.prior is not None or self.reg_covar == "relative":
            n, centre, scatter = _moments(self._whole(rows))
        self.reg_covar_ = self.reg_covar
        if self.reg_covar == "relative":
            variances = np.diagonal(scatter) / n  # type: ignore[arg-type]
            self.reg_covar_ = RELATIVE * float(variances[variances > 0].min(initial=np.inf))
            self.reg_covar_ = self.reg_covar_ if np.isfinite(self.reg_covar_) else RELATIVE
        prior = None
        if self.prior is not None:
            assert centre is not None and scatter is not None
            prior = _prior({} if self.prior == "mclust" else self.prior, n, centre, scatter)
        if prior is not None or self.eigenvalue_ratio is not None:
            self._restraint = Restraint(prior, self.eigenvalue_ratio)

    def _restraint_of(self, n_components: int) -> Restraint | None:
        """Return what a fit of so many components obeys: mclust's scale depends on their number."""
        restraint = self._restraint
        if restraint is None or restraint.prior is None or (self.prior != "mclust" and "scale" in self.prior):
            return restraint
        prior = restraint.prior
        scale = prior.scale / n_components ** (2.0 / len(prior.mean))
        return Restraint(Prior(prior.mean, prior.strength, prior.dof, scale, prior.dirichlet), restraint.ratio)

    def _keep_threshold(self, em: MixtureEM, params: MixtureParams) -> None:
        """Keep the log-density below which rows are trimmed."""
        if self.trim:
            self.trim_threshold_ = em.kept(params)[1]

    def _tell_of_gap(self, rows: Rows, params: MixtureParams) -> None:
        """Note what near components miss."""
        if self._n_near:
            tell_of_gap(rows, params, self._n_near)

    def _check_streams(self) -> None:
        """Raise where a stream's steps wouldn't be what the settings say."""
        for name, given in (
            ("trim", self.trim),
            ("cells", self.cells),
            ("prior", self.prior),
            ("eigenvalue_ratio", self.eigenvalue_ratio),
        ):
            if given:
                raise ValueError(f"partial_fit doesn't work with {name}={given!r}; use fit, or leave {name} out")


def refuse_too_large(kinds: Sequence[str], n_components: int, n_features: int) -> None:
    """Raise if the covariances of a family, and the factors that densities are computed with, find no room.

    Raises
    ------
    ValueError
        Before any of it is asked for.
    """
    room = machine_bytes()
    for kind in kinds:
        needed = 2 * 8 * math.prod(family(kind).shape_of(n_components, n_features))
        if needed > room:
            raise ValueError(
                f"{kind} covariances of {n_features:,} features take {told_bytes(needed)} for "
                f"{n_components} component{'s' if n_components > 1 else ''}, and this machine has {told_bytes(room)}; "
                "use covariance_type='diag', or fewer features, such as principal components"
            )


def _moments(rows: Rows) -> tuple[float, Floats, Floats]:
    """Return the rows' weight, mean and scatter."""
    return rows.fold(_block_moments, _merged)


def _block_moments(block: Block) -> tuple[float, Floats, Floats]:
    x = np.asarray(block.X, dtype=np.float64)
    w = np.ones(len(x)) if block.weight is None else block.weight
    total = float(w.sum())
    if not total > 0:
        return 0.0, np.zeros(x.shape[1]), np.zeros((x.shape[1], x.shape[1]))
    first = x[np.argmax(w > 0)]
    away = x - first  # so that a column of one value has a variance of 0, not of what rounding leaves of it
    shift = w @ away / total
    away -= shift
    return total, first + shift, (away * w[:, None]).T @ away


def _merged(one: tuple[float, Floats, Floats], two: tuple[float, Floats, Floats]) -> tuple[float, Floats, Floats]:
    total = one[0] + two[0]
    if not total > 0:
        return one
    gap = two[1] - one[1]
    return (
        total,
        one[1] + gap * (two[0] / total),
        one[2] + two[2] + np.outer(gap, gap) * (one[0] * two[0] / total),
    )


def _prior(given: Mapping[str, Any], n: float, centre: Floats, scatter: Floats) -> Prior:
    """Return the prior that a dictionary asks for, the rest as in mclust."""
    d = len(centre)
    unknown = [key for key in given if key not in PRIOR_KEYS]
    if unknown:
        raise ValueError(
            f"prior has no key {unknown[0]!r}{did_you_mean(unknown[0], PRIOR_KEYS)}; the keys are "
            f"{', '.join(PRIOR_KEYS)}"
        )
    strength, dof = given.get("shrinkage", SHRINKAGE), given.get("dof", d + 2.0)
    alpha = given.get("dirichlet", 1.0)
    check_number("prior's shrinkage", strength, low=0)
    check_number("prior's dof", dof, low=d - 1, above=True)
    check_number("prior's dirichlet", alpha, low=1)
    mean = np.asarray(given.get("mean", centre), dtype=np.float64)
    scale = np.asarray(given.get("scale", scatter / max(n - 1.0, 1.0)), dtype=np.float64)
    if mean.shape != (d,) or scale.shape != (d, d):
        raise ValueError(
            f"prior's mean and scale must have the shapes {(d,)} and {(d, d)}, not {mean.shape} and {scale.shape}"
        )
    return Prior(mean, float(strength), float(dof), scale, float(alpha))
