r"""Constraints on the M-step: a prior, and a bound on the ratio of eigenvalues.

With the prior the M-step maximises the posterior of

.. math:: \mu_k \mid \Sigma_k \sim N(\mu_P, \Sigma_k / \kappa), \quad \Sigma_k \sim W^{-1}(\nu, \Lambda), \quad
    \pi \sim Dirichlet(\alpha)

with an inverse gamma of shape :math:`\nu / 2` and scale :math:`\varsigma^2 / 2`, :math:`\varsigma^2 = tr \Lambda / d`,
for every variance of a diagonal family (Fraley & Raftery 2007, "Bayesian regularization for normal mixture estimation
and model-based clustering", J. Classification 24, section 3). Components that share their covariance have one prior.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from residmix.mixture.families.structure import Family

if TYPE_CHECKING:
    from residmix.mixture.params import MixtureParams

__all__ = ["BOUNDED", "Prior", "Restraint", "truncated"]

Floats = NDArray[np.float64]

#: Families whose eigenvalues can be bounded without an iteration.
BOUNDED = ("EII", "VII", "EEI", "VVI", "EEE", "VVV")


@dataclass(frozen=True)
class Prior:
    r"""The hyperparameters.

    Attributes
    ----------
    mean : ndarray (d,)
        :math:`\mu_P`.
    strength : float
        :math:`\kappa`: weight of the prior of a mean, in rows.
    dof : float
        :math:`\nu`.
    scale : ndarray (d, d)
        :math:`\Lambda`.
    dirichlet : float
        :math:`\alpha`; 1 is a flat prior of the weights.
    """

    mean: Floats
    strength: float
    dof: float
    scale: Floats
    dirichlet: float = 1.0

    @property
    def told_of_means(self) -> float:
        """Return 1 if means have a prior, whose spread is a component's, else 0."""
        return float(self.strength > 0)

    def of(self, family: Family, n_components: int) -> tuple[Floats, float]:
        """Return what the prior adds to a component's scatter, as `Family.within` shapes it, and to its rows.

        The density of a covariance is then that of so many rows with such a scatter.
        """
        d = len(self.mean)
        share = 1.0 / n_components if family.shared else 1.0
        if not family.diagonal:
            return share * self.scale, share * (self.dof + d + 1.0)
        spread = np.full(d, np.trace(self.scale) / d)
        if family.isotropic:
            return share * spread / d, share * (self.dof + 2.0) / d
        return share * spread, share * (self.dof + 2.0)

    def steadied(self, family: Family, W: Floats, weight: Floats) -> tuple[Floats, Floats]:
        """Return the moments and rows of the posterior, of those that hold `strength` rows at the mean already."""
        scatter, rows = self.of(family, len(weight))
        counts = weight - self.strength + self.told_of_means + rows
        if len(W) == len(weight):
            shape = (-1, *(1,) * (W.ndim - 1))
            return (weight.reshape(shape) * W + scatter) / counts.reshape(shape), counts
        return (weight.sum() * W + len(weight) * scatter) / counts.sum(), counts

    def log_density(self, params: MixtureParams) -> float:
        """Return the logarithm of the prior's density, up to a constant."""
        of, K = params.family, params.n_components
        scatter, rows = self.of(of, K)
        away = params.means - self.mean
        if of.diagonal:
            scales = np.broadcast_to(of.diagonals(params.factors), params.means.shape)
            trace = (scales**2 @ scatter) + self.strength * ((away * scales) ** 2).sum(axis=1)
        else:
            factors = params.full_factors()
            trace = np.einsum("kij,il,klj->k", factors, scatter, factors)
            trace = trace + self.strength * (np.einsum("ki,kij->kj", away, factors) ** 2).sum(axis=1)
        value = float(((self.told_of_means + rows) * params.log_det - 0.5 * trace).sum())
        if self.dirichlet != 1.0:
            value += (self.dirichlet - 1.0) * float(params.log_weights.sum())
        return value


@dataclass(frozen=True)
class Restraint:
    """A prior, a bound on the largest eigenvalue of all covariances over the smallest, or both.

    Attributes
    ----------
    prior : Prior or None
    ratio : float or None
    """

    prior: Prior | None = None
    ratio: float | None = None

    def fit(
        self, of: Family, W: Floats, n: Floats, previous: Floats | None, parts: Floats | None
    ) -> tuple[Floats, Floats | None]:
        """Return what `Family.fit_with_parts` does, within the bound."""
        if self.ratio is None:
            return of.fit_with_parts(W, n, previous, parts)
        if of.diagonal:
            values = np.average(W, axis=0, weights=n)[None] if of.shared else W
            values = values.mean(axis=1, keepdims=True) if of.isotropic else values
            rows = n.sum(keepdims=True) if of.shared else n
            return of.fit(np.broadcast_to(truncated(values, rows, self.ratio), W.shape), n), None
        values, axes = np.linalg.eigh(W)
        values = truncated(np.maximum(values, 0.0), n if len(W) == len(n) else n.sum(keepdims=True), self.ratio)
        return of.fit((axes * values[:, None, :]) @ axes.swapaxes(1, 2), n), None


def truncated(values: Floats, n: Floats, ratio: float) -> Floats:
    r"""Return the variances t with largest over smallest at most `ratio` of least :math:`\sum_{kj} n_k (\log t_{kj} +
    v_{kj} / t_{kj})`.

    They are :math:`\min(\max(v, m), c m)` for an m that is found exactly: between two neighbours among all v and v / c
    the same variances are cut off, so that the sum has one minimum there (Fritz, Garcia-Escudero & Mayo-Iscar 2013, "A
    fast algorithm for robust constrained clustering", Comput. Stat. Data Anal. 61).

    Parameters
    ----------
    values : ndarray (K, r)
    n : ndarray (K,)
    ratio : float
    """
    if values.max() <= ratio * values.min() or not np.isfinite(values).all():
        return values
    v, w = values.ravel(), np.repeat(n, values.shape[1])
    order = np.argsort(v, kind="stable")
    v, w = v[order], w[order]
    rows = np.append(0.0, np.cumsum(w))
    sums = np.append(0.0, np.cumsum(w * v))
    with np.errstate(divide="ignore"):
        logs = np.append(0.0, np.cumsum(np.where(v > 0, w * np.log(np.where(v > 0, v, 1.0)), 0.0)))
    edges = np.unique(np.concatenate([v, v / ratio])[np.concatenate([v, v]) > 0])
    low, high = np.append(0.0, edges), np.append(edges, np.inf)
    middle = np.where(np.isfinite(high), 0.5 * (low + high), 2 * low + 1.0)
    below = np.searchsorted(v, middle)  # so many are cut off from below, and those after `above` from above
    above = np.searchsorted(v, ratio * middle, side="right")
    cut = rows[below] + rows[-1] - rows[above]
    best = (sums[below] + (sums[-1] - sums[above]) / ratio) / np.where(cut > 0, cut, 1.0)
    m = np.clip(np.where(cut > 0, best, middle), np.maximum(low, np.finfo(float).tiny), high)
    inside = logs[above] - logs[below] + rows[above] - rows[below]
    outer = rows[below] * np.log(m) + sums[below] / m
    upper = (rows[-1] - rows[above]) * np.log(ratio * m) + (sums[-1] - sums[above]) / (ratio * m)
    chosen = m[int(np.argmin(inside + outer + upper))]
    return np.clip(values, chosen, ratio * chosen)
