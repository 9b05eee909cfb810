"""Fits with effects by component that start with an M-step for given labels."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from residmix.conditional.coordinates import Widths
from residmix.mixture.given.by_component import own_coefficients
from residmix.mixture.iteration.mstep import covariances_from_scatter
from residmix.mixture.iteration.step import residual_moments
from residmix.mixture.params import MixtureParams, make_params
from residmix.mixture.starts.labels import moments_of_labels
from residmix.rows.block import Block
from residmix.rows.rows import Rows

__all__ = ["own_params_of_labels"]


def own_params_of_labels(
    rows: Rows,
    labels: NDArray[np.intp],
    n_components: int,
    *,
    covariance_type: str,
    reg_covar: float,
    widths: Widths | None = None,
) -> MixtureParams:
    """Return the regression of each label's rows on u, or its columns that have effects, and the mixture of the rest.

    Raises
    ------
    ValueError
        If all rows of a label have weight 0.
    SingularCovarianceError
        If the rows of a label don't span the space although the family needs it, and `reg_covar` is 0.
    """
    moments, centres = moments_of_labels(rows.mapped(partial(_joined, widths)), labels, n_components)
    d = rows.n_features
    r = centres.shape[1] - d
    coef = own_coefficients(moments, np.zeros((n_components, r, d)))
    left = residual_moments(moments, coef)
    e = left.shift / left.weight[:, None]
    means = centres[:, r:] + e - (centres[:, None, :r] @ coef)[:, 0]
    covariances, parts = covariances_from_scatter(left.scatter, left.shift, left.weight, covariance_type, reg_covar)
    made = make_params(left.weight / left.weight.sum(), means, covariances, covariance_type, parts)
    return replace(made, coef=coef)


def _joined(widths: Widths | None, block: Block) -> Block:
    u = block.design if widths is None else widths.of_effects(block.design)
    return replace(block, X=np.hstack([u, block.X]))
