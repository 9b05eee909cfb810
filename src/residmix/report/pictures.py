"""The pictures of a report, drawn by `residmix.plots`, as SVG text with captions and alternative texts."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from residmix.plots.association import plot_association
from residmix.plots.certificate import plot_certificate
from residmix.plots.components import plot_components
from residmix.plots.convergence import plot_convergence
from residmix.plots.effects import plot_effect
from residmix.plots.levels import plot_levels
from residmix.plots.pit import plot_pit
from residmix.plots.residuals import plot_residuals_vs_metadata
from residmix.plots.rows import residualizer_of
from residmix.plots.selection import plot_selection
from residmix.plots.style import AFTER, INK, PAPER, axes, caption, colour, legend, marker, name
from residmix.report.gather import Evidence

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Picture", "figure_svg", "pictures"]

MOST_BARS = 20
MOST_SHAPES = 4  # levels that shapes of points can show beside colours
_DIGITS = re.compile(r"(\.\d\d)\d+")  # a hundredth of a point is finer than any screen
MOST_COLUMNS = 3  # metadata columns with pictures of their own
MOST_GROUPS = 8


@dataclass(frozen=True)
class Picture:
    """One picture: `svg` was drawn here, `alt` and `caption` may hold a user's names."""

    svg: str
    alt: str
    caption: str


