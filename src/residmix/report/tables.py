"""Parts of a summary about features and metadata: shares by feature, effects by term, levels before and after."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from residmix.diagnostics.design_audit import overlap_by_level
from residmix.plots.rows import Rows, residualizer_of
from residmix.report.gather import Evidence

__all__ = [
    "MOST_LEVELS",
    "associations",
    "certificate_of",
    "certified_probes",
    "covariance_rows",
    "explained_by_feature",
    "level_rows",
    "number",
    "term_rows",
    "top_effects",
]

Floats = NDArray[np.float64]

MOST_LEVELS = 60  # shown of a column; more than this is told
ODD = 3.5  # robust z from which a level is odd (Iglewicz and Hoaglin 1993), of at least 5 levels
LEAST_SHIFT, LEAST_RATIO = 0.25, 1.25  # and no less than that from the others: few levels lie close by chance
LEARNERS = {
    "linear": "linear probe, held out",
    "forest": "random forest, held out",
    "network": "network of two layers, held out",
}
MOST_PLACES = 20
MEASURES = {
    "distance_correlation": "distance correlation, squared (detects dependence of any form)",
    "linear_probe": "linear probe, held out",
    "nonlinear_probe": "random forest, held out",
    "component_information": "components, adjusted mutual information",
}


def number(value: Any) -> float | None:
    """Return a float, or None for what JSON doesn't know."""
    return float(value) if math.isfinite(value) else None


def explained_by_feature(found: Evidence) -> list[dict[str, Any]]:
    """Return name, mean, spread before and after, and the share of the variance that went, by feature."""
    linear = residualizer_of(found.model)
    if found.rows is None:
        if linear is None:
            return [{"name": name} for name in found.features]
        return [
            {"name": name, "explained": number(share)} for name, share in zip(found.features, linear.r2_, strict=True)
        ]
    X = np.asarray(found.rows.X, dtype=np.float64)
    residual = X - np.nanmean(X, axis=0) if found.residual is None else found.residual
    gaps = np.isnan(X).all(axis=0)
    X, residual = np.where(gaps, 0.0, X), np.where(gaps, 0.0, residual)
    before, after = np.nanvar(X, axis=0), np.nanvar(residual, axis=0)
    share = np.where(before > 0, 1 - after / np.where(before > 0, before, 1), 0.0)
    told = {"mean": np.nanmean(X, axis=0), "sd_before": np.sqrt(before), "sd_after": np.sqrt(after), "explained": share}
    columns = [[number(value) for value in values.tolist()] for values in told.values()]
    missing = np.isnan(X).sum(axis=0).tolist()
    return [
        {"name": name, **dict(zip(told, values, strict=True)), "missing": gaps}
        for name, *values, gaps in zip(found.features, *columns, missing, strict=True)
    ]


def term_rows(found: Evidence) -> list[dict[str, Any]]:
    """Return what each term of the formula explains over the others: partial R2, and features with p < .05."""
    linear = residualizer_of(found.model)
    if linear is None or getattr(linear, "estimator", None) is not None:
        return []
    kinds = {term.name: term.kind for term in linear.design_.terms}
    rows = []
    for test in linear.term_tests():
        count = float(np.median(test.edf))
        row: dict[str, Any] = {
            "name": test.name,
            "columns": int(count) if count.is_integer() else round(count, 2),
            "preserved": bool(test.preserved),
            "kind": kinds.get(test.name, "smooth"),
        }
        if test.statistic is not None:
            share = np.where(test.reference > 0, test.share, np.nan)  # what can't be estimated is no number
            known = np.isfinite(share)
            row |= {
                "partial_r2_median": number(np.median(share[known])) if known.any() else None,
                "partial_r2_max": number(share[known].max()) if known.any() else None,
                "strongest": found.features[int(np.nanargmax(share))] if known.any() else None,
                "significant": int(np.sum(test.p_value[np.isfinite(test.p_value)] < 0.05)),
            }
        rows.append(row)
    return rows


