"""What the values of each feature are like by themselves: where starts are looked for if some of them are wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2

from residmix.mixture.robust.cells import FARTHEST, FEW, beyond
from residmix.mixture.starts.sample import quantiles
from residmix.rows.block import Block

__all__ = ["Margins"]

Floats = NDArray[np.float64]

# A normal distribution's standard deviation in units of its median deviation, and of its mean one.
OF_MEDIAN, OF_MEAN = 1.482602218505602, 1.2533141373155001


@dataclass(frozen=True)
class Margins:
    """Features by themselves, from a sample of rows.

    Attributes
    ----------
    values, masses : tuple of ndarray
        Of each feature the values in order, and the weight up to each, from 0.
    centre, spread : ndarray (d,)
        Medians, and median deviations as standard deviations.
    """

    values: tuple[Floats, ...]
    masses: tuple[Floats, ...]
    centre: Floats
    spread: Floats

    @classmethod
    def of(cls, block: Block) -> Margins:
        x = np.asarray(block.X, dtype=np.float64)
        w = np.ones(len(x)) if block.weight is None else block.weight
        values, masses, centre, spread = [], [], [], []
        for column in x.T:
            counted = ~np.isnan(column) & (w > 0)
            value, weight = column[counted], w[counted]
            order = np.argsort(value, kind="stable")
            values.append(value[order])
            masses.append(np.append(0.0, np.cumsum(weight[order])))
            middle = _quantile(value, weight, 0.5)
            away = np.abs(value - middle)
            width = OF_MEDIAN * _quantile(away, weight, 0.5)
            if not width > 0:  # most values are equal
                width = OF_MEAN * float(np.average(away, weights=weight)) if away.any() else 1.0
            centre.append(middle)
            spread.append(width)
        return cls(tuple(values), tuple(masses), np.array(centre), np.array(spread))

    def penalties(self) -> Floats:
        """Return what it costs to set a value aside (d,) where nothing is known but its feature's spread."""
        return beyond(self.spread**2, FEW)

    def far(self, limit: float) -> Callable[[Block], Block]:
        """Return the map to blocks without values far from the median: at most the share `limit` of a feature."""
        cuts = []
        for value, mass, centre, spread in zip(self.values, self.masses, self.centre, self.spread, strict=True):
            away = np.abs(value - centre) / spread
            cuts.append(max(float(np.sqrt(chi2.isf(FEW, 1))), _quantile(away, np.diff(mass), 1 - limit)))
        return partial(_without_far, self.centre, self.spread, np.array(cuts))

    def rare(self, limit: float) -> Callable[[Block], Block]:
        """Return the map to blocks without values in a feature's emptier regions: at most the share `limit` of it."""
        width = 1.06 * self.spread * np.array([max(mass[-1], 1.0) for mass in self.masses]) ** -0.2
        least = np.exp(-beyond(self.spread**2, FEW) / 2)
        for j, (value, mass) in enumerate(zip(self.values, self.masses, strict=True)):
            least[j] = min(least[j], _quantile(_density(value, mass, width[j], value), np.diff(mass), limit))
        return partial(_without_rare, self, width, least)


def _quantile(values: Floats, weights: Floats, share: float) -> float:
    """Return the least value up to which a share of the weights lies; 0 of nothing."""
    return float(quantiles(values, weights, np.array([share]))[0]) if len(values) else 0.0


def _density(value: Floats, mass: Floats, width: float, at: Floats) -> Floats:
    """Return the density of a sample, as the weight within a width on both sides."""
    above = mass[np.searchsorted(value, at + width, side="right")]
    below = mass[np.searchsorted(value, at - width, side="left")]
    return np.asarray((above - below) / (2 * width * max(mass[-1], 1e-300)))


def _without_far(centre: Floats, spread: Floats, cut: Floats, block: Block) -> Block:
    """Return a block with NaN for values farther from the centres than `cut` spreads."""
    x = np.array(block.X, dtype=np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        x[np.abs(x - centre) > cut * spread] = np.nan
    return replace(block, X=x)


def _without_rare(own: Margins, width: Floats, least: Floats, block: Block) -> Block:
    """Return a block with NaN where a feature by itself is less dense than `least`, or as good as infinitely far."""
    block = _without_far(own.centre, own.spread, np.full(len(width), FARTHEST), block)
    for j, (value, mass) in enumerate(zip(own.values, own.masses, strict=True)):
        found = _density(value, mass, width[j], block.X[:, j])
        block.X[found < least[j], j] = np.nan
    return block
