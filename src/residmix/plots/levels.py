"""Do the levels of a column still differ?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from residmix.plots.rows import features_of, metadata_of, residual_of, residualizer_of, rows_of
from residmix.plots.style import AFTER, BEFORE, INK, axes, caption, legend, name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["feature_place", "metadata_column", "plot_levels"]

MOST_LEVELS = 25


def plot_levels(
    model: Any,
    X: Any,
    column: str | None = None,
    *,
    feature: str | None = None,
    metadata: Any = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw mean and spread of a feature in every level of a metadata column, before and after.

    Parameters
    ----------
    model : Residualizer or ResidualMixture
        Fitted.
    X, metadata
        Rows, as for its `fit`; at most 5,000 are looked at.
    column : str, optional
        Default: the first metadata column that has levels.
    feature : str, optional
        Default: the one that the metadata explain most.
    ax : matplotlib Axes, optional
        Default: of a new figure.

    Returns
    -------
    Axes
        One line per level, from one standard deviation below its mean to one above: grey and hollow before, blue and
        filled after. Both are centred at the mean of all rows. With more than 25 levels, the largest are shown.

    Examples
    --------
    >>> import residmix as rm
    >>> from residmix.data import penguins
    >>> table = penguins()
    >>> model = rm.Residualizer("C(island)", features=["body_mass_g", "bill_depth_mm"]).fit(table)
    >>> ax = rm.plot_levels(model, table)
    >>> ax.get_xlabel(), [label.get_text() for label in ax.get_yticklabels()]
    ('bill_depth_mm, about its mean', ['Biscoe (163)', 'Dream (123)', 'Torgersen (47)'])
    """
    rows = rows_of(model, X, metadata)
    column = metadata_column(model, rows.metadata, column, with_levels=True)
    j = feature_place(model, feature)
    before = np.asarray(rows.X[:, j], dtype=float)
    before, after = before - np.nanmean(before), residual_of(model, rows)[:, j]
    values = rows.metadata[column]
    own = np.asarray(values if values.dtype.kind in "fiu" else values.astype(str))
    levels, counts = np.unique(own[np.asarray(values.notna())], return_counts=True)
    kept = np.sort(np.argsort(-counts, kind="stable")[:MOST_LEVELS])
    ax = axes(ax, figsize=(4.8, 1.2 + 0.34 * len(kept)))
    for place, k in enumerate(kept):
        here = own == levels[k]
        for shift, stage, tint, fill in ((-0.14, before, BEFORE, "none"), (0.14, after, AFTER, "full")):
            middle, spread = np.nanmean(stage[here]), np.nanstd(stage[here])
            ax.plot([middle - spread, middle + spread], [place + shift] * 2, color=tint, linewidth=2.2)
            ax.plot(middle, place + shift, "o", color=tint if fill == "full" else INK, fillstyle=fill, markersize=5.5,
                    label=None if place else ("after" if fill == "full" else "before"))  # fmt: skip
    ax.axvline(0, color=INK, linewidth=0.8, linestyle=":")
    ax.set_yticks(range(len(kept)), [f"{name(levels[k], 22)} ({counts[k]:,})" for k in kept])
    ax.set_ylim(len(kept) - 0.5, -0.5)
    ax.set_xlabel(f"{name(features_of(model)[j])}, about its mean")
    ax.grid(axis="y", visible=False)
    if len(kept) < len(levels):
        caption(ax, f"{len(kept)} largest of {len(levels)} levels of {name(column)}")
    legend(ax, title=None if len(kept) < len(levels) else name(column))
    return ax


def metadata_column(model: Any, metadata: Any, wanted: str | None, *, with_levels: bool = False) -> str:
    """Return the column named `wanted`, or the first one."""
    from residmix.errors import did_you_mean

    known = [str(column) for column in metadata]
    if wanted is not None:
        if wanted not in known:
            raise ValueError(f"unknown metadata column {wanted!r}{did_you_mean(wanted, known)}")
        return wanted
    removed, _ = metadata_of(model)
    ranked = [own for own in (*removed, *known) if own in known]
    if not ranked:
        raise ValueError("the model has no metadata; pass one that was fitted with metadata")
    few = [own for own in ranked if metadata[own].dtype.kind not in "fiu" or metadata[own].nunique() <= 12]
    return few[0] if with_levels and few else ranked[0]


def feature_place(model: Any, wanted: str | None) -> int:
    """Return the index of the feature named `wanted`, or of the one that the metadata explain most."""
    from residmix.errors import did_you_mean

    names = features_of(model)
    if wanted is None:
        linear = residualizer_of(model)
        return 0 if linear is None else int(np.argmax(np.nan_to_num(linear.r2_)))
    if wanted not in names:
        raise ValueError(f"unknown feature {wanted!r}{did_you_mean(wanted, names)}")
    return names.index(wanted)
