"""What measures of association cost: seconds of one core of a machine, of which only the proportions matter.

They are for telling the time that is left. The formulas were fitted to the times of probes on 500 and 1500 rows, 10 and
64 features and 2 to 30 levels, and of distances with 3 to 33 groups, 1 to 4 variables and 49 and 199 permutations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["distance_seconds", "measuring_seconds", "one_by_one", "probe_seconds"]

SAMPLE, PAIRED = 1500, 700  # rows of probes and of distances
DISTANCE_FEATURES = 32  # above so many, distance correlations are of all features together only
REFIT = 0.05  # what makes the residuals, fitted to the training rows of a fold


def one_by_one(n_features: int) -> int:
    """Return of how many features distance correlations are also taken one by one."""
    return n_features if 1 < n_features <= DISTANCE_FEATURES else 0


def probe_seconds(kind: str, n: int, d: int, levels: int) -> float:
    """Return what a probe takes for a fold: `levels` of the variable, 0 of a number."""
    if kind == "linear":
        return 0.005
    if not levels:
        return (0.013 + 0.0042 * max(1, d // 3)) * n / SAMPLE
    return (0.01 + 0.005 * math.sqrt(d)) * (1 + levels / 45) * n / SAMPLE


def distance_seconds(n: int, groups: int, variables: int, n_permutations: int) -> float:
    """Return what distance correlations of groups of features with variables take."""
    each = 0.0042 * groups + (0.0003 + 0.000013 * groups) * variables * n_permutations
    return each * (min(n, PAIRED) / PAIRED) ** 2


def measuring_seconds(
    n: int,
    d: int,
    levels: Sequence[int],
    *,
    groups: int,
    n_splits: int,
    n_permutations: int,
    stages: int = 2,
    distances: int = 3,
) -> float:
    """Return what all of it takes, before and after a removal that is fitted anew to each fold."""
    probes = sum(probe_seconds(kind, n, d, each) for kind in ("linear", "nonlinear") for each in levels)
    refits = REFIT if distances > 2 else 0.0
    paired = distance_seconds(n, distances * groups, len(levels), n_permutations)
    return n_splits * (stages * probes + refits) + paired
