"""Covariance families by name."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from residmix.mixture.families.factor import FactorFamily
from residmix.mixture.families.structure import Family

__all__ = ["COVARIANCE_TYPES", "FACTOR", "FAMILIES", "Family", "factor_name", "family"]

#: By name. scikit-learn's names are aliases.
FAMILIES: Mapping[str, Family] = {
    row.name: row
    for row in (
        Family("E", "I", "I"),
        Family("V", "I", "I", ("K",)),
        Family("E", "E", "I"),
        Family("V", "E", "I"),
        Family("E", "V", "I"),
        Family("V", "V", "I", ("K", "d")),
        Family("E", "E", "E", ("d", "d")),
        Family("V", "E", "E"),
        Family("E", "V", "E"),
        Family("V", "V", "E"),
        Family("E", "E", "V"),
        Family("V", "E", "V"),
        Family("E", "V", "V"),
        Family("V", "V", "V"),
    )
}
ALIASES = {"full": "VVV", "tied": "EEE", "diag": "VVI", "spherical": "VII"}

# The name that stands for factor-analytic families; with a hyphen and the number of factors it is one of them.
FACTOR = "factor"

#: What `covariance_type` may be.
COVARIANCE_TYPES = (*ALIASES, *FAMILIES, FACTOR)


def factor_name(n_factors: int) -> str:
    """Return the name of the family with so many factors."""
    return f"{FACTOR}-{n_factors}"


@lru_cache(maxsize=128)
def family(covariance_type: str) -> Family:
    """Return the family of a name; "factor" without a number has one factor."""
    if covariance_type.startswith(FACTOR):
        return FactorFamily(n_factors=int(covariance_type.partition("-")[2] or 1))
    return FAMILIES[ALIASES.get(covariance_type, covariance_type)]
