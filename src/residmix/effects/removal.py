"""The result of a fit of linear effects, and the map that removes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from residmix.effects.covariance.transport import Covariances, Recoloured
from residmix.effects.marginal import own_moments, recoded
from residmix.effects.random.predicted import RandomEffects
from residmix.effects.spread.rescale import Rescaled, Stretched, rescaled
from residmix.effects.spread.scale import Scale
from residmix.effects.unseen.batches import Frozen
from residmix.moments import inference
from residmix.moments.absorbed.sums import FactorMoments
from residmix.moments.affine import Affine, WithEffects
from residmix.moments.by_level import LevelMoments
from residmix.moments.equations import equations
from residmix.moments.linear import LinearMoments
from residmix.moments.solving.solve import LinearFit

__all__ = ["LinearRemoval", "NewEffects", "Smooths"]

Array = NDArray[np.float64]


class NewEffects(Protocol):
    """Effects of a factor's levels that fit didn't see, by their codes."""

    def effects(self, *, shrink: bool) -> Array:
        """Return the differences from the average level's effect, (L + 2, d)."""

    def spreads(self, *, shrink: bool) -> Array | None:
        """Return the differences in log standard deviation, (L + 2, d), if effects on the spread are removed."""


@dataclass(frozen=True)
class Smooths:
    r"""Results for the t fitted smooth functions.

    Attributes
    ----------
    names : tuple of str
        Of the curves; a term by the levels of a factor has one for each.
    smoothness : ndarray (t, d)
        :math:`\lambda`, the factor of the integrated squared second derivative, with the variable in units of its
        range; above 1e300 for a straight line.
    edf : ndarray (t, d)
        Effective degrees of freedom: 1 for a straight line.
    reference : ndarray (t, d)
        Reference degrees of freedom of their tests, tr(2 H - H H) in place of tr H (Wood, Biometrika 100, 2013).
    rss, residual_degrees : ndarray (d,)
        Residual sum of squares, and rows less effective degrees of freedom and the intercept.
    """

    names: tuple[str, ...]
    smoothness: Array
    edf: Array
    reference: Array
    rss: Array
    residual_degrees: Array


