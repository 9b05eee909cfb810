"""How much metadata is in there, before and after?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from residmix.plots.style import ABOVE, AFTER, BEFORE, INK, axes, legend, name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_association"]

MEASURES = {
    "linear_probe": "linear probe",
    "nonlinear_probe": "forest",
    "distance_correlation": "distance correlation",
}


def plot_association(association: Any, *, ax: Axes | None = None) -> Axes:
    """Draw each measure of each metadata column before and after, and its chance level.

    Parameters
    ----------
    association : Association
        Of :func:`residmix.association`; with ``after=`` for both ends of the lines.
    ax : matplotlib Axes, optional
        Default: of a new figure.

    Returns
    -------
    Axes
        One line per measure and column: a hollow circle before, a filled one after, and a grey bar for 95 % of the
        values with permuted labels. Probes of groups are areas under the ROC curve, all others shares of variance.

    Examples
    --------
    >>> import numpy as np, residmix as rm
    >>> rng = np.random.default_rng(0)
    >>> age = rng.normal(50, 10, 200)
    >>> found = rm.association(age[:, None] + rng.normal(size=(200, 2)), age, n_permutations=19)
    >>> ax = rm.plot_association(found)
    >>> [label.get_text() for label in ax.get_yticklabels()]
    ['m0: linear probe', 'm0: forest', 'm0: distance correlation']
    """
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for i in range(len(association)):
        measure = association["measure"][i]
        if measure in MEASURES and association["feature"][i] == "(all)":
            row = found.setdefault((association["metadata"][i], measure), {})
            held_out = measure.endswith("probe")
            value = association["held_out" if held_out else "in_sample"][i]
            row[association["stage"][i]] = value
            if held_out:
                row["chance"] = (association["held_out_chance_low"][i], association["held_out_chance_high"][i])
    order = sorted(found, key=lambda key: (list(dict.fromkeys(k[0] for k in found)).index(key[0]),
                                           list(MEASURES).index(key[1])))  # fmt: skip
    ax = axes(ax, figsize=(5.2, 1.1 + 0.32 * len(order)))
    for place, key in enumerate(order):
        row = found[key]
        if "chance" in row and np.isfinite(row["chance"]).all():
            ax.plot(row["chance"], [place, place], color=BEFORE, alpha=0.35, linewidth=9, solid_capstyle="butt",
                    label="by chance" if place == 0 else None)  # fmt: skip
        ends = [row[stage] for stage in ("before", "after") if stage in row]
        if len(ends) == 2:
            ax.plot(ends, [place, place], color=INK, linewidth=0.9)
        if "before" in row:
            ax.plot(row["before"], place, "o", color=INK, fillstyle="none", markersize=6,
                    label="before" if place == 0 else None)  # fmt: skip
        if "after" in row:
            ax.plot(row["after"], place, "o", color=AFTER, markersize=6, label="after" if place == 0 else None)
    ax.set_yticks(range(len(order)), [f"{name(column, 18)}: {MEASURES[measure]}" for column, measure in order])
    ax.set_ylim(len(order) - 0.5, -0.5)
    ax.set_xlim(min(-0.05, ax.get_xlim()[0]), 1.03)
    ax.set_xlabel("AUC (groups) or share (numbers)")
    ax.grid(axis="y", visible=False)
    legend(ax, **ABOVE)
    return ax
