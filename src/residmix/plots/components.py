"""Where do the components lie?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from residmix.plots.rows import Rows, covariances_of, features_of, means_of, residual_of, rows_of, telling_plane
from residmix.plots.style import BEFORE, DASHES, INK, PAPER, axes, colour, legend, marker, name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_components"]

Floats = NDArray[np.float64]

MOST_POINTS = 800
TOO_CLOSE = 0.06  # of the extent of the picture: numbers there overlap


def plot_components(
    model: Any,
    X: Any = None,
    *,
    metadata: Any = None,
    features: Sequence[str] | None = None,
    stage: str = "after",
    groups: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the components of a mixture in the plane of two features, or the densities of one.

    Parameters
    ----------
    model : ResidualMixture or GaussianMixture
        Fitted.
    X, metadata
        Rows to draw as well, as for its `fit`; at most 800. Default: none.
    features : one or two names, optional
        Default: the two in whose plane the two closest components lie farthest apart.
    stage : {"after", "before"}
        "after": residuals, with ellipses of the components. "before": the original features, without ellipses.
    groups : str, optional
        A column of X for the marker shapes; colours show the components. Default: shapes show the components, too.
    ax : matplotlib Axes, optional
        Default: of a new figure.

    Returns
    -------
    Axes
        Ellipses at two standard deviations, which hold 86 % of a Gaussian in the plane, with the component's number.

    Examples
    --------
    >>> import residmix as rm
    >>> from residmix.data import penguins
    >>> table = penguins()
    >>> measured = ["bill_length_mm", "bill_depth_mm", "flipper_length_mm", "body_mass_g"]
    >>> model = rm.ResidualMixture(3, formula="C(sex)", features=measured, random_state=0).fit(table)
    >>> ax = rm.plot_components(model, table)
    >>> ax.get_xlabel(), ax.get_ylabel(), len(ax.patches)
    ('bill_length_mm', 'body_mass_g', 3)
    """
    if not hasattr(model, "means_"):
        raise TypeError(f"{type(model).__name__} has no components; pass a fitted mixture")
    if stage not in ("after", "before"):
        raise ValueError(f"stage must be 'after' or 'before', not {stage!r}")
    names = features_of(model)
    means, covariances = means_of(model), covariances_of(model)
    first, second = _plane(names, features, means, covariances)
    ax = axes(ax, figsize=(4.8, 3.8))
    if X is not None:
        rows = rows_of(model, X, metadata, () if groups is None else (groups,))
        values = residual_of(model, rows) if stage == "after" else np.asarray(rows.X, dtype=float)
        labels = np.asarray(rows.call(model.predict))
        if second is None:
            ax.hist(values[:, first], bins="fd", density=True, color=BEFORE, alpha=0.45, linewidth=0)
        else:
            _points(ax, values[:, [first, second]], labels, _groups(rows, groups))
    elif stage == "before":
        raise ValueError("stage='before' needs X, the rows to draw")
    if stage == "after" and second is None:
        _densities(ax, np.asarray(model.weights_), means[:, first], covariances[:, first, first])
    elif stage == "after" and second is not None:
        plane = [first, second]
        _ellipses(ax, means[:, plane], covariances[:, plane][:, :, plane])
    ax.set_xlabel(name(names[first]))
    ax.set_ylabel("density" if second is None else name(names[second]))
    legend(ax, title=None if groups is None else name(groups))
    return ax


def _plane(
    names: Sequence[str], wanted: Sequence[str] | None, means: Floats, covariances: Floats
) -> tuple[int, int | None]:
    if wanted is None:
        return telling_plane(means, covariances)
    wanted = [wanted] if isinstance(wanted, str) else list(wanted)
    for own in wanted:
        if own not in names:
            from residmix.errors import did_you_mean

            raise ValueError(f"unknown feature {own!r}{did_you_mean(own, names)}")
    if not 1 <= len(wanted) <= 2:
        raise ValueError(f"features must be one or two names, not {len(wanted)}")
    places = [names.index(own) for own in wanted]
    return places[0], places[1] if len(places) > 1 else None


