"""Do residuals still depend on the metadata?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from residmix.plots.levels import MOST_LEVELS, feature_place, metadata_column
from residmix.plots.rows import features_of, residual_of, rows_of
from residmix.plots.style import AFTER, BEFORE, INK, axes, caption, name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_residuals_vs_metadata"]

MOST_POINTS = 800
BINS = 12


def plot_residuals_vs_metadata(
    model: Any,
    X: Any,
    column: str | None = None,
    *,
    feature: str | None = None,
    metadata: Any = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the residuals of a feature against a metadata column, to show remaining curvature or changes in spread.

    Parameters
    ----------
    model : Residualizer or ResidualMixture
        Fitted.
    X, metadata
        Rows, as for its `fit`; at most 5,000 are looked at and 800 drawn.
    column : str, optional
        Default: the first metadata column.
    feature : str, optional
        Default: the one that the metadata explain most.
    ax : matplotlib Axes, optional
        Default: of a new figure.

    Returns
    -------
    Axes
        For numbers, points and the mean in 12 equally filled bins, with two standard errors; for groups, boxes.

    Examples
    --------
    >>> import residmix as rm
    >>> from residmix.data import penguins
    >>> table = penguins()
    >>> model = rm.Residualizer("bill_depth_mm", features=["body_mass_g"]).fit(table)
    >>> ax = rm.plot_residuals_vs_metadata(model, table)
    >>> ax.get_xlabel(), ax.get_ylabel()
    ('bill_depth_mm', 'residual of body_mass_g')
    """
    rows = rows_of(model, X, metadata)
    column = metadata_column(model, rows.metadata, column)
    j = feature_place(model, feature)
    residual = residual_of(model, rows)[:, j]
    values = rows.metadata[column]
    ax = axes(ax, figsize=(4.8, 3.4))
    if values.dtype.kind in "fiu" and values.nunique() > 12:
        _trend(ax, np.asarray(values, dtype=float), residual)
        ax.set_xlabel(name(column))
    else:
        _boxes(ax, values, residual, column)
    ax.axhline(0, color=INK, linewidth=0.8, linestyle=":")
    ax.set_ylabel(f"residual of {name(features_of(model)[j])}")
    return ax


def _trend(ax: Axes, values: Any, residual: Any) -> None:
    known = np.isfinite(values) & np.isfinite(residual)
    values, residual = values[known], residual[known]
    step = max(1, -(-len(values) // MOST_POINTS))
    ax.plot(values[::step], residual[::step], "o", color=BEFORE, alpha=0.45, markersize=3, markeredgewidth=0)
    order = np.argsort(values, kind="stable")
    bins = [part for part in np.array_split(order, min(BINS, max(1, len(order) // 5))) if len(part)]
    centres = [values[part].mean() for part in bins]
    means = [residual[part].mean() for part in bins]
    errors = [2 * residual[part].std() / np.sqrt(len(part)) for part in bins]
    ax.errorbar(centres, means, errors, color=AFTER, marker="o", markersize=5, linewidth=1.6, capsize=2.5)


def _boxes(ax: Axes, values: Any, residual: Any, column: str) -> None:
    own = np.asarray(values if values.dtype.kind in "fiu" else values.astype(str))
    known = np.asarray(values.notna()) & np.isfinite(residual)
    levels, counts = np.unique(own[known], return_counts=True)
    kept = np.sort(np.argsort(-counts, kind="stable")[:MOST_LEVELS])
    drawn = ax.boxplot([residual[known & (own == levels[k])] for k in kept], widths=0.55, patch_artist=True)
    for box in drawn["boxes"]:
        box.set(facecolor=AFTER, alpha=0.3, edgecolor=AFTER)
    for part in ("whiskers", "caps", "medians"):
        for line in drawn[part]:
            line.set_color(INK)
    for points in drawn["fliers"]:
        points.set(markersize=2.5, markeredgecolor=BEFORE)
    long = max(len(str(levels[k])) for k in kept) * len(kept) > 50
    ax.set_xticks(range(1, len(kept) + 1), [name(levels[k], 18) for k in kept], rotation=90 if long else 0)
    ax.set_xlabel(name(column))
    if len(kept) < len(levels):
        caption(ax, f"{len(kept)} largest of {len(levels)} levels")
