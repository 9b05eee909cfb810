"""Synthetic images whose brightness a confounder shares with the class; figures that tell what a network used.

Generators of Metadata Normalization (Lu et al., CVPR 2021) and its recursive form (Shah et al., ICML 2025), after their
published description: 32 x 32 pixels, three 16 x 16 blobs, two with brightness `main` (the effect of the class) and
one with brightness `confound`. Random streams are this file's own, so images are not bit-identical to anybody's.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import norm

from residmix.diagnostics.distances import distance_correlation

__all__ = ["OPTIMUM", "balanced_accuracy", "dcor2", "images", "pool", "probe", "shifting_images"]

# Best balanced accuracy from the class's own effect alone, for `images`.
OPTIMUM = 1 - (1 / 3) * (1 / 2)


def _blob() -> np.ndarray:
    edges = np.linspace(-5 - 11 / 32, 5 + 11 / 32, 17)
    mass = np.diff(norm.cdf(edges))
    blob = np.sqrt(np.outer(mass, mass))
    return blob / blob.sum()


def _draw(main: np.ndarray, confound: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    blob = _blob()
    pictures = np.zeros((len(main), 32, 32))
    pictures[:, :16, :16] = pictures[:, 16:, 16:] = main[:, None, None] * blob
    pictures[:, 16:, :16] = confound[:, None, None] * blob
    pictures += rng.normal(0, 0.01, pictures.shape)
    return pictures.astype(np.float32)


def images(seed: int, n: int = 1000, deconfounded: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images (2n, 32, 32), confounder (2n,) and class (2n,): both brightnesses U(1, 4) in class 0, U(3, 6) in class 1.

    With `deconfounded` the confounder is shuffled over the classes.
    """
    rng = np.random.default_rng(seed)
    y = np.repeat([0.0, 1.0], n)
    confound = rng.uniform(1, 4, 2 * n) + 2 * y
    main = rng.uniform(1, 4, 2 * n) + 2 * y
    if deconfounded:
        confound = rng.permutation(confound)
    return _draw(main, confound, rng), confound, y


def shifting_images(seed: int, shift: float, n: int = 1024) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One stage of the continual experiment: the confounder parts the classes by `shift` more, the main effect by less.

    The best balanced accuracy without the confounder is 0.75 - shift / 2.
    """
    rng = np.random.default_rng([seed, round(1000 * shift)])
    y = np.repeat([0.0, 1.0], n)
    sign = 2 * y - 1
    confound = rng.uniform(3, 5, 2 * n) + y + shift * sign
    main = rng.uniform(3, 5, 2 * n) + y - shift * sign
    return _draw(main, confound, rng), confound, y


def pool(pictures: np.ndarray) -> np.ndarray:
    """4 x 4 average pooling, (n, 64), standardised by fixed numbers."""
    small = pictures.reshape(-1, 8, 4, 8, 4).mean((2, 4)).reshape(-1, 64)
    return ((small - 0.02) / 0.03).astype(np.float32)


def balanced_accuracy(score: np.ndarray, y: np.ndarray) -> float:
    return float(np.mean([np.mean((score > 0)[y == c] == bool(c)) for c in (0, 1)]))


def probe(features: np.ndarray, confound: np.ndarray, y: np.ndarray, cutoff: float = 1e-3) -> float:
    """R^2 of the confounder on the features, both less their class means; directions below `cutoff` are dropped."""
    keep = np.column_stack([y, np.ones_like(y)])
    left = features.astype(np.float64)
    left = left - keep @ np.linalg.lstsq(keep, left, rcond=None)[0]
    target = confound - keep @ np.linalg.lstsq(keep, confound, rcond=None)[0]
    u, s, _ = np.linalg.svd(left, full_matrices=False)
    u = u[:, s > cutoff * s[0]] if s[0] > 0 else u[:, :0]
    return float(((u.T @ target) ** 2).sum() / (target**2).sum())


def dcor2(features: np.ndarray, confound: np.ndarray, y: np.ndarray) -> float:
    """Mean over the classes of the u-centred squared distance correlation with the confounder."""
    return float(
        np.mean([distance_correlation(features[y == c].astype(np.float64), confound[y == c][:, None]) for c in (0, 1)])
    )