def _groups(rows: Rows, groups: str | None) -> Any:
    if groups is None:
        return None
    values = rows.metadata[groups].astype(str).to_numpy()
    return values if len(np.unique(values)) <= 8 else None


def _points(ax: Axes, values: Floats, labels: NDArray[Any], groups: Any) -> None:
    step = max(1, -(-len(values) // MOST_POINTS))
    values, labels = values[::step], labels[::step]
    groups = None if groups is None else groups[::step]
    for g, level in enumerate([None] if groups is None else np.unique(groups)):
        rows = np.ones(len(values), dtype=bool) if level is None else groups == level
        for k in np.unique(labels):
            here = rows & (labels == k)
            shape = marker(int(k)) if level is None else marker(g)
            ax.scatter(
                values[here, 0], values[here, 1], s=14, marker=shape, color=colour(int(k)), alpha=0.6, linewidths=0
            )
        if level is not None:
            ax.scatter([], [], marker=marker(g), color=BEFORE, s=20, label=name(level))


def _ellipses(ax: Axes, means: Floats, covariances: Floats) -> None:
    from matplotlib.patches import Ellipse
    from matplotlib.patheffects import withStroke

    for k, (mean, covariance) in enumerate(zip(means, covariances, strict=True)):
        lengths, directions = np.linalg.eigh(covariance)
        angle = float(np.degrees(np.arctan2(directions[1, 1], directions[0, 1])))
        width, height = 4 * np.sqrt(np.maximum(lengths[::-1], 0))
        ax.add_patch(
            Ellipse((float(mean[0]), float(mean[1])), float(width), float(height), angle=angle, fill=False,
                    edgecolor=colour(k), linewidth=1.8, linestyle=DASHES[k % len(DASHES)])
        )  # fmt: skip
        # numbers at means that lie together would hide each other: then each is on its own ellipse
        turn = 2 * np.pi * (0.25 + k / len(means))
        rim = 2 * np.sqrt(np.maximum(lengths, 0)) * (np.sin(turn), np.cos(turn)) @ directions.T
        place = mean + rim if _together(means, covariances) else mean
        ax.annotate(str(k), (float(place[0]), float(place[1])), ha="center", va="center", fontsize=10, weight="bold",
                    color=INK, path_effects=[withStroke(linewidth=3, foreground=PAPER, alpha=0.8)])  # fmt: skip
    ax.autoscale_view()


def _together(means: Floats, covariances: Floats) -> bool:
    """Tell whether two means are so close, beside the extent of all ellipses, that numbers there would overlap."""
    reach = 2 * np.sqrt(np.diagonal(covariances, axis1=1, axis2=2))
    extent = (means + reach).max(axis=0) - (means - reach).min(axis=0)
    scaled = means / np.where(extent > 0, extent, 1)
    apart = np.linalg.norm(scaled[:, None] - scaled[None], axis=2)
    return bool((apart[~np.eye(len(means), dtype=bool)] < TOO_CLOSE).any())


def _densities(ax: Axes, weights: Floats, means: Floats, variances: Floats) -> None:
    sd = np.sqrt(np.maximum(variances, 1e-300))
    grid = np.linspace((means - 4 * sd).min(), (means + 4 * sd).max(), 400)
    parts = weights[:, None] * np.exp(-0.5 * ((grid - means[:, None]) / sd[:, None]) ** 2) / sd[:, None]
    parts /= np.sqrt(2 * np.pi)
    for k, part in enumerate(parts):
        ax.plot(grid, part, color=colour(k), linestyle=DASHES[k % len(DASHES)], linewidth=1.5, label=f"component {k}")
    ax.plot(grid, parts.sum(axis=0), color=INK, linewidth=1.1, label="all")
