"""Weights, means and covariances of p(x | m) for each row of metadata."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from residmix.conditional.coordinates import ToResidual
from residmix.mixture.given.by_group import at_group
from residmix.mixture.given.gate import log_priors
from residmix.mixture.params import MixtureParams
from residmix.rows.block import Block

if TYPE_CHECKING:
    from residmix.conditional.density import ConditionalDensity

__all__ = ["Given", "components_given", "covariances_given", "located", "orthonormal", "weighed"]

Floats = NDArray[np.float64]
Codes = tuple[NDArray[np.integer[Any]], ...]


@dataclass(frozen=True, slots=True)
class Given:
    r"""The mixtures :math:`p(x \mid m_i) = \sum_k \pi_k(m_i) N(x \mid \mu_{ik}, \Sigma_{g(i) k})` of some rows.

    Attributes
    ----------
    log_weights : ndarray (n, K)
        ``exp(log_weights)`` sums to one over components; uniform noise isn't included (`noise_weight_`).
    means : ndarray (n, K, d)
        In the units of the features.
    covariances : ndarray (G, K, d, d)
        By group of rows; of t distributions their scale matrices. G is 1 where covariances don't depend on metadata.
    group : ndarray of int (n,)
        Index of the covariances of each row.
    """

    log_weights: Floats
    means: Floats
    covariances: Floats
    group: NDArray[np.intp]


def components_given(model: ConditionalDensity, metadata: Any = None) -> Given:
    """Return the mixture of the features for each row of metadata.

    Parameters
    ----------
    model : ResidualMixture
        Fitted.
    metadata : array (n, p) or table of n rows
        As for the model's methods; a model without metadata takes None, and there's one row.

    Examples
    --------
    >>> import residmix as rm
    >>> from residmix.conditional.given import components_given
    >>> from residmix.data import penguins
    >>> table, features = penguins(), ["bill_length_mm", "body_mass_g"]
    >>> model = rm.ResidualMixture(2, formula="C(sex)", features=features, random_state=0).fit(table)
    >>> given = components_given(model, table[:5])
    >>> given.log_weights.shape, given.means.shape, given.covariances.shape, given.group
    ((5, 2), (5, 2, 2), (1, 2, 2, 2), array([0, 0, 0, 0, 0]))
    """
    a, codes = model._design_rows(metadata, 1)
    params, to_residual = model._params, model._to_residual
    each = [located(to_residual, params, np.full(len(a), k), a, codes) for k in range(params.n_components)]
    covariances, group = covariances_given(to_residual, params, a)
    return Given(weighed(to_residual, params, a), np.stack(each, axis=1), covariances, group)


def covariances_given(to_residual: ToResidual, params: MixtureParams, a: Floats) -> tuple[Floats, NDArray[np.intp]]:
    """Return covariances (G, K, d, d), and which of them each design row has."""
    by = params.by_group
    if by is None:
        return params.full_covariances()[None], np.zeros(len(a), dtype=np.intp)
    every = np.stack([at_group(params, g).full_covariances() for g in range(by.n_groups)])
    return every, by.group[to_residual.codes(a)[0]]


def weighed(to_residual: ToResidual, params: MixtureParams, a: Floats) -> Floats:
    """Return the logarithms of the components' weights at design rows, noise aside, (n, K)."""
    if params.gate is None:
        return np.tile(params.log_weights, (len(a), 1))
    return log_priors(orthonormal(to_residual, a), params.gate.coef)


def orthonormal(to_residual: ToResidual, a: Floats) -> Floats:
    """Return design rows in the coordinates that the mixture is fitted in."""
    u: Floats = (a[:, : len(to_residual.basis)] - to_residual.affine.origin_a) @ to_residual.basis
    return u - to_residual.offset


def located(
    to_residual: ToResidual,
    params: MixtureParams,
    labels: NDArray[np.integer[Any]],
    a: Floats,
    codes: Codes,
    away: Floats | None = None,
) -> Floats:
    """Return the mean of a component at each design row, (n, d), and what is `away` from it, in the units of X."""
    where = params.means[labels]
    if away is not None:
        where = where + away
    if params.coef is not None and params.n_design:
        u = params.columns_of(orthonormal(to_residual, a))
        own = params.coef[labels] if params.by_component else params.coef
        where = where + (u[:, None] @ own)[:, 0]
    return replace(to_residual.affine, sign=1)(Block(0, where, a, codes))
