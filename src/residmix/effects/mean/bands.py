r"""Uncertainty of smooth functions: variances of effects, confidence bands and tests.

Given their smoothness, coefficients have the posterior covariance :math:`\sigma^2 (A'WA + S_\lambda)^{-1}` (Wahba 1983;
Nychka 1988: bands from it have the nominal coverage, averaged along the curve).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from residmix.design.design import Design
from residmix.effects.mean.curved import Coordinates, Curved, coordinates, curved, penalised
from residmix.effects.mean.reml import chunks, inverse, membership, solved
from residmix.effects.removal import LinearRemoval
from residmix.moments.linear import LinearMoments

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Posterior", "Test", "residual_variance", "smooth_table", "term_tests"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Posterior:
    """Covariances of the coefficients of a fit with smooth functions, for a residual variance of 1.

    Attributes
    ----------
    moments : LinearMoments
    where : Coordinates
    beside : Curved
    ratios : ndarray (t, d)
        Variance ratios of the parts.
    """

    moments: LinearMoments
    where: Coordinates
    beside: Curved
    ratios: Array

    @property
    def coef(self) -> Array:
        """Coefficients (q, d) before any are pooled over features."""
        effects = solved(self.beside.own, self.beside.turned, self.beside.total, self.ratios, self.where.parts).effects
        return penalised(self.moments, self.where, self.beside, effects)

    @classmethod
    def of(cls, found: LinearRemoval, design: Design) -> Posterior:
        """Return that of a fit."""
        assert found.smooth is not None
        terms = [term for term in design.terms if term.name in found.random]
        where = coordinates(design, terms)
        random = [found.random[term.name].ratio for term in terms]
        ratios = 1.0 / np.vstack([found.smooth.smoothness, *random])
        return cls(found.moments.linear, where, curved(found.moments.linear, where), ratios)

    def variance(self, steps: Array) -> Array:
        """Return variances (k, d) of linear combinations (k, q) of the coefficients; or (k, g, q), one for each g."""
        free, F = self.beside.free, self.where.fixed
        steps = np.broadcast_to(steps if steps.ndim == 3 else steps[:, None], (len(steps), len(free), len(F)))
        along = steps @ F
        known = np.einsum("kgf,gfe,kge->kg", along, free, along)
        turned = steps @ self.where.turn - np.einsum("kgf,gfe,gre->kgr", along, free, self.beside.beside)
        out = np.empty((len(steps), self.ratios.shape[1]))
        for at, root, B in self._inverses():
            g = slice(None) if len(free) == 1 else at
            scaled = turned[:, g] * root
            out[:, at] = known[:, g] + np.einsum("kcr,crs,kcs->kc", scaled, B, scaled, optimize=True)
        return out

    def blocks(self, columns: NDArray[np.intp]) -> Array:
        """Return the covariance (d, w, w) of some coefficients."""
        free, F, Z = self.beside.free, self.where.fixed[columns], self.where.turn[columns]
        known = F @ free @ F.T
        turned = Z - F @ free @ np.swapaxes(self.beside.beside, 1, 2)  # (g, w, r)
        out = np.empty((self.ratios.shape[1], len(columns), len(columns)))
        for at, root, B in self._inverses():
            g = slice(None) if len(free) == 1 else at
            scaled = turned[g] * root[:, None]
            out[at] = known[g] + scaled @ B @ np.swapaxes(scaled, 1, 2)
        return out

    def _inverses(self) -> Iterator[tuple[slice, Array, Array]]:
        own, member = self.beside.own, membership(self.where.parts)
        for at in chunks(self.beside.turned.shape):
            root = np.sqrt(member @ self.ratios[:, at]).T
            yield at, root, inverse(own if len(own) == 1 else own[at], root)[0]


@dataclass(frozen=True)
class Test:
    """Test of the hypothesis that a term, or a curve of it, has no effect, for each feature.

    Attributes
    ----------
    name : str
    preserved : bool
    statistic : ndarray (d,) or None
        F; None for absorbed levels, which aren't tested.
    p_value : ndarray (d,)
    share : ndarray (d,)
        Partial :math:`R^2`: the share of the variance left by the other terms that this one explains.
    edf : ndarray (d,)
        Effective degrees of freedom.
    reference : ndarray (d,)
        Numerator degrees of freedom of F.
    """

    name: str
    preserved: bool
    statistic: Array | None
    p_value: Array
    share: Array
    edf: Array
    reference: Array


def residual_variance(found: LinearRemoval) -> Array:
    """Return the residual variance (d,) of a fit with smooth functions; NaN where no degree of freedom is left."""
    smooth = found.smooth
    assert smooth is not None
    degrees = smooth.residual_degrees
    return np.where(degrees > 0, smooth.rss / np.where(degrees > 0, degrees, 1.0), np.nan)


def term_tests(found: LinearRemoval, design: Design) -> list[Test]:
    r"""Return the tests of all terms, and of each curve of a term that has several.

    With f the fitted values of a term, V their posterior covariance and r the reference degrees of freedom (for a curve
    not a whole number), :math:`F = f'V^{r-}f / r` where :math:`V^{r-}` inverts V on its r largest directions, the last
    one in part. It is compared with the F distribution of r and the residual degrees. The smoothness is taken as known,
    so p-values of curves are somewhat too small.

    References
    ----------
    Wood, "On p-values for smooth components of an extended generalized additive model", Biometrika 100, 2013.
    """
    smooth = found.smooth
    assert smooth is not None
    posterior = Posterior.of(found, design)
    coef, sigma2, place, tests = posterior.coef, residual_variance(found), 0, []
    for term in design.terms:
        if term.kind != "smooth":
            columns = np.arange(term.columns.start, term.columns.stop)
            full = np.full(len(sigma2), float(len(columns)))
            tests.append(_test(term.name, term.preserved, columns, posterior, coef, (full, full), found, sigma2))
            continue
        for curve in (curve for curve in design.curves if curve.term == term.name):
            degrees = smooth.edf[place], smooth.reference[place]
            tests.append(_test(curve.name, term.preserved, curve.columns, posterior, coef, degrees, found, sigma2))
            place += 1
    return tests


def _test(
    name: str,
    preserved: bool,
    columns: NDArray[np.intp],
    posterior: Posterior,
    coef: Array,
    degrees: tuple[Array, Array],
    found: LinearRemoval,
    sigma2: Array,
) -> Test:
    from scipy.special import fdtrc

    assert found.smooth is not None
    values, vectors = np.linalg.eigh(posterior.moments.s_aa[:, columns][:, :, columns])
    root = np.sqrt(np.maximum(values, 0.0))[:, :, None] * np.swapaxes(vectors, 1, 2)  # (g, w, w)
    V = root @ posterior.blocks(columns) @ np.swapaxes(root, 1, 2)
    own = coef[columns]
    f = (root[0] @ own).T if len(root) == 1 else np.einsum("dvw,wd->dv", root, own)
    values, vectors = np.linalg.eigh(V)
    values, vectors = values[:, ::-1], vectors[:, :, ::-1]
    known = values > 1e-10 * np.maximum(values[:, :1], 1e-300)
    z2 = np.where(known, np.einsum("dvw,dv->dw", vectors, f) ** 2 / np.where(known, values, 1.0), 0.0)
    share = np.clip(degrees[1][:, None] - np.arange(len(columns)), 0.0, 1.0) * known
    rank, gain, left = share.sum(axis=1), np.sum(share * z2, axis=1), found.smooth.residual_degrees
    with np.errstate(divide="ignore", invalid="ignore"):
        statistic = gain / rank / sigma2
        p = np.where((left > 0) & (rank > 0), fdtrc(rank, np.maximum(left, 1e-3), statistic), np.nan)
        partial = np.where(gain > 0, gain / (gain + found.smooth.rss), 0.0)
    return Test(name, preserved, statistic, p, partial, np.minimum(degrees[0], rank), rank)


def smooth_table(found: LinearRemoval, design: Design, features: Sequence[str]) -> pd.DataFrame:
    """Return one row per feature and coefficient or curve, the intercept last; :meth:`residmix.Residualizer.tidy`."""
    import pandas as pd
    from scipy.special import stdtr

    smooth, fit, applied = found.smooth, found.fit, found.applied
    assert smooth is not None
    posterior, sigma2 = Posterior.of(found, design), residual_variance(found)
    bent = np.concatenate([curve.columns for curve in design.curves])
    plain = np.setdiff1d(np.arange(len(design.column_names)), bent)
    mean, coef = (fit.origin_a + fit.offset_a)[fit.group], posterior.coef
    steps = np.concatenate(
        [
            np.broadcast_to(np.eye(len(coef))[plain][:, None], (len(plain), len(fit.offset_a), len(coef))),
            -(fit.origin_a + fit.offset_a)[None],
        ]
    )
    variances = posterior.variance(steps)
    variances[-1] += 1.0 / np.where(fit.weight > 0, fit.weight, np.nan)
    at_zero = found.moments.linear.mean_x - np.einsum("dq,qd->d", mean, coef)
    estimate = np.vstack([coef[plain], at_zero])
    shown = np.vstack([applied.coef[plain], applied.intercept])
    if fit.unknown is not None:
        lost = fit.unknown[fit.group].T[[*plain, -1]]
        estimate[lost] = shown[lost] = np.nan
    degrees = smooth.residual_degrees
    tests = [test for test in term_tests(found, design) if test.name in smooth.names]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        error = np.where(np.isnan(estimate), np.nan, np.sqrt(sigma2 * np.maximum(variances, 0.0)))
        t = estimate / error
        p, partial = 2.0 * stdtr(degrees, -np.abs(t)), 1.0 / (1.0 + degrees / t**2)
    none = np.full((len(tests), len(features)), np.nan)
    one = np.ones_like(error)

    def column(numbers: Array, curves: Array) -> Array:
        return np.vstack([numbers[:-1], curves, numbers[-1:]]).T.ravel()

    names = [*(design.column_names[k] for k in plain), *smooth.names, "Intercept"]
    table = {
        "feature": np.repeat(np.asarray(features, dtype=object), len(names)),
        "term": np.tile(np.asarray(names, dtype=object), len(features)),
        "estimate": column(shown, none),
        "std_error": column(error, none),
        "statistic": column(t, np.array([test.statistic for test in tests])),
        "p_value": column(p, np.array([test.p_value for test in tests])),
        "partial_r2": column(partial, np.array([test.share for test in tests])),
        "edf": column(one, smooth.edf),
        "reference_df": column(one, smooth.reference),
    }
    if found.pooled:
        table["unshrunk"] = column(estimate, none)
    return pd.DataFrame(table)
