"""Eraser: remove metadata from features, so that models can't predict it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from numbers import Integral
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.metadata_routing import UNUSED
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from residmix.design.design import Design
from residmix.design.doubts.codes import tell_of_codes
from residmix.effects.unmeasured.later import refused_of_gate
from residmix.erasure.linear import AffineMap, affine_block_rows, tell_of
from residmix.erasure.transport.fitting import FIT_ROWS, certified, discrete_columns, referred
from residmix.erasure.transport.transport import Applied, Averaged
from residmix.errors import CertificateWarning, keeps_notes, note, warn
from residmix.moments.erase import column_scale, erasure
from residmix.moments.scatter import Scatter, check_magnitudes, joint_scatter
from residmix.removal.transformer import MetadataTransformer, refuse_frames
from residmix.rows.block import Block
from residmix.rows.memory import machine_bytes, told_bytes
from residmix.rows.progress import watched
from residmix.rows.rows import Rows
from residmix.rows.sampled import evenly
from residmix.sources.open import as_table
from residmix.sources.output import delivered
from residmix.sources.table import Table
from residmix.surfaces import Shown

__all__ = ["Eraser"]

# Rows of a block that are moved at once, and the fewest that laws are fitted on.
_MOVED_ROWS, _FEWEST = 4096, 20
# No factor is absorbed: erasing as many levels as there are features erases everything anyway.
_NEVER = 10**9


class Eraser(Shown, MetadataTransformer):
    r"""Erase metadata from features: for linear models, or for all models, up to a fitted conditional mixture.

    ``method="linear"`` is affine, and needs no metadata for new rows:

    .. math:: r(x) = x - L R (x - \bar x), \qquad \operatorname{Cov}(r(x), a(m)) = 0

    where a(m) is the design row that `formula` makes of the metadata m. Of all affine maps that erase a(m), this one
    changes x least, for every inner product (LEACE). With `preserve`, it is the smallest change that also keeps the
    covariance of x with the preserved design columns (SPLINCE).

    The other methods transport each row from the distribution given its metadata to that of a reference,

    .. math:: r(x, m) = G_m^{-1}(F_m(x)), \qquad p(x \mid m) = \sum_k \pi_k(m) N(x \mid \mu_k(m), \Sigma_k(m)),

    with F the Rosenblatt transform of the conditional mixture and G that of the target. They need the metadata of each
    row, and `inverse_transform` inverts them exactly:

    ========== =============================================== ======================================================
    method     target                                          what is left, and the price
    ========== =============================================== ======================================================
    spread     one Gaussian for all                            location and covariance are erased; shape is left
    component  the reference's components, m's own weights     proportions of components are left; clusters are kept
    full       the reference mixture                           all that the model describes is erased; rows of
                                                               clusters whose proportion differs are moved
    ========== =============================================== ======================================================

    Compared with this, :class:`~residmix.Residualizer` subtracts the effects of a row's own metadata, and so needs the
    metadata of new rows; the linear eraser removes as many directions of feature space as the design has columns.

    Parameters
    ----------
    formula : str, optional
        What to erase, such as ``"C(site) + age"``. Its columns are taken from `metadata`, or from X itself if X is a
        table and no metadata is given. Without a formula every metadata column is erased.
    preserve : str, optional
        Formula of effects whose covariance with the features is kept. With a transport, distributions are also
        conditional on these columns, and rows keep their values.
    method : {"linear", "spread", "component", "full"}, default "linear"
    n_components : int or "auto", default "auto"
        Of the conditional mixture. "auto" chooses by held-out likelihood among 1, 2, 3, 4, 6 and 8 clusters, of 1 to 4
        components each. Not used by "linear" and "spread".
    reference : dict, optional
        Value of each metadata column that is erased, such as ``{"site": "A", "age": 40}``: a transport gives all rows
        the distribution of this row. Default: the average over the rows of fit.
    on_unknown : {"error", "mean"}, default "error"
        What a transport does with a level that fit didn't see: raise, or treat the row as an average one. It also
        raises for a combination of levels of an interaction that fit didn't see.
    random_state : int or None, default None
        Seed for the starts of the mixture and the held-out rows; None is 0.
    features : list of str, optional
        Columns of X to erase from. Default: all numeric ones, apart from the metadata.
    missing : {"error", "mean", "indicator"}, default "error"
        What to do with missing metadata: raise; use the mean; or use the mean and an indicator, which is erased as
        well.

    Attributes
    ----------
    mean_ : ndarray (d,)
        The mean of the features, which the map doesn't change.
    left_, right_ : ndarray (d, k), (k, d)
        L, and R with R L = I; k is the rank of the cross-covariance of features and metadata.
    correlations_ : ndarray (k,)
        Canonical correlations of features and metadata in fit, largest first.
    entangled_ : float
        Largest canonical correlation, in whitened feature space, of erased and preserved directions.
    rank_ : int
        k.
    transport_ : Transport
        For the other methods, instead of the five attributes above.
    certificate_ : Certificate
        For the other methods: checks on held-out rows. It holds the uniformity of F(x | m) by level, the scores of
        linear, forest and network probes before and after, and the loss in clusters and preserved columns. It prints as
        text; `failures` lists failed checks.
    features_ : ndarray of str (d,)
    design_ : Design
    n_features_in_ : int
    feature_names_in_ : ndarray of str
        Only if X had column names.

    Warns
    -----
    DesignWarning
        If there is nothing to erase, or if all directions of the features are erased.
    EntangledEffectsWarning
        If erased and preserved directions are nearly the same, so that the map amplifies noise.
    CertificateWarning
        If a transport failed its certificate.

    Notes
    -----
    The linear method makes one pass over the moments of [a(m), x]: (q + d)^2 numbers. Tolerances are relative to the
    scale of each column, so small and large units and rare levels are erased equally well.

    A transport is fitted on at most 200,000 rows, evenly spaced, held in memory; transforms read blocks. Levels of
    factors and columns with two values define groups, each with its own location, covariance and weight of each
    component. Along other columns, location and log spread are linear, and means and weights of components vary with
    them. Components are matched by the joint likelihood of all groups. Features that are constant in fit stay as they
    are. Weights may have any unit. Within the bulk of the rows the inverse is exact to 1e-8; a row a million standard
    deviations away stays finite, and is recovered unless the density there is 0 in double precision.

    The linear erasure is exact for the training rows only; on new rows, sampling error remains.

    References
    ----------
    Belrose et al., "LEACE: Perfect linear concept erasure in closed form", NeurIPS 2023.
    Rosenblatt, "Remarks on a multivariate transformation", Annals of Mathematical Statistics 23:470-472, 1952.
    Holstege, Ravfogel and Wouters, "Preserving task-relevant information under linear concept removal", NeurIPS 2025.

    Examples
    --------
    >>> import numpy as np
    >>> import residmix as rm
    >>> age = np.array([30.0, 40.0, 50.0, 60.0])
    >>> X = np.column_stack([age / 10, [1.0, -1.0, -1.0, 1.0]])
    >>> eraser = rm.Eraser().fit(X, metadata=age)
    >>> eraser.transform(X).round(12).tolist()
    [[4.5, 1.0], [4.5, -1.0], [4.5, -1.0], [4.5, 1.0]]
    """

    __metadata_request__fit = {"metadata": True}
    __metadata_request__partial_fit = {"metadata": True}
    __metadata_request__transform = {"metadata": True, "out": UNUSED}  # a path is never routed
    __metadata_request__inverse_transform = {"metadata": True, "out": UNUSED}

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "formula": [str, None],
        "preserve": [str, None],
        "features": "no_validation",  # by the table, which knows its columns
        "missing": [StrOptions({"error", "mean", "indicator"})],
        "method": [StrOptions({"linear", "spread", "component", "full"})],
        "n_components": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"})],
        "reference": [dict, None],
        "on_unknown": [StrOptions({"error", "mean"})],
        "random_state": [Interval(Integral, 0, None, closed="left"), None],
    }

    def __init__(
        self,
        formula: str | None = None,
        *,
        preserve: str | None = None,
        features: Sequence[str] | None = None,
        method: str = "linear",
        n_components: int | str = "auto",
        reference: dict[str, Any] | None = None,
        missing: str = "error",
        on_unknown: str = "error",
        random_state: int | None = None,
    ) -> None:
        self.formula = formula
        self.preserve = preserve
        self.features = features
        self.method = method
        self.n_components = n_components
        self.reference = reference
        self.missing = missing
        self.on_unknown = on_unknown
        self.random_state = random_state

    # ---- fitting -----------------------------------------------------------------------------------------------------

    @keeps_notes
    def fit(self, X: Any, y: Any = None, *, metadata: Any = None, sample_weight: Any = None) -> Self:
        """Fit the map.

        Parameters
        ----------
        X : array (n, d), or a table with the features and, if `metadata` isn't given, the metadata columns
        y : ignored
        metadata : array (n,) or (n, p), or table, optional
        sample_weight : array (n,) or str, optional
            Weights, or the name of the column of X that holds them.

        Raises
        ------
        ValueError, TypeError
            For invalid input, and if erased and preserved effects can't be separated.
        """
        table = as_table(X, metadata=metadata)
        self._start(X, table, sample_weight)
        with watched(self._rows(table, sample_weight)) as rows:
            if self.method == "linear":
                self._set(joint_scatter(rows))
            else:
                self._transport(rows)
        return self

    def fit_transform(self, X: Any, y: Any = None, *, metadata: Any = None, sample_weight: Any = None) -> Any:
        """Fit, and return the features (n, d) of the same rows with the metadata erased."""
        return self.fit(X, metadata=metadata, sample_weight=sample_weight).transform(X, metadata=metadata)

    @keeps_notes
    def partial_fit(self, X: Any, y: Any = None, *, metadata: Any = None, sample_weight: Any = None) -> Self:
        """Fit on further rows; the result is that of a fit on all rows so far.

        The first call learns the design, so its rows must include every level. Only with ``method="linear"``.
        """
        self._refuse_sums("partial_fit")
        if hasattr(self, "moments_"):
            tables = self.open_rows(X, metadata, fitting=True).batches()
        else:
            tables = as_table(X, metadata=metadata).batches()
            first = next(tables)
            self._start(X, first, sample_weight)
            self._set(joint_scatter(self._rows(first, sample_weight)))
        for table in tables:
            self._set(self.moments_.merge(joint_scatter(self._rows(table, sample_weight))))
        return self

    @keeps_notes
    def merge(self, other: Eraser) -> Self:
        """Add the rows that `other`, with the same design, was fitted on; return self.

        Raises
        ------
        TypeError, ValueError
            If `other` is something else, or designs or features differ.
        """
        self._refuse_other(other)
        self._refuse_sums("merge")
        self._set(self.moments_.merge(other.moments_))
        return self

    def _refuse_sums(self, what: str) -> None:
        if self.method != "linear":
            raise ValueError(f"{what} needs method='linear', not {self.method!r}; call fit on all rows")

    def _start(self, X: Any, table: Table, sample_weight: Any) -> None:
        self._validate_params()
        if self.method == "linear" and self.reference is not None:
            raise ValueError("reference= has no effect with method='linear'; leave it out, or use another method")
        unknown = {} if self.method == "linear" else {"on_unknown": self.on_unknown}
        self._learn(X, table, sample_weight, missing=self.missing, absorb_above=_NEVER, **unknown)

    def _rows(self, table: Table, sample_weight: Any) -> Rows:
        width = len(self.design_.column_names) + len(self.features_)
        needed, room = 2 * 8 * width**2, machine_bytes()
        if needed > room:
            raise ValueError(
                f"the covariance of {len(self.features_):,} features takes {told_bytes(needed)}, and this machine "
                f"has {told_bytes(room)}; use a Residualizer, which needs none, or fewer features, such as principal "
                "components"
            )
        return self.rows_of(table, sample_weight, preserved=True, block_rows=affine_block_rows(width))

    def _set(self, moments: Scatter) -> None:
        n_erased, n_kept = self.design_.n_removed, self.design_.n_preserved
        covariance, q = moments.covariance, n_erased + n_kept
        variance = np.diagonal(covariance)
        check_magnitudes(self.design_.column_names, moments.mean[:q], variance[:q], covariance[:q, q:], variance[q:])
        map_ = erasure(moments.mean, moments.covariance, n_erased, n_kept)
        self.moments_ = moments
        self.mean_, self.left_, self.right_ = map_.mean, map_.left, map_.right
        self.correlations_, self.entangled_ = map_.correlations, map_.entangled
        self.rank_ = len(map_.right)
        varies = column_scale(moments.mean[:n_erased], moments.covariance[:n_erased, :n_erased]).any()
        tell_of(map_, n_erased, self.design_.columns, bool(varies))

    def _transport(self, rows: Rows) -> None:
        design = self.design_
        if not design.n_removed:
            raise ValueError("there is no metadata to erase; pass metadata=, or a formula")
        block = rows.take(evenly(rows.n_rows, FIT_ROWS))
        weight = np.ones(block.n_rows) if block.weight is None else np.asarray(block.weight, dtype=np.float64)
        seen = np.flatnonzero(weight > 0)
        if len(seen) < _FEWEST:
            raise ValueError(
                f"method={self.method!r} needs at least {_FEWEST} rows of positive weight, not {len(seen)}"
            )
        if block.n_rows < rows.n_rows:
            note("sample", f"the transport was fitted on {block.n_rows:,} of {rows.n_rows:,} rows, evenly spaced",
                 rows=rows.n_rows, used=block.n_rows)  # fmt: skip
        X, names = np.asarray(block.X, dtype=np.float64)[seen], [str(name) for name in self.features_]
        a = np.asarray(block.design, dtype=np.float64)[seen]
        tell_of_codes(X, names, rows.n_rows / len(seen))
        self.transport_, self.certificate_ = certified(
            X, a, weight[seen], discrete_columns(design, a), self.n_components, method=self.method,
            reference=referred(self.design_, self.reference), features=names,
            columns=[str(name) for name in design.column_names], random_state=self.random_state or 0,
        )  # fmt: skip
        if not self.certificate_.passed:
            more = len(self.certificate_.failures) - 1
            warn(
                f"the transport failed a check on held-out rows: {self.certificate_.failures[0]}"
                + (f" (and {more} more, see certificate_)" if more else "")
                + ". Use more components, more rows, or another method",
                CertificateWarning,
                failures=list(self.certificate_.failures),
            )

    # ---- applying ----------------------------------------------------------------------------------------------------

    def transform(self, X: Any, *, metadata: Any = None, out: Any = None) -> Any:
        """Return the features (n, d) with the metadata erased, in the dtype of X.

        Parameters
        ----------
        X : array (n, d) or table
            The features; other columns may be absent.
        metadata : array (n, p) or table, optional
            Of the rows, as in fit. The linear method needs none and ignores them.
        out : path or ndarray, optional
            A Parquet file to write to, block by block; its path is returned instead of an array. The file appears only
            when it is complete. Or an array to write to, which may be X itself.
        """
        check_is_fitted(self)
        if out is not None:
            refuse_frames(self)
        if self.method != "linear":
            return self._moved(self.transport_.forward, X, metadata, out)
        table = self.open_rows(X, wanted=False)
        rows = self.rows_of(table, design=Design.empty(), block_rows=affine_block_rows(len(self.features_)))
        return delivered(rows, AffineMap(self.mean_, self.left_, self.right_), self.features_, out)

    def _moved(self, function: Callable[..., Any], X: Any, metadata: Any, out: Any) -> Any:
        table = self.open_rows(X, metadata)
        rows = self.rows_of(table, preserved=True, block_rows=_MOVED_ROWS)
        mean = self.transport_.aligned.origin
        check: Callable[[Block], Block] | None = None
        if found := refused_of_gate(self.design_, mean):
            check = replace(found, remedy="set on_unknown='mean' to treat the row as an average one")
            if self.on_unknown == "mean":
                check = Averaged(found.lost, mean)
        return delivered(rows, Applied(function, self.transport_.plain(rows.n_rows), check), self.features_, out)

    @available_if(lambda self: self.method != "linear")
    def inverse_transform(self, X: Any, *, metadata: Any = None, out: Any = None) -> Any:
        """Return the features (n, d) whose transform is X, or the features under other metadata.

        Parameters
        ----------
        X : array (n, d) or table
            The result of `transform`.
        metadata : array (n, p) or table, optional
            Of the rows, or of a profile repeated for each, such as all at site A.
        out
            As in `transform`.
        """
        check_is_fitted(self)
        return self._moved(self.transport_.backward, X, metadata, out)

    @property
    def projection_(self) -> NDArray[np.float64]:
        """The matrix I - L R, (d, d)."""
        check_is_fitted(self)
        return np.eye(len(self.left_)) - self.left_ @ self.right_

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags
