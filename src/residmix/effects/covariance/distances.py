"""How far the covariances of levels lie from the pooled one, before and after they are brought there."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from residmix.effects.covariance.shrinkage import divergence, is_identity, shrunk, weights
from residmix.effects.covariance.sums import Standard, by_moments
from residmix.effects.covariance.transport import Covariances, along_axes
from residmix.effects.removal import LinearRemoval
from residmix.moments.by_level import Grouping
from residmix.rows.threads import by_worker

__all__ = ["distances", "level_distances"]

Array = NDArray[np.float64]


def level_distances(found: LinearRemoval, grouping: Grouping) -> Array:
    """Return the distances (L, 2) of a fit: from its moments, unless the fit has kept them."""
    own = found.covariance
    assert own is not None
    if own.distances is not None:
        return own.distances
    moments: Any = found.moments
    known = by_moments(moments, grouping, found, within=own.within)
    return distances(known.along(own.axes / _turn(known, own)), own)


def distances(known: Standard, own: Covariances) -> Array:
    """Return the divergence of each level's shrunk covariance from the pooled one, before and after, (L, 2).

    What is known is that along the axes, in coordinates in which the pooled covariance is the identity.
    """
    return np.array(by_worker(partial(_of_level, known, own, _turn(known, own)), range(len(own.maps))))


def _turn(known: Standard, own: Covariances) -> Array:
    return np.sqrt(known.variances[: own.axes.shape[1]] / known.degrees)


def _of_level(known: Standard, own: Covariances, turn: Array, k: int) -> tuple[float, float]:
    products, degrees = known.products(k), float(known.weight[k]) - 1.0
    stretch = along_axes(own.maps[k])
    before = _far(products, degrees)
    if stretch is None:
        changed = even(products, own.maps[k] * turn / turn[:, None], degrees)
    elif np.all(stretch == 1.0):
        return before, before
    else:
        changed = products * stretch[:, None] * stretch
    return before, _far(changed, degrees)


def _far(products: Array, degrees: float) -> float:
    estimate = shrunk(products / max(degrees, 1.0), degrees)
    return 0.0 if is_identity(estimate) else divergence(estimate)


def even(products: Array, change: Array, degrees: float) -> Array:
    r"""Return the products of scores to which the inverse root A of their shrunk covariance is applied, A Z A'.

    Of that covariance, :math:`\operatorname{diag}(\delta) + (1 - w_O) Z`, A makes the identity: one product is enough.
    """
    sample = np.diagonal(products) / degrees
    w_d, w_o = weights(products / degrees, degrees)
    half = change * np.sqrt(w_d + (w_o - w_d) * sample)
    return np.asarray((np.eye(len(change)) - half @ half.T) * (degrees / (1.0 - w_o)))
