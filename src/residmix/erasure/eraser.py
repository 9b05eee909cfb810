"""Eraser: take metadata out of features without needing the metadata again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.utils._param_validation import StrOptions
from sklearn.utils.metadata_routing import UNUSED
from sklearn.utils.validation import check_is_fitted

from residmix.design.design import Design
from residmix.errors import DesignWarning, EntangledEffectsWarning, keeps_notes, warn
from residmix.moments.erase import Erasure, column_scale, erasure
from residmix.moments.scatter import Scatter, check_magnitudes, joint_scatter
from residmix.removal.transformer import MetadataTransformer, refuse_frames
from residmix.rows.block import Block
from residmix.rows.progress import watched
from residmix.rows.rows import Rows
from residmix.sources.open import as_table
from residmix.sources.output import delivered
from residmix.sources.table import Table

__all__ = ["Eraser"]

# Above this canonical correlation, erased and preserved directions share more than 9/10 of their variance.
_ENTANGLED = 0.95
# No factor is absorbed: erasing as many levels as there are features erases everything anyway.
_NEVER = 10**9


class Eraser(MetadataTransformer):
    r"""Affine map of the features after which no linear model finds the metadata, and which needs no metadata itself.

    .. math:: r(x) = x - L R (x - \bar x), \qquad \operatorname{Cov}(r(x), a(m)) = 0

    where a(m) is the design row that `formula` makes of the metadata m. Of all affine maps that erase a(m), this one
    changes x least, in every inner product at once (LEACE). With `preserve`, it also keeps the covariance of x with
    the preserved design columns as it is, and is the least change that does (SPLINCE).

    Compared with :class:`~residmix.Residualizer`: that one subtracts what a row's own metadata explain and so needs
    them for new rows; this one takes out as many directions of feature space as the metadata have, and adds nothing.

    Parameters
    ----------
    formula : str, optional
        What to erase, such as ``"C(site) + age"``. Its columns are taken from `metadata`, or from X itself if X is a
        table and no metadata is given. Without a formula every metadata column is erased.
    preserve : str, optional
        Formula of effects whose covariance with the features is kept.
    features : list of str, optional
        Columns of X to erase from. Default: all numeric ones, apart from the metadata.
    missing : {"error", "mean", "indicator"}, default "error"
        What to do with missing metadata: raise; use the mean; or the mean and an indicator, which is erased as well.

    Attributes
    ----------
    mean_ : ndarray (d,)
        Which the map leaves as it is.
    left_, right_ : ndarray (d, k), (k, d)
        L, and R with R L = I; k is the rank of the cross-covariance of features and metadata.
    correlations_ : ndarray (k,)
        Canonical correlations of features and metadata in fit, largest first: what there was to erase.
    entangled_ : float
        Largest canonical correlation, in whitened feature space, of what is erased and what is preserved.
    rank_ : int
        k.
    features_ : ndarray of str (d,)
    design_ : Design
    n_features_in_ : int
    feature_names_in_ : ndarray of str
        Only if X had column names.

    Warns
    -----
    DesignWarning
        If there is nothing to erase, or if erasing leaves nothing of the features.
    EntangledEffectsWarning
        If erased and preserved directions are nearly the same, so that the map blows the features up.

    Notes
    -----
    Fit is one pass that folds the moments of [a(m), x]: (q + d)^2 numbers. Tolerances are relative to the scale of each
    column, so that a fraction, a calendar year and a level of five rows in a thousand are all erased alike.

    What holds exactly, holds for the training rows and for linear models; new rows keep what sampling leaves.

    References
    ----------
    Belrose et al., "LEACE: Perfect linear concept erasure in closed form", NeurIPS 2023.
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

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "formula": [str, None],
        "preserve": [str, None],
        "features": "no_validation",  # by the table, which knows its columns
        "missing": [StrOptions({"error", "mean", "indicator"})],
    }

    def __init__(
        self,
        formula: str | None = None,
        *,
        preserve: str | None = None,
        features: Sequence[str] | None = None,
        missing: str = "error",
    ) -> None:
        self.formula = formula
        self.preserve = preserve
        self.features = features
        self.missing = missing

    # ---- fitting -----------------------------------------------------------------------------------------------------

    @keeps_notes
    def fit(self, X: Any, y: Any = None, *, metadata: Any = None, sample_weight: Any = None) -> Self:
        """Find the directions to take out.

        Parameters
        ----------
        X : array (n, d), or a table with the features and, if `metadata` isn't given, the metadata columns
        y : ignored
        metadata : array (n,) or (n, p), or table, optional
        sample_weight : array (n,) or str, optional
            A text names the column of X that holds the weights.

        Raises
        ------
        ValueError, TypeError
            For input that can't be used, and if what is to be preserved can't be told from what is to be erased.
        """
        table = as_table(X, metadata=metadata)
        self._start(X, table, sample_weight)
        with watched(self._rows(table, sample_weight)) as rows:
            self._set(joint_scatter(rows))
        return self

    @keeps_notes
    def partial_fit(self, X: Any, y: Any = None, *, metadata: Any = None, sample_weight: Any = None) -> Self:
        """Fit on further rows, as if all rows so far had come at once.

        The first call learns the design, so its rows must show every level.
        """
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
        """Take in the rows that `other`, of the same design, was fitted on; return self.

        Raises
        ------
        TypeError, ValueError
            If `other` is something else, or designs or features differ.
        """
        self._refuse_other(other)
        self._set(self.moments_.merge(other.moments_))
        return self

    def _start(self, X: Any, table: Table, sample_weight: Any) -> None:
        self._validate_params()
        self._learn(X, table, sample_weight, missing=self.missing, absorb_above=_NEVER)

    def _rows(self, table: Table, sample_weight: Any) -> Rows:
        width = len(self.design_.column_names) + len(self.features_)
        return self.rows_of(table, sample_weight, preserved=True, block_rows=_block_rows(width))

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
        _warn(map_, n_erased, self.design_.columns, bool(varies))

    # ---- applying ----------------------------------------------------------------------------------------------------

    def transform(self, X: Any, *, metadata: Any = None, out: Any = None) -> Any:
        """Return the features (n, d) without what a linear model could tell of the metadata, in the dtype of X.

        Parameters
        ----------
        X : array (n, d) or table
            The features; columns that aren't features may be there or not.
        metadata : ignored
            None are needed; they may be given as to any other transformer here.
        out : path or ndarray, optional
            A Parquet file for them, written as they come, so that they needn't fit into memory. It appears when it is
            whole; its path is returned in place of an array. Or an array to put them in, which may be X itself.
        """
        check_is_fitted(self)
        if out is not None:
            refuse_frames(self)
        table = self.open_rows(X, wanted=False)
        rows = self.rows_of(table, design=Design.empty(), block_rows=_block_rows(len(self.features_)))
        with watched(rows) as seen:
            return delivered(seen, _Apply(self.mean_, self.left_, self.right_), self.features_, out)

    @property
    def projection_(self) -> NDArray[np.float64]:
        """The matrix I - L R, (d, d)."""
        check_is_fitted(self)
        return np.eye(len(self.left_)) - self.left_ @ self.right_

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


