r"""The remaining gain when EM seems to have converged, from the curvature of the likelihood.

Near a stationary point :math:`\theta^*` an iteration is linear, :math:`M(\theta) - \theta^* \approx J (\theta -
\theta^*)`, and the eigenvalues of J are the shares of information that isn't seen (Dempster, Laird & Rubin 1977, eq.
3.15). One near 1 is a valley that EM creeps along. One above 1 is a saddle that it leaves ever faster, though gains
may be tiny for hundreds of iterations. The ratio of two gains shows neither, as long as quicker directions rule it. So
J is looked at itself: Arnoldi's method on differences :math:`(M(\theta + h q) - M(\theta)) / h` finds its largest
eigenvalues in a few passes. Newton's step in the space seen, :math:`(I - J)^{-1} (M(\theta) - \theta)` with negative
curvature turned round (Dauphin et al. 2014, "saddle-free"), and the flattest direction are searched for gains.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["FLAT", "Outlook", "look_ahead"]

P = TypeVar("P")
Floats = NDArray[np.float64]

# Directions that are looked at: passes of one outlook, beside those of the searches.
DIRECTIONS = 8
# Length of the differences, in the units of the vector (logarithms, standard deviations).
STEP = 1e-5
# An eigenvalue above this is a valley, a flat or a saddle.
FLAT = 0.998
# How long a step along a flat direction is at first, and how often steps are doubled.
KICK = 0.1
DOUBLINGS = 6
# Iterations that bring a point beside the flat direction, which bends, back to it.
RELAXED = 2


@dataclass(frozen=True)
class Outlook(Generic[P]):
    """What was found around a point.

    Attributes
    ----------
    params
        The likeliest parameters that were met, the point itself if nothing beats it.
    value : float
        Their log-likelihood per row.
    slowest : float
        The largest eigenvalue of J that was seen.
    """

    params: P
    value: float
    slowest: float


def look_ahead(
    step: Callable[[P], tuple[float, P]],
    evaluate: Callable[[P], float],
    pack: Callable[[P, P], Floats],
    unpack: Callable[[Floats, P], P],
    params: P,
    value: float,
    following: P,
) -> Outlook[P]:
    """Return the likeliest point found around `params`, whose log-likelihood is `value` and next ones `following`."""
    here = pack(params, params)
    moved = pack(following, params)
    first = moved - here
    length = float(np.linalg.norm(first))
    if not np.isfinite(length) or length == 0:
        return Outlook(params, value, 0.0)

    def image(q: Floats) -> Floats:
        return (pack(step(unpack(here + STEP * q, params))[1], params) - moved) / STEP

    try:
        basis, hessenberg = _arnoldi(image, first / length, min(DIRECTIONS, len(first)))
    except ValueError:  # at the edge of where parameters are valid
        return Outlook(params, value, 0.0)
    if not np.isfinite(hessenberg).all():
        return Outlook(params, value, 1.0)
    values, vectors = np.linalg.eig(hessenberg)
    flattest = int(np.argmax(values.real))
    inverse = np.linalg.lstsq(vectors, np.eye(len(vectors), 1).ravel().astype(complex), rcond=None)[0]
    newton = basis @ (vectors @ (length * inverse / np.maximum(np.abs(1 - values), 1 - FLAT))).real
    best = Outlook(params, value, float(values.real[flattest]))
    best = _searched(lambda point: (point, evaluate(point)), unpack, params, here, newton, best)
    if best.slowest > FLAT:
        along = basis @ vectors[:, flattest].real
        along *= KICK / max(float(np.linalg.norm(along)), 1e-300)

        def relaxed(point: P) -> tuple[P, float]:
            for _ in range(RELAXED):
                point = step(point)[1]
            return point, evaluate(point)

        for direction in (along, -along):
            best = _searched(relaxed, unpack, params, here, direction, best)
    return best


def _arnoldi(image: Callable[[Floats], Floats], q: Floats, size: int) -> tuple[Floats, Floats]:
    """Return an orthonormal basis (p, m) of the Krylov space of q, and the linear map in it (m, m)."""
    basis, hessenberg = np.empty((size + 1, len(q))), np.zeros((size + 1, size))
    basis[0] = q
    for j in range(size):
        rest, known = image(basis[j]), basis[: j + 1]
        # Gram and Schmidt's, twice: as good as one direction after the other
        for _ in range(2):
            parts = known @ rest
            hessenberg[: j + 1, j] += parts
            rest = rest - parts @ known
        left = float(np.linalg.norm(rest))
        hessenberg[j + 1, j] = left
        # the differences are good to some six digits: what is below is their noise
        if not left > 1e-6:
            size = j + 1
            break
        basis[j + 1] = rest / left
    return basis[:size].T, hessenberg[:size, :size]


def _searched(
    judged: Callable[[P], tuple[P, float]],
    unpack: Callable[[Floats, P], P],
    params: P,
    here: Floats,
    direction: Floats,
    best: Outlook[P],
) -> Outlook[P]:
    """Return the likelier of `best` and what is found along a direction: half a step, a step, and on while it pays."""
    reached, t = -np.inf, 0.5
    for _ in range(DOUBLINGS):
        try:
            point, value = judged(unpack(here + t * direction, params))
        except ValueError:
            break
        if not value > reached:
            break
        if value > best.value:
            best = Outlook(point, value, best.slowest)
        reached, t = value, 2 * t
    return best
