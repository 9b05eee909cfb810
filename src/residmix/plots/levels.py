"""Do the levels of a column still differ?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from residmix.plots.rows import features_of, group_spreads_of, metadata_of, residual_of, residualizer_of, rows_of
from residmix.plots.style import ABOVE, AFTER, BEFORE, INK, axes, caption, colour, legend, marker, name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["feature_place", "metadata_column", "plot_levels"]

MOST_LEVELS = 25


def plot_levels(
    model: Any,
    X: Any = None,
    column: str | None = None,
    *,
    feature: str | None = None,
    show: str = "feature",
    metadata: Any = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw mean and spread of a feature in every level of a metadata column, before and after; or its covariances.

    Parameters
    ----------
    model : Residualizer or ResidualMixture
        Fitted.
    X, metadata
        Rows, as for its `fit`; at most 5,000 are looked at. None are needed for covariances and components.
    column : str, optional
        Default: the first metadata column that has levels.
    feature : str, optional
        Default: the one that the metadata explain most; of components the one whose spreads differ most.
    show : {"feature", "covariance", "components"}, default "feature"
        "covariance", of a Residualizer with ``covariance=``: how far the covariance of each level lies from the pooled
        one, before and after, over all features (:meth:`residmix.Residualizer.level_table`). "components", of a
        ResidualMixture with ``covariance_by=``: how wide each component is at each level, as a multiple of its average.
    ax : matplotlib Axes, optional
        Default: of a new figure.

    Returns
    -------
    Axes
        One line per level, from one standard deviation below its mean to one above: grey and hollow before, blue and
        filled after. Both are centred at the mean of all rows. With more than 25 levels, the largest are shown.

    Raises
    ------
    ValueError
        For an unknown column or feature, or covariances that the model doesn't adjust.

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
    if show not in ("feature", "covariance", "components"):
        raise ValueError(f"show must be 'feature', 'covariance' or 'components', not {show!r}")
    if show == "covariance":
        return _distances(model, column, ax)
    if show == "components":
        return _spreads(model, column, feature, ax)
    if X is None:
        raise ValueError(
            "plot_levels needs the rows, X, to show a feature; without rows it can show='covariance' or 'components'"
        )
    rows = rows_of(model, X, metadata)
    column = metadata_column(model, rows.metadata, column, with_levels=True)
    j = feature_place(model, feature)
    before = np.asarray(rows.X[:, j], dtype=float)
    after = residual_of(model, rows)[:, j]  # of an eraser with its mean
    before, after = before - np.nanmean(before), after - np.nanmean(after)
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
    legend(ax, title=None if len(kept) < len(levels) else name(column), **ABOVE)
    return ax


def _distances(model: Any, column: str | None, ax: Axes | None) -> Axes:
    """Draw the distance of each level's covariance from the pooled one, before and after."""
    linear = residualizer_of(model)
    if linear is None or not getattr(linear, "covariance", False):
        raise ValueError("show='covariance' needs a Residualizer with covariance=; set it, or leave show= out")
    factors = [own for own in linear.design_.terms if own.kind == "factor" and not own.preserved]
    tables = [(own, linear.level_table(own.name)) for own in factors]
    ((term, table),) = [(own, table) for own, table in tables if "covariance" in table]
    if column not in (None, term.name, *term.variables):
        raise ValueError(f"the covariances adjusted are those of {term.name!r}, not of {column!r}")
    kept = table.iloc[np.sort(np.argsort(-table["rows"].to_numpy(), kind="stable")[:MOST_LEVELS])]
    ax = axes(ax, figsize=(4.8, 1.2 + 0.34 * len(kept)))
    for place, (before, after) in enumerate(zip(kept["covariance"], kept["covariance_after"], strict=True)):
        ax.plot([before, after], [place] * 2, color=BEFORE, linewidth=1.4, zorder=1)
        ax.plot(before, place, "o", color=INK, fillstyle="none", markersize=5.5, label=None if place else "before")
        ax.plot(after, place, "o", color=AFTER, markersize=5.5, label=None if place else "after")
    ax.set_yticks(
        range(len(kept)),
        [f"{name(own, 22)} ({rows:,.0f})" for own, rows in zip(kept["level"], kept["rows"], strict=True)],
    )
    ax.set_ylim(len(kept) - 0.5, -0.5)
    ax.set_xlim(left=0)
    ax.set_xlabel("covariance's distance from the pooled one, nats per direction")
    ax.grid(axis="y", visible=False)
    if len(kept) < len(table):
        caption(ax, f"{len(kept)} largest of {len(table)} levels of {name(term.name)}")
    legend(ax, title=None if len(kept) < len(table) else name(term.name), **ABOVE)
    return ax


def _spreads(model: Any, column: str | None, feature: str | None, ax: Axes | None) -> Axes:
    """Draw the standard deviation of a feature in each component and group of levels, over the component's average."""
    if not hasattr(model, "groups_"):
        raise ValueError(
            "show='components' needs a ResidualMixture with covariance_by=; set it and fit, or leave show= out"
        )
    if column not in (None, model.covariance_by):
        raise ValueError(f"the covariances differ by {model.covariance_by!r}, not by {column!r}")
    ratios = group_spreads_of(model)
    j = int(np.ptp(np.log(ratios), axis=0).max(axis=0).argmax()) if feature is None else feature_place(model, feature)
    shown, K = ratios[:MOST_LEVELS, :, j], ratios.shape[1]
    ax = axes(ax, figsize=(4.8, 1.2 + 0.34 * len(shown)))
    for k in range(K):
        places = np.arange(len(shown)) + 0.5 * ((k + 0.5) / K - 0.5)
        ax.plot(shown[:, k], places, marker(k), color=colour(k), markersize=5.5, label=f"component {k}")
    ax.axvline(1, color=INK, linewidth=0.8, linestyle=":")
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter("{x:.3g}")
    ax.set_yticks(range(len(shown)), [_together(levels) for levels in model.groups_[:MOST_LEVELS]])
    ax.set_ylim(len(shown) - 0.5, -0.5)
    ax.set_xlabel(f"{name(features_of(model)[j])}: spread over the component's average")
    ax.grid(axis="y", visible=False)
    if len(shown) < len(ratios):
        caption(ax, f"the first {len(shown)} of {len(ratios)} groups of {name(model.covariance_by)}")
    legend(ax)
    return ax


def _together(levels: list[str]) -> str:
    """Return the name of levels that share their covariances."""
    first = name(levels[0], 22)
    return first if len(levels) == 1 else f"{first} and {len(levels) - 1} more"


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
