"""Parts of a summary about the mixture: components, agreement with other columns, fit."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from residmix.plots.pit import BINS, pit_values
from residmix.plots.rows import features_of, group_spreads_of, means_of, variances_of
from residmix.report.gather import Evidence
from residmix.report.tables import number

__all__ = [
    "agreement",
    "component_order",
    "component_rows",
    "fit_quality",
    "group_spread_rows",
    "own_effect_rows",
    "selection_rows",
    "set_aside_rows",
]

Floats = NDArray[np.float64]

# Effects by component that a report shows: those that differ most.
MOST_EFFECTS = 20
# Features with values set aside that it shows.
MOST_SET_ASIDE = 40
# Groups of levels with covariances of their own that it shows.
MOST_GROUPS = 50


def component_order(model: Any) -> NDArray[np.integer[Any]]:
    """Return the components from the heaviest to the lightest: the order in which reports list them."""
    return np.argsort(-np.asarray(model.weights_), kind="stable")


def component_rows(found: Evidence) -> list[dict[str, Any]]:
    """Return number (as `predict` gives it), weight, rows, mean and spread of each component, the heaviest first."""
    model = found.model
    if not hasattr(model, "means_"):
        return []
    variances, means = variances_of(model), means_of(model)
    return [
        {
            "number": int(k),
            "weight": float(model.weights_[k]),
            "rows": None if found.labels is None else int(np.sum(found.labels == k)),
            "mean": [float(value) for value in means[k]],
            "sd": [float(value) for value in np.sqrt(np.maximum(variances[k], 0.0))],
        }
        for k in component_order(model)
    ]


def own_effect_rows(model: Any) -> list[dict[str, Any]]:
    """Return the effects that differ most between components: design column, feature, and each component's estimate.

    They are compared over the spread of the column in the rows, in the feature's standard deviations within components.
    """
    coef = np.asarray(getattr(model, "coef_", np.empty(0)))
    if coef.ndim != 3 or not coef.size:
        return []
    column = np.linalg.norm(np.linalg.pinv(model._to_residual.basis), axis=0)
    variance = np.tensordot(model.weights_, variances_of(model), 1)
    size = np.ptp(coef, axis=0) * column[:, None] / np.sqrt(np.maximum(variance, 1e-300))
    order, names = component_order(model), features_of(model)
    foremost = np.argsort(-size, axis=None, kind="stable")[:MOST_EFFECTS]
    return [
        {
            "column": str(model.design_columns_[i]),
            "feature": str(names[j]),
            "estimates": [float(value) for value in coef[order, i, j]],
        }
        for i, j in zip(*np.unravel_index(foremost, size.shape), strict=True)
    ]


def set_aside_rows(model: Any) -> list[dict[str, Any]]:
    """Return the features of which values were set aside as wrong in the fit, and how many, the most first."""
    shares = np.asarray(getattr(model, "cell_shares_", np.empty(0)))
    order, names = np.argsort(-shares, kind="stable"), features_of(model) if shares.size else []
    rows = [{"feature": str(names[j]), "share": float(shares[j])} for j in order if shares[j] > 0]
    return rows[:MOST_SET_ASIDE]


def group_spread_rows(model: Any) -> list[dict[str, Any]]:
    """Return how wide each component is in each group of levels with covariances of its own.

    As multiples of the component's average, the geometric mean over features; and the feature that differs most.
    """
    if not hasattr(model, "groups_"):
        return []
    logs, names = np.log(group_spreads_of(model))[:, component_order(model)], features_of(model)
    return [
        {
            "levels": [str(level) for level in levels],
            "spreads": [float(value) for value in np.exp(own.mean(axis=1))],
            "feature": str(names[int(np.abs(own).max(axis=0).argmax())]),
        }
        for levels, own in zip(model.groups_[:MOST_GROUPS], logs, strict=False)
    ]


def selection_rows(model: Any) -> list[dict[str, Any]]:
    """Return the search over sizes and families, one row a fit, if there was one."""
    selection = getattr(model, "selection_", None)
    if not selection:
        return []
    names = list(selection)
    return [
        {name: number(value) if isinstance(value, float | np.floating) else _plain(value) for name, value in
         zip(names, row, strict=True)}
        for row in zip(*(selection[name] for name in names), strict=True)
    ]  # fmt: skip


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def agreement(
    name: str, values: Any, labels: NDArray[np.integer[Any]], order: NDArray[np.integer[Any]]
) -> dict[str, Any]:
    """Compare a column with the components: few values as groups, many numbers by the share of variance."""
    from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score

    known = np.asarray(values.notna()) & (labels >= 0)  # noise is no component
    values, labels = np.asarray(values[known]), labels[known]
    numbers = values.dtype.kind in "fiu"
    if not len(values):
        return {"name": name, "kind": "number", "eta2": 0.0}
    levels, codes = np.unique(values if numbers else values.astype(str), return_inverse=True)
    if numbers and len(levels) > 12:
        total = ((values - values.mean()) ** 2).sum()
        within = sum(((values[labels == k] - values[labels == k].mean()) ** 2).sum() for k in np.unique(labels))
        return {"name": name, "kind": "number", "eta2": float(1 - within / total) if total > 0 else 0.0}
    place = np.argsort(order)[labels]
    table = np.zeros((len(levels), len(order)), dtype=int)
    np.add.at(table, (codes, place), 1)
    return {
        "name": name,
        "kind": "groups",
        "n_levels": len(levels),
        "levels": [str(level) for level in levels[:50]],
        "table": table[:50].tolist(),
        "ari": float(adjusted_rand_score(codes, labels)),
        "ami": float(adjusted_mutual_info_score(codes, labels)),
    }


def fit_quality(found: Evidence) -> dict[str, Any] | None:
    """Return how the fit ended and how well it describes rows: log-likelihoods, and the PIT by feature."""
    model = found.model
    if not hasattr(model, "lower_bound_"):
        return None
    told: dict[str, Any] = {
        "log_likelihood_per_row": number(model.lower_bound_),
        "held_out_log_likelihood_per_row": found.held_out,
        "n_iter": int(model.n_iter_),
        "converged": bool(model.converged_),
        "lower_bounds": [number(value) for value in list(getattr(model, "lower_bounds_", ()))[:2000]],
        "pit": None,
    }
    gaussian = getattr(model, "distribution", "gaussian") == "gaussian" and not getattr(model, "noise", False)
    if found.rows is not None and gaussian:
        values = pit_values(model, found.rows)
        counts = [np.histogram(column[np.isfinite(column)], BINS, (0.0, 1.0))[0] for column in values.T]
        told["pit"] = {
            "bins": BINS,
            "counts": np.sum(counts, axis=0).tolist(),
            "ks": [number(_ks(column)) for column in values.T],
        }
    return told


def _ks(values: Floats) -> float:
    """Return the largest distance of the empirical distribution from the uniform one."""
    values = np.sort(values[np.isfinite(values)])
    n = len(values)
    if n == 0:
        return 0.0
    steps = np.arange(1, n + 1) / n
    return float(max(np.max(steps - values), np.max(values - steps + 1 / n)))
