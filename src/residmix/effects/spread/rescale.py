"""Residuals rescaled to the pooled spread."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from residmix.effects.spread.profiles import profiles
from residmix.effects.spread.scale import Scale
from residmix.kernels.levels import MOST_KEPT
from residmix.kernels.pairs import rescale_rows, small
from residmix.moments.affine import Affine
from residmix.moments.solving.solve import LinearFit
from residmix.rows.block import Block

__all__ = ["Rescaled", "Stretched", "rescaled"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Stretched:
    r"""Shifts of levels that are proportional to the spread at the other metadata, :math:`c(a)\,\gamma_k`.

    Attributes
    ----------
    columns : slice
        Of the factor in the design.
    coef, constant : ndarray (w, d), (d,)
        :math:`\gamma_k` beyond the mean of the rows, at the average spread, from these columns.
    spread : Scale
        c, a function of the other columns, the preserved ones included.
    """

    columns: slice
    coef: Array
    constant: Array
    spread: Scale

    def beyond_average(self, block: Block, new: tuple[Array, ...] = ()) -> Array:
        """Return how much larger the shifts of rows are than at the average spread, (b, d).

        `new` are shifts of new levels by code, which are the last ones of a block.
        """
        shift = block.design[:, self.columns] @ self.coef + self.constant
        for own, codes in zip(new, block.codes[len(block.codes) - len(new) :], strict=True):
            shift += own[codes]
        beyond = self.spread.factor(block.design)
        beyond -= 1.0
        beyond *= shift
        return beyond

    def select(self, features: NDArray[np.integer[Any]]) -> Stretched:
        """Return the same for a selection of the features."""
        return replace(
            self,
            coef=self.coef[:, features],
            constant=self.constant[features],
            spread=self.spread.select(features),
        )


@dataclass(frozen=True)
class Rescaled:
    r"""Residual rescaled to the pooled spread, :math:`r = k + (x - \hat x - k) / f(a)`, or its inverse.

    k are the centred preserved effects, which aren't rescaled.

    Attributes
    ----------
    affine : Affine
        ``x - fitted``, or ``x + fitted`` if its sign is 1: then residuals come in and features go out.
    preserved : ndarray (k, d)
        Coefficients of the preserved columns, the last ones of the design, or of all where preserved terms hold removed
        ones.
    origin : ndarray (k,)
    offset : ndarray (d,)
        Preserved effects are ``(a - origin) @ preserved - offset``.
    scale : Scale
    spreads : tuple of ndarray (L + 2, d)
        Changes of the log standard deviation for each new level; its codes are the last ones of a block.
    stretched : Stretched or None
        Shifts that grow with the spread, with those of new levels in `beyond`.
    beyond : tuple of ndarray (L + 2, d)
        As `spreads`.
    """

    affine: Affine
    preserved: Array
    origin: Array
    offset: Array
    scale: Scale
    spreads: tuple[Array, ...] = ()
    stretched: Stretched | None = None
    beyond: tuple[Array, ...] = ()

    def __call__(self, block: Block) -> NDArray[Any]:
        out = np.empty(block.X.shape, block.X.dtype)
        self.into(block, out)
        return out

    def into(self, block: Block, out: NDArray[Any]) -> None:
        """Write the result to `out`, of the shape and dtype of X and C-contiguous; it may be X itself."""
        # beside new levels and shifts that grow with the spread, what is removed depends on more than these columns
        by_profile = not (self.spreads or self.affine.effects) and self.stretched is None
        found = profiles(block.design[:, : len(self.affine.coef)]) if by_profile else None
        if found is None:
            for run, tile in block.tiles():
                out[run] = self._rescaled(tile)
            return
        back, (codes, design) = self.affine.sign > 0, found
        shift = (design - self.affine.origin_a) @ self.affine.coef + self.affine.constant
        factor = self.scale.factor(design)
        stretch = factor if back else np.divide(1.0, factor, out=factor)
        narrow = len(self.preserved) <= MOST_KEPT
        coef, base = (self.preserved, -self.offset[None]) if narrow else (self.preserved[:0], None)
        for run, tile in block.tiles():
            rescale_rows(
                tile.X,
                tile.design,
                len(self.affine.coef),
                self.origin,
                coef,
                self.kept(tile) if base is None else base,
                self.affine.origin_x,
                shift,
                stretch,
                codes[run],
                back,
                out[run],
                plain=small(tile.n_rows, (len(coef) + 2) * tile.X.shape[1]),
            )

    def _rescaled(self, block: Block) -> Array:
        factor = self.scale.factor(block.design)
        for spread, codes in zip(self.spreads, block.codes[len(block.codes) - len(self.spreads) :], strict=True):
            factor *= np.exp(spread[codes])
        kept = self.kept(block)
        exact = replace(block, X=np.asarray(block.X, dtype=np.float64))
        more = 0.0 if self.stretched is None else self.stretched.beyond_average(block, self.beyond)
        if self.affine.sign < 0:
            out = self.affine(exact)
            for part in (more, kept):
                out -= part
            out /= factor
            out += kept
        else:
            wide = exact.X - kept
            wide *= factor
            wide += kept
            out = self.affine(replace(exact, X=wide))
            out += more
        return out

    def kept(self, block: Block) -> Array:
        """Return the preserved effects of rows, about their mean, (b, d)."""
        kept: Array = (block.design[:, block.design.shape[1] - len(self.origin) :] - self.origin) @ self.preserved
        kept -= self.offset
        return kept

    def kept_along(self, block: Block, axes: Array) -> Array:
        """Return the preserved effects along some axes (d, K), (b, K)."""
        design = np.ones((block.n_rows, len(self.origin) + 1))
        np.subtract(block.design[:, block.design.shape[1] - len(self.origin) :], self.origin, out=design[:, :-1])
        return np.asarray(design @ (np.vstack([self.preserved, -self.offset]) @ axes))

    def select(self, features: NDArray[np.integer[Any]]) -> Rescaled:
        """Return the map for some of the features only."""
        return replace(
            self,
            affine=self.affine.select(features),
            preserved=self.preserved[:, features],
            offset=self.offset[features],
            scale=self.scale.select(features),
            spreads=tuple(spread[:, features] for spread in self.spreads),
            stretched=None if self.stretched is None else self.stretched.select(features),
            beyond=tuple(shift[:, features] for shift in self.beyond),
        )


def rescaled(affine: Affine, fit: LinearFit, scale: Scale, *, shared: bool = False) -> Rescaled:
    """Return the map for `affine`, which removes (or adds back) the first columns of `fit`.

    What preserved terms share with these (`shared`) is no preserved effect, which then depends on all columns.
    """
    p = len(affine.coef)
    kept, coef = slice(0 if shared else p, None), fit.coef
    if shared:
        coef = np.vstack([coef[:p] - affine.coef, coef[p:]])
    offset = np.einsum("dk,kd->d", fit.offset_a[fit.group][:, kept], coef[kept])
    return Rescaled(affine, coef[kept], fit.origin_a[kept], offset, scale)
