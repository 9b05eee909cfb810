"""Covariances by level of a factor: which levels have their own, starts of such fits, and checks of settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from residmix.design.design import Design
from residmix.design.terms import find_term
from residmix.em.loop import EMState
from residmix.errors import note
from residmix.mixture.families.family import FACTOR, family
from residmix.mixture.iteration.groups import with_groups
from residmix.mixture.iteration.step import MixtureEM
from residmix.mixture.params import MixtureParams, SingularCovarianceError
from residmix.mixture.selection.candidates import kinds
from residmix.moments.by_level import Grouping
from residmix.rows.rows import Rows

__all__ = ["cells", "check_by_group", "grouped_starts", "grouping_of", "tell_of_pooled"]

Floats = NDArray[np.float64]
Groups = NDArray[np.intp]
State = EMState[MixtureParams]

# A component's covariance in a group needs so many times the rows without which it would be singular.
ROOM = 2.0
# Levels that a note names.
SHOWN = 10


def grouping_of(design: Design, name: str) -> Grouping:
    """Return the factor `name` of a design, by whose levels covariances differ.

    Raises
    ------
    ValueError
        If it is no factor with columns of its own in the formula.
    """
    term = find_term(design.terms, name, "covariance_by")
    if term.kind != "factor":
        raise ValueError(
            f"covariance_by={name!r} needs a factor of the formula whose levels have a column each, as C({name}); it "
            f"is {term.kind}"
        )
    return Grouping(term.name, term.columns, design.level_rows(term))


def check_by_group(model: Any) -> None:
    """Raise for settings that covariances by group don't work with."""
    given = {
        "formula=None": model.formula is None,
        "noise=True": model.noise,
        'distribution="t"': model.distribution == "t",
        f"trim={model.trim:g}": bool(model.trim),
        "prior": model.prior is not None,
        "eigenvalue_ratio": model.eigenvalue_ratio is not None,
        'missing_features="em"': model.missing_features == "em",
        f"missing={model.missing!r}": model.missing != "error",
        f"on_unknown={model.on_unknown!r}": model.on_unknown != "error",
        'covariance_type="factor"': FACTOR in kinds(model.covariance_type),
        "warm_start=True": model.warm_start,
    }
    found = [name for name, there in given.items() if there]
    if found:
        raise ValueError(
            f"covariance_by={model.covariance_by!r} can't be combined with {' and '.join(found)}; leave one of them out"
        )


def cells(rows: Rows, params: MixtureParams, n_levels: int) -> Floats:
    """Return how many rows each level has of each component, (L, K)."""
    every = with_groups(params, np.zeros((n_levels, params.n_components)), np.arange(n_levels))
    moments = MixtureEM(rows, 0.0).moments(every)
    return moments.weight.reshape(n_levels, -1)


def groups_for(held: Floats, needed: float) -> Groups:
    """Return the group of each level (L,): itself, or with all others whose components have too few rows.

    Parameters
    ----------
    held : ndarray (L, K)
        Rows of each level and component.
    needed : float
    """
    few = held.min(axis=1) < needed
    if not few.any():
        return np.arange(len(held))
    order = np.argsort(held.min(axis=1), kind="stable")
    together = int(few.sum())
    while together < len(held) and held[order[:together]].sum(axis=0).min() < needed:
        together += 1
    group = np.empty(len(held), dtype=np.intp)
    alone = np.sort(order[together:])
    group[alone] = np.arange(len(alone))
    group[order[:together]] = len(alone)
    return group


def grouped_starts(
    rows: Rows,
    starts: Sequence[MixtureParams],
    n_levels: int,
    *,
    finish: Callable[[MixtureEM, MixtureParams], State],
    reg_covar: float,
) -> list[MixtureParams]:
    """Return where fits with covariances by group begin: at the ends of those with the same ones at all levels.

    So they are never less likely than these. Levels are put together until each component has rows enough in every
    group, at the end of the fit, too; then they stay.
    """
    ended: list[State] = []
    for start in starts:
        # a start that collapses is reported where all starts are run, if none is left
        with suppress(SingularCovarianceError):
            ended.append(finish(MixtureEM(rows, reg_covar), start))
    if not ended:
        return list(starts)
    found = []
    ended.sort(key=lambda state: -state.log_likelihood)
    for state in ended[:2]:
        params = state.params
        needed = ROOM * family(params.covariance_type).rows_needed(params.n_features)
        held = cells(rows, params, n_levels)
        if params.family.shared:  # components of a group have one covariance, of all its rows
            held = held.sum(axis=1, keepdims=True)
        group = groups_for(held, needed)
        while True:
            # what each group holds of a component is found by the first pass
            start = with_groups(params, np.full((group.max() + 1, params.n_components), 1.0), group)
            with suppress(SingularCovarianceError):
                end = finish(MixtureEM(rows, reg_covar), start).params
                assert end.by_group is not None
                held_now = end.by_group.share * held.sum()
                held_now = held_now.sum(axis=1, keepdims=True) if params.family.shared else held_now
                if len(held_now) == 1 or held_now.min() >= needed:
                    found.append(end)
                    break
                group = _joined(group, held_now)
                continue
            if group.max() == 0:
                break
            group = _joined(group, _by_group(held, group))
    return found or list(starts)


def _by_group(held: Floats, group: Groups) -> Floats:
    share = np.zeros((int(group.max()) + 1, held.shape[1]))
    np.add.at(share, group, held / held.sum())
    return share


def _joined(group: Groups, share: Floats) -> Groups:
    """Return groups of which the one with the fewest rows of a component has joined the one next to it in that."""
    first, second = np.argsort(share.min(axis=1), kind="stable")[:2]
    joined = np.where(group == first, second, group)
    return np.unique(joined, return_inverse=True)[1].astype(np.intp)


def tell_of_pooled(params: MixtureParams, levels: Sequence[str]) -> None:
    """Add a note for levels that share their covariances."""
    by = params.by_group
    assert by is not None
    sizes = np.bincount(by.group)
    pooled = [levels[int(level)] for level in np.flatnonzero(sizes[by.group] > 1)]
    if not pooled:
        return
    shown = ", ".join(map(str, pooled[:SHOWN])) + (f" and {len(pooled) - SHOWN} more" if len(pooled) > SHOWN else "")
    needed = ROOM * params.family.rows_needed(params.n_features)
    note(
        "covariances-pooled",
        f"{len(pooled)} of {len(levels)} levels share their covariances, since a component has fewer than {needed:g} "
        f"rows there: {shown}",
        levels=[str(level) for level in pooled],
        rows_needed=needed,
    )
