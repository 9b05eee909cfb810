"""What was gathered about a fitted model -> a plain dict of JSON values. No layout, no pictures."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np

from residmix.persistence.about import settings_of
from residmix.plots.rows import family_of, residualizer_of
from residmix.report.gather import Evidence
from residmix.report.methods import methods
from residmix.report.mixture import (
    agreement,
    component_order,
    component_rows,
    fit_quality,
    group_spread_rows,
    own_effect_rows,
    selection_rows,
    set_aside_rows,
)
from residmix.report.tables import (
    associations,
    certificate_of,
    certified_probes,
    covariance_rows,
    explained_by_feature,
    level_rows,
    term_rows,
    top_effects,
)
from residmix.report.verdict import alerts, verdict

__all__ = ["SCHEMA", "summarise"]

SCHEMA = 2


def summarise(found: Evidence) -> dict[str, Any]:
    """Return a report as JSON values; ``schema`` is the version of its form, which ``report/schema.json`` describes.

    Parameters
    ----------
    found : Evidence
        Of :func:`residmix.report.gather.gather`.
    """
    import residmix

    model, rows = found.model, found.rows
    linear = residualizer_of(model)
    features = explained_by_feature(found)
    shares = [row["explained"] for row in features if row.get("explained") is not None]
    columns = {} if rows is None or found.labels is None else {name: rows.metadata[name] for name in rows.metadata}
    order = component_order(model) if hasattr(model, "weights_") else np.arange(0)
    summary: dict[str, Any] = {
        "schema": SCHEMA,
        "model": type(model).__name__,
        "settings": settings_of(model),
        "n_rows": _n_rows(found),
        "n_shown": 0 if rows is None else len(rows.X),
        "feature_names": list(found.features),
        "formula": getattr(model, "formula", None),
        "preserve": getattr(model, "preserve", None),
        "metadata_columns": list(found.removed),
        "preserved_columns": list(found.preserved),
        "design_columns": [str(name) for name in getattr(linear, "design_columns_", ())],
        "estimation": getattr(model, "estimation", None),
        "gating": getattr(model, "gating", None),
        "covariance_type": family_of(model) if hasattr(model, "covariance_type") else None,
        "features": features,
        "explained": float(np.mean(shares)) if shares else 0.0,
        "terms": term_rows(found),
        "effects": top_effects(found),
        "levels": level_rows(found),
        "covariances": covariance_rows(found),
        "association": associations(found) or certified_probes(model),
        "certificate": certificate_of(model),
        "components": component_rows(found),
        "effects_by_component": own_effect_rows(model),
        "spreads_by_group": group_spread_rows(model),
        "set_aside": set_aside_rows(model),
        "selection": selection_rows(model),
        "fit": fit_quality(found),
        "metadata": [
            agreement(name, columns[name], found.labels, order)
            for name in columns
            if found.labels is not None and name != found.reference and name in (*found.removed, *found.preserved)
        ],
        "reference": None
        if found.reference is None or found.labels is None
        else agreement(found.reference, columns[found.reference], found.labels, order),
        "confounding": found.confounding,
        "notes": found.notes,
        "versions": {
            "residmix": residmix.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "command": found.command,
        "model_checksum": found.model_checksum,
    }
    summary["alerts"] = alerts(summary)
    summary["verdict"] = verdict(summary)
    summary["methods"] = methods(summary)
    return summary


def _n_rows(found: Evidence) -> int:
    """Return how many rows there are to describe; of a model alone, how many it was fitted on."""
    if found.rows is not None:
        return found.rows.n_rows
    linear = residualizer_of(found.model)
    count = getattr(getattr(linear, "fit_", None), "count", None)
    return 0 if count is None else int(np.max(count, initial=0))
