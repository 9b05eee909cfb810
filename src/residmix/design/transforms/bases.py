"""Functions of a formula that learn from a whole column: scales, polynomials, unpenalised splines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from residmix.design.formula.tokens import FormulaError
from residmix.design.quantiles import order_statistics
from residmix.design.transforms.options import Blocks, State, bounds, evenly, given_knots, spread_knots, whole, within

__all__ = [
    "bs",
    "cubic",
    "learn_bs",
    "learn_center",
    "learn_cyclic",
    "learn_natural",
    "learn_poly",
    "learn_scale",
    "poly",
    "shifted",
]

Array = NDArray[np.float64]

NEGLIGIBLE = 1e-24  # squared norm, relative to its scale, below which a polynomial is rounding only


def _moments(blocks: Blocks) -> tuple[int, float, float]:
    """Return count, mean and centred sum of squares, merged block by block (Chan, Golub and LeVeque 1983)."""
    n, mean, scatter = 0, 0.0, 0.0
    for block in blocks():
        if not len(block):
            continue
        m, own = len(block), float(block.mean())
        gap, total = own - mean, n + m
        scatter += float(np.square(block - own).sum()) + gap * gap * n * m / total
        mean += gap * m / total
        n = total
    if n == 0:
        raise FormulaError("the column has no values; leave it out of the formula")
    return n, mean, scatter


def learn_scale(blocks: Blocks, options: Mapping[str, Any]) -> State:
    n, mean, scatter = _moments(blocks)
    freedom = n - (whole(options, "ddof", 1, 0, 1) or 0)
    spread = float(np.sqrt(scatter / freedom)) if freedom > 0 else 0.0
    centred, scaled = options.get("center", True), options.get("scale", True)
    if not isinstance(centred, bool) or not isinstance(scaled, bool):
        raise FormulaError("center and scale must be True or False")
    return {"center": mean if centred else 0.0, "scale": spread if scaled and spread > 0 else 1.0}


def learn_center(blocks: Blocks, options: Mapping[str, Any]) -> State:
    return {"center": _moments(blocks)[1], "scale": 1.0}


def shifted(values: Array, state: State, options: Mapping[str, Any]) -> Array:
    return np.asarray((values - state["center"]) / state["scale"])


def learn_poly(blocks: Blocks, options: Mapping[str, Any]) -> State:
    """Coefficients of the monic three-term recurrence that makes the powers orthogonal on the training column."""
    degree = whole(options, "degree", 1, 1, 20) or 1
    alpha: list[float] = []
    norms: list[float] = []
    raw = options.get("raw", False)
    for k in range(0 if raw else degree + 1):
        norm = weighted = square = 0.0
        for block in blocks():
            square += float(block @ block)
            last = _recurrence(block, alpha, norms)[-1]
            norm += float(last @ last)
            weighted += float((block * last) @ last)
        scale = norms[1] / norms[0] * norms[-1] if k > 1 else square if k == 1 else 0.0
        if norm <= NEGLIGIBLE * scale or not norm:
            raise FormulaError(f"degree {degree} needs more than {degree} distinct values, and there are {k}")
        norms.append(norm)
        alpha.append(weighted / norm)
    return {"degree": degree, "alpha": alpha[:degree], "norms": norms}


def _recurrence(values: Array, alpha: list[float], norms: list[float]) -> list[Array]:
    powers = [np.ones_like(values)]
    for k, shift in enumerate(alpha):
        following = (values - shift) * powers[-1]
        if k:
            following -= norms[k] / norms[k - 1] * powers[-2]
        powers.append(following)
    return powers


def poly(values: Array, state: State, options: Mapping[str, Any]) -> Array:
    if not state["alpha"]:
        return np.stack([values**power for power in range(1, state["degree"] + 1)], axis=1)
    powers = _recurrence(values, state["alpha"], state["norms"])
    return np.asarray(np.stack(powers[1:], axis=1) / np.sqrt(state["norms"][1:]))


def learn_bs(blocks: Blocks, options: Mapping[str, Any]) -> State:
    degree = whole(options, "degree", 3, 0, 9)
    assert degree is not None
    low, high = bounds(blocks, options)
    knots = given_knots(options)
    if knots is None:
        inner = (whole(options, "df", degree, degree or 1, 500) or degree) - degree
        places = np.linspace(0, 1, inner + 2)[1:-1].tolist()
        if evenly(options):
            knots = np.linspace(low, high, inner + 2)[1:-1].tolist()
        else:
            knots = order_statistics(within(blocks, low, high), places) if inner else []
    edges = degree + 1
    extrapolation = options.get("extrapolation", "clip")
    if extrapolation not in ("clip", "extend", "raise", "zero"):
        raise FormulaError(f"extrapolation must be 'clip', 'extend', 'zero' or 'raise', not {extrapolation!r}")
    return {
        "lower_bound": low,
        "upper_bound": high,
        "knots": [low] * edges + knots + [high] * edges,
        "degree": degree,
        "extrapolation": extrapolation,
    }


def bs(values: Array, state: State, options: Mapping[str, Any]) -> Array:
    from formulaic.transforms import basis_spline

    known = {key: state[key] for key in ("lower_bound", "upper_bound", "knots")}
    columns = basis_spline(values, degree=state["degree"], extrapolation=state["extrapolation"], _state=known)
    return _stacked(columns, len(values))


def learn_natural(blocks: Blocks, options: Mapping[str, Any]) -> State:
    return _learn_cubic(blocks, options, cyclic=False)


def learn_cyclic(blocks: Blocks, options: Mapping[str, Any]) -> State:
    return _learn_cubic(blocks, options, cyclic=True)


def _learn_cubic(blocks: Blocks, options: Mapping[str, Any], cyclic: bool) -> State:
    """Knots at quantiles of the distinct values, and the directions in which the basis has mean zero.

    A cubic regression spline's columns add up to one, as the intercept does; centring takes that out (Wood 2006, 4.2).
    """
    low, high = bounds(blocks, options)
    knots = given_knots(options)
    if knots is None:
        df = whole(options, "df", None, 1, 500)
        if df is None:
            raise FormulaError("give df or knots")
        inner = df - 1 + cyclic
        even = np.linspace(low, high, inner + 2)[1:-1].tolist()
        knots = even if evenly(options) else spread_knots(blocks, low, high, inner, f"df={df}")
    extrapolation = options.get("extrapolation", "extend")
    if extrapolation not in ("clip", "extend", "raise", "zero"):
        raise FormulaError(f"extrapolation must be 'extend', 'clip', 'zero' or 'raise', not {extrapolation!r}")
    state: State = {
        "lower_bound": low,
        "upper_bound": high,
        "knots": sorted({low, *knots, high}),
        "cyclic": cyclic,
        "extrapolation": extrapolation,
    }
    total, count = np.zeros(len(state["knots"]) - cyclic), 0
    for block in blocks():
        if len(block):
            total += _free_cubic(block, state).sum(axis=0)
            count += len(block)
    complement, _ = np.linalg.qr((total / count)[:, None], mode="complete")
    return {**state, "directions": complement[:, 1:].tolist()}


def cubic(values: Array, state: State, options: Mapping[str, Any]) -> Array:
    free = _free_cubic(values, state)
    directions = np.array(state["directions"])
    # Column by column and not as a matrix product, whose rounding depends on how many rows there are.
    centred = np.zeros((len(values), directions.shape[1]))
    for j, direction in enumerate(directions):
        centred += free[:, j, None] * direction
    return centred


def _free_cubic(values: Array, state: State) -> Array:
    """Return the uncentred basis."""
    from formulaic.transforms import cyclic_cubic_spline, natural_cubic_spline

    known = {key: state[key] for key in ("lower_bound", "upper_bound", "knots", "cyclic")}
    known["constraints"] = None
    spline = cyclic_cubic_spline if state["cyclic"] else natural_cubic_spline
    return _stacked(spline(values, extrapolation=state["extrapolation"], _state=known), len(values))


def _stacked(columns: Any, n_rows: int) -> Array:
    # A basis function that is constant (all knots equal) comes as a number.
    return np.stack([np.broadcast_to(column, n_rows) for column in dict(columns).values()], axis=1)
