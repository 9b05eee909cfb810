"""Is the distribution of the features the same at every level, before and after a transport?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from residmix.plots.style import BELOW, INK, axes, caption, colour, legend, name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_certificate"]

MOST_LEVELS = 8


def plot_certificate(eraser: Any, *, ax: Axes | None = None) -> Axes:
    r"""Draw how far F(x) is from uniform at each level, before and after: what the certificate of a transport rests on.

    F is the distribution function of the reference given the features before. At a level whose rows have the
    reference's law it is uniform, and its line is 0.

    Parameters
    ----------
    eraser : Eraser or Certificate
        Fitted, with another method than "linear".
    ax : matplotlib Axes, optional
        Default: of a new figure.

    Returns
    -------
    Axes
        A dashed line a level before, a full one after, of the feature that was farthest from uniform there; and the
        band that holds all lines of rows with the reference's law in 99 % of certificates. Of more than 8 levels those
        that were farthest before.

    Examples
    --------
    >>> import residmix as rm
    >>> from residmix.data import penguins
    >>> features = ["bill_length_mm", "body_mass_g"]
    >>> eraser = rm.Eraser("C(sex)", features=features, method="full", n_components=3).fit(penguins())
    >>> ax = rm.plot_certificate(eraser)
    >>> ax.get_xlabel(), len(ax.lines)
    ('F(x)', 5)
    """
    certificate = getattr(eraser, "certificate_", eraser)
    levels = getattr(certificate, "levels", None)
    if levels is None:
        raise TypeError(
            f"{type(eraser).__name__} has no certificate; pass a fitted Eraser whose method is 'spread', 'component' "
            "or 'full'"
        )
    if not levels:
        raise ValueError("there are too few held-out rows to compare levels; fit on more rows")
    ax = axes(ax, figsize=(4.8, 3.4 + 0.2 * min(len(levels), MOST_LEVELS)))
    farthest = np.argsort([-_distance(row["before"]) for row in levels], kind="stable")[:MOST_LEVELS]
    bins = len(levels[0]["before"])
    edges = np.linspace(0, 1, bins + 1)
    for k, i in enumerate(sorted(farthest)):
        row = levels[i]
        for stage, dash in (("before", "--"), ("after", "-")):
            away = np.concatenate([[0.0], np.cumsum(row[stage])]) - edges
            label = f"{name(row['where'], 24)}: {name(row['feature'], 32)}" if stage == "after" else None
            ax.plot(edges, away, dash, color=colour(k), linewidth=1 if stage == "before" else 1.8, label=label)
    reach = max(row["bound"] for row in levels)
    ax.fill_between([0, 1], -reach, reach, color=INK, alpha=0.12, linewidth=0, zorder=0)
    ax.axhline(0, color=INK, linewidth=0.8)
    ax.set_xlim(0, 1)
    ax.set_xlabel("F(x)")
    ax.set_ylabel("share of rows below, minus F")
    caption(
        ax, "dashed before, full after" + (f"; {MOST_LEVELS} of {len(levels)}" if len(levels) > MOST_LEVELS else "")
    )
    legend(ax, **BELOW)  # names of levels and features are long: inside they would lie on the lines
    return ax


def _distance(shares: list[float]) -> float:
    return float(np.abs(np.cumsum(shares) - np.arange(1, len(shares) + 1) / len(shares)).max())
