"""A random forest that is grown level by level, all trees at once: a probe for dependence of any form."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from residmix.kernels.pairs import small, split_nodes
from residmix.kernels.trees import BINS

__all__ = ["Forest"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

TREES = 50
MIN_LEAF = 5
# Of the rows that each tree grows on, drawn without replacement: as many different ones as a bootstrap sample has.
SHARE = 1 - math.exp(-1)
# Sums of numbers are exact: they are rounded to so many parts of the largest.
_PARTS = 1 << 20


class Forest:
    r"""Random forest (Breiman 2001, Machine Learning 45:5) on features that are cut at 63 quantiles.

    Each of the 50 trees grows on :math:`1 - 1/e` of the rows. A node tries :math:`\sqrt{d}` of its features for
    classes, a third of them for numbers, and splits at the best cut that leaves 5 rows on both sides. Predictions are
    the means over trees of the leaves' shares of classes, or mean values. They are the same on every machine, with and
    without compiled code.

    Parameters
    ----------
    classifies : bool
    seed : int

    Attributes
    ----------
    classes_ : ndarray (L,)
        Of the target, sorted, in the order of the columns of `predict_proba`.
    """

    def __init__(self, *, classifies: bool, seed: int = 0) -> None:
        self.classifies, self.seed = classifies, seed

    def fit(self, X: Floats, y: NDArray[Any]) -> Forest:
        """Grow the trees on rows X (n, d) without missing values, for classes or numbers y (n,)."""
        rng = np.random.default_rng(self.seed)
        n, d = X.shape
        target, tries = self._target(y), _tries(d, self.classifies)
        ordered = np.sort(X, axis=0)[np.arange(BINS - 1) * n // BINS]
        self._edges = [np.unique(edges) for edges in ordered.T]
        codes = self._codes(X)
        drawn = max(1, round(SHARE * n))
        rows = rng.permuted(np.tile(np.arange(n), (TREES, 1)), axis=1)[:, :drawn].ravel()
        counts, first, plain = np.full(TREES, drawn), 0, small(n, d * target[2])
        levels: list[tuple[Ints, Ints, Ints, Floats]] = []
        while len(counts):
            order = rng.random((len(counts), d), dtype=np.float32).argsort(axis=1)
            feature, cut, n_left, sums, rows = split_nodes(
                codes, rows, counts, order, target, tries, MIN_LEAF, plain=plain
            )
            split = feature >= 0
            first += len(counts)
            # The sides of the nodes that are split are the nodes of the next level; a leaf's rows stay where they are.
            child = np.where(split, first + 2 * (np.cumsum(split) - 1), np.arange(first - len(counts), first))
            levels.append((np.maximum(feature, 0), np.where(split, cut, BINS), child, sums / counts[:, None]))
            counts = np.column_stack([n_left[split], (counts - n_left)[split]]).ravel()
        self._depth = len(levels)
        self._feature, self._cut, self._child, self._value = (
            np.concatenate(part) for part in zip(*levels, strict=True)
        )
        return self

    def predict_proba(self, X: Floats) -> Floats:
        """Return the shares (n, L) of the classes."""
        return self._means(X)

    def predict(self, X: Floats) -> Floats:
        """Return the expected numbers (n,)."""
        return np.asarray(self._centre + self._unit * self._means(X)[:, 0])

    def _target(self, y: NDArray[Any]) -> tuple[Ints, Ints, int]:
        if self.classifies:
            self.classes_, slots = np.unique(y, return_inverse=True)
            return slots.astype(np.int64), np.ones(len(y), dtype=np.int64), len(self.classes_)
        self._centre = float(np.mean(y))
        self._unit = float(np.abs(y - self._centre).max()) / _PARTS or 1.0
        return np.zeros(len(y), np.int64), np.rint((y - self._centre) / self._unit).astype(np.int64), 1

    def _codes(self, X: Floats) -> NDArray[np.uint8]:
        """Return how many edges of each feature (d, n) lie below its values."""
        return np.array(
            [np.searchsorted(edges, column) for edges, column in zip(self._edges, X.T, strict=True)], dtype=np.uint8
        )

    def _means(self, X: Floats) -> Floats:
        codes, n = self._codes(X), len(X)
        row, total = np.arange(n), np.zeros((n, self._value.shape[1]))
        at = np.repeat(np.arange(TREES)[:, None], n, axis=1)
        for _ in range(self._depth - 1):
            at = self._child[at] + (codes[self._feature[at], row] > self._cut[at])
        for leaves in at:
            total += self._value[leaves]
        return np.asarray(total / TREES)


def _tries(d: int, classifies: bool) -> int:
    return max(1, math.isqrt(d) if classifies else d // 3)
