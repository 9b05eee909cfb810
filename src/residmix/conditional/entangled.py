"""Shifts and gates that aren't identified separately, because metadata determine the component."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from residmix.conditional.coordinates import ToResidual
from residmix.errors import EntangledEffectsWarning, warn
from residmix.mixture.iteration.step import MixtureEM
from residmix.mixture.params import MixtureParams
from residmix.rows.block import Block
from residmix.rows.rows import Rows

__all__ = ["tell_of_entangled"]

Floats = NDArray[np.float64]

# Share of a direction's variance within components, below which shift and gate are not told apart.
WITHIN = 0.01
# Columns are named that carry this share of what the foremost one does.
CARRIES = 0.5


def tell_of_entangled(
    rows: Rows,
    params: MixtureParams,
    to_residual: ToResidual,
    columns: Sequence[str],
    coef: Floats,
    bic: float,
    n_rows: float,
) -> None:
    r"""Warn if a shift and a difference in proportions fit equally well, as with one cluster per site.

    Asked of the metadata that both depend on. This is so if components don't differ within sites: either the metadata
    hardly vary within components, by :math:`W = \sum_{ik} r_{ik} (u_i - \bar u_k)(u_i - \bar u_k)' / n` of the
    orthonormal design rows u, which is the identity where components and metadata are unrelated; or one normal about
    the shifts has the lower BIC.
    """
    widths, m = to_residual.widths, to_residual.basis.shape[1]
    both = slice(m - widths.effects, widths.gate)
    if params.n_components == 1 or both.stop <= both.start:
        return
    moments, basis = MixtureEM(rows, 0.0).moments(params), to_residual.basis[:, both]
    held = moments.weight > 0
    shift = moments.shift[held, both]
    within = moments.scatter[held, both, both].sum(axis=0) - (shift / moments.weight[held, None]).T @ shift
    values, vectors = np.linalg.eigh(0.5 * (within + within.T) / moments.total)
    alone = _bic_of_one(rows, widths.effects, n_rows, np.linalg.pinv(to_residual.effects_basis) @ coef)
    if values[0] >= WITHIN and alone > bic:
        return
    inverse = np.linalg.pinv(basis)
    scale = np.sqrt((inverse**2).sum(axis=0))
    load = np.abs(vectors[:, 0] @ inverse) / np.where(scale > 0, scale, 1.0)
    named = [str(columns[int(j)]) for j in np.flatnonzero(load >= CARRIES * load.max())]
    why = "one component fits as well" if alone <= bic else "the metadata determine the component"
    warn(
        f"effects of the metadata ({', '.join(named)}) can't be separated from the components, since {why}. Use "
        "gating='constant', or rows of sites that share clusters",
        EntangledEffectsWarning,
        columns=named,
        share_within=float(max(values[0], 0.0)),
        bic=float(bic),
        bic_of_one=float(alone),
    )


def _bic_of_one(rows: Rows, r: int, n_rows: float, effect: Floats) -> float:
    """Return the BIC of one normal about the least-squares fit, whose residuals the rows are.

    Infinite if the effect (r, d) of the metadata is below a standard deviation, too small for clusters.
    """
    scatter = np.asarray(rows.fold(_scatter, np.add))
    d = len(scatter) - 1
    total = scatter[d, d]
    if not np.isfinite(scatter).all():  # gaps, which one normal would have to fill first
        return np.inf
    sign, log_det = np.linalg.slogdet(scatter[:d, :d] / total)
    if sign <= 0 or np.einsum("ij,ij->i", effect, np.linalg.solve(scatter[:d, :d] / total, effect.T).T).max() < 1:
        return np.inf
    log_likelihood = -0.5 * total * (log_det + d * (1 + np.log(2 * np.pi)))
    return float(-2 * log_likelihood + (d + d * (d + 1) / 2 + r * d) * np.log(n_rows))


def _scatter(block: Block) -> Floats:
    """Return the weighted products of features, and the sum of weights in the last place."""
    x = np.hstack([np.asarray(block.X, dtype=np.float64), np.ones((block.n_rows, 1))])
    return (x if block.weight is None else x * block.weight[:, None]).T @ x
