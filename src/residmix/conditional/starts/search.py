r"""Starts of joint estimation: mixtures of groups of rows with similar metadata, matched by a common shift.

In a group of rows with (nearly) the same metadata the effect of the metadata is a constant, so a mixture fitted to the
group alone sees the clusters as they are, whatever their proportions. If the metadata shift every cluster alike, one
vector moves the whole group onto another one, and the heaviest cluster of the one onto some cluster of the other. So
one group leads, and the others join it one by one: of the shifts that move a group's heaviest component onto one of
the components found so far, the one that makes its rows likeliest counts. Regressing the shifts on the metadata gives
the coefficients. Components have their own covariances, and in other candidates one in common: clusters that are rare
in every group have too few rows for their own, and such a component would rather split a frequent cluster. Each group
leads once. That fails where a group's heaviest cluster is its own: so in further candidates any component of a group
may be the one in common (`residmix.conditional.starts.matches`). Short runs on a subsample and the likelihood decide.
Where the likeliest match is about as likely as the groups' own mixtures, and its clusters are clear, it is enough.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from residmix.conditional.starts.groups import Group, as_likely_as_groups, groups_of
from residmix.conditional.starts.joined import constant_gate, joined, matched
from residmix.conditional.starts.short import best_of_short, settled, short_run
from residmix.conditional.starts.sought import Sought
from residmix.em.loop import EMState
from residmix.mixture.iteration.step import MixtureEM
from residmix.mixture.params import MixtureParams, SingularCovarianceError
from residmix.mixture.starts import find_starts, subsample
from residmix.rows.block import Block
from residmix.rows.rows import Rows

__all__ = ["conditional_starts"]

Floats = NDArray[np.float64]

# Groups that lead, the largest.
LEADS = 6
# Starts that go on after a few iterations, and those that are run to the end.
KEPT = (8, 3)


def conditional_starts(
    rows: Rows,
    sought: Sought,
    *,
    joint: bool,
    thorough: bool,
    n_init: int,
    init_params: str,
    given: dict[str, Floats | None],
    finish: Callable[[MixtureEM, MixtureParams], EMState[MixtureParams]],
) -> list[MixtureParams]:
    """Return starts; for joint estimation they include the two-stage result, so that it can't be worse.

    That is left out where one is found that hardly any could be likelier than. Of two stages the first `n_init` are
    wanted; those after them are for fits that end in components on a few rows.

    Parameters
    ----------
    rows : Rows
        Least-squares residuals and orthonormal design rows (:class:`residmix.conditional.coordinates.ToResidual`).
    sought : Sought
    joint : bool
        Whether the coefficients are estimated with the mixture.
    thorough : bool
        Whether the search goes on when a start can hardly be beaten, since the likelihood will be another one.
    n_init, init_params, given
        As in :class:`residmix.GaussianMixture`, the given starting values checked.
    finish : callable
        Runs EM to its end.
    """
    starts: list[MixtureParams] = []
    spare: list[MixtureParams] = []
    K, reg_covar = sought.n_components, sought.reg_covar

    def with_metadata(mixture: MixtureParams) -> MixtureParams:
        gate = constant_gate(mixture.weights, sought.widths.gate) if sought.gated else None
        return replace(mixture, coef=np.zeros((sought.widths.effects, rows.n_features)), gate=gate)

    for _ in range(n_init):
        # with hundreds of components the search among groups takes too long
        found, enough = list[MixtureParams](), False
        if joint and init_params != "many" and all(value is None for value in given.values()):
            found, enough = _joint_starts(rows, sought, thorough)
        if not enough:
            mixture, *others = find_starts(
                rows,
                K,
                covariance_type=sought.covariance_type,
                reg_covar=reg_covar,
                init_params=init_params,
                random_state=sought.random_state,
                **given,
            )
            start = with_metadata(mixture)
            if not joint:
                spare += map(with_metadata, others)
            else:
                # a start that collapses here is judged, and reported, where all starts are run
                with suppress(SingularCovarianceError):
                    start = finish(MixtureEM(rows, reg_covar, joint=False), start).params
            starts.append(start)
        starts += found
    return starts + spare


def _joint_starts(rows: Rows, sought: Sought, thorough: bool) -> tuple[list[MixtureParams], bool]:
    """Return the most promising starts, the best first, and whether hardly any could be likelier."""
    block = subsample(rows, sought.n_components, sought.random_state)
    if sought.n_components == 1 or sought.widths.effects == 0:
        return [], False
    groups = groups_of(block.design, sought.n_components, block.X.shape[1], sought.random_state)
    if len(groups) < 2:
        return [], False
    parts = list[Group]()
    with suppress(SingularCovarianceError):
        parts = [Group.of(block, index, sought, sought.covariance_type) for index in groups]
        if not thorough:
            first = short_run(block, next(matched(parts, sought)), sought).params
            if as_likely_as_groups(first, block, parts):
                return [settled(block, first, sought)], True
    return best_of_short(block, _candidates(block, groups, parts, sought), sought, KEPT), False


def _candidates(
    block: Block, groups: list[NDArray[np.intp]], parts: list[Group], sought: Sought
) -> Iterator[MixtureParams]:
    """Yield starts from groups' mixtures, `parts` those of the family that is wanted."""
    for kind in dict.fromkeys((sought.covariance_type, "tied")):
        # a candidate whose covariance collapses is none
        with suppress(SingularCovarianceError):
            if kind != sought.covariance_type:
                parts = [Group.of(block, index, sought, kind) for index in groups]
            if parts:
                yield from matched(parts, sought)
                for lead in range(min(len(parts), LEADS)):
                    yield from joined(parts, lead, sought)
