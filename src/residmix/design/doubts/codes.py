"""Values like -999 that repeat far outside all others of a column: codes for missing values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from residmix.errors import MissingCodeWarning, warn

__all__ = ["find_codes", "ranges", "tell_of_codes"]

# How often a value must repeat to be a code, and how far off the others it must lie, in their spreads and their range;
# in ranges of few different values, since small counts have gaps, too.
REPEATED = 3
SPREADS = 10.0
RANGES = 2.0
FEW, RANGES_OF_FEW = 10, 10.0
# Rows that nearly always suffice to see that a column has no codes.
SIEVED = 64
# Values that a message names.
SHOWN = 10


def find_codes(
    x: NDArray[np.float64], ends: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
) -> list[tuple[int, float, int]]:
    """Return column, value and number of rows of what looks like codes in x (n, d), which may hold NaN.

    A code occurs at least three times, at a distance from all other values of more than twice their range, or of more
    than ten times that if there are less than ten different ones.

    Parameters
    ----------
    ends : (ndarray (d,), ndarray (d,)), optional
        What `ranges` says of x.

    Examples
    --------
    >>> import numpy as np
    >>> age = np.array([41.0, 63, 55, 38, -999, 70, -999, 47, 59, 62, 44, 51, 66, -999])
    >>> find_codes(age[:, None])
    [(0, -999.0, 3)]
    """
    least, most = ranges(x) if ends is None else ends
    return [(j, value, times) for j in _perhaps_coded(x, least, most) for value, times in _codes(x[:, j])]


def tell_of_codes(
    x: NDArray[np.float64],
    names: Sequence[Any],
    share: float,
    *,
    metadata: bool = False,
    ends: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None,
) -> set[Any]:
    """Warn of what looks like codes in x (n, d); return the names of the columns that hold some.

    Parameters
    ----------
    names : sequence
        Of the columns.
    share : float
        Rows in all for each row of x.
    metadata : bool
        Whether these are columns of the metadata, not features.
    ends : (ndarray (d,), ndarray (d,)), optional
        What `ranges` says of x.
    """
    found = find_codes(x, ends)
    if not found:
        return set()
    what, see = ("metadata column", " (see missing=),") if metadata else ("column", "")
    values = [{"column": names[j], "value": value, "rows": round(times * share)} for j, value, times in found]
    shown = ", ".join(f"{one['value']:g} in {what} {one['column']!r} ({one['rows']} rows)" for one in values[:SHOWN])
    about = "" if share == 1 else "about "
    warn(
        f"values repeat far outside all others: {about}{shown}. If they are codes for missing values, replace them by "
        f"NaN{see} or leave these rows out",
        MissingCodeWarning,
        values=values,
    )
    return {names[j] for j, _, _ in found}


def ranges(x: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the least and the largest value of each column; NaN if it holds one, or if there are no rows."""
    n, d = x.shape
    if not n:
        return np.full(d, np.nan), np.full(d, np.nan)
    # numpy is quick along long rows only
    many = max(1, min(n, 256 // max(d, 1)))
    folded, rest = x[: n - n % many].reshape(-1, many * d), x[n - n % many :]
    least, most = (np.vstack([f(folded, axis=0).reshape(many, d), rest]) for f in (np.min, np.max))
    return least.min(axis=0), most.max(axis=0)


def _perhaps_coded(x: NDArray[np.float64], least: NDArray[np.float64], most: NDArray[np.float64]) -> Iterator[int]:
    """Yield the columns that may hold codes: most have none, and a few rows show it.

    Beside a code, the end of a column's range is empty for more than twice what the values within span: if these span a
    third of the range, there is none.
    """
    few = x[:: max(1, len(x) // SIEVED)]
    for j in np.flatnonzero(~_spanned(few, least, most)).tolist():
        if not _spanned(x[:, j], least[j], most[j]):
            yield j


def _spanned(x: NDArray[np.float64], least: Any, most: Any) -> NDArray[np.bool_]:
    """Tell whether the values within span a third of the range, or there is none."""
    within = (x > least) & (x < most)
    with np.errstate(over="ignore", invalid="ignore"):
        span = np.where(within, x, -np.inf).max(axis=0) - np.where(within, x, np.inf).min(axis=0)
        return np.asarray((3 * span >= most - least) | (most == least))


def _codes(x: NDArray[np.float64]) -> list[tuple[float, int]]:
    """Return the values of a column that look like codes, and how often they occur."""
    x = x[np.isfinite(x)]
    if len(x) < REPEATED:
        return []
    low, middle, high = np.quantile(x, (0.25, 0.5, 0.75))
    if x.min() >= middle - SPREADS * (middle - low) and x.max() <= middle + SPREADS * (high - middle):
        return []
    values, counts = np.unique(x, return_counts=True)
    # from both ends inwards, values that repeat and have a gap to all that's within
    first, last, found = 0, len(values) - 1, []
    while last - first >= 2:
        ranges_off = RANGES if last - first >= FEW else RANGES_OF_FEW
        gaps = values[first + 1] - values[first], values[last] - values[last - 1]
        end = first if gaps[0] >= gaps[1] else last
        inner = (values[first + 1], values[last]) if end == first else (values[first], values[last - 1])
        if counts[end] < REPEATED or not max(gaps) > ranges_off * (inner[1] - inner[0]):
            # the other end may hold the codes that make the range
            end = last if end == first else first
            gap = gaps[0] if end == first else gaps[1]
            within = values[last - 1] - values[first + 1]
            if counts[end] < REPEATED or not 0 < ranges_off * within < gap:
                break
        found.append((float(values[end]), int(counts[end])))
        first, last = (first + 1, last) if end == first else (first, last - 1)
    # what is left must be most of the column: else it's a cluster, not a code
    return found if sum(times for _, times in found) < 0.5 * len(x) else []
