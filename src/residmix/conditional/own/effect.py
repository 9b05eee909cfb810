r"""Residuals with effects by component.

.. math:: x - b - \sum_k p(k \mid x, m) B_k' (a(m) - \bar a)

The row's component isn't known, so the effects are averaged by its probabilities: the residual is the expectation,
given x and m, of x at average metadata :math:`\bar a`. Metadata are centred, so that the distance between components
doesn't depend on the reference level or the origin. If all B_k are equal, the residual is ``x - intercept_ - a(m) @
coef_``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from residmix.conditional.coordinates import ToResidual
from residmix.mixture.given.by_component import effects_of
from residmix.mixture.iteration.beyond import settle_beyond
from residmix.mixture.iteration.estep import Problem, responsibilities
from residmix.mixture.iteration.step import block_log_joint
from residmix.rows.block import Block

__all__ = ["ExpectedEffect"]


@dataclass(frozen=True)
class ExpectedEffect:
    """Block to its residuals, in the dtype of X.

    Attributes
    ----------
    problem : Problem
    to_residual : ToResidual
    common : ndarray (d,)
        The components' mean.
    """

    problem: Problem
    to_residual: ToResidual
    common: NDArray[np.float64]

    def __call__(self, block: Block) -> NDArray[Any]:
        params, seen = self.problem.params, self.to_residual(block)
        joint = settle_beyond(block_log_joint(self.problem, seen), seen.X, params)
        # noise has no effect of its own: such a row loses what it would as a row of the components
        share = responsibilities(joint[:, : params.n_components])
        left = replace(self.to_residual.affine, constant=self.to_residual.affine.constant + self.common)(
            replace(block, X=np.asarray(block.X, dtype=np.float64))
        )
        for k, effect in enumerate(effects_of(params, seen.design)):
            left -= share[:, k, None] * effect
        return left.astype(block.X.dtype, copy=False)
