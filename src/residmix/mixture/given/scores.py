"""z-scores and centiles of values in the marginal mixture of their feature, given the metadata."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri, stdtr

from residmix.mixture.given.by_component import effects_of
from residmix.mixture.given.by_group import at_group, groups_of
from residmix.mixture.given.gate import log_priors
from residmix.mixture.params import MixtureParams
from residmix.rows.block import Block
from residmix.rows.threads import lazy

__all__ = ["MarginalScores"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class MarginalScores:
    r"""Block of residuals and design rows to :math:`100 F_j(x_j \mid m)`, or :math:`\Phi^{-1}` of it, (b, d).

    :math:`F_j(x \mid m) = \sum_k \pi_k(m)\, \Phi((x - \mu_{kj}) / \sigma_{kj})` for Gaussian components, x less what
    effects the component has; for those of Student's t its distribution function in place of :math:`\Phi`.

    Attributes
    ----------
    params : MixtureParams
    centiles : bool
    """

    params: MixtureParams
    centiles: bool = False

    @lazy
    def _spread(self) -> Floats:
        return np.sqrt(np.diagonal(self.params.full_covariances(), axis1=1, axis2=2))

    def __call__(self, block: Block) -> Floats:
        if self.params.by_group is not None:
            found = np.empty(block.X.shape)
            for g, rows in groups_of(self.params, block):
                found[rows] = MarginalScores(at_group(self.params, g), self.centiles)(block.select(rows))
            return found
        params, x, u = self.params, np.asarray(block.X, dtype=np.float64), block.design
        moved = np.broadcast_to(
            x if params.coef is None else x - effects_of(params, u), (params.n_components, *x.shape)
        )
        weights = np.tile(params.weights, (len(x), 1))
        if params.gate is not None:
            weights = np.exp(log_priors(u, params.gate.coef))
        below, above = np.zeros((2, *x.shape))
        for k, (mean, spread) in enumerate(zip(params.means, self._spread, strict=True)):
            t = (moved[k] - mean) / spread
            below += weights[:, k, None] * self._share(k, t)
            above += weights[:, k, None] * self._share(k, -t)
        if self.centiles:
            return np.asarray(100.0 * below)
        # the smaller tail keeps its digits
        return np.asarray(np.where(below < above, ndtri(below), -ndtri(above)))

    def _share(self, k: int, t: Floats) -> Floats:
        return np.asarray(ndtr(t) if self.params.dof is None else stdtr(self.params.dof[k], t))
