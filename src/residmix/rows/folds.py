"""Folds: every row predicted by a fit that didn't see it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from residmix.errors import ResidmixWarning, unnoted

__all__ = ["cross_fitted", "splits"]


def splits(cv: Any, n_rows: int) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Yield (train, test) row indices: of a number of shuffled folds, of a splitter, or as given.

    Raises
    ------
    ValueError
        Unless every row is in exactly one test set.
    """
    from sklearn.model_selection import KFold

    if isinstance(cv, int | np.integer) and not isinstance(cv, bool):
        # Shuffled, since tables are often sorted by site; fixed, so that the same call gives the same residuals.
        cv = KFold(int(cv), shuffle=True, random_state=0)
    pairs: Iterable[Any] = cv.split(np.empty((n_rows, 1))) if hasattr(cv, "split") else cv
    found = [(np.asarray(train), np.asarray(test)) for train, test in pairs]
    seen = np.bincount(np.concatenate([test for _, test in found]), minlength=n_rows)
    if len(seen) > n_rows or np.any(seen != 1):
        raise ValueError(
            f"cross-fitting needs every row in exactly one test set, but cv leaves {np.sum(seen == 0)} rows out and "
            f"has {np.sum(seen > 1)} rows in several; use a partition such as KFold"
        )
    yield from found


def cross_fitted(
    fit_and_apply: Callable[[NDArray[np.intp], NDArray[np.intp]], NDArray[Any]], cv: Any, n_rows: int
) -> NDArray[Any]:
    """Return, for every row, what ``fit_and_apply(train, test)`` gives for it when it is in `test`.

    What residmix warns about is left to the fit on all rows: a fold is like it, only smaller.
    """
    out = None
    for train, test in splits(cv, n_rows):
        with unnoted(ResidmixWarning):
            part = fit_and_apply(train, test)
        if out is None:
            out = np.empty((n_rows, *part.shape[1:]), dtype=part.dtype)
        out[test] = part
    assert out is not None
    return out
