"""Did the fit converge?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from residmix.plots.style import AFTER, INK, axes, caption, whole_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_convergence"]


def plot_convergence(model: Any, *, ax: Axes | None = None) -> Axes:
    """Draw the final log-likelihood per row minus that of each iteration.

    Parameters
    ----------
    model : mixture
        Fitted, with `lower_bounds_` and `tol`.
    ax : matplotlib Axes, optional
        Default: of a new figure.

    Returns
    -------
    Axes
        With a logarithmic scale, since EM converges linearly, and a line at `tol`.

    Examples
    --------
    >>> import numpy as np, residmix as rm
    >>> X = np.random.default_rng(0).normal(size=(200, 2))
    >>> ax = rm.plot_convergence(rm.GaussianMixture(2, random_state=0).fit(X))
    >>> ax.get_ylabel()
    'log-likelihood per row, short of the end'
    """
    values = np.asarray(getattr(model, "lower_bounds_", None) or [], dtype=float)
    if not len(values):
        raise ValueError("the model has no iterations to show; pass a mixture that was fitted by EM")
    ax = axes(ax, figsize=(4.6, 3.2))
    short = values[-1] - values[:-1]
    iterations = np.arange(1, len(values))
    shown = short > 0
    if shown.any():
        ax.semilogy(iterations[shown], short[shown], "o-", color=AFTER, markersize=3.5, linewidth=1.2)
        whole_numbers(ax)
    else:
        ax.set_xlim(0.5, max(len(values), 2) + 0.5)
        ax.set_yticks([])
    tol = float(getattr(model, "tol", 0) or 0)
    if tol > 0 and shown.any():
        ax.axhline(tol, color=INK, linewidth=0.9, linestyle="--")
        ax.annotate(f"tol {tol:g}", (1, tol), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8.5,
                    color=INK)  # fmt: skip
    ax.set_xlabel("iteration")
    ax.set_ylabel("log-likelihood per row, short of the end")
    count = f"{int(model.n_iter_)} iteration{'' if model.n_iter_ == 1 else 's'}"
    caption(ax, f"{count}, {'converged' if model.converged_ else 'not converged'}")
    return ax