def top_effects(found: Evidence, most: int = 16) -> list[dict[str, Any]]:
    """Return the coefficients with the largest test statistics, with 95 % intervals."""
    from scipy.stats import t

    linear = residualizer_of(found.model)
    if linear is None or getattr(linear, "estimator", None) is not None:
        return []
    table = linear.tidy()
    known = np.isfinite(table["statistic"]) & np.isfinite(table["std_error"])
    table = table[known & (table["term"] != "Intercept")]
    table = table.iloc[np.argsort(-np.abs(table["statistic"].to_numpy()), kind="stable")[:most]]
    degrees = float(np.min(linear.fit_.residual_degrees[linear.fit_.count > 0], initial=np.inf))
    reach = float(t.ppf(0.975, degrees)) if degrees > 0 else float("nan")
    return [
        {
            "feature": str(row.feature),
            "term": str(row.term),
            "estimate": number(row.estimate),
            "lower": number(row.estimate - reach * row.std_error),
            "upper": number(row.estimate + reach * row.std_error),
            "p_value": number(row.p_value),
        }
        for row in table.itertuples()
    ]


def level_rows(found: Evidence) -> list[dict[str, Any]]:
    """Return, for every metadata column with levels, how far each level is from all rows before and after.

    The shift is the root mean square over features of the difference of means, in standard deviations within levels;
    the spread the geometric mean over features of the ratio of standard deviations. A level is odd if its shift or
    its log spread before is more than 3.5 robust standard deviations (median and MAD) from those of the others, and
    no less than a quarter of a standard deviation, or a quarter of the spread.
    """
    rows = found.rows
    if rows is None or found.residual is None:
        return []
    told = []
    for name in dict.fromkeys([*found.removed, *found.preserved]):
        if name not in rows.metadata:
            continue
        values = rows.metadata[name]
        numeric = values.dtype.kind in "fiu"
        levels = np.unique(values.dropna()) if numeric else np.unique(values.dropna().astype(str))
        if not len(levels) >= 2 or (numeric and len(levels) > 12):
            continue
        own = values.to_numpy() if numeric else values.astype(str).to_numpy()
        shown = _levels(rows, found.residual, own, levels)
        beside = [other for other in (*found.removed, *found.preserved) if other != name and other in rows.metadata]
        _add_overlaps(shown, values, rows.metadata[list(dict.fromkeys(beside))])
        told.append({"name": name, "n_levels": len(levels), "levels": shown})
    return told


def _add_overlaps(shown: list[dict[str, Any]], own: Any, others: Any) -> None:
    """Add the least overlap of another column at each level with the other levels, and which column it is."""
    for row in shown:
        row |= {"overlap": None, "overlap_of": None}
    for name in others:
        values = others[name]
        number = values.dtype.kind in "fiu" and values.nunique() > 12
        overlap = overlap_by_level(own, values, number=number)
        for row in shown:
            here = overlap.get(row["level"])
            if here is not None and (row["overlap"] is None or here < row["overlap"]):
                row |= {"overlap": float(here), "overlap_of": str(name)}


def covariance_rows(found: Evidence) -> list[dict[str, Any]]:
    """Return, for the factor whose covariances were adjusted, how far each level's is from the pooled one."""
    linear = residualizer_of(found.model)
    if linear is None or not getattr(linear, "covariance", False):
        return []
    told = []
    for term in linear.design_.terms:
        table = linear.level_table(term.name) if term.kind == "factor" and not term.preserved else {}
        if "covariance" not in table:
            continue
        order = np.argsort(-table["rows"].to_numpy(), kind="stable")[:MOST_LEVELS]
        levels = [
            {
                "level": str(table["level"].iloc[k]),
                "rows": round(table["rows"].iloc[k]),
                "before": number(table["covariance"].iloc[k]),
                "after": number(table["covariance_after"].iloc[k]),
            }
            for k in sorted(order)
        ]
        told.append({"name": term.name, "n_levels": len(table), "levels": levels})
    return told


def _levels(rows: Rows, residual: Floats, own: NDArray[Any], levels: NDArray[Any]) -> list[dict[str, Any]]:
    masks = [own == level for level in levels]
    X = np.asarray(rows.X, dtype=np.float64)
    before, after = _shifts(X, masks), _shifts(residual, masks)
    odd = _odd(before[0], LEAST_SHIFT) | _odd(np.log(np.maximum(before[1], 1e-12)), np.log(LEAST_RATIO))
    order = np.argsort([-mask.sum() for mask in masks], kind="stable")[:MOST_LEVELS]
    return [
        {
            "level": str(levels[k]),
            "rows": int(masks[k].sum()),
            "shift_before": number(before[0][k]),
            "shift_after": number(after[0][k]),
            "spread_before": number(before[1][k]),
            "spread_after": number(after[1][k]),
            "by_chance": number(1 / np.sqrt(max(masks[k].sum(), 1))),
            "odd": bool(odd[k]),
        }
        for k in sorted(order)
    ]


