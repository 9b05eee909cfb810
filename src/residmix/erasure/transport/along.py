r"""Log spreads of each component along numbers among the metadata.

.. math:: \Sigma_k(m) = D_k(s) \Sigma_k D_k(s), \qquad D_k(s) = \operatorname{diag} \exp(\Gamma_k' (s - \bar s))

s are the design columns that don't tell groups apart. Gamma is from the regression of log |x - mean| on s, weighted by
the probabilities of the component (Harvey 1976).

References
----------
Harvey, "Estimating regression models with multiplicative heteroscedasticity", Econometrica 44:461-465, 1976.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Along", "along"]

Floats = NDArray[np.float64]

SMALLEST = 1e-300


@dataclass(frozen=True)
class Along:
    """Log spreads along c design columns.

    Attributes
    ----------
    columns : ndarray of int (c,)
    origin, lower, upper : ndarray (c,)
        Mean and range in fit. Beyond it a spread is what it is at the edge: exponentials mustn't be extrapolated.
    slope : ndarray (K, c, d)
    """

    columns: NDArray[np.intp]
    origin: Floats
    lower: Floats
    upper: Floats
    slope: Floats

    def at(self, a: Floats) -> Floats:
        """Return the spreads of design rows, (n, K, d)."""
        inside = np.clip(a[:, self.columns], self.lower, self.upper) - self.origin
        return np.asarray(np.exp(np.einsum("nc,kcd->nkd", inside, self.slope)))


def along(away: Floats, share: Floats, a: Floats, columns: NDArray[np.intp]) -> Along:
    """Estimate log spreads of rows `away` (n, K, d) from the components' means, of probabilities `share` (n, K)."""
    s, (_, K, d) = a[:, columns], away.shape
    origin = share.sum(axis=1) @ s / share.sum() if len(columns) else np.empty(0)
    slope = np.zeros((K, len(columns), d))
    if not len(columns):
        return Along(columns, origin, origin, origin, slope)
    scale = np.where(s.std(axis=0) > 0, s.std(axis=0), 1.0)
    design = np.column_stack([(s - origin) / scale, np.ones(len(a))])
    for k in range(K):
        size = np.abs(away[:, k])
        floor = np.maximum(1e-6 * (share[:, k] @ size) / max(share[:, k].sum(), SMALLEST), SMALLEST)
        root = np.sqrt(share[:, k])[:, None]
        fitted = np.linalg.lstsq(root * design, root * np.log(np.maximum(size, floor)), rcond=1e-10)[0]
        slope[k] = fitted[:-1] / scale[:, None]
    return Along(columns, origin, s.min(axis=0), s.max(axis=0), slope)
