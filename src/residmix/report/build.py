"""From a fitted mixture and rows to the page: summary, pictures, HTML."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from residmix.mixture.families.family import family
from residmix.report.html import render
from residmix.report.plots import explained_bars, figure_svg, scatter_before_after
from residmix.report.summarise import component_order, summarise

__all__ = ["build_report"]


def build_report(
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
) -> tuple[dict[str, Any], str]:
    """Return the summary dict of :func:`~residmix.report.summarise.summarise` and the HTML page made from it."""
    summary = summarise(
        model,
        X,
        residual,
        labels,
        feature_names=feature_names,
        metadata=metadata,
        reference=reference,
        association=association,
        n_rows=n_rows,
        command=command,
    )
    order = component_order(model)
    covariances = family(model.covariance_type).full(model.covariances_, *model.means_.shape)[order]
    shown = np.argsort(order)[labels]
    few = reference or next(iter((metadata or {}).items()), None)
    scatter = scatter_before_after(X, residual, shown, np.asarray(model.means_)[order], covariances, feature_names, few)
    pictures = {
        "scatter": figure_svg(scatter),
        "explained": figure_svg(explained_bars(summary["features"])),
    }
    return summary, render(summary, pictures)
