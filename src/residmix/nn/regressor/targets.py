"""Preparation of data for a density fit: arrays, standardisation, distinct rows, checks of targets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from residmix.design.fit import Design
from residmix.design.levels import MetadataValueError
from residmix.errors import DiscreteTargetWarning, note, warn
from residmix.rows.block import Block
from residmix.sources.table import Table

__all__ = [
    "LIKELIHOODS",
    "Scaling",
    "advising",
    "choose_likelihood",
    "constant_columns",
    "distinct_rows",
    "feature_scaling",
    "grid_step",
    "point_masses",
    "read_rows",
    "standard_scaling",
]

LIKELIHOODS = ("auto", "density", "interval")

Array = NDArray[np.float64]

# A column whose spread is below this fraction of its size holds nothing but rounding.
_CONSTANT = 1e-12
# A grid coarser than this fraction of the target's spread makes the density meaningless.
_COARSE = 0.05
# A row that weighs more than so many average ones counts as several; and rows that come as often are individuals.
_HEAVY, _REPEATED = 2.0, 4
# Cell of a continuous target, in standard units, next to gridded ones: the likelihood is then the density.
_POINT = 1e-9


@dataclass(frozen=True)
class Scaling:
    """Columnwise ``z = (x - mean) / scale``."""

    mean: Array
    scale: Array

    def forward(self, X: Array) -> Array:
        return (X - self.mean) / self.scale


@contextmanager
def advising(remedy: str) -> Iterator[None]:
    """Errors about metadata name `remedy` in place of an option that their caller doesn't have."""
    try:
        yield
    except MetadataValueError as error:
        raise ValueError(f"{error.args[0]}; {remedy}") from None


def read_rows(table: Table, features: Sequence[str], design: Design, *, preserved: bool) -> tuple[Array, Array]:
    """Gather the features (n, d) and the design's columns (n, q) in memory."""
    blocks = list(table.rows(features, design=design, preserved=preserved).map(_copies))
    X, matrix = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    return X, matrix


def _copies(block: Block) -> tuple[Array, Array]:
    # A block may be a view of a buffer that the next one uses again.
    return np.array(block.X, dtype=np.float64), np.array(block.design)


def standard_scaling(X: Array, weight: Array) -> Scaling:
    """Weighted mean and standard deviation of every column, NaN left out.

    A constant column gets its own size as scale (1 if that is 0), so that a change of units stays a change of units.
    """
    known = ~np.isnan(X)
    w = weight[:, None] * known
    total = np.maximum(w.sum(0), np.finfo(float).tiny)
    # Sum around the first known value: offsets of 1e8 cost no digits.
    anchor = np.where(known.any(0), X[known.argmax(0), np.arange(X.shape[1])], 0.0)
    gap = np.where(known, X - anchor, 0.0)
    # In a power of two as unit, so that squares neither overflow nor vanish, and no digit changes.
    unit = np.ldexp(1.0, np.frexp(np.abs(gap).max(0))[1] - 1)
    gap = gap / unit
    shift = (w * gap).sum(0) / total
    spread = unit * np.sqrt((w * np.where(known, gap - shift, 0.0) ** 2).sum(0) / total)
    mean = anchor + unit * shift
    size = np.abs(mean)
    scale = np.where(spread > _CONSTANT * size, spread, np.where(size > 0, size, 1.0))
    return Scaling(mean, scale)


def feature_scaling(X: Array, weight: Array, names: Sequence[str]) -> Scaling:
    """As `standard_scaling`, but a constant column is 0 whatever value it has later, since nothing was learned of it.

    Its slopes would be what the network began with.
    """
    scaling, same = standard_scaling(X, weight), constant_columns(X)
    if not same.any():
        return scaling
    which = [name for name, constant in zip(names, same, strict=True) if constant]
    note("constant", f"constant features are not used: {', '.join(which[:8])}", features=which)
    return Scaling(scaling.mean, np.where(same, np.inf, scaling.scale))


def constant_columns(y: Array) -> NDArray[np.bool_]:
    """Which columns have one value, NaN left out.

    Examples
    --------
    >>> constant_columns(np.array([[1.0, 2.0], [1.0, 3.0], [np.nan, 2.0]]))
    array([ True, False])
    """
    known = ~np.isnan(y)
    lowest, highest = np.where(known, y, np.inf).min(0), np.where(known, y, -np.inf).max(0)
    return np.asarray(highest - lowest <= _CONSTANT * np.maximum(np.abs(highest), np.abs(lowest)))


def distinct_rows(parts: list[Array], weight: Array) -> tuple[NDArray[np.intp], Array]:
    """First index of every distinct row of the joined `parts`, in the order of their values, and the summed weights.

    A repeated row and a weight of two are then the same thing, the order of the rows doesn't matter, and copies of a
    row can't sit on both sides of a validation split.

    But in a table of few values copies are individuals: with the only row of y = 0 held out, a network would learn that
    there are no zeros. So a row that has more than twice the mean weight is divided into equal ones, and where rows
    come four times on average, they all stay.

    Examples
    --------
    >>> distinct_rows([np.array([[2.0], [1.0], [1.0]])], np.ones(3))
    (array([1, 0]), array([2., 1.]))
    >>> distinct_rows([np.array([[2.0], [1.0], [3.0]])], np.array([1.0, 8.0, 1.0]))
    (array([1, 1, 0, 2]), array([4., 4., 1., 1.]))
    """
    joined = np.concatenate(parts, axis=1)
    missing = np.isnan(joined)
    # NaN has no order; a number that the column doesn't hold does as well, with the mask beside it.
    keys = np.where(missing, 0.0, joined)
    if missing.any():
        keys = np.concatenate([keys, missing.astype(float)], axis=1)
    order = np.lexsort(keys.T[::-1])
    changed = np.ones(len(keys), bool)
    changed[1:] = (keys[order[1:]] != keys[order[:-1]]).any(axis=1)
    starts = np.flatnonzero(changed)
    total = np.add.reduceat(weight[order], starts)
    copies = np.maximum(np.ceil(total / (_HEAVY * total.mean()) - 1e-9).astype(int), 1)
    if len(order) >= _REPEATED * len(starts):
        copies = np.maximum(copies, np.diff(np.append(starts, len(order))))
    return np.repeat(order[starts], copies), np.repeat(total / copies, copies)


