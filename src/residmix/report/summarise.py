"""A fitted mixture and the rows it describes -> a plain dict of JSON values. No layout, no pictures."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["component_order", "summarise"]

SCHEMA = 1


def summarise(
    model: Any,
    X: NDArray[Any],
    residual: NDArray[Any],
    labels: NDArray[np.integer[Any]],
    *,
    feature_names: Sequence[str],
    metadata: dict[str, NDArray[Any]] | None = None,
    reference: tuple[str, NDArray[Any]] | None = None,
    association: Any = None,
    n_rows: int | None = None,
    command: str | None = None,
) -> dict[str, Any]:
    """Describe what the metadata explained, which components were found and what they agree with.

    Parameters
    ----------
    model : ResidualMixture
        Fitted.
    X, residual : ndarray (n, d)
        Rows to describe the model on (all, or a sample of a large file), before and after residualization.
    labels : ndarray (n,)
        Component of each row.
    feature_names : sequence of str
    metadata : dict of column name -> ndarray (n,), optional
        To show what the components have to do with it.
    reference : (name, ndarray (n,)), optional
        A known grouping to compare the components with, such as the species.
    association : Association, optional
        What :func:`residmix.association` measured before and after.
    n_rows : int, optional
        Rows the model was fitted on, if more than are given here.
    command : str, optional
        How to make this again.

    Returns
    -------
    dict
        JSON values only. ``schema`` is the version of its form.
    """
    import residmix

    order = component_order(model)
    shown = np.argsort(order)[labels]
    explained = _explained(X, residual, feature_names)
    residualizer = model.residualizer_
    summary: dict[str, Any] = {
        "schema": SCHEMA,
        "n_rows": int(n_rows if n_rows is not None else len(X)),
        "n_shown": len(X),
        "feature_names": list(feature_names),
        "formula": model.formula,
        "design_columns": [str(name) for name in getattr(residualizer, "design_columns_", ())],
        "estimation": model.estimation,
        "gating": model.gating,
        "covariance_type": model.covariance_type,
        "features": explained,
        "explained": float(np.mean([row["explained"] for row in explained])) if explained else 0.0,
        "components": _components(model, residual, shown, order),
        "fit": {
            "log_likelihood_per_row": float(model.lower_bound_),
            "n_iter": int(model.n_iter_),
            "converged": bool(model.converged_),
        },
        "metadata": [_agreement(name, values, shown) for name, values in (metadata or {}).items()],
        "reference": None if reference is None else _agreement(reference[0], reference[1], shown),
        "association": [] if association is None else _association(association),
        "versions": {
            "residmix": residmix.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "command": command,
    }
    summary["alerts"] = _alerts(summary)
    return summary


def component_order(model: Any) -> NDArray[np.integer[Any]]:
    """Return the components from the heaviest to the lightest: how reports number and colour them."""
    return np.argsort(-np.asarray(model.weights_), kind="stable")


def _explained(X: NDArray[Any], residual: NDArray[Any], names: Sequence[str]) -> list[dict[str, Any]]:
    before, after = np.var(X, axis=0, dtype=np.float64), np.var(residual, axis=0, dtype=np.float64)
    share = np.where(before > 0, 1 - after / np.where(before > 0, before, 1), 0.0)
    return [
        {
            "name": str(name),
            "mean": float(X[:, j].mean(dtype=np.float64)),
            "sd_before": float(np.sqrt(before[j])),
            "sd_after": float(np.sqrt(after[j])),
            "explained": float(share[j]),
        }
        for j, name in enumerate(names)
    ]


def _components(
    model: Any, residual: NDArray[Any], shown: NDArray[np.integer[Any]], order: NDArray[np.integer[Any]]
) -> list[dict[str, Any]]:
    return [
        {
            "number": place + 1,
            "weight": float(model.weights_[k]),
            "rows": int((shown == place).sum()),
            "mean": [float(value) for value in model.means_[k]],
            "sd": [
                float(value)
                for value in (
                    residual[shown == place].std(axis=0, dtype=np.float64)
                    if (shown == place).any()
                    else np.full(residual.shape[1], np.nan)
                )
            ],
        }
        for place, k in enumerate(order)
    ]


def _agreement(name: str, values: NDArray[Any], shown: NDArray[np.integer[Any]]) -> dict[str, Any]:
    """Compare a column with the components: few values as groups, many numbers by the share of variance."""
    from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score

    values = np.asarray(values)
    numbers = values.dtype.kind in "fiu"
    levels, codes = np.unique(values if numbers else values.astype(str), return_inverse=True)
    if numbers and len(levels) > 12:
        total = ((values - values.mean()) ** 2).sum()
        within = sum(((values[shown == k] - values[shown == k].mean()) ** 2).sum() for k in np.unique(shown))
        return {"name": name, "kind": "number", "eta2": float(1 - within / total) if total > 0 else 0.0}
    table = np.zeros((len(levels), int(shown.max()) + 1), dtype=int)
    np.add.at(table, (codes, shown), 1)
    return {
        "name": name,
        "kind": "groups",
        "levels": [str(level) for level in levels[:50]],
        "table": table[:50].tolist(),
        "ari": float(adjusted_rand_score(codes, shown)),
        "ami": float(adjusted_mutual_info_score(codes, shown)),
    }


SHOWN_MEASURES = {
    "distance_correlation": "distance correlation, squared (sees dependence of any form)",
    "linear_probe": "linear probe, held out",
    "nonlinear_probe": "random forest, held out",
    "component_information": "components, adjusted mutual information",
}


def _association(table: Any) -> list[dict[str, Any]]:
    """Return one row per measure of all features together and metadata column: before, after, chance."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for i in range(len(table)):
        measure = table["measure"][i]
        if table["feature"][i] != "(all)" or measure not in SHOWN_MEASURES:
            continue
        column = table["metadata"][i]
        row = rows.setdefault((measure, column), {"measure": SHOWN_MEASURES[measure], "metadata": column})
        held_out = measure.endswith("probe")
        stage = table["stage"][i]
        row[stage] = _number(table["held_out" if held_out else "in_sample"][i])
        row[f"{stage}_p"] = _number(table["held_out_p" if held_out else "in_sample_p"][i])
        row["chance"] = _number(table["held_out_chance"][i]) if held_out else 0.0
    return list(rows.values())


def _number(value: Any) -> float | None:
    """Return a float, or None for the NaN that JSON doesn't know."""
    return None if value != value else float(value)


def _alerts(summary: dict[str, Any]) -> list[str]:
    alerts = []
    if not summary["fit"]["converged"]:
        alerts.append(
            f"The fit stopped after {summary['fit']['n_iter']} iterations without converging: raise max_iter or tol."
        )
    for component in summary["components"]:
        rows, d = component["weight"] * summary["n_rows"], len(summary["feature_names"])
        if rows < d + 1:
            alerts.append(
                f"Component {component['number']} has about {rows:.1f} rows, too few for a covariance of {d} features: "
                "try fewer components."
            )
    for column in summary["metadata"]:
        if column["kind"] == "groups" and column["ami"] > 0.2:
            alerts.append(
                f"The components still follow {column['name']} (adjusted mutual information {column['ami']:.2f}): "
                "its effect may not be additive, or its levels differ in what they are made of; "
                'try estimation="joint" with gating="metadata".'
            )
    return alerts
