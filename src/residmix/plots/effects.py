"""How does a feature change along a metadata column?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from residmix.plots.levels import MOST_LEVELS, feature_place
from residmix.plots.rows import features_of, residualizer_of
from residmix.plots.style import AFTER, DASHES, INK, axes, caption, colour, legend, name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_effect"]


def plot_effect(
    model: Any, column: str | None = None, *, feature: str | None = None, at: Any = None, ax: Axes | None = None
) -> Axes:
    """Draw the effect of a metadata column on a feature, with its 95 % band.

    Parameters
    ----------
    model : Residualizer or ResidualMixture
        Fitted; no rows are needed.
    column : str, optional
        Metadata column, or the name of a smooth term. Default: the first smooth term, or else the first factor.
    feature : str, optional
        Default: the one that the metadata explain most.
    at : sequence, optional
        Values of the column. Default: along a curve its range; the levels of a factor.
    ax : matplotlib Axes, optional
        Default: of a new figure.

    Returns
    -------
    Axes
        A curve (one per level if curves differ by level), or a point per level, relative to the mean of the rows.

    Examples
    --------
    >>> import residmix as rm
    >>> from residmix.data import penguins
    >>> model = rm.Residualizer("sex + s(bill_length_mm, by=sex)", features=["body_mass_g"]).fit(penguins())
    >>> ax = rm.plot_effect(model)
    >>> ax.get_xlabel(), ax.get_ylabel(), len(ax.lines)
    ('bill_length_mm', 'effect on body_mass_g', 2)
    """
    linear = residualizer_of(model)
    if linear is None or getattr(linear, "estimator", None) is not None:
        raise TypeError(f"{type(model).__name__} has no effects to draw; pass a Residualizer or ResidualMixture")
    own = features_of(model)[feature_place(model, feature)]
    column = _first(linear) if column is None else column
    table = linear.effect(column, at)
    table = table[table["feature"] == str(own)]
    ax = axes(ax, figsize=(4.6, 3.4))
    if table["at"].dtype.kind in "fiu":
        curves = dict(list(table.groupby("curve", sort=False))) if "curve" in table else {None: table}
        for k, (level, curve) in enumerate(curves.items()):
            tint = AFTER if level is None else colour(k)
            label = None if level is None else name(level, 22)
            ax.plot(curve["at"], curve["estimate"], color=tint, linestyle=DASHES[k % len(DASHES)], label=label)
            ax.fill_between(curve["at"], curve["lower"], curve["upper"], color=tint, alpha=0.18, linewidth=0)
        ax.set_xlabel(name(_variable(linear, column)))
        ax.set_ylabel(f"effect on {name(own)}")
    else:
        _levels(ax, table.head(MOST_LEVELS))
        ax.set_xlabel(f"effect on {name(own)}")
        if len(table) > MOST_LEVELS:
            caption(ax, f"{MOST_LEVELS} of {len(table)} levels of {name(column)}")
    legend(ax)
    return ax


def _levels(ax: Axes, table: Any) -> None:
    places = np.arange(len(table))
    ax.hlines(places, table["lower"], table["upper"], color=AFTER, linewidth=2.2)
    ax.plot(table["estimate"], places, "o", color=AFTER, markersize=5.5)
    ax.axvline(0, color=INK, linewidth=0.8, linestyle=":")
    ax.set_yticks(places, [name(level, 22) for level in table["at"]])
    ax.set_ylim(len(table) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)


def _first(linear: Any) -> str:
    design = linear.design_
    if design.curves:
        return str(design.curves[0].term)
    factors = [term.variables[0] for term in design.terms if term.kind == "factor"]
    if not factors:
        raise ValueError("there is no curve and no factor; pass column=, and at= its values")
    return str(factors[0])


def _variable(linear: Any, column: str) -> str:
    """Return what a curve is a function of, or the column itself."""
    named = [curve for curve in linear.design_.curves if column in (curve.term, curve.name)]
    return str(named[0].variables[0]) if named else column
