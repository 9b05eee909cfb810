"""Cross-fitting: every row is predicted by a fit without it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from residmix.errors import ResidmixWarning, unnoted

__all__ = ["cross_fitted", "splits"]


def splits(
    cv: Any, n_rows: int, groups: NDArray[Any] | None = None
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Yield (train, test) row indices: of a number of shuffled folds, of a splitter, or as given.

    Parameters
    ----------
    cv : int, splitter or iterable
    n_rows : int
    groups : ndarray (n_rows,), optional
        Rows with equal values stay in one fold: a number of folds is of groups, a splitter gets them.

    Raises
    ------
    ValueError
        Unless every row is in exactly one test set, and every group in one fold.
    """
    from sklearn.model_selection import GroupKFold, KFold

    if isinstance(cv, int | np.integer) and not isinstance(cv, bool):
        # Shuffled, since tables are often sorted by site; fixed, so that the same call gives the same residuals.
        cv = KFold(int(cv), shuffle=True, random_state=0) if groups is None else GroupKFold(int(cv))
    pairs: Iterable[Any] = _split(cv, n_rows, groups) if hasattr(cv, "split") else cv
    found = [(np.asarray(train), np.asarray(test)) for train, test in pairs]
    seen = np.bincount(np.concatenate([test for _, test in found]), minlength=n_rows)
    if len(seen) > n_rows or np.any(seen != 1):
        raise ValueError(
            f"cross-fitting needs every row in exactly one test set, but cv leaves {np.sum(seen == 0)} rows out and "
            f"has {np.sum(seen > 1)} rows in several; use a splitter such as KFold"
        )
    if groups is not None:
        _, own = np.unique(groups, return_inverse=True)
        for _, test in found:
            inside = np.bincount(own[test], minlength=own.max() + 1)
            torn = np.flatnonzero((inside > 0) & (inside < np.bincount(own)))
            if len(torn):
                one = groups[np.argmax(own == torn[0])]
                raise ValueError(
                    f"cv puts rows of {len(torn)} groups ({one}) into several folds; use a splitter that keeps "
                    "groups together, such as GroupKFold"
                )
    yield from found


def _split(cv: Any, n_rows: int, groups: NDArray[Any] | None) -> Iterable[Any]:
    """Return what a splitter makes of rows; one that wants what there isn't is told by name."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The groups parameter is ignored")  # whether they are torn is looked at
            return list(cv.split(np.empty((n_rows, 1)), *(() if groups is None else (None, groups))))
    except (TypeError, ValueError) as error:
        name = type(cv).__name__
        if groups is None and "group" in str(error):
            raise ValueError(f"cv={name} needs groups; set groups= to the metadata column that holds them") from error
        if "target" in str(error) or "'y'" in str(error):
            raise ValueError(f"cv={name} needs a target, but there is none; use KFold or GroupKFold") from error
        raise


def cross_fitted(
    fit_and_apply: Callable[[NDArray[np.intp], NDArray[np.intp]], NDArray[Any]], cv: Any, n_rows: int
) -> NDArray[Any]:
    """Return, for every row, what ``fit_and_apply(train, test)`` gives for it when it is in `test`.

    Warnings of residmix are suppressed in the folds, since the fit on all rows gives them.
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
