r"""Check if component labels correspond across the levels of a factor, with effects by component.

A component's mean at a level is free then, so components k and l may trade places there. What that costs in
log-likelihood is what else they have in common with themselves at other levels: a weight, unless weights depend on the
metadata; a covariance, unless all components have one or levels have their own; and the effects of other metadata.

.. math:: \sum_{(k, l)} N_k \log\frac{\pi_k}{\pi_l} + N_k KL(\Sigma_k \| \Sigma_l)
    + \tfrac12 tr\, P_l (D_k - D_l)' S_k (D_k - D_l)

summed over both orders, with the rows N of the components at the level and the scatter S of the metadata within them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from residmix.conditional.coordinates import ToResidual
from residmix.design.design import Design
from residmix.errors import DesignWarning, warn
from residmix.mixture.iteration.estep import MixtureMoments
from residmix.mixture.iteration.groups import with_groups
from residmix.mixture.iteration.step import MixtureEM, with_effects_only
from residmix.mixture.params import MixtureParams
from residmix.rows.rows import Rows

__all__ = ["swap_costs", "tell_of_permuted"]

Floats = NDArray[np.float64]

# Nats below which trading places counts as likely as not: odds of 20 to 1.
LIKELY = 3.0
# Components with fewer rows than so many at a level aren't there.
THERE = 1.0
SHOWN = 5


def tell_of_permuted(raw: Rows, to_residual: ToResidual, params: MixtureParams, design: Design, own: bool) -> None:
    """Warn of levels at which the labels of two components could be swapped.

    Parameters
    ----------
    raw : Rows
        With design rows, as `to_residual` takes them.
    own : bool
        Whether levels have covariances of their own.
    """
    if not params.by_component or params.n_components == 1 or params.missing or params.trim is not None:
        return
    params = replace(params, by_group=None, noise=None, dof=None, restraint=None)
    for term in design.terms:
        if term.kind != "factor":
            continue
        coded = design.level_rows(term)
        rows = raw.mapped(replace(to_residual, levels=(term.columns.start, coded)))
        # a gate without this factor ties the components together across its levels, as constant weights do
        free = params.gate is not None and bool(to_residual.widths.of_gate(to_residual.basis)[term.columns].any())
        found = swap_costs(rows, params, len(coded), own=own, free=free)
        cheap = sorted((cost, level, k, l) for level, k, l, cost in found if cost < LIKELY)
        if not cheap:
            continue
        names: Sequence[str] = term.levels
        told = [f"{k} and {l} at {names[level]}" for _, level, k, l in cheap[:SHOWN]]
        warn(
            f"labels can't be matched across the levels of {term.name}: components {', '.join(told)} could be "
            f"swapped{f', and {len(cheap) - SHOWN} more' if len(cheap) > SHOWN else ''} at a cost of less than "
            f"{LIKELY:g} nats. Compare components within levels only, or use effects='shared' or gating='constant'",
            DesignWarning,
            kind="labels-not-matched",
            factor=term.name,
            swaps=[[k, l, str(names[level]), cost] for cost, level, k, l in cheap],
        )


def swap_costs(
    rows: Rows, params: MixtureParams, n_levels: int, *, own: bool, free: bool | None = None
) -> list[tuple[int, int, int, float]]:
    """Return level, two components that are there, and the log-likelihood that their trading places costs.

    `free` tells whether weights depend on the level. Default: if they depend on metadata.
    """
    free = params.gate is not None if free is None else free
    K, r, d = params.n_components, params.n_design, params.n_features
    every = with_groups(params, np.zeros((n_levels, K)), np.arange(n_levels))
    whole = MixtureEM(rows, 0.0).moments(every)
    moments, tied = with_effects_only(whole, params), _prior_costs(whole, params, n_levels)
    n = moments.weight.reshape(n_levels, K)
    shift = moments.shift[:, :r].reshape(n_levels, K, r)
    scatter = moments.scatter[:, :r, :r].reshape(n_levels, K, r, r)
    safe = np.where(n > 0, n, 1.0)
    within = scatter - shift[..., :, None] * shift[..., None, :] / safe[..., None, None]
    full, factors, coef = params.full_covariances(), params.full_factors(), np.asarray(params.coef)
    precisions, log_det = factors @ np.swapaxes(factors, 1, 2), params.log_det
    found = []
    for k, l in combinations(range(K), 2):
        apart = coef[k] - coef[l]
        for level in range(n_levels):
            if min(n[level, k], n[level, l]) < THERE:
                continue
            cost = 0.0
            for one, other in ((k, l), (l, k)):
                if not free:
                    cost += tied[level, one, other]
                if not own:
                    trace = np.sum(precisions[other] * full[one]) - d
                    cost += n[level, one] * (0.5 * trace + log_det[one] - log_det[other])
                cost += 0.5 * np.sum((apart.T @ within[level, one] @ apart) * precisions[other])
            found.append((level, k, l, float(cost)))
    return found


def _prior_costs(moments: MixtureMoments, params: MixtureParams, n_levels: int) -> Floats:
    r"""Return :math:`\sum_i r_{ik} \log(\pi_k(u_i) / \pi_l(u_i))` over each level's rows, (L, K, K)."""
    K = params.n_components
    n = moments.weight.reshape(n_levels, K)
    if params.gate is None:
        logs = params.log_weights
        return np.asarray(n[:, :, None] * (logs[:, None] - logs))
    sums = np.column_stack([params.gate.columns_of(moments.shift), moments.weight]).reshape(n_levels, K, -1)
    apart = params.gate.coef[:, None] - params.gate.coef
    return np.asarray(np.einsum("gkm,klm->gkl", sums, apart))