def figure_svg(figure: Figure, salt: str = "residmix") -> str:
    """Return `figure` as the text of an ``<svg>`` element: no date, fixed identifiers, text that stays text.

    The ink is the page's own colour of text, so that pictures follow it into the dark.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    FigureCanvasSVG(figure)  # its measures of text are those of the picture
    buffer = io.StringIO()
    settings: Any = {"svg.hashsalt": salt, "svg.fonttype": "none"}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        # the reader's browser draws the text, whatever script our font lacks
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        warnings.filterwarnings("ignore", "constrained_layout not applied")  # names take the room; they can be read
        engine = figure.get_layout_engine()
        if engine is not None:  # to save a figure with an engine draws it twice
            engine.execute(figure)
            figure.set_layout_engine("none")
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    text = buffer.getvalue()
    text = re.sub(r"<!--.*?-->\n?", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' (?:d|x|y|cx|cy|points|transform)="[^"]*"', lambda own: _DIGITS.sub(r"\1", own[0]), text)
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)  # the page's own
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    text = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", text)
    return text.replace(INK, "currentColor").replace(PAPER, "var(--card)")


def pictures(found: Evidence, summary: dict[str, Any]) -> dict[str, list[Picture]]:
    """Return the pictures of each section; a section that has nothing to show has none."""
    drawn: dict[str, list[Picture]] = {}

    def add(section: str, draw: Callable[[Axes], Any], size: tuple[float, float], alt: str, caption: str) -> None:
        drawn.setdefault(section, []).append(_picture(draw, size, alt, caption, f"{section}{len(drawn[section])}"))

    if found.rows is not None and summary["components"]:
        _of_mixture(found, add)
    if summary["certificate"] is not None and found.model.certificate_.levels:
        add("certificate", lambda ax: plot_certificate(found.model, ax=ax), (4.6, 5.0),
            "How far F(x) is from uniform at each level, before and after.",
            "F of the reference at each level, minus what it is where levels don't differ: dashed before, full after; "
            "lines of the reference's law stay in the band.")  # fmt: skip
    elif summary["metadata_columns"]:
        rows = sorted(summary["features"], key=lambda row: -(row.get("explained") or 0.0))[:MOST_BARS]
        add("explained", lambda ax: _bars(ax, rows), (4.4, 0.9 + 0.26 * len(rows)),
            f"Share of the variance that the metadata explained, {len(rows)} features.",
            "Share of each feature's variance that the metadata explained"
            + (f"; the {len(rows)} largest of {len(summary['features'])}." if len(rows) < len(summary["features"])
               else "."))  # fmt: skip
        for term in _curves(found):
            add("explained", partial(_curve, found.model, term), (4.4, 3.2),
                f"The effect of {term} on the feature that the metadata explained most, with its 95 % band.",
                "A smooth term as a curve with its 95 % band, of the feature that the metadata explained most; "
                "relative to the mean of the rows.")  # fmt: skip
    if found.association is not None:
        n = len([row for row in summary["association"] if not row["measure"].startswith("components")])
        add("association", lambda ax: plot_association(found.association, ax=ax), (4.4, 1.3 + 0.32 * n),
            "Measures of each metadata column before and after; the table next to it has the numbers.",
            "How well each column can be predicted: before (hollow), after (filled), by chance (grey).")  # fmt: skip
    if found.rows is not None and found.residual is not None and summary["metadata_columns"]:
        _of_metadata(found, summary, add)
    if summary["spreads_by_group"]:
        add("spreads", lambda ax: plot_levels(found.model, show="components", ax=ax),
            (4.4, 1.2 + 0.34 * min(len(summary["spreads_by_group"]), 25)),
            "Spread of a feature in each component and group, over the component's average.",
            "Standard deviation over the component's average, of the feature in which these differ most.")  # fmt: skip
    if summary["selection"]:
        add("selection", lambda ax: plot_selection(found.model, ax=ax), (4.4, 3.4),
            "The criterion against the number of components, by family.",
            "The search; the chosen model has a ring.")  # fmt: skip
    if summary["fit"] is not None:
        if summary["fit"]["pit"] is not None:
            add("quality", lambda ax: plot_pit(found.model, found.rows, ax=ax), (4.4, 3.2),
                "Histogram of the probability integral transform, with its 95 % band.",
                "Flat within the band: the mixture fits every feature. A peak in the middle: too wide; peaks at the "
                "ends: too narrow.")  # fmt: skip
        if len(summary["fit"]["lower_bounds"]) > 2:
            add("quality", lambda ax: plot_convergence(found.model, ax=ax), (4.4, 3.2),
                "Final log-likelihood minus that of each iteration.",
                "Final log-likelihood minus that of each iteration.")  # fmt: skip
    return drawn


def _curves(found: Evidence) -> list[str]:
    """Return the names of the first smooth terms of one variable."""
    linear = residualizer_of(found.model)
    if linear is None or getattr(linear, "estimator", None) is not None:
        return []
    curves = [curve.term for curve in linear.design_.curves if len(curve.variables) == 1]
    return list(dict.fromkeys(curves))[:MOST_COLUMNS]


def _curve(model: Any, term: str, ax: Axes) -> None:
    plot_effect(model, term, ax=ax)


def _picture(draw: Callable[[Axes], Any], size: tuple[float, float], alt: str, caption: str, salt: str) -> Picture:
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"font.size": 9}):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.add_subplot())
    svg = figure_svg(figure, salt).replace("<svg ", f'<svg role="img" aria-label="{escape(alt)}" ', 1)
    return Picture(svg, alt, caption)


def _of_mixture(found: Evidence, add: Callable[..., None]) -> None:
    assert found.rows is not None
    groups = found.reference or next(
        (own for own in found.removed if found.rows.metadata[own].nunique() <= MOST_SHAPES), None
    )
    of = f", shapes are {groups}" if groups else ""
    K = len(found.model.weights_)
    if found.removed and found.model.means_.shape[1] > 1:
        add("components", lambda ax: plot_components(found.model, found.rows, stage="before", groups=groups, ax=ax),
            (4.4, 3.8), f"Original rows, coloured by {K} components.",
            f"Original rows. Colours are components{of}.")  # fmt: skip
    what = "the metadata removed" if found.removed else "the mixture"
    add("components", lambda ax: plot_components(found.model, found.rows, groups=groups, ax=ax), (4.4, 3.8),
        f"Rows and the {K} components in the plane that separates them best.",
        f"With {what}, in the plane that separates the components best; ellipses hold 86 % of each{of}.")  # fmt: skip


def _of_metadata(found: Evidence, summary: dict[str, Any], add: Callable[..., None]) -> None:
    with_levels = [row["name"] for row in summary["levels"]]
    assert found.rows is not None
    for own in with_levels[:MOST_COLUMNS]:
        count = min(next(row["n_levels"] for row in summary["levels"] if row["name"] == own), 25)
        add("levels", lambda ax, own=own: plot_levels(found.model, found.rows, own, ax=ax), (4.4, 1.2 + 0.34 * count),
            f"Mean and spread of a feature in every level of {own}, before and after.",
            f"{own}: mean and one standard deviation, of the feature that the metadata explain most.")  # fmt: skip
    if getattr(found.model, "covariance", False) and with_levels:
        count = min(max(row["n_levels"] for row in summary["levels"]), 25)
        add("levels", lambda ax: plot_levels(found.model, show="covariance", ax=ax), (4.4, 1.2 + 0.34 * count),
            "Distance of each level's covariance from the pooled one, before and after.",
            "How far the covariance of all features lies from the pooled one: hollow before, full after.")  # fmt: skip
    for own in [column for column in found.removed if column not in with_levels][:MOST_COLUMNS]:
        if own in found.rows.metadata and found.rows.metadata[own].dtype.kind in "fiu":
            add("levels", lambda ax, own=own: plot_residuals_vs_metadata(found.model, found.rows, own, ax=ax),
                (4.4, 3.4),
                f"Residuals of a feature against {own}.",
                f"{own}: residuals, and their mean in bins with two standard errors.")  # fmt: skip
    if len(found.features) > 2 and with_levels:
        own = with_levels[0]
        values, groups = np.asarray(found.rows.X, dtype=float), found.rows.metadata[own]
        for stage, part in (("before", values), ("after", found.residual)):
            add("levels", lambda ax, part=part: _principal(ax, part, groups), (4.4, 3.6),
                f"First two principal components {stage}, by {own}.",
                f"All features {stage}: the first two principal components, by {own}.")  # fmt: skip


def _bars(ax: Axes, rows: list[dict[str, Any]]) -> None:
    """Draw the share of each feature's variance that the metadata explained."""
    ax = axes(ax)
    shown = rows[::-1]
    ax.barh(range(len(shown)), [100 * (row.get("explained") or 0.0) for row in shown], color=AFTER, height=0.6)
    ax.set_yticks(range(len(shown)), [name(row["name"], 24) for row in shown])
    ax.set_xlim(0, 100)
    ax.set_xlabel("variance explained by the metadata (%)")
    ax.grid(axis="y", visible=False)


