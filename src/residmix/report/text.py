"""A mixture as a page of text."""

from __future__ import annotations

from typing import Any

import numpy as np

from residmix.plots.rows import covariances_of, family_of, features_of, means_of
from residmix.report.mixture import component_order
from residmix.surfaces import Summary

__all__ = ["mixture_text"]

MOST_FEATURES = 12


def mixture_text(model: Any) -> Summary:
    """Return components with weights, means and standard deviations, the heaviest first, and how the fit ended."""
    from sklearn.utils.validation import check_is_fitted

    check_is_fitted(model, "means_")
    names = features_of(model)
    spread = np.sqrt(np.maximum(np.diagonal(covariances_of(model), axis1=1, axis2=2), 0.0))
    K, d = model.means_.shape
    formula = getattr(model, "formula", None)
    lines = [
        f"{type(model).__name__} of {d} feature{'' if d == 1 else 's'}: {K} component{'' if K == 1 else 's'}, "
        f"{family_of(model)} covariance" + (f", {formula} taken out" if formula else ""),
        f"log-likelihood per row {model.lower_bound_:.6g}, {int(model.n_iter_)} iterations, "
        + ("converged" if model.converged_ else "not converged"),
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
