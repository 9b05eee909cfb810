"""The numbers of components and the families to try."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Integral
from typing import Any

import numpy as np

from residmix.errors import did_you_mean
from residmix.mixture.families.family import COVARIANCE_TYPES, FAMILIES

__all__ = ["NoneFittedError", "is_search", "kinds", "sizes"]

# What "auto" stands for.
AUTO_SIZES = tuple(range(1, 10))


class NoneFittedError(ValueError):
    """None of the candidates of a search could be fitted."""


def is_search(n_components: Any, covariance_type: Any) -> bool:
    """Tell whether there's anything to choose: a list or "auto" in place of one value."""
    return not isinstance(n_components, Integral) or not isinstance(covariance_type, str) or covariance_type == "auto"


def sizes(n_components: Any) -> tuple[int, ...]:
    """Return the numbers of components, increasing.

    Raises
    ------
    ValueError
        Unless they are positive whole numbers.
    """
    if isinstance(n_components, str):
        return AUTO_SIZES
    given = [n_components] if isinstance(n_components, Integral) else _items(n_components)
    if not given or any(isinstance(k, bool | np.bool_) or not isinstance(k, Integral) or k < 1 for k in given):
        raise ValueError(
            f"n_components must be a positive whole number, a list of them or 'auto', not {n_components!r}"
        )
    return tuple(sorted({int(k) for k in given}))


def kinds(covariance_type: Any) -> tuple[str, ...]:
    """Return the names of the families, in the order given.

    Raises
    ------
    ValueError
        Unless they are known.
    """
    if covariance_type == "auto":
        return tuple(FAMILIES)
    given = [covariance_type] if isinstance(covariance_type, str) else _items(covariance_type)
    unknown = [name for name in given if name not in COVARIANCE_TYPES]
    if unknown or not given:
        hint = did_you_mean(unknown[0], COVARIANCE_TYPES) if unknown else ""
        raise ValueError(
            f"covariance_type must be one of {', '.join(COVARIANCE_TYPES)}, a list of them or 'auto', not "
            f"{covariance_type!r}{hint}"
        )
    return tuple(dict.fromkeys(str(name) for name in given))


def _items(values: Any) -> list[Any]:
    return list(values) if isinstance(values, Iterable) else [values]
