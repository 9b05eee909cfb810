r"""Smooth functions s(x): cubic regression splines, and the penalty on their roughness.

A natural cubic spline is determined by its values :math:`\beta_j` at k knots. With :math:`h_j` the distances between
knots, its second derivatives there are :math:`\delta = F \beta`, :math:`F = [0; B^{-1} D; 0]`, where D (k - 2, k) takes
second differences and B (k - 2, k - 2) is tridiagonal, and its roughness is

.. math:: \int f''(x)^2 dx = \beta' D' B^{-1} D \beta

(Wood, Generalized Additive Models, 2nd ed. 2017, section 5.3.1). Beyond the outer knots it goes on as a straight line.
The columns add up to one, which is the intercept; one direction is therefore left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from residmix.design.formula.expressions import DEFAULT_K
from residmix.design.formula.tokens import FormulaError
from residmix.design.transforms.options import Blocks, State, bounds, evenly, spread_knots, whole

__all__ = ["learn_smooth", "roughness", "smooth"]

Array = NDArray[np.float64]


def learn_smooth(blocks: Blocks, options: Mapping[str, Any]) -> State:
    """Return knots, and the directions (k, k - 1) of the basis that are kept.

    Knots are at quantiles of the distinct values, and functions have mean zero over the rows. Where both bounds are
    given nothing depends on the rows: knots are evenly spaced, and functions have mean zero over the knots.
    """
    k = whole(options, "k", DEFAULT_K, 3, 500)
    assert k is not None
    low, high = bounds(blocks, options)
    if not low < high:
        raise FormulaError(
            f"a smooth function needs at least two distinct values, but all are {low:g}; leave the column out"
        )
    if evenly(options):
        knots, mean = np.linspace(low, high, k).tolist(), np.ones(k)
    else:
        try:
            knots = [low, *spread_knots(blocks, low, high, k - 2, f"k={k}", least=k), high]
        except FormulaError as error:
            raise FormulaError(f"{error}; use a smaller k=") from None
        mean, count = np.zeros(k), 0
        for block in blocks():
            mean += _free(block, knots, np.eye(k)).sum(axis=0)
            count += len(block)
        mean /= count
    complement, _ = np.linalg.qr(mean[:, None], mode="complete")
    return {"lower_bound": low, "upper_bound": high, "knots": knots, "directions": complement[:, 1:].tolist()}


def smooth(values: Array, state: State, options: Mapping[str, Any]) -> Array:
    """Return the columns (b, k - 1)."""
    return _free(values, state["knots"], np.array(state["directions"]))


def roughness(state: State) -> Array:
    r"""Return P (k - 1, k - 1) of :math:`b'Pb = \int f''(u)^2 du`, u the variable in units of its range."""
    h, _ = _unit(state["knots"])
    D, B = _differences(h)
    directions = np.array(state["directions"])
    root = np.linalg.solve(np.linalg.cholesky(B), D @ directions)
    return np.asarray(root.T @ root)


def _unit(knots: list[float]) -> tuple[Array, Array]:
    """Return distances of knots, and knots, in units of their range."""
    at = (np.asarray(knots) - knots[0]) / (knots[-1] - knots[0])
    return np.diff(at), at


def _differences(h: Array) -> tuple[Array, Array]:
    n = len(h) - 1
    D, B = np.zeros((n, n + 2)), np.zeros((n, n))
    rows = np.arange(n)
    D[rows, rows], D[rows, rows + 2] = 1.0 / h[:-1], 1.0 / h[1:]
    D[rows, rows + 1] = -1.0 / h[:-1] - 1.0 / h[1:]
    B[rows, rows] = (h[:-1] + h[1:]) / 3.0
    B[rows[:-1], rows[1:]] = B[rows[1:], rows[:-1]] = h[1:-1] / 6.0
    return D, B


def _free(values: Array, knots: list[float], directions: Array) -> Array:
    """Return the basis times `directions` (k, w), row by row, so that no bit depends on the other rows."""
    h, at = _unit(knots)
    D, B = _differences(h)
    bends = np.zeros((len(knots), directions.shape[1]))
    bends[1:-1] = np.linalg.solve(B, D @ directions)
    u = (values - knots[0]) / (knots[-1] - knots[0])
    inside = np.clip(u, 0.0, 1.0)
    j = np.clip(np.searchsorted(at, inside, side="right") - 1, 0, len(h) - 1)
    own = h[j]
    left, right = at[j + 1] - inside, inside - at[j]
    # beyond the outer knots the slope there goes on; `over` is 0 within
    over = u - inside
    start, end = (left - over) / own, (right + over) / own
    bend_start = (left**3 / own - own * left) / 6.0 + over * _slope(left / own, -own)
    bend_end = (right**3 / own - own * right) / 6.0 + over * _slope(right / own, own)
    return np.asarray(
        start[:, None] * directions[j]
        + end[:, None] * directions[j + 1]
        + bend_start[:, None] * bends[j]
        + bend_end[:, None] * bends[j + 1]
    )


def _slope(share: Array, h: Array) -> Array:
    """Return the derivative of ``(t^3 / h - h t) / 6`` by the variable, t the distance ``share * abs(h)``."""
    return h * (3.0 * share**2 - 1.0) / 6.0
