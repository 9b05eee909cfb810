"""Is the density calibrated?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from residmix.plots.rows import Rows, features_of, rows_of, transformer_of, variances_of
from residmix.plots.style import AFTER, INK, axes, caption, name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["pit_values", "plot_pit"]

BINS = 20


def plot_pit(model: Any, X: Any, *, metadata: Any = None, feature: str | None = None, ax: Axes | None = None) -> Axes:
    r"""Draw the histogram of :math:`F(x_j \mid m)`, which is flat if the mixture describes a feature correctly.

    A peak in the middle means that the model is too wide, peaks at the ends that it is too narrow, a slope that it is
    biased (Dawid 1984).

    Parameters
    ----------
    model : ResidualMixture or GaussianMixture
        Fitted.
    X, metadata
        Rows, as for its `fit`; at most 5,000 are used, preferably held-out rows.
    feature : str, optional
        Default: all of them, pooled.
    ax : matplotlib Axes, optional
        Default: of a new figure.

    Returns
    -------
    Axes
        With the band that contains 95 % of the bars if the rows are independent and the model is correct.

    Examples
    --------
    >>> import numpy as np, residmix as rm
    >>> X = np.random.default_rng(0).normal(size=(500, 1))
    >>> ax = rm.plot_pit(rm.GaussianMixture(1).fit(X), X)
    >>> len(ax.patches)
    20
    """
    if not hasattr(model, "means_"):
        raise TypeError(f"{type(model).__name__} has no density; pass a fitted mixture")
    if getattr(model, "distribution", "gaussian") != "gaussian" or getattr(model, "noise", False):
        raise ValueError("plot_pit needs Gaussian components without noise; compare other mixtures with score_samples")
    rows = rows_of(model, X, metadata)
    values = pit_values(model, rows)
    names = features_of(model)
    if feature is not None:
        from residmix.plots.levels import feature_place

        values = values[:, [feature_place(model, feature)]]
    known = values[np.isfinite(values)]
    ax = axes(ax, figsize=(4.6, 3.2))
    counts, edges = np.histogram(known, BINS, (0.0, 1.0))
    density = counts * BINS / max(len(known), 1)
    ax.bar(edges[:-1], density, 1 / BINS, align="edge", color=AFTER, alpha=0.65, edgecolor="white", linewidth=0.6)
    reach = 1.96 * np.sqrt((BINS - 1) / max(len(values), 1))
    ax.axhline(1, color=INK, linewidth=1)
    ax.fill_between([0, 1], 1 - reach, 1 + reach, color=INK, alpha=0.12, linewidth=0, zorder=0)
    ax.set_xlim(0, 1)
    ax.set_xlabel("F(x | m)")
    ax.set_ylabel("density")
    told = name(feature) if feature is not None else name(names[0]) if len(names) == 1 else f"{len(names)} features"
    caption(ax, f"{told}, {len(values):,} rows")
    return ax


def pit_values(model: Any, rows: Rows) -> NDArray[np.float64]:
    """Return :math:`F_j(x_j | m)`, (n, d): uniform if the mixture describes each feature correctly."""
    from scipy.special import ndtr

    if transformer_of(model) is not None:  # gates, effects by component and covariances by level count as well
        return np.asarray(rows.call(model.centiles) / 100.0)
    values, spread = np.asarray(rows.X, dtype=np.float64), np.sqrt(np.maximum(variances_of(model), 1e-300))
    below = np.zeros(values.shape)
    for weight, mean, own in zip(model.weights_, model.means_, spread, strict=True):
        below += weight * ndtr((values - mean) / own)
    return below