def grid_step(y: Array, weight: Array | None = None) -> float | None:
    """Step of the grid that the values of one target lie on, or None when they share none or hardly repeat.

    Values repeat when more than a tenth of them are copies, the lightest row being one; they lie on a grid when every
    gap between neighbouring values is a whole multiple (to 1e-6 of a step, or the digits of float32) of the smallest
    one.

    Examples
    --------
    >>> grid_step(np.array([3.0, 5.0, 5.0, 6.0, 8.0, 3.0]))
    1.0
    >>> grid_step(np.array([3.0, 5.0, 6.0, 8.0]), weight=np.array([20.0, 30.0, 40.0, 10.0]))
    1.0
    >>> grid_step(np.array([0.1, 0.25, 0.7])) is None
    True
    """
    known = ~np.isnan(y)
    values, own = np.unique(y[known]), np.ones(int(known.sum())) if weight is None else weight[known]
    if len(values) < 2 or len(values) > 0.9 * own.sum() / own.min():
        return None
    gaps, size = np.diff(values), float(np.abs(values).max())
    step = float(gaps.min())
    multiple = np.round(gaps / step)
    off = float(np.abs(gaps / step - multiple).max())
    if off <= 1e-6 * max(1.0, size * 1e-9 / step):
        return step
    with np.errstate(over="ignore"):
        single = bool((values.astype(np.float32) == values).all())
    # Two values and the smallest gap are off by half a unit in the last place each, at most; a grid of which more than
    # a hundredth of the step is lost can't be told.
    lost = float(multiple.max()) * 2 * size * float(np.finfo(np.float32).eps) / step
    if not single or off > min(lost, 0.01):
        return None
    # All gaps together: the smallest is the smallest by rounding, too.
    return float(values[-1] - values[0]) / float(multiple.sum())


def point_masses(y: Array, weight: Array, *, share: float = 0.1) -> list[float]:
    """Values of one target that hold more than `share` of the weight.

    Examples
    --------
    >>> point_masses(np.array([0.0, 0.0, 0.0, 1.5, 2.5]), np.ones(5), share=0.5)
    [0.0]
    """
    if len(y) * share < 2:
        return []
    known = ~np.isnan(y)
    values, inverse = np.unique(y[known], return_inverse=True)
    mass = np.bincount(inverse, weights=weight[known], minlength=len(values)) / weight[known].sum()
    return [float(v) for v in values[mass > share]]


def choose_likelihood(
    y: Array, scale: Array, weight: Array, *, likelihood: str, min_scale: float, boxes: bool
) -> tuple[str, Array | None, Array]:
    """Find targets with repeated values; return the likelihood, its grid cells and the lower bounds of the scales.

    Parameters
    ----------
    y : ndarray (n, D)
    scale : ndarray (D,)
        Spread of the targets.
    likelihood : {"auto", "density", "interval"}
    boxes : bool
        Whether the probability of a grid cell has a closed form for the covariance asked for.

    Returns
    -------
    likelihood : {"density", "interval"}
    cell_width : ndarray (D,) or None
        In the units of y.
    floor : ndarray (D,)
        In standard units. With a density, at least half a grid step.
    """
    steps = np.array([grid_step(column, weight) or 0.0 for column in y.T])
    coarse = steps > _COARSE * scale
    wanted = likelihood == "interval" or (likelihood == "auto" and bool(coarse.any()) and boxes)
    if wanted and not (steps > 0).any():
        raise ValueError(
            "likelihood='interval' needs a target with repeated values on a grid; use likelihood='density'"
        )
    if wanted and not boxes:
        raise ValueError("likelihood='interval' with several targets needs a diagonal or spherical covariance")
    for j, column in enumerate(y.T):
        if coarse[j]:
            _warn_of_grid(j, steps[j], scale[j], wanted)
        elif masses := point_masses(column, weight):
            warn(
                f"target {j} has more than a tenth of its rows at the value {masses[0]:g}, where the density is "
                "unbounded. Judge this model by its CRPS",
                DiscreteTargetWarning,
            )
    floor = np.full(len(scale), min_scale)
    if wanted:
        return "interval", np.where(steps > 0, steps, _POINT * scale), floor
    return "density", None, np.maximum(floor, np.minimum(0.5 * steps / scale, 0.5))


def _warn_of_grid(j: int, step: float, scale: float, interval: bool) -> None:
    remedy = (
        "likelihood='interval' is used, so scores are mean densities over grid cells"
        if interval
        else "scales are kept above half a step, and the CRPS is a better score than the log density"
    )
    warn(
        f"target {j} has repeated values on a grid of step {step:g} (its spread is {scale:.3g}), where the density "
        f"is unbounded: {remedy}",
        DiscreteTargetWarning,
    )