@dataclass(frozen=True)
class _Apply:
    mean: NDArray[np.float64]
    left: NDArray[np.float64]
    right: NDArray[np.float64]

    def __call__(self, block: Block) -> NDArray[Any]:
        part = (block.X - self.mean) @ self.right.T
        return (block.X - part @ self.left.T).astype(block.X.dtype, copy=False)


def _block_rows(width: int) -> int:
    """Rows in a block: about 16 MB of float64."""
    return int(np.clip(2**21 // max(width, 1), 256, 8192))


def _warn(found: Erasure, n_erased: int, metadata: Sequence[str], varies: bool) -> None:
    d, k = found.left.shape
    if metadata and not varies:
        warn(f"nothing is erased, because the metadata don't vary: {', '.join(map(repr, metadata[:8]))}", DesignWarning)
    elif n_erased == 0:
        warn("there is no metadata, so nothing is erased; give metadata= or a formula", DesignWarning)
    elif k == d:
        warn(
            f"{n_erased} design columns take all {d} directions of feature space: nothing but the mean is left; erase "
            "less, or use a Residualizer, which keeps what a row's own metadata do not explain",
            DesignWarning,
        )
    if found.entangled > _ENTANGLED:
        warn(
            "what is erased and what is preserved lie in nearly the same direction of feature space: canonical "
            f"correlation {found.entangled:.4f}; keeping the one makes noise in other directions larger. Preserve or "
            "erase less",
            EntangledEffectsWarning,
        )
