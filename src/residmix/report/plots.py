"""Pictures of a fitted mixture as SVG text, without pyplot: no window, no global state, the same bytes each time."""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["explained_bars", "figure_svg", "scatter_before_after"]

# Okabe and Ito (2008), distinguishable with any colour vision
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#F0E442", "#7F7F7F")
MOST_POINTS = 1500
MOST_PAIRED = 12


def figure_svg(figure: Figure) -> str:
    """Return `figure` as the text of an ``<svg>`` element, with no date and fixed identifiers."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "residmix", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _axes(figure: Figure, *place: int, **options: Any) -> Axes:
    axes = figure.add_subplot(*place, **options)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    return axes


def explained_bars(features: Sequence[dict[str, Any]]) -> Figure:
    """Draw the share of each feature's variance that the metadata explained (the 20 largest)."""
    from matplotlib.figure import Figure

    rows = sorted(features, key=lambda row: -row["explained"])[:20][::-1]
    figure = Figure(figsize=(7.2, 0.9 + 0.32 * len(rows)), layout="constrained")
    axes = _axes(figure, 1, 1, 1)
    axes.barh([row["name"] for row in rows], [100 * row["explained"] for row in rows], color=COLOURS[0], height=0.6)
    axes.set_xlim(0, 100)
    axes.set_xlabel("variance explained by the metadata (%)")
    axes.grid(axis="y", visible=False)
    return figure


def scatter_before_after(
    X: NDArray[Any],
    residual: NDArray[Any],
    labels: NDArray[np.integer[Any]],
    means: NDArray[np.float64],
    covariances: NDArray[np.float64],
    names: Sequence[str],
    groups: tuple[str, NDArray[Any]] | None = None,
) -> Figure:
    """Draw the rows before and after, in the two features that tell the components apart best.

    Left, the features as they came; right, the residual. Colours are the components, marker shapes the levels of
    `groups`, ellipses the components at two standard deviations (which hold 86 % of a Gaussian in the plane).
    """
    from matplotlib.figure import Figure

    step = max(1, len(X) // MOST_POINTS)
    X, residual, labels = X[::step], residual[::step], labels[::step]
    shapes = _markers(groups[1][::step] if groups is not None else None, len(X))
    first, second = _best_pair(means, covariances)
    figure = Figure(figsize=(9.6, 4.3), layout="constrained")
    panels = ((1, X, "as measured"), (2, residual, "residual: metadata taken out"))
    for place, values, title in panels:
        axes = _axes(figure, 1, 2, place)
        for marker, level, rows in shapes:
            for k in np.unique(labels):
                here = rows & (labels == k)
                axes.scatter(
                    values[here, first],
                    values[here, second] if second is not None else np.zeros(here.sum()),
                    s=14,
                    marker=marker,
                    color=COLOURS[k % len(COLOURS)],
                    alpha=0.65,
                    linewidths=0,
                )
            if place == 1 and level is not None:
                axes.scatter([], [], marker=marker, color="#7f7f7f", s=20, label=level)
        axes.set_title(title, fontsize=10.5)
        axes.set_xlabel(names[first])
        if second is not None:
            axes.set_ylabel(names[second])
        else:
            axes.set_yticks([])
        if place == 1 and groups is not None and len(shapes) > 1:
            axes.legend(title=groups[0], fontsize=8, title_fontsize=8, frameon=False)
        if place == 2 and second is not None:
            _ellipses(axes, means[:, [first, second]], covariances[:, [first, second]][:, :, [first, second]])
    return figure


def _markers(values: NDArray[Any] | None, n: int) -> list[tuple[str, str | None, NDArray[np.bool_]]]:
    everyone: list[tuple[str, str | None, NDArray[np.bool_]]] = [("o", None, np.ones(n, dtype=bool))]
    if values is None:
        return everyone
    levels = np.unique(np.asarray(values).astype(str))
    signs = "o^sDvP*X"
    if len(levels) > len(signs):
        return everyone
    return [
        (sign, str(level), np.asarray(values).astype(str) == level) for sign, level in zip(signs, levels, strict=False)
    ]


def _best_pair(means: NDArray[np.float64], covariances: NDArray[np.float64]) -> tuple[int, int | None]:
    """Return the two features in whose plane the two closest components lie farthest apart (Mahalanobis)."""
    K, d = means.shape
    if d == 1:
        return 0, None
    within = np.mean(covariances, axis=0)
    sd = np.sqrt(np.where(np.diag(within) > 0, np.diag(within), 1))
    promising = np.sort(np.argsort(-means.std(axis=0) / sd, kind="stable")[:MOST_PAIRED])
    apart = means[:, None] - means[None]
    pairs = [(int(i), int(j)) for i, j in combinations(promising, 2)]

    def separation(pair: tuple[int, int]) -> float:
        plane = within[np.ix_(pair, pair)] + 1e-9 * np.diag(sd[list(pair)] ** 2)
        squared = np.einsum("abi,ij,abj->ab", apart[..., pair], np.linalg.inv(plane), apart[..., pair])
        return float(squared[~np.eye(K, dtype=bool)].min()) if K > 1 else 0.0

    return max(pairs, key=separation)


def _ellipses(axes: Axes, means: NDArray[np.float64], covariances: NDArray[np.float64]) -> None:
    from matplotlib.patches import Ellipse

    for k, (mean, covariance) in enumerate(zip(means, covariances, strict=True)):
        lengths, directions = np.linalg.eigh(covariance)
        angle = float(np.degrees(np.arctan2(directions[1, 1], directions[0, 1])))
        width, height = 4 * np.sqrt(np.maximum(lengths[::-1], 0))
        axes.add_patch(
            Ellipse(
                (float(mean[0]), float(mean[1])),
                float(width),
                float(height),
                angle=angle,
                fill=False,
                edgecolor=COLOURS[k % len(COLOURS)],
                linewidth=1.8,
            )
        )
