"""Methods of fitted estimators with and without metadata; `given` is the metadata, or nothing."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import Bunch
from sklearn.utils._param_validation import Interval

from residmix.errors import check_arguments
from residmix.mixture.after.draws import drawn
from residmix.mixture.after.information_matrix.information import (
    Information,
    expected_information,
    observed_information,
    shown_errors,
)
from residmix.mixture.after.merged import MergedMixture
from residmix.mixture.after.merging import elbow, merge_by_entropy
from residmix.mixture.after.outliers import OutlierTest
from residmix.mixture.density import MixtureDensity
from residmix.mixture.iteration.estep import Problem
from residmix.mixture.iteration.step import believed_block
from residmix.mixture.params import MixtureParams
from residmix.rows.block import Block
from residmix.rows.checks import check_weight
from residmix.rows.rows import ArrayRows, Rows
from residmix.sources.output import delivered

__all__ = ["AfterFit", "AfterPlainFit"]

# Draws that stand for the mixture where components are merged without data.
DRAWS = 20_000


class AfterFit(MixtureDensity):
    """Outliers, merging and standard errors."""

    def _outlier_pvalues(self, out: Any, X: Any, *given: Any) -> Any:
        rows, params = self._believed(self._rows(X, *given))
        test = OutlierTest(Problem.of(params, n_rows=rows.n_rows))
        return delivered(rows, test, ["p_value"], out, dtype=np.float64, flat=True)

    def _believed(self, rows: Rows) -> tuple[Rows, MixtureParams]:
        """Return rows in which values that are set aside are missing, and the parameters of a mixture of such rows."""
        params = self._model()
        if params.cells is None:
            return rows, params
        return rows.mapped(partial(believed_block, params)), replace(params, cells=None)

    def _outlier_cells(self, names: Any, out: Any, X: Any, *given: Any) -> Any:
        params = self._model()
        if params.cells is None:
            raise ValueError("outlier_cells needs a model that was fitted with cells=0.25 or so; this one has none")
        return delivered(self._rows(X, *given), partial(_set_aside, params), names, out, dtype=np.bool_)

    def _merge_components(
        self, n_clusters: int | None, sample_weight: ArrayLike | None, X: Any, *given: Any
    ) -> MergedMixture:
        params = self._model()
        allowed = [Interval(Integral, 1, params.n_components + 1, closed="left"), None]
        check_arguments("merge_components", n_clusters=(allowed, n_clusters))
        if X is None:
            if sample_weight is not None:
                raise ValueError("sample_weight= needs X, the rows that the weights belong to")
            params = replace(params, coef=None, gate=None, by_group=None)
            rows: Rows = ArrayRows(drawn(params, DRAWS)[0])
        else:
            rows = self._weighted(self._rows(X, *given), sample_weight)
        merges = merge_by_entropy(rows, Problem.of(params, n_rows=rows.n_rows))
        return MergedMixture(self, merges, elbow(merges) if n_clusters is None else n_clusters)

    def _weighted(self, rows: Rows, sample_weight: ArrayLike | None) -> Rows:
        weight = check_weight(sample_weight, rows.n_rows)
        return rows if weight is None else rows.mapped(_Weigh(weight))

    # ---- standard errors ---------------------------------------------------------------------------------------------

    @property
    def standard_errors_(self) -> Bunch:
        """Standard errors of the parameters, from the expected information.

        A `Bunch`: weights, means and covariances, shaped as the attributes; noise_weight and dof if the model has them.
        They are computed from the parameters alone, each time the attribute is read. See :meth:`standard_errors` for
        the observed information of given rows, which is more robust to a misspecified model.
        """
        params = self._model()
        if params.by_group is not None:
            raise AttributeError("standard_errors_ doesn't work with covariance_by; use residmix.bootstrap")
        if params.by_component:
            raise AttributeError("standard_errors_ doesn't work with effects='by-component'; use residmix.bootstrap")
        if params.trim is not None:
            raise AttributeError("standard_errors_ doesn't work with trim; use residmix.bootstrap")
        if params.missing or params.gate is not None:
            what = "features have missing values" if params.missing else "weights depend on metadata"
            raise AttributeError(
                f"standard_errors_ isn't available if {what}; call standard_errors with the rows of the fit"
            )
        total = self._weight_of_fit()
        if not total:
            raise AttributeError("this mixture was made from parameters, so it has no standard errors; fit it to data")
        return self._errors(expected_information(params, total))

    def _weight_of_fit(self) -> float:
        return float(getattr(self, "_weight_seen", getattr(self, "n_samples_seen_", getattr(self, "_n_rows", 0))))

    def _standard_errors(self, sample_weight: ArrayLike | None, X: Any, *given: Any) -> Bunch:
        rows, params = self._believed(self._rows(X, *given))
        return self._errors(observed_information(self._weighted(rows, sample_weight), params))

    def _errors(self, found: Information) -> Bunch:
        return shown_errors(found)


def _set_aside(params: MixtureParams, block: Block) -> NDArray[np.bool_]:
    out: NDArray[np.bool_] = np.isnan(believed_block(params, block).X) & ~np.isnan(block.X)
    return out


class _Weigh:
    """Block with the weights of its rows."""

    def __init__(self, weight: NDArray[np.float64]) -> None:
        self.weight = weight

    def __call__(self, block: Block) -> Block:
        return replace(block, weight=self.weight[block.start : block.start + block.n_rows])


class AfterPlainFit(AfterFit):
    """The same methods for an estimator without metadata."""

    def outlier_pvalues(self, X: Any, *, out: Any = None) -> Any:
        r"""Return a p-value for each row, (n,): the probability that a row from the mixture is less likely.

        .. math:: P(x) = \Pr[p(Y) \le p(x)], \qquad Y \sim p

        For rows from the mixture, p-values are uniform. For one component they are exact (chi-squared; F for Student's
        t), for several accurate to about 1 % even far into the tails. With ``noise=True`` the noise is part of the
        mixture, so rows within it have no small p-values; their label is -1.

        Parameters
        ----------
        X : array (n, d) or table
        out : path or ndarray, optional
            As in :meth:`score_samples`: a file has the column ``p_value``.

        Examples
        --------
        >>> from residmix import GaussianMixture
        >>> model = GaussianMixture.from_parameters([1.0], [[0.0]], [[[1.0]]])
        >>> model.outlier_pvalues([[1.96], [6.0]]).round(3)
        array([0.05, 0.  ])
        """
        return self._outlier_pvalues(out, X)

    def merge_components(
        self, X: Any = None, *, n_clusters: int | None = None, sample_weight: ArrayLike | None = None
    ) -> MergedMixture:
        r"""Return the mixture with its components merged into clusters, which needn't be normal.

        The two clusters with the largest overlap are merged, repeatedly: each merge lowers the entropy of the
        assignment, :math:`-\sum_{nc} t_{nc} \log t_{nc}`, as much as possible.

        Parameters
        ----------
        X : array (n, d) or table, optional
            Rows to compute the entropy on. Default: draws from the mixture.
        n_clusters : int, optional
            Default: at the bend of the entropy as a function of the number of clusters (best fit of two straight
            lines). With fewer than three components, or if no two overlap much, nothing is merged.
        sample_weight : array-like (n,), optional

        Returns
        -------
        MergedMixture
            With ``predict``, ``predict_proba``, ``clusters_`` (of each component) and ``entropy_``.

        References
        ----------
        Baudry, Raftery, Celeux, Lo and Gottardo (2010), J. Comput. Graph. Stat. 19:332.

        Examples
        --------
        >>> from residmix import GaussianMixture
        >>> means = [[0.0, 0.0], [1.5, 0.0], [3.0, 0.0], [9.0, 0.0], [9.0, 9.0]]
        >>> model = GaussianMixture.from_parameters([0.2] * 5, means, [1.0] * 5, "spherical")
        >>> model.merge_components()
        <5 components merged into 3 clusters: [0, 0, 0, 1, 2]>
        """
        return self._merge_components(n_clusters, sample_weight, X)

    def standard_errors(self, X: Any, sample_weight: ArrayLike | None = None) -> Bunch:
        """Return the standard errors of the parameters from the observed information of the rows of the fit.

        Parameters
        ----------
        X : array (n, d) or table
            The rows of the fit.
        sample_weight : array-like (n,), optional

        Returns
        -------
        Bunch
            weights, means and covariances, shaped as the attributes; noise_weight and dof if the model has them. NaN if
            the rows don't determine a parameter.

        Raises
        ------
        ValueError
            With more than 6,000 parameters.

        References
        ----------
        Louis (1982), J. R. Stat. Soc. B 44:226; see `residmix.mixture.after.information_matrix.information`.

        Examples
        --------
        >>> import numpy as np
        >>> from residmix import GaussianMixture
        >>> X = np.random.default_rng(0).normal(size=(100, 1))
        >>> errors = GaussianMixture(1).fit(X).standard_errors(X)
        >>> (errors.means * 10 / X.std()).round(3)
        array([[1.]])
        """
        return self._standard_errors(sample_weight, X)
