"""Warnings about a fitted mixture: codes for missing values, components on a few equal rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from residmix.errors import DegenerateComponentWarning, MissingCodeWarning, note, warn
from residmix.mixture.doubts.spikes import all_bare, count, none_apart, none_narrow, spikes
from residmix.mixture.iteration.estep import Problem
from residmix.mixture.iteration.step import block_log_joint
from residmix.mixture.params import MixtureParams
from residmix.mixture.starts.sample import LARGEST, Sample
from residmix.rows.block import Block
from residmix.rows.rows import Rows
from residmix.rows.sampled import regularly

__all__ = ["spikes_amid", "tell_of_codes", "tell_of_doubts", "tell_of_spikes"]

# Rows that are looked at, evenly spread.
LOOKED_AT = 10_000
# How often a value must repeat to be a code, and how far off the others it must lie, in their spreads and their range.
REPEATED = 3
SPREADS = 10.0
RANGES = 2.0
# Rows that nearly always suffice to see that a column has no codes.
SIEVED = 64
# Values, rows and components that a message names.
SHOWN = 10


def _looked_at(rows: Rows) -> Block:
    return rows.take(regularly(rows.n_rows, LOOKED_AT))


def tell_of_doubts(
    measured: Rows, names: Sequence[Any] | None, rows: Rows, whole: Rows, params: MixtureParams, ridge: float
) -> None:
    """Give all warnings about a fitted mixture.

    Parameters
    ----------
    measured : Rows
        The original rows, before residualization.
    names : sequence or None
    rows : Rows
        The rows that the mixture was fitted to.
    whole : Rows
        The same with missing values filled.
    params : MixtureParams
    ridge : float
        The regularisation in the covariances.
    """
    tell_of_codes(measured, names)
    tell_of_spikes(rows, whole, params, ridge)


def tell_of_codes(rows: Rows, names: Sequence[Any] | None = None) -> None:
    """Warn of repeated values like -999 far outside the others of a column, which may be codes for missing values.

    Such a value occurs at least three times, at a distance from all other values of at least twice their range.
    """
    block = _looked_at(rows)
    x = np.asarray(block.X, dtype=np.float64)
    if block.weight is not None:
        x = x[block.weight > 0]
    share = rows.n_rows / max(block.n_rows, 1)
    found: list[dict[str, Any]] = []
    least, most = _ranges(x)
    for j in _perhaps_coded(x, least, most):
        for value, times in _codes(x[:, j]):
            name = j if names is None else str(names[j])
            found.append({"column": name, "value": value, "rows": round(times * share)})
    if found:
        shown = ", ".join(f"{one['value']:g} in column {one['column']!r} ({one['rows']} rows)" for one in found[:SHOWN])
        about = "" if share == 1 else "about "
        warn(
            f"values repeat far outside all others: {about}{shown}. If they are codes for missing values, replace "
            "them by NaN or leave these rows out",
            MissingCodeWarning,
            values=found,
        )
    # NaN may hide others
    unsure = ~((least > -LARGEST) & (most < LARGEST))
    beyond = int((np.abs(x[:, unsure]) >= LARGEST).any(axis=1).sum())
    if beyond:
        warn(
            f"{beyond} rows are ignored, because they hold values of {LARGEST:g} or more, whose squares overflow. "
            "Remove or correct them",
            MissingCodeWarning,
            kind="overflow",
            rows=beyond,
        )


def _ranges(x: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
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
    low, middle, high = np.quantile(x, (0.1, 0.5, 0.9))
    if x.min() >= middle - SPREADS * (middle - low) and x.max() <= middle + SPREADS * (high - middle):
        return []
    values, counts = np.unique(x, return_counts=True)
    # from both ends inwards, values that repeat and have a gap to all that's within
    first, last, found = 0, len(values) - 1, []
    while last - first >= 2:
        gaps = values[first + 1] - values[first], values[last] - values[last - 1]
        end = first if gaps[0] >= gaps[1] else last
        inner = (values[first + 1], values[last]) if end == first else (values[first], values[last - 1])
        if counts[end] < REPEATED or not max(gaps) > RANGES * (inner[1] - inner[0]):
            # the other end may hold the codes that make the range
            end = last if end == first else first
            gap = gaps[0] if end == first else gaps[1]
            if counts[end] < REPEATED or not gap > RANGES * (values[last - 1] - values[first + 1]):
                break
        found.append((float(values[end]), int(counts[end])))
        first, last = (first + 1, last) if end == first else (first, last - 1)
    # what is left must be most of the column: else it's a cluster, not a code
    return found if sum(times for _, times in found) < 0.5 * len(x) else []


def spikes_amid(rows: Rows, whole: Rows, params: MixtureParams, ridge: float) -> list[int]:
    """Return the components on a few rows amid the others; `whole` are the rows with missing values filled."""
    if none_narrow(params):
        return []
    total = count(rows)
    if not spikes(params, total, ridge=ridge):
        return []
    far = Sample.of(_looked_at(whole), params.covariance_type).far(params.means)
    return spikes(params, total, far, ridge)


def tell_of_spikes(rows: Rows, whole: Rows, params: MixtureParams, ridge: float) -> None:
    """Warn of components on a few nearly equal rows amid the others; add a note for those far outside.

    `whole` are the rows with missing values filled, `ridge` is the regularisation in the covariances.
    """
    if all_bare(params, ridge):
        warn(
            f"there are no more distinct rows than components: each of the {params.n_components} sits on nearly equal "
            "rows, where the likelihood is unbounded. Use fewer components",
            DegenerateComponentWarning,
            kind="spike",
            components=params.n_components,
        )
        return
    if none_apart(whole, params, ridge):
        warn(
            f"all rows are equal, so the {params.n_components} components lie on one point. Use one component, or "
            "features that vary",
            DegenerateComponentWarning,
            kind="equal-rows",
            components=params.n_components,
        )
        return
    if none_narrow(params):
        return
    total = count(rows)
    # nearly equal, or no wider than what is added for all, which may be more than that
    everything = sorted({*spikes(params, total), *spikes(params, total, ridge=ridge)})
    if not everything:
        return
    sample = Sample.of(_looked_at(whole), params.covariance_type)
    far = sample.far(params.means)
    amid = [k for k in everything if not far[k]]
    for told, chosen in ((True, amid), (False, [k for k in everything if far[k]])):
        for k in chosen[:SHOWN]:
            index = _rows_of(rows, params, k)
            if not index:  # one that died has been told of
                continue
            shown = ", ".join(map(str, index[:SHOWN])) + (", ..." if len(index) > SHOWN else "")
            few = f"{len(index)} nearly equal rows (rows {shown})" if len(index) > 1 else f"row {shown} alone"
            message = f"component {k} sits on {few}, where the likelihood is unbounded. "
            figures = {"component": k, "rows": index[:1000], "count": len(index)}
            if told:
                remedy = "Use fewer components, or raise reg_covar to the square of the values' precision"
                warn(message + remedy, DegenerateComponentWarning, kind="spike", **figures)
            else:
                note("far-component", message + "It lies far outside the others", **figures)


def _rows_of(rows: Rows, params: MixtureParams, k: int) -> list[int]:
    """Return the numbers of the rows whose most probable component is k."""
    problem = Problem.of(params, n_rows=rows.n_rows)
    index: list[int] = np.concatenate(list(rows.map(partial(_of_component, problem, k)))).tolist()
    return index


def _of_component(problem: Problem, k: int, block: Block) -> NDArray[np.intp]:
    mine = block_log_joint(problem, block).argmax(axis=1) == k
    return block.start + np.flatnonzero(mine if block.weight is None else mine & (block.weight > 0))
