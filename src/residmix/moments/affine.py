"""Affine: rows less their fitted values."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.blas import dgemm

from residmix.kernels.pairs import add_effects, small, subtract_rows
from residmix.kernels.twice import dot_twice
from residmix.rows.block import Block
from residmix.rows.scratch import scratch

__all__ = ["NO_CODES", "NO_EFFECTS", "Affine", "WithEffects"]

Array = NDArray[np.float64]

# Up to here one loop over the rows, which reads and writes once, beats BLAS; beyond, its blocking wins.
_NARROW_DESIGN = 16


NO_CODES, NO_EFFECTS = np.empty(0, np.int32), np.empty((0, 0))


@dataclass(frozen=True)
class Affine:
    """Residual of a block, ``(x - origin_x) - (a - origin_a) coef - constant``, in the dtype of X.

    Subtracting the origins first keeps the digits that large offsets would cost.

    Attributes
    ----------
    origin_x, origin_a : ndarray (d,), (p,)
    coef : ndarray (p, d)
        Only the first p design columns are used; further ones are preserved.
    constant : ndarray (d,)
    sign : {-1, 1}
        -1 removes the effect, 1 adds it back.
    """

    origin_x: Array
    origin_a: Array
    coef: Array
    constant: Array
    sign: int = -1

    @property
    def intercept(self) -> Array:
        """The removed value where every design column is 0, (d,)."""
        # large terms may cancel, as those of a polynomial
        start = self.origin_x, self.constant
        return dot_twice(start, self.origin_a, self.coef, -1.0)[0]

    def __call__(self, block: Block) -> NDArray[Any]:
        out = np.empty(block.X.shape, block.X.dtype)
        self.into(block, out)
        return out

    @property
    def effects(self) -> tuple[Array, ...]:
        """Effects by level, of which there are none here."""
        return ()

    def select(self, features: NDArray[np.integer[Any]]) -> Self:
        """Return the map for some of the features only."""
        return replace(
            self,
            origin_x=self.origin_x[features],
            coef=np.ascontiguousarray(self.coef[:, features]),
            constant=self.constant[features],
        )

    def into(self, block: Block, out: NDArray[Any]) -> None:
        """Write the residual to `out`, of the shape and dtype of X and C-contiguous."""
        self._subtract(block, out, NO_EFFECTS, NO_CODES)

    def _subtract(self, block: Block, out: NDArray[Any], effects: Array, codes: NDArray[np.integer[Any]]) -> None:
        p = len(self.coef)
        if p <= _NARROW_DESIGN:
            about = self.origin_x, self.origin_a, self.coef, self.constant
            given = block.X, block.design, *about, float(self.sign), effects, codes, out
            # the twin has the same bits, so any block may choose
            subtract_rows(*given, plain=small(len(out), (p + 2) * out.shape[1]))
            return
        exact = out if out.dtype == np.float64 else scratch(out.shape, np.float64)
        a = np.empty((len(exact), p + 1))
        a[:, p] = 1.0
        if p:
            np.subtract(block.design[:, :p], self.origin_a, out=a[:, :p])
        step = np.subtract if self.sign < 0 else np.add
        step(block.X, self.origin_x, out=exact)
        # BLAS adds the product onto the residual in place: no third array. It wants columns, hence the transposes.
        full = np.vstack([self.coef, self.constant])
        dgemm(float(self.sign), full.T, a.T, beta=1.0, c=exact.T, overwrite_c=True)
        if len(codes):
            add_effects(exact, effects, codes, float(self.sign))
        if exact is not out:
            out[...] = exact


@dataclass(frozen=True)
class WithEffects(Affine):
    """Residual of a block whose rows also have effects of absorbed factors.

    Attributes
    ----------
    effects : tuple of ndarray (L + 1, d)
        One row per level; the last row, for code -1, is for unknown levels.
    """

    effects: tuple[Array, ...] = ()

    def select(self, features: NDArray[np.integer[Any]]) -> Self:
        effects = tuple(np.ascontiguousarray(effects[:, features]) for effects in self.effects)
        return replace(super().select(features), effects=effects)

    def into(self, block: Block, out: NDArray[Any]) -> None:
        exact = out if out.dtype == np.float64 or len(self.effects) < 2 else np.empty(out.shape)
        first, codes = (self.effects[0], block.codes[0]) if self.effects else (NO_EFFECTS, NO_CODES)
        self._subtract(block, exact, first, codes)
        for effects, codes in zip(self.effects[1:], block.codes[1:], strict=True):
            add_effects(exact, effects, codes, float(self.sign))
        if exact is not out:
            out[...] = exact
