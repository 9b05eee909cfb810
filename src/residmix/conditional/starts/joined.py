"""Groups' mixtures become one mixture given metadata: groups join a leading one, or are matched, and are regressed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from residmix.conditional.starts.groups import GROUP_ITERATIONS, Group
from residmix.conditional.starts.matches import likely_matches
from residmix.conditional.starts.sought import Sought
from residmix.em.loop import run_em
from residmix.mixture.given.gate import Gate, make_gate
from residmix.mixture.iteration.step import MixtureEM
from residmix.mixture.params import MixtureParams, params_as
from residmix.mixture.starts import find_start
from residmix.rows.rows import ArrayRows

__all__ = ["constant_gate", "gate_from", "joined", "matched"]

Floats = NDArray[np.float64]


def joined(groups: list[Group], lead: int, sought: Sought) -> Iterator[MixtureParams]:
    """Yield the starts that come of the groups' joining a leading one, the largest first.

    The second one has a mixture found anew among all rows, once they are where their shifts put them: clusters that
    the leading group lacks may have found no component.
    """
    first = groups[lead]
    order = [first] + [group for group in groups if group is not first]
    mixture, reg_covar = first.mixture, sought.reg_covar
    shifts, weights = [np.zeros(mixture.n_features)], [mixture.weights]
    x, weight = first.x, first.weight
    for group in order[1:]:
        shift, share = group.joined(mixture)
        shifts.append(shift)
        weights.append(share)
        x = np.concatenate([x, group.x - shift])
        weight = None if weight is None or group.weight is None else np.concatenate([weight, group.weight])
        em = MixtureEM(ArrayRows(x, weight=weight), reg_covar)
        mixture = run_em(em, mixture, tol=1e-5, max_iter=GROUP_ITERATIONS).params
    yield _start_from(order, mixture, shifts, weights, sought)
    anew = find_start(
        ArrayRows(x, weight=weight),
        sought.n_components,
        covariance_type=sought.covariance_type,
        reg_covar=reg_covar,
        random_state=sought.random_state,
    )
    yield _shifted(order, anew, shifts, sought)


def matched(groups: list[Group], sought: Sought) -> Iterator[MixtureParams]:
    """Yield the starts that come of the likeliest matches of the groups' components, any with any."""
    for mixture, shifts in likely_matches([group.mixture for group in groups], [group.total for group in groups]):
        yield _shifted(groups, mixture, shifts, sought)


def _shifted(groups: list[Group], mixture: MixtureParams, shifts: Sequence[Floats], sought: Sought) -> MixtureParams:
    """Return the start that a mixture of all groups makes, which are shifted by about so much."""
    _, shifts, weights = zip(*map(lambda group, shift: group.shifted(mixture, shift), groups, shifts), strict=True)
    return _start_from(groups, mixture, shifts, weights, sought)


def _start_from(
    groups: list[Group], mixture: MixtureParams, shifts: Sequence[Floats], weights: Sequence[Floats], sought: Sought
) -> MixtureParams:
    """Regress the groups' shifts and the logarithms of their weights on where they are."""
    every, sizes = np.stack([group.centre for group in groups]), np.array([float(len(group.x)) for group in groups])
    places, centres = sought.widths.of_gate(every), sought.widths.of_effects(every)
    shift, weight = np.stack(shifts), np.stack(weights)
    middle = np.average(centres, axis=0, weights=sizes)
    common, root = np.average(shift, axis=0, weights=sizes), np.sqrt(sizes)[:, None]
    slopes = np.linalg.lstsq(root * (centres - middle), root * (shift - common), rcond=1e-8)[0]
    coef: Floats = np.asarray(slopes, dtype=np.float64)
    # shifts are about the leading group, coefficients about the mean of all rows
    means = mixture.means + common - middle @ coef
    total = np.maximum(np.average(weight, axis=0, weights=sizes), 1e-12)
    start = replace(params_as(mixture, sought.covariance_type), weights=total / total.sum(), means=means, coef=coef)
    return replace(start, gate=gate_from(start.weights, weight, places, sizes)) if sought.gated else start


def gate_from(common: Floats, weights: Floats, centres: Floats, sizes: Floats) -> Gate:
    """Regress the logarithms of the weights (G, K) of groups on where they are; `common` (K,) are those of all."""
    about, root = centres - np.average(centres, axis=0, weights=sizes), np.sqrt(sizes)[:, None]
    within = np.log(np.maximum(weights, 0.02))
    slopes = np.linalg.lstsq(root * about, root * (within - within.mean(axis=1, keepdims=True)), rcond=1e-8)[0]
    gate = constant_gate(common, centres.shape[1]).coef.copy()
    gate[:, :-1] = slopes.T
    return make_gate(gate)


def constant_gate(weights: Floats, r: int) -> Gate:
    """Return the gate with the constant weights `weights`."""
    coef = np.zeros((len(weights), r + 1))
    coef[:, -1] = np.log(np.maximum(weights, 1e-12))
    return make_gate(coef)
