r"""Covariance families: :math:`\Sigma_k = \lambda_k D_k A_k D_k'`, each factor equal, varying or trivial.

:math:`\lambda_k` is a component's volume, :math:`A_k` its shape (diagonal, of determinant 1), :math:`D_k` its
orientation (Banfield & Raftery 1993, "Model-based Gaussian and non-Gaussian clustering", Biometrics 49; Celeux &
Govaert 1995, "Gaussian parsimonious clustering models", Pattern Recognition 28). A name has a letter for each: E for
equal in all components, V for varying, I for the identity. scikit-learn's four are among the fourteen.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from residmix.mixture.families.axes import axis_variances
from residmix.mixture.families.orientation import common_axes, common_form

__all__ = ["Family"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Family:
    """A covariance family.

    Attributes
    ----------
    volume : {"E", "V"}
    shape : {"I", "E", "V"}
    orientation : {"I", "E", "V"}
    kept : tuple of str
        Shape of the arrays of covariances, precisions and factors.
    name : str
        mclust's.
    free : bool
        Whether every entry of every covariance is free.
    diagonal, isotropic : bool
        Whether the axes are those of the features; whether all axes are alike.
    shared, linked : bool
        Whether components have one covariance; or parts of one, at least.
    matrices : bool
        Whether arrays hold whole matrices.
    closed : bool
        Whether a line through two mixtures of the family, as vectors of `residmix.mixture.iteration.vector`, stays in
        it.
    unit_free : bool
        Whether a mixture of the family stays in it when features change units, each its own.
    affine : bool
        Whether it stays in it under any linear map of the features.
    """

    volume: str
    shape: str
    orientation: str
    kept: tuple[str, ...] = ("K", "d", "d")
    name: str = field(init=False)
    free: bool = field(init=False)
    diagonal: bool = field(init=False)
    isotropic: bool = field(init=False)
    shared: bool = field(init=False)
    linked: bool = field(init=False)
    matrices: bool = field(init=False)
    closed: bool = field(init=False)
    unit_free: bool = field(init=False)
    affine: bool = field(init=False)

    def __post_init__(self) -> None:
        name = self.volume + self.shape + self.orientation
        free, diagonal, isotropic = name == "VVV", self.orientation == "I", self.shape == "I"
        shared, linked = "V" not in name, "E" in name
        unit_free = not isotropic and (diagonal or free or name in ("EEE", "VEE", "EVV"))
        facts = {
            "name": name,
            "free": free,
            "diagonal": diagonal,
            "isotropic": isotropic,
            "shared": shared,
            "linked": linked,
            "matrices": self.kept[-2:] == ("d", "d"),
            "closed": diagonal or shared or not linked,
            "unit_free": unit_free,
            "affine": unit_free and not diagonal,
        }
        for fact, value in facts.items():
            object.__setattr__(self, fact, value)

    def n_parameters(self, n_components: int, n_features: int) -> int:
        """Return the number of free parameters of the covariances."""
        K, d = n_components, n_features
        how_often = {"I": 0, "E": 1, "V": K}
        return how_often[self.volume] + how_often[self.shape] * (d - 1) + how_often[self.orientation] * d * (d - 1) // 2

    def rows_needed(self, n_features: int) -> int:
        """Return how many rows a component needs at least."""
        return 2 if self.isotropic else n_features + 1

    # ---- arrays as they are kept -------------------------------------------------------------------------------------

    def shape_of(self, n_components: int, n_features: int) -> tuple[int, ...]:
        """Return the shape of the arrays of covariances, precisions and factors."""
        sizes = {"K": n_components, "d": n_features}
        return tuple(sizes[axis] for axis in self.kept)

    def diagonals(self, kept: Floats) -> Floats:
        """Return the diagonals of kept covariances or factors: (K or 1, d or 1)."""
        rows = kept.diagonal(0, -2, -1) if self.matrices else kept
        if rows.ndim == 2:
            return rows
        return rows[:, None] if self.isotropic else rows[None]

    def full(self, kept: Floats, n_components: int, n_features: int) -> Floats:
        """Return kept covariances or factors as (K, d, d); of matrices a view."""
        K, d = n_components, n_features
        if self.matrices:
            return kept if kept.ndim == 3 else np.broadcast_to(kept, (K, d, d))
        return np.broadcast_to(self.diagonals(kept), (K, d))[:, :, None] * np.eye(d)

    def scaled(self, covariances: Floats, unit: Floats) -> Floats:
        """Return kept covariances of the features times `unit` (d,); equal units where features have one variance."""
        if self.matrices:
            return covariances * unit[:, None] * unit
        return covariances * (unit if self.kept[-1] == "d" else unit[0]) ** 2

    # ---- M-step ------------------------------------------------------------------------------------------------------

    def within(self, scatter: Floats, shift: Floats, weight: Floats) -> Floats:
        """Return the moments that `fit` asks for, about the new means: S2/N - e e', e = new mean - old mean.

        Parameters
        ----------
        scatter : ndarray (K, d, d), (K, d) or (d, d)
            Weighted scatter about the old means: of each component, its diagonal, or summed over components.
            (K, d, d) serves every family.
        shift : ndarray (K, d)
            Weighted sums of ``x - old mean``.
        weight : ndarray (K,)
            Sums of the responsibilities; positive.

        Returns
        -------
        ndarray
            (K, d) for diagonal families, (1, d, d) if components share one matrix, else (K, d, d).
        """
        e = shift / weight[:, None]
        if self.diagonal:
            squares = np.diagonal(scatter, axis1=1, axis2=2) if scatter.ndim == 3 else scatter
            return squares / weight[:, None] - e**2
        if self.shared:
            total = scatter if scatter.ndim == 2 else scatter.sum(axis=0)
            return np.asarray(((total - e.T @ shift) / weight.sum())[None])
        return scatter / weight[:, None, None] - e[:, :, None] * e[:, None, :]

    def of_full(self, covariances: Floats, weight: Floats) -> Floats:
        """Return what `within` returns, of within-component covariances (K, d, d)."""
        if self.diagonal:
            return np.array(np.diagonal(covariances, axis1=1, axis2=2))
        if self.shared:
            return np.tensordot(weight / weight.sum(), covariances, 1)[None]
        return np.array(covariances)

    def fit(self, W: Floats, n: Floats, previous: Floats | None = None) -> Floats:
        r"""Return the covariances that minimise :math:`\sum_k n_k (\log |\Sigma_k| + tr \Sigma_k^{-1} W_k)`.

        Where there's no closed form, by an iteration that begins at `previous`, so that the sum is never above its
        value there: to the end, but for common axes that aren't the features', which take a step.

        Parameters
        ----------
        W : ndarray
            Covariances within components, as `within` returns them.
        n : ndarray (K,)
            Rows of the components.
        previous : ndarray (K, d, d), optional
            Covariances so far.

        Returns
        -------
        ndarray
            As they are kept; not finite where the minimum isn't reached because a component is singular.
        """
        if self.free or (self.shared and not self.diagonal):
            return W.reshape(self.shape_of(len(n), W.shape[-1]))
        with np.errstate(all="ignore"):
            if self.diagonal:
                before = None if previous is None else np.diagonal(previous, axis1=1, axis2=2)
                return self._keep_axes(axis_variances(W, n, self.volume, self.shape, before))
            if self.orientation == "E":
                if self.shape == "E":
                    return common_form(W, n, previous)
                return common_axes(W, n, self.volume, previous)
            values, axes = np.linalg.eigh(W)
            before = None
            if previous is not None and self.name == "VEV":  # the one iteration, for a shape that all have
                before = np.asarray(np.linalg.eigvalsh(previous[:1]), dtype=np.float64)
            values = axis_variances(values, n, self.volume, self.shape, before)
            return np.asarray((axes * values[:, None, :]) @ axes.swapaxes(1, 2))

    def fit_with_parts(
        self, W: Floats, n: Floats, previous: Floats | None = None, parts: Floats | None = None
    ) -> tuple[Floats, Floats | None]:
        """Return what `fit` does, and what the family has besides its covariances: nothing, or new `parts`."""
        return self.fit(W, n, previous), None

    def _keep_axes(self, variances: Floats) -> Floats:
        if self.matrices:
            return variances[:, :, None] * np.eye(variances.shape[1])
        return variances if self.kept[-1] == "d" else variances[:, 0]

    def moments_of(self, covariances: Floats) -> Floats:
        """Return kept covariances (K or 1, ...) as the moments of rows that have them: see `within`."""
        if self.diagonal:
            return self.diagonals(covariances)
        return covariances[None] if self.kept[0] != "K" else covariances
