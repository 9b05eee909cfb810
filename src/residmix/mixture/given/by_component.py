r"""Effects that differ by component: :math:`N(x \mid \mu_k + D_k' u, \Sigma_k)` as a normal of the row [u, x].

With the precision's triangular factor F_k a row's distance is the length of

.. math:: (x - \mu_k - D_k' u)' F_k = [u, x - \mu_k]' \begin{pmatrix} 0 & -D_k F_k \\ 0 & F_k \end{pmatrix},

and that matrix is upper triangular, too: the loops for normal components serve as they are. Given responsibilities
the coefficients are weighted least squares within each component, whatever the covariances are (DeSarbo & Cron 1988,
"A maximum likelihood methodology for clusterwise linear regression", J. Classif. 5; Gruen & Leisch 2008, J. Stat.
Softw. 28(4), flexmix).
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cho_factor, cho_solve

if TYPE_CHECKING:
    from residmix.mixture.iteration.estep import MixtureMoments
    from residmix.mixture.params import MixtureParams

__all__ = ["effects_of", "heirs", "joined_factors", "joined_means", "own_coefficients", "steep"]

Floats = NDArray[np.float64]

# Squared effect of a unit of u in standard deviations above which rows are taken less each component's own effect: else
# scatters of [u, x] would lose the digits of what is left.
STEEP = 1e8
# Directions of u whose variance within a component is below this share of the mean one aren't seen by it.
UNSEEN = 1e-10
# Where the pivots of a factor are above this share, no direction is near that.
PLAIN = 1e-6


def joined_means(params: MixtureParams) -> Floats:
    """Return [0, mean_k], (K, r + d)."""
    return np.hstack([np.zeros((params.n_components, params.n_design)), params.means])


def joined_factors(params: MixtureParams) -> Floats:
    """Return the triangular factors of [u, x - mean_k], (K, r + d, r + d)."""
    assert params.coef is not None
    r, (K, d) = params.n_design, params.means.shape
    factors = np.zeros((K, r + d, r + d))
    factors[:, r:, r:] = params.full_factors()
    factors[:, :r, r:] = -params.coef @ factors[:, r:, r:]
    return factors


def steep(params: MixtureParams) -> bool:
    """Tell whether effects by component are so large beside what is left that digits would be lost."""
    if not params.by_component:
        return False
    assert params.coef is not None
    slopes = params.coef @ params.full_factors()
    return bool(np.einsum("krd,krd->k", slopes, slopes).max() > STEEP)


def effects_of(params: MixtureParams, u: Floats) -> Floats:
    """Return each component's effect of design rows (b, r): (K, b, d)."""
    assert params.coef is not None
    return params.columns_of(u) @ params.coef


def own_coefficients(moments: MixtureMoments, base: Floats) -> Floats:
    r"""Return the change of the coefficients (K, r, d): :math:`A_k^{-1} C_k` of the scatters within each component.

    Directions of u that a component doesn't see (it has no rows at a site, say) get the coefficients 0, which are
    those of least squares on all rows: of all answers the one whose departure from them is least over the rows.

    Parameters
    ----------
    moments : MixtureMoments
        Of the rows [u, x less the effect of `base`].
    base : ndarray (K, r, d)
        What the change is to.
    """
    K, r = base.shape[:2]
    weight = np.where(moments.weight > 0, moments.weight, 1.0)
    mean = moments.shift / weight[:, None]
    within = moments.scatter / weight[:, None, None] - mean[:, :, None] * mean[:, None, :]
    return np.stack([_seen(within[k, :r, :r], within[k, :r, r:], base[k]) for k in range(K)])


def _seen(a: Floats, c: Floats, base: Floats) -> Floats:
    """Return the change that solves ``a change = c`` where `a` has a size, and takes `base` back elsewhere."""
    size = float(np.trace(a)) / len(a)
    if not size > 0:
        return -base
    with suppress(LinAlgError):
        factor = cho_factor(a)
        if np.diagonal(factor[0]).min() ** 2 > PLAIN * size:
            return np.asarray(cho_solve(factor, c), dtype=np.float64)
    values, vectors = np.linalg.eigh(a)
    seen, unseen = vectors[:, values > UNSEEN * size], vectors[:, values <= UNSEEN * size]
    found: Floats = seen @ ((seen.T @ c) / values[values > UNSEEN * size, None]) - unseen @ (unseen.T @ base)
    return found


def heirs(weight: Floats, dead: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Return which component each dead one takes half of, in the order in which it's done: the heaviest then."""
    weight, found = np.where(dead, 0.0, weight), []
    for k in np.flatnonzero(dead):
        heavy = int(np.argmax(weight))
        weight[k] = weight[heavy] = 0.5 * weight[heavy]
        found.append((int(k), heavy))
    return found
