"""Warnings about a fitted mixture: codes for missing values, components on a few equal rows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from residmix.design.doubts.codes import ranges, tell_of_codes
from residmix.errors import DegenerateComponentWarning, MissingCodeWarning, note, warn
from residmix.mixture.doubts.spikes import all_bare, count, none_apart, none_narrow, spikes
from residmix.mixture.iteration.estep import Problem
from residmix.mixture.iteration.step import block_log_joint
from residmix.mixture.params import MixtureParams
from residmix.mixture.starts.sample import LARGEST, Sample
from residmix.rows.block import Block
from residmix.rows.rows import Rows
from residmix.rows.sampled import regularly

__all__ = ["spikes_amid", "tell_of_doubts", "tell_of_spikes", "tell_of_values"]

# Rows that are looked at, evenly spread.
LOOKED_AT = 10_000
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
    tell_of_values(measured, names, aside=params.cells is not None)
    tell_of_spikes(rows, whole, params, ridge)


def tell_of_values(rows: Rows, names: Sequence[Any] | None = None, *, aside: bool = False) -> None:
    """Warn of values that may be codes for missing values, and of some that are too large to count.

    If single values are set `aside`, those are, and their rows count.
    """
    block = _looked_at(rows)
    x = np.asarray(block.X, dtype=np.float64)
    if block.weight is not None:
        x = x[block.weight > 0]
    least, most = ends = ranges(x)
    columns = range(x.shape[1]) if names is None else [str(name) for name in names]
    tell_of_codes(x, columns, rows.n_rows / max(block.n_rows, 1), ends=ends)
    if aside:
        return
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
