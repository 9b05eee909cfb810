"""Rows of a few levels: what loops over them compute, in plain numpy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from residmix.kernels.plain import centred_products

__all__ = ["MOST_KEPT", "level_products", "rescale_rows"]

Floats = NDArray[np.float64]

# Columns whose effects a loop over the rows adds up itself; with more, BLAS is faster.
MOST_KEPT = 16


def level_products(
    X: NDArray[np.floating],
    A: Floats,
    order: NDArray[np.int64],
    starts: NDArray[np.int64],
    origin_x: Floats,
    origin_a: Floats,
    weight: Floats,
    products: Callable[..., tuple[Floats, ...]] = centred_products,
) -> tuple[Floats, ...]:
    """Return the sums of `residmix.kernels.plain.centred_products` of the rows of each of K levels.

    The rows ``order[starts[k] : starts[k + 1]]`` have level k, and origins (d,) and (q,) of their own.

    Returns
    -------
    sum_x, sum_a : ndarray (K, d), (K, q)
    aa, ax : ndarray (K, q, q), (K, q, d)
    squares : ndarray (K, d)
    """
    K, d, q = len(starts) - 1, X.shape[1], A.shape[1]
    found = tuple(np.zeros((K, *shape)) for shape in ((d,), (q,), (q, q), (q, d), (d,)))
    for k in range(K):
        rows = order[starts[k] : starts[k + 1]]
        w = weight.take(rows) if weight.size else weight
        own = products(X.take(rows, axis=0), A.take(rows, axis=0), origin_x[k], origin_a[k], w)
        for sums, part in zip(found, own, strict=True):
            sums[k] = part
    return found


def rescale_rows(
    X: NDArray[np.floating],
    design: Floats,
    first: int,
    origin: Floats,
    coef: Floats,
    base: Floats,
    origin_x: Floats,
    shift: Floats,
    stretch: Floats,
    codes: NDArray[np.int64],
    back: bool,
    out: NDArray[np.floating],
) -> None:
    """Write ``(X - origin_x - shift - kept) * stretch + kept`` to `out`, with the shift and stretch of rows' levels.

    If `back`, it's ``(X - kept) * stretch + kept + origin_x + shift``. What is kept is `base`, one row or one for each,
    and ``(a - origin) coef`` of the columns a of `design` from `first` on, of which there may be none. The loop has the
    same bits: it adds in this order.
    """
    kept = np.broadcast_to(base, X.shape)
    for k in range(len(coef)):
        kept = kept + (design[:, first + k, None] - origin[k]) * coef[k]
    if back:
        out[...] = (X - kept) * stretch[codes] + kept + origin_x + shift[codes]
    else:
        out[...] = (X - origin_x - shift[codes] - kept) * stretch[codes] + kept