def _principal(ax: Axes, values: Any, groups: Any) -> None:
    """Draw rows in the plane of the first two principal components of standardised features."""
    ax = axes(ax)
    values = np.where(np.isfinite(values), values, np.nanmean(values, axis=0))[:: 2 if len(values) > 3000 else 1]
    groups = groups.iloc[:: 2 if len(groups) > 3000 else 1]
    spread = values.std(axis=0)
    z = (values - values.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    _, s, right = np.linalg.svd(z, full_matrices=False)
    signs = np.sign(right[np.arange(2), np.argmax(np.abs(right[:2]), axis=1)])
    scores, share = z @ right[:2].T * signs, s**2 / np.sum(s**2)
    own = np.asarray(groups.astype(str))
    levels, counts = np.unique(own, return_counts=True)
    largest = levels[np.argsort(-counts, kind="stable")[:MOST_GROUPS]]
    step = max(1, -(-len(own) // 700))
    for k, level in enumerate(sorted(largest)):
        here = np.flatnonzero(own == level)[::step]
        ax.scatter(
            scores[here, 0],
            scores[here, 1],
            s=12,
            color=colour(k),
            marker=marker(k),
            alpha=0.6,
            linewidths=0,
            label=name(level),
        )
    ax.set_xlabel(f"first component ({share[0]:.0%})")
    ax.set_ylabel(f"second component ({share[1]:.0%})")
    if len(levels) > MOST_GROUPS:
        caption(ax, f"{MOST_GROUPS} largest of {len(levels)} levels")
    legend(ax, title=name(groups.name))
