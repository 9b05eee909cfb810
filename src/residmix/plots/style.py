"""Style of all plots: colour-blind safe colours and shapes, axes, names as text."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "ABOVE", "AFTER", "BEFORE", "BELOW", "COLOURS", "DASHES", "INK", "MARKERS", "PAPER",
    "axes", "caption", "colour", "legend", "marker", "name", "visible", "whole_numbers",
]  # fmt: skip

# Okabe and Ito (2008), distinguishable with any colour vision; shapes and dashes tell the same in grey
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#8A7A00", "#6B6B6B")
MARKERS = ("o", "^", "s", "D", "v", "P", "X", "*")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1)), (0, (3, 1)), (0, (1, 1)), (0, (8, 2)))
INK, PAPER = "#1c2330", "#fefefe"  # pages put their own colours of text and ground here
BEFORE, AFTER = "#8a8f98", "#0072B2"

# Where a legend lies on nothing: in a line above the axes, or below them
ABOVE: dict[str, Any] = {
    "loc": "lower right", "bbox_to_anchor": (1, 1), "ncols": 3, "borderaxespad": 0.2, "columnspacing": 1.0
}  # fmt: skip
BELOW: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (0, -0.16)}

# marks, embeddings, overrides and isolates of the bidirectional algorithm (Unicode Annex 9)
_TURNING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def colour(k: int) -> str:
    """Return the colour of component k."""
    return COLOURS[k % len(COLOURS)]


def marker(k: int) -> str:
    """Return the shape of component or level k."""
    return MARKERS[k % len(MARKERS)]


def visible(text: Any, kept: str = "") -> str:
    r"""Return a text in which control characters, and those that turn the direction of reading, are boxes.

    Joiners, which many scripts need, stay; so does what is in `kept`.

    Examples
    --------
    >>> visible("a\u202eb") == "a\ufffdb"
    True
    """
    return "".join(
        "\ufffd" if c not in kept and (unicodedata.category(c) in ("Cc", "Cs") or c in _TURNING) else c
        for c in str(text)
    )


def name(text: Any, most: int = 30) -> str:
    r"""Return a name to draw: no mathematics, nothing that turns the line around, not too long.

    Examples
    --------
    >>> print(name("$\\frac{a}{b}$"))
    \$\frac{a}{b}\$
    """
    kept = visible(text)
    if len(kept) > most:
        kept = f"{kept[: most - 11]}...{kept[-8:]}"
    return kept.replace("$", r"\$")


def axes(ax: Axes | None, **size: Any) -> Axes:
    """Return `ax`, or one of a new figure, with quiet spines and a grid."""
    if ax is None:
        import matplotlib.pyplot as plt

        _, ax = plt.subplots(layout="constrained", **size)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(INK)
    ax.tick_params(colors=INK, labelcolor=INK)
    ax.xaxis.label.set_color(INK)
    ax.yaxis.label.set_color(INK)
    ax.grid(color=BEFORE, alpha=0.25, linewidth=0.6)
    ax.set_axisbelow(True)
    return ax


def legend(ax: Axes, **options: Any) -> None:
    """Add a legend without a box, of what has a label, if anything has."""
    if ax.get_legend_handles_labels()[0]:
        found = ax.legend(frameon=False, fontsize=8.5, title_fontsize=8.5, labelcolor=INK, **options)
        found.get_title().set_color(INK)


def whole_numbers(ax: Axes) -> None:
    """Put ticks of x at whole numbers."""
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def caption(ax: Axes, text: str) -> None:
    """Write a line above the axes, at the left, where it doesn't grow with the picture."""
    ax.set_title(text, loc="left", fontsize=9, color=INK)
