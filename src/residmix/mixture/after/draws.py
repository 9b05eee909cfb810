"""Stratified draws from a fitted mixture, for expectations without a closed form."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from residmix.mixture.params import MixtureParams

__all__ = ["directions", "drawn", "radii"]

Floats = NDArray[np.float64]

# Strata reach out to radii that a component's rows exceed with this probability.
SMALLEST = 1e-100
# Squared distances stay below, so that they are numbers: Student's tails reach far.
LARGEST = 1e200


def radii(n: int, d: int, dof: float | None = None) -> tuple[Floats, Floats]:
    r"""Return distances from the centre of a component, (n,), and the probabilities that they represent, (n,).

    Half of the strata are evenly spaced in the probability P of a larger distance, half in its logarithm, so that the
    tails are covered. A stratum at P represents :math:`1 / (n q(P))`, with :math:`q(P) = (1 + 1 / (P \log(1 /
    P_{min}))) / 2`.
    """
    even, length = -(-n // 2), -np.log(SMALLEST)
    outside = np.concatenate(
        [(np.arange(even) + 0.5) / even, np.exp(-length * (np.arange(n - even) + 0.5) / max(n - even, 1))]
    )
    share = 1 / (0.5 + 0.5 / (length * outside))
    square = stats.chi2.isf(outside, d) if dof is None else d * stats.f.isf(outside, d, dof)
    return np.sqrt(np.minimum(square, LARGEST)), share / share.sum()


def directions(n: int, d: int, random: np.random.Generator) -> Floats:
    """Return evenly spread points on the sphere, (n, d)."""
    z = random.standard_normal((n, d))
    return np.asarray(z / np.linalg.norm(z, axis=1, keepdims=True), dtype=np.float64)


def drawn(params: MixtureParams, n: int, seed: int = 0) -> tuple[Floats, NDArray[np.intp]]:
    """Return about n rows of a mixture, ordered by component, in proportion to the weights; noise is -1.

    The rows depend only on the parameters.
    """
    random, K, d = np.random.default_rng(seed), params.n_components, params.n_features
    noise = 0.0 if params.noise is None else params.noise[0]
    counts = np.maximum(np.rint(n * params.weights * (1 - noise)).astype(int), 1)
    roots, found = np.linalg.cholesky(params.full_covariances()), []
    for k in range(K):
        away = random.standard_normal((counts[k], d)) @ roots[k].T
        if params.dof is not None:
            away /= np.sqrt(random.chisquare(params.dof[k], (counts[k], 1)) / params.dof[k])
        found.append(params.means[k] + away)
    labels = np.repeat(np.arange(K), counts)
    if params.noise is not None:
        outside = max(round(n * noise), 1)
        found.append(random.uniform(params.noise[1][0], params.noise[1][1], size=(outside, d)))
        labels = np.append(labels, np.full(outside, -1))
    return np.concatenate(found), labels
