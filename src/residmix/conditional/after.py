r"""Methods of a fitted mixture given metadata: outliers, merging, standard errors.

Coefficients are those of orthonormal design rows u, which have mean 0. So with constant weights the information on them
is apart from that on the mixture, and their covariance is :math:`I \otimes (n G)^{-1}`, n G the information on a shift
of all means together; those of two stages are least squares, :math:`I \otimes \Sigma / n` with the covariance
:math:`\Sigma` of the whole residual. With a gate all parameters have one information matrix.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import Bunch

from residmix.conditional.coordinates import ToResidual
from residmix.design.design import Design
from residmix.design.formula.expressions import Terms
from residmix.design.formula.parser import parse_formula
from residmix.effects.unmeasured.later import Refused, refused_of_gate
from residmix.kernels.cholesky import inverse_cholesky
from residmix.mixture.after.information_matrix.information import Information, shown_errors
from residmix.mixture.after.merged import MergedMixture
from residmix.mixture.after.methods import AfterFit
from residmix.mixture.params import MixtureParams
from residmix.removal.residualizer import Residualizer

__all__ = ["AfterFitGiven"]

Floats = NDArray[np.float64]


class AfterFitGiven(AfterFit):
    """Methods of a fitted estimator with metadata, and what its weights depend on."""

    estimation: str
    gating: str
    residualizer_: Residualizer
    _to_residual: ToResidual
    _affine: Any

    @property
    def _gated(self) -> bool:
        """Whether the weights depend on metadata."""
        return self.gating == "metadata" or bool(self._gate_terms)

    @property
    def _gate_terms(self) -> Terms:
        """The terms of a gate that has its own."""
        return () if self.gating in ("constant", "metadata") else parse_formula(self.gating)

    @property
    def _design(self) -> Design:
        """The design of effects and gate."""
        found: Design = self.__dict__.get("_whole_design", self.residualizer_.design_)
        return found

    def _refused_of_gate(self) -> Refused | None:
        """Return the check of new rows for combinations of levels in the gate's own terms that had no rows in fit."""
        # rows without features don't count in the effects' means, so that gaps leave those of all rows unknown
        if self._design is self.residualizer_.design_ or self._gaps_allowed():
            return None
        p = self.residualizer_.design_.n_removed
        mean = self.residualizer_.moments_.linear.mean_a[0][:p]
        return refused_of_gate(self._design, np.append(mean, self._to_residual.affine.origin_a[p:]))

    def outlier_pvalues(self, X: Any, *, metadata: Any = None, out: Any = None) -> Any:
        """Return a p-value for each row, (n,): the probability of a less likely row, given the metadata.

        See :meth:`residmix.GaussianMixture.outlier_pvalues`; `metadata` as in fit.
        """
        return self._outlier_pvalues(out, X, metadata)

    def outlier_cells(self, X: Any, *, metadata: Any = None, out: Any = None) -> Any:
        """Return which values are set aside as wrong, given the others of their row and the metadata, (n, d).

        See :meth:`residmix.GaussianMixture.outlier_cells`; `metadata` as in fit. The model needs `cells`.
        """
        return self._outlier_cells(self.residualizer_.features_, out, X, metadata)

    def merge_components(
        self,
        X: Any = None,
        *,
        metadata: Any = None,
        n_clusters: int | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> MergedMixture:
        """Return the mixture with its components merged into clusters, which needn't be normal.

        See :meth:`residmix.GaussianMixture.merge_components`; `metadata` as in fit. Without rows, the entropy is
        computed on draws with the average weights and covariances.
        """
        return self._merge_components(n_clusters, sample_weight, X, metadata)

    def standard_errors(self, X: Any, *, metadata: Any = None, sample_weight: ArrayLike | None = None) -> Bunch:
        """Return the standard errors of the parameters from the observed information of the rows of the fit.

        See :meth:`residmix.GaussianMixture.standard_errors`; `metadata` as in fit. The result also has coef and
        intercept, and, if the weights depend on the metadata, gate_coef and gate_intercept instead of weights.
        """
        return self._standard_errors(sample_weight, X, metadata)

    def _errors(self, found: Information) -> Bunch:
        errors, params, d = shown_errors(found), found.params, found.params.n_features
        errors["means"] = found.unit * np.sqrt(_of_centred(found)).reshape(-1, d)
        basis, widths = self._to_residual.effects_basis, self._to_residual.widths
        q, shift = widths.effects, widths.of_effects(self._shift())
        if found.layout.coef.stop > found.layout.coef.start:
            of_coef = found.covariance[found.layout.coef, found.layout.coef].reshape(q, d, q, d)
        elif self.estimation == "joint":
            factor = inverse_cholesky(found.pull[None])[0][0]
            of_coef = np.einsum("ab,ij->aibj", np.eye(q), factor @ factor.T / found.total)
        else:
            of_coef = np.einsum("ab,ij->aibj", np.eye(q), _whole_covariance(params) / found.total)
        own = np.einsum("aibi->iab", of_coef)
        errors["coef"] = found.unit * np.sqrt(np.einsum("pa,iab,pb->pi", basis, own, basis))
        errors["intercept"] = found.unit * np.sqrt(
            np.diag(_of_common(found)) + np.einsum("a,iab,b->i", shift, own, shift)
        )
        if params.gate is not None:
            self._gate_errors(errors, found, widths.of_gate(self._to_residual.basis), widths.of_gate(self._shift()))
        return errors

    def _shift(self) -> Floats:
        """Return the negative of u where the design is 0."""
        basis = self._to_residual.basis
        return self._to_residual.offset + basis.T @ self._affine.origin_a if basis.shape[1] else np.zeros(0)

    def _gate_errors(self, errors: Bunch, found: Information, basis: Floats, shift: Floats) -> None:
        K, width = found.params.n_components, basis.shape[1] + 1
        of_gate = found.covariance[found.layout.gate, found.layout.gate].reshape(K - 1, width, K - 1, width)
        centred = np.vstack([np.eye(K - 1), np.zeros(K - 1)]) - 1 / K
        every = np.einsum("ka,aibj,kb->kij", centred, of_gate, centred)
        errors["gate_coef"] = np.sqrt(np.einsum("pi,kij,pj->kp", basis, every[:, :-1, :-1], basis))
        to_intercept = np.append(-shift, 1.0)
        errors["gate_intercept"] = np.sqrt(np.einsum("i,kij,j->k", to_intercept, every, to_intercept))


def _common_jacobian(found: Information) -> Floats:
    """Return the derivatives (d, P) of the components' common mean, their means weighted."""
    params, layout = found.params, found.layout
    _K, d = params.means.shape
    jacobian = np.zeros((d, layout.size))
    jacobian[:, layout.means] = np.kron(params.weights, np.eye(d))
    if params.gate is None:
        noise = 0.0 if params.noise is None else params.noise[0]
        at = params.weights @ params.means if params.noise is not None else params.means[-1]
        count = layout.weights.stop - layout.weights.start
        jacobian[:, layout.weights] = ((params.means - at)[:count] / (1 - noise)).T
    return jacobian


def _of_common(found: Information) -> Floats:
    jacobian = _common_jacobian(found)
    return jacobian @ found.covariance @ jacobian.T


def _of_centred(found: Information) -> Floats:
    """Return the variances of the means less their common one, (K d,)."""
    K, d = found.params.means.shape
    jacobian = -np.tile(_common_jacobian(found), (K, 1))
    jacobian[:, found.layout.means] += np.eye(K * d)
    return np.asarray(np.einsum("ij,jk,ik->i", jacobian, found.covariance, jacobian))


def _whole_covariance(params: MixtureParams) -> Floats:
    """Return the covariance of a mixture; NaN or infinite where Student's tails have none."""
    full, weights = params.full_covariances(), params.weights
    if params.dof is not None:
        spread = np.where(params.dof > 2, params.dof / np.maximum(params.dof - 2, 1e-300), np.inf)
        with np.errstate(invalid="ignore"):  # infinite times 0
            full = full * spread[:, None, None]
    means = params.means
    if params.noise is not None:
        share, box = params.noise
        weights, means = np.append(weights * (1 - share), share), np.vstack([means, box.mean(axis=0)])
        full = np.concatenate([full, np.diag((box[1] - box[0]) ** 2 / 12)[None]])
    away = means - weights @ means
    return np.asarray(np.einsum("k,kij->ij", weights, full) + (away * weights[:, None]).T @ away)
