"""How many components, and of which family?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from residmix.plots.style import DASHES, INK, axes, colour, legend, marker, name, whole_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_selection"]

MOST_FAMILIES = 8  # drawn in colour; of more, the best


def plot_selection(model: Any, criterion: str | None = None, *, ax: Axes | None = None) -> Axes:
    """Draw a criterion against the number of components, one line per family, with a ring around the chosen model.

    Parameters
    ----------
    model : mixture, or mapping
        Fitted with lists or "auto", so that it has `selection_`; or such a mapping of columns itself.
    criterion : str, optional
        A column of `selection_`; lower is better. Default: the model's own, or "bic".
    ax : matplotlib Axes, optional
        Default: of a new figure.

    Returns
    -------
    Axes

    Examples
    --------
    >>> import residmix as rm
    >>> searched = {
    ...     "covariance_type": ["VVV", "VVV", "EEE"],
    ...     "n_components": [1, 2, 1],
    ...     "bic": [310.0, 290.0, 310.0],
    ... }
    >>> ax = rm.plot_selection(searched)
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['VVV', 'EEE']
    """
    table = model if hasattr(model, "keys") else getattr(model, "selection_", None)
    if not table:
        raise ValueError("the model has no selection_; fit it with a list of n_components or covariance_type")
    criterion = criterion or getattr(model, "criterion", None) or "bic"
    if criterion not in table:
        raise ValueError(f"the selection has no column {criterion!r}; the columns are {', '.join(map(str, table))}")
    values = np.asarray(table[criterion], dtype=float)
    sizes = np.asarray(table["n_components"])
    families = np.asarray(table["covariance_type"]).astype(str)
    finite = np.isfinite(values)
    if not finite.any():
        raise ValueError(f"no candidate has a finite {criterion!r}; use another criterion")
    best = int(np.argmin(np.where(finite, values, np.inf)))
    order = sorted(dict.fromkeys(families), key=lambda own: np.min(values[(families == own) & finite], initial=np.inf))
    ax = axes(ax, figsize=(4.8, 3.4))
    for k, own in enumerate(order[:MOST_FAMILIES]):
        here = np.flatnonzero((families == own) & finite)
        here = here[np.lexsort((values[here], sizes[here]))]
        here = here[np.unique(sizes[here], return_index=True)[1]]  # the best of each size, where formulas differ too
        ax.plot(sizes[here], values[here], color=colour(k), marker=marker(k), linestyle=DASHES[k],
                markersize=5, linewidth=1.3, label=name(own))  # fmt: skip
    ax.plot(sizes[best], values[best], "o", markersize=13, fillstyle="none", color=INK, markeredgewidth=1.4)
    whole_numbers(ax)
    ax.set_xlabel("components")
    ax.set_ylabel(f"{criterion.upper()} (lower is better)")
    legend(ax)
    return ax
