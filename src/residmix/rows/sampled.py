"""Rows that keep a few of themselves aside while they are read for something else, and what was kept."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from residmix.rows.block import Block, concatenate, gather
from residmix.rows.rows import ObservedRows, Rows

__all__ = ["Sample", "SampledRows", "at_random", "evenly", "every", "regularly"]


def evenly(n: int, most: int) -> NDArray[np.intp]:
    """Return at most `most` evenly spaced indices out of n, from the first to the last."""
    return np.arange(n) if n <= most else np.unique(np.linspace(0, n - 1, most).astype(np.intp))


def every(n: int, most: int) -> int:
    """Return k, so that every k-th of n rows are at most so many: for rows that come in chunks."""
    return max(1, -(-n // most))


def regularly(n: int, most: int) -> NDArray[np.intp]:
    """Return the first of n indices and every k-th after it, at most so many."""
    return np.arange(0, n, every(n, most))


def at_random(n: int, most: int, random: np.random.Generator | np.random.RandomState) -> NDArray[np.intp]:
    """Return at most so many different ones of n indices, in order, each as likely as any other."""
    if n <= most:
        return np.arange(n)
    if isinstance(random, np.random.Generator):
        return np.sort(random.permutation(n)[:most])
    from sklearn.utils.random import sample_without_replacement

    # unlike numpy's choice it doesn't shuffle all there are
    return np.sort(np.asarray(sample_without_replacement(n, most, random_state=random), dtype=np.intp))


class SampledRows(ObservedRows):
    """The same rows; the first fold over them also gathers the rows `index`, so that they cost no pass of their own.

    Parameters
    ----------
    rows : Rows
        In memory, in files or on a cluster.
    index : ndarray of int
        Sorted, without repeats.
    features : ndarray of int, optional
        Which columns of X are kept. Default: all.
    """

    def __init__(
        self, rows: Rows, index: NDArray[np.integer[Any]], features: NDArray[np.integer[Any]] | None = None
    ) -> None:
        super().__init__(rows, partial(gather, index, features))
        self._index, self._features = index, features

    def sample(self) -> Block:
        """Return the rows `index`."""
        if self.kept:
            return concatenate(self.kept)
        taken = self._rows.take(self._index)
        return taken if self._features is None else replace(taken, X=taken.X[:, self._features])


@dataclass(frozen=True)
class Sample:
    """Rows kept of all that were seen: those of the lowest random priority, so that samples of parts merge.

    Rows of people's data have no place in a model file: pickled or saved, a sample is empty.

    Attributes
    ----------
    block : Block or None
        None if there are no rows.
    priority : ndarray (b,)
    n_rows : int
        How many rows were seen.
    """

    block: Block | None = None
    priority: NDArray[np.float64] | None = None
    n_rows: int = 0

    @classmethod
    def of(cls, block: Block, n_rows: int, seed: int) -> Sample:
        """Return a sample that `block`, any choice out of `n_rows` rows, stands for.

        Its priorities are the lowest ones of as many draws from the uniform distribution.
        """
        rng = np.random.default_rng((seed, n_rows))
        lowest = np.cumsum(rng.exponential(size=block.n_rows)) / max(n_rows, 1)
        return cls(block, rng.permutation(lowest), n_rows)

    def merged(self, other: Sample, most: int) -> Sample:
        """Return a sample of at most `most` of the rows of both."""
        if self.block is None or other.block is None:
            one = other if self.block is None else self
            return Sample(one.block, one.priority, self.n_rows + other.n_rows)
        assert self.priority is not None
        assert other.priority is not None
        priority = np.concatenate([self.priority, other.priority])
        lowest = np.sort(np.argsort(priority, kind="stable")[:most])
        both = concatenate([self.block, other.block]).select(lowest)
        return Sample(both, priority[lowest], self.n_rows + other.n_rows)

    def __deepcopy__(self, memo: Any) -> Sample:
        return self

    def __reduce__(self) -> tuple[type[Sample], tuple[()]]:
        return Sample, ()

    def _to_state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        return {}, {}

    @classmethod
    def _from_state(cls, plain: dict[str, Any], arrays: dict[str, Any]) -> Sample:
        return cls()
