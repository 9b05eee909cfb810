"""A mixture's parameters, as a page of text and as a table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from residmix.plots.rows import family_of, features_of, means_of, variances_of
from residmix.report.mixture import component_order
from residmix.surfaces import Summary

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["mixture_table", "mixture_text"]

MOST_FEATURES = 12
COLUMNS = ["parameter", "component", "feature", "feature_2", "estimate", "std_error"]


def mixture_text(model: Any) -> Summary:
    """Return a text with weights, means and standard deviations of the components, and how the fit ended."""
    from sklearn.utils.validation import check_is_fitted

    check_is_fitted(model, "means_")
    names = features_of(model)
    spread = np.sqrt(np.maximum(variances_of(model), 0.0))
    K, d = model.means_.shape
    formula = getattr(model, "formula", None)
    lines = [
        f"{type(model).__name__} of {d} feature{'' if d == 1 else 's'}: {K} component{'' if K == 1 else 's'}, "
        f"{family_of(model)} covariance" + (f", {formula} removed" if formula else ""),
        _ended(model),
        "",
    ]
    order = component_order(model)
    cells = [["component", *map(str, order)], ["weight", *(f"{model.weights_[k]:.3f}" for k in order)]]
    means = means_of(model)
    cells += [
        [names[j], *(f"{means[k, j]:.4g} ± {spread[k, j]:.3g}" for k in order)] for j in range(min(d, MOST_FEATURES))
    ]
    widths = [max(len(row[place]) for row in cells) for place in range(K + 1)]
    lines += [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in cells
    ]
    if d > MOST_FEATURES:
        lines.append(f"... and {d - MOST_FEATURES} more features")
    lines += [f"note: {note['message']}" for note in getattr(model, "notes_", ())]
    return Summary("\n".join(lines))


def _ended(model: Any) -> str:
    if not hasattr(model, "lower_bound_"):
        return "made from parameters"
    return (
        f"log-likelihood per row {model.lower_bound_:.6g}, "
        f"{int(model.n_iter_)} iteration{'' if model.n_iter_ == 1 else 's'}, "
        + ("converged" if model.converged_ else "not converged")
    )


def mixture_table(model: Any) -> pd.DataFrame:
    """Return weights, means and covariances (each pair of features once), with their standard errors where known."""
    import pandas as pd
    from sklearn.utils.validation import check_is_fitted

    check_is_fitted(model, "means_")
    names, (K, d) = features_of(model), model.means_.shape
    errors = getattr(model, "standard_errors_", {})

    def number(parameter: str, index: tuple[int, ...] = ()) -> tuple[float, float]:
        known = errors.get(parameter)
        value = np.asarray(getattr(model, f"{parameter}_"))[index]
        return float(value), float("nan") if known is None else float(np.asarray(known)[index])

    rows: list[tuple[Any, ...]] = [("weight", k, None, None, *number("weights", (k,))) for k in range(K)]
    rows += [("mean", k, names[j], None, *number("means", (k, j))) for k in range(K) for j in range(d)]
    for index, k, pair in _entries(np.asarray(model.covariances_), family_of(model)):
        first, second = (None, None) if pair is None else (names[pair[0]], names[pair[1]])
        rows.append(("covariance", k, first, second, *number("covariances", index)))
    if getattr(model, "noise_weight_", None) is not None:
        rows.append(("noise_weight", None, None, None, *number("noise_weight")))
    if getattr(model, "dof_", None) is not None:
        rows += [("dof", k, None, None, *number("dof", (k,))) for k in range(K)]
    table = pd.DataFrame(rows, columns=COLUMNS)
    return table.astype({"component": "Int64", "feature": object, "feature_2": object})


def _entries(
    covariances: NDArray[np.float64], name: str
) -> Iterator[tuple[tuple[int, ...], int | None, tuple[int, int] | None]]:
    """Return of each number of a covariance: where it stands, its component and its features; None is for all."""
    for index in np.ndindex(covariances.shape):
        if covariances.ndim == 3 and index[1] <= index[2]:
            yield index, index[0], (index[1], index[2])
        elif covariances.ndim == 2 and name in ("tied", "EEE"):
            if index[0] <= index[1]:
                yield index, None, (index[0], index[1])
        elif covariances.ndim == 2:
            yield index, index[0], (index[1], index[1])
        elif covariances.ndim == 1:
            yield index, index[0], None