@dataclass(frozen=True)
class LinearRemoval:
    """Results of a fit of linear effects, before and after shrinkage.

    Attributes
    ----------
    n_removed : int
        Design columns that are removed, the first ones; the others are preserved.
    moments : LinearMoments, LevelMoments or FactorMoments
        Of all rows.
    fit : LinearFit
        Of least squares, or with a ridge penalty.
    shrunk : LinearFit or None
        With shrunk effects; None if that is `fit`.
    scale : Scale or None
        Effects on the log standard deviation that are removed as well.
    smooth : Smooths or None
        Smooth functions, if there are any: then `shrunk` holds them, and `fit` the same splines without a penalty.
    random : dict of str to RandomEffects
        Of the factors whose effects are random ones.
    pooled : dict of str to Frozen
        For each factor whose effects were pooled over features, the values that new batches are compared with.
    covariance : Covariances or None
        Maps of the covariances of a factor's levels to the pooled one.
    stretched : Stretched or None
        Shifts of pooled levels that are proportional to the spread at the other metadata; then `shrunk` has them at
        the average spread.
    shared : ndarray (g, q, q) or None
        Of :func:`residmix.effects.marginal.shared`, where preserved interactions hold removed terms.
    """

    n_removed: int
    moments: LinearMoments | LevelMoments | FactorMoments
    fit: LinearFit
    shrunk: LinearFit | None = None
    scale: Scale | None = None
    random: dict[str, RandomEffects] = field(default_factory=dict)
    pooled: dict[str, Frozen] = field(default_factory=dict)
    covariance: Covariances | None = None
    smooth: Smooths | None = None
    stretched: Stretched | None = None
    shared: Array | None = None

    @property
    def applied(self) -> LinearFit:
        """The fit whose effects are removed: `shrunk` if there is one, else `fit`."""
        return self.fit if self.shrunk is None else self.shrunk

    @property
    def coef(self) -> Array:
        """Coefficients of the removed columns, (p, d)."""
        return self._removed.coef[: self.n_removed]

    @property
    def _removed(self) -> LinearFit:
        """The fit whose first columns are removed: with what preserved interactions share with them."""
        fit, p = self.applied, self.n_removed
        if self.shared is None:
            return fit
        coef = np.vstack([recoded(fit.coef, self.shared)[:p], fit.coef[p:]])
        moved = np.einsum("dk,kd->d", fit.offset_a[fit.group][:, :p], fit.coef[:p] - coef[:p])
        return replace(fit, coef=coef, constant=fit.constant + moved)

    @property
    def preserved_coef(self) -> Array:
        """Coefficients of the preserved columns, (k, d)."""
        return self.applied.coef[self.n_removed :]

    @property
    def intercept(self) -> Array:
        """Intercept (d,): the residual is ``x - intercept - a @ coef``."""
        return self._removed.affine(self.n_removed).intercept

    @property
    def r2(self) -> Array:
        """Share of the variance that the design explains, (d,)."""
        return inference.explained(self.fit if self.smooth is None else replace(self.fit, rss=self.smooth.rss))

    @property
    def residual_sd(self) -> Array:
        """Residual standard deviation, (d,); NaN without residual degrees of freedom, or where it is 0."""
        found = self.fit if self.smooth is None else self.smooth
        usable = (found.residual_degrees > 0) & (found.rss > 0) & (self.fit.count > 0)
        return np.sqrt(np.where(usable, found.rss, np.nan) / np.where(usable, found.residual_degrees, 1.0))

    @property
    def correlations(self) -> Array:
        """Canonical correlations of removed and preserved effects, largest first."""
        sizes = tuple(len(effects) for effects in self.fit.effects)
        moments = self.moments if self.shared is None else own_moments(self.moments.linear, self.shared)
        return equations(sizes).correlations(self.fit, moments, self.n_removed)

    @property
    def left(self) -> NDArray[np.bool_]:
        """Mask of the features that aren't changed, (d,)."""
        left = np.zeros(len(self.fit.constant), dtype=bool)
        for frozen in self.pooled.values():
            left |= False if frozen.left is None else frozen.left
        return left

    @property
    def needs_preserved(self) -> bool:
        """Whether removing the effects needs the preserved columns, too."""
        return self.scale is not None

    def remover(
        self, sign: int = -1, *, new: Mapping[str, NewEffects] | None = None, shrink: bool = False
    ) -> Affine | Rescaled | Recoloured:
        """Return the picklable function of blocks that removes the effects, or with sign 1 adds them back.

        Parameters
        ----------
        sign : {-1, 1}
        new : mapping of str to NewEffects, optional
            Of levels that fit didn't see, by factor; blocks must have their codes.
        shrink : bool
            Whether any other unseen level gets the expected effect instead of the average one.
        """
        affine = self._removed.affine(self.n_removed)
        more = {name: levels.effects(shrink=shrink) for name, levels in (new or {}).items()}
        if more:
            affine = WithEffects(
                affine.origin_x,
                affine.origin_a,
                affine.coef,
                affine.constant,
                affine.sign,
                (*affine.effects, *more.values()),
            )
        affine = replace(affine, sign=sign)
        if self.scale is None:
            return affine
        evened = rescaled(affine, self.applied, self.scale, shared=self.shared is not None)
        if self.stretched is not None:
            beyond = tuple(own if name in self.pooled else np.zeros_like(own) for name, own in more.items())
            evened = replace(evened, stretched=self.stretched, beyond=beyond)
        changes = [levels.spreads(shrink=shrink) for levels in (new or {}).values()]
        if any(change is not None for change in changes):
            pairs = zip(more.values(), changes, strict=True)
            spreads = tuple(np.zeros_like(own) if change is None else change for own, change in pairs)
            evened = replace(evened, spreads=spreads)
        return evened if self.covariance is None else Recoloured(evened, self.covariance)

    def by_feature(self) -> Affine | Rescaled:
        """Return the map that removes the effects feature by feature, which also works on a selection of features."""
        found = replace(self, covariance=None).remover()
        assert not isinstance(found, Recoloured)
        return found

    def everything(self) -> Affine:
        """Return the map that removes the preserved effects as well."""
        return self.applied.affine()
