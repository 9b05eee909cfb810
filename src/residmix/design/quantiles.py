"""Exact quantiles of a column that is read block by block, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

__all__ = ["distinct_values", "order_statistics"]

Array = NDArray[np.float64]
Blocks = Callable[[], Iterator[Array]]

IN_MEMORY = 1 << 22  # values that may be held and sorted at once; more are selected in passes
DISTINCT = 1 << 20  # distinct values that may be held at once


def order_statistics(blocks: Blocks, probabilities: list[float]) -> list[float]:
    """Return quantiles by linear interpolation between order statistics (Hyndman and Fan's type 7), exactly.

    Up to ``IN_MEMORY`` values are sorted. More are never held: a double's bits, suitably flipped, sort as unsigned
    integers, so each wanted rank is found by four histograms of 16 bits, one pass over the data each.
    """
    held: list[Array] | None = []
    count = 0
    for block in blocks():
        count += len(block)
        if held is not None:
            held.append(block)
            held = held if count <= IN_MEMORY else None
    if count == 0:
        raise ValueError("the column has no values; leave it out of the formula")
    places = [probability * (count - 1) for probability in probabilities]
    ranks = sorted({rank for place in places for rank in (int(place), min(int(place) + 1, count - 1))})
    if held is not None:
        ordered = np.sort(np.concatenate(held))
        found = {rank: float(ordered[rank]) for rank in ranks}
    else:
        found = _selected(blocks, ranks)
    quantiles = []
    for place in places:
        low, high = found[int(place)], found[min(int(place) + 1, count - 1)]
        share = place - int(place)
        quantiles.append(high - (high - low) * (1 - share) if share >= 0.5 else low + (high - low) * share)
    return quantiles


def _selected(blocks: Blocks, ranks: list[int]) -> dict[int, float]:
    """Return the values of the given ranks by radix selection on the bits of the doubles."""
    sign = np.uint64(1 << 63)
    prefix = dict.fromkeys(ranks, 0)
    left = {rank: rank for rank in ranks}
    for shift in (48, 32, 16, 0):
        counts = {head: np.zeros(1 << 16, dtype=np.int64) for head in prefix.values()}
        for block in blocks():
            bits = (block + 0.0).view(np.uint64)
            keys = np.where(bits & sign, ~bits, bits | sign)
            heads = keys >> np.uint64(shift + 16) if shift < 48 else np.zeros_like(keys)
            for head, histogram in counts.items():
                digits = (keys[heads == head] >> np.uint64(shift)) & np.uint64(0xFFFF)
                histogram += np.bincount(digits.astype(np.int64), minlength=1 << 16)
        for rank in ranks:
            below = np.cumsum(counts[prefix[rank]])
            digit = int(np.searchsorted(below, left[rank], side="right"))
            left[rank] -= int(below[digit - 1]) if digit else 0
            prefix[rank] = (prefix[rank] << 16) | digit
    keys = np.array([prefix[rank] for rank in ranks], dtype=np.uint64)
    bits = np.where(keys & sign, keys ^ sign, ~keys)
    return dict(zip(ranks, bits.view(np.float64).tolist(), strict=True))


def distinct_values(blocks: Blocks) -> Array | None:
    """Return the distinct values, sorted, or None when there are more than ``DISTINCT``."""
    found = np.empty(0)
    for block in blocks():
        found = np.union1d(found, block)
        if len(found) > DISTINCT:
            return None
    return found