def _shifts(values: Floats, masks: list[NDArray[np.bool_]]) -> tuple[Floats, Floats]:
    """Return the shift and the spread of each level."""
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Mean of empty slice|Degrees of freedom", RuntimeWarning)
        means = np.array([np.nanmean(values[mask], axis=0) for mask in masks])
        spreads = np.array([np.nanstd(values[mask], axis=0) for mask in masks])
        counts = np.array([mask.sum() for mask in masks])[:, None]
        within = np.sqrt(np.nansum(counts * spreads**2, axis=0) / counts.sum())
        usable = within > 0
        if not usable.any():
            return np.zeros(len(masks)), np.ones(len(masks))
        away = (means - np.nanmean(values, axis=0))[:, usable] / within[usable]
        shift = np.sqrt(np.nanmean(away**2, axis=1))
        ratio = np.log(np.maximum(spreads[:, usable] / within[usable], 1e-3))
        return np.nan_to_num(shift), np.exp(np.nan_to_num(np.nanmean(ratio, axis=1)))


def _odd(values: Floats, least: float) -> NDArray[np.bool_]:
    if len(values) < 5:
        return np.zeros(len(values), dtype=bool)
    middle = np.median(values)
    spread = 1.4826 * np.median(np.abs(values - middle))
    return np.asarray(np.abs(values - middle) > max(ODD * spread, least))


def associations(found: Evidence) -> list[dict[str, Any]]:
    """Return one row per measure of all features together and metadata column: before, after, chance."""
    table = found.association
    if table is None:
        return []
    assert found.rows is not None
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for i in range(len(table)):
        measure = table["measure"][i]
        if table["feature"][i] != "(all)" or measure not in MEASURES:
            continue
        column = table["metadata"][i]
        held_out = measure.endswith("probe")
        row = rows.setdefault(
            (measure, column),
            {
                "measure": MEASURES[measure],
                "metadata": column,
                "held_out": held_out,
                "probe": {"linear_probe": "linear", "nonlinear_probe": "forest"}.get(measure),
                "kind": _kind(found.rows, column, table, i),
            },
        )
        stage = table["stage"][i]
        row[stage] = number(table["held_out" if held_out else "in_sample"][i])
        row[f"{stage}_p"] = number(table["held_out_p" if held_out else "in_sample_p"][i])
        row["chance"] = number(table["held_out_chance"][i]) if held_out else 0.0
    return list(rows.values())


def _kind(rows: Rows, column: str, table: Any, i: int) -> str:
    """Tell whether a column was read as groups or as a number: by chance, the area under the curve is a half."""
    chance = table["held_out_chance"][i]
    if np.isfinite(chance):
        return "groups" if chance > 0.25 else "number"
    return "number" if column in rows.metadata and rows.metadata[column].dtype.kind in "fiu" else "groups"


def certificate_of(model: Any) -> dict[str, Any] | None:
    """Return what held-out rows say of a transport; None for what has no certificate."""
    made = getattr(model, "certificate_", None)
    if made is None:
        return None
    farthest = sorted(made.uniform, key=lambda row: row["bound"] - row["distance"])
    return {
        "passed": made.passed,
        "method": made.method,
        "n_rows": int(made.n_rows),
        "n_components": int(made.n_components),
        "failures": list(made.failures),
        "probes": [dict(row) for row in made.probes],
        "price": [dict(row) for row in made.price],
        "shares": made.shares,
        "candidates": [dict(row) for row in made.candidates],
        "uniform": [dict(row) for row in farthest[:MOST_PLACES]],
        "n_uniform": len(made.uniform),
        "text": str(made),
    }


def certified_probes(model: Any) -> list[dict[str, Any]]:
    """Return the probes of a certificate as rows of the table before and after."""
    made = getattr(model, "certificate_", None)
    return [
        {
            "measure": LEARNERS[row["probe"]],
            "metadata": row["target"],
            "held_out": True,
            "probe": row["probe"],
            "kind": "groups" if row["measure"] == "AUC" else "number",
            "before": row["before"],
            "after": row["after"],
            "chance": 0.5 if row["measure"] == "AUC" else 0.0,
        }
        for row in (() if made is None else made.probes)
    ]
